"""What is taken can always be completed: schemas whose counts and conditions once led into a row without a token."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest

from maskd import backends
from maskd.backends.base import Backend, Grammar
from maskd.errors import GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec
from tests.byte_grammars import VOCABULARY, takes, walk

INTEGERS = {"a": {"const": 1}, "b": {"const": 1}, "c": {"const": 1}}
OTHER_THAN_A_STRING = {"not": {"additionalProperties": {"type": "string"}}}
STRING_AND_NUMBER = [{"contains": {"type": "string"}}, {"contains": {"type": "number"}}]


@pytest.fixture(scope="module")
def backend() -> Backend:
    found: Backend = backends.load("llguidance")(VOCABULARY, threads=1)
    return found


def spec_of(schema: Any, **options: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema), "llguidance", GrammarOptions(**options))


@pytest.mark.parametrize("order", ["any", "schema"])
@pytest.mark.parametrize(
    "schema",
    [
        # items: what contains asks for must still have room, and may be needed in the first items already
        {"type": "array", "contains": {"enum": [{}]}, "maxItems": 2},
        {"type": "array", "allOf": STRING_AND_NUMBER, "maxItems": 2},
        {"type": "array", "allOf": STRING_AND_NUMBER, "maxItems": 3, "minItems": 2},
        {"type": "array", "prefixItems": [{}, {}], "items": {"type": "integer"}, "contains": {"type": "string"}},
        {"type": "array", "items": {"type": "string"}, "contains": {"type": "string"}, "maxContains": 2, "minItems": 2},
        {"type": "array", "contains": {"const": 1}, "minContains": 2, "maxContains": 3, "minItems": 4, "maxItems": 5},
        # members: one of them must be as a negation says, with the names and the room that are left
        {"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": False, **OTHER_THAN_A_STRING},
        {"type": "object", "maxProperties": 1, **OTHER_THAN_A_STRING},
        {"type": "object", "maxProperties": 2, "required": ["a"], **OTHER_THAN_A_STRING},
        {"maxProperties": 2, "oneOf": [{}, {"properties": {"c": {"enum": [1]}}}]},
        {"type": "object", "properties": INTEGERS, "additionalProperties": False, "minProperties": 2},
        {
            "type": "object",
            "properties": INTEGERS,
            "additionalProperties": False,
            "minProperties": 2,
            "required": ["b"],
        },
    ],
)
def test_walk_when_counts_and_conditions_must_be_met_then_they_can_be(
    backend: Backend, schema: Any, order: str
) -> None:
    """Random outputs never meet a row that allows nothing, and some of them come to their end."""
    grammar = backend.compile(spec_of(schema, property_order=order))
    outputs = [walk(grammar, random.Random(seed), 120) for seed in range(40)]
    assert any(outputs)


@pytest.mark.parametrize("block", range(4))
def test_array_when_it_begins_with_some_items_then_taken_exactly_if_it_can_be_completed(
    backend: Backend, block: int
) -> None:
    """Random counts over the items 0, 1 and 2, every beginning of up to four items, beside brute force."""
    for seed in range(12):
        rng = random.Random(f"{block} {seed}")
        schema = counting_schema(rng)
        valid = {
            items
            for length in range(8)
            for items in itertools.product(range(3), repeat=length)
            if is_counted(schema, items)
        }
        beginnings = {items[:length] for items in valid for length in range(len(items) + 1)}
        longer = {items[:length] for items in valid for length in range(len(items))}
        try:
            grammar = backend.compile(spec_of(schema))
        except GrammarUnsatisfiableError:
            assert not valid, schema
            continue
        for length in range(1, 5):
            for items in itertools.product(range(3), repeat=length):
                text = "[" + ",".join(map(str, items))
                assert is_begun(grammar, text) == (items in beginnings), (schema, text)
                assert is_begun(grammar, text + ",") == (items in longer), (schema, text)
                assert is_begun(grammar, text + "]") == (items in valid), (schema, text)


def counting_schema(rng: random.Random) -> dict[str, Any]:
    """Returns a schema of arrays whose items are 0, 1 or 2."""

    def some() -> dict[str, Any]:
        return {"enum": rng.sample(range(3), rng.choice([1, 2, 2, 3]))}

    schema: dict[str, Any] = {
        "type": "array",
        "prefixItems": [some() for _ in range(rng.randrange(3))],
        "items": some(),
    }
    if rng.random() < 0.2:
        schema["items"] = False
    if rng.random() < 0.6:
        schema["minItems"] = rng.randrange(4)
    if rng.random() < 0.6:
        schema["maxItems"] = rng.randrange(2, 5)
    schema["allOf"] = [
        {"contains": some(), "minContains": rng.randrange(3)}
        | ({"maxContains": rng.randrange(1, 4)} if rng.random() < 0.4 else {})
        for _ in range(rng.choice([1, 1, 2, 3]))
    ]
    return schema


def is_counted(schema: Any, items: tuple[int, ...]) -> bool:
    """Whether ``items`` are valid under a schema of ``counting_schema``."""
    prefix, rest = schema["prefixItems"], schema["items"]
    for index, item in enumerate(items):
        part = prefix[index] if index < len(prefix) else rest
        if part is False or item not in part["enum"]:
            return False
    if not schema.get("minItems", 0) <= len(items) <= schema.get("maxItems", 99):
        return False
    return all(
        part["minContains"] <= sum(item in part["contains"]["enum"] for item in items) <= part.get("maxContains", 99)
        for part in schema["allOf"]
    )


@pytest.mark.parametrize("order", ["any", "schema"])
@pytest.mark.parametrize("block", range(3))
def test_object_when_it_begins_with_some_members_then_taken_exactly_if_it_can_be_completed(
    backend: Backend, block: int, order: str
) -> None:
    """Random formulas over the members a, b and c with the values 0 and 1, every beginning, beside brute force."""
    every = [
        tuple(zip(names, values, strict=True))
        for count in range(4)
        for names in itertools.permutations("abc", count)
        for values in itertools.product(range(2), repeat=count)
    ]
    for seed in range(25):
        schema = member_schema(random.Random(f"members {block} {seed}"))
        validator = jsonschema.Draft202012Validator(schema)
        valid = {
            members
            for members in every
            if validator.is_valid(dict(members)) and (order == "any" or members == tuple(sorted(members)))
        }
        beginnings = {members[:length] for members in valid for length in range(len(members) + 1)}
        longer = {members[:length] for members in valid for length in range(len(members))}
        try:
            grammar = backend.compile(spec_of(schema, property_order=order))
        except GrammarUnsatisfiableError:
            assert not valid, schema
            continue
        for members in every[1:]:
            text = "{" + ",".join(f'"{name}":{value}' for name, value in members)
            assert is_begun(grammar, text) == (members in beginnings), (schema, text)
            assert is_begun(grammar, text + ",") == (members in longer), (schema, text)
            assert is_begun(grammar, text + "}") == (members in valid), (schema, text)


def member_schema(rng: random.Random) -> dict[str, Any]:
    """Returns a schema of objects whose members are a, b and c, and their values 0 and 1."""

    def condition() -> dict[str, Any]:
        return rng.choice([
            {"not": {"additionalProperties": {"const": rng.randrange(2)}}},
            {"not": {"properties": {name: {"const": rng.randrange(2)} for name in rng.sample("abc", 2)}}},
            {"not": {"required": rng.sample("abc", rng.choice([1, 2]))}},
            {"dependentRequired": {rng.choice("abc"): rng.sample("abc", 1)}},
            {"required": rng.sample("abc", 1)},
            {"maxProperties": rng.randrange(1, 3)},
            {"minProperties": rng.randrange(1, 3)},
        ])  # fmt: skip

    names = {name: {"enum": rng.choice([[0], [1], [0, 1], [0, 1]])} for name in "abc"}
    schema: dict[str, Any] = {"type": "object", "properties": names, "additionalProperties": False}
    schema["allOf"] = [condition() for _ in range(rng.choice([1, 2, 3]))]
    if rng.random() < 0.4:
        schema["anyOf"] = [condition(), condition()]
    return schema


def is_begun(grammar: Grammar, text: str) -> bool:
    """Whether ``grammar`` takes ``text`` as the beginning of an output."""
    return grammar.matcher().accept(list(text.encode())) == len(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "contains": True, "maxContains": 2, "minItems": 3},
        {"type": "array", "allOf": STRING_AND_NUMBER, "maxItems": 1},
        {"type": "object", "maxProperties": 1, "required": ["a"], "properties": {"a": {"type": "string"}}}
        | OTHER_THAN_A_STRING,
        {"maxProperties": 1, "oneOf": [{"type": "object"}, {"type": "object", "additionalProperties": {"items": {}}}]},
        {"type": "object", "additionalProperties": {"type": "string"}, **OTHER_THAN_A_STRING},
    ],
)
def test_schema_when_its_counts_cannot_be_met_then_unsatisfiable(backend: Backend, schema: Any) -> None:
    with pytest.raises(GrammarUnsatisfiableError):
        backend.compile(spec_of(schema))


def test_schema_when_it_asks_about_itself_while_it_is_read_then_the_answer_is_not_kept(backend: Backend) -> None:
    """Nothing satisfies ``a``, which is found only when the schema, to which it refers, is read."""
    schema = {
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        "unevaluatedItems": {},
        "properties": {"a": {"allOf": [{"enum": [None]}], "enum": ["ab"]}},
        "if": {"dependentRequired": {"xa": ["a"]}},
        "then": {"dependentSchemas": {"b": {}}, "properties": {"a": {"$recursiveRef": "#"}}},
    }
    grammar = backend.compile(spec_of(schema))
    for text, fits in (("{}", True), ('{"b": 1}', True), ('{"xa": 1}', True), ('{"a": "ab"}', False)):
        assert takes(grammar, text) == fits, text


@pytest.mark.parametrize("seed", range(4))
def test_few_values_when_they_must_differ_then_no_row_is_empty_and_each_text_is_judged(
    seed: int, backend: Backend
) -> None:
    """Lists of a few values, with prefixes, bounds and contains: all lists of up to four items, and random walks."""
    rng, letters = random.Random(seed), ["a", "b", "c", "d"]
    lists = [list(one) for size in range(5) for one in itertools.permutations([*letters, True, False], size)]

    def some() -> dict[str, Any]:
        return {"enum": rng.sample(letters, rng.randrange(1, 5))} if rng.random() < 0.8 else {"type": "boolean"}

    compiled = 0
    for _ in range(40):
        items = some() if rng.random() < 0.8 else False
        schema: dict[str, Any] = {"type": "array", "uniqueItems": True, "items": items}
        if rng.random() < 0.4:
            schema["prefixItems"] = [some() for _ in range(rng.randrange(1, 4))]
        for keyword, least in (("minItems", 1), ("maxItems", 0)):
            if rng.random() < 0.4:
                schema[keyword] = rng.randrange(least, 5)
        if rng.random() < 0.3:
            schema |= {"contains": some(), rng.choice(["minContains", "maxContains"]): rng.randrange(1, 3)}
        validator = jsonschema.Draft202012Validator(schema)
        try:
            grammar = backend.compile(spec_of(schema))
        except GrammarUnsatisfiableError:
            assert not any(map(validator.is_valid, lists)), schema
            continue
        except GrammarUnsupportedError:
            continue
        compiled += 1
        for one in rng.sample(lists, 60):
            assert takes(grammar, json.dumps(one)) == validator.is_valid(one), (schema, one)
        for _ in range(8):
            text = walk(grammar, rng)
            assert text is None or validator.is_valid(json.loads(text)), (schema, text)
    assert compiled > 10
