"""Arrays as rules.

A plain array is its first items, each the start of an optional tail, and a repetition. With ``contains``, or with items
that are to differ, a parameter counts what was there. An item satisfies a condition or its opposite, so that it has one
reading for each. It may come only if the array can still be completed behind it (``contents``). Few values that are
to differ have a bit each. Many are left to a watch.
Knows nothing about: keywords, other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.json_schema.compiler.contents import Contents, Kind, Room
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

__all__ = ["ArrayRules", "PlainArrayRules"]

_MOST_DIFFERENT = 48
"""Values of which ``uniqueItems`` remembers, by a bit each, which were there."""
_MOST_CONDITIONS = 64


class PlainArrayRules:
    """Writes the rules of array shapes of which nothing is counted."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols

    def write(self, name: str, shape: ArrayShape, longest: int | None) -> None:
        """Adds the rule ``name`` for arrays of up to ``longest`` items; None = without limit."""
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


class ArrayRules:
    """Writes the rules of array shapes."""

    def __init__(self, reader: SchemaReader, symbols: Symbols, notes: WatchNotes) -> None:
        self._reader, self._symbols, self._notes = reader, symbols, notes
        self._plain = PlainArrayRules(symbols)

    def write(self, name: str, shape: ArrayShape) -> None:
        """Adds the rule ``name`` for ``shape``, which some array has."""
        longest = self._reader.emptiness.longest(shape)
        must_differ = shape.unique is True and (longest is None or longest > 1)
        if shape.unique is False:
            raise GrammarUnsupportedError(
                "the opposite of uniqueItems is not done; write the schema without it", keyword="uniqueItems"
            )
        values = _Values(self._reader).of(shape, longest) if must_differ else []
        if values:
            self._check_supply(shape, values)
        notes = self._notes.arrays[shape] = ArrayNotes([], must_differ or shape.unique is True, values is None)
        if shape.contains or values:
            _Counted(self._reader, self._symbols, notes, shape, longest, values or []).write(name)
        else:
            self._plain.write(name, shape, longest)
            notes.items = [{node} for node in (*shape.prefix, shape.rest)]
        notes.is_endless = longest is None and not values and all(one.high is None for one in shape.contains)

    def _check_supply(self, shape: ArrayShape, values: Sequence[Node]) -> None:
        """Raises GrammarUnsupportedError if different items of ``values`` may run out before the array may end."""
        nodes = self._reader.nodes

        def number_of(node: Node) -> int:
            return sum(not self._reader.emptiness.node(nodes.all_of((node, value))) for value in values)

        is_enough = all(number_of(shape.item(index)) > index for index in range(shape.low))
        is_enough &= all(number_of(contains.node) >= contains.low for contains in shape.contains)
        is_enough &= not (shape.prefix and any(contains.low for contains in shape.contains))
        limited = [contains for contains in shape.contains if contains.high is not None]
        if limited and shape.low > 1:
            others = number_of(nodes.all_of((shape.rest, nodes.opposite(limited[0].node))))
            is_enough &= len(limited) == 1 and not shape.prefix and others + (limited[0].high or 0) >= shape.low
        if not is_enough:
            raise GrammarUnsupportedError(
                "uniqueItems, with the items that the schema asks for, may run out of different values; "
                "lower minItems or minContains, or leave uniqueItems out",
                keyword="uniqueItems",
            )


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
        self._contents = Contents(self._nodes, self._emptiness.node, self._emptiness.splits, shape, self._longest)
        if not self._contents.is_known:
            raise GrammarTooLargeError(
                "an array counts too many items; lower minContains and maxContains, or use fewer contains",
                limit="array_counts",
                keyword="contains",
            )
        self._counters = [bits.field(_largest(contains)) for contains in shape.contains]
        self._loop_at = self._contents.loop_at
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
            lasting = {
                kind: (node, condition)
                for kind, node in self._contents.kinds(index)
                if (condition := self._lasting(index, kind)) is not None
            }
            following = ends[min(index + 1, self._loop_at)]
            found = [
                alternative
                for kind, (node, condition) in lasting.items()
                for alternative in self._items(index, kind, node, condition, following)
            ]
            rules.add(items[index], found, parametric=True)
            closing = self._closing(index)
            end = [] if closing is None else [Alternative(marks.array_end, (), closing)]
            if found:  # a comma without an item would be a dead end
                conditions = [alternative.condition for alternative in found]
                if set(conditions) == {f"bit_clear({bit})" for bit, _ in self._different}:
                    conditions = [f"not(is_ones([0:{len(self._different)}]))"]
                end.append(Alternative(f"{marks.comma} {items[index]}::_", (items[index],), any_holds(conditions)))
            rules.add(ends[index], end, parametric=True)
        alternatives = [Alternative(f"{marks.array_start} {items[0]}::0", (items[0],))]
        if not shape.low and not any(contains.low for contains in shape.contains):
            alternatives.append(Alternative(marks.no_items))
        rules.add(name, alternatives)

    def _items(self, index: int, kind: Kind, node: Node, condition: str, following: str) -> Iterator[Alternative]:
        changes = [field.counted() for number, field in enumerate(self._counters) if number in kind]
        if index == self._loop_at and self._length is not None:
            changes.append(self._length.counted())
        different: list[tuple[int | None, Node]] = [*self._different] or [(None, self._nodes.anything)]
        for bit, value in different:
            one = self._nodes.all_of((node, value))
            if self._emptiness.node(one):
                continue
            seen = [] if bit is None else [f"set_bit({bit})"]
            unseen = [] if bit is None else [f"bit_clear({bit})"]
            rule = self._symbols.rule(one)
            self._notes.items[index].add(one)
            yield self._rules.changed(rule, rule, following, [*changes, *seen], all_hold([condition, *unseen]))

    def _lasting(self, index: int, kind: Kind) -> str | None:
        """Returns when item ``index`` may be of ``kind``, so that the array can still be completed; None = never."""
        if self._contents.is_free:
            return ""
        boxes: list[tuple[Room, ...]] = []
        for counts in self._contents.counts():
            counted = self._contents.counted(counts, kind)
            if counted is None:
                continue
            place = tuple(
                (count, None if count == most else count)
                for count, most in zip(counts, self._contents.most, strict=True)
            )
            for low, high in self._contents.rooms(min(index + 1, self._loop_at), counted):
                if index == self._loop_at:
                    if high is None or high > 0:
                        boxes.append((*place, (max(0, low - 1), None if high is None else high - 1)))
                elif low == 0:
                    boxes.append((*place, (0, None)))
        fields = [*self._counters, self._length]
        found = [
            all_hold(condition for field, room in zip(fields, box, strict=True) for condition in _within(field, room))
            for box in _merged(boxes)
        ]
        if len(found) > _MOST_CONDITIONS:
            raise GrammarTooLargeError(
                "an array's contains and its bounds make a condition that is too large; lower minContains or maxItems",
                limit="array_counts",
                keyword="contains",
            )
        return any_holds(found) if found else None

    def _closing(self, index: int) -> str | None:
        """Returns when the array may end behind ``index`` items; None = never."""
        conditions = [
            field.at_least(contains.low)
            for field, contains in zip(self._counters, self._shape.contains, strict=True)
            if contains.low
        ]
        if index < self._loop_at:
            if index < self._shape.low:
                return None
        elif self._shape.low > self._loop_at:
            assert self._length is not None
            conditions.append(self._length.at_least(self._shape.low - self._loop_at))
        return all_hold(conditions)


def _within(field: BitField | None, room: Room) -> Iterator[str]:
    """Yields the conditions that ``field`` lies in ``room``; no field = 0."""
    if field is None:
        return
    low, high = room
    if low:
        yield field.at_least(low)
    if high is not None:
        yield field.below(high + 1)


def _merged(boxes: Iterable[tuple[Room, ...]]) -> list[tuple[Room, ...]]:
    """Returns the same counts as fewer boxes: two that differ in one dimension, and touch there, become one."""
    found = list(dict.fromkeys(boxes))
    for dimension in range(len(found[0]) if found else 0):
        groups: dict[tuple[Room, ...], list[Room]] = {}
        for box in found:
            groups.setdefault(box[:dimension] + box[dimension + 1 :], []).append(box[dimension])
        found = []
        for others, rooms in groups.items():
            merged: list[Room] = []
            for low, high in sorted(rooms, key=lambda room: room[0]):
                if merged and ((last := merged[-1])[1] is None or low <= last[1] + 1):
                    highest = None if last[1] is None or high is None else max(last[1], high)
                    merged[-1] = (last[0], highest)
                else:
                    merged.append((low, high))
            found += [(*others[:dimension], room, *others[dimension:]) for room in merged]
    return found


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
