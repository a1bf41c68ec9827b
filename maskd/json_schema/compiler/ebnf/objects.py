"""Objects as EBNF: their names in the order of the schema, each at most once, and further members behind them.

A rule stands for what is still to come: some last names, and what is left of the presence formula. When a name comes
or is left out, the formula no longer asks for it. So an expression is derived by a character. A name of which nothing
is asked takes two rules, for a first member and for one behind others.
Counts and ``Exists`` take a rule for each of their states. Where that takes too many, only what is required is kept.
Source: Brzozowski, "Derivatives of regular expressions", 1964.
Knows nothing about: keywords, other shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.ebnf.symbols import EbnfSymbols
from maskd.json_schema.compiler.keys import Key, Keys
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.presence import (
    ALWAYS,
    NEVER,
    And,
    AtLeast,
    Exists,
    Formula,
    Has,
    Leaf,
    Not,
    Or,
    all_of,
    any_of,
    conjuncts,
    holds_without_members,
    leaves,
    negated,
)
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.rules import Alternative
from maskd.json_schema.compiler.values import ObjectShape

__all__ = ["EbnfObjectRules"]

_MOST_STATES = 4_000
_ASKING = ("minProperties", "maxProperties", "dependentRequired", "dependencies", "dependentSchemas", "not")
"""Keywords that ask for more than single names."""


@dataclass(frozen=True, slots=True)
class _State:
    """What is to come.

    Attributes:
        index: of the first name that may still come; the number of names = only further members.
        formula: what has to hold of the members to come.
        is_first: whether there was no member yet.
    """

    index: int
    formula: Formula
    is_first: bool


_Step = tuple[Key | None, Node | None, _State]
"""A member and what its value satisfies, or None and None for a name that is left out; and what is to come then."""


class EbnfObjectRules:
    """Writes the rules of object shapes."""

    def __init__(self, reader: SchemaReader, symbols: EbnfSymbols) -> None:
        self._reader, self._symbols = reader, symbols

    def write(self, name: str, shape: ObjectShape) -> None:
        """Adds the rule ``name`` for ``shape``, which some object has."""
        formula, _ = self._reader.emptiness.presence(shape)
        keys = self._keys(shape, formula)
        required = frozenset(leaf.name for leaf in conjuncts(formula) if isinstance(leaf, Has))
        rest = all_of(part for part in conjuncts(formula) if not isinstance(part, Has))
        written = _Object(self._reader, self._symbols, keys, required)
        states = written.states(rest)
        if states is None:
            self._symbols.lose(_ASKING, "only what is required is asked for, for the rest takes too many rules")
            rest = ALWAYS
            states = written.states(rest)
            assert states is not None
        if keys.classes and _is_deceived(rest):
            self._symbols.lose(_ASKING, "a member counts again if it is repeated")
        self._symbols.is_ordered |= len(keys.named) + bool(keys.classes) > 1
        written.write(name, states)

    def _keys(self, shape: ObjectShape, formula: Formula) -> Keys:
        try:
            return Keys(self._reader, shape, formula)
        except GrammarTooLargeError as error:
            self._symbols.lose(("patternProperties",), f"members may have any name and value: {error.message}")
            return Keys(self._reader, ObjectShape((), formula), formula)


class _Object:
    """One object: its states, and a rule for each."""

    def __init__(self, reader: SchemaReader, symbols: EbnfSymbols, keys: Keys, required: frozenset[str]) -> None:
        self._reader, self._symbols, self._keys, self._required = reader, symbols, keys, required
        self._members: dict[tuple[Key, Node], str] = {}
        self._further: str | None = None

    # -- states ----------------------------------------------------------------------------------------------------

    def states(self, formula: Formula) -> dict[_State, list[_Step]] | None:
        """Returns every state from the start of an object with ``formula``, the start first, and the steps from it;
        None = there are too many."""
        most = _MOST_STATES + 2 * len(self._keys.named)
        waiting = [_State(0, formula, is_first=True)]
        found: dict[_State, list[_Step]] = {}
        while waiting:
            state = waiting.pop()
            if state not in found:
                if len(found) == most:
                    return None
                found[state] = list(self._steps(state))
                waiting += (following for _, _, following in found[state])
        return found

    def _steps(self, state: _State) -> Iterator[_Step]:
        named = self._keys.named
        if state.index == len(named):
            if _counts(state.formula) is None:
                for key in self._keys.classes:
                    yield from self._with_member(key, state, state.index)
            return
        key = named[state.index]
        assert key.name is not None
        yield from self._with_member(key, state, state.index + 1)
        if key.name not in self._required:
            formula = _without(state.formula, key.name)
            if formula != NEVER:
                yield None, None, _State(state.index + 1, formula, state.is_first)

    def _with_member(self, key: Key, state: _State, index: int) -> Iterator[_Step]:
        """Yields ways to write a member of ``key``: one for each set of events that it makes true."""
        asked = [event for event in dict.fromkeys(leaves(state.formula)) if event in key.events]
        for holds in itertools.product((False, True), repeat=len(asked)):
            true = [event for event, is_so in zip(asked, holds, strict=True) if is_so]
            node = self._reader.nodes.all_of((key.node, *(event.node for event in true if isinstance(event, Exists))))
            formula = _with(state.formula, key.name, true)
            if formula != NEVER and not self._reader.emptiness.node(node):
                yield key, node, _State(index, formula, is_first=False)

    # -- rules -----------------------------------------------------------------------------------------------------

    def write(self, name: str, states: dict[_State, list[_Step]]) -> None:
        """Adds the rule ``name`` of the first state, and those of all others."""
        rules, marks = self._symbols.rules, self._symbols.punctuation
        names = {state: rules.fresh("o") for state in states}
        for state, steps in states.items():
            before = "" if state.is_first else f"{marks.comma} "
            found = []
            for key, node, following in steps:
                if key is None or node is None:
                    found.append(Alternative(names[following], (names[following],)))
                else:
                    member = self._member(key, node)
                    found.append(Alternative(f"{before}{member} {names[following]}", (member, names[following])))
            if state.index == len(self._keys.named):
                found += self._ends(state)
            rules.add(names[state], found)
        start = names[next(iter(states))]
        rules.add(name, [Alternative(f"{marks.object_start} {start}", (start,))])

    def _member(self, key: Key, node: Node) -> str:
        if (key, node) not in self._members:
            rules, rule = self._symbols.rules, self._symbols.rule(node)
            text = f"{self._symbols.key(key.keys)} {self._symbols.punctuation.colon} {rule}"
            self._members[key, node] = rules.add(rules.fresh("m"), [Alternative(text, (rule,))])
        return self._members[key, node]

    def _ends(self, state: _State) -> list[Alternative]:
        """Returns how the object ends behind its last name: at once, or after so many further members."""
        marks, counts = self._symbols.punctuation, _counts(state.formula)
        closing = '"}"' if state.is_first else marks.object_end
        found = [Alternative(closing)] if holds_without_members(state.formula) else []
        if counts is None or counts[1] == 0 or not self._keys.classes:
            return found
        low, high = counts
        member = self._any_further()
        if state.is_first:
            low, high = max(0, low - 1), None if high is None else high - 1
        more = "" if high == 0 else f"({marks.comma} {member}){_times(max(low, int(not state.is_first)), high)}"
        return [*found, Alternative(f"{member if state.is_first else ''} {more} {marks.object_end}", (member,))]

    def _any_further(self) -> str:
        if self._further is None:
            members = [self._member(key, key.node) for key in self._keys.classes]
            self._further = self._symbols.rules.add(
                self._symbols.rules.fresh("x"), [Alternative(member, (member,)) for member in members]
            )
        return self._further


def _is_deceived(formula: Formula) -> bool:
    """Whether ``formula`` may hold of members of which several have the same key, and not of the last of them alone."""
    match formula:
        case AtLeast(count=count):
            return count > 1
        case And(parts=parts) | Or(parts=parts):
            return any(map(_is_deceived, parts))
    return isinstance(formula, Exists)


def _counts(formula: Formula) -> tuple[int, int | None] | None:
    """Returns how many members ``formula`` asks for, if it asks for nothing else; the second None = without limit."""
    low, high = 0, None
    for part in conjuncts(formula):
        match part:
            case AtLeast(count=count):
                low = max(low, count)
            case Not(inner=AtLeast(count=count)):
                high = count - 1 if high is None else min(high, count - 1)
            case _:
                return None
    return low, high


def _times(low: int, high: int | None) -> str:
    return ("+" if low == 1 else "*" if low == 0 else f"{{{low},}}") if high is None else f"{{{low},{high}}}"


def _without(formula: Formula, name: str) -> Formula:
    """Returns what remains of ``formula`` if there is no member ``name``."""
    match formula:
        case Has() if formula.name == name:
            return NEVER
        case Not(inner=inner):
            return negated(_without(inner, name))
        case And(parts=parts):
            return all_of(_without(part, name) for part in parts)
        case Or(parts=parts):
            return any_of(_without(part, name) for part in parts)
    return formula


def _with(formula: Formula, name: str | None, events: Sequence[Leaf]) -> Formula:
    """Returns what remains of ``formula`` behind a member ``name`` that makes ``events`` true."""
    match formula:
        case Has() if formula.name == name:
            return ALWAYS
        case Exists() if formula in events:
            return ALWAYS
        case AtLeast(count=count):
            return AtLeast(count - 1) if count > 1 else ALWAYS
        case Not(inner=inner):
            return negated(_with(inner, name, events))
        case And(parts=parts):
            return all_of(_with(part, name, events) for part in parts)
        case Or(parts=parts):
            return any_of(_with(part, name, events) for part in parts)
    return formula
