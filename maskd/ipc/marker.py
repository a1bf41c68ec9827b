"""The marker: one shared page in which a worker says what it is computing. The front reads it when the worker hangs or
dies.

Slot 0 is the data path; the others are the threads of the slow lane. A slot is three words:

    word 0   calls begun and ended: odd while a call is under way
    word 1   the mark of the native call: which session, which grammar
    word 2   id of the thread, as the kernel knows it: the front tells who works from who waits

The words are plain stores without ordering. Only the front's judgement of which grammar is responsible depends on them.
Owns: the page, and what its words mean. Knows nothing about: who hangs.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Call", "Marker", "Progress", "mark_of", "split"]

_BYTES = mmap.PAGESIZE
_WORDS = 3


def mark_of(session: int, grammar_id: int = 0) -> int:
    """Returns the mark of a grammar, for number ``session`` of its session. Grammar 0 = a batch of several grammars."""
    return session << 32 | grammar_id


def split(mark: int) -> tuple[int, int]:
    """Returns the number of the session and the grammar_id in ``mark``."""
    return mark >> 32, mark & 0xFFFFFFFF


class Call(NamedTuple):
    """A call under way: where, calls begun and ended there, and what it computes."""

    slot: int
    counter: int
    session: int
    grammar_id: int


class Progress:
    """One slot: what one thread of a worker computes. That thread is the only writer.

    Args:
        words: the three words; None = words in private memory, which no front reads.
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview | None = None) -> None:
        self.words = memoryview(bytearray(8 * _WORDS)).cast("Q") if words is None else words

    @property
    def thread_id(self) -> int:
        """Id of the thread, as the kernel knows it."""
        return self.words[2]

    def claim(self) -> Progress:
        """Says that the calling thread is the one of this slot; returns the slot."""
        self.words[2] = threading.get_native_id()
        return self

    def begin(self) -> None:
        """Says that a call begins."""
        self.words[0] += 1

    def end(self) -> None:
        """Says that the call has ended."""
        self.words[0] += 1

    def next_call(self) -> None:
        """Says that the call has ended and the next one begins: the front times each for itself."""
        self.words[0] += 2

    def set_mark(self, mark: int) -> None:
        """Says which grammar the call computes."""
        self.words[1] = mark


class Marker:
    """Either end of the page. Only the worker may write to it."""

    SLOTS = 3

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("maskd-marker", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.posix_fallocate(self.fd, 0, _BYTES)
        self._mmap = mmap.mmap(self.fd, _BYTES)
        self._words = memoryview(self._mmap).cast("Q")
        self.slots = [Progress(self._words[_WORDS * slot : _WORDS * (slot + 1)]) for slot in range(self.SLOTS)]

    def busy(self) -> Iterator[Call]:
        """Yields every call under way."""
        for number, slot in enumerate(self.slots):
            counter, mark, _ = slot.words
            if counter & 1:
                yield Call(number, counter, *split(mark))

    def close(self) -> None:
        """Unmaps the page and closes the descriptor. No slot may be used afterwards."""
        for slot in self.slots:
            slot.words.release()
        self._words.release()
        self._mmap.close()
        os.close(self.fd)
