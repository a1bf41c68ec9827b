"""Keyword by keyword: what a backend says that it enforces is what it enforces.

Each probe is a schema, an instance that it allows and one that it forbids. On xgrammar the forbidden one must be
refused exactly if no keyword is reported. On llguidance it must be refused, or the schema is.
"""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest
from walks import accepts

from maskd.backends.base import Backend
from maskd.errors import GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec

STRING, INTEGER, NUMBER, OBJECT, ARRAY = ({"type": name} for name in ("string", "integer", "number", "object", "array"))

# schema, allowed, forbidden
PROBES: list[tuple[object, object, object]] = [
    # strings
    ({**STRING, "minLength": 2}, "ab", "a"),
    ({**STRING, "maxLength": 2}, "ab", "abc"),
    ({**STRING, "maxLength": 0}, "", "a"),
    ({**STRING, "minLength": 2, "maxLength": 2}, "ab", "abc"),
    ({**STRING, "minLength": 1, "maxLength": 1}, '"', "ab"),
    ({**STRING, "minLength": 3}, 'a"\n', "a"),
    ({**STRING, "pattern": "^a+$"}, "aa", "ab"),
    ({**STRING, "pattern": "^(a|b)$"}, "a", "c"),
    ({**STRING, "pattern": "^a+$", "maxLength": 2}, "aa", "aaa"),
    ({**STRING, "pattern": "^a*$", "minLength": 2}, "aa", "a"),
    ({**STRING, "pattern": "^(?!a)[ab]$"}, "b", "a"),
    ({**STRING, "pattern": "^(?=a)[ab]$"}, "a", "b"),
    ({**STRING, "pattern": "^(?P<n>a)(?:b|c)$"}, "ab", "a"),
    ({**STRING, "pattern": "^(x|^a)?$"}, "a", "b"),
    ({**STRING, "pattern": "^x?(^a)$"}, "a", "xa"),
    ({**STRING, "pattern": "^((^a)|(^b))$"}, "a", "ab"),
    ({**STRING, "pattern": "^(^a)+$"}, "a", "aa"),
    ({**STRING, "pattern": "^(a$)b?$"}, "a", "ab"),
    ({**STRING, "pattern": "^(a$|b)$"}, "b", "c"),
    ({**STRING, "pattern": r"^\Aa$"}, None, "Aa"),
    ({**STRING, "pattern": r"^\S$"}, "a", "\u00a0"),
    ({**STRING, "pattern": r"^[^\sa]$"}, "b", "\u3000"),
    ({**STRING, "pattern": r"^[\Sb]$"}, "a", "\u00a0"),
    ({**STRING, "pattern": r"^[\s\S]$"}, "a", "ab"),
    ({**STRING, "pattern": "^é.$"}, "éa", "aa"),
    ({**STRING, "pattern": "^\\é[é😀-😂]$"}, "é😁", "éa"),
    ({**STRING, "format": "date"}, "2024-02-01", "2024-13-01"),
    ({**STRING, "format": "date", "pattern": "^2"}, "2024-02-01", "1924-02-01"),
    ({**STRING, "format": "email", "maxLength": 7}, "a@b.cc", "aaa@b.cc"),
    ({**STRING, "format": "foo"}, None, None),
    ({"minLength": 2}, "ab", "a"),
    ({"pattern": "^a$"}, "a", "b"),
    ({"type": ["string", "null"], "minLength": 2}, None, "a"),
    ({"type": ["string", "integer"], "maxLength": 1, "minimum": 5}, 6, "ab"),
    ({"type": ["string", "integer"], "maxLength": 1, "minimum": 5}, "a", 4),
    # numbers
    ({**INTEGER, "minimum": 5}, 5, 4),
    ({**INTEGER, "maximum": 5}, 5, 6),
    ({**INTEGER, "exclusiveMinimum": 5}, 6, 5),
    ({**INTEGER, "exclusiveMaximum": 5}, 4, 5),
    ({**INTEGER, "minimum": 5, "exclusiveMinimum": True}, 6, 5),
    ({**INTEGER, "multipleOf": 7}, 14, 15),
    ({**INTEGER, "multipleOf": 7, "minimum": 3}, 14, 15),
    ({**INTEGER, "multipleOf": 7, "minimum": 3, "maximum": 90}, 14, 15),
    ({**INTEGER, "multipleOf": 7, "minimum": 0, "maximum": 20000}, 14, 15),
    ({**INTEGER, "multipleOf": 2000}, 4000, 4001),
    ({**INTEGER, "multipleOf": 2.5}, 5, 6),
    ({**NUMBER, "minimum": 1.5}, 1.5, 1.4),
    ({**NUMBER, "maximum": 1.5}, 1.5, 1.6),
    ({**NUMBER, "exclusiveMinimum": 1.5}, 1.6, 1.5),
    ({**NUMBER, "exclusiveMaximum": 1.5}, 1.4, 1.5),
    ({**NUMBER, "multipleOf": 0.5}, 1.5, 1.25),
    ({"minimum": 5}, 5, 4),
    ({"type": ["integer", "number"], "multipleOf": 5}, 5, 4),
    # arrays
    ({**ARRAY, "items": INTEGER}, [1], ["a"]),
    ({**ARRAY, "items": False}, [], [1]),
    ({**ARRAY, "prefixItems": [INTEGER, STRING]}, [1, "a"], [1, 2]),
    ({**ARRAY, "prefixItems": [INTEGER], "items": STRING}, [1, "a"], [1, 2]),
    ({**ARRAY, "prefixItems": [INTEGER], "items": False}, [1], [1, 2]),
    ({**ARRAY, "prefixItems": [True, INTEGER]}, ["x", 1], [1, "a"]),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#", **ARRAY, "items": [INTEGER], "additionalItems": STRING},
        [1, "a"],
        [1, 2],
    ),
    ({**ARRAY, "minItems": 2}, [1, 2], [1]),
    ({**ARRAY, "maxItems": 2}, [1, 2], [1, 2, 3]),
    ({**ARRAY, "minItems": 2, "maxItems": 2, "items": INTEGER}, [1, 2], [1]),
    ({**ARRAY, "prefixItems": [INTEGER], "minItems": 2}, [1, 2], [1]),
    ({**ARRAY, "prefixItems": [INTEGER], "maxItems": 2}, [1, 2], [1, 2, 3]),
    ({**ARRAY, "uniqueItems": True}, [1, 2], [1, 1]),
    ({**ARRAY, "contains": INTEGER}, [1], ["a"]),
    ({**ARRAY, "contains": INTEGER, "minContains": 2}, [1, 2], [1, "a"]),
    ({**ARRAY, "contains": INTEGER, "maxContains": 1}, [1], [1, 2]),
    ({**ARRAY, "unevaluatedItems": False}, [], [1]),
    ({**ARRAY, "prefixItems": [INTEGER], "unevaluatedItems": False}, [1], [1, 2]),
    ({**ARRAY, "unevaluatedItems": INTEGER}, [1], ["a"]),
    ({"items": INTEGER}, [1], ["a"]),
    ({"minItems": 1}, [1], []),
    ({"uniqueItems": True}, [1], [1, 1]),
    # objects
    ({**OBJECT, "properties": {"a": INTEGER}}, {"a": 1}, {"a": "x"}),
    ({**OBJECT, "properties": {"a": INTEGER}, "required": ["a"]}, {"a": 1}, {}),
    ({**OBJECT, "properties": {"a": INTEGER}, "required": ["b"]}, {"a": 1, "b": 2}, {"a": 1}),
    ({**OBJECT, "required": ["b"]}, {"b": 2}, {"a": 2}),
    ({**OBJECT, "required": ["b"]}, {"b": 2}, {}),
    ({"required": ["b"]}, {"b": 2}, {}),
    ({**OBJECT, "additionalProperties": False}, {}, {"a": 1}),
    ({**OBJECT, "properties": {"a": INTEGER}, "additionalProperties": False}, {"a": 1}, {"b": 1}),
    ({**OBJECT, "properties": {"a": INTEGER}, "additionalProperties": STRING}, {"b": "x"}, {"b": 1}),
    ({**OBJECT, "additionalProperties": STRING}, {"b": "x"}, {"b": 1}),
    ({**OBJECT, "properties": {"é": INTEGER}, "additionalProperties": STRING}, {"é": 1}, {"é": "x"}),
    ({**OBJECT, "patternProperties": {"^x": INTEGER}}, {"x": 1}, {"x": "a"}),
    ({**OBJECT, "patternProperties": {"^x": INTEGER}, "additionalProperties": False}, {"x": 1}, {"y": 1}),
    ({**OBJECT, "patternProperties": {"^(?!a)[ab]$": INTEGER}, "additionalProperties": False}, {"b": 1}, {"a": 1}),
    ({**OBJECT, "patternProperties": {"^é.$": INTEGER}, "additionalProperties": False}, {"éa": 1}, {"aa": 1}),
    ({**OBJECT, "patternProperties": {"^x.*$": INTEGER, "^.*z$": STRING}}, {"x": 1}, {"xz": 1}),
    (
        {**OBJECT, "properties": {"a": INTEGER}, "patternProperties": {"^x": INTEGER}},
        {"a": 1, "x": 1},
        {"a": 1, "x": "a"},
    ),
    (
        {**OBJECT, "properties": {"a": INTEGER}, "patternProperties": {"^x": INTEGER}, "additionalProperties": False},
        {"a": 1, "x": 1},
        {"x": "a"},
    ),
    (
        {**OBJECT, "properties": {"xa": {}}, "patternProperties": {"^x": INTEGER}, "additionalProperties": False},
        {"xa": 1},
        {"xa": "a"},
    ),
    ({**OBJECT, "patternProperties": {"^x": INTEGER}, "required": ["x"]}, {"x": 1}, {}),
    ({**OBJECT, "propertyNames": {"pattern": "^a+$"}}, {"aa": 1}, {"b": 1}),
    ({**OBJECT, "propertyNames": {"pattern": "^(?!a)[ab]$"}}, {"b": 1}, {"a": 1}),
    ({**OBJECT, "propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
    ({**OBJECT, "propertyNames": {"enum": ["a"]}}, {"a": 1}, {"b": 1}),
    ({**OBJECT, "propertyNames": {"enum": ["a"]}, "additionalProperties": INTEGER}, {"a": 1}, {"a": "x"}),
    ({**OBJECT, "propertyNames": {"enum": ["a"]}, "additionalProperties": False}, {}, {"a": 1}),
    ({**OBJECT, "properties": {"bb": {}}, "propertyNames": {"pattern": "^a+$"}}, {"a": 1}, {"bb": 1}),
    ({**OBJECT, "properties": {"a": {}}, "propertyNames": {"pattern": "^a+$"}}, {"aa": 1}, {"bb": 1}),
    ({**OBJECT, "patternProperties": {"^a.*$": {}}, "propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
    ({**OBJECT, "minProperties": 1}, {"a": 1}, {}),
    ({**OBJECT, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}),
    ({**OBJECT, "maxProperties": 0}, {}, {"a": 1}),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "minProperties": 1}, {"b": 1}, {}),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "maxProperties": 1}, {"b": 1}, {"a": 1, "b": 1}),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "required": ["a"], "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
    ({**OBJECT, "dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#", **OBJECT, "dependencies": {"a": ["b"]}},
        {"b": 1},
        {"a": 1},
    ),
    ({**OBJECT, "properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
    ({**OBJECT, "unevaluatedProperties": INTEGER}, {"a": 1}, {"b": "x"}),
    ({"properties": {"a": INTEGER}}, {"a": 1}, {"a": "x"}),
    ({"additionalProperties": INTEGER}, {"a": 1}, {"a": "x"}),
    ({"patternProperties": {"^a": INTEGER}}, {"a": 1}, {"a": "x"}),
    ({"minProperties": 1}, {"a": 1}, {}),
    # anything
    ({"const": 5}, 5, 6),
    ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
    ({"enum": ["a", 5]}, 5, "b"),
    ({**STRING, "enum": ["a", "b"]}, "a", "c"),
    ({**STRING, "enum": ["a", 5]}, "a", 5),
    ({**STRING, "enum": ["a", "bbb"], "maxLength": 1}, "a", "bbb"),
    ({"enum": ["a", "b"], "minimum": 5}, "a", "c"),
    ({"const": 5, "minimum": 3}, 5, 6),
    ({"not": STRING}, 5, "a"),
    ({**INTEGER, "not": {"const": 5}}, 4, 5),
    ({**OBJECT, "properties": {"a": {"not": STRING}}}, {"a": 1}, {"a": "x"}),
    ({"if": STRING, "then": {"minLength": 2}}, "ab", "a"),
    ({**STRING, "if": {"const": "a"}, "else": False}, "a", "b"),
    ({**STRING, "if": {"const": "a"}}, "a", 5),
    # applicators
    ({"anyOf": [STRING, INTEGER]}, 1, None),
    ({"anyOf": [STRING, INTEGER], "type": "integer"}, 1, "a"),
    ({"anyOf": [{**OBJECT, "required": ["a"], "properties": {"a": {}}}], "type": "object"}, {"a": 1}, {}),
    (
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object", "properties": {"a": {}, "b": {}}},
        {"a": 1},
        {"c": 1},
    ),
    ({"anyOf": [STRING, INTEGER], "minimum": 3}, 3, 2),
    ({"oneOf": [STRING, INTEGER]}, 1, None),
    ({"oneOf": [NUMBER, INTEGER]}, 1.5, 1),
    ({"oneOf": [{"const": 1}, {"const": 2}]}, 1, 3),
    ({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, 1, 2),
    ({"oneOf": [{**STRING, "maxLength": 3}, {**STRING, "minLength": 2}]}, "a", "ab"),
    (
        {
            "oneOf": [
                {**OBJECT, "properties": {"t": {"const": "x"}, "v": INTEGER}, "required": ["t"]},
                {**OBJECT, "properties": {"t": {"const": "y"}, "v": STRING}, "required": ["t"]},
            ]
        },
        {"t": "x", "v": 1},
        {"t": "x", "v": "a"},
    ),
    ({"allOf": [{**STRING, "minLength": 2}]}, "ab", "a"),
    ({"allOf": [STRING, {"minLength": 2}]}, "ab", "a"),
    ({"allOf": [{"minLength": 2}], "type": "string"}, "ab", "a"),
    ({"$ref": "#/$defs/s", "$defs": {"s": {**STRING, "minLength": 2}}}, "ab", "a"),
    ({"$ref": "#/$defs/s", "minLength": 2, "$defs": {"s": STRING}}, "ab", "a"),
    ({"$ref": "#/$defs/s", "type": "string", "$defs": {"s": STRING}}, "ab", 1),
    ({"$ref": "#/$defs/s~1t", "$defs": {"s/t": {**STRING, "minLength": 2}}}, "ab", "a"),
    ({"$ref": "#/$defs/s%25", "$defs": {"s%": {**STRING, "minLength": 2}}}, "ab", "a"),
    (
        {**OBJECT, "properties": {"x": {"anyOf": [STRING, INTEGER]}, "y": {"$ref": "#/properties/x/anyOf/1"}}},
        {"y": 1},
        {"y": "a"},
    ),
    ({"$ref": "#name", "$defs": {"s": {"$anchor": "name", **STRING, "minLength": 2}}}, "ab", "a"),
    ({"$id": "http://a.b/c", "$ref": "d", "$defs": {"s": {"$id": "d", **INTEGER}}}, 1, "a"),
    ({**OBJECT, "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, {"a": {"a": {}}}, {"a": {"b": {}}}),
    (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/s",
            "minLength": 9,
            "definitions": {"s": STRING},
        },
        None,
        1,
    ),
    (True, 5, None),
    ({}, {"a": [1, "b", None]}, None),
    ({"title": "x", "description": "y", "default": 5, "examples": [1], "unknownKeyword": 3}, "z", None),
]


def compact(value: object) -> str:
    """The spelling that xgrammar takes of an object in ``const``, and of a name beyond ASCII."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("number", range(len(PROBES)), ids=lambda number: json.dumps(PROBES[number][0])[:70])
def test_probe_when_compiled_then_forbidden_passes_exactly_if_reported(
    number: int, xgrammar_small: Backend, llguidance_small: Backend
) -> None:
    """On xgrammar an instance that the schema forbids passes exactly if a keyword is reported; on llguidance none
    passes."""
    schema, valid, invalid = PROBES[number]
    validator = jsonschema.Draft7Validator if "draft-07" in json.dumps(schema) else jsonschema.Draft202012Validator
    if not (isinstance(schema, dict) and schema.get("exclusiveMinimum") is True):  # draft 4, which needs no judge here
        assert valid is None or validator(schema).is_valid(valid)
        assert invalid is None or not validator(schema).is_valid(invalid) or "format" in json.dumps(schema)
    for backend in (xgrammar_small, llguidance_small):
        try:
            grammar = backend.compile(GrammarSpec("json_schema", json.dumps(schema)))
        except GrammarUnsupportedError as error:
            assert backend is llguidance_small, error
            continue
        if valid is not None:
            assert accepts(grammar, compact(valid)), backend.name
        if invalid is not None:
            reported = {entry.keyword for entry in grammar.report.unenforced}
            is_taken = accepts(grammar, compact(invalid))
            assert is_taken <= bool(reported), (backend.name, reported)
            assert is_taken or not reported or backend is llguidance_small, (backend.name, reported)


@pytest.mark.parametrize(
    "pattern",
    ["^é.$", "^é[^a]$", r"^é\W$", 'é"', r"é\\", r"^é\n$", r"^é[\n\"]$", r"^é(\x22|\u005c|\u{a})$", '^é["-"]$'],
)
def test_pattern_beyond_ascii_then_strings_stay_json(
    pattern: str, xgrammar_small: Backend, llguidance_small: Backend
) -> None:
    """No pattern lets a raw quote, a backslash or a control character into a string or a name."""
    for backend in (xgrammar_small, llguidance_small):
        for schema, form in (
            ({**STRING, "pattern": pattern}, '"{}"'),
            ({**OBJECT, "patternProperties": {pattern: {}}, "additionalProperties": False}, '{{"{}":1}}'),
        ):
            try:
                grammar = backend.compile(GrammarSpec("json_schema", json.dumps(schema)))
            except GrammarUnsupportedError:
                continue
            for text in ('é"', "é\n", "é\\"):
                assert not accepts(grammar, form.format(text)), (backend.name, text)


@pytest.mark.parametrize(
    ("schema", "pointer", "keyword"),
    [
        ({**STRING, "pattern": "(?<=a)b"}, "/pattern", "pattern"),
        ({**OBJECT, "patternProperties": {r"\bx": INTEGER}}, "/patternProperties", "patternProperties"),
        ({**OBJECT, "propertyNames": {"pattern": r"(a)\1"}}, "/propertyNames/pattern", "pattern"),
        ({**INTEGER, "multipleOf": 1000003}, "/multipleOf", "multipleOf"),
        ({**ARRAY, "uniqueItems": True}, "/uniqueItems", "uniqueItems"),
        ({"not": {**ARRAY, "contains": {"pattern": "(?<=a)b"}}}, "/not/contains/pattern", "pattern"),
    ],
)
def test_keyword_that_cannot_be_done_then_listed_or_refused_if_strict(
    schema: object, pointer: str, keyword: str, xgrammar_small: Backend
) -> None:
    """It is listed with its place in a schema and in a tag, and a strict grammar is refused with it."""
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    for spec, before in (
        (GrammarSpec("json_schema", json.dumps(schema)), ""),
        (GrammarSpec("structural_tag", json.dumps(tag)), "/format/json_schema"),
    ):
        [entry] = xgrammar_small.compile(spec).report.unenforced
        assert (entry.pointer, entry.keyword) == (before + pointer, keyword)
        with pytest.raises(GrammarUnsupportedError, match=f"does not enforce {keyword}"):
            xgrammar_small.compile(dataclasses.replace(spec, options=GrammarOptions(strict=True)))


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"not": {"multipleOf": 1000003}}, [3, 2000006], ["a"]),
        ({"not": {**STRING, "pattern": "(?<=a)b"}}, ["ab", "x", 1], []),
        ({"not": {**STRING, "pattern": "(?<=a)b", "maxLength": 2}}, ["abc", "ab", 1], []),
        ({"oneOf": [{**STRING, "pattern": "(?<=a)b"}, {**STRING, "maxLength": 2}]}, ["ab", "a", "abc"], [1]),
        ({"if": {"pattern": "(?<=a)b"}, "then": INTEGER, "else": STRING}, ["ab", "a", 1], [None]),
        (
            {
                **OBJECT,
                "properties": {"a": INTEGER},
                "patternProperties": {r"\bx": INTEGER},
                "additionalProperties": False,
            },
            [{"a": 1}, {"x": 1}, {"y": "z"}],
            [{"a": "b"}],
        ),
        ({"contains": {"pattern": "(?<=a)b"}, "maxContains": 1, "items": STRING}, [["ab", "ab"], ["a"]], [[1]]),
        ({**OBJECT, "patternProperties": {r"\bx": {}}, "unevaluatedProperties": False}, [{"x": 1}, {"y": 1}], [1]),
    ],
)
def test_keyword_that_cannot_be_done_under_an_opposite_then_nothing_valid_is_lost(
    schema: object, taken: list[object], refused: list[object], xgrammar_small: Backend
) -> None:
    """Wherever it stands, what is left away only lets more through."""
    grammar = xgrammar_small.compile(GrammarSpec("json_schema", json.dumps(schema)))
    assert grammar.report.unenforced
    assert all(accepts(grammar, compact(value)) for value in taken)
    assert not any(accepts(grammar, compact(value)) for value in refused)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [('^"?a', '"a"'), (r"^(\n|a)$", '"a"'), (r'^[\n"a]{0,2}$', '"a"'), (r"^\n{0}a$", '"a"'), (r"^[\t- ]$", '" "')],
)
def test_pattern_with_plain_matches_then_xgrammar_has_them(pattern: str, text: str, xgrammar_small: Backend) -> None:
    assert accepts(xgrammar_small.compile(GrammarSpec("json_schema", json.dumps({**STRING, "pattern": pattern}))), text)
