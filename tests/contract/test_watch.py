"""The watch beside a grammar: rows compared with brute force, walks with a validator.

Brute force: a schema that few texts satisfy, written with few characters. All texts that the grammar alone takes are
found one by one, and a validator says which of them are right. A token is allowed if some right text goes on with it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from maskd import backends
from maskd.backends.base import BatchFill, Matcher
from maskd.backends.watching.matcher import WatchedGrammar, WatchedMatcher
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.errors import GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.compiler import arrays, objects
from maskd.vocabulary import Vocabulary
from tests import random_schemas, random_values
from tests.fuzzing import TIMES

CHARACTERS = '[]{},:"ab12true'
MOST_TEXTS = 3_000
MOST_LENGTH = 60


def vocabulary_of(texts: list[bytes]) -> Vocabulary:
    return Vocabulary((*texts, b"<stop>"), len(texts) + 1, (len(texts),), (len(texts),), "test")


def compiled(schema: Any, vocabulary: Vocabulary) -> Any:
    backend = backends.load("llguidance")(vocabulary, threads=1)
    options = GrammarOptions(formats="annotate")  # the validator does not look at them
    return backend.compile(GrammarSpec("json_schema", json.dumps(schema), backend="llguidance", options=options))


def row_of(matcher: Matcher, vocabulary: Vocabulary) -> list[int]:
    row = np.zeros(row_stride_words(vocabulary.vocab_size), dtype=np.int32)
    matcher.fill_bitmask(row)
    return [int(token) for token in allowed_token_ids(row)]


# -- brute force -------------------------------------------------------------------------------------------------------


def small_schema(rng: random.Random, depth: int = 2) -> Any:
    """A schema that few texts of ``CHARACTERS`` satisfy."""
    scalars = [
        {"enum": rng.sample(["a", "b", "ab", "ba", "aa", 1, 2, 12, True], rng.choice([2, 3]))},
        {"type": "string", "pattern": rng.choice(["^[ab]$", "^a?b?$", "^(a|ab|b)$"])},
        {"type": "integer", "enum": [1, 2, 11, 12]},
        {"type": "integer", "minimum": 1, "maximum": 2},
        {"const": rng.choice(["a", 1, True])},
    ]
    kind = rng.randrange(8)
    if depth == 0 or kind == 0:
        return rng.choice(scalars)
    if kind == 6:
        return {"anyOf": [small_schema(rng, depth - 1), small_schema(rng, depth - 1)]}
    if kind == 7:
        names = ["a", "b", "ab", "ba", "aa"][: rng.choice([4, 5])]
        properties = {name: rng.choice([{"const": 1}, {"enum": [1, "a"]}]) for name in names}
        required = rng.sample(names, 4) if rng.random() < 0.7 else names[:2]
        found = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return found | ({"minProperties": 5} if rng.random() < 0.2 else {})
    if kind in (1, 2, 3):
        found = {"type": "array", "items": small_schema(rng, depth - 1), "maxItems": rng.choice([2, 3])}
        if rng.random() < 0.2:
            found["prefixItems"] = [small_schema(rng, 0)]
        if rng.random() < 0.3:
            found["minItems"] = rng.choice([1, 2])
        if rng.random() < 0.15:
            found["contains"] = small_schema(rng, 0)
        return found | ({"uniqueItems": True} if rng.random() < 0.8 else {})
    if kind == 4:
        names = rng.sample(["a", "b", "ab"], 2)
        found = {"type": "object", "properties": {name: small_schema(rng, depth - 1) for name in names}}
        required = rng.sample(names, rng.randrange(3))
        return found | {"required": required, "additionalProperties": False}
    found = {"type": "object", "patternProperties": {rng.choice(["^[ab]$", "^a?b?$"]): small_schema(rng, 0)}}
    found |= {"additionalProperties": False, "maxProperties": rng.choice([1, 2, 3])}
    return found | ({"minProperties": rng.choice([1, 2])} if rng.random() < 0.5 else {})


def texts_of(matcher: Matcher, vocabulary: Vocabulary) -> list[str] | None:
    """All texts that ``matcher`` takes, one byte a token; None = too many."""
    stop, found, waiting = len(vocabulary.tokens) - 1, list[str](), [(matcher, "")]
    looks = 0
    while waiting:
        looks += 1
        one, text = waiting.pop()
        if len(found) > MOST_TEXTS or len(text) > MOST_LENGTH or looks > 20 * MOST_TEXTS:
            return None
        for token in row_of(one, vocabulary):
            if token == stop:
                found.append(text)
            else:
                fork = one.fork()
                assert fork.accept((token,)) == 1
                waiting.append((fork, text + vocabulary.tokens[token].decode()))
    return found


def repeats(text: str) -> bool:
    """Whether an object has a key twice."""
    found = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(members)) < len(members))
        return dict(members)

    json.loads(text, object_pairs_hook=pairs)
    return any(found)


def expected_row(texts: list[str], begun: str, vocabulary: Vocabulary) -> list[int]:
    rests = [text[len(begun) :] for text in texts if text.startswith(begun)]
    stop = len(vocabulary.tokens) - 1
    return [
        token
        for token, spelled in enumerate(vocabulary.tokens)
        if ("" in rests if token == stop else any(rest.startswith(spelled.decode()) for rest in rests))
    ]


@pytest.fixture
def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves to the watch what the bits of a grammar could hold."""
    monkeypatch.setattr(arrays, "_MOST_DIFFERENT", 0)
    monkeypatch.setattr(objects, "PARAMETER_BITS", 4)


