"""Sessions on their way in: made on another thread, handed over once, and freed if their client has left."""

from __future__ import annotations

import select
import threading
from typing import Any

from maskd.errors import CapacityError, MaskdError
from maskd.worker.openings import Openings


class Made:
    """Stands for a session: says when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


class Kernel:
    """Makes sessions, each when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.made: list[Made] = []

    def make(self) -> Any:
        self.begun.set()
        assert self.go.wait(60)
        self.made.append(Made())
        return self.made[-1]


def finish_one(openings: Openings) -> None:
    assert select.select([openings.done_fd], [], [], 60)[0]
    openings.finish()


def test_open_when_the_kernel_takes_its_time_then_the_caller_goes_on_and_gets_the_session_later() -> None:
    openings, kernel, got = Openings(), Kernel(), []
    openings.open(1, kernel.make, got.append)
    assert kernel.begun.wait(60)
    assert not select.select([openings.done_fd], [], [], 0)[0] and got == []
    kernel.go.set()
    finish_one(openings)
    assert got == kernel.made and not kernel.made[0].closed.is_set()
    openings.cancel(1)
    assert not kernel.made[0].closed.is_set(), "it is its owner's by now"


def test_open_when_it_fails_then_the_error_comes() -> None:
    openings, got = Openings(), list[Any]()

    def make() -> Any:
        raise CapacityError("no memory", limit="memory")

    openings.open(1, make, got.append)
    finish_one(openings)
    assert isinstance(got[0], MaskdError) and got[0].metadata["limit"] == "memory"


def test_cancel_when_the_session_is_being_made_then_it_is_freed_and_nobody_gets_it() -> None:
    openings, kernel, got = Openings(), Kernel(), []
    openings.open(1, kernel.make, got.append)
    assert kernel.begun.wait(60)
    openings.cancel(1)
    kernel.go.set()
    finish_one(openings)
    finish_one(openings)
    assert kernel.made[0].closed.wait(60) and got == []


def test_cancel_when_the_session_still_waits_for_its_turn_then_it_is_never_made() -> None:
    openings, kernel, got = Openings(), Kernel(), []
    openings.open(1, kernel.make, got.append)
    openings.open(2, kernel.make, got.append)
    openings.cancel(2)
    kernel.go.set()
    while len(got) < 1:
        finish_one(openings)
    openings.open(3, kernel.make, got.append)
    while len(got) < 2:
        finish_one(openings)
    assert got == kernel.made and len(kernel.made) == 2
