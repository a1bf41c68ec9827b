"""What a step walks ahead and takes back: drafts, forced tokens, and the rows beside them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from maskd import _shm
from maskd.bitmask import row_of
from maskd.errors import BackendError
from maskd.sequences import HeldGrammar, item_of
from maskd.step import Action, Item, Result, Status
from tests.unit.test_sequences import (
    DEAD_END,
    FORCED_LIMIT,
    NUMBER,
    OTHER_STOP,
    STOP,
    VOCAB_SIZE,
    Bench,
    Grammar,
    Matcher,
    allowed,
    opened,
)

AFTER_EVEN, AFTER_ODD = set(range(10)) | {STOP}, set(range(10))


def bench_with(kind: type[Matcher], stop: int = STOP) -> Bench:
    """A bench whose grammar 5 has matchers of ``kind``, with sequence 1 of it."""
    bench = Bench()
    for table in (bench.table, bench.long_table):
        table.grammars[5] = HeldGrammar.of(5, Grammar(bench.faults, stop, kind), None)  # type: ignore[arg-type]
    opened(bench, 1, 5)
    return bench


def rows(bench: Bench, *numbers: int) -> list[set[int]]:
    return [bench.row(number) for number in numbers]


# -- drafts ------------------------------------------------------------------------------------------------------------


def test_drafts_when_one_leads_into_a_dead_end_then_it_counts_as_refused() -> None:
    bench = Bench()
    opened(bench, 1)
    result = bench.step(Item(1, drafts=(4, DEAD_END, 1), row=0))[0]
    assert (result.status, result.row_count) == (Status.OK, 2)
    assert rows(bench, 0, 1, 2, 3) == [AFTER_ODD, AFTER_EVEN, {STOP}, {STOP}]


def test_drafts_when_the_sequence_itself_stands_at_a_dead_end_then_the_item_fails() -> None:
    bench = Bench()
    opened(bench, 1, accept=(1,))
    result = bench.step(Item(1, accept=(DEAD_END,), drafts=(1,), row=0))[0]
    assert (result.status, result.position, rows(bench, 0, 1)) == (Status.NO_TOKEN_ALLOWED, 1, [{STOP}, {STOP}])
    assert bench.step(Item(1))[0].position == 1


@pytest.mark.parametrize(
    ("item", "status"),
    [
        (Item(1, drafts=(50, 1), row=0), Status.OK),
        (Item(1, accept=(STOP,), drafts=(50, 1), row=0), Status.OK),
        (Item(1, accept=(50,), drafts=(50, 1), row=0), Status.TOKEN_REJECTED),
        (Item(1, Action.CLOSE, drafts=(50, 1), row=0), Status.OK),
        (Item(9, drafts=(50, 1), row=0), Status.SEQUENCE_NOT_FOUND),
    ],
)
def test_drafts_when_their_rows_are_closed_then_those_of_the_neighbour_stay(item: Item, status: Status) -> None:
    """The neighbour's rows come before in the step, and behind in the block."""
    bench = Bench()
    opened(bench, 1, accept=(4,))
    opened(bench, 2)
    results = bench.step(Item(2, drafts=(4,), row=3), item)
    assert [result.status for result in results] == [Status.OK, status]
    assert rows(bench, 3, 4) == [AFTER_ODD, AFTER_EVEN] and rows(bench, 1, 2) == [{STOP}, {STOP}]


class Ahead(Matcher):
    """Walks on a copy; neither is rolled back."""

    def look_ahead(self) -> Matcher:
        return self.fork()

    def rollback(self, token_count: int) -> None:
        raise AssertionError("a walk is never taken back here")


@pytest.mark.parametrize("kind", [Matcher, Ahead])
def test_walk_when_it_is_over_then_the_sequence_stands_where_it_stood(kind: type[Matcher]) -> None:
    """On a copy, or on the matcher and back; with drafts that are all taken, some of them, or none."""
    bench = bench_with(kind)
    for drafts, row_count in (((4, 2), 3), ((4, 50), 2), ((50, 4), 1)):
        assert bench.step(Item(1, drafts=drafts, row=0))[0].row_count == row_count
    assert bench.step(Item(1, accept=(7,), want_forced=True))[0].forced == (8,)
    assert bench.step(Item(1, accept=(8,), row=0))[0].position == 2 and rows(bench, 0) == [AFTER_EVEN]


