"""The bundled model: its files, and the scripts that make them. Nothing here is imported at run time.

``make_data`` says what the model is taught, ``make_tokenizer`` and ``train`` make the files, ``evaluate`` measures the result;
``docs/model.md`` has the settings and the figures.
"""