def brute_force_cases(seeds: range) -> Iterator[tuple[int, random.Random, Any, WatchedGrammar, list[str], Vocabulary]]:
    characters = vocabulary_of([character.encode() for character in CHARACTERS])
    for seed in seeds:
        rng = random.Random(seed)
        schema = small_schema(rng)
        try:
            grammar = compiled(schema, characters)
        except (GrammarUnsatisfiableError, GrammarUnsupportedError):
            continue
        if not isinstance(grammar, WatchedGrammar):
            continue
        texts = texts_of(grammar.matcher().inner, characters)
        if texts is None:
            continue
        is_valid = jsonschema.Draft202012Validator(schema).is_valid
        right = [text for text in texts if is_valid(json.loads(text)) and not repeats(text)]
        corpus = sorted({text[at : at + size] for text in right for at in range(len(text)) for size in (2, 3, 4, 6, 9)})
        more = [piece.encode() for piece in rng.sample(corpus, min(60, len(corpus)))]
        vocabulary = vocabulary_of([*characters.tokens[:-1], *more])
        yield seed, rng, schema, compiled(schema, vocabulary), right, vocabulary


@pytest.mark.parametrize("block", range(4))
def test_watch_when_few_texts_are_right_then_every_row_is_what_brute_force_finds(few_bits: None, block: int) -> None:
    each, done = round(40 * TIMES), 0
    for seed, rng, schema, grammar, right, vocabulary in brute_force_cases(range(block * each, block * each + each)):
        done += 1
        matcher, begun, stop = grammar.matcher(), [b""], len(vocabulary.tokens) - 1
        for _ in range(40):
            text = b"".join(begun).decode()
            allowed = row_of(matcher, vocabulary)
            assert allowed == expected_row(right, text, vocabulary), (seed, json.dumps(schema), text)
            choice = rng.random()
            if choice < 0.1 and len(begun) > 1:
                count = rng.randrange(1, len(begun))
                matcher.rollback(count)
                del begun[-count:]
                continue
            if choice < 0.2:
                matcher = matcher.fork()
            token = rng.randrange(len(vocabulary.tokens)) if choice < 0.4 else rng.choice(allowed)
            if token == stop:
                continue
            if choice < 0.3:
                draft = matcher.look_ahead()
                draft.accept((token, rng.randrange(len(vocabulary.tokens) - 1)))
            assert matcher.accept((token,)) == (token in allowed), (seed, json.dumps(schema), text, token)
            if token in allowed:
                begun.append(vocabulary.tokens[token])
    assert done


