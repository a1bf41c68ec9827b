"""Options of a grammar that change what a schema means: order, formats, further members, documents given along."""

from __future__ import annotations

import json
from typing import Any

import pytest
from walks import accepts

from maskd.backends.base import Backend, Grammar
from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec

S: dict[str, Any] = {"type": "string"}
NAMED = {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]}
ADDRESS = "https://example.com/schemas/word"


def compiled(backend: Backend, schema: object, *, resources: dict[str, object] | None = None, **given: Any) -> Grammar:
    texts = {address: json.dumps(document) for address, document in (resources or {}).items()}
    options = GrammarOptions(**given)
    return backend.compile(GrammarSpec("json_schema", json.dumps(schema), options=options, resources=texts))


@pytest.mark.parametrize("in_tag", [False, True])
def test_property_order_when_it_is_of_the_schema_then_further_members_come_behind(
    in_tag: bool, llguidance_small: Backend
) -> None:
    """In any order all of them are taken; a schema within a structural tag has the option as well."""
    texts = {
        '{"a":1,"b":2,"c":3}': True,
        '{"b":2,"c":3,"z":4}': True,
        '{"b":2}': True,
        '{"c":3,"b":2}': False,
        '{"z":4,"b":2}': False,
        '{"b":2,"z":4,"c":3}': False,
    }
    for order in ("any", "schema"):
        options = GrammarOptions(property_order=order)  # type: ignore[arg-type]
        source = json.dumps({"type": "object", **NAMED})
        spec = GrammarSpec("json_schema", source, options=options)
        if in_tag:
            content = {"type": "json_schema", "json_schema": json.loads(source)}
            tag = {"type": "tag", "begin": "<", "content": content, "end": ">"}
            spec = GrammarSpec("structural_tag", json.dumps({"format": tag}), options=options)
        grammar = llguidance_small.compile(spec)
        for text, is_ordered in texts.items():
            assert accepts(grammar, f"<{text}>" if in_tag else text) == (is_ordered or order == "any"), text
        assert not accepts(grammar, '{"a":1}')


def test_formats_when_they_annotate_then_they_are_reported_and_strict_refuses_them(llguidance_small: Backend) -> None:
    """What is no regular language is an annotation anyway."""
    dated = {**S, "format": "date"}
    assert not accepts(compiled(llguidance_small, dated), '"2024-02-30"')
    for schema, formats in ((dated, "annotate"), ({**S, "format": "idn-email"}, "assert")):
        grammar = compiled(llguidance_small, schema, formats=formats)
        assert accepts(grammar, '"2024-02-30"')
        [entry] = grammar.report.unenforced
        assert (entry.pointer, entry.keyword) == ("/format", "format")
        with pytest.raises(GrammarUnsupportedError, match="does not enforce format at '/format'") as caught:
            compiled(llguidance_small, schema, formats=formats, strict=True)
        assert caught.value.metadata["pointer"] == "/format"


