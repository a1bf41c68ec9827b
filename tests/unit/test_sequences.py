"""The sequence table against a plain model, with a matcher that can be made to fail anywhere."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from maskd.bitmask import allowed_token_ids, row_of
from maskd.errors import BackendError
from maskd.grammar import GrammarReport
from maskd.ipc.progress import Progress
from maskd.sequences import HeldGrammar, ItemResult, Rows, SequenceTable
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item, Result, ResultFlag, Status
from tests.unit.steps import batch_of, checked, in_full, result_of

VOCAB_SIZE, TOKEN_COUNT, STOP, OTHER_STOP = 80, 70, 69, 68
ROWS, CAPACITY, FORCED_LIMIT, NUMBER = 8, 4, 5, 3
DEAD_END = 9
"""After this token nothing is allowed."""


def allowed(history: Sequence[int], stop: int = STOP) -> set[int]:
    """The toy grammar: digits 0..9; after 9 nothing; after 7 only 8, after 8 only 7 or the stop; the stop after an even
    digit."""
    if not history:
        return set(range(10))
    last = history[-1]
    if last == DEAD_END:
        return set()
    if last == 7:
        return {8}
    return set(range(10)) | ({stop} if last % 2 == 0 else set())


@dataclass
class Faults:
    """What the next native calls do: fill or accept of a matcher with these histories raises."""

    fill: set[tuple[int, ...]] = field(default_factory=set)
    accept: set[tuple[int, ...]] = field(default_factory=set)
    batches: list[int] = field(default_factory=list)


class Matcher:
    """A matcher of the toy grammar, as the contract has it."""

    def __init__(self, faults: Faults, stop: int, history: Sequence[int] = ()) -> None:
        self.faults, self.stop, self.history = faults, stop, list(history)

    @property
    def is_terminated(self) -> bool:
        return self.stop in self.history

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        assert not self.is_terminated
        if tuple(self.history) in self.faults.fill:
            row[:] = -1  # half-written rubbish
            raise BackendError("fill")
        row[:] = row_of(allowed(self.history, self.stop), VOCAB_SIZE)
        row[TOKEN_COUNT // 32 + 1 :] = -1  # bits past the tokenizer may be left set

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token_id in enumerate(token_ids):
            if self.is_terminated or token_id not in allowed(self.history, self.stop):
                return count
            if (*self.history, token_id) in self.faults.accept:
                raise BackendError("accept")
            self.history.append(token_id)
        return len(token_ids)

    def rollback(self, token_count: int) -> None:
        assert 0 <= token_count <= len(self.history)
        del self.history[len(self.history) - token_count :]

    def fork(self) -> Matcher:
        return type(self)(self.faults, self.stop, self.history)


class QuickMatcher(Matcher):
    """The same, with the short way to accept."""

    fills = False

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        if token_id == self.stop or not self.accept([token_id]):
            return 0
        if not self.fills:
            return 1
        try:
            self.fill_bitmask(np.ctypeslib.as_array((ctypes.c_int32 * (row_bytes // 4)).from_address(row_address)))
        except BackendError:
            self.rollback(1)
            return 0
        return 2


class FillingMatcher(QuickMatcher):
    """The same, with rows filled on the way."""

    fills = True


class Grammar:
    """A grammar with its own stop token."""

    report = GrammarReport("toy", "asked for")

    def __init__(self, faults: Faults, stop: int, kind: type[Matcher] = Matcher) -> None:
        self.faults, self.stop, self.kind = faults, stop, kind
        self.stop_token_ids = frozenset({stop})

    def matcher(self) -> Matcher:
        return self.kind(self.faults, self.stop)


class Batch:
    """Fills rows together, or fails together."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def fill_bitmasks(self, matchers: Sequence[Matcher], rows: NDArray[np.int32], indices: Sequence[int]) -> None:
        self.faults.batches.append(len(matchers))
        assert len(set(indices)) == len(indices) == len(matchers)
        for matcher, index in zip(matchers, indices, strict=True):
            matcher.fill_bitmask(rows[index])


