"""Slow items, with a lane that works when it is told to: who has a matcher while it works, and what a surprise in it
costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from maskd.bitmask import allowed_token_ids, row_of
from maskd.errors import BackendError
from maskd.grammar import GrammarReport, WhenSlow
from maskd.ipc.progress import Progress
from maskd.sequences import HeldGrammar, Rows, SequenceTable
from maskd.step import NO_ROW, Action, Item, LateIndex, Result, Status
from maskd.worker.slow_lane import LaneJob
from tests.unit.steps import batch_of, checked, in_full, result_of

VOCAB_SIZE, STOP, ROWS = 64, 63, 16


class PanicError(BaseException):
    """What a panic of Rust is in Python: no ``Exception``."""


class Matcher:
    """Allows the number of its tokens and the one above, so that a row says how many there are."""

    def __init__(self, grammar: Grammar, history: Sequence[int] = ()) -> None:
        self.grammar, self.history = grammar, list(history)
        self.is_terminated = False

    def fill_bitmask(self, row: np.ndarray) -> None:
        self.grammar.call("fill")
        row[:] = row_of(self.allowed, VOCAB_SIZE)

    @property
    def allowed(self) -> tuple[int, int]:
        return len(self.history) % 50, len(self.history) % 50 + 1

    def accept(self, token_ids: Sequence[int]) -> int:
        self.grammar.call("accept")
        for count, token_id in enumerate(token_ids):
            if token_id not in self.allowed:
                return count
            self.history.append(token_id)
        return len(token_ids)

    def rollback(self, token_count: int) -> None:
        self.grammar.call("rollback")
        del self.history[len(self.history) - token_count :]

    def fork(self) -> Matcher:
        self.grammar.call("fork")
        return type(self)(self.grammar, self.history)


class Grammar:
    """``surprises`` says what a call raises, ``seconds`` how much processor time it takes, ``meanwhile`` what happens
    in it."""

    report = GrammarReport("toy", "asked for")
    stop_token_ids = frozenset({STOP})

    def __init__(self) -> None:
        self.surprises: dict[str, BaseException] = {}
        self.seconds: dict[str, float] = {}
        self.meanwhile: dict[str, Callable[[], None]] = {}

    def call(self, name: str) -> None:
        self.meanwhile.get(name, lambda: None)()
        if name in self.seconds:
            end = time.thread_time() + self.seconds[name]
            while time.thread_time() < end:
                pass
        if name in self.surprises:
            raise self.surprises[name]

    def matcher(self) -> Matcher:
        self.call("matcher")
        return Matcher(self)

    def fill_bitmasks(self, matchers: Sequence[Matcher], rows: np.ndarray, indices: Sequence[int]) -> None:
        self.call("batch")
        for matcher, index in zip(matchers, indices, strict=True):
            matcher.fill_bitmask(rows[index])


class Lane:
    """Jobs wait until ``work`` is called; with ``at_once``, done as soon as they are started."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once, self.jobs = at_once, list[LaneJob]()

    def start(self, job: Callable[[Callable[[], None]], Any], mark: int) -> LaneJob:
        self.jobs.append(LaneJob(job, mark))
        if self.at_once:
            self.work()
        return self.jobs[-1] if self.jobs else self.done

    def work(self, count: int = 100) -> None:
        for _ in range(min(count, len(self.jobs))):
            self.done = self.jobs.pop(0)
            self.done.run(lambda: None)


