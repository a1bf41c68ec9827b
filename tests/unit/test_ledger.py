"""The ledger alone: what it asks of a session, and what it remembers of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from engine_adapter.masker.ledger import Ledger, Step
from maskd.errors import BackendError, InvalidRequestError, MaskdError, NotFoundError, RollbackError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item, Result, Status

DIGITS, LETTERS = GrammarSpec("regex", "[0-9]*"), GrammarSpec("regex", "[a-z]*")
GRAMMARS = {DIGITS: 51, LETTERS: 52}


class Engine:
    """A ledger, and a session in which everything goes well unless ``failing`` says otherwise."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def open(self, *tokens: int, spec: GrammarSpec | None = DIGITS) -> int:
        """Opens a sequence and lets it accept ``tokens``."""
        handle = self.ledger.open(spec)
        self.step({handle: tokens})
        return handle

    def plan(
        self,
        tokens: Mapping[int, int | Sequence[int]] | None = None,
        rows: Sequence[int | None] = (),
        drafts: Mapping[int, Sequence[int]] | None = None,
    ) -> Step:
        return self.ledger.plan(tokens or {}, rows, drafts or {}, 16)

    def write(self, step: Step, item_capacity: int = 16) -> list[Item]:
        self.ledger.write_items(step, GRAMMARS.__getitem__, item_capacity)
        return step.items

    def book(self, step: Step, failing: Mapping[int, Result] | None = None) -> dict[int, MaskdError]:
        if failing is None:
            return self.ledger.book_ok(step)
        results = [failing.get(item.sequence_id, Result(item.sequence_id)) for item in step.items]
        return self.ledger.book(step, results)

    def step(
        self, tokens: Mapping[int, int | Sequence[int]] | None = None, failing: Mapping[int, Result] | None = None
    ) -> list[Item]:
        """One step from plan to booking; returns what was asked."""
        step = self.plan(tokens)
        items = list(self.write(step))
        self.book(step, failing)
        return items

    def history(self, handle: int) -> list[int]:
        return list(self.ledger.get(handle).history)


def closed(handle: int) -> Result:
    """The answer of a library that failed and took the sequence with it."""
    return Result(handle, Status.BACKEND_FAILED, detail_value=1)


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_open_when_sequences_come_then_handles_are_positive_and_never_used_twice() -> None:
    """Nothing is asked of the daemon before a step is about it."""
    engine = Engine()
    first = engine.ledger.open(DIGITS)
    engine.ledger.close(first)
    assert (first, engine.ledger.open(DIGITS)) == (1, 2)
    assert engine.step() == [] and not engine.ledger.standing()


def test_advance_when_a_sequence_is_new_then_it_is_opened_and_from_then_on_advanced() -> None:
    engine = Engine()
    handle = engine.ledger.open(DIGITS)
    assert engine.step({handle: (1, 2)}) == [Item(handle, Action.OPEN, 51, accept=(1, 2))]
    assert engine.step({handle: 3}) == [Item(handle, accept=(3,))], "one token needs no tuple"
    assert engine.step({handle: ()}) == [Item(handle)]
    assert engine.history(handle) == [1, 2, 3]


def test_advance_when_a_sequence_has_no_grammar_then_the_daemon_is_not_asked() -> None:
    engine = Engine()
    free, bound = engine.ledger.open(None), engine.ledger.open(DIGITS)
    step = engine.plan({free: 1, bound: 2}, [free, bound])
    assert dict(step.tokens) == {bound: (2,)} and dict(step.first_row) == {bound: 1}
    assert [item.sequence_id for item in engine.write(step)] == [bound]
    engine.book(step)
    assert engine.ledger.specs() == {DIGITS} and engine.ledger.standing() == {bound: (DIGITS, [2])}


def test_write_items_when_some_sequences_are_new_then_those_come_first() -> None:
    """A fork copies its source as it stood before its own tokens of this step."""
    engine = Engine()
    old = engine.open(1)
    new, fork = engine.ledger.open(LETTERS), engine.ledger.fork(old)
    assert engine.step({old: 2, new: 3, fork: 4}) == [
        Item(new, Action.OPEN, 52, accept=(3,)),
        Item(fork, Action.FORK, source_sequence_id=old, accept=(4,)),
        Item(old, accept=(2,)),
    ]
    assert [engine.history(handle) for handle in (old, new, fork)] == [[1, 2], [3], [1, 4]]