class Bench:
    """A table with its rows. Grammar 1 fills one by one, grammar 2 in batches, grammar 3 has another stop token.

    Each step is also done by a second table, whose items all go the long way; it must come to the same.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.progress = Progress()
        self.table, self.rows = self._table(Batch(self.faults), FillingMatcher, QuickMatcher)
        self.long_table, self.long_rows = self._table(Batch(Faults()), Matcher, Matcher)
        self.number = 0

    def _table(self, batch: Batch, first: type[Matcher], second: type[Matcher]) -> tuple[SequenceTable, Rows]:
        table = SequenceTable(
            TOKEN_COUNT, VOCAB_SIZE, (STOP,), CAPACITY, self.progress, NUMBER, forced_limit=FORCED_LIMIT
        )
        for grammar_id, stop, kind, by in (
            (1, STOP, first, None),
            (2, STOP, second, batch),
            (3, OTHER_STOP, Matcher, None),
        ):
            table.grammars[grammar_id] = HeldGrammar.of(grammar_id, Grammar(self.faults, stop, kind), by)  # type: ignore[arg-type]
        return table, Rows(np.zeros((ROWS, len(row_of((), VOCAB_SIZE))), dtype=np.int32))

    def step(self, *items: Item, status: int = 0) -> list[Result]:
        """One step; rows hold rubbish before it."""
        self.number += 1
        self.rows.block[:] = self.long_rows.block[:] = -1
        checks = [checked(item, status) for item in items]
        batch, long_batch = batch_of(checks, plain=True), batch_of(checks, plain=False)
        results = in_full(batch, self.table.step(self.number, batch, self.rows))
        long_results = self.long_table.step(self.number, long_batch, self.long_rows)
        assert results == in_full(long_batch, long_results)
        np.testing.assert_array_equal(self.rows.block, self.long_rows.block)
        assert self.state(self.table) == self.state(self.long_table)
        return [result_of(result) for result in results]

    @staticmethod
    def state(table: SequenceTable) -> dict[int, tuple[list[int], list[int], bool]]:
        """What the table and the matchers hold of each sequence."""
        return {number: (one.history, one.matcher.history, one.terminated) for number, one in table._sequences.items()}  # type: ignore[attr-defined]

    def row(self, number: int) -> set[int]:
        return set(allowed_token_ids(self.rows.block[number]).tolist())


def opened(bench: Bench, sequence_id: int, grammar_id: int = 1, accept: Sequence[int] = ()) -> Result:
    return bench.step(Item(sequence_id, Action.OPEN, grammar_id, accept=accept))[0]


def test_result_when_only_a_sequence_is_named_then_it_is_the_engines_result_of_that() -> None:
    assert result_of(ItemResult(5)) == Result(5)


# -- stories ----------------------------------------------------------------------------------------------------------


def test_step_when_a_sequence_lives_then_rows_positions_and_end_are_right() -> None:
    """Open, accept, stop token, rollback over it, reset, close."""
    bench = Bench()
    assert bench.step(Item(1, Action.OPEN, 1, row=2)) == [Result(1, row=2, row_count=1)]
    assert bench.row(2) == set(range(10))
    assert bench.step(Item(1, accept=(4,), row=0)) == [
        Result(1, row=0, row_count=1, accepted_count=1, position=1, accepting=True)
    ]
    assert bench.row(0) == set(range(10)) | {STOP}
    assert bench.step(Item(1, accept=(STOP,), row=0)) == [Result(1, accepted_count=1, position=2, terminated=True)]
    assert bench.row(0) == {STOP}
    assert bench.step(Item(1, row=1)) == [Result(1, position=2, terminated=True)]
    assert bench.row(1) == {STOP}
    failed = bench.step(Item(1, accept=(1,), row=1))[0]
    assert (failed.status, failed.terminated, failed.position, bench.row(1)) == (
        Status.SEQUENCE_TERMINATED,
        True,
        2,
        {STOP},
    )
    assert bench.step(Item(1, rollback=2, accept=(1, 7), row=1))[0] == Result(
        1, row=1, row_count=1, accepted_count=2, position=2
    )
    assert bench.row(1) == {8}
    assert bench.step(Item(1, rollback=ROLLBACK_ALL, row=1))[0] == Result(1, row=1, row_count=1)
    assert bench.step(Item(1, Action.CLOSE, row=3)) == [Result(1)]
    assert bench.row(3) == {STOP}
    assert bench.step(Item(1, row=0))[0].status == Status.SEQUENCE_NOT_FOUND
    assert bench.row(0) == {STOP}


def test_step_when_drafts_are_walked_then_every_position_has_its_row_and_the_state_is_unchanged() -> None:
    """Rows up to the first refused draft; behind it only the stop tokens."""
    bench = Bench()
    opened(bench, 1)
    result = bench.step(Item(1, accept=(4,), drafts=(7, 8, STOP, 1), row=1))[0]
    assert (result.row, result.row_count, result.position, result.accepting) == (1, 3, 1, True)
    assert [bench.row(row) for row in range(1, 6)] == [
        set(range(10)) | {STOP},
        {8},
        set(range(10)) | {STOP},
        {STOP},
        {STOP},
    ]
    result = bench.step(Item(1, drafts=(50, 1), row=1))[0]
    assert (result.row_count, [bench.row(row) for row in (2, 3)]) == (1, [{STOP}, {STOP}])
    assert bench.step(Item(1, row=0))[0].position == 1


def test_step_when_forced_tokens_are_asked_for_then_as_far_as_there_is_one_choice() -> None:
    """7 forces 8; what follows is free; the limit holds; the state is unchanged."""
    bench = Bench()
    opened(bench, 1)
    assert bench.step(Item(1, accept=(7,), want_forced=True, row=0))[0].forced == (8,)
    assert bench.step(Item(1, accept=(8,), want_forced=True))[0] == Result(1, accepted_count=1, position=2)
    assert (bench.rows.block == -1).all(), "no row was asked for, none is written"


def test_step_when_every_item_fails_in_its_own_way_then_neighbours_are_served() -> None:
    """One batch with everything wrong that can be wrong, and two good items in it."""
    bench = Bench()
    for sequence_id, grammar_id in ((1, 1), (2, 2), (3, 3)):
        opened(bench, sequence_id, grammar_id, (1,))
    results = bench.step(
        Item(1, accept=(4,), row=0),
        Item(2, accept=(50,), row=1),
        Item(3, rollback=2, row=2),
        Item(99, row=3),
        Item(1, accept=(4,), row=4),
        Item(7, Action.OPEN, 55, row=5),
        Item(8, Action.FORK, source_sequence_id=55, row=6),
        Item(9, Action.OPEN, 1, accept=(2,), row=7),
    )
    assert [(r.status, r.detail_value) for r in results] == [
        (Status.OK, 0),
        (Status.TOKEN_REJECTED, 50),
        (Status.ROLLBACK_TOO_FAR, 1),
        (Status.SEQUENCE_NOT_FOUND, 99),
        (Status.SEQUENCE_EXISTS, 1),
        (Status.GRAMMAR_NOT_FOUND, 55),
        (Status.SEQUENCE_NOT_FOUND, 55),
        (Status.OK, 0),
    ]
    assert [bench.row(row) for row in range(8)] == [set(range(10)) | {STOP}] + [{STOP}] * 6 + [set(range(10)) | {STOP}]
    assert [r.position for r in bench.step(Item(1), Item(2), Item(3), Item(9))] == [2, 1, 1, 1]


def test_step_when_the_table_is_full_then_open_and_fork_are_refused_until_one_closes() -> None:
    """The capacity counts live sequences; a close in the same step makes room for what comes after it."""
    bench = Bench()
    for sequence_id in range(1, CAPACITY + 1):
        assert opened(bench, sequence_id).status == Status.OK
    results = bench.step(
        Item(50, Action.OPEN, 1),
        Item(51, Action.FORK, source_sequence_id=1),
        Item(2, Action.CLOSE),
        Item(52, Action.OPEN, 1),
    )
    assert [(r.status, r.detail_value) for r in results] == [
        (Status.SEQUENCE_CAPACITY, CAPACITY),
        (Status.SEQUENCE_CAPACITY, CAPACITY),
        (Status.OK, 0),
        (Status.OK, 0),
    ]
    assert len(bench.table) == CAPACITY


def test_step_when_tokens_were_out_of_range_then_the_row_is_closed() -> None:
    """An engine that overlooks the status samples a stop token, not from the mask of two steps ago."""
    bench = Bench()
    opened(bench, 1)
    assert (
        bench.step(Item(1, accept=(500,), drafts=(1,), row=2), status=Status.TOKEN_OUT_OF_RANGE)[0].status
        == Status.TOKEN_OUT_OF_RANGE
    )
    assert [bench.row(row) for row in (2, 3)] == [{STOP}, {STOP}]


def test_step_when_an_item_is_malformed_then_no_row_is_touched() -> None:
    """Its row number means nothing, and may be that of another item."""
    bench = Bench()
    opened(bench, 1)
    assert bench.step(Item(1, row=100), status=Status.INVALID_ITEM)[0].status == Status.INVALID_ITEM
    assert (bench.rows.block == -1).all()


@pytest.mark.parametrize("grammar_id", [1, 2, 3])
def test_step_when_nothing_is_allowed_then_an_error_and_the_sequence_stands_before_the_token(grammar_id: int) -> None:
    """A dead end is never an all-zero row."""
    bench = Bench()
    opened(bench, 1, grammar_id, (1, 2))
    opened(bench, 2, 2, (1,))
    results = bench.step(Item(1, rollback=1, accept=(DEAD_END,), row=0), Item(2, accept=(2,), row=1))
    assert [(r.status, r.position, r.row_count) for r in results] == [
        (Status.NO_TOKEN_ALLOWED, 2, 0),
        (Status.OK, 2, 1),
    ]
    assert (bench.row(0), bench.row(1)) == ({STOP}, set(range(10)) | {STOP})
    assert (
        bench.step(Item(1, accept=(DEAD_END,), row=0), Item(2, accept=(DEAD_END,), row=1))[1].status
        == Status.NO_TOKEN_ALLOWED
    )
    assert [r.position for r in bench.step(Item(1), Item(2))] == [2, 2]


@pytest.mark.parametrize("grammar_id", [1, 2])
@pytest.mark.parametrize("drafts", [(), (2,)])
def test_step_when_a_fill_fails_then_the_sequence_is_unchanged_and_neighbours_have_their_rows(
    grammar_id: int, drafts: tuple[int, ...]
) -> None:
    """A row that the library cannot make is that item's error; a batch falls back to one by one."""
    bench = Bench()
    for sequence_id in (1, 2, 3):
        opened(bench, sequence_id, grammar_id, (sequence_id,))
    bench.faults.fill.add((2, 5))
    results = bench.step(*(Item(s, accept=(5,), drafts=drafts if s == 2 else (), row=2 * s - 2) for s in (1, 2, 3)))
    assert [(r.status, r.position, r.detail_value) for r in results] == [
        (Status.OK, 2, 0),
        (Status.BACKEND_FAILED, 1, 0),
        (Status.OK, 2, 0),
    ]
    assert [bench.row(row) for row in (0, 2, 4)] == [set(range(10)), {STOP}, set(range(10))]
    bench.faults.fill.clear()
    assert bench.step(Item(2, accept=(6,), row=0))[0].position == 2


