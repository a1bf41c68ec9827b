"""What the ledger tells a daemon of sequences whose items are late: the daemon's own table, and a lane that works when
it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine_adapter.masker.late_rows import await_late
from engine_adapter.masker.ledger import Ledger
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item, LateIndex, Result, Status
from tests.unit.test_late import Bench

SLOW, QUICK = GrammarSpec("regex", "a"), GrammarSpec("regex", "b")


class Engine:
    """A ledger, and the table that is asked what it plans; late items are asked for ``patience`` times, the lane
    working before each."""

    def __init__(self) -> None:
        self.ledger, self.bench = Ledger(), Bench()

    @property
    def held(self) -> set[int]:
        return set(self.bench.table._sequences)

    def step(self, *handles: int, patience: int = 0) -> list[tuple[int, Action]]:
        step = self.ledger.plan(dict.fromkeys(handles, ()), [], {}, 16)
        self.ledger.write_items(step, lambda spec: 1 if spec == SLOW else 2, 16)
        self.ledger.book(step, answered(self.bench, step.items, self.bench.step(*step.items), patience))
        return [(item.sequence_id, item.action) for item in step.items]


def answered(bench: Bench, items: list[Item], results: list[Result], patience: int) -> Any:
    """Returns ``results`` after so many questions."""

    def ask(questions: list[Item], timeout_seconds: float) -> Any:
        bench.lane.work()
        return SimpleNamespace(results=bench.step(*questions), rows=bench.rows.block)

    for _ in range(patience):
        reply: Any = SimpleNamespace(results=results, rows=bench.rows.block)
        results = list(await_late(SimpleNamespace(step=ask), items, reply, slow_seconds=1, step_seconds=1).results)  # type: ignore[arg-type]
    return results


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("action", ["open", "fork"])
def test_close_of_what_is_late_when_it_is_given_up_then_reaches_the_daemon(action: str, is_done: bool) -> None:
    engine = Engine()
    handle = source = engine.ledger.open(SLOW)
    if action == "fork":
        engine.step(source, patience=1)
        handle = engine.ledger.fork(source)
    engine.step(handle)
    assert engine.ledger.get(handle).error is not None and handle in engine.held
    if is_done:
        engine.bench.lane.work()
    engine.ledger.close(handle)
    assert (handle, Action.CLOSE) in engine.step()
    assert engine.held == {source} - {handle}
    assert engine.step() == []


def test_close_of_what_was_not_begun_then_is_not_sent() -> None:
    engine = Engine()
    source = engine.ledger.open(SLOW)
    engine.step(source, patience=1)
    first, second = engine.ledger.fork(source), engine.ledger.fork(source)
    engine.step(first, second)
    assert engine.held == {source, first}
    for handle in (first, second, source):
        engine.ledger.close(handle)
    assert engine.step() == [(first, Action.CLOSE), (source, Action.CLOSE)]
    assert engine.held == set()


def test_close_behind_a_fork_that_is_not_begun_then_is_sent_again_behind_it() -> None:
    bench = Bench()
    bench.open(1)
    items = [
        Item(2, Action.FORK, source_sequence_id=1),
        Item(3, Action.FORK, source_sequence_id=1),
        Item(1, Action.CLOSE),
    ]
    results = bench.step(*items)
    assert [result.detail_index for result in results] == [
        LateIndex.UNDER_WAY,
        LateIndex.NOT_BEGUN,
        LateIndex.NOT_BEGUN,
    ]
    results = answered(bench, items, results, 1)
    assert [result.status for result in results] == [Status.OK] * 3 and set(bench.table._sequences) == {2, 3}


def test_close_that_is_never_begun_then_is_sent_with_the_next_step() -> None:
    ledger = Ledger()
    handle, is_closed = ledger.open(QUICK), False

    def step(*results: Result) -> list[Item]:
        planned = ledger.plan({} if is_closed else {handle: ()}, [], {}, 8)
        ledger.write_items(planned, lambda spec: 1, 8)
        ledger.book(planned, results)
        return planned.items

    step(Result(handle))
    ledger.close(handle)
    is_closed = True
    for _ in range(2):
        items = step(Result(handle, Status.STEP_DEADLINE, detail_index=LateIndex.NOT_BEGUN))
        assert [item.action for item in items] == [Action.CLOSE] and ledger.is_closing
    assert step(Result(handle, Status.SEQUENCE_NOT_FOUND))[0].action == Action.CLOSE
    assert not ledger.is_closing and step() == [], "nothing is closed twice"


def test_fork_of_what_has_failed_then_has_failed() -> None:
    """The daemon went on with its source, which therefore stands elsewhere than the ledger says."""
    engine = Engine()
    source = engine.ledger.open(SLOW)
    engine.step(source)
    fork = engine.ledger.fork(source)
    assert engine.step(fork) == [] and engine.ledger.get(fork).error is engine.ledger.get(source).error