def test_get_when_a_handle_was_closed_or_never_opened_then_not_found() -> None:
    engine = Engine()
    handle = engine.open()
    engine.ledger.close(handle)
    for unknown in (handle, 99):
        for call in (engine.ledger.get, engine.ledger.close, engine.ledger.fork):
            with pytest.raises(NotFoundError, match=f"no sequence {unknown}") as caught:
                call(unknown)
            assert caught.value.metadata["sequence_id"] == str(unknown)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_when_positions_are_drafted_empty_or_free_then_each_has_its_row_or_none() -> None:
    """A position without a sequence, or whose sequence has no grammar, has no row: -1."""
    engine = Engine()
    first, free, last = engine.ledger.open(DIGITS), engine.ledger.open(None), engine.ledger.open(DIGITS)
    step = engine.plan({}, [first, None, free, last], {first: (7, 8), free: (9,)})
    assert step.row_indices.tolist() == [0, 1, 2, -1, -1, -1, 6]
    assert dict(step.first_row) == {first: 0, last: 6}
    assert engine.write(step) == [
        Item(first, Action.OPEN, 51, drafts=(7, 8), row=0),
        Item(last, Action.OPEN, 51, row=6),
    ]


def test_rows_when_a_step_has_those_of_the_last_one_then_the_array_is_the_same_and_else_new() -> None:
    engine = Engine()
    one, two = engine.ledger.open(DIGITS), engine.ledger.open(None)
    first = engine.plan({}, [one, two]).row_indices
    assert engine.plan({}, [one, two]).row_indices is first
    second = engine.plan({}, [two, one]).row_indices
    assert (first.tolist(), second.tolist()) == ([0, -1], [-1, 1])
    assert first.dtype == second.dtype == "int32"


def test_rows_when_there_are_more_than_the_session_has_then_refused_and_nothing_is_taken() -> None:
    engine = Engine()
    handle = engine.open(1, 2)
    engine.ledger.rollback(handle, 1)
    with pytest.raises(InvalidRequestError, match="3 positions; row_capacity is 2") as caught:
        engine.ledger.plan({}, [None, handle], {handle: (7,)}, 2)
    assert caught.value.metadata["field"] == "rows"
    step = engine.ledger.plan({}, [handle], {handle: (7,)}, 2)
    assert dict(step.rollbacks) == {handle: 1}


def test_unfilled_rows_when_sequences_were_not_asked_then_theirs_and_those_of_their_drafts() -> None:
    """Before a session was asked: all."""
    engine = Engine()
    well, ill, rowless = engine.open(), engine.open(), engine.open()
    engine.ledger.fail({ill: BackendError("x"), rowless: BackendError("x")})
    step = engine.plan({rowless: ()}, [well, ill], {ill: (7, 8)})
    assert sorted(step.unfilled_rows) == [0, 1, 2, 3] and step.items == []
    assert [item.sequence_id for item in engine.write(step)] == [well]
    assert step.unfilled_rows == [1, 2, 3]
    step.withdraw()
    assert sorted(step.unfilled_rows) == [0, 1, 2, 3] and step.items == []


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_rollback_when_it_is_asked_for_twice_then_the_next_step_undoes_both_once() -> None:
    """Also in a step that is about nothing else."""
    engine = Engine()
    handle = engine.open(1, 2, 3, 4)
    engine.ledger.rollback(handle, 1)
    engine.ledger.rollback(handle, 2)
    assert engine.step() == [Item(handle, rollback=3)]
    assert engine.history(handle) == [1]
    assert engine.step() == [] and engine.step({handle: 5}) == [Item(handle, accept=(5,))]
    assert engine.history(handle) == [1, 5]


def test_rollback_when_it_goes_too_far_then_refused_and_nothing_is_taken() -> None:
    engine = Engine()
    handle = engine.open(1, 2)
    with pytest.raises(RollbackError, match=f"sequence {handle} has 2 tokens; 3 were to be undone"):
        engine.ledger.rollback(handle, 3)
    engine.ledger.rollback(handle, 2)
    assert engine.step() == [Item(handle, rollback=2)] and engine.history(handle) == []


# -- forks -------------------------------------------------------------------------------------------------------------