def test_step_when_a_created_sequence_cannot_be_filled_then_it_was_never_there() -> None:
    """OPEN and FORK are all or nothing: the id is free again, the source untouched."""
    bench = Bench()
    opened(bench, 1, 1, (3,))
    bench.faults.fill |= {(), (3,)}
    results = bench.step(Item(2, Action.OPEN, 2, row=0), Item(3, Action.FORK, source_sequence_id=1, row=1))
    assert [r.status for r in results] == [Status.BACKEND_FAILED] * 2
    bench.faults.fill.clear()
    assert len(bench.table) == 1
    assert [
        r.position
        for r in bench.step(Item(1), Item(2, Action.OPEN, 1, accept=(1,)), Item(3, Action.FORK, source_sequence_id=1))
    ] == [
        1,
        1,
        1,
    ]


def test_step_when_a_row_behind_which_a_fork_stands_cannot_be_made_then_the_fork_stands_before_the_token() -> None:
    """A fork copies its source as its source's own item leaves it, also when that item fails after the others."""
    for action, position in ((Action.ADVANCE, 1), (Action.OPEN, 0)):
        bench = Bench()
        if action == Action.ADVANCE:
            opened(bench, 1, 2, (1,))
        results = bench.step(
            Item(1, action, 2, accept=(DEAD_END,), row=0),
            Item(2, Action.FORK, source_sequence_id=1),
            Item(3, Action.OPEN, 2, row=1),
        )
        forked = Status.OK if action == Action.ADVANCE else Status.SEQUENCE_NOT_FOUND
        assert [(r.status, r.position) for r in results] == [
            (Status.NO_TOKEN_ALLOWED, position),
            (forked, position),
            (Status.OK, 0),
        ]


