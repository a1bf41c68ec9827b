"""Random JSON schemas over all keywords, and values near their boundaries: short names, few of them, small numbers."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("a", "b", "c", "xa")
TEXTS = ("", "a", "b", "ab", "abc", "foo", "x", "xa", "12", 'é"q', "aaaa")
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, -1, -3, 2.5, 1.0, 0.5, 10, 12)
PATTERNS = ("^a", "b$", "^[a-b]*$", "o", "^(?!a)", r"\d")
_KEYWORDS = (
    "type type enum const minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern "
    "properties properties properties required additionalProperties patternProperties propertyNames minProperties "
    "maxProperties items prefixItems contains minItems maxItems uniqueItems allOf anyOf oneOf not if dependentRequired "
    "dependentSchemas unevaluatedProperties unevaluatedItems $ref"
).split()


def value(rng: random.Random, depth: int = 2) -> Any:
    """Returns a random JSON value."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4, 5):
        return rng.choice(TEXTS)
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {name: value(rng, depth - 1) for name in rng.sample(NAMES, rng.randrange(4))}


def shuffled(value: Any, rng: random.Random) -> Any:
    """Returns ``value`` with the members of its objects in another order."""
    if isinstance(value, dict):
        members = list(value.items())
        rng.shuffle(members)
        return {key: shuffled(member, rng) for key, member in members}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def document(rng: random.Random) -> dict[str, Any]:
    """Returns a random schema of draft 2020-12 with two definitions that references lead to."""
    found = schema(rng, rng.choice([2, 3, 4]))
    root = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    root |= {"allOf": [found]} if isinstance(found, bool) else found
    return root | {"$defs": {"one": schema(rng, 1), "two": schema(rng, 2)}}


def schema(rng: random.Random, depth: int) -> Any:
    """Returns a random schema."""
    simple: list[Any] = [
        True, False, {"type": "string"}, {"type": "integer"}, {"minimum": 3}, {"const": 1}, {"maxLength": 2},
        {"enum": ["a", 1, None]}, {"type": ["null", "string"]}, {"pattern": "a"},
    ]  # fmt: skip
    if depth <= 0 or rng.random() < 0.08:
        return rng.choice(simple)
    made: dict[str, Any] = {}
    for keyword in rng.choices(_KEYWORDS, k=rng.choice([1, 1, 2, 2, 3])):
        made |= _keyword(rng, keyword, depth - 1)
    return made


def _keyword(rng: random.Random, keyword: str, depth: int) -> dict[str, Any]:
    def inner() -> Any:
        return schema(rng, depth)

    match keyword:
        case "type":
            types = ["object", "array", "string", "integer", "number", "null", "boolean", "object", "array"]
            return {"type": rng.choice([*types, ["object", "null"], ["string", "integer"]])}
        case "enum":
            return {"enum": [value(rng, 1) for _ in range(3)]}
        case "const":
            return {"const": value(rng)}
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return {keyword: rng.choice([0, 1, 3, -2, 2.5, 5])}
        case "multipleOf":
            return {keyword: rng.choice([1, 2, 3, 0.5, 5, 1.5, 6])}
        case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties":
            return {keyword: rng.randrange(4)}
        case "pattern":
            return {keyword: rng.choice(PATTERNS)}
        case "properties":
            return {keyword: {name: inner() for name in rng.sample(NAMES, rng.choice([1, 2]))}}
        case "dependentSchemas":
            return {keyword: {rng.choice(NAMES): inner()}}
        case "patternProperties":
            return {keyword: {rng.choice(["^x", "a", "^[ab]$", "b"]): inner() for _ in range(rng.choice([1, 2]))}}
        case "required":
            return {keyword: rng.sample(NAMES, rng.choice([1, 2]))}
        case "dependentRequired":
            return {keyword: {rng.choice(NAMES): rng.sample(NAMES, 1)}}
        case "prefixItems":
            return {keyword: [inner() for _ in range(rng.choice([1, 2]))]}
        case "contains":
            low = {"minContains": rng.randrange(3)} if rng.random() < 0.4 else {}
            high = {"maxContains": rng.randrange(1, 3)} if rng.random() < 0.4 else {}
            return {keyword: inner()} | low | high
        case "uniqueItems":
            return {"uniqueItems": True, "items": {"enum": [value(rng, 0) for _ in range(4)]}}
        case "allOf" | "anyOf" | "oneOf":
            return {keyword: [inner() for _ in range(rng.choice([2, 2, 3]))]}
        case "if":
            then = {"then": inner()} if rng.random() < 0.8 else {}
            otherwise = {"else": inner()} if rng.random() < 0.6 else {}
            return {"if": inner()} | then | otherwise
        case "$ref":
            return {keyword: rng.choice(["#/$defs/one", "#/$defs/two", "#"])}
    return {keyword: inner()}
