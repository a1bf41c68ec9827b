"""Random JSON schemas over all keywords of all drafts: short names, few of them, small numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jsonschema

from tests.random_values import NAMES, value


class Draft(NamedTuple):
    """One version of JSON Schema, as the validators of python-jsonschema have it."""

    year: int
    address: str
    validator: Any


DRAFTS = (
    Draft(4, "http://json-schema.org/draft-04/schema#", jsonschema.Draft4Validator),
    Draft(6, "http://json-schema.org/draft-06/schema#", jsonschema.Draft6Validator),
    Draft(7, "http://json-schema.org/draft-07/schema#", jsonschema.Draft7Validator),
    Draft(2019, "https://json-schema.org/draft/2019-09/schema", jsonschema.Draft201909Validator),
    Draft(2020, "https://json-schema.org/draft/2020-12/schema", jsonschema.Draft202012Validator),
)
FORMATS = {4: ("ipv4", "ipv6"), 7: ("date",), 2019: ("uuid",)}
"""Formats that a draft knows, and of which python-jsonschema's checker thinks as their RFC does."""
_PATTERNS = ("^a", "b$", "^[a-b]*$", "o", "^(?!a)", r"\d", "(ab|x)+$", "^.{2,3}$", r"^[^\s\d]")
_SINCE = {
    4: "type type enum minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern format "
    "properties properties properties required additionalProperties patternProperties minProperties maxProperties "
    "items minItems maxItems uniqueItems allOf anyOf oneOf not $ref",
    6: "const contains propertyNames",
    7: "if",
    2019: "dependentRequired dependentSchemas unevaluatedProperties unevaluatedItems",
    2020: "prefixItems $dynamicRef",
}
_PLAIN = (
    "type type enum minimum maxLength properties properties patternProperties required items prefixItems contains "
    "minProperties"
)
_UNTIL = {7: "dependencies", 2019: "itemList $recursiveRef"}


def document(rng: random.Random, draft: Draft = DRAFTS[-1]) -> dict[str, Any]:
    """Returns a random schema of ``draft``, with definitions that references lead to."""
    return _Making(rng, draft.year).document() | {"$schema": draft.address}


def plain(rng: random.Random) -> Any:
    """Returns a random schema of draft 2020-12 in which each value has one schema."""
    return _Making(rng, 2020, _PLAIN.split())._schema(3)


