"""What the offline interfaces share: an engine that ends with the program, and where its model and its daemon are.

Owns: the lifetime of the engine.
Knows nothing about: any interface.
"""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path
from typing import Any

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import Choice, TextGeneration

__all__ = ["TARGET_VARIABLE", "Offline", "finished", "reasoning_end_of"]

TARGET_VARIABLE = "MASKD_TARGET"
"""Environment variable: the daemon to use, "unix:/path" or "host:port"; without it each engine starts its own."""

_BUNDLED = "bundled"
_REASONING_PARSERS: dict[str, str | None] = {
    "deepseek-r1": "</think>",
    "qwen-qwq": "</think>",
    "qwen3": None,
    "intern-s1": None,
}
"""Name of a reasoning parser to the text that ends reasoning; None = the chat template tells."""
_log = logging.getLogger("engine_adapter")


class Offline:
    """Base of the offline interfaces; a context manager. The engine ends with the object or the program at the latest.

    Attributes:
        engine: what generates.
    """

    def __init__(self, model: str | Path | None, target: str | None, **engine_options: Any) -> None:
        """Makes the engine.

        Args:
            model: a local Hugging Face directory; "bundled" or None = the bundled model.
            target: a running daemon; None = the one that ``MASKD_TARGET`` names, or else one of its own.
            engine_options: further arguments of ``Engine``.

        Raises:
            FileNotFoundError: ``model`` is no local directory; nothing is downloaded.
        """
        directory = None if model is None or model == _BUNDLED else Path(model)
        if directory is not None and not directory.is_dir():
            raise FileNotFoundError(
                f"{model} is no directory here; give one with config.json and tokenizer.json, or {_BUNDLED!r}"
            )
        self.engine = Engine(directory, target=target or os.environ.get(TARGET_VARIABLE) or None, **engine_options)
        self._finalizer = weakref.finalize(self, self.engine.close)

    def close(self) -> None:
        """Ends the engine. Safe to repeat."""
        self._finalizer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reasoning_end_of(reasoning_parser: str | None) -> str | None:
    """Returns the engine's ``reasoning_end`` for the name of a reasoning parser; None = "", no reasoning.

    Raises:
        ValueError: an unknown name.
    """
    if reasoning_parser is None:
        return ""
    if reasoning_parser not in _REASONING_PARSERS:
        raise ValueError(f"reasoning_parser is {reasoning_parser!r}; give one of {', '.join(_REASONING_PARSERS)}")
    return _REASONING_PARSERS[reasoning_parser]


def finished(generation: TextGeneration) -> list[Choice]:
    """Waits for ``generation``, logs the report on its grammar, and returns its outputs.

    Raises:
        GrammarError: the grammar was refused.
        Exception: another error of an output.
    """
    choices = generation.result()
    if (report := generation.report) is not None:
        _log.info("grammar on %s: %s", report.backend, report.backend_reason)
        for missing in report.unenforced:
            _log.warning("%s is not enforced: %s", missing.pointer, missing.effect)
    return choices
