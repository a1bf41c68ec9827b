"""Which sequences are slow, and for how long: by a clock that goes only when a library works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from maskd.grammar import WhenSlow
from maskd.sequences import HeldGrammar
from maskd.step import ROLLBACK_ALL, Action, Item, LateIndex, Result, Status
from maskd.worker.slow_lane import LaneJob
from tests.unit import test_sequences
from tests.unit.test_late import Bench, Matcher, ends, late

ROW_SECONDS = 2.0**-9
UNDER_WAY, NOT_BEGUN = late(LateIndex.UNDER_WAY), late(LateIndex.NOT_BEGUN)
Spend = Callable[[Bench, str, float], None]


@pytest.fixture(autouse=True)
def spend(monkeypatch: pytest.MonkeyPatch) -> Spend:
    """Says how long one kind of call takes from now on; all others take no time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: now[0])

    def of(bench: Bench, name: str, seconds: float) -> None:
        def work() -> None:
            now[0] += seconds

        bench.grammar.meanwhile[name] = work

    return of


def quick_bench(*tokens: int, when_slow: WhenSlow = "wait") -> Bench:
    """A bench with sequence 1, which is not slow yet."""
    bench = Bench(slow=False, row_seconds=ROW_SECONDS, when_slow=when_slow)
    bench.open(1, *tokens)
    return bench


def is_slow(bench: Bench, sequence_id: int = 1) -> bool:
    """Whether the items of the sequence run in the lane from now on."""
    result = bench.step(Item(sequence_id))[0]
    bench.lane.work()
    return result.status == Status.STEP_DEADLINE


# -- what makes a grammar slow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick_steps", [15, 16])
def test_steps_when_one_was_slow_then_the_next_sixteen_look_for_the_sequence(spend: Spend, quick_steps: int) -> None:
    """Items are not timed before that: a clock costs more than a row."""
    bench = quick_bench()
    spend(bench, "fill", 2 * ROW_SECONDS)
    bench.step(Item(1, row=0))
    assert not is_slow(bench), "which item it was is not known"
    spend(bench, "fill", 0.0)
    for _ in range(quick_steps - 1):
        bench.step(Item(1, row=0))
    spend(bench, "fill", 2 * ROW_SECONDS)
    bench.step(Item(1, row=0))
    was_found = plain_step(bench, 0).status == Status.STEP_DEADLINE
    assert was_found == (quick_steps == 15)


@pytest.mark.parametrize(
    ("name", "item", "limit"),
    [
        ("fill", Item(1, row=0), ROW_SECONDS),
        ("fill", Item(1, drafts=(0, 1, 2), row=0), ROW_SECONDS),  # of each of its four rows
        ("accept", Item(1, accept=(0,)), ROW_SECONDS + 1e-5),
        ("accept", Item(1, accept=tuple(range(16))), ROW_SECONDS + 16e-5),
        ("rollback", Item(1, rollback=1), ROW_SECONDS),
    ],
)
@pytest.mark.parametrize("is_over", [False, True])
def test_sequence_when_an_item_takes_its_time_then_it_is_slow_only_beyond_that(
    spend: Spend, name: str, item: Item, limit: float, is_over: bool
) -> None:
    """A row's time for each row, and a little for each token."""
    bench = quick_bench()
    if item.rollback:
        bench.step(Item(1, accept=(0,)))
    spend(bench, "fill", 2 * ROW_SECONDS)
    bench.step(Item(1, row=1))  # from here on items are timed
    spend(bench, "fill", 0.0)
    spend(bench, name, limit * (1.001 if is_over else 0.999))
    assert bench.step(item)[0].status == Status.OK
    assert is_slow(bench) == is_over


