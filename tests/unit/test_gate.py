"""The reasoning gate against a plain model: text before the end tokens is free, what follows is the grammar's."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from maskd import backends
from maskd.backends.gate import GatedFill, GatedGrammar, GatedMatcher
from maskd.bitmask import allowed_token_ids, row_of, row_of_all_but, row_stride_words
from maskd.errors import InvalidRequestError
from maskd.grammar import GrammarReport, GrammarSpec, ReasoningGate
from tests.conftest import byte_vocabulary

VOCABULARY = byte_vocabulary()
TOKENS, STOP = len(VOCABULARY.tokens), VOCABULARY.stop_token_ids[0]
FREE = set(range(TOKENS)) - {STOP}
A, B, X = b"abx"
CITY = backends.load("llguidance")(VOCABULARY, threads=1).compile(GrammarSpec("regex", "(Paris|London)"))


def gated(*end: int, max_tokens: int | None = None) -> GatedMatcher:
    return GatedGrammar(
        CITY, ReasoningGate(end, max_tokens), TOKENS, VOCABULARY.vocab_size, frozenset({STOP})
    ).matcher()


def allowed(matcher: GatedMatcher) -> set[int]:
    row = np.full(row_stride_words(VOCABULARY.vocab_size), -1, dtype=np.int32)
    matcher.fill_bitmask(row)
    return {token for token in allowed_token_ids(row).tolist() if token < TOKENS}


def test_rows_when_reasoning_then_all_but_stop_tokens_and_padding() -> None:
    """Not even a row with padding: bits past the tokenizer are 0 from the start."""
    row = row_of_all_but([STOP], TOKENS, VOCABULARY.vocab_size)
    assert set(allowed_token_ids(row).tolist()) == FREE
    assert row.dtype == np.int32 and len(row) == row_stride_words(VOCABULARY.vocab_size)


@pytest.mark.parametrize("max_tokens", [None, 0, 1])
def test_accept_when_any_id_is_tried_then_it_is_taken_exactly_where_the_row_allows_it(max_tokens: int | None) -> None:
    """Before the gate, where it must end, and behind it; padding is never allowed."""
    assert VOCABULARY.vocab_size > TOKENS
    for before in ([], [A], [A, B]):
        matcher = gated(A, B, max_tokens=max_tokens)
        if matcher.accept(before) < len(before):
            continue
        row = allowed(matcher)
        for token_id in range(VOCABULARY.vocab_size):
            assert matcher.fork().accept([token_id]) == (token_id in row), token_id
            scratch = np.zeros(row_stride_words(VOCABULARY.vocab_size), dtype=np.int32)
            assert not matcher.fork().advance(token_id, scratch.ctypes.data, scratch.nbytes) or token_id in row, (
                token_id
            )


def test_gate_when_its_tokens_come_then_the_grammar_begins_and_every_rollback_is_exact() -> None:
    matcher = gated(A, B, A, B, X)
    start = allowed(CITY.matcher())  # type: ignore[arg-type]
    assert allowed(matcher) == FREE
    text = [X, A, B, A, B, A, B, X]  # the end is found although its beginning overlaps with itself
    assert matcher.accept(text) == len(text)
    assert matcher.is_open and allowed(matcher) == start
    assert matcher.accept([VOCABULARY.tokens.index(b"Paris"), STOP]) == 2
    assert matcher.is_terminated
    matcher.rollback(3)
    assert not matcher.is_open and not matcher.is_terminated and allowed(matcher) == FREE
    assert matcher.accept([X]) == 1 and allowed(matcher) == start
    matcher.rollback(len(text))
    assert allowed(matcher) == FREE and matcher.accept([A, STOP]) == 1


def test_gate_when_it_is_crossed_in_one_accept_then_the_refused_token_is_the_grammars() -> None:
    matcher = gated(A, B)
    assert matcher.accept([X, A, B, ord("P"), ord("z")]) == 4
    matcher.rollback(4)
    assert matcher.accept([X, A]) == 2 and allowed(matcher) == FREE


def test_budget_when_it_is_spent_then_only_the_end_tokens_are_allowed() -> None:
    """Of an end that has begun, the rest."""
    matcher = gated(A, B, X, max_tokens=3)
    assert matcher.accept([X, X, A]) == 3
    assert allowed(matcher) == {B} and matcher.accept([X]) == 0
    matcher.rollback(1)
    assert allowed(matcher) == FREE
    assert matcher.accept([X]) == 1 and allowed(matcher) == {A}
    assert matcher.accept([A, B, X]) == 3 and matcher.is_open
    assert allowed(gated(A, max_tokens=0)) == {A}


def test_fork_when_reasoning_then_the_two_go_their_own_ways() -> None:
    matcher = gated(A, B)
    matcher.accept([A])
    fork = matcher.fork()
    assert fork.accept([B]) == 1 and fork.is_open
    assert allowed(matcher) == FREE and matcher.accept([X]) == 1 and not matcher.is_open


@pytest.mark.parametrize(("end", "limit"), [((), None), (tuple(range(65)), None), ((1,), -1)])
def test_gate_when_malformed_then_refused(end: tuple[int, ...], limit: int | None) -> None:
    with pytest.raises(InvalidRequestError, match="reasoning"):
        ReasoningGate(end, limit)


@settings(max_examples=200, deadline=None)
@given(
    end=st.lists(st.sampled_from([A, B]), min_size=1, max_size=5), text=st.lists(st.sampled_from([A, B]), max_size=30)
)
def test_end_when_looked_for_then_is_found_where_it_first_stands(end: list[int], text: list[int]) -> None:
    """The automaton against the definition."""
    first = next((at for at in range(len(text)) if text[: at + 1][-len(end) :] == end and at + 1 >= len(end)), None)
    matcher = gated(*end)
    taken = next((count for count, token in enumerate(text) if not matcher.accept([token])), len(text))
    assert matcher.is_open == (first is not None)
    assert taken == (len(text) if first is None else first + 1), "the grammar takes neither a nor b"


class GateMachine(RuleBasedStateMachine):
    """Anything that a sequence can do, by way of ``accept`` and by way of ``advance``; both come to what the definition
    says."""

    END, LIMIT = (A, B, A), 6

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.quick = gated(*self.END, max_tokens=self.LIMIT), gated(*self.END, max_tokens=self.LIMIT)
        self.history: list[int] = []

    @rule(token=st.sampled_from([A, A, B, B, X, STOP, *b"Paris", VOCABULARY.tokens.index(b"London")]))
    def take(self, token: int) -> None:
        before = allowed(self.slow) if not self.slow.is_terminated else set()
        accepted = self.slow.accept([token])
        assert accepted == (token in before)
        row = np.full(row_stride_words(VOCABULARY.vocab_size), -1, dtype=np.int32)
        done = self.quick.advance(token, row.ctypes.data, row.nbytes)
        if done == 2:
            assert {t for t in allowed_token_ids(row).tolist() if t < TOKENS} == allowed(self.quick)
        if not done:
            assert self.quick.accept([token]) == accepted
        if accepted:
            self.history.append(token)

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def back(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.history)))
        self.slow.rollback(count)
        self.quick.rollback(count)
        del self.history[-count:]

    @rule()
    def fork(self) -> None:
        self.slow, self.quick = self.slow.fork(), self.quick.fork()

    @invariant()
    def stands_where_its_history_leads(self) -> None:
        ends = [
            at for at in range(len(self.END), len(self.history) + 1) if tuple(self.history[at - 3 : at]) == self.END
        ]
        inner = CITY.matcher()
        if ends:
            assert inner.accept(self.history[ends[0] :]) == len(self.history) - ends[0]
        assert self.slow.is_open == self.quick.is_open == bool(ends)
        if inner.is_terminated:
            assert self.slow.is_terminated and self.quick.is_terminated
            return
        left = len(self.history) - self.LIMIT
        overlap = next(n for n in (2, 1, 0) if self.history[len(self.history) - n :] == list(self.END[:n]))
        expected = allowed(inner) if ends else {self.END[overlap]} if left >= 0 else FREE  # type: ignore[arg-type]
        assert allowed(self.slow) == allowed(self.quick) == expected


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# -- around a matcher whose calls are counted --------------------------------------------------------------------------


class Counting:
    """Allows the letters of "abc" one after the other, and the stop token behind them."""

    def __init__(self) -> None:
        self.history: list[int] = []
        self.fills: list[int] = []

    @property
    def expected(self) -> int:
        return (*b"abc", STOP)[len(self.history)]

    @property
    def is_terminated(self) -> bool:
        return STOP in self.history

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        self.fills.append(len(self.history))
        row[:] = row_of((self.expected,), VOCABULARY.vocab_size)

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token_id in enumerate(token_ids):
            if self.is_terminated or token_id != self.expected:
                return count
            self.history.append(token_id)
        return len(token_ids)

    def rollback(self, token_count: int) -> None:
        assert 0 < token_count <= len(self.history)
        del self.history[-token_count:]

    def fork(self) -> Counting:
        other = type(self)()
        other.history = self.history.copy()
        return other


class Quick(Counting):
    """Has the short way, which says that it has filled the row, and can be detached."""

    is_detached = False

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        if token_id == STOP or not self.accept((token_id,)):
            return 0
        row = np.ctypeslib.as_array((ctypes.c_int32 * (row_bytes // 4)).from_address(row_address))
        row[:] = row_of((self.expected,), VOCABULARY.vocab_size)
        return 2

    def detach(self) -> None:
        self.is_detached = True


class Around:
    """A grammar of such matchers."""

    report, stop_token_ids = GrammarReport("toy", "asked for"), frozenset({STOP})

    def __init__(self, kind: type[Counting]) -> None:
        self.matcher = kind


def gate_around(kind: type[Counting], *end: int) -> GatedMatcher:
    grammar: Any = Around(kind)
    return GatedGrammar(grammar, ReasoningGate(end), TOKENS, VOCABULARY.vocab_size, frozenset({STOP})).matcher()


def new_row() -> NDArray[np.int32]:
    return np.full(row_stride_words(VOCABULARY.vocab_size), -1, dtype=np.int32)


def advance(matcher: GatedMatcher, token_id: int) -> tuple[int, set[int] | None]:
    """What the short way answers, and the row if it was filled."""
    row = new_row()
    done = matcher.advance(token_id, row.ctypes.data, row.nbytes)
    return done, set(allowed_token_ids(row).tolist()) if done == 2 else None


def test_advance_when_reasoning_goes_on_then_the_row_is_filled_and_at_its_end_it_is_not() -> None:
    matcher = gate_around(Quick, X, X)
    assert advance(matcher, A) == (2, FREE)
    assert advance(matcher, STOP) == (0, None)
    assert advance(matcher, X) == (2, FREE)
    assert advance(matcher, X) == (1, None) and matcher.is_open


def test_advance_when_the_grammar_has_a_short_way_then_it_is_taken_and_its_row_is_the_answer() -> None:
    matcher = gate_around(Quick, X)
    assert matcher.accept([X]) == 1
    assert [advance(matcher, token) for token in (A, A, B)] == [(2, {B}), (0, None), (2, {ord("c")})]
    assert matcher.inner.fills == []


def test_advance_when_the_grammar_has_no_short_way_then_tokens_that_do_not_terminate_are_accepted() -> None:
    matcher = gate_around(Counting, X)
    assert matcher.accept([X]) == 1
    assert [advance(matcher, token) for token in (B, *b"abc", STOP)] == [(0, None)] + [(1, None)] * 3 + [(0, None)]
    assert matcher.inner.history == [*b"abc"], "the stop token is for accept"
    assert matcher.accept([STOP]) == 1 and matcher.is_terminated
    assert advance(matcher, A) == (0, None)


@pytest.mark.parametrize("kind", [Counting, Quick])
def test_rollback_when_tokens_came_by_the_short_way_then_the_gate_closes_only_behind_all_of_them(
    kind: type[Counting],
) -> None:
    matcher = gate_around(kind, X)
    for token in (X, B, A, B):  # the first b is refused
        advance(matcher, token)
    assert (matcher.is_open, matcher.inner.history) == (True, [A, B])
    matcher.rollback(1)
    assert (matcher.is_open, matcher.inner.history) == (True, [A])
    matcher.rollback(1)
    assert (matcher.is_open, matcher.inner.history) == (True, [])
    matcher.rollback(1)
    assert not matcher.is_open


def test_rollback_when_it_is_done_twice_then_the_grammar_undoes_what_is_left() -> None:
    matcher = gate_around(Counting, X)
    assert matcher.accept([B, X, A, B]) == 4
    matcher.rollback(1)
    matcher.rollback(2)
    assert (matcher.is_open, matcher.inner.history) == (False, [])
    assert matcher.accept([X, A]) == 2 and matcher.inner.history == [A]


def test_detach_when_the_grammar_can_then_it_is_told_and_else_nothing_happens() -> None:
    matcher = gate_around(Quick, X)
    matcher.detach()
    assert matcher.inner.is_detached
    gate_around(Counting, X).detach()


def test_end_when_a_long_beginning_of_it_ends_in_a_shorter_one_then_it_is_still_found() -> None:
    """aabaaa fits twice, three tokens apart."""
    matcher = gated(A, A, B, A, A, A, X)
    text = [A, A, B, A, A, A, B, A, A, A, X]
    assert matcher.accept(text) == len(text) and matcher.is_open


class Together:
    """Fills the rows of its matchers one by one, and notes how many there were."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def fill_bitmasks(self, matchers: Sequence[Any], rows: NDArray[np.int32], indices: Sequence[int]) -> None:
        self.counts.append(len(matchers))
        for matcher, index in zip(matchers, indices, strict=True):
            assert isinstance(matcher, Counting), "the backend is given its own matchers"
            matcher.fill_bitmask(rows[index])


