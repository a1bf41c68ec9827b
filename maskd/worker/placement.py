"""Keeps the data path off the processors that engines decode on.

An engine rings and goes on with its forward pass. The kernel may wake the worker on the ringing processor; kernels of
virtual machines do, when idle processors look taken. The worker would then preempt the forward pass that should hide
its work. So the engine tells its processor, and a worker that wakes there moves away.
Owns: the affinity of one thread. Knows nothing about: sessions, how engines tell where they run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from maskd import _shm

__all__ = ["Placement"]

_REST_SECONDS = 0.05
"""At least this long between two moves: a move costs some 50 µs, and two engines may chase a worker around."""


class Placement:
    """Keeps the thread that calls ``keep_off`` off the engines' processors.

    A move stands until the next move: if the thread could go back, it would be woken there again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed: set[int] = set()
        self._chosen: set[int] = set()
        self._rests_until = 0.0

    def keep_off(self, processor: int) -> None:
        """Moves the calling thread away if it runs on ``processor``; any number is fine, -1 = unknown.

        The thread stays within the affinity that it was given, also if that changed since. Where that has no other
        processor, the thread stays where it is.
        """
        if processor != _shm.processor() or self._clock() < self._rests_until:
            return
        current = os.sched_getaffinity(0)
        if current != self._chosen:  # its first affinity, or changed from outside
            self._allowed = current
        if elsewhere := self._allowed - {processor}:
            with contextlib.suppress(OSError):  # just taken away; the next wake-up tries again
                os.sched_setaffinity(0, elsewhere)
                self._chosen = elsewhere
            self._rests_until = self._clock() + _REST_SECONDS