def test_row_when_it_takes_exactly_its_time_then_its_sequence_is_not_slow(spend: Spend) -> None:
    bench = quick_bench()
    spend(bench, "fill", ROW_SECONDS)
    bench.step(Item(1, row=0))
    spend(bench, "fill", 2 * ROW_SECONDS)
    bench.step(Item(1, row=0))
    assert not is_slow(bench), "the first step was in time, so the second was not timed"
    spend(bench, "fill", ROW_SECONDS)
    bench.step(Item(1, row=0))
    assert not is_slow(bench)


@pytest.mark.parametrize(
    ("matcher_rows", "accept_rows", "slow"), [(0.75, 0.75, False), (0.0, 1.5, True), (1.5, 0.0, True)]
)
@pytest.mark.parametrize(("action", "name"), [(Action.OPEN, "matcher"), (Action.FORK, "fork")])
def test_create_when_it_takes_its_time_then_matcher_and_tokens_are_timed_each_for_itself(
    spend: Spend, action: Action, name: str, matcher_rows: float, accept_rows: float, slow: bool
) -> None:
    """Always, not only after a slow step."""
    bench = quick_bench()
    spend(bench, name, matcher_rows * ROW_SECONDS)
    spend(bench, "accept", accept_rows * ROW_SECONDS)
    bench.step(Item(2, action, 1, source_sequence_id=1, accept=(0,)))
    bench.lane.work()
    bench.step(Item(2))
    spend(bench, "accept", 0.0)
    assert is_slow(bench) == slow


def test_grammar_when_one_sequence_of_it_was_slow_then_all_are_and_others_are_not(spend: Spend) -> None:
    bench = quick_bench()
    bench.open(2)
    bench.open(3, grammar_id=2)
    spend(bench, "fill", 2 * ROW_SECONDS)
    for _ in range(2):
        bench.step(Item(1, row=0))
    spend(bench, "fill", 0.0)
    assert [is_slow(bench, sequence_id) for sequence_id in (1, 2, 3)] == [True, True, False]
    assert ends(bench.step(Item(4, Action.OPEN, 1), Item(5, Action.OPEN, 2))) == [UNDER_WAY, Status.OK]


@pytest.mark.parametrize(("count", "is_in_the_lane"), [(256, False), (257, True)])
@pytest.mark.parametrize("action", [Action.ADVANCE, Action.OPEN])
def test_item_when_it_has_many_tokens_then_it_alone_runs_in_the_lane(
    spend: Spend, action: Action, count: int, is_in_the_lane: bool
) -> None:
    bench = quick_bench()
    item = Item(1 if action == Action.ADVANCE else 2, action, 1, accept=[at % 50 for at in range(count)])
    assert ends(bench.step(item)) == [UNDER_WAY if is_in_the_lane else Status.OK]
    bench.lane.work()
    assert ends(bench.step(Item(item.sequence_id))) == [Status.OK]
    assert not is_slow(bench, item.sequence_id)


def test_sequence_when_there_is_no_lane_then_nothing_is_slow(spend: Spend) -> None:
    """Neither a grammar that is said to be, nor one that was, nor an item of many tokens."""
    bench = test_sequences.Bench()
    grammar = test_sequences.Grammar(bench.faults, test_sequences.STOP)
    for table in (bench.table, bench.long_table):
        table.grammars[5] = HeldGrammar.of(5, grammar, None, slow=True, when_slow="fail")  # type: ignore[arg-type]
    results = bench.step(
        Item(1, Action.OPEN, 5, accept=(4,) * 300, row=0), Item(2, Action.FORK, source_sequence_id=1, row=1)
    )
    assert [result.status for result in results] == [Status.OK] * 2
    results = bench.step(Item(1, accept=(4,) * 300, row=0), Item(2, row=1))
    assert [(result.status, result.position) for result in results] == [(Status.OK, 600), (Status.OK, 300)]


def plain_step(bench: Bench, token_id: int, sequence_id: int = 1) -> Result:
    """One token for the sequence and a row, in the short form that nearly every item has."""
    return bench.step(Item(sequence_id, accept=(token_id,), row=0), plain=True)[0]


