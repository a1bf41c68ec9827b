"""Closing before the budget ends: the reader, the shortest endings, and whole documents from random weights."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import TextRequest
from engine_adapter.model.loading import load_model
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.steering import regex_position
from engine_adapter.steering.base import UNKNOWN
from engine_adapter.steering.closing import ClosingVocabulary, steering_for
from engine_adapter.steering.json_position import MARKS, JsonPosition
from engine_adapter.steering.positions import position_of
from engine_adapter.steering.regex_position import Automaton, RegexPosition
from engine_adapter.steering.tag_position import TagPosition, tags_of
from engine_adapter.structured_output.response_format import grammar_of
from maskd.bitmask import row_of
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.endings.schema import SchemaEndings
from tests.conftest import Daemon, byte_vocabulary

torch.set_num_threads(1)
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
    "required": ["v", "kids"],
}
UNION = [
    {"type": "object", "properties": {"kind": {"const": "a"}, "a": {"type": "string"}}, "required": ["kind", "a"]},
    {
        "type": "object",
        "properties": {"kind": {"const": "b"}, "b": {"type": "array", "items": {"type": "integer"}, "minItems": 2}},
        "required": ["kind", "b"],
    },
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "skills": {"type": "array", "items": {"type": "string", "maxLength": 10}, "minItems": 3},
    },
    "required": ["name", "skills"],
}
# A budget that hardly any random output keeps, and that the shortest document fits into.
_TEXT = {"type": "string"}
_FIELDS = {"id": {"type": "string", "pattern": "^[a-z]{3}-[0-9]{4}$"}, "when": {"type": "string", "format": "date"}}
_RECORD = {
    "type": "object",
    "properties": {**_FIELDS, "note": {**_TEXT, "minLength": 5}},
    "required": ["id", "when", "note"],
}
_ITEM = {"type": "object", "properties": {"a": _TEXT, "b": {"type": "boolean"}}, "required": ["a", "b"]}
KINDS: dict[str, tuple[Any, int]] = {
    "nested": (PERSON, 50),
    "recursive": ({"$defs": {"n": NODE}, "$ref": "#/$defs/n"}, 50),
    "patterns": (_RECORD, 70),
    "union": ({"anyOf": UNION}, 40),
    "string": (_TEXT, 12),
    "items": ({"type": "array", "items": _ITEM}, 40),
    "any object": ({"type": "object"}, 24),
}


@pytest.fixture(scope="module")
def engine(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Random weights, also when the bundled model has others."""
    bundled = load_model(device="cpu").path
    directory = tmp_path_factory.mktemp("random")
    for path in bundled.glob("*.json"):
        (directory / path.name).write_bytes(path.read_bytes())
    with Engine(directory, target=daemon.target, slots=8, device="cpu", context_length=256) as made:
        assert not made.trained
        yield made


def endings(schema: Any) -> SchemaEndings:
    return SchemaEndings(schema, GrammarOptions(), {})


def ending_of(schema: Any, begun: str | bytes) -> bytes:
    position = JsonPosition(endings(schema))
    position.feed(begun.encode() if isinstance(begun, str) else begun)
    return position.ending()


@pytest.mark.parametrize(
    ("schema", "begun", "ending"),
    [
        (PERSON, "", '{"name":"","skills":["","",""]}'),
        (PERSON, '{"na', 'me":"","skills":["","",""]}'),
        (PERSON, '{"name": "x\\', 'n","skills":["","",""]}'),
        (PERSON, '{"name": "x\\u00', '00","skills":["","",""]}'),
        (PERSON, '{"name": "x\\ud83d', '\\udc00","skills":["","",""]}'),
        (PERSON, '{"name": "x", "skills" ', ':["","",""]}'),
        (PERSON, '{"name": "x", "skills": ["a", "b', '",""]}'),
        (PERSON, '{"name": "x", "skills": ["a", "b", "c"', "]}"),
        (PERSON, '{"name": "x", "skills": ["a", "b", "c"], ', '"":0}'),
        (PERSON, '{"name": "x", "skills": ["a", "b", "c"]}', ""),
        (KINDS["recursive"][0], '{"v": 1, "kids": [{', '"v":0,"kids":[]}]}'),
        (KINDS["recursive"][0], '{"v": -', '0,"kids":[]}'),
        ({"anyOf": UNION}, "", '{"kind":"a","a":""}'),
        ({"anyOf": UNION}, '{"kind":"b"', ',"b":[0,0]}'),
        ({"enum": ["red", "green"]}, '"g', 'reen"'),
        ({"type": ["null", "boolean"]}, "f", "alse"),
        ({"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4}, "", "8"),
        ({"type": "number", "maximum": -3}, "", "-3"),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["a"]}], "type": "object"}, "", '{"a":1}'),
        ({"type": "array", "prefixItems": [{"const": 7}], "items": {"type": "null"}, "minItems": 2}, "[7", ",null]"),
        ({"type": "object"}, "{", "}"),
        (True, "[[1, ", "0]]"),
    ],
)
def test_ending_is_the_shortest(schema: Any, begun: str, ending: str) -> None:
    assert ending_of(schema, begun).decode() == ending


