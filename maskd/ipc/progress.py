"""Progress: what one thread of a worker computes, as three words of memory. Pure: the memory is the caller's.

    word 0   calls begun and ended: odd while a call is under way
    word 1   the mark of the native call: which session, which grammar
    word 2   id of the thread, as the kernel knows it: the front tells who works from who waits

The words are plain stores without ordering. Only the front's judgement of which grammar is responsible depends on them.
Owns: what the words and marks mean. Knows nothing about: the page that the front shares (``marker.py``).
"""

from __future__ import annotations

import threading

__all__ = ["WORDS", "Progress", "mark_of", "split"]

WORDS = 3


def mark_of(session: int, grammar_id: int = 0) -> int:
    """Returns the mark of a grammar, for number ``session`` of its session. Grammar 0 = a batch of several grammars."""
    return session << 32 | grammar_id


def split(mark: int) -> tuple[int, int]:
    """Returns the number of the session and the grammar_id in ``mark``."""
    return mark >> 32, mark & 0xFFFFFFFF


class Progress:
    """What one thread of a worker computes. That thread is the only writer.

    Args:
        words: the three words; None = words in private memory, which no front reads.
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview | None = None) -> None:
        self.words = memoryview(bytearray(8 * WORDS)).cast("Q") if words is None else words

    @property
    def thread_id(self) -> int:
        """Id of the thread, as the kernel knows it."""
        return self.words[2]

    def claim(self) -> Progress:
        """Says that the calling thread is the one of these words; returns itself."""
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
