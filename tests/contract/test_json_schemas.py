"""Real schemas: the adapters against the libraries used directly, row for row, and both against the standard.

The schemas are those of JSONSchemaBench and of the JSON Schema Test Suite, of which ``../shared`` holds 319.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jsonschema
import llguidance
import numpy as np
import pytest
import xgrammar
from numpy.typing import NDArray
from walks import SHARED, GreedyTokenizer, accepts, allowed, new_row

from maskd.backends import load
from maskd.backends.base import Backend, Grammar
from maskd.bitmask import allowed_token_ids, row_words
from maskd.errors import GrammarError
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.compiler.compiler import compile_ebnf, compile_schema
from maskd.vocabulary import Vocabulary

BYTES = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b"</s>", b'{"', b'":', b", ", b'"}'], 300, (256,), (), "bytes"
)
CLOSING = frozenset(b'"}]') | {260}
LONG_NUMBER = re.compile(rb"[0-9.]{15}")
"""Python reads it as a float that is another number."""
MAX_STEPS = 60
"""Rows compared per schema, over all of its instances."""
SHARES, ENOUGH_SCHEMAS = 4, 50
"""The schemas are compared in shares that may run side by side; each must compare so many: 200 in all."""
SCHEMA_CHARS = {"xgrammar": 4000}
"""xgrammar needs seconds to minutes for the large schemas; those above this many characters are left to llguidance."""


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    text: str
    valid: list[Any]
    invalid: list[Any]


def cases() -> list[Case]:
    path = SHARED / "data" / "jsonschema" / "dev.jsonl"
    if not path.exists():
        pytest.skip(f"needs the schemas of {path}")
    found = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        schema = entry["schema"]
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        judged: dict[bool, list[Any]] = {True: [], False: []}
        for said, instances in ((True, entry["valid"]), (False, entry["invalid"])):
            for instance in instances:
                try:
                    judged[said] += [instance] * (validator.is_valid(instance) == said)
                except Exception:  # a schema that refers to the network cannot be judged
                    continue
        found.append(Case(entry["id"], json.dumps(schema), judged[True], judged[False]))
    return found


def compact(instance: object) -> str:
    return json.dumps(instance, ensure_ascii=False, separators=(",", ":"))


Raw = tuple[Callable[[], NDArray[np.int32]], Callable[[int], bool]]
"""A matcher of a library, as two functions: the row allowed next, and accepting a token."""


class RawLlguidance:
    """llguidance as its own documentation uses it, given the Lark of our compiler."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        class Wrapper:
            is_tokenizer_wrapper = True
            bos_token_id = None

            def __init__(self) -> None:
                self.eos_token_id = vocabulary.stop_token_ids[0]
                self.special_token_ids = vocabulary.special_token_ids
                self.tokens = vocabulary.tokens

            def __call__(self, text: bytes) -> list[int]:
                raise NotImplementedError

        self._tokenizer = llguidance.LLTokenizer(Wrapper(), eos_token=list(vocabulary.stop_token_ids))
        self._words = row_words(len(vocabulary.tokens))

    def compile(self, text: str) -> Callable[[], Raw] | None:
        try:
            found = compile_schema(json.loads(text), GrammarOptions())
        except GrammarError:
            return None  # the adapter had it compiled by the library
        if found.watch is not None:
            return None  # the library alone lets more through
        template = llguidance.LLMatcher(self._tokenizer, found.lark, log_level=0)
        assert not template.is_error()
        return lambda: self._matcher(template.deep_copy())

    def _matcher(self, matcher: Any) -> Raw:
        def row() -> NDArray[np.int32]:
            raw = np.zeros(self._words, np.int32)
            matcher.unsafe_compute_mask_ptr(raw.ctypes.data, raw.nbytes)
            assert not matcher.is_error()
            return raw

        return row, lambda token_id: bool(matcher.try_consume_tokens([token_id]) == 1)


