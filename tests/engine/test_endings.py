"""The shortest ending of a document: masks take it, validators call the result valid, and none known is shorter."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.steering.json_position import JsonPosition
from maskd.errors import GrammarError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from maskd.json_schema.endings import schema as endings_of_schemas
from maskd.json_schema.endings.schema import SchemaEndings
from maskd.json_schema.endings.strings import BegunString, lightest, quoted
from maskd.regular.assertions import whole
from maskd.regular.expression import ANYTHING, matches, words
from tests import random_schemas, random_values
from tests.fuzzing import TIMES
from tests.lark import STOP, matcher_of_lark

_STRINGS = [*random_values.TEXTS[:-2], "aa", "bb", "ba", "o", "d", "0"]
_NUMBERS = [*range(-4, 16), 18, 20, 24, 30, 2.5, 0.5, 1.5, 4.5, 7.5, -2.5]


def _documents() -> list[tuple[str, Any]]:
    """Small documents of every form, the shortest first."""
    scalars: list[Any] = [None, True, False, *_NUMBERS, *_STRINGS]
    few: list[Any] = [None, True, 0, 1, 2, 3, 5, 6, "", "a", "b", "ab", "aa", [], {}]
    members = [
        {name: value} for name in (*random_values.NAMES, "x", "d", "ab") for value in (*scalars, [], {}, [0], {"a": 0})
    ]
    pairs = [
        dict(two)
        for names in itertools.permutations(random_values.NAMES, 2)
        for two in itertools.product(*([(name, value) for value in few[:12]] for name in names))
    ]
    arrays = [[*items] for size in (1, 2, 3) for items in itertools.product(few if size < 3 else few[1:8], repeat=size)]
    found = [*scalars, [], {}, *members, *pairs, *arrays]
    return sorted(
        ((json.dumps(value, ensure_ascii=False, separators=(",", ":")), value) for value in found),
        key=lambda pair: len(pair[0]),
    )


KNOWN = _documents()
LONG_NUMBER = re.compile(r"[0-9.]{15}")
"""Python reads it as a float that is another number."""


def position_of(schema: Any, options: GrammarOptions) -> JsonPosition:
    return JsonPosition(SchemaEndings(schema, options, {}))


def is_valid(validator: Any, value: Any) -> bool | None:
    try:
        return bool(validator.is_valid(value))
    except RecursionError:
        return None


OPTIONS = {
    "any order": GrammarOptions(),
    "schema's order": GrammarOptions(property_order="schema"),
    "compact": GrammarOptions(max_whitespace=0, additional_properties="forbid"),
    "separators": GrammarOptions(max_whitespace=0, item_separator=", ", key_separator=": "),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("block", range(2))
def test_ending_when_a_walk_is_cut_anywhere_then_masks_take_it_and_the_document_is_valid(
    monkeypatch: pytest.MonkeyPatch, block: int, name: str
) -> None:
    """And no small document that begins in the same way is shorter."""
    monkeypatch.setattr(endings_of_schemas, "_FIRST_WORK", 10**6)
    monkeypatch.setattr(endings_of_schemas, "_MOST_WORK", 10**6)
    each, options = round(20 * TIMES), OPTIONS[name]
    for seed in range(block * each, block * each + each):
        rng = random.Random(seed)
        schema = random_schemas.document(rng)
        validator = jsonschema.Draft202012Validator(schema)
        try:
            position = position_of(schema, options)
            matcher = matcher_of_lark(compile_schema(schema, options).lark)
        except GrammarError:
            continue
        taken = bytearray()
        for _ in range(40):
            check(schema, validator, matcher, position, bytes(taken), name, seed)
            allowed = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)).tolist()
            allowed = [token for token in allowed if token != STOP]
            if not allowed or matcher.is_stopped():
                break
            plain = [token for token in allowed if 32 < token < 127]
            token = rng.choice(plain if plain and rng.random() < 0.9 else allowed)
            assert matcher.consume_token(token)
            position.feed(bytes([token]))
            taken.append(token)


def check(
    schema: Any, validator: Any, matcher: Any, position: JsonPosition, begun: bytes, name: str, seed: int
) -> None:
    where = (seed, schema, begun, ending := position.ending())
    assert takes(matcher, ending), where
    if not LONG_NUMBER.search((begun + ending).decode()):
        assert is_valid(validator, json.loads(begun + ending)) is not False, where
    text = begun.decode("utf-8", "replace")
    for document, value in KNOWN if name != "separators" else ():
        if len(document) >= len(begun) + len(ending):
            break
        if document.startswith(text) and is_valid(validator, value):
            assert name != "any order" and not takes(matcher, document[len(text) :].encode()), (*where, document)


def takes(matcher: Any, text: bytes) -> bool:
    """Whether ``matcher``, which stays as it is, takes ``text`` and may stop there."""
    copy = matcher.deep_copy()
    return copy.try_consume_tokens(list(text)) == len(text) and bool(copy.is_accepting())


@pytest.mark.parametrize(
    ("schema", "begun", "ending"),
    [
        ({"type": "object", "minProperties": 2}, "{", '"":0,"a":0}'),
        (
            {"type": "object", "minProperties": 2, "patternProperties": {"^x": {"const": "long"}}},
            '{"x',
            '":"long","":0}',
        ),
        ({"type": "array", "contains": {"const": 7}, "minContains": 2}, "[7,1", ",7]"),
        ({"type": "array", "contains": {"const": 7}, "maxContains": 1}, "[7,", "0]"),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "abc"]}, "minItems": 2},
            '["a","a',
            'bc"]',
        ),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "type": "object"}, '{"a":1', ',"b":0}'),
        ({"type": "object", "dependentRequired": {"a": ["b"]}, "required": ["a"]}, '{"b":1', ',"a":0}'),
        ({"type": "object", "not": {"required": ["a"]}, "minProperties": 1}, '{"', '":0}'),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}, "minimum": 10}, "1", "0"),
        ({"type": "string", "format": "date"}, '"2024-02-3', None),
        ({"type": "string", "format": "date"}, '"2024-02-2', '0"'),
        ({"type": "string", "minLength": 3, "pattern": "^a?b*$"}, '"a', 'bb"'),
        ({"type": "object", "propertyNames": {"minLength": 2}, "minProperties": 1}, '{"a', 'a":0}'),
        ({"oneOf": [{"type": "integer"}, {"minimum": 5}], "type": "number"}, "7.", "1"),
    ],
)
def test_ending_of_what_schemas_ask_for(schema: Any, begun: str, ending: str | None) -> None:
    position = position_of(schema, GrammarOptions())
    position.feed(begun.encode())
    if ending is None:  # no mask lets this through: the string ends as any string
        assert position.ending() == b'"'
    else:
        assert position.ending().decode() == ending


def test_documents_that_references_lead_to_then_decide_the_ending() -> None:
    resources = {"https://example.com/n": {"type": "integer", "minimum": 100}}
    endings = SchemaEndings({"$ref": "https://example.com/n"}, GrammarOptions(), resources)
    assert JsonPosition(endings).ending() == b"100"


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "minItems": 10**9},
        {"$ref": "https://example.com/elsewhere"},
        {"pattern": r"\bword", "type": "string"},
        {"type": {}},
    ],
)
def test_schema_that_has_no_document_or_cannot_be_read_then_refused(schema: Any) -> None:
    with pytest.raises(GrammarError):
        SchemaEndings(schema, GrammarOptions(), {})


# -- strings -----------------------------------------------------------------------------------------------------------


def spelled(text: str, rng: random.Random) -> bytes:
    """Returns ``text`` as a JSON string, its characters spelled in random ways."""
    return b'"' + "".join(json.dumps(char, ensure_ascii=rng.random() < 0.5)[1:-1] for char in text).encode() + b'"'


@given(st.text(max_size=6), st.integers(0, 100), st.randoms(use_true_random=False))
def test_string_cut_anywhere_then_it_becomes_its_text_and_ends(text: str, cut: int, rng: random.Random) -> None:
    spelling = spelled(text, rng)
    begun = spelling[1 : 1 + cut % (len(spelling) - 1)]
    string = BegunString()
    for byte in begun:
        string.feed(byte)
    if not string.may_become(text):  # masks let only control characters and short escapes follow a backslash
        assert begun.endswith(b"\\")
        return
    assert json.loads(b'"' + begun + string.rest_of(text)) == text
    shortest = string.ending(ANYTHING)
    assert shortest is not None and len(shortest) <= len(string.rest_of(text))
    assert isinstance(json.loads(b'"' + begun + shortest), str)
    among = string.completed(words([text, text + "x", "another"]))
    assert among is not None and len(string.rest_of(among)) <= len(string.rest_of(text))


@pytest.mark.parametrize(
    "pattern", ["é|[x-z]{2}", '"|a', "[^a-z]{2,3}", "(?!a)..", "\\n+x", "\\u0001|xxxxxxx", "(?=.*b)[ab]{2,}"]
)
def test_lightest_text_then_none_of_fewer_bytes_matches(pattern: str) -> None:
    expression = whole(pattern)
    alphabet = 'abxyz\n\x01é€"'
    texts = ("".join(chars) for size in range(4) for chars in itertools.product(alphabet, repeat=size))
    best = min((len(quoted(text)) for text in texts if matches(expression, text)), default=99)
    found = lightest(expression)
    assert found is not None and matches(expression, found) and len(quoted(found)) <= best
