"""Bounded schemas: whatever is valid under the result is valid under the original."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapter.structured_output.bounded import bounded_schema, bounded_spec
from maskd.grammar import GrammarSpec

Json = Any
SMALL = {"type": "integer", "minimum": 0, "maximum": 999}
TEXT = {"type": "string"}
SHORT = {"type": "string", "pattern": "^[A-Za-z]{1,8}$"}
COUNTS = st.integers(0, 10)
KEYS = st.sampled_from(["a", "b", "not", "type"])


def tagged(constant: str, rest: Json) -> Json:
    """An object that a constant in a required property tells from others."""
    return {"type": "object", "properties": {"kind": {"const": constant}, "x": rest}, "required": ["kind"]}


def optional(**keywords: st.SearchStrategy[Json]) -> st.SearchStrategy[dict[str, Json]]:
    return st.fixed_dictionaries({}, optional=keywords)


PATTERNS = st.sampled_from(["^[a-z]+$", r"^\w*$", "x+$", "^(ab|b)+$", r"^a\+$", "^a{2}$", "b*"])
LEAVES = st.one_of(
    st.sampled_from(
        [
            {"const": {"type": "string"}},
            {"enum": ["xxxxxxxxxxxxx", 10**6, None]},
            {"type": "null"},
            {"type": "boolean"},
            True,
            {},
        ]
    ),
    optional(minLength=COUNTS, maxLength=COUNTS, pattern=PATTERNS).map(lambda s: {"type": "string", **s}),
    st.just({"type": "string", "format": "date"}),
    st.tuples(
        st.sampled_from(["integer", "number", ["number", "null"], ["integer", "string", "number"]]),
        optional(
            minimum=st.integers(-2000, 2000),
            maximum=st.floats(-2000, 2000),
            exclusiveMinimum=st.integers(-9, 9),
            multipleOf=st.just(3),
        ),
    ).map(lambda pair: {"type": pair[0], **pair[1]}),
    st.sampled_from([{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]),
)


def schemas(below: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    parts = st.lists(below, min_size=1, max_size=3)
    return st.one_of(
        optional(
            properties=st.dictionaries(KEYS, below, max_size=3),
            additionalProperties=below,
            patternProperties=st.dictionaries(st.just("^a"), below),
        ).map(lambda s: {"type": "object", **s}),
        optional(
            items=below, prefixItems=parts, minItems=COUNTS, maxItems=COUNTS, contains=below, maxContains=COUNTS
        ).map(lambda s: {"type": "array", **s}),
        st.builds(lambda keyword, branches: {keyword: branches}, st.sampled_from(["anyOf", "oneOf", "allOf"]), parts),
        st.builds(lambda part: {"not": part}, below),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, below, below, below),
    )


TREES = st.recursive(LEAVES, schemas, max_leaves=6)
DOCUMENTS = st.builds(
    lambda schema, x, y: {"allOf": [schema], "$defs": {"x": x, "y": y}},
    TREES,
    LEAVES,
    st.sampled_from([True, {"type": "number"}]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3000, 3000),
    st.floats(-10, 1010),
    st.text("ab", max_size=12),
    st.sampled_from(["abcdefghijkl", "a+", "x" * 13, 10**6]),
)
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=6) | st.dictionaries(KEYS, below, max_size=3), max_leaves=6
)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.lists(VALUES, max_size=12))
def test_bounded_when_a_value_is_valid_then_the_original_allows_it(schema: Json, values: list[Json]) -> None:
    before = json.dumps(schema)
    bounded = bounded_schema(schema)
    assert before == json.dumps(schema)
    original = jsonschema.Draft202012Validator(schema)
    subset = jsonschema.Draft202012Validator(bounded)
    jsonschema.Draft202012Validator.check_schema(bounded)
    try:
        for value in values:
            assert original.is_valid(value) or not subset.is_valid(value), (bounded, value)
    except RecursionError:  # "$ref" to itself through nothing but "allOf": no schema at all
        pass


@pytest.mark.parametrize(
    ("schema", "want"),
    [
        ({"type": "string"}, {"type": "string", "pattern": "^[A-Za-z]{1,8}$"}),
        ({"type": "string", "maxLength": 10}, {"type": "string", "pattern": "^[A-Za-z]{1,8}$"}),
        ({"type": "string", "minLength": 12, "maxLength": 20}, {"type": "string", "pattern": "^[A-Za-z]{12,12}$"}),
        ({"type": "string", "pattern": r"^[\w]+$"}, {"type": "string", "pattern": r"^[\w]{1,8}$"}),
        ({"type": "string", "pattern": r"^a\+$"}, {"type": "string", "pattern": r"^a\+$"}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"enum": ["a"], "type": "string"}, {"enum": ["a"], "type": "string"}),
        ({"type": "number"}, SMALL),
        ({"type": "integer", "minimum": 5}, {"type": "integer", "minimum": 5, "maximum": 1004}),
        ({"type": "integer", "minimum": 5, "maximum": 7}, {"type": "integer", "minimum": 5, "maximum": 7}),
        ({"type": "array", "minItems": 6}, {"type": "array", "minItems": 6, "maxItems": 6}),
        ({"type": "array", "items": {"type": "number"}}, {"type": "array", "items": SMALL, "maxItems": 4}),
        (
            {"oneOf": [{"type": "string"}, {"type": "null"}]},
            {"oneOf": [{"type": "string", "pattern": "^[A-Za-z]{1,8}$"}, {"type": "null"}]},
        ),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, {"oneOf": [{"type": "number"}, {"type": "integer"}]}),
        (
            {"oneOf": [{"const": "a"}, {"type": "number"}, {"enum": [None, "b"]}]},
            {"oneOf": [{"const": "a"}, SMALL, {"enum": [None, "b"]}]},
        ),
        ({"oneOf": [tagged("a", TEXT), tagged("b", TEXT)]}, {"oneOf": [tagged("a", SHORT), tagged("b", SHORT)]}),
        ({"oneOf": [tagged("a", TEXT), tagged("a", TEXT)]}, {"oneOf": [tagged("a", TEXT), tagged("a", TEXT)]}),
        ({"oneOf": [{"type": "number"}, {"properties": {}}]}, {"oneOf": [{"type": "number"}, {"properties": {}}]}),
        (
            {"oneOf": [{"type": "number"}, {"$ref": "#/oneOf/0"}]},
            {"oneOf": [{"type": "number"}, {"$ref": "#/oneOf/0"}]},
        ),
        ({"not": {"type": "string"}}, {"not": {"type": "string"}}),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/d"}, "b": {"not": {"$ref": "#/$defs/d"}}},
                "$defs": {"d": {"type": "string"}},
            },
            {
                "properties": {"a": {"$ref": "#/$defs/d"}, "b": {"not": {"$ref": "#/$defs/d"}}},
                "$defs": {"d": {"type": "string"}},
            },
        ),
        (
            {"$ref": "#/$defs/d", "$defs": {"d": {"type": "string"}}},
            {"$ref": "#/$defs/d", "$defs": {"d": {"type": "string", "pattern": "^[A-Za-z]{1,8}$"}}},
        ),
        ({"not": {"$ref": "other.json"}, "properties": {"a": {"type": "string"}}},) * 2,
        (True, True),
    ],
)
def test_bounded_when_a_leaf_is_open_then_it_is_closed_and_nothing_else_changes(schema: Json, want: Json) -> None:
    assert want == bounded_schema(schema)


def test_bounded_spec_when_kind_is_schema_then_spelling_is_compact_and_extras_are_forbidden() -> None:
    spec = bounded_spec(GrammarSpec("json_schema", '{"type":"number"}', backend="llguidance"))
    assert json.loads(spec.source) == SMALL
    assert (spec.backend, spec.options.max_whitespace, spec.options.additional_properties) == (
        "llguidance",
        0,
        "forbid",
    )


def test_bounded_spec_when_kind_is_another_then_it_stays() -> None:
    spec = GrammarSpec("regex", "a+")
    assert bounded_spec(spec) is spec