class RawXgrammar:
    """xgrammar as its own documentation uses it, given the schema in the form in which the adapter gives it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = [
            b"" if token_id in vocabulary.special_token_ids else token
            for token_id, token in enumerate(vocabulary.tokens)
        ]
        info = xgrammar.TokenizerInfo(
            tokens, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=list(vocabulary.stop_token_ids)
        )
        # With its cache on, 0.2.8 fails an internal check after some tens of schemas.
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._words = row_words(len(vocabulary.tokens))

    def compile(self, text: str) -> Callable[[], Raw] | None:
        compiled = self._compiler.compile_grammar(compile_ebnf(json.loads(text), GrammarOptions()).ebnf)
        return lambda: self._matcher(xgrammar.GrammarMatcher(compiled))

    def _matcher(self, matcher: Any) -> Raw:
        def row() -> NDArray[np.int32]:
            raw = np.zeros((1, self._words), np.int32)
            matcher.fill_next_token_bitmask(raw, 0)
            return raw[0]

        return row, matcher.accept_token


def compiled(backend: Backend, text: str) -> Grammar | None:
    try:
        return backend.compile(GrammarSpec("json_schema", text, backend.name))
    except GrammarError:
        return None


def same_rows(grammar: Grammar, raw: Raw, ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """Walks ``ids`` through both as far as they go; returns the number of rows compared."""
    raw_row, raw_accept = raw
    matcher, row = grammar.matcher(), new_row(vocabulary)
    for count, token_id in enumerate(ids, 1):
        matcher.fill_bitmask(row)
        row_ids, expected = allowed_token_ids(row), allowed_token_ids(raw_row())
        expected = expected[expected < len(vocabulary.tokens)]  # xgrammar leaves the rest of the last word allowed
        assert row_ids.tolist() == expected.tolist(), f"row {count}"
        accepted = matcher.accept([token_id]) == 1
        assert accepted == raw_accept(token_id)
        if not accepted:
            return count
    return len(ids)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("vocabulary_name", ["bytes", "tekken"])
def test_adapter_when_compared_with_its_library_then_equal_row_for_row(
    vocabulary_name: str, name: str, share: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """On at least 200 schemas in all shares an adapter writes the rows that the library writes when it is used
    directly."""
    vocabulary = BYTES if vocabulary_name == "bytes" else request.getfixturevalue("tekken_vocabulary")
    tokenize = GreedyTokenizer(vocabulary)
    raw_library = RawLlguidance(vocabulary) if name == "llguidance" else RawXgrammar(vocabulary)
    backend = load(name)(vocabulary, threads=2)
    schemas = rows = 0
    # the large ones last: xgrammar needs minutes for some
    for case in sorted(cases(), key=lambda case: len(case.text))[share::SHARES]:
        if schemas == ENOUGH_SCHEMAS and name == "xgrammar":
            break
        grammar = compiled(backend, case.text)
        new_raw = grammar and raw_library.compile(case.text)
        if not (grammar and new_raw):  # the library refuses it, or would without the front door
            continue
        steps = MAX_STEPS
        for instance in [*case.valid, *case.invalid, {}]:
            ids = tokenize(compact(instance).encode())[:steps]
            steps -= (compared := same_rows(grammar, new_raw(), ids, vocabulary))
            rows += compared
        schemas += 1
    with capsys.disabled():
        print(f"\n{name}, {vocabulary_name}, share {share + 1} of {SHARES}: {schemas} schemas, {rows} rows compared")
    assert schemas >= ENOUGH_SCHEMAS


def judged(name: str) -> Iterator[tuple[Case, Grammar]]:
    """The cases that a backend compiles, with the compiled grammar."""
    backend = load(name)(BYTES, threads=2)
    for case in cases():
        if len(case.text) <= SCHEMA_CHARS.get(name, 1 << 30):
            grammar = compiled(backend, case.text)
            if grammar is not None:
                yield case, grammar


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_invalid_instances_when_walked_then_refused_or_reported(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No invalid instance passes unless the report names a keyword that is not enforced."""
    seen = Counter[str]()
    for case, grammar in judged(name):
        seen["schemas"] += 1
        for instance in case.valid:
            seen["valid taken" if accepts(grammar, compact(instance)) else "valid refused"] += 1
        for instance in case.invalid:
            taken = accepts(grammar, compact(instance))
            seen["invalid taken" if taken else "invalid refused"] += 1
            assert not taken or grammar.report.unenforced, (case.name, instance)
    with capsys.disabled():
        print(f"\n{name}: {dict(seen)}")
    assert seen["schemas"] >= 200
    assert seen["valid taken"] > 20 * seen["valid refused"]


@pytest.mark.slow
def test_backends_when_properties_are_ordered_then_they_take_the_same_instances(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of the schema, xgrammar takes what llguidance does; more only if its report says so."""
    backends = [load(name)(BYTES, threads=2) for name in ("llguidance", "xgrammar")]
    seen = Counter[str]()
    for case in cases():
        if len(case.text) > SCHEMA_CHARS["xgrammar"]:
            continue
        options = GrammarOptions(property_order="schema")
        try:
            exact, other = (
                backend.compile(GrammarSpec("json_schema", case.text, backend.name, options)) for backend in backends
            )
        except GrammarError:
            continue
        seen["schemas"] += 1
        for instance in (*case.valid, *case.invalid):
            first, second = (accepts(grammar, compact(instance)) for grammar in (exact, other))
            seen["same" if first == second else "more"] += 1
            assert first == second or (second and other.report.unenforced), (case.name, instance)
    with capsys.disabled():
        print(f"\n{dict(seen)}")
    assert seen["schemas"] >= 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_random_output_when_it_ends_then_it_is_json_that_the_schema_allows(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a random walk through the masks produces is JSON, and valid where nothing is reported as not enforced."""
    seen = Counter[str]()
    for case, grammar in judged(name):
        schema = json.loads(case.text)
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        rng = random.Random(case.name)
        for _ in range(4):
            text = random_text(grammar, rng)
            if text is None:
                seen["not ended"] += 1
                continue
            value = json.loads(text.decode())
            seen["ended"] += 1
            if grammar.report.unenforced or LONG_NUMBER.search(text):
                continue
            try:
                valid = validator.is_valid(value)
            except Exception:  # a schema that refers to the network cannot be judged
                continue
            seen["valid"] += valid
            assert valid, (case.name, text)
    with capsys.disabled():
        print(f"\n{name}: {dict(seen)}")
    assert seen["ended"] >= 300


def random_text(grammar: Grammar, rng: random.Random) -> bytes | None:
    """Returns a random text of the grammar, ended as soon as a coin allows; None after 200 tokens."""
    matcher, text = grammar.matcher(), b""
    for _ in range(200):
        choices = allowed(matcher, BYTES)
        stop = choices & grammar.stop_token_ids
        if stop and (rng.random() < 0.5 or choices == stop):
            return text
        closing = sorted(choices & CLOSING)
        token_id = rng.choice(closing if closing and rng.random() < 0.3 else sorted(choices - stop))
        assert matcher.accept([token_id]) == 1
        text += BYTES.tokens[token_id]
    return None
