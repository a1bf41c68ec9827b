"""The slow lane: threads for items that may take long, so that the batch does not wait for them.

A native call cannot be interrupted. A grammar may turn out to be slow, in the walk after its compile or later. The
items of its sequences then run here. The data path waits until the step's deadline, then goes on without them. A late
result is kept for the next step. The front watches the marker, and ends a call that never ends. A grammar that is
suspected of a death has the lane for itself while it runs. So the next death has one candidate.
Owns: the threads. Knows nothing about: sequences, what a job does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from maskd.ipc.marker import Marker
from maskd.worker.pool import STACK_BYTES

__all__ = ["LaneJob", "SlowLane"]


class LaneJob:
    """A job in the lane. ``outcome`` and ``error`` may be read once ``wait`` returned True."""

    __slots__ = ("_done", "error", "is_cancelled", "job", "mark", "outcome")

    def __init__(self, job: Callable[[Callable[[], None]], Any], mark: int) -> None:
        self.job = job
        self.mark = mark
        self.is_cancelled = False
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._done = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``; returns whether the job is done, or has failed."""
        return self._done.wait(seconds) if seconds > 0 else self._done.is_set()

    def cancel(self) -> None:
        """Says that the outcome is not wanted: the job is left out, or ends before its next native call."""
        self.is_cancelled = True

    def run(self, next_call: Callable[[], None]) -> None:
        """Does the job, unless it is cancelled; for the lane. ``next_call`` is given to the job."""
        try:
            job, self.job = self.job, _nothing  # frees what the job holds
            if not self.is_cancelled:
                self.outcome = job(next_call)
        except BaseException as error:  # for the step that asks for the outcome
            self.error = error
        self._done.set()


class _CancelledError(Exception):
    """Ends a job whose outcome is not wanted any more."""


def _nothing(next_call: Callable[[], None]) -> None:
    """The job of a ``LaneJob`` that is done."""


class SlowLane:
    """A few threads for slow rows, shared by the sessions of a worker.

    Attributes:
        alone: marks of grammars whose jobs run while no other does. Written by the data path.
    """

    def __init__(self, marker: Marker) -> None:
        self.alone: set[int] = set()
        self._turn = threading.Condition()
        self._running = 0
        self._occupied = False
        self._jobs: queue.SimpleQueue[LaneJob] = queue.SimpleQueue()
        previous = threading.stack_size(STACK_BYTES)
        try:
            for slot in range(1, marker.SLOTS):
                threading.Thread(target=self._work, args=(marker, slot), name=f"slow-lane-{slot}", daemon=True).start()
        finally:
            threading.stack_size(previous)

    def start(self, job: Callable[[Callable[[], None]], Any], mark: int) -> LaneJob:
        """Queues ``job``; ``mark`` says which grammar the job computes.

        The job gets a function that it calls between its native calls: the front then times each for itself.
        """
        late = LaneJob(job, mark)
        self._jobs.put(late)
        return late

    def _work(self, marker: Marker, slot: int) -> None:
        progress = marker.slots[slot].claim()

        def next_call() -> None:
            progress.next_call()
            if late.is_cancelled:
                raise _CancelledError

        while True:
            late = self._jobs.get()
            alone = late.mark in self.alone
            with self._turn:  # a thread that waits here is not busy, for the marker
                while self._occupied or (alone and self._running):
                    self._turn.wait()
                self._running += 1
                self._occupied = alone
            progress.set_mark(late.mark)
            progress.begin()
            late.run(next_call)
            progress.end()
            with self._turn:
                self._running -= 1
                self._occupied = False
                self._turn.notify_all()
