"""What an object of one shape still needs: its shortest further members.

The presence formula is a union of terms. A term says which names must be there, how many members, and which events
must have happened. An event is a wish: some member fulfils it, one that is needed anyway or a further one. A member may
fulfil several wishes, so that wishes are put into groups in every way. Each group goes where it costs least. More than
``_MOST_GROUPED`` wishes are not grouped, so that the result may not be quite the shortest.
Knows nothing about: bytes that were read, other shapes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.emptiness import Term
from maskd.json_schema.compiler.keys import Keys
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.presence import AtLeast, Exists, Has
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import ObjectShape
from maskd.json_schema.endings.ends import Option
from maskd.json_schema.endings.strings import BegunString, lightest, quoted
from maskd.regular.expression import ANYTHING, Expression, both, complement, matches, words

__all__ = ["ObjectEnd"]

_MOST_GROUPED = 4
_MOST_ADDED = 300
"""Most members that are added for their number only."""


@dataclass(frozen=True, slots=True)
class SeenMembers:
    """Members that are there.

    Attributes:
        keys: their keys.
        count: how many they are.
        events: the ``Exists`` leaves that they make true.
    """

    keys: frozenset[str] = frozenset()
    count: int = 0
    events: frozenset[object] = frozenset()


class ObjectEnd:
    """One shape. See ``ShapeEnd``.

    Args:
        reader: what nodes allow.
        shape: the shape.
        document: the shortest document of a node; None = there is none.
        key_separator: what stands between a key and its value.
        in_order: names come in the order of the schema, other keys behind them.

    Raises:
        GrammarTooLargeError: the shape has too many terms, or classes of keys.
    """

    start = SeenMembers()
    needs_text = False

    def __init__(
        self,
        reader: SchemaReader,
        shape: ObjectShape,
        document: Callable[[Node], bytes | None],
        *,
        key_separator: bytes,
        in_order: bool,
    ) -> None:
        self._reader, self.shape, self._document = reader, shape, document
        self._key_separator, self._in_order = key_separator, in_order
        presence, terms = reader.emptiness.presence(shape)
        if terms is None:
            raise GrammarTooLargeError(
                "an object's required, dependent and counted members make a formula that is too large; simplify it",
                limit="presence_terms",
            )
        self._terms, keys = terms, Keys(reader, shape, presence)
        self._events, self._classes = keys.events, keys.classes
        self._named = {key.name: key.node for key in keys.named if key.name is not None}
        self._place = {name: index for index, name in enumerate(self._named)}

    def options(self, seen: SeenMembers, key: str) -> list[Option]:
        """See ``ShapeEnd.options``."""
        node = self._reader.emptiness.named(self.shape, key)
        unmet = [event for event in self._events if event not in seen.events and matches(event.keys, key)]
        self._reader.nodes.work.spend(1 << len(unmet))
        return [
            Option(self._reader.nodes.all_of((node, *(event.node for event in events))), events)
            for size in range(len(unmet) + 1)
            for events in itertools.combinations(unmet, size)
        ]

    def parts(self) -> Iterator[Node]:
        """See ``ShapeEnd.parts``."""
        yield from (*self._named.values(), *(key.node for key in self._classes))

    def after(self, seen: SeenMembers, key: str, text: bytes, marks: Iterable[object]) -> SeenMembers:
        """See ``ShapeEnd.after``."""
        return SeenMembers(seen.keys | {key}, seen.count + 1, seen.events.union(marks))

    def rest(self, seen: SeenMembers) -> list[bytes] | None:
        """See ``ShapeEnd.rest``."""
        members = self._shortest(seen, [])
        return None if members is None else [self._written(quoted(key), value) for key, value in members]

    def rest_from_key(self, seen: SeenMembers, key: BegunString | None) -> list[bytes] | None:
        """Returns the same where a member must follow: the rest of it from within its key, and further members.

        ``key``: None = its quote is not there yet.
        """
        members = self._shortest(seen, [_Wish(ANYTHING, self._reader.nodes.anything, key, is_first=True)])
        if members is None:
            return None
        (first, value), *further = members
        begun = quoted(first) if key is None else key.rest_of(first)
        return [self._written(begun, value), *(self._written(quoted(name), each) for name, each in further)]

    def _written(self, key: bytes, value: bytes) -> bytes:
        return key + self._key_separator + value

    def _shortest(self, seen: SeenMembers, wishes: list[_Wish]) -> list[tuple[str, bytes]] | None:
        """Returns the shortest further members that also fulfil ``wishes``."""
        plans = [plan for term in self._terms for plan in self._plans(term, seen, wishes)]
        return min(plans, key=_size, default=None)

    def _plans(self, term: Term, seen: SeenMembers, wishes: list[_Wish]) -> Iterator[list[tuple[str, bytes]]]:
        """Yields members that make ``term`` true and fulfil ``wishes``."""
        self._reader.nodes.work.spend(1 + len(term) // 4)
        least, most, needed, absent = 0, sys.maxsize, dict[str, Node](), set[str]()
        wishes = list(wishes)
        for leaf, is_so in term:
            match leaf:
                case Has(name=name) if is_so:
                    if name not in seen.keys:
                        needed[name] = self._reader.emptiness.named(self.shape, name)
                case Has(name=name):
                    absent.add(name)
                case AtLeast(count=count) if is_so:
                    least = max(least, count)
                case AtLeast(count=count):
                    most = min(most, count - 1)
                case Exists(keys=keys, node=node) if leaf not in seen.events:
                    wishes.append(_Wish(keys, node))
        if absent.isdisjoint(seen.keys):
            for grouped in _partitions(wishes) if len(wishes) <= _MOST_GROUPED else [[[wish] for wish in wishes]]:
                plan = _Plan(self._document, dict(needed), seen, absent)
                if self._fulfil(plan, [self._together(group) for group in grouped], least - seen.count):
                    members = self._ordered(plan)
                    if members is not None and seen.count + len(members) <= most:
                        yield members

    def _together(self, wishes: list[_Wish]) -> _Wish:
        """Returns the wish that one member fulfils all of ``wishes``."""
        return _Wish(
            both(*(wish.keys for wish in wishes)),
            self._reader.nodes.all_of(wish.node for wish in wishes),
            next((wish.begun for wish in wishes if wish.begun is not None), None),
            is_first=any(wish.is_first for wish in wishes),
        )

    def _fulfil(self, plan: _Plan, wishes: list[_Wish], least: int) -> bool:
        """Adds to ``plan`` what ``wishes`` ask for, up to at least ``least`` members; says whether that can be."""
        for wish in sorted(wishes, key=lambda wish: wish.is_first):  # by then it is known what must come behind it
            key = self._grant(plan, wish)
            if key is None:
                return False
            plan.first = key if wish.is_first else plan.first
        if least - len(plan.members) > _MOST_ADDED:
            return False
        while len(plan.members) < least:
            if self._grant(plan, _Wish(ANYTHING, self._reader.nodes.anything), is_new=True) is None:
                return False
        return True

    def _ordered(self, plan: _Plan) -> list[tuple[str, bytes]] | None:
        """Returns the members of ``plan`` in the order of the schema, behind the one that is begun."""
        keys = sorted(plan.members, key=self._place_of)
        if plan.first is not None:
            if self._in_order and self._place_of(keys[0]) < self._place_of(plan.first):
                return None
            keys = [plan.first, *(key for key in keys if key != plan.first)]
        if self._in_order and keys and self._place_of(keys[0]) < self._last(plan.seen):
            return None
        found = [(key, value) for key in keys if (value := plan.value(key)) is not None]
        return found if len(found) == len(keys) else None

    def _place_of(self, key: str) -> int:
        return self._place.get(key, len(self._place))

    def _last(self, seen: SeenMembers) -> int:
        return max(map(self._place_of, seen.keys), default=-1)

    # -- choosing members ------------------------------------------------------------------------------------------

    def _grant(self, plan: _Plan, wish: _Wish, *, is_new: bool = False) -> str | None:
        """Lets the member fulfil ``wish`` for which that costs least; returns its key, None = there is none.

        ``is_new``: no member that is planned already.
        """
        best: tuple[int, str, Node] | None = None
        planned = [] if is_new else [pair for pair in plan.members.items() if wish.is_for(pair[0])]
        latest = min(map(self._place_of, plan.members), default=len(self._place))
        for key, own in itertools.chain(planned, self._further(plan, wish)):
            if self._in_order and wish.is_first and self._place_of(key) > latest:
                continue
            node = self._reader.nodes.all_of((own, wish.node))
            document = self._document(node)
            if document is not None:
                so_far = plan.value(key) if key in plan.members else None
                more = len(document) + (len(quoted(key)) + 2 if so_far is None else -len(so_far))
                if best is None or more < best[0]:
                    best = more, key, node
                if more <= 0:
                    break
        if best is None:
            return None
        plan.members[best[1]] = best[2]
        return best[1]

    def _further(self, plan: _Plan, wish: _Wish) -> Iterator[tuple[str, Node]]:
        """Yields members that may be added and whose keys fit ``wish``: those with a name, and one of each class."""
        work = self._reader.nodes.work
        last = (
            max(self._last(plan.seen), -1 if plan.first is None else self._place_of(plan.first))
            if self._in_order
            else -1
        )
        taken = plan.seen.keys.union(plan.members)
        for name, node in self._named.items():
            if wish.is_for(name) and self._place[name] > last and name not in taken and name not in plan.absent:
                work.spend(1)
                yield name, node
        work.spend(len(self._named) // 32)
        unnamed = complement(words(taken.difference(self._place)))
        for key in self._classes:
            work.spend(5 + len(taken) // 4)
            if (text := wish.shortest_key(both(key.keys, wish.keys, unnamed))) is not None:
                yield text, key.node


@dataclass(frozen=True, slots=True)
class _Wish:
    """A member with one of ``keys``, ``begun`` or not, whose value satisfies ``node``. ``is_first``: the next one."""

    keys: Expression
    node: Node
    begun: BegunString | None = None
    is_first: bool = False

    def is_for(self, key: str) -> bool:
        """Says whether ``key`` fits."""
        if self.begun is not None and not self.begun.may_become(key):
            return False
        return self.keys is ANYTHING or matches(self.keys, key)

    def shortest_key(self, keys: Expression) -> str | None:
        """Returns the key among ``keys`` with the fewest bytes that are missing."""
        return lightest(keys) if self.begun is None else self.begun.completed(keys)


@dataclass(slots=True)
class _Plan:
    """Members that are to come.

    Attributes:
        document: the shortest document of a node.
        members: by key, what their values satisfy.
        seen: what is there.
        absent: names that must not come.
        first: the key of the member that is the next one; None = any.
    """

    document: Callable[[Node], bytes | None]
    members: dict[str, Node]
    seen: SeenMembers
    absent: set[str]
    first: str | None = None

    def value(self, key: str) -> bytes | None:
        return self.document(self.members[key])


def _partitions(wishes: Sequence[_Wish]) -> Iterator[list[list[_Wish]]]:
    """Yields every way to put ``wishes`` into groups."""
    if not wishes:
        yield []
        return
    first, rest = wishes[0], wishes[1:]
    for groups in _partitions(rest):
        yield [[first], *groups]
        for index, group in enumerate(groups):
            yield [*groups[:index], [first, *group], *groups[index + 1 :]]


def _size(plan: list[tuple[str, bytes]]) -> int:
    return sum(len(quoted(key)) + len(value) + 2 for key, value in plan)
