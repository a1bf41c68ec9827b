"""Thinks of steps: random items in random order, whose tokens are chosen from the rows that the model expects.

Knows nothing about: daemons, what comes back; the model has that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item
from tests.oracle.model import Known, Model, State
from tests.oracle.reference import NotKnown, Tokens

__all__ = ["ROW_CAPACITY", "Driver"]

ROW_CAPACITY = 48
_LIVE = 10
_LONGEST = 500
_LONGEST_SLOW = 60
"""Ambiguous grammars take milliseconds for a new matcher at this length."""


@dataclass
class Habit:
    """How a sequence's tokens are chosen, so that outputs become long, or end, or cross their gate."""

    stops: float
    taste: str  # "any", "short", "punctuation": what is picked of what is allowed
    refused: float
    longest: int


class Driver:
    """Thinks of the steps of one session."""

    def __init__(self, chooser: random.Random, model: Model) -> None:
        self.random, self.model = chooser, model
        self._next_id = 1
        self._habits: dict[int, Habit] = {}
        self._to_close: set[int] = set()
        self._empty = [token_id for token_id, token in enumerate(model.reference.vocabulary.tokens) if not token]

    def items(self) -> list[Item]:
        """Returns the items of the next step."""
        chooser, known = self.random, self.model.known
        view: dict[int, State | None] = {i: one.states[0] if one.late is None else None for i, one in known.items()}
        self._habits = {i: self._habits[i] for i in known}
        items = [Item(i, Action.CLOSE) for i in sorted(self.model.lost - self._to_close)]
        self._to_close |= self.model.lost
        ids = list(known)
        chooser.shuffle(ids)
        busy = chooser.choice([0.3, 0.8, 1.0])
        for sequence_id in ids:
            if chooser.random() > busy:
                continue
            self._about(sequence_id, known[sequence_id], view, items)
        for _ in range(chooser.choices([0, 1, 2, 3], [6, 3, 1, 1])[0] if len(view) >= _LIVE // 2 else 2):
            if len(view) < _LIVE:
                self._create(view, items)
        if items and chooser.random() < 0.03:  # what is no sequence, no grammar, or is named twice
            twice = chooser.choice(items)
            wrong = [
                Item(10**9, accept=(1,)),
                Item(self._new_id(), Action.OPEN, 10**6),
                Item(self._new_id(), Action.FORK, 0, 10**9),
            ]
            if twice.action == Action.ADVANCE:
                wrong.append(Item(twice.sequence_id, accept=(1,)))
            items.append(chooser.choice(wrong))
        return self._placed(items)

    def replay(self, states: Sequence[State]) -> list[Item]:
        """Returns items that open sequences at ``states``: a step of a new session."""
        ids = {grammar: grammar_id for grammar_id, grammar in self.model.grammars.items()}
        items = [Item(self._new_id(), Action.OPEN, ids[state.grammar], accept=state.history, row=0) for state in states]
        self._habits |= {item.sequence_id: self._habit("") for item in items}
        return self._placed(items)

    # -- one sequence ----------------------------------------------------------------------------------------------

    def _about(self, sequence_id: int, one: Known, view: dict[int, State | None], items: list[Item]) -> None:
        chooser, late = self.random, one.late
        if late is not None:
            what = chooser.choices(
                ["ask", "more", "fork", "close", "leave"], [60, 8, 0 if len(view) > _LIVE else 6, 2, 20]
            )[0]
            if what == "ask":
                drafts = chooser.choice([(), tuple(late.item.drafts)]) if late.item.row >= 0 else ()
                row = 0 if late.item.row >= 0 and (drafts or chooser.random() < 0.9) else NO_ROW
                items.append(Item(sequence_id, drafts=drafts, row=row))
            elif what == "more" and (state := late.outcomes[0].state) is not None:
                self._advance(Item(sequence_id), state, view, items)
                view[sequence_id] = None
            elif what == "fork":
                self._fork(sequence_id, view, items)
            elif what == "close":
                items.append(Item(sequence_id, Action.CLOSE))
                del view[sequence_id]
            return
        state = one.states[0]
        habit = self._habits[sequence_id]
        too_long = len(state.history) > habit.longest
        crowded = len(view) > _LIVE
        what = chooser.choices(
            ["go", "fork", "fork and go", "go and fork", "fork and close", "close"],
            [90, *([0, 0, 0, 2] if crowded else [2, 2, 4, 1]), 1 + 40 * too_long + 4 * crowded],
        )[0]
        if what.startswith("fork"):
            self._fork(sequence_id, view, items)
        if what.endswith("close"):
            items.append(Item(sequence_id, Action.CLOSE, row=0 if chooser.random() < 0.1 else NO_ROW))
            del view[sequence_id]
        elif "go" in what:
            self._advance(Item(sequence_id), state, view, items)
            if what == "go and fork":
                fork = self._fork(sequence_id, view, items)
                if chooser.random() < 0.3:
                    self._fork(fork, view, items)

    def _create(self, view: dict[int, State | None], items: list[Item]) -> None:
        chooser, model = self.random, self.model
        if view and chooser.random() < 0.3:
            self._fork(chooser.choice(list(view)), view, items)
            return
        grammar_id = chooser.choice(list(model.grammars))
        sequence_id = self._new_id()
        self._habits[sequence_id] = self._habit(model.grammars[grammar_id].spec.source)
        item = Item(sequence_id, Action.OPEN, grammar_id)
        others = [
            state
            for state in view.values()
            if state is not None and state.grammar.spec is model.grammars[grammar_id].spec
        ]
        if others and chooser.random() < 0.5:  # a replay
            item.accept = others[0].history[: chooser.randint(0, len(others[0].history))]
        self._advance(item, State(model.grammars[grammar_id], ()), view, items, created=True)

    def _fork(self, source_id: int, view: dict[int, State | None], items: list[Item]) -> int:
        """Adds a fork of ``source_id`` as it stands at this place of the step, and returns its id."""
        sequence_id = self._new_id()
        self._habits[sequence_id] = self._habits[source_id]
        item, state = Item(sequence_id, Action.FORK, 0, source_id), view.get(source_id)
        self.model.counts["forks of a late source" if state is None else "forks of a source that is not late"] += 1
        if state is None or self.random.random() < 0.3:
            item.row = 0 if self.random.random() < 0.8 else NO_ROW
            view[sequence_id] = state
            items.append(item)
        else:
            self._advance(item, state, view, items, created=True)
        return sequence_id

    def _habit(self, source: str) -> Habit:
        chooser = self.random
        longest = chooser.choice([40, 120, _LONGEST])
        taste = chooser.choice(["any", "short", "punctuation", "punctuation"])
        longest = min(longest, _LONGEST_SLOW) if "root root" in source else longest
        return Habit(chooser.choice([0.0, 0.02, 0.1, 0.6]), taste, chooser.choice([0.0, 0.05, 0.2]), longest)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # -- one item --------------------------------------------------------------------------------------------------

    def _advance(
        self, item: Item, state: State, view: dict[int, State | None], items: list[Item], *, created: bool = False
    ) -> None:
        """Gives ``item`` a rollback, tokens, drafts and a row, and adds it, unless the library itself does not know
        what follows."""
        chooser, habit, size = self.random, self._habits[item.sequence_id], len(state.history)
        back = chooser.choices(["none", "one", "some", "all", "too far"], [85, 7, 6, 1, 1])[0]
        if back == "none" and (state.terminated or size > habit.longest) and chooser.random() < 0.8:
            back = chooser.choice(["one", "some", "some"])
        some = chooser.randint(0, chooser.choice([min(size, 8), size]))
        wild = size + chooser.randint(1, 9)
        item.rollback = {"none": 0, "one": min(1, size), "some": some, "all": ROLLBACK_ALL, "too far": wild}[back]
        left = () if back == "all" else state.history if back == "too far" else state.history[: size - item.rollback]
        count = chooser.choices([1, 0, chooser.randint(2, 5), chooser.randint(6, 40)], [70, 6, 12, 5])[0]
        again = tuple(item.accept)
        # the same once more, and then another way
        if item.rollback > 0 and back != "too far" and chooser.random() < 0.5:
            again = state.history[len(left) :][: chooser.randint(0, item.rollback)]
        try:
            text = self._tokens(state, left + again, count, habit)
            item.accept = text[len(left) :]
            item.row = 0 if chooser.random() < 0.9 else NO_ROW
            if item.row == 0 and chooser.random() < 0.25:
                begin = left + item.accept[: state.grammar.takes(left, item.accept)]
                item.drafts = self._tokens(state, begin, chooser.randint(1, 6), habit, after_the_end=True)[len(begin) :]
            item.want_forced = chooser.random() < 0.05
            after = self.model.outcome(state, item, created=created).state
        except NotKnown:
            self.model.counts["not known by the library"] += 1
            return
        if after is not None:
            view[item.sequence_id] = after
        items.append(item)

    def _tokens(self, state: State, text: Tokens, count: int, habit: Habit, *, after_the_end: bool = False) -> Tokens:
        """Returns ``text`` with up to ``count`` tokens behind it, mostly allowed ones; the first refused one is the
        last but one."""
        grammar, chooser = state.grammar, self.random
        for _ in range(count):
            if grammar.terminated(text):
                return (
                    (*text, chooser.randrange(self.model.reference.token_count))
                    if after_the_end or chooser.random() < 0.2
                    else text
                )
            if chooser.random() < habit.refused / (1 + count / 4):
                return (*text, self._unlikely(), *([1] * chooser.randint(0, 1)))
            token = self._choice(grammar.allowed(text), state, text, habit)
            if token is None:
                return text
            text = (*text, token)
        return text

    def _choice(self, allowed: Sequence[int], state: State, text: Tokens, habit: Habit) -> int | None:
        chooser, stops, tokens = self.random, state.grammar.stops, self.model.reference.vocabulary.tokens
        gate = state.grammar.spec.reasoning
        if gate is not None and chooser.random() < 0.25:
            end = gate.end_token_ids
            begun = max(k for k in range(len(end)) if text[len(text) - k :] == end[:k])
            if end[begun] in allowed:
                return end[begun]
        ends = sorted(stops.intersection(allowed))
        if ends and (len(allowed) == len(ends) or chooser.random() < habit.stops):
            return chooser.choice(ends)
        others = [token for token in chooser.choices(allowed, k=8) if token not in stops] if allowed else []
        if not others:
            return chooser.choice(ends) if ends else None
        picked = chooser.choices(others, k=1 if habit.taste == "any" else 6)
        if habit.taste == "punctuation":
            return max(picked, key=lambda token: sum(not chr(byte).isalnum() for byte in tokens[token]))
        return min(picked, key=lambda token: len(tokens[token]))

    def _unlikely(self) -> int:
        """Returns an id that is mostly refused: any, padding, special, without bytes, or none at all."""
        chooser, vocabulary = self.random, self.model.reference.vocabulary
        count = len(vocabulary.tokens)
        padding = range(count, vocabulary.vocab_size) or range(count)
        none = [vocabulary.vocab_size, 2**31 - 1]
        kinds: list[Sequence[int]] = [range(count), padding, padding, vocabulary.special_token_ids, self._empty, none]
        return chooser.choice(chooser.choice([kind for kind in kinds if kind]))

    def _placed(self, items: list[Item]) -> list[Item]:
        """Gives the rows numbers, in another order than that of the items; what finds no room does without."""
        chooser, at = self.random, 0
        wanting = [item for item in items if item.row >= 0]
        chooser.shuffle(wanting)
        for item in wanting:
            at += chooser.choice([0, 0, 0, 1])
            if at + 1 + len(item.drafts) > ROW_CAPACITY:
                item.row, item.drafts = NO_ROW, ()
                continue
            item.row = at
            at += 1 + len(item.drafts)
        return items