class Bench:
    """A table with two grammars: 1, which is slow if ``slow``, and 2, which never is."""

    def __init__(
        self, *, slow: bool = True, when_slow: WhenSlow = "wait", at_once: bool = False, row_seconds: float = 0.002
    ) -> None:
        self.lane, self.grammar, self.other = Lane(at_once=at_once), Grammar(), Grammar()
        self.progress = Progress()
        self.table = SequenceTable(
            STOP + 1, VOCAB_SIZE, (STOP,), 32, self.progress, lane=self.lane, row_seconds=row_seconds
        )
        self.table.grammars[1] = HeldGrammar.of(1, self.grammar, None, slow=slow, when_slow=when_slow)  # type: ignore[arg-type]
        self.table.grammars[2] = HeldGrammar.of(2, self.other, None)  # type: ignore[arg-type]
        self.rows = Rows(np.zeros((ROWS, len(row_of((), VOCAB_SIZE))), dtype=np.int32))
        self.number = 0

    def step(self, *items: Item, plain: bool = False) -> list[Result]:
        self.number += 1
        batch = batch_of([checked(item) for item in items], plain=plain)
        return [result_of(result) for result in in_full(batch, self.table.step(self.number, batch, self.rows))]

    def row(self, number: int) -> list[int]:
        return allowed_token_ids(self.rows.block[number]).tolist()

    def open(self, sequence_id: int, *tokens: int, grammar_id: int = 1) -> None:
        """Opens a sequence and waits for it."""
        result = self.step(Item(sequence_id, Action.OPEN, grammar_id, accept=tokens))[0]
        self.lane.work()
        while result.status == Status.STEP_DEADLINE:
            result = self.step(Item(sequence_id))[0]
        assert (result.status, result.position) == (Status.OK, len(tokens))


def late(index: LateIndex) -> tuple[Status, int]:
    return Status.STEP_DEADLINE, index


def ends(results: Sequence[Result]) -> list[Status | tuple[Status, int]]:
    return [(r.status, r.detail_index) if r.status == Status.STEP_DEADLINE else r.status for r in results]


# -- who has the matcher
# ------------------------------------------------------------------------------------------------


def test_fork_when_its_source_is_in_the_lane_then_it_is_not_begun_and_stands_behind_it_later() -> None:
    """The lane has the source's matcher from the moment in which its item starts, not from the end of the step."""
    bench = Bench()
    bench.open(1)
    fork = Item(2, Action.FORK, source_sequence_id=1, row=4)
    assert ends(bench.step(Item(1, accept=(0,), row=0), fork)) == [late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)]
    assert len(bench.table) == 1
    assert ends(bench.step(Item(1, row=0), fork)) == [late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)], (
        "also behind a question"
    )
    bench.lane.work()
    results = bench.step(Item(1, row=0), fork)
    assert ends(results) == [Status.OK, late(LateIndex.UNDER_WAY)]
    bench.lane.work()
    results = bench.step(Item(2, row=4))
    assert (ends(results), results[0].position, bench.row(4)) == ([Status.OK], 1, [1, 2])


def test_fork_when_its_source_was_made_in_the_same_step_then_it_is_not_begun() -> None:
    """A sequence that the lane opens, or copies, has no matcher yet."""
    bench = Bench()
    bench.open(1, 0)
    results = bench.step(
        Item(2, Action.OPEN, 1, row=0),
        Item(3, Action.FORK, source_sequence_id=2, row=1),
        Item(4, Action.FORK, source_sequence_id=1, row=2),
        Item(5, Action.FORK, source_sequence_id=4, row=3),
    )
    assert ends(results) == [late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)] * 2


def test_advance_when_the_lane_copies_the_sequence_then_it_is_not_begun() -> None:
    """A copy reads the matcher, so nothing else may have it meanwhile; a copy that is given up lets go of it."""
    bench = Bench()
    bench.open(1, 0)
    fork, other = (Item(number, Action.FORK, source_sequence_id=1) for number in (2, 3))
    assert ends(bench.step(fork, Item(1, accept=(1,), row=0), other)) == [
        late(LateIndex.UNDER_WAY),
        late(LateIndex.NOT_BEGUN),
        late(LateIndex.NOT_BEGUN),
    ]
    assert ends(bench.step(Item(2, Action.CLOSE), Item(1, accept=(1,)))) == [Status.OK, late(LateIndex.NOT_BEGUN)]
    bench.lane.work()
    assert ends(bench.step(Item(1, accept=(1,), row=0))) == [late(LateIndex.UNDER_WAY)]
    bench.lane.work()
    assert (ends(bench.step(Item(1, row=0))), bench.row(0)) == ([Status.OK], [2, 3])


