"""What a session must answer: every sequence as its grammar and its tokens, and what each item comes to.

Where the daemon has a choice (a row may be late, a sequence may then move to another backend) the model holds every
answer that is right, and keeps those that agree with what came.
Knows nothing about: how items are thought of, daemons.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item, LateIndex, Result, Status
from tests.oracle.reference import NotKnown, Reference, RightGrammar, Row, Tokens, has

__all__ = ["Difference", "Late", "Model", "Outcome", "State", "short"]

_FORCED_LIMIT = 16


@dataclass(frozen=True)
class State:
    """Where a sequence stands."""

    grammar: RightGrammar
    history: Tokens

    @property
    def terminated(self) -> bool:
        return self.grammar.terminated(self.history)


@dataclass(frozen=True)
class Outcome:
    """One right answer to an item.

    Attributes:
        state: where the sequence stands then; None = it is not there.
        rows: from the item's first row on; the rest of the item's rows allow the vocabulary's stop tokens only.
        position: None = any.
        forced: those that a fast item is told of; a slow one is told of none.
    """

    status: Status = Status.OK
    state: State | None = None
    rows: tuple[Row, ...] = ()
    accepted: int = 0
    position: int | None = 0
    terminated: bool = False
    accepting: bool = False
    all_allowed: bool = False
    forced: Tokens = ()
    index: int = -1
    value: int = 0


@dataclass(frozen=True)
class Late:
    """An item that is under way: what was asked, what it may come to, and the position until then."""

    item: Item
    outcomes: tuple[Outcome, ...]
    positions: frozenset[int]

    def is_asked_by(self, item: Item) -> bool:
        """Whether ``item`` only asks what became of this one."""
        return (
            not item.rollback
            and not item.accept
            and tuple(item.drafts) in ((), tuple(self.item.drafts))
            and (item.row < 0 or self.item.row >= 0)
        )


@dataclass
class Known:
    """A sequence: where it stands (or may stand), or its late item."""

    states: tuple[State, ...]
    late: Late | None = None


@dataclass
class Difference:
    """An answer that is none of the right ones."""

    step: int
    item: Item
    result: Result
    states: Sequence[State]
    outcomes: Sequence[Outcome]
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"step {self.step}: {short(self.item)}",
            f"    got {short(self.result)}",
            *("    " + word for word in self.words),
        ]
        lines += [
            f"    {state.grammar}\n    history ({len(state.history)}) {list(state.history)}"
            for state in self.states[:2]
        ]
        return "\n".join(lines)


class Model:
    """The sequences of one session. ``grammars`` by the session's id."""

    def __init__(self, reference: Reference, grammars: dict[int, RightGrammar]) -> None:
        self.reference, self.grammars = reference, grammars
        self.known: dict[int, Known] = {}
        self.lost: set[int] = set()
        """Sequences that were answered wrongly: where they stand is not known."""
        self.counts: Counter[str] = Counter()
        self.longest = 0
        self.step = 0
        self._copied: set[int] = set()
        """Sequences that a fork copied late, or in this step: what comes next may have to wait for that."""

    # -- what an item comes to -------------------------------------------------------------------------------------

    def outcome(self, state: State, item: Item, *, created: bool) -> Outcome:
        """Returns what ``item`` comes to on a sequence that stands at ``state``. Raises NotKnown."""
        grammar, before = state.grammar, state.history
        count = len(before) if item.rollback == ROLLBACK_ALL else item.rollback

        def failed(status: Status, index: int = -1, value: int = 0, accepted: int = 0) -> Outcome:
            if created:
                return Outcome(status, index=index, value=value, accepted=accepted)
            return Outcome(status, state, (), accepted, len(before), state.terminated, index=index, value=value)

        if count > len(before):
            return failed(Status.ROLLBACK_TOO_FAR, value=len(before))
        history, accept = before[: len(before) - count], tuple(item.accept)
        if accept and grammar.terminated(history):
            return failed(Status.SEQUENCE_TERMINATED, value=len(history))
        taken = grammar.takes(history, accept)
        history += accept[:taken]
        if taken < len(accept):
            if grammar.terminated(history):
                return failed(Status.SEQUENCE_TERMINATED, taken, len(history), taken)
            return failed(Status.TOKEN_REJECTED, taken, accept[taken], taken)
        after = State(grammar, history)
        if after.terminated:
            return Outcome(Status.OK, after, (), taken, len(history), terminated=True)
        rows: list[Row] = []
        if item.row >= 0:
            row = grammar.row(history)
            if row is None or not row.any():
                return failed(Status.BACKEND_FAILED if row is None else Status.NO_TOKEN_ALLOWED)
            rows.append(row)
            text = history
            for draft in item.drafts:
                if not grammar.takes(text, (draft,)):
                    break
                text += (draft,)
                if grammar.terminated(text) or (row := grammar.row(text)) is None or not row.any():
                    break
                rows.append(row)
        forced = self._forced(after) if item.want_forced else ()
        return Outcome(Status.OK, after, tuple(rows), taken, len(history), False, *self._flags(grammar, rows), forced)

    def _flags(self, grammar: RightGrammar, rows: Sequence[Row]) -> tuple[bool, bool]:
        if not rows:
            return False, False
        accepting = any(has(rows[0], stop) for stop in grammar.stops)
        count, vocabulary = self.reference.token_count, self.reference.vocabulary
        return accepting, count == vocabulary.vocab_size and bool(np.unpackbits(rows[0].view(np.uint8)).sum() == count)

    def _forced(self, state: State) -> Tokens:
        forced: Tokens = ()
        while len(forced) < _FORCED_LIMIT and not state.grammar.terminated(state.history + forced):
            allowed = state.grammar.allowed(state.history + forced)
            if len(allowed) != 1:
                break
            forced += (allowed[0],)
        return forced

    def _moved(self, late_state: State, item: Item, *, created: bool) -> Outcome | None:
        """Returns what a late item comes to on the other backend, if its grammar has one to switch to."""
        other = late_state.grammar.other
        if other is None:
            return None
        agreed = other.takes((), late_state.history)
        if agreed < len(late_state.history):
            return Outcome(Status.BACKENDS_DISAGREE, None, (), 0, None, index=agreed, value=late_state.history[agreed])
        return self.outcome(State(other, late_state.history), item, created=created)

    # -- a step ----------------------------------------------------------------------------------------------------

    def check(self, items: Sequence[Item], results: Sequence[Result], rows: NDArray[np.int32]) -> list[Difference]:
        """Compares the answer to ``items`` with every right one, and brings the sequences to where they stand then."""
        self.step += 1
        seen: set[int] = set()
        differences = []
        for item, result in zip(items, results, strict=True):
            if item.sequence_id in self.lost:
                continue
            if item.action == Action.FORK and item.source_sequence_id in self.lost:
                self.lost.add(item.sequence_id)
                continue
            try:
                difference = self._check(item, result, rows, seen)
            except NotKnown:
                self.counts["not known by the library"] += 1
                self.known.pop(item.sequence_id, None)
                self.lost.add(item.sequence_id)
                continue
            if difference is not None:
                differences.append(difference)
                self.known.pop(item.sequence_id, None)
                self.lost.add(item.sequence_id)
        return differences

    def _check(self, item: Item, result: Result, rows: NDArray[np.int32], seen: set[int]) -> Difference | None:
        known = self.known.get(item.sequence_id)
        created = item.action in (Action.OPEN, Action.FORK)
        bases, outcomes, may_wait = self._right(item, known, seen)
        if result.status == Status.STEP_DEADLINE:
            words = self._wait(item, result, rows, bases, outcomes, may_wait, known)
            return Difference(self.step, item, result, bases, outcomes, words) if words else None
        judged = [(self._compare(outcome, item, result, rows), outcome) for outcome in outcomes]
        right = [outcome for words, outcome in judged if not words]
        if not right:
            words = min((words for words, _ in judged), key=len, default=["no answer but STEP_DEADLINE is right"])
            return Difference(self.step, item, result, bases, outcomes, words)
        if result.status:
            self.counts[f"answered {result.status.name}"] += 1
        self.counts["rows compared"] += 1 + len(item.drafts) if item.row >= 0 else 0
        if (
            known is not None
            and known.late is not None
            and result.status not in (Status.SEQUENCE_EXISTS, Status.TOKEN_OUT_OF_RANGE)
        ):
            self.counts["late items answered"] += 1
        if result.status in (Status.SEQUENCE_EXISTS, Status.TOKEN_OUT_OF_RANGE, Status.SEQUENCE_NOT_FOUND):
            return None  # the item was not looked at
        if item.action == Action.CLOSE:
            del self.known[item.sequence_id]
            return None
        states = tuple(dict.fromkeys(outcome.state for outcome in right if outcome.state is not None))
        self.longest = max(self.longest, *(len(state.history) for state in states), 0)
        if states:
            self.known[item.sequence_id] = Known(states)
        elif not created or known is not None:
            self.known.pop(item.sequence_id, None)
        return None

    def _right(self, item: Item, known: Known | None, seen: set[int]) -> tuple[Sequence[State], list[Outcome], bool]:
        """Returns where the item's sequence may stand, its right outcomes, and whether it may have to wait for another
        item."""
        sequence_id = item.sequence_id
        own = known.states if known else ()

        def refused(status: Status, index: int = -1, value: int = 0) -> Outcome:
            if known is None:
                return Outcome(status, index=index, value=value)
            if known.late is not None or sequence_id in seen:  # how far the lane is, is not known
                return Outcome(status, own[0], position=None, index=index, value=value)
            return Outcome(status, own[0], (), 0, len(own[0].history), own[0].terminated, index=index, value=value)

        tokens = (*item.accept, *item.drafts)
        wild = next(
            (at for at, token in enumerate(tokens) if not 0 <= token < self.reference.vocabulary.vocab_size), None
        )
        if wild is not None:
            return own, [refused(Status.TOKEN_OUT_OF_RANGE, wild, tokens[wild])], False
        if item.action in (Action.OPEN, Action.FORK):
            if known is not None:
                return own, [refused(Status.SEQUENCE_EXISTS, value=sequence_id)], False
            if item.action == Action.OPEN:
                grammar = self.grammars.get(item.grammar_id)
                if grammar is None:
                    return (), [Outcome(Status.GRAMMAR_NOT_FOUND, value=item.grammar_id)], False
                bases: tuple[State, ...] = (State(grammar, ()),)
                outcomes = [self.outcome(base, item, created=True) for base in bases]
                seen.add(sequence_id)
                return bases, outcomes, False
            source_id = item.source_sequence_id
            source = self.known.get(source_id)
            may_be_gone, may_wait = source is None, source_id in seen or source_id in self._copied
            self._copied.add(source_id)
            bases = source.states if source is not None else ()
            if source is not None and source.late is not None:
                bases = tuple(outcome.state for outcome in source.late.outcomes if outcome.state is not None)
                may_be_gone, may_wait = any(outcome.state is None for outcome in source.late.outcomes), True
            if bases:
                seen.add(sequence_id)
            gone = Outcome(Status.SEQUENCE_NOT_FOUND, value=source_id)
            return bases, [self.outcome(base, item, created=True) for base in bases] + [gone] * may_be_gone, may_wait
        if known is None:  # if a late item of this step was its end, it may have been there still
            still = [Outcome(Status.SEQUENCE_EXISTS, position=None, value=sequence_id)] * (sequence_id in seen)
            return (), [Outcome(Status.SEQUENCE_NOT_FOUND, value=sequence_id), *still], False
        if sequence_id in seen:
            may_wait = known.late is not None or sequence_id in self._copied  # its earlier item may not be begun
            return own, [refused(Status.SEQUENCE_EXISTS, value=sequence_id)], may_wait
        seen.add(sequence_id)
        if item.action == Action.CLOSE:
            return (
                own,
                [Outcome(position=len(state.history)) for state in own]
                if known.late is None
                else [Outcome(position=None)],
                sequence_id in self._copied,  # a fork of it in this step may not be begun
            )
        if known.late is None:
            return own, [self.outcome(state, item, created=False) for state in own], sequence_id in self._copied
        outcomes = []
        for outcome in known.late.outcomes:
            if known.late.is_asked_by(item):
                rows = outcome.rows[: 1 + len(item.drafts)] if item.row >= 0 else ()
                outcomes.append(dataclasses.replace(outcome, rows=rows))
            elif outcome.status or outcome.state is None:
                outcomes.append(dataclasses.replace(outcome, rows=()))  # the answer to the late item comes first
            else:
                outcomes.append(self.outcome(outcome.state, item, created=False))
        return own, outcomes, True

    def _wait(
        self,
        item: Item,
        result: Result,
        rows: NDArray[np.int32],
        bases: Sequence[State],
        outcomes: Sequence[Outcome],
        may_wait: bool,
        known: Known | None,
    ) -> list[str]:
        """Books STEP_DEADLINE; returns what is wrong with it."""
        created, late = item.action in (Action.OPEN, Action.FORK), known.late if known else None
        words = self.compare_rows((), item, rows)
        if result.row_count or result.row != NO_ROW or result.forced or result.accepted_count or result.accepting:
            words.append("it is late, and has rows, tokens or flags")
        self.counts[f"answered late, {LateIndex(result.detail_index).name}"] += 1
        self.counts["late answers"] += 1
        if result.detail_index == LateIndex.NOT_BEGUN:
            return words if may_wait else [*words, "there is nothing that it could wait for"]
        if not bases or item.action == Action.CLOSE:
            return [*words, "nothing of it can be late"]
        if result.detail_index == LateIndex.CLOSED:
            self.known.pop(item.sequence_id, None)
            return (
                words
                if all(base.grammar.spec.when_slow == "fail" for base in bases)
                else [*words, "its grammar does not say fail"]
            )
        if late is not None and late.is_asked_by(item):
            return words if result.position in late.positions else [*words, f"position is not {sorted(late.positions)}"]
        if late is not None:  # it was begun, so the one before it was done, and well
            bases = [one.state for one in late.outcomes if one.status == Status.OK and one.state is not None]
            outcomes = [self.outcome(base, item, created=False) for base in bases]
        positions = frozenset(len(base.history) for base in bases)
        if result.position not in positions:
            words.append(f"position is not {sorted(positions)}")
        moved = [one for base in bases if (one := self._moved(base, item, created=created)) is not None]
        self.known[item.sequence_id] = Known(tuple(bases), Late(item, (*outcomes, *moved), positions))
        return words

    def _compare(self, outcome: Outcome, item: Item, result: Result, rows: NDArray[np.int32]) -> list[str]:
        """Returns every way in which the answer is not ``outcome``."""
        words = []
        wanted = {
            "status": outcome.status,
            "row_count": len(outcome.rows),
            "row": item.row if outcome.rows else NO_ROW,
            "accepted_count": outcome.accepted,
            "accepting": outcome.accepting,
            "all_allowed": outcome.all_allowed,
            "detail_index": outcome.index,
            "detail_value": outcome.value,
        }
        if outcome.position is not None:
            wanted |= {"position": outcome.position, "terminated": outcome.terminated}
        for name, value in wanted.items():
            if getattr(result, name) != value:
                words.append(f"{name} should be {value!r}")
        if result.forced not in ((), outcome.forced):
            words.append(f"forced should be {outcome.forced}")
        return words if words and words[0].startswith("status") else words + self.compare_rows(outcome.rows, item, rows)

    def compare_rows(self, right: Sequence[Row], item: Item, rows: NDArray[np.int32]) -> list[str]:
        """Returns every way in which the rows of ``item`` are not ``right``, and closed behind these."""
        words = []
        if item.row >= 0:
            for position in range(1 + len(item.drafts)):
                row = right[position] if position < len(right) else self.reference.stop_row
                got = rows[item.row + position]
                if not np.array_equal(got, row):
                    extra, missing = bits(got & ~row), bits(row & ~got)
                    words.append(
                        f"row {position} allows {bits(got)} tokens, {bits(row)} are right: "
                        f"{extra} too many, {missing} are missing"
                    )
        return words


def bits(row: NDArray[np.int32]) -> int:
    """Returns how many bits of ``row`` are set."""
    return int(np.unpackbits(np.ascontiguousarray(row).view(np.uint8)).sum())


def short(value: object) -> str:
    """Returns an item, a result or a spec as it is written, without what is as ever."""
    name, said = type(value).__name__, []
    for one in dataclasses.fields(value):  # type: ignore[arg-type]
        content = getattr(value, one.name)
        if one.default is dataclasses.MISSING or content != one.default:
            said.append(
                f"{one.name}={content.name}" if isinstance(content, (Action, Status)) else f"{one.name}={content!r}"
            )
    return f"{name}({', '.join(said)})"
