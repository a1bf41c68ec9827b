"""Functions to grammars, and outputs to calls."""