def test_ending_within_a_character_then_completes_it() -> None:
    assert ending_of({"type": "string", "pattern": "^[a-z]{3}-$"}, '"a') == b'aa-"'
    assert ending_of({"type": "string"}, b'"\xf0\x9f') == b'\x80\x80"'
    assert ending_of({"enum": ["\U0001f600", "\U0001f601"]}, b'"\xf0\x9f\x98') == b'\x80"'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.integers(0, 200), st.booleans(), st.sampled_from([None, 1]))
def test_any_document_cut_anywhere_then_its_ending_makes_it_json(
    value: Any, cut: int, is_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
    begun = text[: cut % (len(text) + 1)]
    json.loads(begun + ending_of(True, begun))


# -- regular expressions and structural tags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "begun", "ending"),
    [
        (r"[^\n]{10,300}\.", "My name is", "."),
        (r"[^\n]{10,300}\.", "Vy. V", "aaaaa."),
        (r"[^\n]{2,4}\.", "Vy.", ""),
        (r"(Paris|London|Rome)", "", "Rome"),
        (r"(Paris|London|Rome)", "L", "ondon"),
        (r"\d{4}-\d{2}-\d{2}", "20", "00-00-00"),
        (r"(?:ab?c)+x", "abcabc", "x"),
        (r"(?:ab?c)+x", "abcab", "cx"),
        (r"^\w+@[a-z]+\.(com|org)$", "joe@ex", ".com"),
        (r"<[^>]*>", "<ü", ">"),
        (r"\S\D[^abc0]", "", "aa "),
    ],
)
def test_ending_of_a_regex_is_the_shortest(pattern: str, begun: str, ending: str) -> None:
    position = RegexPosition(Automaton(pattern))
    position.feed(begun.encode())
    assert position.ending().decode() == ending
    assert re.fullmatch(pattern, begun + ending)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[^\n]{2,9}\.",
        r"(?:a|bc?)*d{2,3}",
        r"\w+@\w+(?:\.[a-z]{2,3})?",
        r"(?:x{2}|[^x])+",
        r"(?:\d{1,3}\.){3}\d+|::",
        r"a?b??c*?[d-f]+?",
    ],
)
@given(data=st.data())
def test_any_match_of_a_regex_cut_anywhere_then_its_ending_makes_a_match(pattern: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(pattern, fullmatch=True))
    begun = text[: data.draw(st.integers(0, len(text)))]
    position = RegexPosition(Automaton(pattern))
    position.feed(begun.encode())
    ending = position.ending().decode()
    assert re.fullmatch(pattern, begun + ending) and len(ending) <= len(text) - len(begun)


def test_ending_of_a_regex_when_a_character_is_not_whole_then_waits_for_it() -> None:
    position = RegexPosition(Automaton("<[^>]*>"))
    position.feed(b"<\xc3")
    assert position.fork().ending() == UNKNOWN + b">"
    position.feed(b"\xbc>")
    assert position.ending() == b""


def test_regex_that_repeats_nothing_then_is_nothing() -> None:
    assert RegexPosition(Automaton("x(?:){3000000000}")).ending() == b"x"


@pytest.mark.parametrize(
    ("pattern", "begun"),
    [
        ("(a?){900}", "a" * 60),
        ("((a|a|a)*){400}", "a" * 60),
        (r"\w{1,900}", "word" * 20),
        ("[^" + "".join(map(chr, range(300, 1300))) + "]{500}", "a"),
    ],
)
def test_regex_when_all_its_states_are_waited_for_then_each_is_looked_at_once_a_character(
    monkeypatch: pytest.MonkeyPatch, pattern: str, begun: str
) -> None:
    """Characters are compared with each set once, however often the set is repeated and the character comes."""
    automaton = Automaton(pattern)
    calls: list[str] = []
    real = regex_position._matches
    monkeypatch.setattr(
        regex_position, "_matches", lambda *arguments: (calls.append(arguments[2]), real(*arguments))[1]
    )
    position = RegexPosition(automaton)
    position.feed(begun.encode())
    position.ending()
    assert len(calls) <= 3000 * len(set(begun)), "and no set is looked at for each state"


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)a", "(a?){2400}", "(" * 40 + "a" + "b?)*" * 40, "(a)\\1", "(", "[a-z]{9}{9}{9}{9}", "(" * 5000 + ")" * 5000],
)
def test_regex_that_cannot_be_followed_then_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Automaton(pattern)