# -- forced tokens -----------------------------------------------------------------------------------------------------


class Forced(Matcher):
    """One token after the other is the only one: 0 1 2 0 1 2 …, and with the other stop token that after two."""

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        assert not self.is_terminated
        row[:] = row_of((self.next_token,), VOCAB_SIZE)

    @property
    def next_token(self) -> int:
        return self.stop if self.stop == OTHER_STOP and len(self.history) == 2 else len(self.history) % 3

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token_id in enumerate(token_ids):
            if self.is_terminated or token_id != self.next_token:
                return count
            self.history.append(token_id)
        return len(token_ids)


def test_forced_when_there_is_no_end_then_as_many_as_the_limit() -> None:
    """Token 0 is one as any other."""
    bench = bench_with(Forced)
    assert bench.step(Item(1, want_forced=True))[0].forced == (0, 1, 2, 0, 1)
    assert bench.step(Item(1, accept=(0, 1), want_forced=True, row=0))[0].forced == (2, 0, 1, 2, 0)
    assert FORCED_LIMIT == 5 and rows(bench, 0) == [{2}]


def test_forced_when_the_stop_token_is_the_only_one_then_it_is_the_last() -> None:
    bench = bench_with(Forced, OTHER_STOP)
    result = bench.step(Item(1, want_forced=True))[0]
    assert (result.forced, result.terminated, result.position) == ((0, 1, OTHER_STOP), False, 0)
    assert bench.step(Item(1, accept=(0, 1, OTHER_STOP), want_forced=True))[0].forced == ()


def test_forced_when_the_library_fails_on_the_way_then_the_sequence_is_closed() -> None:
    bench = Bench()
    opened(bench, 1)
    bench.faults.accept.add((7, 8))
    result = bench.step(Item(1, accept=(7,), want_forced=True, row=0))[0]
    assert (result.status, result.detail_value, rows(bench, 0)) == (Status.BACKEND_FAILED, 1, [{STOP}])
    assert bench.step(Item(1))[0].status == Status.SEQUENCE_NOT_FOUND


# -- an item that is taken back ----------------------------------------------------------------------------------------


class Unwilling(Matcher):
    """Takes no token for a second time at the same place."""

    def __init__(self, *of: object) -> None:
        super().__init__(*of)  # type: ignore[arg-type]
        self.seen: set[tuple[int, ...]] = set()

    def accept(self, token_ids: Sequence[int]) -> int:
        if token_ids and (*self.history, token_ids[0]) in self.seen:
            return 0
        accepted = super().accept(token_ids)
        self.seen |= {tuple(self.history[: at + 1]) for at in range(len(self.history))}
        return accepted


@pytest.mark.parametrize("raises", [False, True])
def test_item_when_it_cannot_be_taken_back_then_the_sequence_is_closed(raises: bool) -> None:
    """The undone token is refused, or the library fails: where the matcher stands is not known."""
    bench = bench_with(Matcher if raises else Unwilling)
    bench.step(Item(1, accept=(1, 2)))
    if raises:
        bench.faults.accept.add((1, 2))
    result = bench.step(Item(1, rollback=1, accept=(DEAD_END,), row=0))[0]
    assert (result.status, result.detail_value, rows(bench, 0)) == (Status.BACKEND_FAILED, 1, [{STOP}])
    assert bench.step(Item(1))[0].status == Status.SEQUENCE_NOT_FOUND


def test_item_when_a_token_among_many_is_refused_then_the_answer_says_which() -> None:
    """They are taken in pieces; what stands behind the refused one is not tried."""
    bench = Bench()
    opened(bench, 1)
    assert bench.step(Item(1, accept=(4, 4, 4, 50, *(4,) * 40)))[0] == Result(
        1, Status.TOKEN_REJECTED, accepted_count=3, detail_index=3, detail_value=50
    )
    assert bench.step(Item(1))[0].position == 0


def test_item_when_its_sequence_has_terminated_before_then_no_token_is_tried() -> None:
    bench = Bench()
    opened(bench, 1, accept=(4, STOP))
    assert bench.step(Item(1, accept=(4,), row=0))[0] == Result(
        1, Status.SEQUENCE_TERMINATED, position=2, terminated=True, detail_value=2
    )
    assert bench.step(Item(1, rollback=1, accept=(STOP, 4), row=0))[0] == Result(
        1,
        Status.SEQUENCE_TERMINATED,
        accepted_count=1,
        position=2,
        terminated=True,
        detail_index=1,
        detail_value=2,
    )


