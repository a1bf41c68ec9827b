"""Reading: from the keywords of a schema to what it allows.

Owns: what every keyword means, in the draft of its resource, and the value of each node that was asked for.
Knows nothing about: grammars. ``evaluated`` reads schemas with ``unevaluatedItems`` or ``unevaluatedProperties``.
Source: JSON Schema Core 2020-12, sections 8, 10 and 11, Validation 2020-12, section 6; the same of the older drafts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from decimal import Decimal
from urllib.parse import urldefrag

from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, Unenforced
from maskd.json_schema.compiler.documents import Documents, Place, SchemaDraft
from maskd.json_schema.compiler.emptiness import Emptiness
from maskd.json_schema.compiler.formats import format_expression
from maskd.json_schema.compiler.further import is_closed_alone, is_composed
from maskd.json_schema.compiler.nodes import AllOf, AnyOf, Constant, Node, Nodes, Opposite, Reference, Scope
from maskd.json_schema.compiler.numbers import (
    INTEGER,
    PLAIN_INTEGER,
    at_least,
    decimal_of,
    greater,
    in_all,
    multiple,
    number_constants,
)
from maskd.json_schema.compiler.presence import AtLeast, Has, all_of, any_of, negated
from maskd.json_schema.compiler.refusals import located, places
from maskd.json_schema.compiler.values import Algebra, ArrayShape, Contains, Members, ObjectShape, Value
from maskd.json_schema.strict_json import Json
from maskd.regular.assertions import searched
from maskd.regular.charset import ANY
from maskd.regular.expression import (
    ANYTHING,
    NOTHING,
    Expression,
    Words,
    both,
    chars,
    choice,
    complement,
    repeat,
    words,
)

__all__ = ["OpenLoopError", "SchemaReader"]

_ANY_CHAR = chars(ANY)
_MOST_FEW = 100
_MOST_DIGITS = 400
"""Floats have 309 in front of the point, or some 340 behind it."""
_MOST_COUNTED = 2**31 - 1
"""What llguidance counts to; an output of so many characters or items does not end."""
_SINCE = {
    "const": SchemaDraft.DRAFT_6,
    "contains": SchemaDraft.DRAFT_6,
    "propertyNames": SchemaDraft.DRAFT_6,
    "if": SchemaDraft.DRAFT_7,
    "dependentRequired": SchemaDraft.DRAFT_2019,
    "dependentSchemas": SchemaDraft.DRAFT_2019,
    "maxContains": SchemaDraft.DRAFT_2019,
    "minContains": SchemaDraft.DRAFT_2019,
    "unevaluatedItems": SchemaDraft.DRAFT_2019,
    "unevaluatedProperties": SchemaDraft.DRAFT_2019,
    "prefixItems": SchemaDraft.DRAFT_2020,
    "$dynamicRef": SchemaDraft.DRAFT_2020,
}
"""Keywords that are unknown to older drafts, and so ignored in their schemas."""


class OpenLoopError(Exception):
    """A schema refers to itself at the same place of the output. Does not leave the compiler."""


class SchemaReader:
    """What the schemas of one compile allow.

    Where something cannot be done, a lenient reader leaves it away and says so. A schema without one of its keywords
    allows more, but the opposite of that schema less. So what is left away under an odd number of opposites allows
    nothing instead. Values are then bounds: from below under an odd number of opposites, from above elsewhere.

    Args:
        documents: where schemas stand.
        nodes: the arena.
        options: of the grammar.
        is_lenient: whether what cannot be done is left away, instead of refused.

    Attributes:
        algebra: operations on values.
        emptiness: what nothing satisfies.
        unenforced: annotations that look like assertions, each once.
        read_unevaluated: reads a schema with an ``unevaluated…`` keyword; set before the first node is asked for.
    """

    def __init__(
        self, documents: Documents, nodes: Nodes, options: GrammarOptions, *, is_lenient: bool = False
    ) -> None:
        self._documents, self.nodes = documents, nodes
        self._is_lenient, self._is_below = is_lenient, False
        self._assert_formats = options.formats == "assert"
        self._names_have_places = options.property_order == "schema"
        self.emptiness = Emptiness(nodes, self._value_if_known, self._few_values)
        self.algebra = Algebra(
            nodes,
            self.emptiness.array,
            self.emptiness.object_at_sight,
            self.emptiness.object,
            self.emptiness.labels,
        )
        self.unenforced: dict[str, Unenforced] = {}
        self.read_unevaluated: Callable[[Place, Scope], Value]
        self._values: tuple[dict[Node, Value | None], ...] = ({}, {})

    def value(self, node: Node) -> Value:
        """Returns what ``node`` allows.

        Raises:
            GrammarUnsupportedError, GrammarTooLargeError: a part of it cannot be done.
        """
        try:
            return self._value(node)
        except OpenLoopError:
            place = next(places(node), None)
            if place is not None and (loop := self._documents.loop(place)):
                raise GrammarUnsatisfiableError(
                    f"$ref {loop.schema['$ref']!r} leads back to itself, so nothing can satisfy it; "
                    "let it lead elsewhere",
                    pointer=loop.at("$ref"),
                    keyword="$ref",
                ) from None
            raise GrammarUnsupportedError(
                "a reference leads back to its schema at the same place of the output, which JSON Schema leaves "
                "undefined; put it below a property or an item",
                pointer=place.at() if place else "",
                keyword="$ref",
            ) from None

    def _value_if_known(self, node: Node) -> Value | None:
        try:
            return self._from_side(node, is_below=False)
        except OpenLoopError:
            return None

    def _value(self, node: Node) -> Value:
        values = self._values[self._is_below]
        if node in values:
            value = values[node]
            if value is None:
                raise OpenLoopError
            return value
        values[node] = None
        try:
            value = values[node] = self._worked_out(node)
        except BaseException:
            del values[node]
            raise
        return value

    def _from_side(self, node: Node, *, is_below: bool) -> Value:
        """Returns the value of ``node``, or its bound from that side if the reader is lenient."""
        before, self._is_below = self._is_below, is_below and self._is_lenient
        try:
            return self._value(node)
        finally:
            self._is_below = before

    def _taken(self, node: Node) -> Value:
        """Returns what ``node`` allows, to be taken away from something."""
        return self._from_side(node, is_below=not self._is_below)

    def _worked_out(self, node: Node) -> Value:
        algebra = self.algebra
        self.nodes.work.spend(1)
        match node:
            case Reference(place=place, scope=scope):
                with located(place):
                    return self._schema(place, scope)
            case Constant(value=value):
                return algebra.constant(value)
            case AllOf(parts=parts):
                return algebra.all_of(map(self._value, parts))
            case AnyOf(parts=parts):
                return algebra.any_of(map(self._value, parts))
            case Opposite(inner=inner):
                return algebra.opposite(self._taken(inner))
        return algebra.anything if node is self.nodes.anything else Value()

    def _few_values(self, node: Node) -> frozenset[Hashable] | None:
        """Returns the only values that ``node`` can allow, as far as ``const`` and ``enum`` say so; None = any."""
        match node:
            case Constant(value=value):
                return _scalars([value])
            case Reference(place=place) if not self._is_hidden(place):
                if self.has(place, "const"):
                    return _scalars([place.schema["const"]])
                return _scalars(place.schema["enum"]) if "enum" in place.schema else None
            case AllOf(parts=parts):
                known = [values for part in parts if (values := self._few_values(part)) is not None]
                return frozenset.intersection(*known) if known else None
        return None

    # -- a schema --------------------------------------------------------------------------------------------------

    def _schema(self, place: Place, scope: Scope) -> Value:
        is_shared = scope.further == "forbid" and is_composed(place)
        if is_shared or self.has(place, "unevaluatedProperties") or self.has(place, "unevaluatedItems"):
            try:
                return self.read_unevaluated(place, scope)
            except (GrammarTooLargeError, GrammarUnsupportedError) as error:
                unevaluated = [keyword for keyword in place.schema if keyword.startswith("unevaluated")]
                self._give_up(place, (*unevaluated, "additionalProperties")[0], error)
                if self._is_below:
                    return Value()
        found = self.own(place, scope)
        try:
            return self.algebra.all_of((found, *(read() for _, read in self._in_place(place, scope))))
        except (GrammarTooLargeError, GrammarUnsupportedError):
            if not self._is_lenient:
                raise
        for keyword, read in self._in_place(place, scope):
            found = self._restricted(found, place, keyword, read)
        return found

    def _restricted(self, found: Value, place: Place, keyword: str, read: Callable[[], Value]) -> Value:
        """Returns what ``found`` and ``keyword`` both allow; ``read`` returns the latter."""
        try:
            return self.algebra.all_of((found, read()))
        except (GrammarTooLargeError, GrammarUnsupportedError) as error:
            self._give_up(place, keyword, error)
            return Value() if self._is_below else found

    def _give_up(self, place: Place, keyword: str, error: GrammarError) -> None:
        """Leaves ``keyword`` away, or raises ``error`` if the reader is not lenient."""
        if not self._is_lenient:
            raise error
        self._annotate(place, keyword, f"it is not applied: {error.message}")

    def own(self, place: Place, scope: Scope) -> Value:
        """Returns what the keywords allow that look at the value themselves, and apply no other schema to it."""
        schema = place.schema
        if self._is_hidden(place):
            return self.algebra.anything
        found = Value(
            True,
            True,
            True,
            self._numbers(place),
            self._strings(place),
            (self._array(place, scope),),
            (self._object(place, scope),),
        )
        if found == self.algebra.anything:
            found = self.algebra.anything
        parts = [found]
        if "type" in schema:
            parts.append(self._types(place))
        if self.has(place, "const"):
            parts.append(self.algebra.constant(schema["const"]))
        if "enum" in schema:
            return self._restricted(self.algebra.all_of(parts), place, "enum", lambda: self._enum(schema["enum"]))
        return self.algebra.all_of(parts)

    def _is_hidden(self, place: Place) -> bool:
        """Says whether a reference hides all other keywords of a schema."""
        return place.draft <= SchemaDraft.DRAFT_7 and "$ref" in place.schema

    def has(self, place: Place, keyword: str) -> bool:
        """Says whether the schema at ``place`` has ``keyword``, and its draft knows it."""
        return keyword in place.schema and place.draft >= _SINCE.get(keyword, SchemaDraft.DRAFT_4)

    def node(self, schema: Json, scope: Scope) -> Node:
        """Returns the node of a subschema."""
        return self.nodes.schema(schema, scope)

    def _in_place(self, place: Place, scope: Scope) -> Iterator[tuple[str, Callable[[], Value]]]:
        """Yields each keyword that applies other schemas to the same value, and what returns what it allows."""
        schema, later = place.schema, functools.partial
        for target in self.references(place, scope):
            yield "$ref", later(self._value, target)
        if self._is_hidden(place):
            return
        for name, dependent in self.dependencies(place).items():
            keyword = "dependentSchemas" if name in schema.get("dependentSchemas", ()) else "dependencies"
            yield keyword, later(self._if_present, name, self.node(dependent, scope))
        if "allOf" in schema:
            yield from (("allOf", later(self._value, self.node(part, scope))) for part in schema["allOf"])
        if "anyOf" in schema:
            yield "anyOf", later(self._value, self.nodes.any_of(self.node(part, scope) for part in schema["anyOf"]))
        if "oneOf" in schema:
            yield "oneOf", later(self.one_of, [self.node(part, scope) for part in schema["oneOf"]])
        if "not" in schema:
            yield "not", later(self._value, self.nodes.opposite(self.node(schema["not"], scope.of_condition())))
        if self.has(place, "if"):
            yield "if", later(self._conditional, place, scope)

    def references(self, place: Place, scope: Scope) -> Iterator[Node]:
        """Yields what the references of a schema lead to."""
        schema = place.schema
        if isinstance(schema.get("$ref"), str):
            target, _ = self._documents.follow(schema["$ref"], place)
            yield self.node(target, scope)
        if self.has(place, "$dynamicRef"):
            reference = schema["$dynamicRef"]
            target, _ = self._documents.follow(reference, place)
            anchor = urldefrag(reference)[1]
            if isinstance(target, dict) and anchor and target.get("$dynamicAnchor") == anchor:
                target = self._documents.outermost(anchor, scope.resources) or target
            yield self.node(target, scope)
        if "$recursiveRef" in schema and place.draft == SchemaDraft.DRAFT_2019:
            target, _ = self._documents.follow(schema["$recursiveRef"], place)
            if isinstance(target, dict) and target.get("$recursiveAnchor") is True:
                target = self._documents.outermost("", scope.resources) or target
            yield self.node(target, scope)

    def dependencies(self, place: Place) -> dict[str, Json]:
        """Returns the schemas that apply if a member of that name is there."""
        found = {}
        if self.has(place, "dependentSchemas"):
            found.update(place.schema["dependentSchemas"])
        for name, dependent in place.schema.get("dependencies", {}).items():
            if not isinstance(dependent, list | str):
                found.setdefault(name, dependent)
        return found

    def one_of(self, options: Sequence[Node]) -> Value:
        """Returns what exactly one of ``options`` allows."""
        kept = [node for node in options if not self.emptiness.value(self._value(node))]
        return self.algebra.one_of(list(map(self._value, kept)), list(map(self._taken, kept)))

    def _if_present(self, name: str, node: Node) -> Value:
        """Returns what allows ``node`` only, if it is an object with a member ``name``."""
        present = tuple(
            shape
            for alternative in self._value(node).objects
            if (shape := self.algebra.in_all_objects(alternative, ObjectShape((), Has(name)))) is not None
        )
        absent = ObjectShape((), negated(Has(name)))
        every = self.algebra.anything
        return Value(True, True, True, ANYTHING, ANYTHING, every.arrays, (absent, *present))

    def _conditional(self, place: Place, scope: Scope) -> Value:
        schema = place.schema
        condition = self.node(schema["if"], scope.of_condition())
        then = self.node(schema.get("then", True), scope)
        otherwise = self.node(schema.get("else", True), scope)
        if then is self.nodes.anything and otherwise is self.nodes.anything:
            return self.algebra.anything
        branches = (
            self.nodes.all_of((condition, then)),
            self.nodes.all_of((self.nodes.opposite(condition), otherwise)),
        )
        return self.algebra.any_of(map(self._value, branches))

    # -- types and constants ---------------------------------------------------------------------------------------

    def _types(self, place: Place) -> Value:
        declared = place.schema["type"]
        names = [declared] if isinstance(declared, str) else declared
        every = self.algebra.anything
        numbers = [PLAIN_INTEGER if place.draft == SchemaDraft.DRAFT_4 else INTEGER] if "integer" in names else []
        return Value(
            null="null" in names,
            true="boolean" in names,
            false="boolean" in names,
            numbers=ANYTHING if "number" in names else choice(*numbers),
            strings=ANYTHING if "string" in names else choice(),
            arrays=every.arrays if "array" in names else (),
            objects=every.objects if "object" in names else (),
        )

    def _enum(self, options: list[Json]) -> Value:
        texts = [option for option in options if isinstance(option, str)]
        numbers = [option for option in options if isinstance(option, int | float) and not isinstance(option, bool)]
        plain = Value(numbers=number_constants(numbers), strings=words(texts))
        others = (option for option in options if isinstance(option, bool | list | dict | None))
        return self.algebra.any_of((plain, *map(self.algebra.constant, others)))

    # -- numbers and strings ---------------------------------------------------------------------------------------

    def _numbers(self, place: Place) -> Expression:
        schema = place.schema
        found = []
        for keyword, beyond, is_upper in (("minimum", at_least, False), ("maximum", greater, True)):
            exclusive = "exclusive" + keyword.capitalize()
            if keyword in schema:
                bound = self._bound(place, keyword)
                if schema.get(exclusive) is True:  # draft 4
                    beyond = greater if beyond is at_least else at_least
                found.append(complement(beyond(bound)) if is_upper else beyond(bound))
            if exclusive in schema and not isinstance(schema[exclusive], bool) and place.draft >= SchemaDraft.DRAFT_6:
                bound = self._bound(place, exclusive)
                found.append(complement(at_least(bound)) if is_upper else greater(bound))
        if "multipleOf" in schema:
            found.append(self._written(place, lambda: multiple(decimal_of(schema["multipleOf"])), "multipleOf"))
        return in_all(found)

    def _bound(self, place: Place, keyword: str) -> Decimal:
        bound = decimal_of(place.schema[keyword])
        if len(format(bound, "f")) > _MOST_DIGITS:
            raise GrammarTooLargeError(
                f"{keyword} has more than {_MOST_DIGITS} digits; give a bound with fewer",
                pointer=place.at(keyword),
                keyword=keyword,
                limit="digits",
                value=_MOST_DIGITS,
            )
        return bound

    def _least(self, place: Place, keyword: str, default: int = 0) -> int:
        """Returns a lower bound that counts something."""
        count = int(place.schema.get(keyword, default))
        if count > _MOST_COUNTED:
            raise GrammarTooLargeError(
                f"{keyword} {count} is more than any output has; give {_MOST_COUNTED} at most",
                pointer=place.at(keyword),
                keyword=keyword,
                limit="count",
                value=_MOST_COUNTED,
            )
        return count

    def _most(self, place: Place, keyword: str) -> int | None:
        """Returns an upper bound that counts something; None = there is none, or none that any output reaches."""
        count = place.schema.get(keyword)
        return None if count is None or count > _MOST_COUNTED else int(count)

    def _strings(self, place: Place) -> Expression:
        schema = place.schema
        found = []
        if "minLength" in schema or "maxLength" in schema:
            low, high = self._least(place, "minLength"), self._most(place, "maxLength")
            found.append(choice() if high is not None and high < low else repeat(_ANY_CHAR, low, high))
        if "pattern" in schema:
            found.append(self._written(place, lambda: searched(schema["pattern"]), "pattern"))
        if isinstance(name := schema.get("format"), str):
            expression = format_expression(name) if self._assert_formats else None
            if expression is not None:
                found.append(expression)
            else:
                self._annotate(place, "format", f"any string is allowed where the format {name!r} is asked for")
        return both(*found)

    def _written(
        self, place: Place, read: Callable[[], Expression], *keys: str, is_wide: bool | None = None
    ) -> Expression:
        """Returns what ``read`` does, or if that cannot be done, every text or none; ``is_wide`` says which."""
        try:
            with located(place, *keys):
                return read()
        except (GrammarTooLargeError, GrammarUnsupportedError) as error:
            self._give_up(place, keys[0], error)
            return NOTHING if (self._is_below if is_wide is None else not is_wide) else ANYTHING

    def _annotate(self, place: Place, keyword: str, effect: str) -> None:
        pointer = place.at(keyword)
        self.unenforced.setdefault(pointer, Unenforced(pointer, keyword, effect))

    def note(self, keyword: str, effect: str) -> None:
        """Adds something that the grammar of this schema cannot enforce."""
        self.unenforced.setdefault(f"{keyword}: {effect}", Unenforced("", keyword, effect))

    # -- arrays ----------------------------------------------------------------------------------------------------

    def _array(self, place: Place, scope: Scope) -> ArrayShape:
        schema, anything = place.schema, self.nodes.anything
        inner = scope.of_part()
        prefix, rest = self.items(place)
        contains: tuple[Contains, ...] = ()
        if self.has(place, "contains"):
            low, high = 1, None
            if self.has(place, "minContains"):
                low = self._least(place, "minContains")
            if self.has(place, "maxContains"):
                high = self._most(place, "maxContains")
            if low or high is not None:
                contains = (Contains(self.node(schema["contains"], scope.of_condition()), 0, low, high),)
        nodes = [self.node(item, inner) for item in prefix]
        following = anything if rest is None else self.node(rest, inner)
        while nodes and nodes[-1] is following:
            nodes.pop()
        return ArrayShape(
            tuple(nodes),
            following,
            self._least(place, "minItems"),
            self._most(place, "maxItems"),
            contains,
            True if schema.get("uniqueItems") is True else None,
        )

    def items(self, place: Place) -> tuple[list[Json], Json | None]:
        """Returns the schemas of the first items, and that of all further ones; None = there is none."""
        schema = place.schema
        if place.draft >= SchemaDraft.DRAFT_2020:
            if isinstance(schema.get("items"), list):  # of an older draft, and plain in what it means
                return schema["items"], schema.get("additionalItems")
            return schema.get("prefixItems", []), schema.get("items")
        if isinstance(schema.get("items"), list):
            return schema["items"], schema.get("additionalItems")
        return [], schema.get("items")

    # -- objects ---------------------------------------------------------------------------------------------------

    def _object(self, place: Place, scope: Scope) -> ObjectShape:
        schema, nodes, inner = place.schema, self.nodes, scope.of_part()
        members = [
            Members(words((name,)), self.node(part, inner)) for name, part in schema.get("properties", {}).items()
        ]
        for pattern, part in schema.get("patternProperties", {}).items():
            keys = self._pattern_keys(place, pattern, is_wide=self._is_below)
            members.append(Members(keys, self.node(part, inner)))
        others: Json = schema.get("additionalProperties", True)
        if scope.further == "forbid" and is_closed_alone(place):
            others = False
        if others is not True:
            members.append(Members(complement(self.named_keys(place)), self.node(others, inner)))
        if self.has(place, "propertyNames"):
            allowed = self._value(self.node(schema["propertyNames"], scope.of_condition())).strings
            members.append(Members(complement(allowed), nodes.nothing))
        kept = [part for part in members if self._asks(part)]
        presence = [Has(name) for name in schema.get("required", []) if isinstance(schema["required"], list)]
        least, most = self._least(place, "minProperties"), self._most(place, "maxProperties")
        formula = all_of(
            (
                *presence,
                *((AtLeast(least),) if least > 0 else ()),
                *((negated(AtLeast(most + 1)),) if most is not None else ()),
                *(
                    any_of((negated(Has(name)), all_of(map(Has, needed))))
                    for name, needed in self._required_with(place)
                ),
            )
        )
        return ObjectShape(tuple(dict.fromkeys(kept)), formula)

    def _asks(self, members: Members) -> bool:
        """Whether ``members`` ask for something: a value, or a place among the other members."""
        has_place = self._names_have_places and isinstance(members.keys, Words)
        return members.keys is not choice() and (has_place or members.node is not self.nodes.anything)

    def named_keys(self, place: Place) -> Expression:
        """Returns the keys that ``properties`` and ``patternProperties`` name."""
        schema = place.schema
        is_wide = not self._is_below
        patterns = (self._pattern_keys(place, key, is_wide=is_wide) for key in schema.get("patternProperties", {}))
        return choice(words(schema.get("properties", ())), *patterns)

    def _pattern_keys(self, place: Place, pattern: str, *, is_wide: bool) -> Expression:
        return self._written(place, lambda: searched(pattern), "patternProperties", pattern, is_wide=is_wide)

    def _required_with(self, place: Place) -> Iterator[tuple[str, list[str]]]:
        if self.has(place, "dependentRequired"):
            yield from place.schema["dependentRequired"].items()
        for name, needed in place.schema.get("dependencies", {}).items():
            if isinstance(needed, list | str):
                yield name, [needed] if isinstance(needed, str) else needed


def _scalars(values: list[Json]) -> frozenset[Hashable] | None:
    """Returns ``values`` so that equal ones are equal in Python, too; None if there are many, or if one has parts."""
    if len(values) > _MOST_FEW or any(isinstance(value, list | dict) for value in values):
        return None
    return frozenset(
        (type(value), value) if isinstance(value, str | bool | None) else decimal_of(value) for value in values
    )