_CALLS = [
    {"begin": f"<f={name}>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"}
    for name, schema in (("a", PERSON), ("b", {"type": "integer"}))
]
_TRIGGERED = {"type": "triggered_tags", "triggers": ["<f="], "tags": _CALLS}
_LISTED = {"type": "tags_with_separator", "tags": _CALLS, "separator": "\n", "at_least_one": True}
_OLDER = {"structures": [{"begin": "<f=a>", "schema": PERSON, "end": "</f>"}], "triggers": ["<f="]}


@pytest.mark.parametrize(
    ("source", "begun", "ending"),
    [
        (_TRIGGERED, "Free text 1 <", "f=b>0</f>"),
        (_TRIGGERED, "Free text 1 < 2", ""),
        (_TRIGGERED, 'So: <f=a>{"name": "<f=b>', '","skills":["","",""]}</f>'),
        (_TRIGGERED, '<f=a>{"name": "x", "skills": ["", "", ""]}', "</f>"),
        (_TRIGGERED, '<f=a>{"name": "x", "skills": ["", "", ""]} </', "f>"),
        (_TRIGGERED, '<f=a>{"name": "x", "skills": ["", "", ""]}</f>', ""),
        (_TRIGGERED, "<f=b>12", "</f>"),
        (_TRIGGERED, "<f=b>12</f>\n<f=b>-", "0</f>"),
        ({"type": "structural_tag", "format": _LISTED}, "", "<f=b>0</f>"),
        ({"format": _LISTED}, "<f=b>1</f>", ""),
        (_LISTED, "<f=b>1</f>\n", "<f=b>0</f>"),
        (_OLDER, "<f=a>{", '"name":"","skills":["","",""]}</f>'),
        (
            {"type": "tag", "begin": "[", "content": {"type": "json_schema", "json_schema": {}}, "end": ["]", "!]"]},
            "[{}!",
            "]",
        ),
        ({"type": "tag", "begin": "[", "content": {"type": "json_schema", "json_schema": {}}, "end": ""}, "[[1", "]"),
        ({"type": "tag", "begin": "[", "content": {"type": "regex", "pattern": "a"}, "end": "]"}, "[a", ""),
    ],
)
def test_ending_of_a_tag_is_the_shortest(source: Any, begun: str, ending: str) -> None:
    position = TagPosition(source, tags_of(source, endings))
    position.feed(begun.encode())
    assert position.fork().ending().decode() == ending


@pytest.mark.parametrize(
    ("kind", "source", "begun", "substitutes"),
    [
        ("json_schema", {"type": "object"}, "{", MARKS),
        ("json_schema", {"type": "object"}, '{"a', b'"'),
        ("json_schema", {"type": "object"}, '{"a": "b', b'"'),
        ("json_schema", {"type": "object"}, '{"a": tr', b""),
        ("structural_tag", _TRIGGERED, "free <f=", b""),
        ("structural_tag", _TRIGGERED, '<f=a>{"name": "x', b'"'),
        ("structural_tag", _TRIGGERED, "<f=a>", MARKS),
        ("structural_tag", _TRIGGERED, "<f=a>{}</", MARKS),
        ("choice", ["Paris", "London"], "L", b""),
    ],
)
def test_substitutes_by_position_then_none_where_text_is_free(
    kind: Any, source: Any, begun: str, substitutes: bytes
) -> None:
    """Forked positions, whatever their kind, offer the marks of JSON within a value and nothing in free text."""
    position = position_of(GrammarSpec(kind, json.dumps(source)))
    assert position is not None
    position.feed(begun.encode())
    assert position.fork().substitutes() == substitutes


@pytest.mark.parametrize(
    "tags", [[{**_CALLS[0], "begin": "<" * 300}], [{**_CALLS[0], "begin": f"<{n}>"} for n in range(300)]]
)
def test_tags_when_too_many_or_too_long_then_refused(tags: Any) -> None:
    with pytest.raises(ValueError, match="more than 256"):
        tags_of({"type": "triggered_tags", "triggers": ["<"], "tags": tags}, endings)


