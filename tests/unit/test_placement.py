"""Where the data path runs, on the processors of this machine; each test in a thread of its own, whose affinity ends
with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from maskd import _shm
from maskd.worker.placement import Placement

ALL = os.sched_getaffinity(0)
_Result = TypeVar("_Result")

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="one processor: there is nowhere to go")


def alone(act: Callable[[], _Result]) -> _Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()


def test_keep_off_when_the_engine_rings_from_here_then_moves_and_stays_away() -> None:
    def act() -> tuple[int, int, set[int]]:
        placement = Placement()
        while True:  # the kernel may move the thread between two looks
            here = _shm.processor()
            placement.keep_off(here)
            if os.sched_getaffinity(0) != ALL:
                return here, _shm.processor(), os.sched_getaffinity(0)

    here, now, affinity = alone(act)
    assert affinity == ALL - {here}
    assert now != here


@pytest.mark.parametrize("processor", [-1, 1 << 31])
def test_keep_off_when_the_processor_is_unknown_or_none_then_stays(processor: int) -> None:
    def act() -> set[int]:
        Placement().keep_off(processor)
        return os.sched_getaffinity(0)

    assert alone(act) == ALL


def test_keep_off_when_the_thread_was_given_one_processor_then_stays_there() -> None:
    """Whoever places workers by hand knows better."""
    only = min(ALL)

    def act() -> set[int]:
        os.sched_setaffinity(0, {only})
        Placement().keep_off(only)
        return os.sched_getaffinity(0)

    assert alone(act) == {only}


def test_keep_off_when_two_engines_take_turns_then_moves_no_more_than_once_in_a_while() -> None:
    now = 0.0

    def act() -> list[set[int]]:
        nonlocal now
        placement, seen = Placement(lambda: now), []
        first, second = sorted(ALL)[:2]
        os.sched_setaffinity(0, {first, second})
        while os.sched_getaffinity(0) == {first, second}:
            placement.keep_off(_shm.processor())
        for now in (0.01, 0.02, 1.0):  # noqa: B007 - the clock reads it
            placement.keep_off(_shm.processor())
            seen.append(os.sched_getaffinity(0))
        return seen

    first, second, third = alone(act)
    assert first == second
    assert len(first) == len(third) == 1
    assert first != third