def test_plain_item_when_steps_are_timed_then_it_is_timed_as_any_other(spend: Spend) -> None:
    bench = quick_bench()
    spend(bench, "fill", 2 * ROW_SECONDS)
    assert plain_step(bench, 0).status == Status.OK
    assert not is_slow(bench)
    plain_step(bench, 1)
    assert is_slow(bench)


def test_row_when_the_first_step_of_a_session_is_slow_then_its_sequence_is_not(spend: Spend) -> None:
    """What is made for the first time takes longer."""
    bench = Bench(slow=False, row_seconds=ROW_SECONDS)
    spend(bench, "fill", 2 * ROW_SECONDS)
    bench.step(Item(1, Action.OPEN, 1, row=0))
    assert not is_slow(bench)


def test_rows_when_steps_are_timed_then_they_are_filled_one_by_one(spend: Spend) -> None:
    """Else it would not show which of them is slow."""
    bench = Bench(slow=False, row_seconds=ROW_SECONDS)
    bench.table.grammars[1] = HeldGrammar.of(1, bench.grammar, bench.grammar)  # type: ignore[arg-type]
    bench.open(1)
    bench.open(2)
    spend(bench, "fill", 2 * ROW_SECONDS)
    for _ in range(2):
        assert ends(bench.step(Item(1, row=0), Item(2, row=1))) == [Status.OK] * 2
    assert is_slow(bench)


def test_plain_item_when_its_sequence_is_slow_then_it_runs_in_the_lane() -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1)
    assert plain_step(bench, 0).status == Status.STEP_DEADLINE
    bench.lane.work()
    assert bench.step(Item(1, row=0))[0].position == 1 and bench.row(0) == [1, 2]


# -- in the lane -------------------------------------------------------------------------------------------------------


class Shared(Matcher):
    """Shares something with others until it is detached."""

    def detach(self) -> None:
        self.grammar.call("detach")


def counting(bench: Bench, *names: str) -> dict[str, int]:
    """Counts calls from now on."""
    counts = dict.fromkeys(names, 0)

    def count(name: str) -> None:
        counts[name] += 1

    bench.grammar.meanwhile.update({name: lambda name=name: count(name) for name in names})
    return counts


def test_sequence_when_its_grammar_is_slow_then_it_is_detached_once_and_takes_tokens_one_by_one() -> None:
    """A token may take a second, and a slow call must not hold up those on the data path."""
    bench = Bench(row_seconds=0.001)
    bench.grammar.matcher = lambda: Shared(bench.grammar)  # type: ignore[method-assign]
    counts = counting(bench, "detach", "accept")
    bench.open(1, 0, 1, 2)
    assert counts == {"detach": 1, "accept": 3}
    bench.step(Item(1, accept=(3, 4)))
    bench.lane.work()
    assert bench.step(Item(1))[0].position == 5 and counts == {"detach": 1, "accept": 5}


def test_sequence_when_only_its_item_is_long_then_it_is_not_detached() -> None:
    bench = Bench(slow=False, row_seconds=0.001)
    bench.grammar.matcher = lambda: Shared(bench.grammar)  # type: ignore[method-assign]
    counts = counting(bench, "detach", "accept")
    bench.open(1, *(at % 50 for at in range(320)))
    assert counts == {"detach": 0, "accept": 20}


@pytest.mark.parametrize(("action", "name"), [(Action.OPEN, "matcher"), (Action.FORK, "fork")])
def test_create_when_the_grammar_is_slow_then_the_matcher_is_made_in_the_lane(action: Action, name: str) -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1)
    counts = counting(bench, name)
    bench.step(Item(2, action, 1, source_sequence_id=1))
    assert counts == {name: 0}
    bench.lane.work()
    assert counts == {name: 1}


