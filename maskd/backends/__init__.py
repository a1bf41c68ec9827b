"""Backends: grammar libraries behind one interface (``base``). ``load`` imports a backend by its name."""

from __future__ import annotations

import importlib
from typing import cast

from maskd.backends.base import BackendFactory
from maskd.errors import GrammarUnsupportedError

__all__ = ["BUILTIN", "load"]

BUILTIN = {"xgrammar": "maskd.backends.xgrammar:create", "llguidance": "maskd.backends.llguidance:create"}


def load(name: str) -> BackendFactory:
    """Returns the factory called ``name``: a key of ``BUILTIN``, or ``module:attribute``.

    Raises:
        GrammarUnsupportedError: there is no such module or attribute.
    """
    target = BUILTIN.get(name, name)
    module_name, _, attribute = target.partition(":")
    try:
        return cast("BackendFactory", getattr(importlib.import_module(module_name), attribute or "create"))
    except (ImportError, AttributeError, ValueError) as error:
        raise GrammarUnsupportedError(
            f"no backend {name!r} ({error}); give one of {', '.join(BUILTIN)}, or module:attribute", backend=name
        ) from None
