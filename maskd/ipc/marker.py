"""The marker: one shared page in which a worker says what it is computing.

The front reads it when the worker hangs or dies. Slot 0 is the data path; the others are the threads of the slow lane.
A slot has the words of one ``Progress``.
Owns: the page, and its slots. Knows nothing about: what a worker computes, or how long a call may take.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from maskd.ipc.progress import WORDS, Progress, split

__all__ = ["Marker", "NativeCall"]

_BYTES = mmap.PAGESIZE


class NativeCall(NamedTuple):
    """A call under way: where, calls begun and ended there, and what it computes."""

    slot: int
    counter: int
    session: int
    grammar_id: int


class Marker:
    """Either end of the page. Only the worker may write to it."""

    SLOTS = 3

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("maskd-marker", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.posix_fallocate(self.fd, 0, _BYTES)
        self._mmap = mmap.mmap(self.fd, _BYTES)
        self._words = memoryview(self._mmap).cast("Q")
        self.slots = [Progress(self._words[WORDS * slot : WORDS * (slot + 1)]) for slot in range(self.SLOTS)]

    def busy(self) -> Iterator[NativeCall]:
        """Yields every call under way."""
        for number, slot in enumerate(self.slots):
            counter, mark, _ = slot.words
            if counter & 1:
                yield NativeCall(number, counter, *split(mark))

    def close(self) -> None:
        """Unmaps the page and closes the descriptor. No slot may be used afterwards."""
        for slot in self.slots:
            slot.words.release()
        self._words.release()
        self._mmap.close()
        os.close(self.fd)
