"""Tokens to text while they arrive: characters stay whole, and the text ends exactly before a stop string.

Owns: the bytes of a character that is not whole yet, and the text that may begin a stop string.
Knows nothing about: tokens other than their bytes, the readers of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextStream"]


class TextStream:
    """The text of one output.

    Attributes:
        text: all the text that ``feed`` and ``finish`` returned.
        stop_string: the stop string that ended it, if one did.
    """

    def __init__(self, stop: Sequence[str] = (), *, skip_space: bool = False) -> None:
        """Begins a text that ``stop`` strings end; with ``skip_space`` without white space at its beginning."""
        self.text = ""
        self._skip_space = skip_space
        self.stop_string: str | None = None
        self._stop = [string for string in stop if string]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, token: bytes, *, may_stop: bool = True) -> str:
        """Takes the bytes of the next token; returns the text that is certain now, which may be empty.

        Once ``stop_string`` is set the text is complete: it ends before the stop string, and nothing more may be fed.
        Text that was fed without ``may_stop`` is part of no stop string.
        """
        piece = self._decoder.decode(token)
        if self._skip_space:
            piece = piece.lstrip()
            self._skip_space = not piece
        if may_stop:
            return self._release(piece)
        self.text += piece
        return piece

    def finish(self) -> str:
        """Takes the end; returns the text held back. Bytes that are no whole character become U+FFFD."""
        if self.stop_string is not None:
            return ""
        piece = self._release(self._decoder.decode(b"", True)) + self._held
        if self.stop_string is None:
            self.text += self._held
        self._held = ""
        return piece

    def _release(self, piece: str) -> str:
        if not self._stop:
            self.text += piece
            return piece
        pending = self._held + piece
        # All text before was searched, so the leftmost hit is the first stop string.
        found = [(pending.find(string), string) for string in self._stop if string in pending]
        if found:
            at, self.stop_string = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held, released = "", pending[:at]
        else:
            kept = max(_overlap(pending, string) for string in self._stop)
            released, self._held = pending[: len(pending) - kept], pending[len(pending) - kept :]
        self.text += released
        return released


def _overlap(text: str, string: str) -> int:
    """Returns the length of the longest end of ``text`` that is a beginning of ``string``, shorter than all of it."""
    return next((size for size in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:size])), 0)