def test_fork_when_the_late_item_of_its_source_failed_then_it_stands_where_the_source_does() -> None:
    """A refused token leaves the source as it was; a source that ended, or never came to be, is not found."""
    bench = Bench()
    bench.open(1, 0)
    bench.open(2)
    bench.step(Item(1, accept=(50,)), Item(2, accept=(0,)), Item(3, Action.OPEN, 1, accept=(50,)))
    bench.lane.work(1)
    bench.grammar.surprises["accept"] = BackendError("broken")
    bench.lane.work()
    bench.grammar.surprises.clear()
    forks = bench.step(*(Item(10 + source, Action.FORK, source_sequence_id=source, row=source) for source in (1, 2, 3)))
    assert ends(forks) == [late(LateIndex.UNDER_WAY), Status.SEQUENCE_NOT_FOUND, Status.SEQUENCE_NOT_FOUND]
    bench.lane.work()
    asked = bench.step(Item(11, row=1), Item(1), Item(2), Item(3))
    assert ends(asked) == [Status.OK, Status.TOKEN_REJECTED, Status.BACKEND_FAILED, Status.BACKEND_FAILED]
    assert (asked[0].position, bench.row(1), len(bench.table)) == (1, [1, 2], 2)


@pytest.mark.parametrize(
    "behind", [Item(1, accept=(1,)), Item(1, rollback=1), Item(1, Action.CLOSE)], ids=lambda item: item.action.name
)
def test_item_when_a_fork_before_it_was_not_begun_then_it_does_not_overtake_it(behind: Item) -> None:
    """Also when the lane lets go of the source in between: the fork is sent again, and must find it as it was."""
    bench = Bench()
    bench.open(1, 0)
    bench.other.meanwhile["matcher"] = bench.lane.work
    forks = [Item(number, Action.FORK, source_sequence_id=1, row=number) for number in (2, 3)]
    fork_of_fork = Item(4, Action.FORK, source_sequence_id=3, row=4)
    results = bench.step(*forks, fork_of_fork, Item(9, Action.OPEN, 2), behind)
    not_begun = late(LateIndex.NOT_BEGUN)
    assert ends(results) == [Status.OK, not_begun, not_begun, Status.OK, not_begun]
    assert bench.row(2) == [1, 2]
    again = [forks[1], fork_of_fork, behind]
    for _ in range(9):
        results = bench.step(*again)
        again = [one for one, result in zip(again, results, strict=True) if result.detail_index == LateIndex.NOT_BEGUN]
        bench.lane.work()
        if not again:
            break
    assert not again
    bench.step(Item(3, row=3), Item(4, row=4))
    assert (bench.row(3), bench.row(4)) == ([1, 2], [1, 2])


def test_item_when_an_item_before_it_was_not_begun_then_no_fork_overtakes_that() -> None:
    """A fork behind an item stands behind it, in whatever step both of them come."""
    bench = Bench()
    bench.open(1, 0)
    bench.step(Item(1, accept=(1,)))
    bench.other.meanwhile["matcher"] = bench.lane.work
    both = [Item(1, accept=(2,)), Item(2, Action.FORK, source_sequence_id=1, row=2)]
    assert ends(bench.step(both[0], Item(9, Action.OPEN, 2), both[1])) == [
        late(LateIndex.NOT_BEGUN),
        Status.OK,
        late(LateIndex.NOT_BEGUN),
    ]
    assert ends(bench.step(*both)) == [late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)]
    bench.lane.work()
    assert ends(bench.step(Item(1), both[1])) == [Status.OK, late(LateIndex.UNDER_WAY)]
    bench.lane.work()
    assert (ends(bench.step(Item(2, row=2))), bench.row(2)) == ([Status.OK], [3, 4])


def test_advance_when_the_copy_is_made_then_it_does_not_wait_for_the_rest_of_the_fork() -> None:
    """The lane has the source for as long as it copies it, not for as long as the fork's own item takes."""
    bench = Bench()
    bench.open(1, 0)
    advance = Item(1, accept=(1,), row=0)
    assert ends(bench.step(Item(2, Action.FORK, source_sequence_id=1, row=2), advance)) == [
        late(LateIndex.UNDER_WAY),
        late(LateIndex.NOT_BEGUN),
    ]
    stepped: list[Result] = []
    bench.grammar.meanwhile["fill"] = lambda: stepped.extend(bench.step(advance)) if not stepped else None
    bench.lane.work(1)
    assert ends(stepped) == [late(LateIndex.UNDER_WAY)]