# -- walks -------------------------------------------------------------------------------------------------------------


def wide_schema(rng: random.Random, depth: int = 2) -> Any:
    """A schema with something to watch, which infinitely many texts satisfy."""
    names = [f"{rng.choice('ab')}{number}" for number in range(rng.choice([70, 90]))]
    closed = {"additionalProperties": False}
    items = [
        {},
        {"type": "string"},
        {"type": "string", "maxLength": 2},
        {"type": "string", "pattern": "^[ab]+$"},
        {"type": ["integer", "null", "boolean"]},
        {"type": "integer", "minimum": 0, "maximum": 99},
        {"type": "number", "minimum": 0},
        {"enum": [f"{one}{other}{last}" for one in "abc" for other in "ab" for last in range(10)]},
        {"properties": {"a": {"type": "string"}, "b": {"enum": [0, 1]}}, "required": ["a", "b"], "type": "object"}
        | closed,
        {"properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "type": "object"} | closed,
        {"type": "object", "properties": {"a": {"maxLength": 1}}, "additionalProperties": {"type": "integer"}},
        {"type": "array", "items": {"enum": [0, 1, "a"]}, "maxItems": 2},
        {"type": "array", "items": {"enum": [0, 1, "a"]}, "minItems": 1},
    ]
    kind = rng.randrange(8 if depth else 4)
    if kind in (0, 1, 2):
        found = {"type": "array", "items": rng.choice(items), "uniqueItems": True}
        return found | rng.choice([{}, {}, {"minItems": 2}, {"maxItems": 4}])
    if kind == 3:
        patterns = {"^[ab]{1,2}$": {"enum": [0, 1]}, "^c": {"type": "string"}}
        found = {"type": "object", "patternProperties": patterns} | rng.choice([{}, closed])
        return found | rng.choice(
            [{"minProperties": 2}, {"maxProperties": 3}, {"minProperties": 1, "maxProperties": 2}]
        )
    if kind == 4:
        return {"type": "object", "properties": {name: {"enum": [0, 1]} for name in names}, "required": names} | closed
    if kind == 5:
        return {"type": "array", "items": wide_schema(rng, depth - 1), "uniqueItems": True, "maxItems": 4}
    if kind == 6:
        return {"type": "array", "items": {"anyOf": rng.sample(items, 2)}, "uniqueItems": True}
    inner = {"a": wide_schema(rng, depth - 1), "b": wide_schema(rng, depth - 1), "c": {}}
    return {"type": "object", "properties": inner, "required": ["a", "b"]}


def wide_vocabulary(rng: random.Random, count: int) -> Vocabulary:
    """The bytes, and ``count`` random pieces of JSON."""
    pieces = (
        '" ", "," ": },{ [ ] { } , a b ab 0 1 10 .0 e true null \\ \\u00 61 é "a" "b" false - [1 1,1 {"a": c'.split()
    )
    pieces += [" ", "\n"]
    made = {"".join(rng.choices(pieces, k=rng.choice([1, 1, 2, 2, 3, 4]))).encode() for _ in range(count)}
    return vocabulary_of([*(bytes([byte]) for byte in range(256)), *sorted(made)])


def tried(matcher: WatchedMatcher, row: list[int], stop: int) -> list[int]:
    """Those tokens of ``row``, the inner matcher's, that ``matcher`` accepts when it is asked about each."""
    return [token for token in row if token == stop or matcher.fork().accept((token,))]


EXTREME = re.compile(r"[0-9.]{15}|[eE][+-]?[0-9]{3}")
"""Python reads such a number as another one."""


@pytest.mark.parametrize("block", range(4))
def test_watch_when_tokens_are_random_then_rows_are_right_and_every_output_is_valid(block: int) -> None:
    """Every row is that of trying each token, whichever way it was made; no walk ends where nothing is allowed."""
    each, finished = round(6 * TIMES), 0
    for seed in range(block * each, block * each + each):
        rng = random.Random(seed)
        schema, vocabulary = wide_schema(rng), wide_vocabulary(rng, rng.choice([300, 3_000]))
        stop = len(vocabulary.tokens) - 1
        try:
            grammar = compiled(schema, vocabulary)
        except GrammarUnsupportedError as error:
            assert "may run out" in error.message
            continue
        assert isinstance(grammar, WatchedGrammar), (seed, schema)
        matcher, taken, allowed = grammar.matcher(), list[int](), list[int]()
        row = np.zeros(row_stride_words(vocabulary.vocab_size), dtype=np.int32)
        limit = rng.choice([30, 100, 400])
        for number in range(3 * limit):
            text = b"".join(vocabulary.tokens[token] for token in taken)
            if number % 8 == 0 or not allowed:
                allowed = row_of(matcher, vocabulary)
                if len(allowed) < 600:
                    inner = row_of(matcher.inner, vocabulary)
                    assert allowed == tried(matcher, inner, stop), (seed, json.dumps(schema), text)
            assert allowed, (seed, json.dumps(schema), text)
            if stop in allowed and (allowed == [stop] or number > limit or rng.random() < 0.05):
                value = json.loads(text)
                finished += 1
                if not EXTREME.search(text.decode()):
                    assert jsonschema.Draft202012Validator(schema).is_valid(value), (seed, json.dumps(schema), text)
                break
            token = step(rng, vocabulary, [token for token in allowed if token != stop], number > limit)
            done = matcher.advance(token, row.ctypes.data, row.nbytes)
            allowed = []
            if done == 2:
                allowed = [int(token) for token in allowed_token_ids(row)]
            else:
                assert done == 1 or matcher.accept((token,)) == 1
            taken.append(token)
            if rng.random() < 0.05:
                count = rng.randrange(1, min(len(taken), 6) + 1)
                matcher.rollback(count)
                del taken[-count:]
                allowed = []
            if rng.random() < 0.05:
                matcher = matcher.fork()
    assert finished


def step(rng: random.Random, vocabulary: Vocabulary, allowed: list[int], must_end: bool) -> int:
    ending = [token for token in allowed if vocabulary.tokens[token][-1:] in b'"]}'] if must_end else []
    plain = [token for token in allowed if vocabulary.tokens[token].isascii() and vocabulary.tokens[token].strip()]
    return rng.choice(ending or plain or allowed)


# -- single values -----------------------------------------------------------------------------------------------------

BYTES = vocabulary_of([bytes([byte]) for byte in range(256)])


def takes(grammar: Any, text: str) -> bool:
    matcher, tokens = grammar.matcher(), list(text.encode())
    return bool(matcher.accept(tokens) == len(tokens) and matcher.accept((256,)) == 1)


@pytest.mark.parametrize("block", range(4))
def test_watch_when_schemas_and_values_are_random_then_agrees_with_a_validator(block: int) -> None:
    """Values near the boundaries of random schemas, in which any array and object may be watched."""
    each, watched = round(60 * TIMES), 0
    for seed in range(block * each, block * each + each):
        rng = random.Random(seed)
        schema = random_schemas.document(rng) | rng.choice(
            [{"uniqueItems": True}, {"minProperties": 2}, {"maxProperties": 2}, {"items": {"uniqueItems": True}}]
        )
        validator = jsonschema.Draft202012Validator(schema)
        try:
            grammar = compiled(schema, BYTES)
        except (GrammarUnsatisfiableError, GrammarUnsupportedError, GrammarTooLargeError):
            continue
        if not isinstance(grammar, WatchedGrammar):
            continue
        watched += 1
        for _ in range(14):
            value = random_values.value(rng)
            if isinstance(value, list) and rng.random() < 0.5:
                value = [*value, *rng.sample(value, len(value) // 2)]
            text = json.dumps(random_values.shuffled(value, rng), ensure_ascii=False)
            try:
                assert validator.is_valid(value) == takes(grammar, text), (seed, json.dumps(schema), text)
            except RecursionError:
                continue
    assert watched


NAMES = [f"name {number}" for number in range(300)]


@pytest.mark.parametrize("count", [64, 70, 300])
def test_required_when_there_are_more_than_bits_then_all_of_them_must_come(count: int) -> None:
    """In any order, closed and open; none twice, none missing."""
    names = NAMES[:count]
    for further in (False, {"type": "string"}):
        schema = {"properties": {name: {"type": "integer"} for name in names}, "required": names, "type": "object"}
        grammar = compiled(schema | {"additionalProperties": further}, BYTES)
        members = [f'"{name}": 1' for name in random.Random(count).sample(names, count)]
        assert takes(grammar, "{" + ", ".join(members) + "}")
        assert not takes(grammar, "{" + ", ".join(members[1:]) + "}")
        assert not takes(grammar, "{" + ", ".join([*members, members[0]]) + "}")
        assert takes(grammar, "{" + ", ".join([*members, '"other": "x"']) + "}") == bool(further)


@pytest.mark.parametrize(
    ("items", "one", "other"),
    [
        ({}, "1", "1.0"),
        ({}, "-0", "0"),
        ({}, "10", "1e1"),
        ({}, '"a"', r'"\u0061"'),
        ({}, '{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1}'),
        ({"type": "string", "maxLength": 3}, '"/"', r'"\/"'),
        ({}, '{"a": 1, "a": 2}', '{"a": 2}'),
    ],
)
def test_unique_items_when_spelled_otherwise_then_equal(items: Any, one: str, other: str) -> None:
    """Equal as JSON Schema has it (Core 2020-12, section 4.2.2), not as texts."""
    grammar = compiled({"type": "array", "items": items, "uniqueItems": True}, BYTES)
    assert takes(grammar, f"[{one}]")
    assert takes(grammar, f"[{other}]")
    assert not takes(grammar, f"[{one}, {other}]")
    assert not takes(grammar, f"[{other}, {one}]")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"anyOf": [{"items": {"type": "string"}, "uniqueItems": True}, {"items": {"type": "null"}}]}, "alternative"),
        ({"items": {"type": "array", "maxItems": 0}, "minItems": 2, "uniqueItems": True}, "run out"),
    ],
)
def test_watch_when_it_cannot_be_exact_then_refused_by_keyword(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarUnsupportedError, match=reason) as caught:
        compiled({"type": "array"} | schema, BYTES)
    assert caught.value.metadata["keyword"] == "uniqueItems"