@pytest.mark.parametrize(
    "items", [Item(1, accept=(5,), row=0), Item(1, accept=(5, 5), row=0), Item(1, drafts=(5,), row=0)]
)
def test_step_when_an_accept_fails_then_the_sequence_is_closed_and_says_so(items: Item) -> None:
    """The state of a matcher whose accept failed is not known; its sequence is closed, and no other."""
    bench = Bench()
    opened(bench, 1)
    opened(bench, 2)
    bench.faults.accept.add((5,))
    results = bench.step(items, Item(2, accept=(4,), row=3))
    assert [(r.status, r.detail_value) for r in results] == [(Status.BACKEND_FAILED, 1), (Status.OK, 0)]
    assert (bench.row(0), bench.row(3)) == ({STOP}, set(range(10)) | {STOP})
    assert [r.status for r in bench.step(Item(1), Item(2))] == [Status.SEQUENCE_NOT_FOUND, Status.OK]


def test_step_when_rows_can_be_made_together_then_one_call_makes_them() -> None:
    """Items of a batching backend go in one call; the others, and a single one, are filled alone."""
    bench = Bench()
    for sequence_id, grammar_id in ((1, 2), (2, 1), (3, 2), (4, 2)):
        opened(bench, sequence_id, grammar_id)
    assert {r.status for r in bench.step(*(Item(s, accept=(1,), row=s) for s in (1, 2, 3, 4)))} == {Status.OK}
    assert bench.faults.batches == [3]
    bench.step(Item(1, row=0), Item(2, row=1))
    assert bench.faults.batches == [3]