# -- steering ----------------------------------------------------------------------------------------------------------


def test_steering_when_the_ending_is_not_allowed_then_leaves_the_choice_or_takes_a_mark() -> None:
    vocabulary = byte_vocabulary()
    steering = steering_for(GrammarSpec("json_schema", '{"type": "object"}'), ClosingVocabulary(vocabulary))

    def choose(allowed: bytes, drawn: bytes = b" ") -> int | None:
        return steering.choose(row_of([*allowed], vocabulary.vocab_size), drawn[0], 1)

    assert choose(b"{ ") == ord("{")
    steering.accept(ord("{"))
    assert choose(b'" ') == ord('"')  # not the brace that it wants, and never a space
    steering.accept(ord('"'))
    assert choose(b"xy", b"x") is None
    for byte in b'x":1':
        steering.accept(byte)
    assert choose(b"23", b"2") is None  # a number that is not long enough
    stop = vocabulary.stop_token_ids[0]
    assert steering.choose(row_of([ord("2"), stop], vocabulary.vocab_size), ord("2"), 1) == stop  # the mask knows best


def test_steering_of_other_kinds_then_stops_in_the_last_quarter() -> None:
    vocabulary = byte_vocabulary()
    steering = steering_for(GrammarSpec("ebnf", 'root ::= "a"+'), ClosingVocabulary(vocabulary))
    row = row_of([ord("a"), *vocabulary.stop_token_ids], vocabulary.vocab_size)
    chosen = [steering.choose(row, ord("a"), remaining) for remaining in range(8, 0, -1)]
    assert chosen == [None] * 6 + [vocabulary.stop_token_ids[0]] * 2
    assert steering.choose(np.zeros_like(row), ord("a"), 1) is None


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_random_outputs_within_a_budget_then_nearly_all_are_whole_and_valid(engine: Engine, backend: str) -> None:
    grammars = {name: GrammarSpec("json_schema", json.dumps(schema), backend) for name, (schema, _) in KINDS.items()}

    def generate(name: str, *, closing: bool, n: int) -> list[Any]:
        request = TextRequest(
            "Tell:", grammars[name], SamplingParams(seed=5), KINDS[name][1], n=n, close_before_budget=closing
        )
        generations[name, closing] = engine.submit(request)
        return generations[name, closing].choices

    generations: dict[tuple[str, bool], Any] = {}
    outputs = [(KINDS[name][0], choice) for name in KINDS for choice in generate(name, closing=True, n=12)]
    free = [choice for name in KINDS for choice in generate(name, closing=False, n=2)]
    for generation in generations.values():
        generation.result(100)
    valid = 0
    for schema, choice in outputs:
        try:
            jsonschema.validate(json.loads(choice.text), schema)
            valid += choice.finish_reason == "stop"
        except ValueError:
            assert choice.finish_reason == "length"  # cut, and said so
    assert valid >= 0.95 * len(outputs)
    assert sum(choice.finish_reason == "length" for choice in free) >= len(free) / 2


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
@pytest.mark.parametrize(
    ("constraints", "whole", "budget"),
    [
        ({"regex": r"[^\n]{10,300}\."}, r"[^\n]{10,300}\.", 24),
        ({"regex": r"(?:[a-z]+ ){4,}end"}, r"(?:[a-z]+ ){4,}end", 40),
        (
            {"structural_tag": {"type": "structural_tag", "format": {**_LISTED, "tags": _CALLS[:1]}}},
            r"(?s)(<f=a>\{.*\}</f>\n?)+",
            60,
        ),
    ],
    ids=["sentence", "words", "calls"],
)
def test_random_text_within_a_budget_then_whole(
    engine: Engine, backend: str, constraints: Any, whole: str, budget: int
) -> None:
    grammar = grammar_of(constraints)
    assert grammar is not None
    grammar = dataclasses.replace(grammar, backend=backend)
    texts: dict[bool, list[str]] = {}
    for closing in (False, True):
        request = TextRequest("Tell:", grammar, SamplingParams(seed=3), budget, n=8, close_before_budget=closing)
        choices = engine.submit(request).result(100)
        texts[closing] = [
            choice.text for choice in choices if choice.finish_reason == "stop" and re.fullmatch(whole, choice.text)
        ]
    assert len(texts[True]) == 8 > len(texts[False])


def test_budget_below_the_shortest_document_then_ends_by_length(engine: Engine) -> None:
    request = TextRequest(
        "Tell:", grammar_of({"type": "json", "schema": PERSON}), SamplingParams(seed=1), 4, close_before_budget=True
    )
    (choice,) = engine.submit(request).result(60)
    assert choice.finish_reason == "length" and len(choice.token_ids) == 4


