"""The bundled model's files; the scripts that make them are in ``training``."""
