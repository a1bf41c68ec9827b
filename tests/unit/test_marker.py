"""The page in which a worker says what it computes, from both ends; and the words of one thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskd.ipc.marker import Marker
from maskd.ipc.progress import Progress, mark_of, split


@pytest.fixture
def ends() -> Iterator[tuple[Marker, Marker]]:
    """The worker's end and the front's."""
    worker = Marker()
    front = Marker(os.dup(worker.fd))
    yield worker, front
    front.close()
    worker.close()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_marker_when_it_is_new_then_no_call_is_under_way(ends: tuple[Marker, Marker]) -> None:
    worker, front = ends
    assert list(front.busy()) == []
    assert [list(slot.words) for slot in front.slots] == [[0, 0, 0]] * 3
    assert not os.get_inheritable(worker.fd)


def test_busy_when_calls_are_under_way_then_slot_session_and_grammar_are_told(ends: tuple[Marker, Marker]) -> None:
    """A counter is odd while a call is under way. Session and grammar have 32 bits each."""
    worker, front = ends
    counts_and_marks = (7, mark_of(5, 2**32 - 1)), (8, mark_of(6, 1)), (2**53 + 1, mark_of(2**32 - 1))
    for slot, (count, mark) in zip(worker.slots, counts_and_marks, strict=True):
        slot.words[0] = count
        slot.set_mark(mark)
    assert list(front.busy()) == [(0, 7, 5, 2**32 - 1), (2, 2**53 + 1, 2**32 - 1, 0)]


def test_slots_when_written_then_they_do_not_touch_each_other(ends: tuple[Marker, Marker]) -> None:
    worker, front = ends
    for number, slot in enumerate(worker.slots, 1):
        slot.words[:] = memoryview(bytes([number]) * 24).cast("Q")
    assert [bytes(slot.words) for slot in front.slots] == [bytes([number]) * 24 for number in (1, 2, 3)]


def test_close_when_it_is_called_then_page_and_descriptor_are_given_back() -> None:
    marker = Marker()
    mapped = Path("/proc/self/maps").read_text().count("memfd:maskd-marker")
    marker.close()
    assert Path("/proc/self/maps").read_text().count("memfd:maskd-marker") == mapped - 1
    with pytest.raises(ValueError, match="released"):
        marker.slots[0].begin()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(marker.fd)


# -- the words of one thread -------------------------------------------------------------------------------------------


def test_claim_when_a_thread_has_a_slot_then_the_front_knows_its_id(ends: tuple[Marker, Marker]) -> None:
    """Each thread claims a slot for itself; the other words of it stay."""
    worker, front = ends
    worker.slots[1].words[0] = 4
    claimed: list[int] = []

    def claim() -> None:
        worker.slots[1].claim().set_mark(9)
        claimed.append(threading.get_native_id())

    thread = threading.Thread(target=claim)
    thread.start()
    thread.join()
    worker.slots[0].claim()
    assert list(front.slots[1].words) == [4, 9, claimed[0]]
    assert front.slots[1].thread_id == claimed[0]
    assert front.slots[0].thread_id == threading.get_native_id() != claimed[0]


def test_progress_when_calls_begin_and_end_then_the_count_is_odd_only_meanwhile(ends: tuple[Marker, Marker]) -> None:
    """It grows with each, so that the front does not take two calls for one."""
    worker, front = ends
    progress = worker.slots[2]
    progress.begin()
    assert [call.counter for call in front.busy()] == [1]
    progress.next_call()
    assert [call.counter for call in front.busy()] == [3]
    progress.end()
    assert list(front.busy()) == [] and list(front.slots[2].words) == [4, 0, 0]


def test_progress_when_no_words_are_given_then_it_has_three_of_its_own() -> None:
    one, other = Progress(), Progress()
    one.begin()
    assert (list(one.words), list(other.words)) == ([1, 0, 0], [0, 0, 0])


def test_mark_when_it_is_split_then_session_and_grammar_are_those_it_was_made_of() -> None:
    """Without a grammar it stands for a batch of several."""
    assert split(mark_of(2**32 - 1, 2**32 - 1)) == (2**32 - 1, 2**32 - 1)
    assert split(mark_of(5)) == (5, 0)
