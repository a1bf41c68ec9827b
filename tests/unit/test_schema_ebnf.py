"""The compiler's EBNF: what it lets through is valid or listed, and every valid value passes in some order."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from maskd.errors import GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import EbnfSchema, compile_ebnf
from tests.ebnf import grammar_of_ebnf, takes
from tests.fuzzing import TIMES
from tests.random_schemas import DRAFTS, Draft, document
from tests.random_values import orders, value

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def compiled(schema: object, **options: Any) -> EbnfSchema:
    return compile_ebnf(schema, GrammarOptions(**options))


def spelled(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def is_valid(draft: Draft, schema: Any, one: Any) -> bool | None:
    """What python-jsonschema says; None where a schema is undefined, or it cannot read it (4.26, 2019-09)."""
    try:
        return bool(draft.validator(schema, format_checker=draft.validator.FORMAT_CHECKER).is_valid(one))
    except (RecursionError, TypeError):
        return None


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: str(draft.year))
def test_ebnf_when_schemas_are_random_then_valid_values_pass_and_others_only_if_it_is_listed(draft: Draft) -> None:
    """In some order of its members, that is; the compiler's own tests know about refusals."""
    for seed in range(round(60 * TIMES)):
        rng = random.Random(f"{draft.year} {seed}")
        schema = document(rng, draft)
        try:
            found = compiled(schema)
        except (GrammarUnsatisfiableError, GrammarUnsupportedError, GrammarTooLargeError):
            continue
        grammar = grammar_of_ebnf(found.ebnf)
        for _ in range(14):
            one = value(rng)
            is_right = is_valid(draft, schema, one)
            if is_right:
                some = itertools.islice(orders(one), 300)
                assert any(takes(grammar, spelled(other)) for other in some), (seed, schema, one)
            elif is_right is False and not found.unenforced:
                assert not takes(grammar, spelled(one)), (seed, schema, one)


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        (
            {"properties": {"c": {}, "a": STRING, "b": {}}, "required": ["a"]},
            [{"a": ""}, {"c": 1, "a": "", "b": 2, "x": 3}, {"c": 1, "a": ""}, {"a": "", "x": 1, "y": 2}],
            [{}, {"a": 1}, {"a": "", "c": 1}, {"c": 1}, {"x": 1, "a": ""}, {"b": 1, "a": ""}],
        ),
        (
            {"properties": {"a": INTEGER, "b": INTEGER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": 1}, {"a": 1, "b": 1, "c": 1}],
            [{}, {"c": 1}, {"a": "x", "b": 1}],
        ),
        (
            {
                "properties": dict.fromkeys("abcd", INTEGER),
                "minProperties": 2,
                "maxProperties": 3,
                "additionalProperties": False,
            },
            [{"a": 1, "d": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1, "d": 1}],
            [{}, {"a": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}],
        ),
        (
            {"maxProperties": 300, "properties": {"a": INTEGER}},
            [{}, {"a": 1, **{f"k{n}": n for n in range(299)}}],
            [{"a": 1, **{f"k{n}": n for n in range(300)}}],
        ),
        (
            {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}, "additionalProperties": False},
            [{}, {"b": 1}, {"a": 1, "b": 1}],
            [{"a": 1}],
        ),
        (
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {"a": INTEGER, "b": STRING},
                "not": {"required": ["a", "b"]},
            },
            [{}, {"a": 1}, {"b": ""}],
            [{"a": 1, "b": ""}],
        ),
        (
            {"type": "array", "contains": STRING, "minContains": 2, "maxContains": 3, "maxItems": 5},
            [["", ""], [1, "", 2, ""], ["", "", "", 1, 2]],
            [[], [""], ["", "", "", ""], ["", "", 1, 2, 3, 4]],
        ),
        (
            {"prefixItems": [STRING, INTEGER], "minItems": 1, "maxItems": 3, "items": STRING, "type": "array"},
            [[""], ["", 1], ["", 1, ""]],
            [[], [1], ["", ""], ["", 1, 2], ["", 1, "", ""]],
        ),
    ],
)
def test_ebnf_when_formulas_and_counts_are_bounded_then_exact(
    schema: object, taken: list[object], refused: list[object]
) -> None:
    found = compiled(schema)
    grammar = grammar_of_ebnf(found.ebnf)
    assert not found.unenforced
    assert [value for value in taken if not takes(grammar, spelled(value))] == []
    assert [value for value in refused if takes(grammar, spelled(value))] == []


def test_ebnf_when_counts_take_too_many_rules_then_what_is_left_away_is_listed() -> None:
    """And what remains is a bound from above: required members are still asked for."""
    names = {f"p{index}": INTEGER for index in range(200)}
    schema = {"properties": names, "required": ["p3"], "minProperties": 100, "additionalProperties": False}
    found = compiled(schema)
    [entry] = found.unenforced
    assert (entry.pointer, entry.keyword) == ("/minProperties", "minProperties")
    grammar = grammar_of_ebnf(found.ebnf)
    assert takes(grammar, spelled({"p3": 1})) and not takes(grammar, spelled({"p4": 1}))
    found = compiled({"items": {"type": "array", "contains": STRING, "minContains": 50, "maxItems": 400}})
    assert [(entry.pointer, entry.keyword) for entry in found.unenforced] == [("/items/contains", "contains")]


def test_ebnf_when_an_object_has_many_names_then_rules_are_linear_in_them() -> None:
    small, large = (
        len(compiled({"properties": {f"p{index}": INTEGER for index in range(count)}}).ebnf.splitlines())
        for count in (100, 1000)
    )
    assert large < 11 * small


@pytest.mark.parametrize(
    ("options", "taken", "refused"),
    [
        ({"max_whitespace": 0}, ['{"a":[1,2]}'], ['{"a": [1,2]}', '{"a":[1, 2]}', '{ "a":[1,2]}']),
        ({"max_whitespace": 1}, ['{ "a" : [ 1 , 2 ] }', '{"a":[1,2]}'], ['{  "a":[1,2]}', '{"a":[1,2]  }']),
        ({"max_whitespace": 0, "item_separator": ", ", "key_separator": ": "}, ['{"a": [1, 2]}'], ['{"a":[1,2]}']),
        ({"item_separator": " ,"}, ['{"a":[1 ,2]}', '{"a" : [1  , 2]}'], ['{"a":[1,2]}']),
    ],
)
def test_ebnf_when_white_space_is_limited_then_so_everywhere(
    options: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    for schema in ({}, {"type": "object", "properties": {"a": {"type": "array", "items": INTEGER}}}):
        grammar = grammar_of_ebnf(compiled(schema, **options).ebnf)
        assert all(takes(grammar, text.encode()) for text in taken)
        assert not any(takes(grammar, text.encode()) for text in refused)


def test_ebnf_when_members_could_change_places_then_is_ordered_says_so() -> None:
    assert compiled({"properties": {"a": INTEGER, "b": INTEGER}}).is_ordered
    assert not compiled({"properties": {"a": INTEGER}, "additionalProperties": False}).is_ordered
    assert not compiled({"additionalProperties": INTEGER}).is_ordered