def test_fill_when_some_sequences_still_reason_then_the_others_are_filled_together() -> None:
    together, matchers = Together(), [gate_around(Counting, X) for _ in range(4)]
    fill = GatedFill(together)
    rows = np.stack([new_row() for _ in range(5)])
    fill.fill_bitmasks(matchers[:2], rows, [0, 1])
    assert together.counts == [], "a backend is never asked for no rows"
    matchers[1].accept([X])
    matchers[3].accept([X, A])
    rows[:] = -1
    fill.fill_bitmasks(matchers, rows, [4, 3, 2, 0])
    assert together.counts == [2]
    assert [set(allowed_token_ids(rows[at]).tolist()) for at in (4, 3, 2, 0)] == [FREE, {A}, FREE, {B}]
    assert (rows[1] == -1).all()


def test_move_when_any_text_follows_then_it_counts_the_end_tokens_that_stand_at_its_end() -> None:
    """Every pattern of up to five of two tokens, in every text of eight, up to the end of the reasoning."""
    grammar: Any = Around(Counting)
    for end in (end for size in range(1, 6) for end in itertools.product((A, B), repeat=size)):
        gate = GatedGrammar(grammar, ReasoningGate(end), TOKENS, VOCABULARY.vocab_size, frozenset({STOP}))
        for text in itertools.product((A, B), repeat=8):
            state = 0
            for size in range(1, len(text) + 1):
                if state == len(end):
                    break
                state = gate.move(state, text[size - 1])
                assert state == max(n for n in range(min(size, len(end)) + 1) if text[size - n : size] == end[:n])