def test_fork_when_its_source_is_in_the_lane_for_a_long_item_then_it_is_made_there() -> None:
    """Also once the item is done, if no one has asked for it."""
    bench = Bench(slow=False, row_seconds=0.001)
    bench.open(1)
    bench.step(Item(1, accept=[at % 50 for at in range(300)]))
    bench.lane.work()
    assert ends(bench.step(Item(2, Action.FORK, source_sequence_id=1))) == [UNDER_WAY]
    bench.lane.work()
    assert bench.step(Item(2))[0].position == 300 and not is_slow(bench, 2)


def test_forced_tokens_when_the_item_runs_in_the_lane_then_none_are_looked_for() -> None:
    """They are a hint, and would make it later still."""
    bench = Bench(row_seconds=0.001)
    bench.open(1)
    bench.step(Item(1, accept=(0,), want_forced=True, row=0))
    bench.lane.work()
    counts = counting(bench, "fill")
    assert bench.step(Item(1, want_forced=True, row=0))[0].forced == () and counts == {"fill": 0}


def test_source_when_the_lane_copies_it_then_its_plain_items_wait(spend: Spend) -> None:
    """Its grammar has become slow since its last item."""
    bench = quick_bench()
    spend(bench, "matcher", 2 * ROW_SECONDS)
    bench.step(Item(2, Action.OPEN, 1))
    for _ in range(16):
        bench.step()  # items are timed no more
    assert ends(bench.step(Item(3, Action.FORK, source_sequence_id=1))) == [UNDER_WAY]
    assert plain_step(bench, 0).status == Status.STEP_DEADLINE


def test_plain_item_when_its_sequence_is_quick_again_then_it_takes_the_short_way() -> None:
    class Short(Matcher):
        def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
            self.grammar.call("advance")
            return self.accept((token_id,))

    bench = Bench(slow=False, row_seconds=0.001)
    bench.grammar.matcher = lambda: Short(bench.grammar)  # type: ignore[method-assign]
    counts = counting(bench, "advance")
    bench.open(1, *(at % 50 for at in range(300)))
    assert plain_step(bench, 0).position == 301 and counts == {"advance": 1}


def test_item_when_the_lane_copies_its_sequence_then_it_waits_for_that_until_the_deadline() -> None:
    bench = Bench(row_seconds=30.0, at_once=True)
    bench.open(1)
    threads: list[threading.Timer] = []

    def start(job: Callable[[Callable[[], None]], Any], mark: int) -> LaneJob:
        work = LaneJob(job, mark)
        threads.append(threading.Timer(0.05, work.run, [lambda: None]))
        threads[-1].start()
        return work

    bench.lane.start = start  # type: ignore[method-assign]
    results = bench.step(Item(2, Action.FORK, source_sequence_id=1, row=0), Item(1, accept=(0,), row=1))
    assert (ends(results), bench.row(0), bench.row(1)) == ([Status.OK] * 2, [0, 1], [1, 2])
    for thread in threads:
        thread.join()


def test_item_when_it_wants_no_row_then_the_lane_makes_none() -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1)
    counts = counting(bench, "fill")
    bench.step(Item(1, accept=(0,)))
    bench.lane.work()
    assert bench.step(Item(1))[0].position == 1 and counts == {"fill": 0}
    bench.step(Item(1, rollback=ROLLBACK_ALL, row=2))
    bench.lane.work()
    assert (bench.step(Item(1, row=2))[0].position, bench.row(2), counts) == (0, [0, 1], {"fill": 1})


def test_job_when_it_makes_several_native_calls_then_it_says_so_before_each_but_the_first() -> None:
    bench = Bench(row_seconds=0.001)
    said: list[str] = []
    for name in ("matcher", "accept", "fill"):
        bench.grammar.meanwhile[name] = lambda name=name: said.append(name)
    bench.step(Item(1, Action.OPEN, 1, accept=(0, 1), row=0))
    bench.lane.jobs.pop().run(lambda: said.append("-"))
    assert said == ["matcher", "-", "accept", "-", "accept", "fill"]