def test_fork_when_the_next_step_is_not_about_it_then_it_is_forked_all_the_same_and_once() -> None:
    """Later the source would stand elsewhere."""
    engine = Engine()
    source = engine.open(1)
    fork = engine.ledger.fork(source)
    assert engine.step({source: 2}) == [
        Item(fork, Action.FORK, source_sequence_id=source),
        Item(source, accept=(2,)),
    ]
    assert engine.history(fork) == [1] and engine.step() == []


def test_fork_when_it_was_made_then_it_does_not_follow_its_source_any_more() -> None:
    engine = Engine()
    source = engine.open(1)
    fork = engine.ledger.fork(source)
    engine.step({source: 2, fork: 3})
    engine.ledger.close(source)
    assert engine.ledger.standing() == {fork: (DIGITS, [1, 3])}
    engine.ledger.rollback(fork, 2)
    assert engine.step({fork: 4}) == [Item(fork, rollback=2, accept=(4,)), Item(source, Action.CLOSE)]
    assert engine.ledger.standing() == {fork: (DIGITS, [4])}


def test_fork_when_a_step_was_not_answered_then_the_next_one_forks_again_but_undoes_nothing_twice() -> None:
    """The unanswered step holds its rollbacks; it is sent again as it is."""
    engine = Engine()
    source = engine.open(1, 2)
    fork = engine.ledger.fork(source)
    engine.ledger.rollback(source, 1)
    first, second = engine.plan(), engine.plan()
    assert (set(first.tokens), dict(first.rollbacks)) == ({source, fork}, {source: 1})
    assert (set(second.tokens), dict(second.rollbacks)) == ({fork}, {})


def test_fork_when_the_session_does_not_hold_its_source_then_it_is_opened_from_its_tokens() -> None:
    """As after the death of a worker; the fork of a fork as well."""
    engine = Engine()
    source = engine.open(1, 2, 3)
    fork = engine.ledger.fork(source)
    grandchild = engine.ledger.fork(fork)
    engine.ledger.rollback(fork, 2)
    engine.ledger.stand_again(())
    assert engine.step({fork: 9}) == [
        Item(fork, Action.OPEN, 51, accept=(1, 9)),
        Item(grandchild, Action.OPEN, 51, accept=(1, 2, 3)),
    ]
    assert (engine.history(fork), engine.history(grandchild)) == ([1, 9], [1, 2, 3])
    assert engine.step({fork: 5}) == [Item(fork, accept=(5,))]


def test_fork_when_its_source_is_closed_first_then_it_keeps_the_tokens_and_joins_when_it_is_asked() -> None:
    engine = Engine()
    source = engine.open(1, 2)
    idle, undoing = engine.ledger.fork(source), engine.ledger.fork(source)
    engine.ledger.rollback(undoing, 1)
    engine.ledger.close(source)
    assert engine.step() == [Item(undoing, Action.OPEN, 51, accept=(1,)), Item(source, Action.CLOSE)]
    assert engine.step({idle: 3}) == [Item(idle, Action.OPEN, 51, accept=(1, 2, 3))]
    assert (engine.history(undoing), engine.history(idle)) == ([1], [1, 2, 3])


def test_close_when_forks_of_others_are_waiting_then_they_are_left_alone() -> None:
    engine = Engine()
    source, other = engine.open(1), engine.open(2)
    fork = engine.ledger.fork(source)
    engine.ledger.close(other)
    assert engine.step() == [Item(fork, Action.FORK, source_sequence_id=source), Item(other, Action.CLOSE)]


# -- closing -----------------------------------------------------------------------------------------------------------


def test_close_when_the_daemon_holds_the_sequence_then_the_next_step_tells_it_once() -> None:
    engine = Engine()
    held, unheld = engine.open(), engine.ledger.open(DIGITS)
    assert not engine.ledger.is_closing
    engine.ledger.close(held)
    engine.ledger.close(unheld)
    assert engine.ledger.is_closing
    assert engine.step() == [Item(held, Action.CLOSE)]
    assert not engine.ledger.is_closing and engine.step() == []


@pytest.mark.parametrize("status", [Status.OK, Status.SEQUENCE_NOT_FOUND])
def test_close_when_it_was_booked_then_a_new_session_hears_nothing_of_it(status: Status) -> None:
    """Also if the step with the close is sent again, or the sequence was not there."""
    engine = Engine()
    handle = engine.open()
    engine.ledger.close(handle)
    step = engine.plan()
    assert len(engine.write(step)) == 1
    engine.book(step, {handle: Result(handle, status, detail_value=handle)})
    assert engine.write(step) == []