def test_resources_when_a_reference_leads_there_then_the_document_is_read(llguidance_small: Backend) -> None:
    schema = {"type": "array", "items": {"$ref": f"{ADDRESS}#/$defs/short"}}
    word = {"$id": ADDRESS, "$defs": {"short": {"$ref": "#letters", "maxLength": 2}, "l": {"$anchor": "letters", **S}}}
    grammar = compiled(llguidance_small, schema, resources={ADDRESS: word})
    assert accepts(grammar, '["ab"]') and not accepts(grammar, '["abc"]') and not accepts(grammar, "[1]")
    count = compiled(
        llguidance_small, {"$ref": "http://json-schema.org/draft-07/schema#/definitions/nonNegativeInteger"}
    )
    assert accepts(count, "1") and not accepts(count, "-1")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "give that document along"),
        ('{"$defs": {"short": 5}}', "a schema is a JSON object, true or false, not a number"),
        ('{"$defs": {"short": {}}, "x": 5}', "leads to a number, not to a schema"),
        ('{"$defs": {"short": {"type": 5}}}', "type '5' is not known"),
        ('{"$defs": {}}', "there is no 'short'"),
        ("{", f"the document {ADDRESS} is not JSON"),
    ],
)
def test_resources_when_one_is_bad_or_missing_then_refused_by_address(
    document: str | None, message: str, llguidance_small: Backend
) -> None:
    path = "x" if document and "x" in document else "$defs/short"
    source = json.dumps({"$ref": f"{ADDRESS}#/{path}"})
    resources = {} if document is None else {ADDRESS: document}
    with pytest.raises(GrammarError, match=message):
        llguidance_small.compile(GrammarSpec("json_schema", source, resources=resources))


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"type": "object", "properties": {"a": S}}, ["{}", '{"a":""}'], ['{"b":1}']),
        ({"properties": {"a": S}}, ["1", '{"a":""}'], ['{"b":1}']),
        ({"type": "object", "additionalProperties": S}, ['{"b":""}'], ['{"b":1}']),
        ({}, ['{"b":1}'], []),
        ({"type": "array", "items": {"type": "object"}}, ["[{}]"], ['[{"a":1}]']),
        ({"anyOf": [{"properties": {"a": S}}, S]}, ['""', '{"a":""}'], ['{"b":1}']),
        ({"type": "object", "not": {"properties": {"a": S}}}, [], ["{}", '{"a":""}', '{"a":1}', '{"b":1}']),
        ({"properties": {"a": {}}, "not": {"properties": {"a": S}}}, ['{"a":1}'], ["{}", '{"a":""}', '{"a":1,"b":1}']),
        (
            {"allOf": [{"properties": {"a": S}}, {"properties": {"b": {"type": "object"}}}]},
            ['{"a":"","b":{}}'],
            ['{"a":"","c":1}', '{"b":{"a":1}}'],
        ),
        (
            {"type": "object", "properties": {"c": S}, "anyOf": [{"required": ["c"]}, {"properties": {"d": S}}]},
            ['{"c":""}', '{"c":"","d":""}', '{"d":""}'],
            ['{"c":"","e":1}'],
        ),
        ({"allOf": [{"properties": {"a": S}}, {"additionalProperties": S}]}, ['{"b":""}'], ['{"b":1}']),
        (
            {"$defs": {"p": {"properties": {"n": S}}}, "items": {"$ref": "#/$defs/p", "properties": {"m": S}}},
            ['[{"n":"","m":""}]'],
            ['[{"o":1}]'],
        ),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "definitions": {"p": {"properties": {"n": S}}},
                "items": {"$ref": "#/definitions/p", "properties": {"m": S}},
            },
            ['[{"n":""}]'],
            ['[{"m":""}]'],
        ),
        (
            {"properties": {"k": {}}, "if": {"properties": {"k": {"const": 1}}}, "then": {"properties": {"x": S}}},
            ['{"k":1,"x":""}', '{"k":2}'],
            ['{"k":2,"x":""}', '{"k":1,"y":1}'],
        ),
    ],
)
def test_additional_properties_when_forbidden_then_each_value_is_closed_once(
    schema: object, taken: list[str], refused: list[str], llguidance_small: Backend
) -> None:
    """The outermost schema of a value closes it, for the names of all; under a negation nothing is closed."""
    if not taken:
        with pytest.raises(GrammarError, match="nothing satisfies"):
            compiled(llguidance_small, schema, additional_properties="forbid")
        return
    grammar = compiled(llguidance_small, schema, additional_properties="forbid")
    for text in taken + refused:
        assert accepts(grammar, text) == (text in taken), text


def test_library_when_the_compiler_refuses_a_schema_then_it_is_asked_and_the_report_says_so(
    llguidance_small: Backend,
) -> None:
    """Only where the library reads every keyword that the schema has."""
    names = [f"n{number}" for number in range(70)]
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}, "required": names}
    grammar = compiled(llguidance_small, schema, property_order="schema")
    [warning] = grammar.report.warnings
    assert "llguidance's own reading" in warning and "64 can be" in warning
    document = dict.fromkeys(names)
    assert accepts(grammar, json.dumps(document))
    assert not accepts(grammar, json.dumps(dict.fromkeys(names[1:])))
    assert not accepts(grammar, json.dumps({**dict.fromkeys(names[1:]), names[0]: None}))
    for unread in ({"minProperties": 1}, {"not": {"const": 5}}, {"$ref": "#/$defs/x", "$defs": {"x": {}}}):
        with pytest.raises(GrammarTooLargeError, match="64 can be"):
            compiled(llguidance_small, {**schema, **unread}, property_order="schema")