def test_close_when_a_session_ends_then_its_jobs_are_left_out() -> None:
    """Slow items of others do not wait behind those of an engine that has left."""
    bench = Bench()
    bench.step(*(Item(number, Action.OPEN, 1, row=number) for number in range(1, 9)))
    bench.table.close()
    assert len(bench.lane.jobs) == 8 and all(job.is_cancelled for job in bench.lane.jobs) and len(bench.table) == 0


def test_failed_position_when_the_lane_is_at_work_then_it_is_that_before_the_item() -> None:
    """What is said of a late sequence never comes from a history that is being written."""
    bench = Bench()
    bench.open(1, 0)
    results = bench.step(Item(1, accept=(1, 2)), Item(1, accept=(1,)))
    bench.lane.work()
    assert [(r.status, r.position) for r in results] == [(Status.STEP_DEADLINE, 1), (Status.SEQUENCE_EXISTS, 1)]


# -- opening and forking may be slow, too
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "action"), [("matcher", Action.OPEN), ("fork", Action.FORK)])
def test_create_when_a_matcher_takes_long_then_the_next_ones_are_made_in_the_lane(name: str, action: Action) -> None:
    """One slow call on the data path is enough: the others of that grammar do not keep their neighbours waiting."""
    bench = Bench(slow=False, row_seconds=0.01)
    bench.open(1, 0)
    bench.open(2, grammar_id=2)
    bench.grammar.seconds[name] = 0.012
    made = [Item(3 + at, action, 1, source_sequence_id=1, row=3 + at) for at in range(5)]
    results = bench.step(*made, Item(2, accept=(0,), row=0))
    assert set(ends(results)[:5]) <= {late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)}
    assert (results[5].status, bench.row(0)) == (Status.OK, [1, 2])
    bench.grammar.seconds.clear()
    for at in range(5):
        result = results[at]
        while result.status == Status.STEP_DEADLINE:
            bench.lane.work()
            again = (
                made[at] if result.detail_index == LateIndex.NOT_BEGUN else Item(made[at].sequence_id, row=made[at].row)
            )
            result = bench.step(again)[0]
        assert (result.status, bench.row(3 + at)) == (Status.OK, [1, 2] if action == Action.FORK else [0, 1])