def test_closes_when_a_step_has_no_room_for_all_then_the_rest_wait() -> None:
    """Each is sent once, also if the step is sent twice."""
    engine = Engine()
    handles = [engine.open() for _ in range(5)]
    for handle in handles[1:]:
        engine.ledger.close(handle)
    step = engine.plan({handles[0]: 1})
    for _ in range(2):
        assert [item.sequence_id for item in engine.write(step, item_capacity=3)] == handles[:3]
    engine.book(step)
    assert engine.ledger.is_closing
    assert engine.step() == [Item(handle, Action.CLOSE) for handle in handles[3:]]
    assert not engine.ledger.is_closing and engine.step() == []


@pytest.mark.parametrize("is_open", [False, True])
def test_close_when_the_step_is_on_its_way_then_the_answer_is_booked_and_the_next_step_closes(is_open: bool) -> None:
    """The daemon holds the sequence, whether the engine still wants it or not."""
    engine = Engine()
    handle = engine.open() if is_open else engine.ledger.open(DIGITS)
    step = engine.plan({handle: 1})
    engine.write(step)
    assert engine.ledger.is_asking(step)
    engine.ledger.close(handle)
    assert not engine.ledger.is_asking(step)
    assert engine.book(step) == {}
    assert engine.step() == [Item(handle, Action.CLOSE)]


def test_close_when_the_answer_on_its_way_says_that_the_sequence_is_gone_then_nothing_is_closed() -> None:
    engine = Engine()
    handle = engine.open()
    step = engine.plan({handle: 1})
    engine.write(step)
    engine.ledger.close(handle)
    assert list(engine.book(step, {handle: closed(handle)})) == [handle]
    assert engine.step() == []


# -- errors ------------------------------------------------------------------------------------------------------------


def test_book_when_a_token_is_refused_then_the_error_is_returned_and_the_sequence_goes_on() -> None:
    engine = Engine()
    good, bad = engine.open(1), engine.open(2)
    step = engine.plan({good: 3, bad: 4})
    engine.write(step)
    errors = engine.book(step, {bad: Result(bad, Status.TOKEN_REJECTED, detail_value=4)})
    assert {handle: error.reason for handle, error in errors.items()} == {bad: "TOKEN_REJECTED"}
    assert (engine.history(good), engine.history(bad)) == ([1, 3], [2])
    assert engine.step({bad: 5}) == [Item(bad, accept=(5,))]


def test_book_when_all_is_well_then_no_errors_are_returned() -> None:
    engine = Engine()
    handle = engine.open()
    step = engine.plan({handle: 1})
    engine.write(step)
    assert step.unasked == [] and engine.book(step) == {}


def test_book_when_a_sequence_was_closed_by_the_daemon_then_it_has_failed_for_good() -> None:
    """Each further step answers that error and asks nothing; nor is there anything to close."""
    engine = Engine()
    handle, other = engine.open(1), engine.open(2)
    engine.step({handle: 3}, {handle: closed(handle)})
    error = engine.ledger.get(handle).error
    assert isinstance(error, BackendError)
    step = engine.plan({handle: 4, other: 5})
    assert [item.sequence_id for item in engine.write(step)] == [other]
    assert engine.ledger.is_asking(step)
    assert engine.book(step) == {handle: error}
    assert not engine.ledger.is_asking(engine.plan({handle: 4}))
    assert engine.ledger.standing() == {other: (DIGITS, [2, 5])} and engine.ledger.specs() == {DIGITS}
    engine.ledger.close(handle)
    assert engine.step() == []


def test_errors_when_a_failed_sequence_was_closed_meanwhile_then_nothing_is_said_of_it() -> None:
    engine = Engine()
    handle = engine.open()
    engine.ledger.fail({handle: BackendError("x")})
    step = engine.plan({handle: 1})
    engine.write(step)
    engine.ledger.close(handle)
    assert engine.book(step) == {} and engine.book(step, {}) == {}


def test_fail_when_a_sequence_has_failed_already_then_its_first_error_stays() -> None:
    engine = Engine()
    handle, first, second = engine.open(), BackendError("first"), BackendError("second")
    engine.ledger.fail({handle: first})
    engine.ledger.fail({handle: second})
    assert engine.ledger.get(handle).error is first