def test_progress_when_the_step_waits_for_the_lane_then_the_data_path_is_not_busy() -> None:
    """A hang in the lane is the lane's. The count goes on, so that no call seems to be the one before."""
    waits: list[tuple[int, int]] = []

    class Watched(LaneJob):
        def wait(self, seconds: float) -> bool:
            waits.append((bench.progress.words[0], bench.progress.words[1]))
            return super().wait(seconds)

    started: list[int] = []

    def start(job: Callable[[Callable[[], None]], Any], mark: int) -> LaneJob:
        started.append(bench.progress.words[0])
        bench.lane.jobs.append(Watched(job, mark))
        return bench.lane.jobs[-1]

    bench = Bench(row_seconds=0.001)
    bench.open(2, grammar_id=2)
    bench.lane.start = start  # type: ignore[method-assign]
    bench.step(Item(1, Action.OPEN, 1))
    before, during, after = started[0], waits[0][0], bench.progress.words[0]
    assert before < during < after and (during - before) % 2 == 1 and (after - before) % 2 == 0
    assert waits[0][1] == bench.progress.words[1] == 1


# -- what is said of a late item ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when_slow", "index"), [("wait", LateIndex.UNDER_WAY), ("fail", LateIndex.CLOSED)])
def test_late_item_when_its_time_is_over_then_the_answer_has_the_limit_in_microseconds(
    when_slow: WhenSlow, index: LateIndex
) -> None:
    bench = Bench(when_slow=when_slow, row_seconds=0.001)
    result = bench.step(Item(1, Action.OPEN, 1, row=0))[0]
    assert result == Result(1, Status.STEP_DEADLINE, detail_index=index, detail_value=1000)
    assert len(bench.table) == (when_slow == "wait") and bench.lane.jobs[0].is_cancelled == (when_slow == "fail")


def test_late_item_when_it_is_done_then_the_answer_is_that_of_a_quick_one() -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    item = Item(1, rollback=1, accept=(0, 1), drafts=(2, 50), row=2)
    assert ends(bench.step(item)) == [UNDER_WAY]
    bench.lane.work()
    bench.rows.block[:] = -1
    result = bench.step(Item(1, drafts=(2, 50), row=5))[0]
    assert result == Result(1, row=5, row_count=2, accepted_count=2, position=2)
    assert [bench.row(row) for row in (5, 6, 7)] == [[2, 3], [3, 4], [63]]
    assert (bench.rows.block[[4, 8]] == -1).all()


@pytest.mark.parametrize("question", [Item(1, row=5), Item(1)])
def test_question_when_it_wants_fewer_rows_then_it_has_those(question: Item) -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    bench.step(Item(1, drafts=(1, 2), row=2))
    bench.lane.work()
    bench.rows.block[:] = -1
    result = bench.step(question)[0]
    wanted = question.row >= 0
    assert (result.status, result.row, result.row_count) == (Status.OK, 5 if wanted else -1, int(wanted))
    assert [(row == -1).all() for row in bench.rows.block[4:7]] == [True, not wanted, True]


@pytest.mark.parametrize(
    "item",
    [Item(1, accept=(1,), row=3), Item(1, rollback=1, row=3), Item(1, drafts=(2,), row=3)],
    ids=["accept", "rollback", "other drafts"],
)
def test_item_when_it_is_no_question_then_it_is_not_begun_before_the_late_one_is_done(item: Item) -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    bench.step(Item(1, drafts=(1,), row=0))
    assert ends(bench.step(item)) == [NOT_BEGUN]
    bench.lane.work()
    assert ends(bench.step(item)) == [UNDER_WAY]
    bench.lane.work()
    assert bench.step(Item(1))[0].position == 1 + len(item.accept) - item.rollback


def test_item_when_the_late_one_before_it_failed_then_it_has_that_answer_and_does_nothing() -> None:
    """An engine that does not wait would otherwise never hear of it."""
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    bench.step(Item(1, accept=(1, 50)))
    bench.lane.work()
    result = bench.step(Item(1, accept=(1,)))[0]
    assert result == Result(1, Status.TOKEN_REJECTED, accepted_count=1, position=1, detail_index=1, detail_value=50)
    assert not bench.lane.jobs and bench.step(Item(1, accept=(1,)))[0].status == Status.STEP_DEADLINE


