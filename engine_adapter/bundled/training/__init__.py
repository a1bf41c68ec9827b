"""The scripts that make the bundled model's files. At run time only the demo imports one of them.

``make_data`` says what the model is taught. ``make_tokenizer`` and ``train`` make the files, and ``evaluate`` measures
the result. ``docs/model.md`` has the settings and the figures.
"""