@pytest.mark.parametrize(("count", "is_slow"), [(1, True), (250, False)])
def test_judge_when_an_item_has_hundreds_of_tokens_then_its_grammar_is_not_slow_for_that(
    count: int, is_slow: bool
) -> None:
    """A replay is long because the history is, not because the masks are slow."""
    bench = Bench(slow=False, row_seconds=0.01)
    bench.open(1)
    bench.open(2, grammar_id=2)
    bench.grammar.seconds["fill"] = 0.012
    bench.step(Item(1, row=0))  # a slow step: the next ones are timed
    bench.other.seconds["accept"] = 0.011 / -(-count // 16)  # for each piece
    assert bench.step(Item(2, accept=[at % 50 for at in range(count)]))[0].status == Status.OK
    assert ends(bench.step(Item(2))) == [late(LateIndex.UNDER_WAY) if is_slow else Status.OK]


@pytest.mark.parametrize("when_slow", ["wait", "fail"])
@pytest.mark.parametrize("action", [Action.OPEN, Action.FORK, Action.ADVANCE])
def test_item_when_it_has_thousands_of_tokens_then_it_runs_in_the_lane_and_the_next_does_not(
    action: Action, when_slow: WhenSlow
) -> None:
    """A restore holds up no neighbour, in pieces that are calls of their own, and makes no grammar slow."""
    bench = Bench(slow=False, when_slow=when_slow)
    bench.open(1)
    tokens = [at % 50 for at in range(2000)]
    pieces: list[int] = []
    bench.grammar.meanwhile["accept"] = lambda: pieces.append(0)
    item = Item(1 if action == Action.ADVANCE else 2, action, 1, source_sequence_id=1, accept=tokens, row=0)
    assert ends(bench.step(item)) == [late(LateIndex.UNDER_WAY)]
    bench.lane.work()
    assert len(pieces) > 5
    result = bench.step(Item(item.sequence_id, row=0))[0]
    assert (result.status, result.position, bench.row(0)) == (Status.OK, 2000, [0, 1])
    assert (
        ends(bench.step(Item(item.sequence_id, accept=(0,), row=0), Item(3, Action.FORK, source_sequence_id=1)))
        == [Status.OK] * 2
    )
    assert not bench.lane.jobs


# -- a surprise costs one sequence
# -------------------------------------------------------------------------------------------


SURPRISES = [
    BackendError("x"),
    RuntimeError("x"),
    ValueError("x"),
    MemoryError(),
    RecursionError(),
    SystemExit(1),
    PanicError("x"),
]
CALLS = {
    "matcher": Item(9, Action.OPEN, 1, row=1),
    "fork": Item(9, Action.FORK, source_sequence_id=1, row=1),
    "accept": Item(1, accept=(1,), row=1),
    "fill": Item(1, accept=(1,), row=1),
    "rollback": Item(1, rollback=1, row=1),
}


@pytest.mark.parametrize("surprise", SURPRISES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("drafts", [(), (2,)])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_step_when_a_backend_raises_anything_then_one_sequence_ends_at_most(
    name: str, slow: bool, drafts: tuple[int, ...], surprise: BaseException
) -> None:
    """Neighbours have their rows, on the data path and beside the lane; the row of the failed item allows the stop
    only."""
    bench = Bench(slow=slow, at_once=True, row_seconds=60.0)
    bench.open(1, 0)
    bench.open(2, 0)
    bench.open(3, 0, grammar_id=2)
    bench.grammar.surprises[name] = surprise
    item = CALLS[name]
    item = Item(
        item.sequence_id,
        item.action,
        item.grammar_id,
        item.source_sequence_id,
        item.rollback,
        item.accept,
        drafts,
        item.row,
    )
    bench.rows.block[:] = -1
    with capture_logs() as logs:
        results = bench.step(Item(3, accept=(1,), row=0), item, Item(4, Action.OPEN, 2, row=5))
    assert len(logs) == (not isinstance(surprise, BackendError)), "what no backend should raise is logged"
    bench.grammar.surprises.clear()
    assert [r.status for r in results] == [Status.OK, Status.BACKEND_FAILED, Status.OK]
    assert (bench.row(0), bench.row(1), bench.row(5)) == ([2, 3], [STOP], [0, 1])
    after = bench.step(Item(2, accept=(1,), row=0), Item(3, accept=(2,), row=1), Item(1, row=2))
    assert [r.status for r in after[:2]] == [Status.OK, Status.OK]
    assert (bench.row(0), bench.row(1)) == ([2, 3], [3, 4])
    if results[1].detail_value and item.sequence_id == 1:
        assert after[2].status == Status.SEQUENCE_NOT_FOUND
    else:
        assert (after[2].status, bench.row(2)) == (Status.OK, [1, 2])


@pytest.mark.parametrize("surprise", SURPRISES, ids=lambda error: type(error).__name__)
def test_step_when_a_batch_fill_raises_anything_then_its_rows_are_filled_one_by_one(surprise: BaseException) -> None:
    """Which of them it was shows then; here it is none."""
    bench = Bench(slow=False, row_seconds=60.0)
    bench.table.grammars[1] = HeldGrammar.of(1, bench.grammar, bench.grammar)  # type: ignore[arg-type]
    bench.open(1, 0)
    bench.open(2, 0)
    bench.grammar.surprises["batch"] = surprise
    results = bench.step(Item(1, accept=(1,), row=0), Item(2, accept=(1,), row=1))
    assert [r.status for r in results] == [Status.OK, Status.OK]
    assert (bench.row(0), bench.row(1)) == ([2, 3], [2, 3])


def test_step_when_no_row_is_wanted_then_none_is_written() -> None:
    """Also of a sequence in the lane."""
    bench = Bench(at_once=True, row_seconds=60.0)
    bench.rows.block[:] = -1
    bench.open(1)
    assert bench.step(Item(1, accept=(0,)))[0].row == NO_ROW
    assert (bench.rows.block == -1).all()