def test_batch_when_watched_and_other_sequences_are_filled_together_then_rows_are_their_own() -> None:
    backend = backends.load("llguidance")(BYTES, threads=1)
    schemas = [{"type": "array", "uniqueItems": True}, {"type": "array"}]
    specs = [GrammarSpec("json_schema", json.dumps(schema), backend="llguidance") for schema in schemas]
    matchers = [backend.compile(spec).matcher() for spec in specs]
    for matcher in matchers:
        assert matcher.accept(b"[true,") == 6
    rows = np.zeros((2, row_stride_words(BYTES.vocab_size)), dtype=np.int32)
    assert isinstance(backend, BatchFill)
    backend.fill_bitmasks(matchers, rows, [1, 0])
    allowed = [[int(token) for token in allowed_token_ids(row)] for row in rows]
    assert allowed == [row_of(matcher, BYTES) for matcher in reversed(matchers)]
    assert [ord("t") in row for row in allowed] == [True, False]


def test_watch_when_a_schema_stands_in_a_structural_tag_then_refused_with_its_pointer() -> None:
    tag = {"type": "json_schema", "json_schema": {"type": "array", "uniqueItems": True}}
    backend = backends.load("llguidance")(BYTES, threads=1)
    spec = GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": tag}), backend="llguidance")
    with pytest.raises(GrammarUnsupportedError, match="structural tag") as caught:
        backend.compile(spec)
    assert caught.value.metadata["pointer"] == "/format/json_schema"
