"""Every spelling of a response format, and what is wrong with those that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from engine_adapter.structured_output.response_format import (
    ResponseFormatError,
    grammar_of,
    grammar_of_structured_outputs,
)
from maskd.grammar import GrammarSpec

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}
TAG = {"type": "triggered_tags", "triggers": ["<f="], "tags": []}
GBNF = 'root ::= "a"'


class Model(BaseModel):
    a: int


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_schema", "json_schema": {"name": "test", "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "test", "description": "", "schema": SCHEMA, "strict": False}},
        {"type": "json_schema", "json_schema": SCHEMA},
        {"type": "json_schema", "json_schema": json.dumps(SCHEMA)},
        {"type": "json_schema", "name": "test", "schema": SCHEMA},
        {"type": "json_schema", "value": SCHEMA},
        {"type": "JsonSchema", "json_schema": {"name": "test", "schema": SCHEMA}},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "JsonObject", "schema": SCHEMA},
        {"type": "json", "schema": SCHEMA},
        {"type": "json", "value": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"json": SCHEMA},
        {"json": json.dumps(SCHEMA)},
        SCHEMA,
    ],
)
def test_json_schema_in_every_spelling_then_one_grammar(given: Any) -> None:
    spec = grammar_of(given)
    assert spec is not None and spec.kind == "json_schema"
    assert list(json.loads(spec.source)) == list(SCHEMA) and json.loads(spec.source) == SCHEMA
    assert spec.options.additional_properties == "allow"


@pytest.mark.parametrize(
    ("given", "kind", "source"),
    [
        (None, None, ""),
        ("", None, ""),
        ({"type": "text"}, None, ""),
        ({"type": "Text", "schema": None}, None, ""),
        ({"structured_outputs": {"json_object": False}}, None, ""),
        ({"type": "json_object"}, "json_object", ""),
        ("json", "json_object", ""),
        ({"json_object": True}, "json_object", ""),
        ({"type": "regex", "regex": "a+"}, "regex", "a+"),
        ({"type": "regex", "pattern": "a+"}, "regex", "a+"),
        ({"type": "regex", "value": "a+"}, "regex", "a+"),
        ({"type": "regex_schema", "regex_schema": "a+"}, "regex", "a+"),
        ({"regex": "a+"}, "regex", "a+"),
        ({"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}, "regex", "a+"),
        ({"type": "ebnf", "ebnf": GBNF}, "ebnf", GBNF),
        ({"type": "grammar", "grammar": GBNF}, "ebnf", GBNF),
        ({"grammar": GBNF}, "ebnf", GBNF),
        ({"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}, "lark", 'start: "a"'),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"choice": ["ä", "b"]}, "choice", '["ä", "b"]'),
        ({"type": "choice", "choices": ["ä", "b"]}, "choice", '["ä", "b"]'),
        ({"structural_tag": json.dumps({"format": TAG})}, "structural_tag", json.dumps({"format": TAG})),
    ],
)
def test_other_constraints_in_every_spelling(given: Any, kind: str | None, source: str) -> None:
    spec = grammar_of(given)
    assert spec == (None if kind is None else GrammarSpec(kind, source))  # type: ignore[arg-type]


def test_structural_tags_new_and_old_then_go_to_the_daemon_as_they_are() -> None:
    new = {"type": "structural_tag", "format": TAG}
    old = {
        "type": "structural_tag",
        "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
        "triggers": ["<f"],
    }
    for given in (new, old):
        spec = grammar_of(given)
        assert spec is not None and spec.kind == "structural_tag" and json.loads(spec.source) == given


def test_pydantic_class_or_instance_then_its_schema() -> None:
    for given in (
        Model,
        Model(a=1),
        {"type": "json_schema", "json_schema": {"name": "m", "schema": Model}},
        {"json": Model},
    ):
        spec = grammar_of(given)
        assert spec is not None and json.loads(spec.source) == Model.model_json_schema()


def test_strict_and_vllm_options_then_become_grammar_options() -> None:
    strict = grammar_of({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}})
    compact = grammar_of_structured_outputs(
        {"json": SCHEMA, "disable_any_whitespace": True, "disable_additional_properties": True, "regex": None}
    )
    assert strict is not None and strict.options.additional_properties == "forbid"
    assert compact is not None and (compact.options.max_whitespace, compact.options.additional_properties) == (
        0,
        "forbid",
    )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (7, "response_format"),
        ({}, "type"),
        ({"type": 7}, "type"),
        ({"type": "yaml"}, "type"),
        ({"type": "text", "schema": {}}, "schema"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json"}, "schema"),
        ({"type": "json", "schema": None}, "schema"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": "{"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": "yes"}}, "json_schema.strict"),
        ({"type": "json_schema", "json_schema": 7}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"enum": [float("nan")]}}}, "json_schema.schema"),
        ({"type": "json_object", "schema": "not json"}, "schema"),
        ({"type": "regex"}, "regex"),
        ({"type": "regex", "regex": ""}, "regex"),
        ({"type": "regex", "regex": "a", "pattern": "b"}, "pattern"),
        ({"type": "grammar", "syntax": "abnf", "definition": "a"}, "syntax"),
        ({"type": "choice", "choice": []}, "choice"),
        ({"type": "choice", "choice": [1]}, "choice"),
        ({"type": "structural_tag"}, "format"),
        ({"type": "structural_tag", "structures": []}, "triggers"),
        ({"structural_tag": "{"}, "structural_tag"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object"),
        ({"structured_outputs": []}, "structured_outputs"),
    ],
)
def test_refused_formats_then_the_field_is_named(given: Any, field: str) -> None:
    with pytest.raises(ResponseFormatError) as refused:
        grammar_of(given)
    assert refused.value.field.endswith(field) and str(refused.value).startswith(refused.value.field)
