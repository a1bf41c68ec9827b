"""Structured logs: one JSON object a line on stderr. Prompts, tokens and grammar sources are never logged.

Owns: the form of a line. Knows nothing about: what is logged.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO

import structlog

__all__ = ["configure_logging"]


class _Tolerant:
    """Writes lines, and drops them when the pipe is closed or the disk full: a daemon must not die of its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logging(level: str, **context: Any) -> None:
    """Sets up structlog for this process: lines from ``level`` on, each with ``context``."""
    structlog.configure(
        processors=[
            _always(context),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=_Tolerant(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def _always(context: dict[str, Any]) -> structlog.typing.Processor:
    """Adds ``context`` on every thread (context variables are per thread)."""

    def add(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**context, **event}

    return add
