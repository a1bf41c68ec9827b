"""What the compiler says when it refuses a schema: where, why, and what to do. And that it does not work for long."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import jsonschema
import pytest

from maskd.errors import (
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
    MaskdError,
)
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from tests.lark import matcher_of_lark

OPTIONS = GrammarOptions()
RESOURCES = {
    "http://example.com/range": {"type": "number", "minimum": 4, "exclusiveMaximum": 4},
    "http://example.com/pattern": {"$defs": {"a": {"pattern": r"\bx"}}, "$ref": "#/$defs/a"},
}


def refusal_of(schema: Any) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        compile_schema(schema, OPTIONS, resources=RESOURCES)
    return caught.value


def required(name: str, schema: Any, **others: Any) -> Any:
    return {"type": "object", "required": [name], "properties": {name: schema}, **others}


CONTRADICTIONS: list[tuple[Any, list[str]]] = [
    ({"type": "number", "minimum": 5, "maximum": 3}, ["/minimum", "/maximum"]),
    (
        required("a", {"type": "integer", "minimum": 5, "allOf": [{"maximum": 3}]}),
        ["/properties/a/minimum", "/properties/a/allOf/0/maximum"],
    ),
    (
        required("a", required("b", {"enum": ["x"], "minLength": 2})),
        ["/properties/a/properties/b/enum", "/properties/a/properties/b/minLength"],
    ),
    (required("b", {}, additionalProperties=False, properties={}), ["/required", "/additionalProperties"]),
    (required("a", False), ["/required", "/properties/a"]),
    ({"allOf": [{"type": "string"}, {"type": "number"}]}, ["/allOf/0/type", "/allOf/1/type"]),
    ({"type": "array", "minItems": 3, "maxItems": 2}, ["/minItems", "/maxItems"]),
    ({"type": "array", "contains": {"const": 1}, "items": {"type": "string"}}, ["/contains/const", "/items/type"]),
    (
        {"$defs": {"~/": {"minimum": 10}}, **required("x", {"type": "number", "$ref": "#/$defs/~0~1", "maximum": 4})},
        ["/properties/x/maximum", "/$defs/~0~1/minimum"],
    ),
    (
        {"$ref": "http://example.com/range"},
        ["http://example.com/range#/minimum", "http://example.com/range#/exclusiveMaximum"],
    ),
    (required("next", {"$ref": "#"}), ["/required", "/properties/next/$ref"]),
    (
        {"anyOf": [{"type": "number", "minimum": 5, "maximum": 3}, {"const": "a", "minLength": 2}]},
        ["/anyOf/0/minimum", "/anyOf/0/maximum", "/anyOf/1/const", "/anyOf/1/minLength"],
    ),
    (False, [""]),
    ({"not": {}}, ["/not"]),
    ({"$ref": "#"}, ["/$ref"]),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ["/$defs/a/$ref"]),
]


@pytest.mark.parametrize(("schema", "pointers"), CONTRADICTIONS, ids=lambda value: json.dumps(value)[:60])
def test_compiler_when_nothing_satisfies_then_both_ends_are_named(schema: Any, pointers: list[str]) -> None:
    error = refusal_of(schema)
    assert isinstance(error, GrammarUnsatisfiableError)
    assert [error.metadata["pointer"]] + [
        error.metadata[f"pointer_{n}"] for n in range(2, len(pointers) + 1)
    ] == pointers
    assert all(f" at {pointer}" in error.message for pointer in pointers if len(pointers) > 1)


def test_compiler_when_nothing_satisfies_then_the_ends_alone_contradict_each_other() -> None:
    """The ends of a random schema with a planted contradiction are those that were planted."""
    rng = random.Random(0)
    for _ in range(20):
        names = [f"p{number}" for number in range(rng.randrange(2, 8))]
        schema = {"type": "object", "properties": {name: {"type": "string", "maxLength": 9} for name in names}}
        schema["required"] = rng.sample(names, rng.randrange(1, len(names)))
        guilty = rng.choice(schema["required"])
        schema["allOf"] = [{"properties": {name: {"minLength": 3}}} for name in names if name != guilty]
        schema["allOf"].insert(rng.randrange(len(names)), {"properties": {guilty: {"minLength": 10}}})
        at = schema["allOf"].index({"properties": {guilty: {"minLength": 10}}})
        found = refusal_of(schema).metadata
        assert {found["pointer"], found["pointer_2"]} == {
            f"/properties/{guilty}/maxLength",
            f"/allOf/{at}/properties/{guilty}/minLength",
        }


def test_compiler_when_the_schema_is_large_then_the_search_ends_and_names_what_it_knows() -> None:
    schema = {
        "type": "object",
        "properties": {f"p{number}": {"type": "string", "minLength": number} for number in range(3000)},
        "required": ["p7"],
        "allOf": [{"properties": {"p7": {"maxLength": 3}}}],
    }
    assert isinstance(refusal_of(schema), GrammarUnsatisfiableError)


REFUSALS: list[tuple[Any, type[GrammarError], str, str]] = [
    ({"properties": {"a": 1}}, GrammarError, "/properties/a", ""),
    ({"type": "text"}, GrammarError, "/type", "type"),
    ({"items": {"minLength": "1"}}, GrammarError, "/items/minLength", "minLength"),
    ({"properties": {"a": {"$ref": "#/$defs/b"}}}, GrammarError, "/properties/a/$ref", "$ref"),
    ({"$ref": "#nowhere"}, GrammarError, "/$ref", "$ref"),
    ({"$ref": "http://example.com/unknown"}, GrammarError, "/$ref", "$ref"),
    ({"x": 1, "$ref": "#/x"}, GrammarError, "/$ref", "$ref"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, GrammarUnsupportedError, "", "$ref"),
    ({"items": {"pattern": "("}}, GrammarError, "/items/pattern", "pattern"),
    ({"items": {"pattern": r"\bx"}}, GrammarUnsupportedError, "/items/pattern", "pattern"),
    ({"pattern": "(?<=a)b"}, GrammarUnsupportedError, "/pattern", "pattern"),
    ({"pattern": "(?:(?!a)bc)*d"}, GrammarUnsupportedError, "/pattern", "pattern"),
    (
        {"$ref": "http://example.com/pattern"},
        GrammarUnsupportedError,
        "http://example.com/pattern#/$defs/a/pattern",
        "pattern",
    ),
    ({"patternProperties": {"a/b(": {}}}, GrammarError, "/patternProperties/a~1b(", "patternProperties"),
    ({"type": "array", "not": {"uniqueItems": True}}, GrammarUnsupportedError, "/not", "uniqueItems"),
    (
        {"allOf": [{"anyOf": [{"required": [f"p{i}{j}"]} for j in range(8)]} for i in range(8)]},
        GrammarTooLargeError,
        "/allOf",
        "allOf",
    ),
    (
        {"items": {"patternProperties": {letter: {"minimum": 1} for letter in string.ascii_letters}}},
        GrammarTooLargeError,
        "/items/patternProperties",
        "patternProperties",
    ),
    (
        {
            "anyOf": [{"properties": {f"p{i}": {}}, "required": [f"p{i}"]} for i in range(20)],
            "unevaluatedProperties": False,
        },
        GrammarTooLargeError,
        "/unevaluatedProperties",
        "unevaluatedProperties",
    ),
    (
        {"allOf": [{"contains": {"required": [f"p{i}"]}} for i in range(12)], "type": "array"},
        GrammarTooLargeError,
        "/allOf",
        "allOf",
    ),
    ({"type": "array", "allOf": [{"contains": {"const": i}, "minContains": 10**9} for i in range(3)]},
     GrammarTooLargeError, "/allOf", "contains"),
    ({"items": {"minimum": 10**500}}, GrammarTooLargeError, "/items/minimum", "minimum"),
    ({"items": {"minLength": 10**20}}, GrammarTooLargeError, "/items/minLength", "minLength"),
    ({"minItems": 10**20}, GrammarTooLargeError, "/minItems", "minItems"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "kind", "pointer", "keyword"), REFUSALS, ids=lambda value: str(value)[:50])
def test_compiler_when_it_refuses_then_it_says_where_why_and_what_to_do(
    schema: Any, kind: type[GrammarError], pointer: str, keyword: str
) -> None:
    error = refusal_of(schema)
    assert (type(error), error.metadata["pointer"], error.metadata.get("keyword", "")) == (kind, pointer, keyword)
    assert ";" in error.message, "what is wrong; what to do"


# -- work that stays within bounds ---------------------------------------------------------------------------------


def tagged(count: int, **others: Any) -> Any:
    return [
        {"properties": {"kind": {"const": f"k{i}"}, f"p{i}": {"type": "integer"}}, "required": ["kind"], **others}
        for i in range(count)
    ]


def nested(schema: Any, depth: int, wrap: Any) -> Any:
    for _ in range(depth):
        schema = wrap(schema)
    return schema


WORDS = ["".join(random.Random(i).choices(string.ascii_letters, k=10)) for i in range(100_000)]
LARGE: dict[str, tuple[Any, bool]] = {
    # name: (schema, whether it compiles)
    "oneOf of 1,000 tags": ({"type": "object", "oneOf": tagged(1000)}, True),
    "anyOf of 1,000 tags": ({"type": "object", "anyOf": tagged(1000)}, True),
    "oneOf of 1,000 tags, the rest unevaluated": (
        {"type": "object", "oneOf": tagged(1000), "unevaluatedProperties": False},
        True,
    ),
    "oneOf of 300 that overlap": ({"oneOf": [{"properties": {f"a{i}": {"type": "null"}}} for i in range(300)]}, False),
    "oneOf of 10,000 constants": ({"oneOf": [{"const": f"w{i}"} for i in range(10_000)]}, True),
    "allOf of 10,000 members": ({"allOf": [{"properties": {f"p{i}": {"type": "null"}}} for i in range(10_000)]}, True),
    "allOf of 10,000 bounds": ({"type": "number", "allOf": [{"minimum": i} for i in range(10_000)]}, True),
    "if on 100 kinds": (
        {"allOf": [{"if": branch, "then": {"required": [f"q{i}"]}} for i, branch in enumerate(tagged(100))]},
        False,
    ),
    "if on 100 constants": (
        {
            "allOf": [
                {
                    "if": {"properties": {"kind": {"const": i}}, "required": ["kind"]},
                    "then": {"properties": {"v": {"minimum": i}}},
                }
                for i in range(100)
            ]
        },
        True,
    ),
    "not, 100 deep": (nested({"type": "string"}, 100, lambda schema: {"not": schema}), True),
    "not around allOf, 40 deep": (
        nested(
            {"required": ["a"]}, 40, lambda inner: {"not": {"allOf": [inner, {"properties": {"b": {"type": "null"}}}]}}
        ),
        False,
    ),
    "10,000 properties": ({"properties": {f"p{i}": {"type": "null"} for i in range(10_000)}}, True),
    "10,000 in a circle": ({"dependentRequired": {f"p{i}": [f"p{(i + 1) % 10_000}"] for i in range(10_000)}}, False),
    "enum of 100,000 strings": ({"enum": WORDS}, True),
    "enum of 10,000 objects": ({"enum": [{"a": i, "b": str(i)} for i in range(10_000)]}, False),
    "a class of 10,000 ranges": (
        {"pattern": "^[" + "".join(chr(0x4E00 + 2 * i) for i in range(10_000)) + "]{1,500}$"},
        True,
    ),
    "a pattern of 100,000 characters": ({"pattern": "^" + "a?" * 50_000 + "$"}, True),
    "look-aheads, 40 deep": ({"pattern": "^" + "(?=a(?!b" * 40 + "))" * 40 + ".*$"}, True),
    "20 kinds of items": ({"type": "array", "allOf": [{"contains": {"const": i}} for i in range(20)]}, True),
    "anyOf times allOf": (
        {"allOf": [{"anyOf": [{"required": [f"p{i}{j}"]} for j in range(5)]} for i in range(30)]},
        False,
    ),
    "references, 2,000 in a row": (
        {"$defs": {**{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(2000)}, "d2000": {}}, "$ref": "#/$defs/d0"},
        False,
    ),
    "anyOf of 1,000, the rest unevaluated": (
        {
            "anyOf": [{"properties": {f"p{i}": {}}, "required": [f"p{i}"]} for i in range(1000)],
            "unevaluatedItems": False,
        },
        False,
    ),
    "a bound of 309 digits": ({"type": "number", "minimum": 1e308, "maximum": 1.7e308}, True),
}


@pytest.mark.parametrize("name", LARGE)
def test_compiler_when_a_schema_is_large_then_it_compiles_or_is_refused(name: str) -> None:
    schema, compiles = LARGE[name]
    try:
        compile_schema(schema, OPTIONS)
    except MaskdError as error:
        assert not compiles, error.message
        assert isinstance(error, GrammarTooLargeError)
        assert "pointer" in error.metadata
    else:
        assert compiles


def takes(matcher: Any, value: Any) -> bool:
    copy, tokens = matcher.deep_copy(), list(json.dumps(value).encode())
    return copy.try_consume_tokens(tokens) == len(tokens) and bool(copy.is_accepting())


@pytest.mark.parametrize("seed", range(12))
def test_compiler_when_branches_are_told_apart_by_constants_then_agrees_with_a_validator(seed: int) -> None:
    """Branches of oneOf, anyOf and if with a discriminator, which may be equal to another one, or missing."""
    rng = random.Random(seed)
    names = ["kind", "sort", "a", "b"]

    def branch() -> Any:
        tag = rng.choice(names[:2])
        values = rng.sample(["x", "y", "z", 1, True, 1.0], rng.randrange(1, 3))
        found = {"properties": {tag: {"enum": values} if rng.random() < 0.5 else {"const": values[0]}}}
        if rng.random() < 0.8:
            found["required"] = [tag]
        if rng.random() < 0.6:
            found["properties"][rng.choice(names[2:])] = {"type": rng.choice(["string", "integer"])}
        return found

    for _ in range(12):
        schema: Any = {"type": "object", rng.choice(["oneOf", "anyOf"]): [branch() for _ in range(rng.randrange(2, 6))]}
        if rng.random() < 0.4:
            schema["allOf"] = [{"if": branch(), "then": branch(), "else": branch()} for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.3:
            schema["unevaluatedProperties"] = False
        validator = jsonschema.Draft202012Validator(schema)
        values = [
            {name: rng.choice(["x", "y", "z", 1, True, "w"]) for name in rng.sample(names, rng.randrange(5))}
            for _ in range(40)
        ]
        try:
            matcher = matcher_of_lark(compile_schema(schema, OPTIONS).lark)
        except GrammarUnsatisfiableError:
            assert not any(map(validator.is_valid, values)), schema
            continue
        except GrammarTooLargeError:
            continue
        for value in values:
            assert takes(matcher, value) == validator.is_valid(value), (schema, value)
