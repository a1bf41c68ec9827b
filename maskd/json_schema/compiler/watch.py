"""The watch: what a grammar cannot hold, and where in a document it must be looked after.

A grammar with 64 bits cannot remember all items of an array, nor all keys of an object. So it lets repeated ones
through, and a watch stands beside it. The watch is an automaton over the path from the root to a value. Keys and
positions lead from place to place. A place says what its arrays and objects must not repeat.
Several nodes may share a place, one for each alternative. They must agree on what is watched there.
Owns: the places, from what arrays and objects noted when their rules were written.
Knows nothing about: the text of a document, tokens, rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import INTEGER, SHORTEST_SPELLING, spelled
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import ArrayShape, ObjectShape, Value
from maskd.regular.amounts import has_texts, is_open_ended
from maskd.regular.assertions import whole
from maskd.regular.expression import ANYTHING, NOTHING, Expression, Words, both, complement, matches
from maskd.regular.questions import may_match

__all__ = [
    "ArrayNotes",
    "ArrayPlace",
    "Differing",
    "WatchedMembers",
    "ObjectNotes",
    "ObjectPlace",
    "WatchedPlace",
    "WatchNotes",
]

_MOST_PLACES = 2_000
_MOST_CLASSES = 64
_MANY = 1_000_000_000
_INTEGERS = whole("-?[1-9][0-9]*")


# -- what a watch is -------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class WatchedPlace:
    """Where values stand that are watched, or have something watched below them.

    Attributes:
        array, object: what holds if the value is one; None = nothing is watched in it or below.
    """

    array: ArrayPlace | None = None
    object: ObjectPlace | None = None


Numbers = Literal["any", "integers", "some"]
"""Every number; integers beyond every bound, on one side at least; what else there may be."""


@dataclass(frozen=True, slots=True)
class Differing:
    """Items of which no two are equal.

    An item may become any of more values than there can ever be, whatever it begins with. Or its values may run out:
    then a beginning is allowed only while some value is left for it. The flags say of which kinds the former is known.

    Attributes:
        strings: the items that are strings; None = that depends on other items.
        words: the same, sorted, if these are all items that there can be, and no others; None = they are not.
        numbers: the items that are numbers.
        endless_start: an item that has not begun yet.
        endless_strings, endless_arrays: an item that has begun as one.
        spares: for each form of objects that may run out, members that must come and of which that holds. Until all of
            them have begun the object does not run out.
    """

    strings: Expression | None
    words: tuple[str, ...] | None
    numbers: Numbers
    endless_start: bool
    endless_strings: bool
    endless_arrays: bool
    spares: tuple[frozenset[str], ...]

    @property
    def is_endless(self) -> bool:
        """Whether items never run out, whatever they begin with; the spelling of a number aside."""
        return self.endless_start and self.endless_strings and self.numbers != "some" and self.endless_composites

    @property
    def endless_composites(self) -> bool:
        """Whether neither arrays nor objects run out."""
        return self.endless_arrays and not self.spares

    def combined(self, other: Differing) -> Differing:
        """Returns what is known of items that follow ``self`` or ``other``."""
        return Differing(
            self.strings if self.strings is other.strings else None,
            self.words if self.words == other.words else None,
            self.numbers if self.numbers == other.numbers else "some",
            self.endless_start and other.endless_start,
            self.endless_strings and other.endless_strings,
            self.endless_arrays and other.endless_arrays,
            self.spares + other.spares,
        )


@dataclass(frozen=True, slots=True)
class WatchedMembers:
    """WatchedMembers of which no two have equal keys.

    Attributes:
        required: names that must be there before the object ends, and of which the grammar does not know.
        free: names that the grammar allows at any time, again and again.
        only_free: there are no other keys.
        endless: every beginning of a key begins infinitely many.
    """

    required: frozenset[str]
    free: frozenset[str]
    only_free: bool
    endless: bool


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPlace:
    """Arrays at a place.

    Attributes:
        differing: whether items must differ.
        prefix: the places of the first items.
        rest: the place of all further ones.
    """

    differing: Differing | None
    prefix: tuple[WatchedPlace | None, ...]
    rest: WatchedPlace | None

    def item(self, index: int) -> WatchedPlace | None:
        """Returns the place of item ``index``; None = nothing is watched there."""
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPlace:
    """Objects at a place.

    Attributes:
        members: what holds for the keys.
        names: the places of values, by key.
        classes: keys that have no entry in ``names``, and the places of their values.
    """

    members: WatchedMembers | None
    names: dict[str, WatchedPlace | None]
    classes: tuple[tuple[Expression, WatchedPlace], ...]

    def value(self, key: str) -> WatchedPlace | None:
        """Returns the place of the value of ``key``; None = nothing is watched there."""
        if key in self.names:
            return self.names[key]
        return next((place for keys, place in self.classes if matches(keys, key)), None)


# -- what rules note -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ArrayNotes:
    """What the rules of one array shape lead to.

    Attributes:
        items: the nodes of the first items, then those of all further ones.
        must_differ: whether the items must differ.
        is_watched: whether the grammar leaves that to a watch.
        is_endless: whether another item may always follow, of infinitely many values.
    """

    items: list[set[Node]]
    must_differ: bool = False
    is_watched: bool = False
    is_endless: bool = False


@dataclass(slots=True)
class ObjectNotes:
    """What the rules of one object shape lead to.

    Attributes:
        names: the nodes of the values, by name.
        classes: the nodes of the values of all other keys, by class.
        members: what a watch is to look after; None = nothing.
        required: names that must be there.
        is_endless: whether another member may always follow, of infinitely many keys.
    """

    names: dict[str, set[Node]] = field(default_factory=dict)
    classes: dict[Expression, set[Node]] = field(default_factory=dict)
    members: WatchedMembers | None = None
    required: frozenset[str] = frozenset()
    is_endless: bool = False


class WatchNotes:
    """The notes of all shapes of one compile, and the watch that they make.

    Args:
        reader: what nodes allow.

    Attributes:
        arrays, objects: by shape.
    """

    def __init__(self, reader: SchemaReader) -> None:
        self._reader = reader
        self.arrays: dict[ArrayShape, ArrayNotes] = {}
        self.objects: dict[ObjectShape, ObjectNotes] = {}
        self._places: dict[frozenset[Node], WatchedPlace] = {}
        self._relevant: set[Node] = set()

    def _differing(self, shape: ArrayShape) -> Differing:
        nodes = set[Node]().union(*self.arrays[shape].items)
        values = [self._reader.value(node) for node in nodes]
        strings = values[0].strings if len(values) == 1 else None
        is_words = isinstance(strings, Words) and values[0] == Value(strings=strings)
        composites = [notes for value in values for notes in self._notes(value)]
        numbers = {_numbers(value) for value in values} - {None}
        return Differing(
            strings,
            tuple(sorted(strings.texts)) if isinstance(strings, Words) and is_words else None,
            numbers.pop() or "any" if len(numbers) == 1 else "some" if numbers else "any",
            all(map(self._starts_endlessly, values)),
            all(value.strings is NOTHING or is_open_ended(value.strings) for value in values),
            all(map(self._is_endless, (notes for notes in composites if isinstance(notes, ArrayNotes)))),
            tuple(
                self._spares(notes) for notes in composites if isinstance(notes, ObjectNotes) and not notes.is_endless
            ),
        )

    def _spares(self, notes: ObjectNotes) -> frozenset[str]:
        """Returns the required members of which there are infinitely many, whatever they begin with."""
        values = {name: list(map(self._reader.value, notes.names.get(name, ()))) for name in notes.required}
        return frozenset(name for name, found in values.items() if found and all(map(self._goes_on_endlessly, found)))

    def _goes_on_endlessly(self, value: Value) -> bool:
        return (
            _has_endless_scalars(value)
            and (value.strings is NOTHING or is_open_ended(value.strings))
            and _numbers(value) != "some"
        )

    def _starts_endlessly(self, value: Value) -> bool:
        return _has_endless_scalars(value) or any(
            self._is_endless(notes) or (isinstance(notes, ObjectNotes) and self._spares(notes))
            for notes in self._notes(value)
        )

    def _is_endless(self, notes: ArrayNotes | ObjectNotes) -> bool:
        """Says whether there are infinitely many values, whatever of one was already written."""
        if isinstance(notes, ArrayNotes) and notes.is_watched:
            return notes.is_endless and all(_has_endless_scalars(self._reader.value(node)) for node in notes.items[-1])
        return notes.is_endless

    def _check_supply(self, shape: ArrayShape) -> None:
        """Raises GrammarUnsupportedError if different items may run out before the array may end."""
        nodes = self._reader.nodes
        needed = [(shape.item(index), index + 1) for index in range(min(shape.low, len(shape.prefix) + 1))]
        if shape.low > len(shape.prefix):
            needed.append((shape.rest, shape.low))
        if shape.contains:
            others = nodes.all_of(nodes.opposite(contains.node) for contains in shape.contains)
            needed = [(nodes.all_of((node, others)), count) for node, count in needed]
            counts = [(contains.node, contains.low) for contains in shape.contains if contains.low]
            is_one = len(shape.contains) == 1 and not shape.prefix
            for node in (shape.rest, *shape.prefix):
                needed += [(nodes.all_of((node, inner)), low if is_one else _MANY) for inner, low in counts]
        for node, number in needed:
            if not self._has_values(node, number):
                raise GrammarUnsupportedError(
                    "uniqueItems, with the items that the schema asks for, may run out of different values; "
                    "lower minItems or minContains, or leave uniqueItems out",
                    keyword="uniqueItems",
                )

    def _has_values(self, node: Node, number: int) -> bool:
        """Says whether at least ``number`` values satisfy ``node``; False also where that is not known."""
        if number <= 1:
            return not self._reader.emptiness.node(node)
        value = self._reader.value(node)
        if self._starts_endlessly(value):
            return True
        number -= value.null + value.true + value.false
        numbers = both(spelled(value.numbers), SHORTEST_SPELLING)
        return number <= 0 or has_texts(value.strings, number) or has_texts(numbers, number)

    def _notes(self, value: Value) -> Iterator[ArrayNotes | ObjectNotes]:
        for array in value.arrays:
            if array in self.arrays:
                yield self.arrays[array]
        for shape in value.objects:
            if shape in self.objects:
                yield self.objects[shape]

    # -- places --------------------------------------------------------------------------------------------------

    def watch(self, root: Node) -> WatchedPlace | None:
        """Returns the place of the whole document; None = nothing is watched in it.

        Raises:
            GrammarUnsupportedError: alternatives at a place do not agree on what is watched.
            GrammarTooLargeError: there are too many places.
        """
        watched = any(notes.is_watched for notes in self.arrays.values())
        if not watched and all(notes.members is None for notes in self.objects.values()):
            return None
        self._relevant = self._nodes_above_watched(root)
        return self._place({root})

    def _nodes_above_watched(self, root: Node) -> set[Node]:
        """Returns the nodes in or below which something is watched."""
        above: dict[Node, set[Node]] = {}
        waiting, seen, watched = [root], {root}, list[Node]()
        while waiting:
            node = waiting.pop()
            for notes in self._notes(self._reader.value(node)):
                if isinstance(notes, ArrayNotes):
                    below = set[Node]().union(*notes.items)
                    is_watched = notes.is_watched
                else:
                    below = set[Node]().union(*notes.names.values(), *notes.classes.values())
                    is_watched = notes.members is not None
                if is_watched:
                    watched.append(node)
                for child in below:
                    above.setdefault(child, set()).add(node)
                waiting += below - seen
                seen |= below
        found = set[Node]()
        while watched:
            node = watched.pop()
            if node not in found:
                found.add(node)
                watched += above.get(node, ())
        return found

    def _place(self, nodes: Iterable[Node]) -> WatchedPlace | None:
        key = frozenset(nodes)
        if not key & self._relevant:
            return None
        if key not in self._places:
            if len(self._places) >= _MOST_PLACES:
                raise GrammarTooLargeError(
                    f"uniqueItems and counted members stand at more than {_MOST_PLACES} places; simplify the schema",
                    limit="watched_places",
                    value=_MOST_PLACES,
                )
            place = self._places[key] = WatchedPlace()
            values = [self._reader.value(node) for node in key]
            arrays = {shape for value in values for shape in value.arrays if shape in self.arrays}
            objects = {shape for value in values for shape in value.objects if shape in self.objects}
            place.array = self._array(sorted(arrays, key=str)) if arrays else None
            place.object = self._object([self.objects[shape] for shape in objects]) if objects else None
        return self._places[key]

    def _array(self, shapes: Sequence[ArrayShape]) -> ArrayPlace:
        notes = [self.arrays[shape] for shape in shapes]
        differing: Differing | None = None
        if any(one.is_watched for one in notes):
            if not all(one.must_differ for one in notes):
                raise GrammarUnsupportedError(
                    "uniqueItems holds for one alternative of an array and not for another one at the same place; "
                    "say it for both, or for none",
                    keyword="uniqueItems",
                )
            for shape in shapes:
                self._check_supply(shape)
                one = self._differing(shape)
                differing = one if differing is None else differing.combined(one)
        length = max(len(one.items) for one in notes) - 1
        places = [
            self._place(set[Node]().union(*(one.items[min(index, len(one.items) - 1)] for one in notes)))
            for index in range(length + 1)
        ]
        return ArrayPlace(differing, tuple(places[:-1]), places[-1])

    def _object(self, notes: Sequence[ObjectNotes]) -> ObjectPlace:
        watched = [one.members for one in notes if one.members is not None]
        if len({members.required for members in watched}) > 1 or (
            len(watched) < len(notes) and any(members.required for members in watched)
        ):
            raise GrammarUnsupportedError(
                "alternatives of an object require different names, more than the grammar can remember; "
                "require fewer of them",
                keyword="required",
            )
        members = watched[0] if watched else None
        if members is not None and len(notes) > 1:
            members = replace(
                members,
                free=frozenset(),
                only_free=False,
                endless=all(one.members is not None and one.members.endless for one in notes),
            )
        names = {
            name: self._place(set[Node]().union(*(_value_nodes(one, name) for one in notes)))
            for name in {name for one in notes for name in one.names}
        }
        return ObjectPlace(members, names, tuple(self._classes(notes)))

    def _classes(self, notes: Sequence[ObjectNotes]) -> Iterator[tuple[Expression, WatchedPlace]]:
        """Yields the unnamed keys below which something is watched, divided by what it is."""
        divided: list[tuple[Expression, frozenset[Node]]] = [(ANYTHING, frozenset())]
        for one in notes:
            for keys, nodes in one.classes.items():
                if not nodes & self._relevant:
                    continue
                parts = []
                for others, known in divided:
                    parts.append((both(others, keys), known | nodes))
                    parts.append((both(others, complement(keys)), known))
                divided = [part for part in parts if part[0] is ANYTHING or may_match(part[0])]
                if len(divided) > _MOST_CLASSES:
                    raise GrammarTooLargeError(
                        f"patterns divide the keys of an object into more than {_MOST_CLASSES} classes; "
                        "write fewer patternProperties that overlap",
                        limit="key_classes",
                        value=_MOST_CLASSES,
                    )
        for keys, found in divided:
            place = self._place(found)
            if place is not None:
                yield keys, place


def _has_endless_scalars(value: Value) -> bool:
    if _numbers(value) in ("any", "integers"):
        return True
    strings = value.strings
    return may_match(strings) and (is_open_ended(strings) or has_texts(strings, _MANY))


def _numbers(value: Value) -> Numbers | None:
    """Returns which numbers ``value`` allows; None = none."""
    if value.numbers is ANYTHING:
        return "any"
    numbers = spelled(value.numbers)
    if not may_match(numbers):
        return None
    whole_ones = both(numbers, _INTEGERS)
    is_whole = not may_match(both(numbers, complement(INTEGER)))
    return "integers" if is_whole and may_match(whole_ones) and is_open_ended(whole_ones) else "some"


def _value_nodes(notes: ObjectNotes, name: str) -> set[Node]:
    if name in notes.names:
        return notes.names[name]
    return next((nodes for keys, nodes in notes.classes.items() if matches(keys, name)), set())
