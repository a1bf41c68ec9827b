"""``unevaluatedItems`` and ``unevaluatedProperties``: what no other keyword has looked at.

Which members and items were looked at depends on which branches hold. So a schema is taken apart into alternatives,
each with what it allows and what it evaluates. What remains is then a constraint as any other. In the same way a schema
forbids what it does not name, where the options ask for that (``further``).
Knows nothing about: grammars. Source: JSON Schema Core 2020-12, section 11.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maskd.errors import GrammarTooLargeError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.documents import Documents, Place, SchemaDraft
from maskd.json_schema.compiler.further import is_composed, is_object
from maskd.json_schema.compiler.nodes import AllOf, Node, Nodes, Reference, Scope, Work
from maskd.json_schema.compiler.presence import ALWAYS, Has, negated
from maskd.json_schema.compiler.reading import OpenLoopError, SchemaReader
from maskd.json_schema.compiler.values import ArrayShape, Members, ObjectShape, Value
from maskd.json_schema.strict_json import Json
from maskd.regular.expression import ANYTHING, NOTHING, Expression, choice, complement

__all__ = ["Evaluated", "read"]

_MOST_PAIRS = 10_000
"""Most pairs of branches that are put together for one schema: some seconds of work."""


def read(
    documents: Documents, options: GrammarOptions, work: Work | None = None, *, is_lenient: bool = False
) -> tuple[SchemaReader, Node]:
    """Returns a reader of all schemas of ``documents``, and the node of the caller's schema."""
    reader = SchemaReader(documents, Nodes(documents, work), options, is_lenient=is_lenient)
    reader.read_unevaluated = Evaluated(reader).schema
    return reader, reader.nodes.schema(documents.root, Scope(further=options.additional_properties))


@dataclass(frozen=True, slots=True)
class Branch:
    """One way to satisfy a schema.

    Attributes:
        value: what is allowed.
        keys: the members that are evaluated.
        items: how many items are, from the first; None = all.
        contained: items that satisfy one of these are, too.
        is_object: whether a schema of it describes objects.
    """

    value: Value
    keys: Expression = NOTHING
    items: int | None = 0
    contained: tuple[Node, ...] = ()
    is_object: bool = False

    @property
    def evaluates(self) -> bool:
        """Whether it looks at any member or item."""
        return self.keys is not NOTHING or self.items != 0 or bool(self.contained) or self.is_object


