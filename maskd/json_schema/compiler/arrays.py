"""Arrays as rules.

A plain array is its first items, each the start of an optional tail, and a repetition. With ``contains``, or with items
that are to differ, a parameter counts what was there. An item satisfies a condition or its opposite, so that it has one
reading for each. Few values that are to differ have a bit each. Many are left to a watch.
Knows nothing about: keywords, other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import number_constant, spelled
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.rules import PARAMETER_BITS, Alternative, BitField, Bits, all_hold, any_holds
from maskd.json_schema.compiler.symbols import Symbols
from maskd.json_schema.compiler.values import ArrayShape, Contains
from maskd.json_schema.compiler.watch import ArrayNotes, WatchNotes
from maskd.json_schema.strict_json import Json
from maskd.regular.expression import ANYTHING, NOTHING, Expression, Words, both, complement, words
from maskd.regular.questions import TooManyStatesError, shortest

__all__ = ["ArrayRules"]

_MOST_DIFFERENT = 48
"""Values of which ``uniqueItems`` remembers, by a bit each, which were there."""


class ArrayRules:
    """Writes the rules of array shapes."""

    def __init__(self, reader: SchemaReader, symbols: Symbols, notes: WatchNotes) -> None:
        self._reader, self._symbols, self._notes = reader, symbols, notes

    def write(self, name: str, shape: ArrayShape) -> None:
        """Adds the rule ``name`` for ``shape``, which some array has."""
        longest = self._reader.emptiness.longest(shape)
        must_differ = shape.unique is True and (longest is None or longest > 1)
        if shape.unique is False:
            raise GrammarUnsupportedError(
                "the opposite of uniqueItems is not done; write the schema without it", keyword="uniqueItems"
            )
        values = _Values(self._reader).of(shape, longest) if must_differ else []
        notes = self._notes.arrays[shape] = ArrayNotes([], must_differ or shape.unique is True, values is None)
        if shape.contains or values:
            _Counted(self._reader, self._symbols, notes, shape, longest, values or []).write(name)
        else:
            self._write_plain(name, shape, longest)
            notes.items = [{node} for node in (*shape.prefix, shape.rest)]
        notes.is_endless = longest is None and not values and all(one.high is None for one in shape.contains)

    def _write_plain(self, name: str, shape: ArrayShape, longest: int | None) -> None:
        marks = self._symbols.punctuation
        found = [Alternative(marks.no_items)] if not shape.low else []
        if longest != 0:
            first = self._symbols.rule(shape.item(0))
            tail = self._tail(shape, longest)
            found.append(Alternative(f"{marks.array_start} {first} {tail.text} {marks.array_end}", (first, *tail.uses)))
        self._symbols.rules.add(name, found)

    def _tail(self, shape: ArrayShape, longest: int | None) -> Alternative:
        """Returns the items behind the first, each behind a comma. Works from the last one to the second."""
        last = max(1, len(shape.prefix))
        tail = self._repetition(shape, last, longest)
        for index in range(last - 1, 0, -1):
            if longest is None or index < longest:
                rules, rule = self._symbols.rules, self._symbols.rule(shape.item(index))
                found = [Alternative(f"{self._symbols.punctuation.comma} {rule} {tail.text}", (rule, *tail.uses))]
                if index >= shape.low:
                    found.append(Alternative('""'))
                name = rules.add(rules.fresh("t"), found)
                tail = Alternative(name, (name,))
        return tail

    def _repetition(self, shape: ArrayShape, index: int, longest: int | None) -> Alternative:
        """Returns items ``index`` and on, which are alike."""
        if longest is not None and index >= longest:
            return Alternative("")
        rule = self._symbols.rule(shape.rest)
        low, high = max(0, shape.low - index), "" if longest is None else longest - index
        times = "*" if (low, high) == (0, "") else f"{{{low},{high}}}"
        return Alternative(f"({self._symbols.punctuation.comma} {rule}){times}", (rule,) if low else ())


class _Counted:
    """One array whose parameter counts: items that ``contains`` asks for, items in all, or which values were there."""

    def __init__(
        self,
        reader: SchemaReader,
        symbols: Symbols,
        notes: ArrayNotes,
        shape: ArrayShape,
        longest: int | None,
        different: Sequence[Node],
    ) -> None:
        self._symbols, self._rules, self._nodes = symbols, symbols.rules, reader.nodes
        self._emptiness, self._notes = reader.emptiness, notes
        self._shape, self._longest = shape, longest
        bits = Bits()
        self._different = [(bits.bit(), node) for node in different]
        if different:
            self._longest = len(different) if longest is None else min(longest, len(different))
        self._counters = [(contains, bits.field(_largest(contains))) for contains in shape.contains]
        self._loop_at = max(1, len(shape.prefix), *(contains.start for contains in shape.contains))
        """Items from here on are alike."""
        self._length: BitField | None = None
        if shape.low > self._loop_at or (self._longest is not None and self._longest > self._loop_at):
            self._length = bits.field(max(shape.low, self._longest or 0) - self._loop_at + 1)
        if bits.used > PARAMETER_BITS:
            raise GrammarTooLargeError(
                f"an array counts with {bits.used} bits, and {PARAMETER_BITS} are there; "
                "lower its bounds, or ask for less with contains",
                keyword="contains" if shape.contains else "uniqueItems",
                limit="array_bits",
                value=PARAMETER_BITS,
            )

    # -- rules -----------------------------------------------------------------------------------------------------

    def write(self, name: str) -> None:
        """Adds the rule ``name``."""
        shape, rules, marks = self._shape, self._rules, self._symbols.punctuation
        items = [rules.fresh("i") for _ in range(self._loop_at + 1)]
        ends = [rules.fresh("e") for _ in range(self._loop_at + 1)]
        self._notes.items = [set() for _ in items]
        for index in range(self._loop_at + 1):
            following = ends[min(index + 1, self._loop_at)]
            found = list(self._items(index, following)) if self._longest is None or index < self._limit(index) else []
            rules.add(items[index], found, parametric=True)
            closing = self._closing(index)
            end = [] if closing is None else [Alternative(marks.array_end, (), closing)]
            if found:
                end.append(Alternative(f"{marks.comma} {items[index]}::_", (items[index],), self._may_go_on(index)))
            rules.add(ends[index], end, parametric=True)
        alternatives = [Alternative(f"{marks.array_start} {items[0]}::0", (items[0],))]
        if not shape.low and not any(contains.low for contains in shape.contains):
            alternatives.append(Alternative(marks.no_items))
        rules.add(name, alternatives)

    def _limit(self, index: int) -> int:
        """Returns how many items there may be, as far as it is decided by position; the parameter decides the rest."""
        assert self._longest is not None
        return self._longest if index < self._loop_at or self._length is None else index + 1

    def _items(self, index: int, following: str) -> Iterator[Alternative]:
        active = [(contains, field) for contains, field in self._counters if contains.start <= index]
        cases = [(self._nodes.opposite(contains.node), contains.node) for contains, _ in active]
        for holds, part in self._emptiness.splits(self._shape.item(index), cases):
            changes, conditions = [], []
            for is_so, (contains, field) in zip(holds, active, strict=True):
                if is_so:
                    changes.append(field.counted())
                    conditions.append(field.below(contains.high) if contains.high is not None else "")
                else:
                    conditions.append(self._room_behind(index, contains.low, field))
            if index == self._loop_at and self._length is not None:
                changes.append(self._length.counted())
                if self._longest is not None:
                    conditions.append(self._length.below(self._longest - self._loop_at))
            different: list[tuple[int | None, Node]] = [*self._different] or [(None, self._nodes.anything)]
            for bit, value in different:
                node = self._nodes.all_of((part, value))
                if self._emptiness.node(node):
                    continue
                seen = [] if bit is None else [f"set_bit({bit})"]
                unseen = [] if bit is None else [f"bit_clear({bit})"]
                rule = self._symbols.rule(node)
                self._notes.items[index].add(node)
                yield self._rules.changed(rule, rule, following, [*changes, *seen], all_hold([*conditions, *unseen]))

    def _room_behind(self, index: int, low: int, field: BitField) -> str:
        """Returns when item ``index`` leaves room for those that are missing of ``low``, which ``field`` counts."""
        if self._longest is None or not low:
            return ""
        options = []
        for missing in range(low + 1):
            if index < self._loop_at:
                if self._longest - index > missing:
                    options.append(field.at_least(low - missing))
            elif self._length is not None and self._longest - self._loop_at > missing:
                room = self._length.below(self._longest - self._loop_at - missing)
                options.append(all_hold([field.at_least(low - missing), room]))
        return any_holds(options) if options else ""

    def _closing(self, index: int) -> str | None:
        """Returns when the array may end behind ``index`` items; None = never."""
        conditions = []
        for contains, field in self._counters:
            conditions.append(field.at_least(contains.low) if contains.low else "")
        if index < self._loop_at:
            if index < self._shape.low:
                return None
        elif self._shape.low > self._loop_at:
            assert self._length is not None
            conditions.append(self._length.at_least(self._shape.low - self._loop_at))
        return all_hold(conditions)

    def _may_go_on(self, index: int) -> str:
        """Returns when an item may follow: a comma without one would be a dead end."""
        conditions = []
        if index == self._loop_at and self._length is not None and self._longest is not None:
            conditions.append(self._length.below(self._longest - self._loop_at))
        if self._different:
            conditions.append(f"not(is_ones([0:{len(self._different)}]))")
        return all_hold(conditions)


class _Values:
    """The values that the items of an array can have, if they are few."""

    def __init__(self, reader: SchemaReader) -> None:
        self._reader, self._emptiness = reader, reader.emptiness

    def of(self, shape: ArrayShape, longest: int | None) -> list[Node] | None:
        """Returns the values of the items of ``shape``, at most ``longest`` of them; None = too many, or composite."""
        found = dict[Node, None]()
        prefix = shape.prefix[:longest]
        further = () if longest is not None and longest <= len(shape.prefix) else (shape.rest,)
        try:
            for node in (*prefix, *further):
                for value in self._finite(node):
                    found[self._reader.nodes.constant(value)] = None
        except _TooManyValuesError:
            return None
        return list(found) if len(found) <= _MOST_DIFFERENT else None

    def _finite(self, node: Node) -> list[Json]:
        value = self._reader.value(node)
        if not all(map(self._emptiness.array, value.arrays)) or not all(map(self._emptiness.object, value.objects)):
            raise _TooManyValuesError
        constants: list[Json] = [None] * value.null + [True] * value.true + [False] * value.false
        numbers = map(_number, self._texts(spelled(value.numbers), lambda text: number_constant(_number(text))))
        return [*constants, *numbers, *self._texts(value.strings, lambda text: words((text,)))]

    def _texts(self, expression: Expression, same: Callable[[str], Expression]) -> list[str]:
        """Returns one text of each value of ``expression``; ``same`` returns all texts that mean the same."""
        if isinstance(expression, Words):
            if len(expression.texts) > _MOST_DIFFERENT:
                raise _TooManyValuesError
            return sorted(expression.texts)
        found: list[str] = []
        try:
            while (text := None if expression is NOTHING else shortest(expression)) is not None:
                if len(found) == _MOST_DIFFERENT or expression is ANYTHING:
                    raise _TooManyValuesError
                found.append(text)
                expression = both(expression, complement(same(text)))
        except TooManyStatesError:
            raise _TooManyValuesError from None
        return found


class _TooManyValuesError(Exception):
    """Items have more values than there are bits. Does not leave this module."""


def _largest(contains: Contains) -> int:
    return max(contains.low, 0 if contains.high is None else contains.high + 1)


def _number(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdecimal() else float(text)
