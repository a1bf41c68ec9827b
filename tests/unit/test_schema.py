"""JSON schemas before they are compiled: strict JSON, malformed schemas, references, the table of keywords."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema.validators
import jsonschema_specifications
import pytest

from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_ebnf, compile_schema
from maskd.json_schema.keywords import ONE_SCHEMA, SCHEMA_LISTS, SCHEMA_MAPS, TYPE_OF, subschemas
from maskd.json_schema.references import follow
from maskd.json_schema.strict_json import MAX_DEPTH, loads, pointer
from tests import random_schemas
from tests.lark import matcher_of_lark

FORBID = GrammarOptions(additional_properties="forbid")


def takes(schema: object, value: object, options: GrammarOptions | None = None) -> bool:
    """Whether the compiled ``schema`` takes ``value``."""
    try:
        compiled = compile_schema(schema, options or GrammarOptions())
    except GrammarUnsatisfiableError:
        return False
    matcher = matcher_of_lark(compiled.lark)
    tokens = list(json.dumps(value, ensure_ascii=False).encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


def refused(schema: object) -> GrammarError:
    """The error of both lowerings, which is the same one."""
    with pytest.raises(GrammarError) as caught:
        compile_schema(schema, GrammarOptions())
    with pytest.raises(type(caught.value)):
        compile_ebnf(schema, GrammarOptions())
    return caught.value


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 3}}', {"pointer": "/a"}),
        ('{"a": [0, 1e999]}', {"pointer": "/a/1"}),
        ('{"a/b": {"~": "\\u0000"}}', {"pointer": "/a~1b/~0"}),
        ('{"a": "\\ud800"}', {"pointer": "/a"}),
        ('{"a": 1,}', {"line": "1", "column": "9"}),
        ('{\n"a"\n}', {"line": "3", "column": "1"}),
        ("[NaN]", {}),
        ("[-Infinity]", {}),
        ("1" * 5000, {}),
        ("", {"line": "1", "column": "1"}),
    ],
)
def test_loads_when_json_is_not_strict_then_refused_with_place(text: str, where: dict[str, str]) -> None:
    """What the libraries would read differently is refused, with the place."""
    with pytest.raises(GrammarError) as caught:
        loads(text, "the text")
    assert dict(caught.value.metadata) == where


def test_loads_when_strict_then_equals_json() -> None:
    """Everything else is read as json reads it."""
    text = '{"a": [1, 2.5, -0, true, null, "\\ud83d\\ude00 [[{{ \\\\\\" "], "": {}}'
    assert loads(text, "the text") == json.loads(text)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_loads_when_nested_without_end_then_too_large_and_fast(opening: str) -> None:
    """Depth is counted before anything recurses; 100,000 levels are refused like 129."""
    with pytest.raises(GrammarTooLargeError):
        loads(opening * 100_000, "the text")
    loads("[" * MAX_DEPTH + "]" * MAX_DEPTH, "the text")


def test_pointer_when_names_hold_slashes_then_escaped() -> None:
    """Pointers are those of RFC 6901."""
    assert pointer(("a/b", 0, "m~n", "")) == "/a~1b/0/m~0n/"


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ([], ""),
        (5, ""),
        ({"type": "stsring"}, "/type"),
        ({"properties": {"a": {"type": ["string", "strin"]}}}, "/properties/a/type"),
        ({"type": []}, "/type"),
        ({"properties": {"a": 5}}, "/properties/a"),
        ({"properties": []}, "/properties"),
        ({"items": "x"}, "/items"),
        ({"anyOf": [True, {"allOf": []}]}, "/anyOf/1/allOf"),
        ({"enum": []}, "/enum"),
        ({"required": ["a", 1]}, "/required"),
        ({"minLength": -1}, "/minLength"),
        ({"minLength": 1.5}, "/minLength"),
        ({"maxItems": True}, "/maxItems"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"minimum": "1"}, "/minimum"),
        ({"exclusiveMinimum": None}, "/exclusiveMinimum"),
        ({"exclusiveMaximum": None}, "/exclusiveMaximum"),
        ({"pattern": 5}, "/pattern"),
        ({"$ref": "#/enum", "enum": [1]}, "/$ref"),
        ({"$ref": "other.json"}, "/$ref"),
    ],
)
def test_schema_when_malformed_then_pointer_says_where(schema: object, where: str) -> None:
    """A schema that the standard does not allow is refused before a library sees it."""
    error = refused(schema)
    assert type(error) is GrammarError
    assert error.metadata["pointer"] == where


def test_schema_when_nothing_can_match_then_unsatisfiable() -> None:
    assert type(refused(False)) is GrammarUnsatisfiableError


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}],
)
def test_ref_when_it_leads_back_to_itself_then_refused(schema: object) -> None:
    assert isinstance(refused(schema), GrammarUnsupportedError | GrammarUnsatisfiableError)


def test_ref_when_chain_is_long_then_too_large() -> None:
    chain = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(5000)} | {"d5000": {"type": "string"}}
    assert type(refused({"$defs": chain, "$ref": "#/$defs/d0"})) is GrammarTooLargeError


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}},
        {"$ref": "#/$defs/%C3%A9", "$defs": {"é": {"const": 1}}},
        {"$ref": "#/x/y/1", "x": {"y": [0, {"const": 1}]}},
        {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "const": 1}}},
        {"$id": "http://a.b/c/d", "$ref": "e", "$defs": {"x": {"$id": "e", "const": 1}}},
        {"$id": "http://a.b/c", "$ref": "http://a.b/c#/$defs/x", "$defs": {"x": {"const": 1}}},
        {"$ref": "#/$defs/ü", "$defs": {"ü": {"const": 1}, "maskd_0": False}},
    ],
)
def test_ref_when_local_then_its_target_counts(schema: object) -> None:
    assert [value for value in (0, 1, "1", None) if takes(schema, value)] == [1]


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("#", ()),
        ("#/a~1b/%C3%A9/1/~0", ("a/b", "é", 1, "~")),
        ("#/", ("",)),
        ("#/a~1b/0", ("a/b", "0")),
        ("#/a~1b/é/2", None),
        ("#/a~1b/é/01", None),
        ("#/a~1b/é/-", None),
        ("#/a~1b/é/1/~0/5", None),
        ("#here", None),
        ("other#/", None),
    ],
)
def test_follow_when_a_pointer_then_path_and_value_or_none(reference: str, path: tuple[str | int, ...] | None) -> None:
    """Pointers of RFC 6901, percent-encoded as in a URI; a list is entered by index, an object by name."""
    root: Any = {"a/b": {"é": [0, {"~": 5}], "0": 6}, "": 7, "$anchor": "here"}
    value = root
    for part in path or ():
        value = value[part]
    assert follow(root, reference) == (None if path is None else (path, value))


def _of_metaschemas() -> Iterator[tuple[str, Any]]:
    """Every keyword of drafts 4 to 2020-12 with what its metaschema says about it."""
    for draft in (4, 6, 7):
        yield from getattr(jsonschema.validators, f"Draft{draft}Validator").META_SCHEMA["properties"].items()
    for draft in ("2019-09", "2020-12"):
        yield "definitions", {"additionalProperties": {"$ref": "#"}}  # kept by a sentence of these drafts
        for vocabulary in ("applicator", "content", "core", "unevaluated"):
            uri = f"https://json-schema.org/draft/{draft}/meta/{vocabulary}"
            if uri in jsonschema_specifications.REGISTRY:
                yield from jsonschema_specifications.REGISTRY.contents(uri)["properties"].items()


def test_keywords_when_compared_with_the_metaschemas_then_they_hold_the_same_schemas() -> None:
    """Which keywords hold a schema, a list or a map of schemas, by the metaschemas of all drafts."""
    held: dict[str, set[str]] = {"one": set(), "list": set(), "map": set()}
    schema = [{"$ref": "#"}, {"$dynamicRef": "#meta"}, {"$recursiveRef": "#"}]
    for keyword, said in _of_metaschemas():
        for option in said.get("anyOf", [said]) if isinstance(said, dict) else ():
            below = option.get("additionalProperties")
            if {key: option[key] for key in option if key.startswith("$")} in schema:
                held["one"].add(keyword)
            if option.get("$ref", "").endswith("/schemaArray"):
                held["list"].add(keyword)
            if isinstance(below, dict) and any(part in schema for part in below.get("anyOf", [below])):
                held["map"].add(keyword)
    assert held == {"one": ONE_SCHEMA, "list": SCHEMA_LISTS, "map": SCHEMA_MAPS}


def test_keywords_when_they_look_at_one_type_then_values_of_others_pass() -> None:
    """By an independent validator: a keyword of one type ignores values of all other types."""
    arguments: dict[str, Any] = {"format": "date", "pattern": "x", "required": ["a"], "uniqueItems": True}
    values = {"object": {}, "array": [], "string": "", "number": 0}
    for keyword, name in TYPE_OF.items():
        if keyword not in arguments:
            children = {step[0] for step, _ in subschemas({keyword: False})}
            argument: Any = False if children else {} if keyword in (*SCHEMA_MAPS, "dependentRequired") else 1
            argument = [False] if keyword == "prefixItems" else argument
        else:
            argument = arguments[keyword]
        validator = jsonschema.validators.Draft202012Validator({keyword: argument})
        assert all(validator.is_valid(value) for other, value in values.items() if other != name), keyword


def test_ref_when_it_is_a_name_or_a_value_then_left_alone() -> None:
    """A property called $ref, and a $ref within a constant, are no references."""
    schema = {"properties": {"$ref": {"type": "string"}}, "default": {"$ref": "x"}}
    assert takes(schema, {"$ref": "#/nowhere"}) and not takes(schema, {"$ref": 5})
    assert takes({"const": {"$ref": "#/nowhere"}}, {"$ref": "#/nowhere"})


S = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (
            {"type": "object", "properties": {"a": S}},
            {"type": "object", "properties": {"a": S}, "additionalProperties": False},
        ),
        ({"type": "object", "additionalProperties": S}, {"type": "object", "additionalProperties": S}),
        ({"type": "object", "additionalProperties": True}, {"type": "object", "additionalProperties": True}),
        ({"type": ["object", "null"]}, {"type": ["object", "null"], "additionalProperties": False}),
        ({"properties": {"a": S}}, {"properties": {"a": S}, "additionalProperties": False}),
        (
            {"type": "array", "items": {"type": "object"}},
            {"type": "array", "items": {"type": "object", "additionalProperties": False}},
        ),
        ({}, {}),
        (S, S),
        ({"enum": [{"type": "object"}]}, {"enum": [{"type": "object"}]}),
        (
            {"anyOf": [{"type": "object", "properties": {"a": S}}, S]},
            {"anyOf": [{"type": "object", "properties": {"a": S}, "additionalProperties": False}, S]},
        ),
        (
            {"type": "object", "not": {"type": "object", "properties": {"a": S}}},
            {"type": "object", "not": {"type": "object", "properties": {"a": S}}, "additionalProperties": False},
        ),
        (
            {"allOf": [{"type": "object", "properties": {"a": S}}, {"properties": {"b": {"type": "object"}}}]},
            {
                "allOf": [
                    {"type": "object", "properties": {"a": S}},
                    {"properties": {"b": {"type": "object", "additionalProperties": False}}},
                ],
                "properties": {"a": True, "b": True},
                "additionalProperties": False,
            },
        ),
        (
            {"type": "object", "properties": {"c": S}, "anyOf": [{"required": ["c"]}, {"properties": {"d": S}}]},
            {
                "type": "object",
                "properties": {"c": S, "d": True},
                "anyOf": [{"required": ["c"]}, {"properties": {"d": S}}],
                "additionalProperties": False,
            },
        ),
        (
            {"allOf": [{"properties": {"a": S}}, {"additionalProperties": S}]},
            {"allOf": [{"properties": {"a": S}}, {"additionalProperties": S}]},
        ),
    ],
)
def test_forbid_when_applied_then_closes_each_place_once(schema: object, closed: object) -> None:
    """The one schema of a place closes it; where several describe it, the outermost does, for the names of all."""
    validator = jsonschema.validators.Draft202012Validator(closed)
    rng = random.Random(str(schema))
    for _ in range(60):
        value = random_schemas.value(rng)
        assert takes(schema, value, FORBID) == validator.is_valid(value), value