def test_fork_when_its_source_has_terminated_then_so_has_the_fork() -> None:
    bench = Bench()
    opened(bench, 1, accept=(4, STOP))
    result = bench.step(Item(2, Action.FORK, source_sequence_id=1, row=0))[0]
    assert (result.terminated, result.position, rows(bench, 0)) == (True, 2, [{STOP}])
    assert bench.step(Item(2, rollback=1, row=0))[0].position == 1 and rows(bench, 0) == [AFTER_EVEN]


# -- the short way, and rows that are filled together ------------------------------------------------------------------


class Counted(Matcher):
    """Has the short way, and counts how often it is taken."""

    advanced = 0

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        type(self).advanced += 1
        return 0 if token_id == self.stop else self.accept((token_id,))


def test_plain_item_when_the_matcher_has_a_short_way_then_it_is_taken() -> None:
    """By one of the two tables of the bench; the other is given its items in full."""

    class Own(Counted):
        """With a counter of its own."""

    bench = bench_with(Own)
    bench.step(Item(1, accept=(4,), row=0))
    assert Own.advanced == 1
    bench.step(Item(1, accept=(4, 4), row=0), Item(2, Action.FORK, source_sequence_id=1))
    assert Own.advanced == 1
    bench.step(Item(1, accept=(4,), row=0), Item(2, accept=(4,), row=1))
    assert Own.advanced == 3


@pytest.mark.parametrize(
    "first", [Item(5, Action.OPEN, 1), Item(5, Action.FORK, source_sequence_id=1), Item(1), Item(1, row=0)]
)
def test_item_when_its_sequence_was_in_this_step_already_then_it_is_refused(first: Item) -> None:
    bench = Bench()
    opened(bench, 1)
    results = bench.step(first, Item(first.sequence_id, accept=(4,)))
    assert [result.status for result in results] == [Status.OK, Status.SEQUENCE_EXISTS]
    assert bench.step(Item(first.sequence_id))[0].position == 0


