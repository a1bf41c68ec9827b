"""The slow lane: jobs beside each other, but for those that must be alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from maskd.ipc.marker import Marker
from maskd.ipc.progress import mark_of
from maskd.worker.slow_lane import SlowLane


@pytest.fixture(scope="module")
def marker() -> Iterator[Marker]:
    yield Marker()  # the lane's threads hold it for as long as the process lives


class Job:
    """A job that runs until it is told to end."""

    def __init__(self) -> None:
        self.started, self.end = threading.Event(), threading.Event()

    def __call__(self, next_call: Callable[[], None]) -> None:
        next_call()
        self.started.set()
        assert self.end.wait(60)


def test_lane_when_two_jobs_come_then_they_run_beside_each_other_and_the_marker_names_both(marker: Marker) -> None:
    lane, one, other = SlowLane(marker), Job(), Job()
    works = [lane.start(one, mark_of(7, 1)), lane.start(other, mark_of(7, 2))]
    assert one.started.wait(60) and other.started.wait(60)
    assert sorted((call.session, call.grammar_id) for call in marker.busy()) == [(7, 1), (7, 2)]
    threads = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("slow-lane")}
    assert len({marker.slots[slot].thread_id for slot in (1, 2)} & threads) == 2, "and their threads"
    for job in (one, other):
        job.end.set()
    assert all(work.wait(60) for work in works)


@pytest.mark.parametrize("first_is_alone", [True, False])
def test_lane_when_a_grammar_must_be_alone_then_nothing_runs_beside_it(marker: Marker, first_is_alone: bool) -> None:
    """Whichever comes first; who waits for its turn is not busy, so a death would have one candidate."""
    lane, first, second = SlowLane(marker), Job(), Job()
    lane.alone.add(1 if first_is_alone else 2)
    works = [lane.start(first, 1)]
    assert first.started.wait(60)
    works.append(lane.start(second, 2))
    assert not second.started.wait(0.2)
    assert [(call.session, call.grammar_id) for call in marker.busy()] == [(0, 1)]
    first.end.set()
    assert second.started.wait(60)
    second.end.set()
    assert all(work.wait(60) for work in works)


def test_tick_when_a_job_makes_several_calls_then_each_is_a_call_of_its_own_for_the_marker(marker: Marker) -> None:
    """The front counts the time of one call, and the counter stays odd in between."""
    lane, seen = SlowLane(marker), list[int]()

    def job(next_call: Callable[[], None]) -> None:
        for _ in range(3):
            seen.append(next(call.counter for call in marker.busy() if (call.session, call.grammar_id) == (9, 9)))
            next_call()

    assert lane.start(job, mark_of(9, 9)).wait(60)
    assert [count - seen[0] for count in seen] == [0, 2, 4]


def test_cancel_when_a_job_has_not_begun_then_it_is_left_out_and_done(marker: Marker) -> None:
    """What waits for it, because it would have had a matcher, waits no longer."""
    lane, first, second, third = SlowLane(marker), Job(), Job(), Job()
    works = [lane.start(job, 1) for job in (first, second, third)]
    assert first.started.wait(60) and second.started.wait(60)
    works[2].cancel()
    first.end.set()
    second.end.set()
    assert all(work.wait(60) for work in works)
    assert not third.started.is_set()


def test_cancel_when_a_job_is_under_way_then_it_ends_before_its_next_call(marker: Marker) -> None:
    """The lane does not work for hours for a sequence that was closed."""
    lane, begun, goes_on = SlowLane(marker), threading.Event(), threading.Event()

    def job(next_call: Callable[[], None]) -> None:
        begun.set()
        while True:
            assert goes_on.wait(60)
            next_call()

    work = lane.start(job, 1)
    assert begun.wait(60)
    work.cancel()
    goes_on.set()
    assert work.wait(60) and work.error is not None
