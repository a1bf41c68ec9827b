"""The marker: one shared page in which a worker says what it is computing, read by the front when the worker hangs or dies.

    word 0   steps begun and ended: odd while one is being served
    word 1   session_id << 32 | grammar_id of the native call under way; grammar 0 = a batch of the session's grammars

Two plain stores an item. Only the front's judgement depends on them: which grammar to hold responsible.
"""

from __future__ import annotations

import mmap
import os

__all__ = ["BATCH", "Marker"]

BATCH = 0
_BYTES = mmap.PAGESIZE


class Marker:
    """Either end of the page. ``words`` may be written by the worker only."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("maskd-marker", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.posix_fallocate(self.fd, 0, _BYTES)
        self._mmap = mmap.mmap(self.fd, _BYTES)
        self.words = memoryview(self._mmap).cast("Q")

    @property
    def busy_with(self) -> tuple[int, int, int] | None:
        """(step counter, session_id, grammar_id) if a step is being served, else None."""
        count, current = self.words[0], self.words[1]
        return (count, current >> 32, current & 0xFFFFFFFF) if count & 1 else None

    def close(self) -> None:
        """Unmaps the page and closes the descriptor."""
        self.words.release()
        self._mmap.close()
        os.close(self.fd)