def test_step_when_the_grammar_has_its_own_stop_token_then_it_ends_the_sequence() -> None:
    """Accepting is told of the grammar's stop tokens; failed rows allow the vocabulary's."""
    bench = Bench()
    opened(bench, 1, 3)
    assert bench.step(Item(1, accept=(2,), row=0))[0].accepting
    assert bench.row(0) == set(range(10)) | {OTHER_STOP}
    assert bench.step(Item(1, accept=(STOP,), row=0))[0].status == Status.TOKEN_REJECTED
    assert bench.step(Item(1, accept=(OTHER_STOP,), row=0))[0].terminated


@pytest.mark.parametrize("padding", [0, 1, 40])
def test_all_allowed_when_there_is_padding_then_it_is_not_claimed(padding: int) -> None:
    """Skipping the mask would let the padding be sampled."""

    class Everything(Matcher):
        def fill_bitmask(self, row: NDArray[np.int32]) -> None:
            row[:] = -1

    class Free(Grammar):
        def matcher(self) -> Matcher:
            return Everything(self.faults, self.stop)

    table = SequenceTable(64, 64 + padding, (STOP - 6,), 1)
    table.grammars[1] = HeldGrammar.of(1, Free(Faults(), STOP - 6), None)  # type: ignore[arg-type]
    rows = Rows(np.zeros((3, len(row_of((), 64 + padding))), dtype=np.int32))
    for number, drafts in enumerate(((), (1,))):
        action = Action.ADVANCE if number else Action.OPEN
        batch = batch_of([checked(Item(1, action, 1, drafts=drafts, row=0))], plain=False)
        result = in_full(batch, table.step(number, batch, rows))[0]
        assert bool(result.flags & ResultFlag.ALL_ALLOWED) == (padding == 0)
        assert len(allowed_token_ids(rows.block[0])) == 64


# -- anything, against a model ----------------------------------------------------------------------------------------


@dataclass
class ModelSequence:
    """What a sequence is: its tokens, and which token stops it."""

    grammar_id: int
    history: list[int]

    @property
    def stop(self) -> int:
        return OTHER_STOP if self.grammar_id == 3 else STOP

    def takes(self, tokens: Sequence[int]) -> int:
        history = list(self.history)
        for count, token in enumerate(tokens):
            if self.stop in history or token not in allowed(history, self.stop):
                return count
            history.append(token)
        return len(tokens)