class Evaluated:
    """Reads schemas for which it matters what other schemas looked at."""

    def __init__(self, reader: SchemaReader) -> None:
        self._reader = reader
        self._algebra = reader.algebra
        self._pairs = 0
        self._open: set[tuple[Place, Scope]] = set()

    def schema(self, place: Place, scope: Scope) -> Value:
        """Returns what the schema at ``place`` allows."""
        return self._algebra.any_of(branch.value for branch in self._branches_at(place, scope))

    def _branches(self, node: Node) -> list[Branch]:
        match node:
            case Reference(place=place, scope=scope):
                return self._branches_at(place, scope)
            case AllOf(parts=parts):
                return self._all(map(self._branches, parts))
        return [Branch(self._reader.value(node))] if not self._reader.emptiness.node(node) else []

    def _branches_at(self, place: Place, scope: Scope) -> list[Branch]:
        if (place, scope) in self._open:
            raise OpenLoopError
        self._open.add((place, scope))
        try:
            return self._read(place, scope)
        finally:
            self._open.discard((place, scope))

    def _read(self, place: Place, scope: Scope) -> list[Branch]:
        reader, schema, closing = self._reader, place.schema, scope
        if scope.further == "forbid" and is_composed(place):
            scope = scope._replace(further="outer")
        groups = [self._branches(target) for target in reader.references(place, scope)]
        if place.draft <= SchemaDraft.DRAFT_7 and "$ref" in schema:
            return self._all(groups)
        groups.append([self._own(place, scope)])
        for name, dependent in reader.dependencies(place).items():
            every = self._algebra.anything
            absent = Value(True, True, True, ANYTHING, ANYTHING, every.arrays, (ObjectShape((), negated(Has(name))),))
            present = Branch(Value(objects=(ObjectShape((), Has(name)),)))
            branches = self._branches(reader.node(dependent, scope))
            groups.append([Branch(absent), *self._all(([present], branches))])
        groups += [self._branches(reader.node(part, scope)) for part in schema.get("allOf", ())]
        if "anyOf" in schema:
            groups.append(self._any_of([reader.node(part, scope) for part in schema["anyOf"]]))
        if "oneOf" in schema:
            groups.append(self._one_of([reader.node(part, scope) for part in schema["oneOf"]]))
        if "not" in schema:
            groups.append([self._failing(reader.node(schema["not"], scope.of_condition()))])
        if reader.has(place, "if"):
            condition = reader.node(schema["if"], scope.of_condition())
            then = self._branches(reader.node(schema.get("then", True), scope))
            otherwise = self._branches(reader.node(schema.get("else", True), scope))
            holds = self._all((self._branches(condition), then))
            groups.append([*holds, *self._all(([self._failing(condition)], otherwise))])
        return [self._complete(branch, place, closing) for branch in self._all(groups)]

    def _own(self, place: Place, scope: Scope) -> Branch:
        reader = self._reader
        prefix, rest = reader.items(place)
        contained: tuple[Node, ...] = ()
        if reader.has(place, "contains") and place.draft >= SchemaDraft.DRAFT_2020:
            contained = (reader.node(place.schema["contains"], scope.of_condition()),)
        return Branch(
            reader.own(place, scope),
            ANYTHING if "additionalProperties" in place.schema else reader.named_keys(place),
            len(prefix) if rest is None else None,
            contained,
            is_object(place),
        )

    def _complete(self, branch: Branch, place: Place, scope: Scope) -> Branch:
        """Applies to one of its branches what a schema says about members and items that were not looked at."""
        reader, schema, inner = self._reader, place.schema, scope.of_part()
        value, keys, items, contained = branch.value, branch.keys, branch.items, branch.contained
        others: Json | None = schema["unevaluatedProperties"] if reader.has(place, "unevaluatedProperties") else None
        if others is None and scope.further == "forbid" and branch.is_object:
            others = False
        if others is not None:
            if keys is not ANYTHING:
                node = reader.node(others, inner)
                shape = ObjectShape(
                    (Members(complement(keys), node),) if node is not reader.nodes.anything else (), ALWAYS
                )
                value = self._algebra.all_of((value, self._only(objects=(shape,))))
            keys = ANYTHING
        if reader.has(place, "unevaluatedItems"):
            if items is not None:
                node = reader.node(schema["unevaluatedItems"], inner)
                rest = reader.nodes.any_of((node, *contained))
                array = ArrayShape((reader.nodes.anything,) * items if rest is not reader.nodes.anything else (), rest)
                value = self._algebra.all_of((value, self._only(arrays=(array,))))
            items = None
        return Branch(value, keys, items, contained, branch.is_object)

    def _only(
        self, arrays: tuple[ArrayShape, ...] | None = None, objects: tuple[ObjectShape, ...] | None = None
    ) -> Value:
        """Returns what allows everything but arrays, or objects, of another shape."""
        every = self._algebra.anything
        return Value(True, True, True, ANYTHING, ANYTHING, arrays or every.arrays, objects or every.objects)

    # -- branches --------------------------------------------------------------------------------------------------

    def _failing(self, node: Node) -> Branch:
        return Branch(self._reader.value(self._reader.nodes.opposite(node)))

    def _any_of(self, options: Sequence[Node]) -> list[Branch]:
        """Returns a branch for each set of ``options`` that hold; those that look at nothing are one together."""
        looking = [node for node in options if any(branch.evaluates for branch in self._branches(node))]
        blind = self._reader.nodes.any_of(node for node in options if node not in looking)
        none, some = [Branch(self._algebra.anything)], list[Branch]()
        for node in looking:
            holding, failing = self._branches(node), [self._failing(node)]
            some = [*self._all((some, holding)), *self._all((some, failing)), *self._all((none, holding))]
            none = self._all((none, failing))
        return [*some, *self._all((none, [Branch(self._reader.value(blind))]))]

    def _one_of(self, options: Sequence[Node]) -> list[Branch]:
        alone = Branch(self._reader.one_of(options))
        return [branch for option in options for branch in self._all(([alone], self._branches(option)))]

    def _all(self, groups: Iterable[Sequence[Branch]]) -> list[Branch]:
        """Returns the branches in which one of each group holds."""
        known = list(groups)
        if not all(known):
            return []
        found = [self._together(*(group[0] for group in known if len(group) == 1))]
        for group in (group for group in known if len(group) != 1):
            self._pairs += len(found) * len(group)
            if self._pairs > _MOST_PAIRS:
                raise GrammarTooLargeError(
                    "unevaluatedItems or unevaluatedProperties stands beside too many branches; "
                    "write fewer branches of anyOf and oneOf, or additionalProperties",
                    limit="branches",
                    value=_MOST_PAIRS,
                )
            found = [self._together(one, other) for one, other in itertools.product(found, group)]
            found = [branch for branch in found if not self._reader.emptiness.value(branch.value)]
        return found

    def _together(self, *branches: Branch) -> Branch:
        items = [branch.items for branch in branches if branch.items is not None]
        return Branch(
            self._algebra.all_of(branch.value for branch in branches),
            choice(*(branch.keys for branch in branches)),
            max(items, default=0) if len(items) == len(branches) else None,
            tuple(dict.fromkeys(node for branch in branches for node in branch.contained)),
            any(branch.is_object for branch in branches),
        )
