"""The page in which a worker says what it is computing, from both ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskd.ipc.marker import Marker


@pytest.fixture
def ends() -> Iterator[tuple[Marker, Marker]]:
    """The worker's end and the front's."""
    worker = Marker()
    front = Marker(os.dup(worker.fd))
    yield worker, front
    front.close()
    worker.close()


def test_marker_when_it_is_new_then_no_call_is_under_way(ends: tuple[Marker, Marker]) -> None:
    worker, front = ends
    assert list(front.busy()) == []
    assert [list(front.slot(slot)) for slot in range(Marker.SLOTS)] == [[0, 0, 0]] * 3
    assert not os.get_inheritable(worker.fd)


def test_busy_when_calls_are_under_way_then_slot_session_and_grammar_are_told(ends: tuple[Marker, Marker]) -> None:
    """A counter is odd while a call is under way. Session and grammar have 32 bits each."""
    worker, front = ends
    for slot, (count, session, grammar) in enumerate([(7, 5, 2**32 - 1), (8, 6, 1), (2**53 + 1, 2**32 - 1, 0)]):
        words = worker.slot(slot)
        words[0], words[1] = count, session << 32 | grammar
    assert list(front.busy()) == [(0, 7, 5, 2**32 - 1), (2, 2**53 + 1, 2**32 - 1, 0)]


def test_slots_when_written_then_they_do_not_touch_each_other(ends: tuple[Marker, Marker]) -> None:
    worker, front = ends
    for slot in range(Marker.SLOTS):
        worker.slot(slot)[:] = memoryview(bytes([slot + 1]) * 24).cast("Q")
    assert [bytes(front.slot(slot)) for slot in range(Marker.SLOTS)] == [bytes([slot + 1]) * 24 for slot in range(3)]


def test_claim_when_a_thread_has_a_slot_then_the_front_knows_its_id(ends: tuple[Marker, Marker]) -> None:
    """Each thread claims a slot for itself; the other words of it stay."""
    worker, front = ends
    worker.slot(1)[0] = 4
    claimed: list[int] = []

    def claim() -> None:
        worker.claim(1)[1] = 9
        claimed.append(threading.get_native_id())

    thread = threading.Thread(target=claim)
    thread.start()
    thread.join()
    worker.claim(0)
    assert list(front.slot(1)) == [4, 9, claimed[0]]
    assert front.slot(0)[2] == threading.get_native_id() != claimed[0]


def test_close_when_it_is_called_then_page_and_descriptor_are_given_back() -> None:
    marker = Marker()
    mapped = Path("/proc/self/maps").read_text().count("memfd:maskd-marker")
    marker.close()
    assert Path("/proc/self/maps").read_text().count("memfd:maskd-marker") == mapped - 1
    with pytest.raises(ValueError, match="released"):
        marker.words[0] = 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(marker.fd)