def test_refuse_when_a_grammar_is_refused_then_its_sequences_end_and_no_others() -> None:
    engine = Engine()
    bound, other, free = engine.open(), engine.open(spec=LETTERS), engine.open(spec=None)
    error = BackendError("x")
    engine.ledger.refuse({DIGITS: error})
    assert [engine.ledger.get(handle).error for handle in (bound, other, free)] == [error, None, None]
    assert engine.ledger.specs() == {LETTERS}


def test_fail_all_when_there_is_no_way_on_then_all_end_but_those_without_a_grammar() -> None:
    engine = Engine()
    bound, free = engine.open(), engine.open(spec=None)
    error = BackendError("x")
    engine.ledger.fail_all(error)
    assert [engine.ledger.get(handle).error for handle in (bound, free)] == [error, None]
    assert engine.ledger.specs() == set()


# -- a new session -----------------------------------------------------------------------------------------------------


def test_standing_when_a_session_is_lost_then_what_it_held_is_to_be_given_to_the_next() -> None:
    """Not what was never opened, has failed, or has no grammar."""
    engine = Engine()
    held, failed = engine.open(1, 2, spec=LETTERS), engine.open(3)
    engine.open(spec=None)
    unopened = engine.ledger.open(DIGITS)
    engine.ledger.fail({failed: BackendError("x")})
    assert engine.ledger.standing() == {held: (LETTERS, [1, 2])}
    assert engine.ledger.specs() == {LETTERS, DIGITS}
    engine.ledger.stand_again([held])
    assert engine.step({held: 4, unopened: 5}) == [
        Item(unopened, Action.OPEN, 51, accept=(5,)),
        Item(held, accept=(4,)),
    ]


def test_step_when_it_is_sent_again_to_a_new_session_then_it_asks_the_same_of_restored_sequences() -> None:
    """What could not be restored is opened from its history by the step itself, its rollback included."""
    engine = Engine()
    restored, missing = engine.open(1, 2, 3), engine.open(4, 5, 6)
    for handle in (restored, missing):
        engine.ledger.rollback(handle, 2)
    step = engine.plan({restored: 7, missing: 8})
    engine.write(step)
    step.withdraw()
    engine.ledger.stand_again({restored})
    assert engine.write(step) == [
        Item(missing, Action.OPEN, 51, accept=(4, 8)),
        Item(restored, rollback=2, accept=(7,)),
    ]
    engine.book(step)
    assert (engine.history(restored), engine.history(missing)) == ([1, 7], [4, 8])


# -- bad input of one sequence -----------------------------------------------------------------------------------------

EDGES = [0, -(1 << 31), (1 << 31) - 1]


@pytest.mark.parametrize("token_id", EDGES)
def test_plan_when_a_token_is_at_the_edge_of_int32_then_it_is_asked(token_id: int) -> None:
    """One alone and one of several are the same, whatever library made the integer."""
    engine = Engine()
    handle = engine.open()
    for given in (token_id, [token_id], np.int64(token_id), np.array([token_id])):
        step = engine.plan({handle: given})
        assert tuple(step.tokens[handle]) == (token_id,) and not step.refused


@pytest.mark.parametrize("token_id", [1 << 31, -(1 << 31) - 1, 1 << 40])
def test_plan_when_a_token_is_beyond_int32_then_its_sequence_alone_is_refused(token_id: int) -> None:
    engine = Engine()
    bad, good = engine.open(1), engine.open(2)
    for given in (token_id, [token_id], [3, token_id]):
        step = engine.plan({bad: given, good: 4}, [bad, good])
        assert step.tokens[bad] == [] or step.tokens[bad] == ()
        assert [item.sequence_id for item in engine.write(step)] == [good]
        errors = engine.book(step)
        assert list(errors) == [bad] and isinstance(errors[bad], InvalidRequestError)
        assert errors[bad].metadata["field"] == "tokens" and errors[bad].metadata["sequence_id"] == str(bad)
    assert engine.history(bad) == [1] and engine.history(good) == [2, 4, 4, 4]


