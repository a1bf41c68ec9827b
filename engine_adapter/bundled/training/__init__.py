"""The scripts that make the bundled model's files. Nothing but the demo imports them at run time.

``make_data`` says what the model is taught, ``make_tokenizer`` and ``train`` make the files, ``evaluate`` measures the
result; ``docs/model.md`` has the settings and the figures.
"""
