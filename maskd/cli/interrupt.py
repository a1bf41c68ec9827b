"""Signals end a command the orderly way: every context is left, so nothing stays behind.

Owns: SIGINT, SIGTERM and SIGHUP while a command runs. Knows nothing about: what there is to clean up.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """A context in which the first signal raises SystemExit with 128 + its number, and further ones are ignored."""

    def __init__(self) -> None:
        self._is_held = False
        self._pending = 0

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes in this context raises at its end: when what was begun has an owner that ends it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._pending:
            raise SystemExit(128 + self._pending)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        if not self._is_held:
            raise SystemExit(128 + number)
        self._pending = number
