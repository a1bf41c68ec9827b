"""The order of the schema: a member comes only where all that must follow it still can."""

from __future__ import annotations

from typing import Any

import pytest

from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from tests.lark import matcher_of_lark

_NAMES = {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}}
_CLOSED = {"type": "object", "properties": _NAMES, "additionalProperties": False}
_ONE_IS_SMALL = {"type": "object", "properties": _NAMES, "not": {"properties": {"b": {"minimum": 3}}}}


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        ({**_CLOSED, "minProperties": 2}, '{"', "ab"),
        ({**_CLOSED, "minProperties": 2}, '{"a":1,"', "bc"),
        ({**_CLOSED, "minProperties": 3}, '{"', "a"),
        ({**_CLOSED, "required": ["b"]}, '{"', "ab"),
        ({**_CLOSED, **_ONE_IS_SMALL}, '{"', "ab"),
        ({**_CLOSED, **_ONE_IS_SMALL}, '{"b":2,"', "c"),
        (_ONE_IS_SMALL, '{"', "ab"),
    ],
)
def test_name_in_order_then_allowed_where_what_is_needed_can_follow(schema: Any, text: str, allowed: str) -> None:
    matcher = matcher_of_lark(compile_schema(schema, GrammarOptions(property_order="schema")).lark)
    assert matcher.try_consume_tokens(list(text.encode())) == len(text)
    row = matcher.compute_logit_bias()
    assert {char for char in "abcx" if row[ord(char)]} == set(allowed)