def test_row_when_the_late_item_had_none_then_asking_for_one_is_an_item_of_its_own() -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    bench.step(Item(1, accept=(1,)))
    assert ends(bench.step(Item(1, row=0))) == [NOT_BEGUN]
    bench.lane.work()
    assert ends(bench.step(Item(1, row=0))) == [UNDER_WAY]
    bench.lane.work()
    assert (ends(bench.step(Item(1, row=0))), bench.row(0)) == ([Status.OK], [2, 3])


@pytest.mark.parametrize("action", [Action.OPEN, Action.FORK])
def test_create_when_it_fails_in_the_lane_then_the_sequence_was_never_there(action: Action) -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1)
    bench.step(Item(2, action, 1, source_sequence_id=1, accept=(0, 50), row=0))
    assert len(bench.table) == 2, "until the engine has asked"
    bench.lane.work()
    fork = bench.step(Item(3, Action.FORK, source_sequence_id=2))[0]
    assert (fork.status, fork.detail_value) == (Status.SEQUENCE_NOT_FOUND, 2)
    assert (ends(bench.step(Item(2, row=0))), bench.row(0)) == ([Status.TOKEN_REJECTED], [63])
    assert len(bench.table) == 1 and ends(bench.step(Item(2))) == [Status.SEQUENCE_NOT_FOUND]


# -- closing, and grammars that go -------------------------------------------------------------------------------------


def test_close_when_the_sequence_has_a_late_item_then_that_is_cancelled() -> None:
    bench = Bench(row_seconds=0.001)
    bench.open(1, 0)
    bench.step(Item(1, accept=(1,), row=0))
    assert bench.step(Item(1, Action.CLOSE)) == [Result(1, position=1)]
    assert [job.is_cancelled for job in bench.lane.jobs] == [True] and len(bench.table) == 0


def test_grammar_when_it_is_dropped_then_its_alternate_goes_with_it_and_sequences_stay() -> None:
    """Twice is no error."""
    bench = quick_bench()
    bench.table.grammars[3] = HeldGrammar.of(3, bench.other, None)  # type: ignore[arg-type]
    bench.table.grammars[1] = bench.table.grammars[1].with_alternate(bench.table.grammars[3])
    for _ in range(2):
        bench.table.drop_grammar(1)
        assert list(bench.table.grammars) == [2]
    bench.table.drop_grammar(2)
    assert bench.table.grammars == {}
    assert bench.step(Item(1, accept=(0,), row=0), Item(2, Action.OPEN, 1)) == [
        Result(1, row=0, row_count=1, accepted_count=1, position=1),
        Result(2, Status.GRAMMAR_NOT_FOUND, detail_value=1),
    ]


# -- moving to another backend -----------------------------------------------------------------------------------------


def switching(*tokens: int) -> Bench:
    """A bench with sequence 1 of a slow grammar that moves to grammar 3, which is quick, when it is late."""
    bench = Bench(when_slow="switch", row_seconds=0.001, at_once=True)
    bench.table.grammars[3] = HeldGrammar.of(3, bench.other, None)  # type: ignore[arg-type]
    bench.table.grammars[1] = bench.table.grammars[1].with_alternate(bench.table.grammars[3])
    bench.open(1, *tokens)
    bench.lane.at_once = False
    return bench


