"""Values: what a node allows, one language for each JSON type, and the boolean operations on that.

Numbers and strings are expressions: of the spelled number, of the decoded text. Arrays and objects are alternatives, a
union of shapes. The opposite of one shape is few shapes, which is what keeps ``not``, ``oneOf`` and ``if`` small.
Owns: the shapes and their algebra. Knows nothing about: keywords, grammars, emptiness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.nodes import Node, Nodes
from maskd.json_schema.compiler.numbers import number_constant
from maskd.json_schema.compiler.presence import (
    ALWAYS,
    NEVER,
    And,
    Exists,
    Formula,
    Has,
    Not,
    Or,
    all_of,
    any_of,
    negated,
    without_negated_groups,
)
from maskd.json_schema.strict_json import Json
from maskd.regular.expression import ANYTHING, NOTHING, Expression, both, choice, complement, words

__all__ = ["MOST_ALTERNATIVES", "Algebra", "ArrayShape", "Contains", "Members", "ObjectShape", "Value"]

MOST_ALTERNATIVES = 200

Shape = TypeVar("Shape", "ArrayShape", "ObjectShape")


@dataclass(frozen=True, slots=True)
class Contains:
    """From ``low`` to ``high`` items, from item ``start`` on, satisfy ``node``; ``high`` None = without limit."""

    node: Node
    start: int
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """Arrays of one form.

    Attributes:
        prefix: what the first items satisfy.
        rest: what all further items satisfy.
        low, high: how many items; ``high`` None = without limit.
        contains: what some items satisfy.
        unique: True = no two items are equal, False = two are, None = either.
    """

    prefix: tuple[Node, ...]
    rest: Node
    low: int = 0
    high: int | None = None
    contains: tuple[Contains, ...] = ()
    unique: bool | None = None

    def item(self, index: int) -> Node:
        """Returns what item ``index`` satisfies."""
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Members:
    """The value of every member whose key is one of ``keys`` satisfies ``node``."""

    keys: Expression
    node: Node


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """Objects of one form.

    Attributes:
        members: what values satisfy, by key. A name may be there for its place among the others only.
        presence: which members there are; every ``Exists`` in it is positive.
    """

    members: tuple[Members, ...] = ()
    presence: Formula = ALWAYS


@dataclass(frozen=True, slots=True)
class Value:
    """What is allowed, by JSON type.

    Attributes:
        null, true, false: whether these are.
        numbers: spelled numbers; ``ANYTHING`` = all of them.
        strings: decoded strings.
        arrays, objects: alternatives.
    """

    null: bool = False
    true: bool = False
    false: bool = False
    numbers: Expression = NOTHING
    strings: Expression = NOTHING
    arrays: tuple[ArrayShape, ...] = ()
    objects: tuple[ObjectShape, ...] = ()


class Algebra:
    """Operations on values, with the nodes of one compile.

    Args:
        nodes: the arena.
        is_empty_array, is_empty_object: whether it is plain that no value has the shape.
        is_impossible: whether no object has the shape, by a close look. Asked when alternatives are too many.

    Attributes:
        anything: every value.
    """

    def __init__(
        self,
        nodes: Nodes,
        is_empty_array: Callable[[ArrayShape], bool],
        is_empty_object: Callable[[ObjectShape], bool],
        is_impossible: Callable[[ObjectShape], bool],
    ) -> None:
        self._nodes = nodes
        self._is_empty_array, self._is_empty_object = is_empty_array, is_empty_object
        self._is_impossible = is_impossible
        self.any_array = ArrayShape((), nodes.anything)
        self.anything = Value(True, True, True, ANYTHING, ANYTHING, (self.any_array,), (ObjectShape(),))

    # -- values ----------------------------------------------------------------------------------------------------

    def both(self, one: Value, other: Value) -> Value:
        """Returns what both allow."""
        if one is self.anything:
            return other
        if other is self.anything:
            return one
        return Value(
            one.null and other.null,
            one.true and other.true,
            one.false and other.false,
            both(one.numbers, other.numbers),
            both(one.strings, other.strings),
            self._pairs(one.arrays, other.arrays, self._both_arrays, self._is_empty_array),
            self._pairs(one.objects, other.objects, self.both_objects, self._is_empty_object),
        )

    def either(self, one: Value, other: Value) -> Value:
        """Returns what either allows."""
        return Value(
            one.null or other.null,
            one.true or other.true,
            one.false or other.false,
            choice(one.numbers, other.numbers),
            choice(one.strings, other.strings),
            _limited((*one.arrays, *other.arrays)),
            _limited((*one.objects, *other.objects)),
        )

    def opposite(self, value: Value) -> Value:
        """Returns what ``value`` does not allow."""
        return self.without(self.anything, value)

    def without(self, one: Value, other: Value) -> Value:
        """Returns what ``one`` allows and ``other`` does not."""
        return Value(
            one.null and not other.null,
            one.true and not other.true,
            one.false and not other.false,
            both(one.numbers, complement(other.numbers)),
            both(one.strings, complement(other.strings)),
            self._remaining(one.arrays, other.arrays, self._both_arrays, self._opposite_array, self._is_empty_array),
            self._remaining(
                one.objects, other.objects, self.both_objects, self._opposite_object, self._is_empty_object
            ),
        )

    def constant(self, value: Json) -> Value:
        """Returns what allows ``value`` and its other spellings."""
        match value:
            case None:
                return Value(null=True)
            case bool():
                return Value(true=value, false=not value)
            case int() | float():
                return Value(numbers=number_constant(value))
            case str():
                return Value(strings=words((value,)))
            case list():
                items = tuple(map(self._nodes.constant, value))
                return Value(arrays=(ArrayShape(items, self._nodes.nothing, len(value), len(value)),))
        named = [Members(words((key,)), self._nodes.constant(item)) for key, item in value.items()]
        others = Members(complement(words(value)), self._nodes.nothing)
        return Value(objects=(ObjectShape((*named, others), all_of(map(Has, value))),))

    # -- alternatives ----------------------------------------------------------------------------------------------

    def _pairs(
        self,
        ones: Sequence[Shape],
        others: Sequence[Shape],
        combine: Callable[[Shape, Shape], Shape | None],
        is_empty: Callable[[Shape], bool],
    ) -> tuple[Shape, ...]:
        combined = [shape for one in ones for other in others if (shape := combine(one, other)) is not None]
        if len(ones) > 1 and len(others) > 1:  # most of a product tends to contradict itself
            combined = [shape for shape in dict.fromkeys(combined) if not is_empty(shape)]
        return _limited(self._possible(combined))

    def _possible(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Returns ``shapes`` without the empty ones, looked at closely if they are too many."""
        if len(shapes) <= MOST_ALTERNATIVES:
            return shapes
        return [shape for shape in shapes if isinstance(shape, ArrayShape) or not self._is_impossible(shape)]

    def _remaining(
        self,
        ones: Sequence[Shape],
        others: Sequence[Shape],
        combine: Callable[[Shape, Shape], Shape | None],
        opposite: Callable[[Shape], list[Shape]],
        is_empty: Callable[[Shape], bool],
    ) -> tuple[Shape, ...]:
        """Takes ``others`` from ``ones``; what they have nothing in common with stays as it is."""
        for other in others:
            kept: list[Shape] = []
            for one in ones:
                common = combine(one, other)
                if common is None or is_empty(common):
                    kept.append(one)
                    continue
                rests = (combine(one, rest) for rest in opposite(other))
                kept += [rest for rest in rests if rest is not None and not is_empty(rest)]
            ones = _limited(self._possible(kept))
        return tuple(ones)

    # -- arrays ----------------------------------------------------------------------------------------------------

    def _both_arrays(self, one: ArrayShape, other: ArrayShape) -> ArrayShape | None:
        self._nodes.work.spend(1 + len(one.prefix) + len(other.prefix))
        if {one.unique, other.unique} == {True, False}:
            return None
        highs = [high for high in (one.high, other.high) if high is not None]
        items = [
            self._nodes.all_of((one.item(index), other.item(index)))
            for index in range(max(len(one.prefix), len(other.prefix)))
        ]
        rest = self._nodes.all_of((one.rest, other.rest))
        return ArrayShape(
            _trimmed(items, rest),
            rest,
            max(one.low, other.low),
            min(highs, default=None),
            tuple(dict.fromkeys((*one.contains, *other.contains))),
            one.unique if other.unique is None else other.unique,
        )

    def _opposite_array(self, shape: ArrayShape) -> list[ArrayShape]:
        anything, every = self._nodes.anything, self.any_array
        found = []
        if shape.low > 0:
            found.append(replace(every, high=shape.low - 1))
        if shape.high is not None:
            found.append(replace(every, low=shape.high + 1))
        for index, node in enumerate(shape.prefix):
            if node is not anything:
                wrong = self._nodes.opposite(node)
                found.append(ArrayShape((*(anything,) * index, wrong), anything, low=index + 1))
        if shape.rest is not anything:
            wrong = self._nodes.opposite(shape.rest)
            found.append(replace(every, contains=(Contains(wrong, len(shape.prefix), 1, None),)))
        for contains in shape.contains:
            if contains.low > 0:
                found.append(replace(every, contains=(replace(contains, low=0, high=contains.low - 1),)))
            if contains.high is not None:
                found.append(replace(every, contains=(replace(contains, low=contains.high + 1, high=None),)))
        if shape.unique is not None:
            found.append(replace(every, unique=not shape.unique))
        return found

    # -- objects ---------------------------------------------------------------------------------------------------

    def both_objects(self, one: ObjectShape, other: ObjectShape) -> ObjectShape | None:
        """Returns what has both shapes; None if that cannot be."""
        self._nodes.work.spend(1 + sum(len(shape.members) + _size(shape.presence) for shape in (one, other)))
        presence = all_of((one.presence, other.presence))
        if presence == NEVER:
            return None
        return ObjectShape(tuple(dict.fromkeys((*one.members, *other.members))), presence)

    def _opposite_object(self, shape: ObjectShape) -> list[ObjectShape]:
        """Returns what does not have ``shape``: a member is wrong, or others are there."""
        wrong = (
            Exists(members.keys, self._nodes.opposite(members.node))
            for members in shape.members
            if members.node is not self._nodes.anything
        )
        return self._shapes(without_negated_groups(any_of((negated(shape.presence), *wrong))))

    def _shapes(self, presence: Formula) -> list[ObjectShape]:
        """Returns the alternatives of a formula in which ``Exists`` may be negated: then it is about every member."""
        match presence:
            case Or(parts=parts):
                plain = [part for part in parts if not _has_negated_exists(part)]
                found = [ObjectShape((), any_of(plain))] if plain else []
                for part in parts:
                    if _has_negated_exists(part):
                        found += self._shapes(part)
                return found
            case And(parts=parts) if _has_negated_exists(presence):
                combined = [ObjectShape()]
                for part in parts:
                    pairs = (self.both_objects(one, other) for one in combined for other in self._shapes(part))
                    combined = list(_limited(shape for shape in pairs if shape is not None))
                return combined
            case Not(inner=Exists(keys=keys, node=node)):
                return [ObjectShape((Members(keys, self._nodes.opposite(node)),))]
        return [ObjectShape((), presence)]


def _size(formula: Formula) -> int:
    return sum(map(_size, formula.parts)) if isinstance(formula, And | Or) else 1


def _has_negated_exists(formula: Formula) -> bool:
    match formula:
        case Not(inner=inner):
            return isinstance(inner, Exists)
        case And(parts=parts) | Or(parts=parts):
            return any(map(_has_negated_exists, parts))
    return False


def _trimmed(items: Sequence[Node], rest: Node) -> tuple[Node, ...]:
    """Returns ``items`` without those at the end that are like all further ones."""
    length = len(items)
    while length and items[length - 1] is rest:
        length -= 1
    return tuple(items[:length])


def _limited(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    found = tuple(dict.fromkeys(shapes))
    if len(found) > MOST_ALTERNATIVES:
        raise GrammarTooLargeError(
            f"the schema has more than {MOST_ALTERNATIVES} alternatives in one place; "
            "write fewer branches of anyOf, oneOf or not that overlap",
            limit="alternatives",
            value=MOST_ALTERNATIVES,
        )
    return found
