"""Values: what a node allows, one language for each JSON type, and the boolean operations on that.

Numbers and strings are expressions: of the spelled number, of the decoded text. Arrays and objects are alternatives, a
union of shapes. The opposite of one shape is few shapes, which is what keeps ``not``, ``oneOf`` and ``if`` small.
Owns: the shapes and their algebra. Knows nothing about: keywords, grammars, emptiness.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.nodes import Node, Nodes
from maskd.json_schema.compiler.numbers import in_all, number_constant
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
from maskd.regular.expression import ANYTHING, NOTHING, Expression, Words, both, choice, complement, words
from maskd.regular.questions import may_match

__all__ = ["MOST_ALTERNATIVES", "Algebra", "ArrayShape", "Contains", "Labels", "Members", "ObjectShape", "Value"]

MOST_ALTERNATIVES = 1_000
_MOST_LABELS = 4
_MANY_ALTERNATIVES = 200
"""From here on it pays to look closely whether an alternative is empty."""

Shape = TypeVar("Shape", "ArrayShape", "ObjectShape")
Labels: TypeAlias = Mapping[str, frozenset[Hashable]]
"""For names of members that are there: the only values that they can have."""


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
        labels: for names that every object of a shape has, the only values that they can have, if that is plain.
            Shapes with different labels for one name have nothing in common.

    Attributes:
        anything: every value.
    """

    def __init__(
        self,
        nodes: Nodes,
        is_empty_array: Callable[[ArrayShape], bool],
        is_empty_object: Callable[[ObjectShape], bool],
        is_impossible: Callable[[ObjectShape], bool],
        labels: Callable[[ObjectShape], Labels],
    ) -> None:
        self._nodes = nodes
        self._labels = labels
        self._is_empty_array, self._is_empty_object = is_empty_array, is_empty_object
        self._is_impossible = is_impossible
        self._indexed: tuple[Sequence[ArrayShape | ObjectShape], _ByLabel] = (), _ByLabel([])
        self.any_array = ArrayShape((), nodes.anything)
        self.anything = Value(True, True, True, ANYTHING, ANYTHING, (self.any_array,), (ObjectShape(),))

    # -- values ----------------------------------------------------------------------------------------------------

    def all_of(self, values: Iterable[Value]) -> Value:
        """Returns what all of ``values`` allow."""
        parts = [value for value in values if value is not self.anything]
        if len(parts) <= 1:
            return parts[0] if parts else self.anything
        return Value(
            all(part.null for part in parts),
            all(part.true for part in parts),
            all(part.false for part in parts),
            in_all(part.numbers for part in parts),
            both(*(part.strings for part in parts)),
            self._common([part.arrays for part in parts], self._in_all_arrays, self._is_empty_array),
            self._common([part.objects for part in parts], self.in_all_objects, self._is_empty_object),
        )

    def any_of(self, values: Iterable[Value]) -> Value:
        """Returns what any of ``values`` allows."""
        parts = list(values)
        if len(parts) == 1:
            return parts[0]
        return Value(
            any(part.null for part in parts),
            any(part.true for part in parts),
            any(part.false for part in parts),
            choice(*(part.numbers for part in parts)),
            choice(*(part.strings for part in parts)),
            _limited(shape for part in parts for shape in part.arrays),
            _limited(shape for part in parts for shape in part.objects),
        )

    def one_of(self, values: Sequence[Value], taken: Sequence[Value] = ()) -> Value:
        """Returns what exactly one of ``values`` allows: one in the first half and none in the other, or so.

        ``taken``: what each of them takes from the others, if that is not the same.
        """
        return self._one_and_any(values, taken or values)[0] if values else Value()

    def _one_and_any(self, values: Sequence[Value], taken: Sequence[Value]) -> tuple[Value, Value]:
        if len(values) == 1:
            return values[0], taken[0]
        half = len(values) // 2
        one, first = self._one_and_any(values[:half], taken[:half])
        other, second = self._one_and_any(values[half:], taken[half:])
        exactly_one = self.any_of((self.without(one, second), self.without(other, first)))
        return exactly_one, self.any_of((first, second))

    def opposite(self, value: Value) -> Value:
        """Returns what ``value`` does not allow."""
        return self.without(self.anything, value)

    def without(self, one: Value, other: Value) -> Value:
        """Returns what ``one`` allows and ``other`` does not."""
        return Value(
            one.null and not other.null,
            one.true and not other.true,
            one.false and not other.false,
            _less(one.numbers, other.numbers),
            _less(one.strings, other.strings),
            self._remaining(one.arrays, other.arrays, self._in_all_arrays, self._opposite_array, self._is_empty_array),
            self._remaining(
                one.objects, other.objects, self.in_all_objects, self._opposite_object, self._is_empty_object
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

    def _common(
        self,
        groups: Sequence[Sequence[Shape]],
        combine: Callable[..., Shape | None],
        is_empty: Callable[[Shape], bool],
    ) -> tuple[Shape, ...]:
        """Returns the shapes of what has a shape of each group. Groups of one are put together first, all at once."""
        if not all(groups):
            return ()
        single = combine(*(group[0] for group in groups if len(group) == 1))
        if single is None:
            return ()
        found: tuple[Shape, ...] = (single,)
        for group in groups:
            if len(group) > 1:
                found = self._pairs(found, group, combine, is_empty)
        return found

    def _pairs(
        self,
        ones: Sequence[Shape],
        others: Sequence[Shape],
        combine: Callable[..., Shape | None],
        is_empty: Callable[[Shape], bool],
    ) -> tuple[Shape, ...]:
        met = self._encounters(ones, others)
        combined = [shape for one, near in met for other in near if (shape := combine(one, other)) is not None]
        if len(ones) > 1 and len(others) > 1:  # most of a product tends to contradict itself
            combined = [shape for shape in dict.fromkeys(combined) if not is_empty(shape)]
        return _limited(self._possible(combined))

    def _possible(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Returns ``shapes`` without the empty ones, looked at closely if they are too many."""
        if len(shapes) <= _MANY_ALTERNATIVES:
            return shapes
        return [shape for shape in shapes if isinstance(shape, ArrayShape) or not self._is_impossible(shape)]

    def _remaining(
        self,
        ones: Sequence[Shape],
        others: Sequence[Shape],
        combine: Callable[..., Shape | None],
        opposite: Callable[[Shape], list[Shape]],
        is_empty: Callable[[Shape], bool],
    ) -> tuple[Shape, ...]:
        """Takes ``others`` from ``ones``; what they have nothing in common with stays as it is."""
        opposites = functools.cache(opposite)
        remaining: list[Shape] = []
        for one, near in self._encounters(ones, others):
            left: Sequence[Shape] = (one,)
            for other in near:
                kept: list[Shape] = []
                for part in left:
                    common = combine(part, other)
                    if common is None or is_empty(common):
                        kept.append(part)
                        continue
                    rests = (combine(part, rest) for rest in opposites(other))
                    kept += [rest for rest in rests if rest is not None and not is_empty(rest)]
                left = _limited(self._possible(kept))
            remaining += left
        return _limited(self._possible(remaining))

    def _encounters(self, ones: Sequence[Shape], others: Sequence[Shape]) -> Iterator[tuple[Shape, Sequence[Shape]]]:
        """Yields each of ``ones``, with those of ``others`` that no label tells apart from it."""
        if len(others) < 2:
            yield from ((one, others) for one in ones)
            return
        if self._indexed[0] is not others:  # one set of alternatives is often met many times in a row
            index = _ByLabel([self._labels(other) if isinstance(other, ObjectShape) else {} for other in others])
            self._indexed = others, index
        index = self._indexed[1]
        for one in ones:
            yield one, [others[at] for at in index.near(self._labels(one) if isinstance(one, ObjectShape) else {})]

    # -- arrays ----------------------------------------------------------------------------------------------------

    def _in_all_arrays(self, *shapes: ArrayShape) -> ArrayShape | None:
        self._nodes.work.spend(sum(1 + len(shape.prefix) for shape in shapes))
        unique = {shape.unique for shape in shapes} - {None}
        if len(unique) > 1:
            return None
        highs = [shape.high for shape in shapes if shape.high is not None]
        length = max((len(shape.prefix) for shape in shapes), default=0)
        items = [self._nodes.all_of(shape.item(index) for shape in shapes) for index in range(length)]
        rest = self._nodes.all_of(shape.rest for shape in shapes)
        return ArrayShape(
            _trimmed(items, rest),
            rest,
            max((shape.low for shape in shapes), default=0),
            min(highs, default=None),
            tuple(dict.fromkeys(contains for shape in shapes for contains in shape.contains)),
            next(iter(unique), None),
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

    def in_all_objects(self, *shapes: ObjectShape) -> ObjectShape | None:
        """Returns what has all ``shapes``; None if that cannot be."""
        self._nodes.work.spend(sum(1 + len(shape.members) + _size(shape.presence) for shape in shapes))
        presence = all_of(shape.presence for shape in shapes)
        if presence == NEVER:
            return None
        nodes: dict[Expression, list[Node]] = {}
        for shape in shapes:
            for part in shape.members:
                nodes.setdefault(part.keys, []).append(part.node)
        return ObjectShape(tuple(Members(keys, self._nodes.all_of(each)) for keys, each in nodes.items()), presence)

    def _opposite_object(self, shape: ObjectShape) -> list[ObjectShape]:
        """Returns what does not have ``shape``: a member is wrong, or others are there."""
        limited = [members for members in shape.members if members.node is not self._nodes.anything]
        match limited, shape.presence:
            case [Members(Words(texts=texts) as keys, node)], Has(name) if texts == {name}:
                # A discriminator, as in {"if": {"properties": {"kind": {"const": …}}, "required": ["kind"]}}.
                return [ObjectShape((Members(keys, self._nodes.opposite(node)),))]
        wrong = (Exists(members.keys, self._nodes.opposite(members.node)) for members in limited)
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
                    pairs = (self.in_all_objects(one, other) for one in combined for other in self._shapes(part))
                    combined = list(_limited(shape for shape in pairs if shape is not None))
                return combined
            case Not(inner=Exists(keys=keys, node=node)):
                return [ObjectShape((Members(keys, self._nodes.opposite(node)),))]
        return [ObjectShape((), presence)]


class _ByLabel:
    """Numbered shapes, found by their labels. Uses the few names that most of them have a label for."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self._every = range(len(labels))
        counts = Counter(name for each in labels for name in each)
        self._with: dict[str, dict[Hashable, list[int]]] = {}
        self._without: dict[str, list[int]] = {}
        for name, _ in counts.most_common(_MOST_LABELS):
            by_value = self._with[name] = {}
            self._without[name] = [number for number in self._every if name not in labels[number]]
            for number in self._every:
                for value in labels[number].get(name, ()):
                    by_value.setdefault(value, []).append(number)

    def near(self, labels: Labels) -> Sequence[int]:
        """Returns the numbers of the shapes that something with ``labels`` may have, in order."""
        found: Sequence[int] = self._every
        for name in self._with.keys() & labels.keys():
            fitting = {number for value in labels[name] for number in self._with[name].get(value, ())}
            if len(fitting) + len(self._without[name]) < len(found):
                found = sorted(fitting.union(self._without[name]))
        return found


def _less(one: Expression, other: Expression) -> Expression:
    """Returns what belongs to ``one`` and not to ``other``, without a complement if they have nothing in common."""
    return both(one, complement(other)) if may_match(both(one, other)) else one


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