TOKENS = st.lists(st.sampled_from([0, 1, 2, 4, 7, 8, 8, 9, 50, STOP, STOP, OTHER_STOP]), max_size=3)
IDS = st.integers(1, 6)
ITEMS = st.builds(
    Item,
    IDS,
    st.sampled_from([Action.ADVANCE] * 5 + [Action.OPEN, Action.OPEN, Action.FORK, Action.CLOSE]),
    st.integers(1, 4),
    IDS,
    st.sampled_from([0, 0, 0, 1, 2, ROLLBACK_ALL]),
    TOKENS,
    st.just(()),
    st.booleans(),
    st.just(False),
)


PLAIN = st.builds(Item, IDS, accept=st.tuples(st.sampled_from([0, 1, 2, 4, 7, 8, 9, STOP])), row=st.just(1))


class TableMachine(RuleBasedStateMachine):
    """Random steps; after each, results, rows and the whole state equal the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.model: dict[int, ModelSequence] = {}
        self.deferred: dict[int, tuple[ModelSequence | None]] = {}

    @rule(
        items=st.lists(st.tuples(ITEMS, TOKENS, st.booleans()), min_size=1, max_size=4),
        fail=st.sets(st.sampled_from([(), (1,), (4,), (2, 2)]), max_size=1),
    )
    def any_step(self, items: list[tuple[Item, list[int], bool]], fail: set[tuple[int, ...]]) -> None:
        self.step(items, fail)

    def step(self, items: list[tuple[Item, list[int], bool]], fail: set[tuple[int, ...]]) -> None:
        row, batch = 0, []
        for item, drafts, forced in items:
            wanted = bool(item.row)
            kept = tuple(drafts) if wanted else ()
            fits = wanted and row + len(kept) < ROWS
            batch.append(
                Item(
                    item.sequence_id,
                    item.action,
                    item.grammar_id,
                    item.source_sequence_id,
                    item.rollback,
                    tuple(item.accept),
                    kept if fits else (),
                    row if fits else NO_ROW,
                    forced,
                )
            )
            row += 1 + len(kept) if fits else 0
        self.bench.faults.fill = fail
        results = self.bench.step(*batch)
        self.bench.faults.fill = set()
        seen: set[int] = set()
        checks: list[tuple[Status, int, list[set[int]]]] = []
        for at, item in enumerate(batch):
            if item.action == Action.FORK and item.source_sequence_id in {
                batch[one].sequence_id for one in self.deferred
            }:
                self.fill_deferred(batch, fail, checks)
            checks.append(self.expect(at, item, fail, seen))
        self.fill_deferred(batch, fail, checks)
        for item, result, (status, position, row_sets) in zip(batch, results, checks, strict=True):
            assert (result.sequence_id, result.status, result.position) == (item.sequence_id, status, position), item
            if status == Status.OK and item.action != Action.CLOSE:
                sequence = self.model[item.sequence_id]
                assert result.terminated == (sequence.stop in sequence.history)
                assert result.accepted_count == len(item.accept)
                assert result.accepting == (bool(row_sets) and sequence.stop in row_sets[0])
            assert result.row_count == len(row_sets)
            assert result.row == (item.row if row_sets else NO_ROW)
            if item.row != NO_ROW:
                closed = [{STOP}] * (1 + len(item.drafts) - len(row_sets))
                assert [self.bench.row(item.row + i) for i in range(1 + len(item.drafts))] == row_sets + closed

    @rule(
        grammars=st.lists(st.integers(1, 3), min_size=4, max_size=4),
        fail=st.sets(st.sampled_from([(), (1,), (4,), (2, 2)]), max_size=1),
    )
    def open_all(self, grammars: list[int], fail: set[tuple[int, ...]]) -> None:
        self.step([(Item(at, Action.OPEN, grammar, row=1), [], False) for at, grammar in enumerate(grammars, 1)], fail)

    @rule(
        items=st.lists(PLAIN, min_size=1, max_size=6), fail=st.sets(st.sampled_from([(1,), (4,), (2, 2)]), max_size=2)
    )
    def usual_step(self, items: list[Item], fail: set[tuple[int, ...]]) -> None:
        self.step([(item, [], False) for item in items], fail)

    def expect(
        self, number: int, item: Item, fail: set[tuple[int, ...]], seen: set[int]
    ) -> tuple[Status, int, list[set[int]]]:
        """Does the item on the model: (status, position, rows)."""
        known = self.model.get(item.sequence_id)
        at = len(known.history) if known else 0
        if item.action in (Action.OPEN, Action.FORK):
            if known:
                return Status.SEQUENCE_EXISTS, at, []
            if len(self.model) >= CAPACITY:
                return Status.SEQUENCE_CAPACITY, 0, []
            if item.action == Action.OPEN:
                if item.grammar_id == 4:
                    return Status.GRAMMAR_NOT_FOUND, 0, []
                sequence = ModelSequence(item.grammar_id, [])
            else:
                source = self.model.get(item.source_sequence_id)
                if source is None:
                    return Status.SEQUENCE_NOT_FOUND, 0, []
                sequence = ModelSequence(source.grammar_id, list(source.history))
        else:
            if known is None:
                return Status.SEQUENCE_NOT_FOUND, 0, []
            if item.sequence_id in seen:
                return Status.SEQUENCE_EXISTS, at, []
            seen.add(item.sequence_id)
            if item.action == Action.CLOSE:
                del self.model[item.sequence_id]
                return Status.OK, at, []
            sequence = ModelSequence(known.grammar_id, list(known.history))
        back = len(sequence.history) if item.rollback == ROLLBACK_ALL else item.rollback
        if back > len(sequence.history):
            return Status.ROLLBACK_TOO_FAR, at, []
        if back:
            del sequence.history[-back:]
        taken = sequence.takes(item.accept)
        if taken < len(item.accept):
            ended = sequence.stop in sequence.history + list(item.accept[:taken])
            return Status.SEQUENCE_TERMINATED if ended else Status.TOKEN_REJECTED, at, []
        sequence.history += item.accept
        rows: list[set[int]] = []
        if item.row != NO_ROW and not item.drafts and not item.want_forced and sequence.stop not in sequence.history:
            self.deferred[number] = (known,)
        elif item.row != NO_ROW and sequence.stop not in sequence.history:
            for count in range(sequence.takes(item.drafts) + 1):
                history = sequence.history + list(item.drafts[:count])
                if history and history[-1] == sequence.stop:
                    break
                if tuple(history) in fail or not allowed(history, sequence.stop):
                    if count:
                        break  # a draft into a dead end counts as refused
                    return Status.BACKEND_FAILED if tuple(history) in fail else Status.NO_TOKEN_ALLOWED, at, []
                rows.append(allowed(history, sequence.stop))
        self.model[item.sequence_id] = sequence
        seen.add(item.sequence_id)
        return Status.OK, len(sequence.history), rows

    def fill_deferred(
        self, batch: list[Item], fail: set[tuple[int, ...]], checks: list[tuple[Status, int, list[set[int]]]]
    ) -> None:
        """Single rows are filled when all items are done, or when one of their sequences is forked, and taken back
        then."""
        for at, before in self.deferred.items():
            checks[at] = self.fill_late(batch[at], fail, checks[at], before)
        self.deferred.clear()

    def fill_late(
        self,
        item: Item,
        fail: set[tuple[int, ...]],
        check: tuple[Status, int, list[set[int]]],
        before: tuple[ModelSequence | None],
    ) -> tuple[Status, int, list[set[int]]]:
        """Fills the one row of an item that was done: (status, position, rows); what cannot be filled is taken back."""
        sequence = self.model[item.sequence_id]
        row = allowed(sequence.history, sequence.stop)
        if row and tuple(sequence.history) not in fail:
            return *check[:2], [row]
        status = Status.BACKEND_FAILED if tuple(sequence.history) in fail else Status.NO_TOKEN_ALLOWED
        if before[0] is None:
            del self.model[item.sequence_id]
            return status, 0, []
        self.model[item.sequence_id] = before[0]
        return status, len(before[0].history), []

    @invariant()
    def the_matchers_stand_where_the_model_stands(self) -> None:
        held = {number: sequence.matcher.history for number, sequence in self.bench.table._sequences.items()}  # type: ignore[attr-defined]
        assert held == {number: sequence.history for number, sequence in self.model.items()}


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
