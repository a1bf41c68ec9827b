"""What of a JSON schema a backend does not enforce, keyword by keyword.

Owns: the table for xgrammar 0.2.8. llguidance refuses what it cannot enforce, so it has no table.
Knows nothing about: grammars, tokens, the libraries' code.

``tests/contract/test_keyword_enforcement.py`` probes the library with a valid and an invalid instance for each entry.
It fails where table and library disagree.

How xgrammar reads a schema: the first of ``$ref const enum anyOf oneOf allOf type`` decides (``DECIDING``). Its
siblings are not read. An ``allOf`` with two members or more is not read at all. Without a deciding keyword, object or
array keywords make the schema an object or an array. Everything else makes it any value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from maskd.grammar import Unenforced
from maskd.json_schema.keywords import DYNAMIC_REFERENCES, TYPE_OF, subschemas
from maskd.json_schema.patterns import misread
from maskd.json_schema.schema import JsonSchema
from maskd.json_schema.strict_json import Json, Path
from maskd.json_schema.types import DECIDING, Types, are_disjoint, constants, deciding_keyword, has_type, types_of

__all__ = ["KNOWN_FORMATS", "NAMES_AGAIN", "may_name_again", "unenforced"]

KNOWN_FORMATS = frozenset({
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "json-pointer", "relative-json-pointer",
    "time", "uri", "uri-reference", "uri-template", "uuid",
})  # fmt: skip
"""The formats that xgrammar enforces."""

_CONSTRAINING = frozenset({*TYPE_OF, *DYNAMIC_REFERENCES, *DECIDING, "if", "not"})
_IDLE_IF_TRUE = ("additionalItems", "additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties")

_EFFECTS = {
    "$dynamicRef": "the schema it leads to is not applied",
    "$recursiveRef": "the schema it leads to is not applied",
    "additionalProperties": "further properties may have any name and value",
    "allOf": "none of its schemas is applied; any value may appear",
    "contains": "no item need match it",
    "dependencies": "properties that it asks for may be missing",
    "dependentRequired": "properties that it asks for may be missing",
    "dependentSchemas": "its schemas are not applied",
    "format": "the string may be any string",
    "if": "then and else are not applied",
    "maxContains": "more items may match",
    "minContains": "fewer items may match",
    "multipleOf": "the number need not be a multiple",
    "not": "values that it forbids may appear",
    "oneOf": "values that match more than one of its schemas may appear",
    "pattern": "a look-around, an anchor or an escape in it is not applied",
    "patternProperties": "properties with these names may have other values",
    "properties": "a name that is not ASCII may come again, with any value",
    "propertyNames": "properties may have other names",
    "required": "properties that it asks for may be missing",
    "unevaluatedItems": "further items may appear",
    "unevaluatedProperties": "further properties may appear",
    "uniqueItems": "items may repeat",
}


def unenforced(schema: JsonSchema, backend: str) -> tuple[Unenforced, ...]:
    """Returns what the masks of ``backend`` do not enforce of ``schema``, in the order of the document."""
    if backend != "xgrammar" or schema.value is True:
        return ()
    found: dict[str, Unenforced] = {}
    types = Types(lambda reference: schema.lookup(reference)[1])
    stack: list[tuple[Path, Json, str | None]] = [((), schema.value, None)]
    seen: set[int] = set()
    while stack:
        path, node, default_type = stack.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        reader = _Reader(schema, node, default_type, types)
        for keyword in reader.ignored():
            where = schema.pointer_to((*path, keyword))
            found.setdefault(
                where, Unenforced(where, keyword, _EFFECTS.get(keyword, "values that it forbids may appear"))
            )
        if "$ref" in node:
            stack.append((*schema.lookup(node["$ref"]), None))
        else:
            read = [(step, child) for step, child in subschemas(node) if step[0] in reader.read]
            stack.extend(
                ((*path, *step), child, "string" if step == ("propertyNames",) else None)
                for step, child in reversed(read)
            )
    return tuple(found.values())


NAMES_AGAIN = (
    "in an object that allows further properties, a name may come twice or be spelled with \\u escapes; "
    "it then counts as a further property, and escapes the schema of that name"
)
"""Both libraries compare names as they are spelled."""


def may_name_again(schema: JsonSchema) -> bool:
    """Whether ``NAMES_AGAIN`` matters: some object has named properties and allows others."""
    return any(
        isinstance(node, dict) and node.get("properties") and node.get("additionalProperties") is not False
        for _, node in schema.schemas()
    )


class _Reader:
    """One schema as xgrammar reads it.

    Attributes:
        read: the keywords whose subschemas xgrammar reads; known once ``ignored`` is exhausted.
    """

    def __init__(self, schema: JsonSchema, node: Json, default_type: str | None, possible: Types) -> None:
        self._schema = schema
        self._possible = possible
        self._node = node
        self._deciding = deciding_keyword(node)
        self._types = types_of(node) or ((default_type,) if default_type else ())
        self.read: frozenset[str] = frozenset()

    def ignored(self) -> Iterator[str]:
        """Yields the keywords that constrain the value and are not enforced; sets ``read``."""
        if self._deciding == "$ref" and re.search(r"draft-0[3467]/", self._schema.value.get("$schema", "")):
            return  # up to draft 7 nothing beside a reference is read
        if self._deciding in (None, "type"):
            yield from self._of_types()
        else:
            yield from self._beside_deciding()

    def _constraints(self) -> Iterator[str]:
        """Yields the keywords of the schema that constrain anything."""
        for keyword, value in self._node.items():
            idle = (
                (keyword == "if" and not ("then" in self._node or "else" in self._node))
                or (keyword in ("minContains", "maxContains") and "contains" not in self._node)
                or (keyword in _IDLE_IF_TRUE and value is True)
                or (keyword == "uniqueItems" and value is False)
            )
            if not idle and keyword in _CONSTRAINING:
                yield keyword

    def _beside_deciding(self) -> Iterator[str]:
        node, deciding = self._node, self._deciding
        lost = deciding == "allOf" and len(node["allOf"]) > 1
        self.read = frozenset({deciding} if deciding in ("anyOf", "oneOf", "allOf") and not lost else ())
        values = constants(node) if deciding in ("const", "enum") else None
        for keyword in self._constraints():
            if keyword == deciding:
                enforced = not (lost or (keyword == "oneOf" and not are_disjoint(self._possible, node["oneOf"])))
            elif values is not None:
                enforced = all(fits(value, keyword, node[keyword]) for value in values)
            else:
                enforced = keyword == "type" and self._branches_imply_type()
            if not enforced:
                yield keyword

    def _branches_imply_type(self) -> bool:
        branches = [self._node] if self._deciding == "$ref" else self._node[self._deciding]
        wanted = set(self._types) | ({"integer"} if "number" in self._types else set())
        return all(self._possible.of(branch) <= wanted for branch in branches)

    def _of_types(self) -> Iterator[str]:
        node = self._node
        self.read = frozenset[str]().union(*(_READ.get(name, ()) for name in self._types))
        if node.get("patternProperties"):
            self.read -= {"propertyNames"}
        enforced: dict[str, frozenset[str]] = {}  # type as in ``TYPE_OF`` → keywords enforced for all such values
        for name in self._types:
            if name in _ENFORCED:
                looked_at = "number" if name == "integer" else name
                enforced[looked_at] = enforced.get(looked_at, _ALL) & _ENFORCED[name](node)
        for keyword in self._constraints():
            looked_at = TYPE_OF.get(keyword, "")
            if keyword != "type" and (not looked_at or not self._types or keyword not in enforced.get(looked_at, _ALL)):
                yield keyword


_ALL = frozenset(TYPE_OF)
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_READ = {
    "array": frozenset({"items", "prefixItems", "additionalItems"}),
    "object": frozenset({"properties", "additionalProperties", "patternProperties", "propertyNames"}),
}


def _string(node: Json) -> frozenset[str]:
    if node.get("format") in KNOWN_FORMATS:
        return frozenset({"format"})
    if "pattern" in node:
        return frozenset({"pattern"} if misread(node["pattern"]) is None else ())
    return frozenset({"minLength", "maxLength"})


def _integer(node: Json) -> frozenset[str]:
    factor = node.get("multipleOf", 1)
    low = max((node[key] for key in ("minimum", "exclusiveMinimum") if key in node), default=None)
    high = min((node[key] for key in ("maximum", "exclusiveMaximum") if key in node), default=None)
    unbounded = low is None and high is None
    narrow = low is not None and high is not None and high - low < 10_000
    return _BOUNDS | ({"multipleOf"} if factor == int(factor) and factor <= 1024 and (unbounded or narrow) else set())


def _object(node: Json) -> frozenset[str]:
    properties, patterns = node.get("properties") or {}, node.get("patternProperties") or {}
    names = node.get("propertyNames")
    closed = node.get("additionalProperties") is False
    conditions = {
        "properties": closed or all(map(str.isascii, properties)),
        "required": all(name in properties for name in node.get("required", ())),
        "patternProperties": len(patterns) == 1
        and (closed or not properties)
        and not any(map(misread, patterns))
        and all(_matches(pattern, name) is False for pattern in patterns for name in properties),
        "propertyNames": isinstance(names, dict)
        and not patterns
        and all(fits(name, keyword, names[keyword]) for name in properties for keyword in names),
    }
    always = {"additionalProperties", "minProperties", "maxProperties"}
    return frozenset(always.union(keyword for keyword, holds in conditions.items() if holds))


_ENFORCED: dict[str, Callable[[Json], frozenset[str]]] = {
    "string": _string,
    "integer": _integer,
    "number": lambda node: _BOUNDS,
    "array": lambda node: _READ["array"] | {"minItems", "maxItems"},
    "object": _object,
}


def _matches(pattern: str, text: str) -> bool | None:
    """Whether ``pattern`` is found in ``text``; None if Python cannot say."""
    if len(pattern) > 200 or len(text) > 200 or re.search(r"[*+}].*[*+}{]", pattern):
        return None  # Python's matcher backtracks, and clients write both pattern and text
    try:
        return re.search(pattern, text) is not None
    except (re.error, RecursionError, OverflowError):
        return None


def fits(value: Json, keyword: str, argument: Json) -> bool:
    """Whether ``value`` is certain to satisfy ``keyword`` with ``argument``; False where that is not simple to say."""
    if keyword in TYPE_OF and not has_type(value, TYPE_OF[keyword]):
        return True
    if keyword == "pattern":
        return _matches(argument, value) is True
    comparison = _COMPARISONS.get(keyword)
    return comparison is not None and comparison(value, argument)


_COMPARISONS: dict[str, Callable[[Json, Json], bool]] = {
    "const": lambda value, argument: bool(value == argument),
    "enum": lambda value, argument: value in argument,
    "exclusiveMaximum": lambda value, argument: bool(value < argument),
    "exclusiveMinimum": lambda value, argument: bool(value > argument),
    "maxLength": lambda value, argument: len(value) <= argument,
    "maximum": lambda value, argument: bool(value <= argument),
    "minLength": lambda value, argument: len(value) >= argument,
    "minimum": lambda value, argument: bool(value >= argument),
    "type": lambda value, argument: any(
        has_type(value, name) for name in ([argument] if isinstance(argument, str) else argument)
    ),
}