@pytest.mark.parametrize("tokens", [(), (0,)])
def test_switch_when_a_row_is_late_then_the_other_backend_makes_it_from_the_first_token(tokens: Sequence[int]) -> None:
    """And from then on the sequence is quick."""
    bench = switching(*tokens)
    next_token = len(tokens)
    moved: list[int] = []
    bench.grammar.meanwhile["accept"] = lambda: moved.append(-1)
    bench.other.meanwhile["matcher"] = lambda: moved.append(1)
    assert ends(bench.step(Item(1, accept=(next_token,), row=0))) == [UNDER_WAY]
    assert [job.is_cancelled for job in bench.lane.jobs] == [True, False]
    bench.lane.work()
    assert moved == [1], "the slow one is left out"
    assert bench.step(Item(1, row=0))[0].position == next_token + 1
    assert bench.row(0) == [next_token + 1, next_token + 2]
    assert ends(bench.step(Item(1, accept=(next_token + 1,), row=0))) == [Status.OK] and not bench.lane.jobs


def test_fork_when_its_source_was_moved_then_it_is_a_copy_of_what_took_its_place() -> None:
    """Also before the engine has asked for the source."""
    bench = switching(0)
    bench.step(Item(1, accept=(1,), row=0))
    assert [job.mark for job in bench.lane.jobs] == [1, 3]
    bench.lane.work()
    assert ends(bench.step(Item(2, Action.FORK, source_sequence_id=1, row=1))) == [Status.OK]
    assert bench.row(1) == [2, 3] and bench.step(Item(1))[0].position == 2


def test_switch_when_the_other_backend_is_slow_too_then_the_sequence_stays_in_the_lane() -> None:
    bench = switching(0)
    bench.table.grammars[3] = HeldGrammar.of(3, bench.other, None, slow=True)  # type: ignore[arg-type]
    bench.table.grammars[1] = bench.table.grammars[1].with_alternate(bench.table.grammars[3])
    bench.lane.at_once = True
    bench.step(Item(2, Action.OPEN, 1, accept=(0,)))
    bench.lane.at_once = False
    bench.step(Item(2, accept=(1,)))
    bench.lane.work()
    assert bench.step(Item(2))[0].position == 2
    assert plain_step(bench, 2, 2).status == Status.STEP_DEADLINE


def test_switch_when_there_is_no_other_backend_or_only_the_item_is_long_then_it_is_waited_for() -> None:
    bench = Bench(when_slow="switch", row_seconds=0.001)
    assert ends(bench.step(Item(1, Action.OPEN, 1))) == [UNDER_WAY]
    assert [job.is_cancelled for job in bench.lane.jobs] == [False]
    bench = Bench(slow=False, when_slow="switch", row_seconds=0.001)
    bench.table.grammars[3] = HeldGrammar.of(3, bench.other, None)  # type: ignore[arg-type]
    bench.table.grammars[1] = bench.table.grammars[1].with_alternate(bench.table.grammars[3])
    bench.open(1)
    assert ends(bench.step(Item(1, accept=[at % 50 for at in range(300)]))) == [UNDER_WAY]
    assert [job.is_cancelled for job in bench.lane.jobs] == [False]


def test_switch_when_the_other_backend_refuses_the_token_then_the_sequence_goes_on_there() -> None:
    bench = switching(0)
    bench.step(Item(1, accept=(50,), row=0))
    bench.lane.work()
    result = bench.step(Item(1, row=0))[0]
    assert (result.status, result.position, bench.row(0)) == (Status.TOKEN_REJECTED, 1, [63])
    assert (ends(bench.step(Item(1, accept=(1,), row=0))), bench.row(0)) == ([Status.OK], [2, 3])
    assert not bench.lane.jobs


def test_switch_when_the_backends_disagree_then_the_sequence_is_closed_and_says_where() -> None:
    class Other(Matcher):
        allowed = (0, 0)

    bench = switching(0, 1)
    bench.other.matcher = lambda: Other(bench.other)  # type: ignore[method-assign]
    bench.step(Item(1, accept=(2,), row=0))
    bench.lane.work()
    result = bench.step(Item(1, row=0))[0]
    assert (result.status, result.detail_index, result.detail_value) == (Status.BACKENDS_DISAGREE, 1, 1)
    assert bench.row(0) == [63] and len(bench.table) == 0
