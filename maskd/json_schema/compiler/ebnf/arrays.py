"""Arrays as EBNF: their first items one by one, then a repetition.

``contains`` is counted by rules: one for each number of items so far and of those that matched. An item satisfies a
condition or its opposite, so that it has one reading for each. Where that takes too many rules, ``contains`` is left
away; ``uniqueItems`` always is.
Knows nothing about: keywords, other shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from maskd.json_schema.compiler.arrays import PlainArrayRules
from maskd.json_schema.compiler.ebnf.symbols import EbnfSymbols
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.rules import Alternative
from maskd.json_schema.compiler.symbols import Symbols
from maskd.json_schema.compiler.values import ArrayShape, Contains

__all__ = ["EbnfArrayRules"]

_MOST_STATES = 1_000


@dataclass(frozen=True, slots=True)
class _State:
    """What matters of the items so far.

    Attributes:
        count: how many there are, up to the number from which on all counts are alike.
        matched: how many satisfy each ``contains``, up to the number from which on more make no difference.
    """

    count: int
    matched: tuple[int, ...]


class EbnfArrayRules:
    """Writes the rules of array shapes."""

    def __init__(self, reader: SchemaReader, symbols: EbnfSymbols) -> None:
        self._reader, self._symbols, self._plain = reader, symbols, PlainArrayRules(symbols)

    def write(self, name: str, shape: ArrayShape) -> None:
        """Adds the rule ``name`` for ``shape``, which some array has."""
        longest = self._reader.emptiness.longest(shape)
        if shape.unique is not None and not (shape.unique and longest is not None and longest < 2):
            effect = "items may repeat" if shape.unique else "items need not repeat"
            self._symbols.lose(("uniqueItems", "not"), effect)
        if not shape.contains:
            self._plain.write(name, shape, longest)
            return
        counted = _Counted(self._reader, self._symbols, shape, longest)
        if counted.most_states <= _MOST_STATES:
            counted.write(name)
        else:
            self._symbols.lose(("contains", "not"), "any number of items may match it, for it takes too many rules")
            self._plain.write(name, shape, longest)


class _Counted:
    """One array with ``contains``: a rule for each state.

    Attributes:
        most_states: that there can be.
    """

    def __init__(self, reader: SchemaReader, symbols: Symbols, shape: ArrayShape, longest: int | None) -> None:
        self._reader, self._symbols, self._shape, self._longest = reader, symbols, shape, longest
        alike = max(len(shape.prefix), *(contains.start for contains in shape.contains))
        self._last_count = max(alike, shape.low, longest or 0)
        self._names: dict[_State, str] = {}
        self._waiting: list[_State] = []
        self.most_states = self._last_count + 1
        for contains in shape.contains:
            self.most_states *= _largest(contains) + 1

    def write(self, name: str) -> None:
        """Adds the rule ``name``."""
        rules, marks, start = (
            self._symbols.rules,
            self._symbols.punctuation,
            _State(0, (0,) * len(self._shape.contains)),
        )
        found = [Alternative(marks.no_items)] if self._may_end(start) else []
        found += [Alternative(f"{marks.array_start} {item.text}", item.uses) for item in self._items(start)]
        rules.add(name, found)
        while self._waiting:
            state = self._waiting.pop()
            end = [Alternative(marks.array_end)] if self._may_end(state) else []
            more = [Alternative(f"{marks.comma} {item.text}", item.uses) for item in self._items(state)]
            rules.add(self._names[state], end + more)

    def _rule(self, state: _State) -> str:
        if state not in self._names:
            self._names[state] = self._symbols.rules.fresh("i")
            self._waiting.append(state)
        return self._names[state]

    def _may_end(self, state: _State) -> bool:
        enough = zip(state.matched, self._shape.contains, strict=True)
        return state.count >= self._shape.low and all(count >= contains.low for count, contains in enough)

    def _items(self, state: _State) -> Iterator[Alternative]:
        """Yields ways to write one more item and what follows it."""
        if state.count == self._longest:
            return
        nodes = self._reader.nodes
        active = [contains.start <= state.count for contains in self._shape.contains]
        for holds in itertools.product(*((False, True) if is_active else (False,) for is_active in active)):
            parts, matched = [self._shape.item(state.count)], []
            for is_so, is_active, count, contains in zip(
                holds, active, state.matched, self._shape.contains, strict=True
            ):
                if is_active:
                    parts.append(contains.node if is_so else nodes.opposite(contains.node))
                matched.append(min(count + is_so, _largest(contains)))
            too_many = any(
                contains.high is not None and count > contains.high
                for count, contains in zip(matched, self._shape.contains, strict=True)
            )
            node = nodes.all_of(parts)
            if too_many or self._reader.emptiness.node(node):
                continue
            rule = self._symbols.rule(node)
            following = self._rule(_State(min(state.count + 1, self._last_count), tuple(matched)))
            yield Alternative(f"{rule} {following}", (rule, following))


def _largest(contains: Contains) -> int:
    return max(contains.low, 0 if contains.high is None else contains.high + 1)
