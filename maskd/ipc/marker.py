"""The marker: one shared page in which a worker says what it is computing, read by the front when the worker hangs or
dies.

Slot 0 is the data path, the others are the threads of the slow lane. A slot is three words:

    word 0   calls begun and ended: odd while one is under way
    word 1   number of the session << 32 | grammar_id of the native call; grammar 0 = a batch of the session's grammars
    word 2   id of the thread, as the kernel knows it, so that the front can tell who works from who waits

Plain stores, and no ordering: only the front's judgement which grammar to hold responsible depends on them.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator

__all__ = ["Marker"]

_BYTES = mmap.PAGESIZE


class Marker:
    """Either end of the page. ``words`` may be written by the worker only."""

    SLOTS, WORDS = 3, 3

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("maskd-marker", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.posix_fallocate(self.fd, 0, _BYTES)
        self._mmap = mmap.mmap(self.fd, _BYTES)
        self.words = memoryview(self._mmap).cast("Q")

    def busy(self) -> Iterator[tuple[int, int, int, int]]:
        """Yields (slot, counter, number of the session, grammar_id) of every call under way."""
        for slot in range(self.SLOTS):
            count, current, _ = self.slot(slot)
            if count & 1:
                yield slot, count, current >> 32, current & 0xFFFFFFFF

    def slot(self, slot: int) -> memoryview:
        """Returns the words of a slot."""
        return self.words[self.WORDS * slot : self.WORDS * (slot + 1)]

    def claim(self, slot: int) -> memoryview:
        """Says that the calling thread is the one of ``slot``, and returns the slot's words."""
        words = self.slot(slot)
        words[2] = threading.get_native_id()
        return words

    def close(self) -> None:
        """Unmaps the page and closes the descriptor."""
        self.words.release()
        self._mmap.close()
        os.close(self.fd)