def closed(schema: Any) -> Any:
    """Returns a ``plain`` schema whose objects have only the members that it names."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: part if key in ("enum", "const") else closed(part) for key, part in schema.items()}
    for named in ("properties", "patternProperties"):
        if named in schema:
            found[named] = {key: closed(part) for key, part in schema[named].items()}
    declared = schema.get("type", "object" if schema.keys() & {"properties", "patternProperties"} else ())
    if "object" in declared and not schema.keys() & {"additionalProperties", "unevaluatedProperties"}:
        found["additionalProperties"] = False
    return found


class _Making:
    def __init__(self, rng: random.Random, year: int, keywords: Sequence[str] = ()) -> None:
        self._rng, self._year = rng, year
        # python-jsonschema 4.26 thinks that in 2019-09 a schema for further properties evaluates none of them, and that
        # what contains is satisfied by is evaluated.
        self._further_is_boolean = year == 2019 and rng.random() < 0.5
        if keywords:
            self._keywords = list(keywords)
            return
        self._keywords = [word for since, words in _SINCE.items() if year >= since for word in words.split()]
        self._keywords += [word for until, words in _UNTIL.items() if year <= until for word in words.split()]

        if year == 2019 and not self._further_is_boolean:
            self._keywords.remove("unevaluatedProperties")
        if year == 2019:
            self._keywords.remove(rng.choice(["contains", "unevaluatedItems"]))

    def document(self) -> dict[str, Any]:
        rng, year = self._rng, self._year
        found = self._schema(rng.choice([2, 3, 4]))
        root: dict[str, Any] = {"allOf": [found]} if isinstance(found, bool) or "$ref" in found else found
        one, two, other = self._schema(1), self._schema(2), self._object(self._schema(2))
        own = "id" if year == 4 else "$id"
        anchor = {own: "#spot"} if year < 2019 else {"$anchor": "spot"}
        if year == 2020:
            root[rng.choice(["$anchor", "$dynamicAnchor"])] = "node"
        if year == 2019 and rng.random() < 0.5:
            root["$recursiveAnchor"] = True
        other |= {own: "other"}
        if year == 2020:
            other |= {"$dynamicAnchor": "node"}
        if year == 2019:
            other |= {"$recursiveAnchor": True}
        definitions = {"one": one, "two": self._object(two) | anchor, "other": other}
        return {own: "http://example.com/root"} | root | {"$defs" if year >= 2019 else "definitions": definitions}

    def _object(self, schema: Any) -> dict[str, Any]:
        """Returns ``schema`` as an object, and without a reference that would hide what stands beside it."""
        return {"allOf": [schema]} if isinstance(schema, bool) or "$ref" in schema else schema

    def _schema(self, depth: int) -> Any:
        rng = self._rng
        simple: list[Any] = [
            True, False, {"type": "string"}, {"type": "integer"}, {"minimum": 3}, {"enum": [1]}, {"maxLength": 2},
            {"enum": ["a", 1, None]}, {"type": ["null", "string"]}, {"pattern": "a"},
        ]  # fmt: skip
        if self._year == 4:
            simple[:2] = {}, {"not": {}}
        if depth <= 0 or rng.random() < 0.08:
            return rng.choice(simple)
        made: dict[str, Any] = {}
        for keyword in rng.choices(self._keywords, k=rng.choice([1, 1, 2, 2, 3])):
            made |= self._keyword(keyword, lambda: self._schema(depth - 1))
        return made

    def _keyword(self, keyword: str, inner: Callable[[], Any]) -> dict[str, Any]:
        rng = self._rng
        match keyword:
            case "type":
                types = ["object", "array", "string", "integer", "number", "null", "boolean", "object", "array"]
                return {"type": rng.choice([*types, ["object", "null"], ["string", "integer"]])}
            case "enum":
                return {"enum": [value(rng, 1) for _ in range(3)]}
            case "const":
                return {"const": value(rng)}
            case "minimum" | "maximum":
                return {keyword: rng.choice([0, 1, 3, -2, 2.5, 5])}
            case "exclusiveMinimum" | "exclusiveMaximum":
                bound = rng.choice([0, 1, 3, -2, 2.5, 5])
                return {keyword: bound} if self._year > 4 else {keyword: True, keyword[9:].lower(): bound}
            case "multipleOf":
                return {keyword: rng.choice([1, 2, 3, 0.5, 5, 1.5, 6])}
            case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties":
                return {keyword: rng.randrange(4)}
            case "pattern":
                return {keyword: rng.choice(_PATTERNS)}
            case "format":
                return {
                    keyword: rng.choice(
                        [name for since, names in FORMATS.items() if self._year >= since for name in names]
                    )
                }
            case "properties":
                return {keyword: {name: inner() for name in rng.sample(NAMES, rng.choice([1, 2, 2, 3]))}}
            case "additionalProperties" | "unevaluatedProperties" if self._further_is_boolean:
                return {keyword: rng.random() < 0.5}
            case "dependentSchemas":
                return {keyword: {rng.choice(NAMES): inner()}}
            case "dependencies":
                return {keyword: {rng.choice(NAMES): rng.choice([inner, lambda: rng.sample(NAMES, 1)])()}}
            case "patternProperties":
                return {keyword: {rng.choice(["^x", "a", "^[ab]$", "b"]): inner() for _ in range(rng.choice([1, 2]))}}
            case "required":
                return {keyword: rng.sample(NAMES, rng.choice([1, 2]))}
            case "dependentRequired":
                return {keyword: {rng.choice(NAMES): rng.sample(NAMES, 1)}}
            case "prefixItems":
                return {keyword: [inner() for _ in range(rng.choice([1, 2]))]}
            case "itemList":
                further = {"additionalItems": inner()} if rng.random() < 0.5 else {}
                return {"items": [inner() for _ in range(rng.choice([1, 2]))]} | further
            case "contains":
                low = {"minContains": rng.randrange(3)} if rng.random() < 0.4 else {}
                high = {"maxContains": rng.randrange(1, 3)} if rng.random() < 0.4 else {}
                return {keyword: inner()} | low | high
            case "uniqueItems":
                return {"uniqueItems": True, "items": {"enum": [value(rng, rng.choice([0, 0, 1])) for _ in range(4)]}}
            case "allOf" | "anyOf" | "oneOf":
                return {keyword: [inner() for _ in range(rng.choice([2, 2, 3]))]}
            case "if":
                then = {"then": inner()} if rng.random() < 0.8 else {}
                otherwise = {"else": inner()} if rng.random() < 0.6 else {}
                return {"if": inner()} | then | otherwise
            case "$ref":
                where = "$defs" if self._year >= 2019 else "definitions"
                return {
                    keyword: rng.choice([f"root#/{where}/one", f"root#/{where}/two", "#", "root#spot", "other", "root"])
                }
            case "$dynamicRef":
                return {keyword: rng.choice(["#node", "root#node", "other#node", "root#spot"])}
            case "$recursiveRef":
                return {keyword: "#"} if self._year == 2019 else {}
        return {keyword: inner()}


def smallest(schema: Any, fails: Callable[[Any], bool]) -> Any:
    """Returns what is left of ``schema``, for which ``fails`` holds, when nothing more can be left out of it."""
    found = schema
    while (smaller := next((one for one in _smaller(found) if _does(fails, one)), None)) is not None:
        found = smaller
    return found


def _does(fails: Callable[[Any], bool], schema: Any) -> bool:
    try:
        return fails(schema)
    except Exception:  # what is left may be no schema any more
        return False


def _smaller(schema: Any) -> Any:
    """Yields ``schema`` with one part of it left out, larger parts first."""
    if isinstance(schema, dict):
        for key in schema:
            yield {name: part for name, part in schema.items() if name != key}
        for key, part in schema.items():
            yield from ({**schema, key: one} for one in _smaller(part))
    if isinstance(schema, list):
        for index in range(len(schema)):
            yield schema[:index] + schema[index + 1 :]
        for index, part in enumerate(schema):
            yield from ([*schema[:index], one, *schema[index + 1 :]] for one in _smaller(part))
