"""Which processors the data path runs on: not those that engines decode on.

An engine rings and goes on with its forward pass. A kernel that wakes the worker on the ringing processor, as guests do
whose idle processors look taken, has it preempt just the thread that the masks are to be hidden behind. So the engine
tells its processor, and a worker that wakes there moves away.
Owns: the affinity of one thread. Knows nothing about: sessions, who says where engines run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from maskd import _shm

__all__ = ["Placement"]

_REST_SECONDS = 0.05
"""A move costs some 50 µs, and two engines may chase a worker around: no more than one in this time."""


class Placement:
    """Keeps the thread that calls ``keep_off`` off other people's processors.

    The last move stands until the next: a thread that could go back would be woken there again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed: set[int] = set()
        self._chosen: set[int] = set()
        self._rests_until = 0.0

    def keep_off(self, processor: int) -> None:
        """Moves away if the calling thread runs on ``processor``, which may be any number: -1 for unknown.

        Stays within the affinity that the thread was given, also if that was changed since, and where there is no other
        processor.
        """
        if processor != _shm.processor() or self._clock() < self._rests_until:
            return
        current = os.sched_getaffinity(0)
        if current != self._chosen:  # as it was born, or placed by somebody else
            self._allowed = current
        if elsewhere := self._allowed - {processor}:
            with contextlib.suppress(OSError):  # taken away in this moment; the next wake-up tries again
                os.sched_setaffinity(0, elsewhere)
                self._chosen = elsewhere
            self._rests_until = self._clock() + _REST_SECONDS