def test_plain_item_when_its_row_was_filled_on_the_way_then_it_is_not_filled_again() -> None:
    class Filled(Counted):
        """Fills the row as it accepts."""

        def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
            if not super().advance(token_id, row_address, row_bytes):
                return 0
            row = np.ctypeslib.as_array((ctypes.c_int32 * (row_bytes // 4)).from_address(row_address))
            row[:] = row_of(allowed(self.history), VOCAB_SIZE)
            return 2

        def fill_bitmask(self, row: NDArray[np.int32]) -> None:
            fills.append(list(self.history))
            super().fill_bitmask(row)

    fills: list[list[int]] = []
    bench = bench_with(Filled)
    assert bench.step(Item(1, accept=(4,), row=0))[0].accepting and rows(bench, 0) == [AFTER_EVEN]
    assert fills == [[4]], "by the table that is given its items in full"


@pytest.mark.parametrize("grammar_id", [1, 2])
def test_rows_when_their_sequences_are_forked_in_the_same_step_then_they_are_filled_before_and_only_then(
    grammar_id: int,
) -> None:
    """One of them cannot be made: it is taken back once, its fork stands before the token, its row stays closed."""
    bench = Bench()
    opened(bench, 1, grammar_id, (4, 2))
    opened(bench, 2, grammar_id, (4, 1))
    results = bench.step(
        Item(1, accept=(DEAD_END,), row=0),
        Item(2, accept=(2,), row=1),
        Item(7, Action.FORK, source_sequence_id=1),
        Item(8, Action.FORK, source_sequence_id=2, row=3),
    )
    assert [(result.status, result.position) for result in results] == [
        (Status.NO_TOKEN_ALLOWED, 2),
        (Status.OK, 3),
        (Status.OK, 2),
        (Status.OK, 3),
    ]
    assert rows(bench, 0, 1, 3) == [{STOP}, AFTER_EVEN, AFTER_EVEN]
    assert [result.position for result in bench.step(Item(1), Item(2), Item(7), Item(8))] == [2, 3, 2, 3]


def test_rows_when_another_sequence_is_forked_in_the_same_step_then_they_are_still_filled_together() -> None:
    bench = Bench()
    for sequence_id in (1, 3, 4):
        opened(bench, sequence_id, 2)
    bench.step(Item(1, row=0), Item(2, Action.FORK, source_sequence_id=4), Item(3, row=1))
    assert bench.faults.batches == [2]


def test_plain_item_when_it_is_written_out_then_it_accepts_one_token_and_wants_one_row() -> None:
    """In the order of the fields in shared memory; nothing else is asked, and nothing is wrong with it."""
    assert tuple(item_of(_shm.Batch(([4, 3], [8, 7], [6, 5], {})), 1)) == (0, 3, 0, 0, 0, 0, 0, 5, (7,), (), -1, 0)


def test_rows_when_two_backends_fill_together_then_each_is_given_its_own() -> None:
    """In one call each; a single one is filled alone."""
    bench = Bench()
    calls: list[list[tuple[int, int]]] = []

    class Together:
        def __init__(self, number: int) -> None:
            self.number = number

        def fill_bitmasks(self, matchers: Sequence[Matcher], block: NDArray[np.int32], indices: Sequence[int]) -> None:
            calls.append([(self.number, index) for index in indices])
            for matcher, index in zip(matchers, indices, strict=True):
                matcher.fill_bitmask(block[index])

    for grammar_id in (5, 6, 7):
        for table in (bench.table, bench.long_table):
            grammar = Grammar(bench.faults, STOP, Matcher)
            table.grammars[grammar_id] = HeldGrammar.of(grammar_id, grammar, Together(grammar_id))  # type: ignore[arg-type]
    bench.step(Item(1, Action.OPEN, 5), Item(2, Action.OPEN, 6), Item(3, Action.OPEN, 7))
    bench.step(Item(1, row=0), Item(2, row=1), Item(3, row=2))
    assert calls == []
    bench.step(Item(3, Action.CLOSE), Item(4, Action.FORK, source_sequence_id=1))
    bench.step(Item(2, Action.CLOSE), Item(5, Action.OPEN, 6))
    bench.step(Item(3, Action.FORK, source_sequence_id=5))
    bench.step(Item(1, row=0), Item(5, row=1), Item(3, row=2), Item(4, accept=(4,), row=3))
    assert sorted(calls[:2]) == sorted(calls[2:]) == [[(5, 0), (5, 3)], [(6, 1), (6, 2)]]
    assert rows(bench, 0, 1, 2, 3) == [AFTER_ODD, AFTER_ODD, AFTER_ODD, AFTER_EVEN]


# -- progress ----------------------------------------------------------------------------------------------------------


def noting(calls: list[tuple[str, int, int]], bench: list[Bench]) -> type[Matcher]:
    """Matchers that note every native call, with the count and the mark of its progress."""

    class Noting(Matcher):
        def note(self, name: str) -> None:
            if bench:
                calls.append((name, *bench[0].progress.words[:2]))

        def fill_bitmask(self, row: NDArray[np.int32]) -> None:
            self.note("fill")
            super().fill_bitmask(row)

        def accept(self, token_ids: Sequence[int]) -> int:
            self.note("accept" if len(token_ids) == 1 else f"accept-{len(token_ids)}")
            return super().accept(token_ids)

        def fork(self) -> Matcher:
            self.note("fork")
            return super().fork()

    return Noting


@pytest.mark.parametrize(
    ("item", "names"),
    [
        (Item(1, accept=(4,), row=0), ["accept", "fill"]),
        (Item(1, accept=(4,), drafts=(2, 2), row=0), ["accept fill", "accept fill", "accept fill"]),
        (Item(1, accept=(7,), want_forced=True), ["accept", "fill accept", "fill"]),
        (Item(1, accept=(4,) * 40), ["accept-16", "accept-16", "accept-8"]),
        (Item(2, Action.FORK, source_sequence_id=1, accept=(4,), row=0), ["fork", "accept", "fill"]),
    ],
)
def test_progress_when_an_item_makes_several_native_calls_then_each_is_one_of_its_own(
    item: Item, names: list[str]
) -> None:
    """The front looks for one call that hangs; many short ones are none. Session and grammar stand beside it."""
    calls: list[tuple[str, int, int]] = []
    benches: list[Bench] = []
    bench = bench_with(noting(calls, benches))
    benches.append(bench)
    opened(bench, 3, 1)  # so that the mark names another grammar
    before = bench.progress.words[0]
    bench.step(item)
    of_number: dict[int, list[str]] = {}
    for name, number, _ in calls[: len(calls) // 2]:  # the second half is the other table's
        of_number.setdefault(number, []).append(name)
    assert [" ".join(of) for of in of_number.values()] == names
    assert all(number > before and number % 2 == before % 2 for number in of_number)
    assert {mark for _, _, mark in calls} == {NUMBER << 32 | 5}


def test_progress_when_rows_are_filled_one_by_one_then_it_names_the_grammar_of_each() -> None:
    calls: list[tuple[str, int, int]] = []
    benches: list[Bench] = []
    bench = bench_with(noting(calls, benches))
    opened(bench, 3, 1)
    benches.append(bench)
    bench.step(Item(1, row=0), Item(3, row=1))
    assert [(name, mark) for name, _, mark in calls] == [("fill", NUMBER << 32 | 5)] * 2


def test_progress_when_items_of_both_forms_come_then_its_count_only_grows() -> None:
    """Two native calls with the same count would be one to the front, which hangs."""
    calls: list[tuple[str, int, int]] = []
    benches: list[Bench] = []
    bench = bench_with(noting(calls, benches))
    for sequence_id in (2, 3, 4):
        opened(bench, sequence_id, 5)
    benches.append(bench)
    before = bench.progress.words[0]
    bench.step(
        Item(1, accept=(4,), row=0),
        Item(2, accept=(4,), drafts=(2,), row=1),
        Item(3, accept=(4,), row=3),
        Item(4, accept=(4,) * 20, row=4),
    )
    numbers = [number for name, number, _ in calls[: len(calls) // 2] if name != "fill"]
    assert len(numbers) == 6 and numbers == sorted(set(numbers))
    assert {number % 2 for number in numbers} == {before % 2}, "odd or even says whether a call is under way"


def test_progress_when_rows_are_filled_together_then_it_names_the_session_and_no_grammar() -> None:
    """The call is one of its own."""
    calls: list[tuple[str, int, int]] = []
    benches: list[Bench] = []
    bench = Bench()
    kind = noting(calls, benches)

    class Together:
        def fill_bitmasks(self, matchers: Sequence[Matcher], block: NDArray[np.int32], indices: Sequence[int]) -> None:
            calls.append(("together", *bench.progress.words[:2]))
            for matcher, index in zip(matchers, indices, strict=True):
                matcher.fill_bitmask(block[index])

    for table in (bench.table, bench.long_table):
        table.grammars[5] = HeldGrammar.of(5, Grammar(bench.faults, STOP, kind), Together())  # type: ignore[arg-type]
    bench.step(Item(1, Action.OPEN, 5), Item(2, Action.OPEN, 5))
    benches.append(bench)
    bench.step(Item(1, accept=(4,), row=0), Item(2, accept=(4,), row=1))
    assert [name for name, _, _ in calls] == ["accept", "accept", "together", "fill", "fill"] * 2
    assert calls[2][2] == NUMBER << 32 and calls[1][2] == NUMBER << 32 | 5
    assert calls[0][1] < calls[1][1] < calls[2][1]


def test_fill_when_it_fails_and_leaves_the_row_empty_then_the_item_is_taken_back_once() -> None:
    class Empty(Matcher):
        def fill_bitmask(self, row: NDArray[np.int32]) -> None:
            row[:] = 0
            raise BackendError("fill")

    bench = bench_with(Empty)
    bench.step(Item(1, accept=(4, 4)))
    result = bench.step(Item(1, accept=(2,), row=0))[0]
    assert (result.status, result.position, rows(bench, 0)) == (Status.BACKEND_FAILED, 2, [{STOP}])
    assert bench.step(Item(1))[0].position == 2


def test_fill_when_it_fails_then_the_row_behind_it_stays() -> None:
    """That row belongs to an item that came before."""
    bench = bench_with(Matcher)
    opened(bench, 2, 5)
    bench.faults.fill.add((2,))
    results = bench.step(Item(2, accept=(4,), row=1), Item(1, accept=(2,), row=0))
    assert [result.status for result in results] == [Status.OK, Status.BACKEND_FAILED]
    assert rows(bench, 0, 1) == [{STOP}, AFTER_EVEN]