def test_plan_when_a_draft_is_beyond_int32_then_its_rows_stay_and_its_sequence_alone_is_refused() -> None:
    """The rows of the others keep their places."""
    engine = Engine()
    bad, good = engine.open(1), engine.open(2)
    step = engine.plan({bad: 3, good: 4}, [bad, good], {bad: [5, 1 << 31]})
    assert dict(step.first_row) == {bad: 0, good: 3} and list(step.drafts[bad]) == [0, 0]
    assert [item.sequence_id for item in engine.write(step)] == [good]
    assert step.unfilled_rows == [0, 1, 2]
    assert engine.book(step)[bad].metadata == {"field": "drafts", "sequence_id": str(bad), "index": "1"}


@pytest.mark.parametrize("given", ["ab", 1.5, None, [1, "a"]])
def test_plan_when_tokens_are_no_integers_then_nothing_is_taken(given: Any) -> None:
    engine = Engine()
    handle = engine.open(1, 2)
    engine.ledger.rollback(handle, 1)
    for tokens, drafts in (({handle: given}, {}), ({}, {handle: given})):
        with pytest.raises(InvalidRequestError, match=f"sequence {handle}"):
            engine.plan(tokens, [handle], drafts)
    assert engine.step() == [Item(handle, rollback=1)]


def test_plan_when_a_sequence_stands_twice_in_rows_then_refused() -> None:
    engine = Engine()
    handle, free = engine.open(1), engine.ledger.open(None)
    with pytest.raises(InvalidRequestError, match="twice"):
        engine.plan({}, [handle, handle])
    assert engine.plan({}, [free, free]).row_indices.tolist() == [-1, -1], "rows without a mask are no one's"


def test_rollback_when_a_step_is_under_way_then_the_next_plan_refuses_that_sequence_alone() -> None:
    """Only when the step is booked is it known how many tokens there are."""
    engine = Engine()
    bad, good = engine.open(1), engine.open(2)
    engine.ledger.rollback(bad, 5, is_settled=False)
    step = engine.plan({bad: 3, good: 4})
    assert [item.sequence_id for item in engine.write(step)] == [good]
    errors = engine.book(step)
    assert list(errors) == [bad] and isinstance(errors[bad], RollbackError)
    assert engine.step({bad: 3}) == [Item(bad, accept=(3,))], "it is taken as never asked"


def test_rollback_when_a_sequence_has_no_grammar_or_has_failed_then_nothing_is_checked() -> None:
    """There is no history to check it against, and the error of a failed sequence is told anyway."""
    engine = Engine()
    free, failed = engine.ledger.open(None), engine.open(1)
    engine.step({failed: 2}, {failed: closed(failed)})
    engine.ledger.rollback(free, 9)
    engine.ledger.rollback(failed, 9)
    assert engine.step() == []


def test_take_back_when_a_step_was_not_sent_then_the_next_one_asks_the_same() -> None:
    engine = Engine()
    handle, gone, closing = engine.open(1, 2, 3), engine.open(4), engine.open(5)
    engine.ledger.rollback(handle, 2)
    engine.ledger.rollback(gone, 1)
    engine.ledger.close(closing)
    step = engine.plan({handle: 6})
    engine.ledger.close(gone)
    engine.ledger.take_back(step)
    assert engine.step() == [Item(handle, rollback=2), Item(closing, Action.CLOSE), Item(gone, Action.CLOSE)]
    assert engine.history(handle) == [1] and engine.step() == []


def test_book_when_a_fork_fails_or_is_refused_then_it_stands_where_its_source_stood() -> None:
    """The source goes on; the fork opens later from the tokens that both had."""
    engine = Engine()
    source = engine.open(1)
    failed, refused = engine.ledger.fork(source), engine.ledger.fork(source)
    step = engine.plan({source: 2, failed: 3, refused: 1 << 31})
    engine.write(step)
    rejected = Result(failed, Status.TOKEN_REJECTED, detail_index=0, detail_value=3)
    assert set(engine.book(step, {failed: rejected})) == {failed, refused}
    assert [engine.history(handle) for handle in (source, failed, refused)] == [[1, 2], [1], [1]]
    assert engine.step() == [], "neither is due any more"
    for handle in (failed, refused):
        assert engine.step({handle: 4}) == [Item(handle, Action.OPEN, 51, accept=(1, 4))]


def test_close_when_a_rollback_waits_then_the_closed_sequence_is_not_asked() -> None:
    engine = Engine()
    handle = engine.open(1)
    engine.ledger.rollback(handle, 1)
    engine.ledger.close(handle)
    assert engine.step() == [Item(handle, Action.CLOSE)]
