"""Nodes: schemas and their combinations, not looked into yet.

A node is interned in the arena of its compile: equal nodes are the same object. So a recursive schema has finitely
many, and what was worked out for one is found again. ``reading`` works out what a node allows when it is asked.
Knows nothing about: keywords.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.documents import Documents, Place
from maskd.json_schema.strict_json import Json
from maskd.regular.questions import MOST_STATES

__all__ = [
    "AllOf", "AnyOf", "Anything", "Constant", "Node", "Nodes", "Nothing", "Opposite", "Reference", "Scope", "Work",
]  # fmt: skip


class Scope(NamedTuple):
    """How a schema was reached, as far as that decides what it allows.

    Attributes:
        resources: the resources on the way, outermost first, as far as it matters to a dynamic reference.
        further: what becomes of members that no schema names. allow: what the schemas say. forbid: this schema forbids
            them. outer: a schema around it, of the same value, does.
    """

    resources: tuple[str, ...] = ()
    further: Literal["allow", "forbid", "outer"] = "allow"

    def of_condition(self) -> Scope:
        """Returns the scope of a schema under ``not`` or a condition: forbidding there would allow more elsewhere."""
        return self._replace(further="allow")

    def of_part(self) -> Scope:
        """Returns the scope of the schema of a member or an item."""
        return self if self.further == "allow" else self._replace(further="forbid")


class Node:
    """A set of JSON values. ``serial`` orders the nodes of an arena."""

    __slots__ = ("serial",)
    serial: int


class Anything(Node):
    """Every value."""

    __slots__ = ()


class Nothing(Node):
    """No value."""

    __slots__ = ()


class Reference(Node):
    """What the schema object at ``place`` allows, reached through ``scope``."""

    __slots__ = ("place", "scope")

    def __init__(self, place: Place, scope: Scope) -> None:
        self.place, self.scope = place, scope


class Constant(Node):
    """One value."""

    __slots__ = ("value",)

    def __init__(self, value: Json) -> None:
        self.value = value


class AllOf(Node):
    """What all of ``parts`` allow; at least two, none of them an AllOf."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Node, ...]) -> None:
        self.parts = parts


class AnyOf(Node):
    """What any of ``parts`` allows; at least two, none of them an AnyOf."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Node, ...]) -> None:
        self.parts = parts


class Opposite(Node):
    """What ``inner`` does not allow."""

    __slots__ = ("inner",)

    def __init__(self, inner: Node) -> None:
        self.inner = inner


class Work:
    """What a schema may cost.

    Attributes:
        left: units that may still be spent, of some microseconds each.
        most_states: derivatives that one question about a regular expression may look at.
    """

    def __init__(self, left: int = 500_000, most_states: int = MOST_STATES) -> None:
        self.left, self.most_states = left, most_states

    def spend(self, units: int) -> None:
        """Takes ``units`` from what is left.

        Raises:
            GrammarTooLargeError: there is not so much.
        """
        self.left -= units
        if self.left < 0:
            raise GrammarTooLargeError(
                "the schema's alternatives take too long to combine; "
                "write fewer branches of anyOf, oneOf or not that overlap",
                limit="combinations",
            )


class Nodes:
    """The arena: makes every node, each once.

    Attributes:
        anything, nothing: the two constants.
        work: what all that is asked about its nodes may cost.
    """

    def __init__(self, documents: Documents, work: Work | None = None) -> None:
        self._documents = documents
        self.work = work or Work()
        self._known: dict[tuple[object, ...], Node] = {}
        self.anything = self._interned(Anything)
        self.nothing = self._interned(Nothing)

    def _interned(self, kind: type[Any], *values: Any) -> Node:
        key = (kind, *values)
        node = self._known.get(key)
        if node is None:
            node = self._known[key] = kind(*values)
            node.serial = len(self._known)
        return node

    def schema(self, schema: Json, scope: Scope) -> Node:
        """Returns the node of ``schema``, an object or boolean of the documents, reached through ``scope``."""
        if schema is True or schema == {}:
            return self.anything
        if schema is False:
            return self.nothing
        place = self._documents.place(schema)
        if self._documents.is_dynamic and self._documents.matters(place.base, scope.resources):
            scope = scope._replace(resources=(*scope.resources, place.base))
        return self._interned(Reference, place, scope)

    def constant(self, value: Json) -> Node:
        """Returns the node of one value."""
        key = json.dumps(value, sort_keys=True, ensure_ascii=False)
        node = self._known.get((Constant, key))
        if node is None:
            node = self._known[Constant, key] = Constant(value)
            node.serial = len(self._known)
        return node

    def all_of(self, nodes: Iterable[Node]) -> Node:
        """Returns what all of ``nodes`` allow."""
        return self._group(nodes, AllOf, self.anything, self.nothing)

    def any_of(self, nodes: Iterable[Node]) -> Node:
        """Returns what any of ``nodes`` allows."""
        return self._group(nodes, AnyOf, self.nothing, self.anything)

    def _group(self, nodes: Iterable[Node], kind: type[AllOf | AnyOf], neutral: Node, absorbing: Node) -> Node:
        parts: set[Node] = set()
        for node in nodes:
            if node is absorbing:
                return absorbing
            parts.update(node.parts if isinstance(node, kind) else (node,))
        parts.discard(neutral)
        if any(isinstance(part, Opposite) and part.inner in parts for part in parts):
            return absorbing
        if len(parts) <= 1:
            return parts.pop() if parts else neutral
        return self._interned(kind, tuple(sorted(parts, key=lambda part: part.serial)))

    def opposite(self, node: Node) -> Node:
        """Returns what ``node`` does not allow."""
        if isinstance(node, Opposite):
            return node.inner
        if node is self.anything:
            return self.nothing
        return self.anything if node is self.nothing else self._interned(Opposite, node)