def _chain(link: Any, last: Any, count: int = 40) -> dict[str, Any]:
    """``count`` definitions, each made by ``link`` from a reference to the next one."""
    below = ({"$ref": f"#/$defs/d{number + 1}"} for number in range(count))
    return {
        "$defs": {f"d{number}": link(one) for number, one in enumerate(below)} | {f"d{count}": last},
        "$ref": "#/$defs/d0",
    }


HUGE: dict[str, Any] = {
    "branches double, and none is possible": _chain(lambda below: {"anyOf": [below, below]}, False),
    "items double": _chain(
        lambda below: {"type": "array", "prefixItems": [below, below], "minItems": 2}, {"type": "null"}
    ),
    "properties double": _chain(
        lambda below: {"type": "object", "properties": {"a": below, "b": below}, "required": ["a", "b"]}, {}
    ),
    "many items": {"type": "array", "minItems": 10**9},
    "many items of many": {
        "type": "array",
        "minItems": 10**4,
        "items": {"type": "array", "minItems": 10**4, "items": {"type": "null"}},
    },
    "long string": {"type": "string", "minLength": 10**12},
    "required is no list": {"type": "object", "required": True},
    "type is an object": {"type": {}},
    "number beyond numbers": {"type": "number", "minimum": 1e308, "multipleOf": 5e-324},
}


@pytest.mark.parametrize("name", HUGE)
def test_steering_when_the_schema_is_huge_or_malformed_then_it_has_a_choice_all_the_same(name: str) -> None:
    """The schema is not compiled yet: work and texts are bounded, and the compiler reports what is malformed."""
    vocabulary = ClosingVocabulary(byte_vocabulary())
    steering = steering_for(GrammarSpec("json_schema", json.dumps(HUGE[name])), vocabulary)
    row = row_of(range(256), 300)
    assert steering.choose(row, ord("["), 4) in {None, *range(256)}
    assert steering.reserve() >= 0


_CONSTANTS = {"anyOf": [{"const": f"v{number}"} for number in range(60)]}
_NAMES = [f"k{number}" for number in range(5000)]
_HEAVY: dict[str, tuple[Any, str]] = {
    "required": (
        {"type": "object", "properties": dict.fromkeys(_NAMES, _CONSTANTS), "required": _NAMES},
        '{"k0":"v1","k',
    ),
    "enum": ({"type": "array", "items": {"enum": _NAMES * 10}}, '["k0","k'),
    "items": ({"type": "array", "minItems": 65000, "items": {"type": "null"}}, "[null,null"),
    "deep": (
        _chain(
            lambda below: {
                "type": "object",
                "properties": {"a": below, "b": {"type": "string", "minLength": 4000}},
                "required": ["b"],
            },
            {},
        ),
        '{"a":' * 30,
    ),
}


def test_steering_when_an_object_has_many_alternatives_then_it_follows_to_its_end() -> None:
    """What may be spent grows with the output."""
    vocabulary = byte_vocabulary()
    schema = {
        "type": "object",
        "properties": {f"k{number}": json.loads(json.dumps(_CONSTANTS)) for number in range(200)},
    }
    steering = steering_for(GrammarSpec("json_schema", json.dumps(schema)), ClosingVocabulary(vocabulary))
    text = json.dumps({f"k{number}": "v1" for number in range(200)}, separators=(",", ":")).encode()
    row = row_of(range(256), vocabulary.vocab_size)
    for at, byte in enumerate(text):
        steering.choose(row, byte, 9000 - at)
        steering.accept(byte)
    assert steering.reserve() == 2, "a stop token, and one to spare"


@pytest.mark.parametrize("name", _HEAVY)
def test_steering_when_a_schema_is_heavy_then_it_gives_up_before_it_costs_much(name: str) -> None:
    """In steps of the interpreter, for 50 tokens within a budget that never has room."""
    schema, text = _HEAVY[name]
    vocabulary = byte_vocabulary()
    steering = steering_for(GrammarSpec("json_schema", json.dumps(schema)), ClosingVocabulary(vocabulary))
    lines = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    row = row_of(range(256), vocabulary.vocab_size)
    sys.settrace(trace)
    try:
        for byte in (text + " " * 50)[:50].encode():
            steering.choose(row, byte, 20)
            steering.accept(byte)
    except ValueError:
        pass
    finally:
        sys.settrace(None)
    assert lines < 3_000_000
