"""The compiler of JSON schemas against a validator: what it lets through is what python-jsonschema calls valid.

Schemas are random, over all keywords and drafts. Values are random, or near what the grammar lets through.
``make fuzz`` tries twenty times as many.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from maskd import backends
from maskd.backends.base import Backend, Grammar
from maskd.errors import GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec
from tests.byte_grammars import VOCABULARY, takes, walk
from tests.fuzzing import TIMES
from tests.random_schemas import DRAFTS, Draft, closed, document, plain, smallest
from tests.random_values import neighbour, orders, shuffled, value

UNCLEAR = re.compile(r"[0-9.]{15}|[0-9][eE]([+-][0-9]|[0-9]{3})|0000-")
"""Python reads another number there or writes it with an exponent, or it knows no such year."""
MOST_ORDERS = 200
RUN = "" if TIMES == 1 else f"{random.randrange(1 << 32)} "
"""Other schemas each time, but in ``make test``."""


@pytest.fixture(scope="module")
def backend() -> Backend:
    found: Backend = backends.load("llguidance")(VOCABULARY, threads=1)
    return found


def compiled(backend: Backend, schema: Any, **options: Any) -> Grammar | None:
    """Returns the grammar of ``schema``; None if the compiler refuses it."""
    spec = GrammarSpec("json_schema", json.dumps(schema), "llguidance", GrammarOptions(**options))
    try:
        grammar = backend.compile(spec)
    except (GrammarUnsupportedError, GrammarTooLargeError):
        return None
    return None if grammar.report.warnings else grammar  # warnings: the library's own front end did it


def agree(is_right: bool | None, is_taken: bool, grammar: Grammar | None) -> bool:
    """Whether a text was judged rightly; what is listed as not enforced may be taken too."""
    return is_right in (is_taken, None) or (is_taken and grammar is not None and bool(grammar.report.unenforced))


def is_valid(draft: Draft, schema: Any, value: Any) -> bool | None:
    """What the validator says; None if a reference leads back to its schema at the same place, which is undefined.

    python-jsonschema 4.26 cannot read boolean items beside unevaluatedItems in 2019-09, and raises TypeError.
    """
    try:
        return bool(draft.validator(schema, format_checker=draft.validator.FORMAT_CHECKER).is_valid(value))
    except (RecursionError, TypeError):
        return None


def texts(grammar: Grammar | None, rng: random.Random) -> Iterator[str]:
    """Yields random values as JSON, and values near what ``grammar`` lets through, members in a random order."""
    found = [value(rng) for _ in range(10)]
    if grammar is not None:
        found += itertools.islice(neighbours(grammar, rng), 10)
    for one in found:
        text = json.dumps(shuffled(one, rng), ensure_ascii=False)
        if not UNCLEAR.search(text):
            yield text


def neighbours(grammar: Grammar, rng: random.Random) -> Iterator[Any]:
    for _ in range(3):
        text = walk(grammar, rng, 80)
        if text is not None and not UNCLEAR.search(text):
            given = json.loads(text)
            yield given
            for _ in range(4):
                yield neighbour(given, rng)


def agrees(backend: Backend, draft: Draft, schema: Any, text: str) -> bool:
    """Whether the compiler and the validator think the same about ``text``."""
    try:
        grammar = compiled(backend, schema)
    except GrammarUnsatisfiableError:
        return is_valid(draft, schema, json.loads(text)) is not True
    return grammar is None or agree(is_valid(draft, schema, json.loads(text)), takes(grammar, text), grammar)


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: str(draft.year))
def test_compiler_when_schemas_are_random_then_agrees_with_a_validator(backend: Backend, draft: Draft) -> None:
    """Every value, in a random order of its members, is taken exactly if python-jsonschema calls it valid."""
    for seed in range(round(100 * TIMES)):
        rng = random.Random(f"{RUN}{draft.year} {seed}")
        schema = document(rng, draft)
        try:
            grammar = compiled(backend, schema)
            is_refused = grammar is None
        except GrammarUnsatisfiableError:
            grammar, is_refused = None, False
        if is_refused:
            continue
        for text in texts(grammar, rng):
            is_taken = grammar is not None and takes(grammar, text)
            if not agree(is_valid(draft, schema, json.loads(text)), is_taken, grammar):
                least = smallest(schema, lambda one, text=text: not agrees(backend, draft, one, text))
                raise AssertionError(f"{text} is {'' if is_taken else 'not '}taken by {json.dumps(least)}")


@pytest.mark.parametrize("block", range(2))
def test_compiler_when_members_follow_the_schema_then_every_valid_value_has_an_order(
    backend: Backend, block: int
) -> None:
    """In the order of the schema, what is taken is valid, and a value is taken in some order exactly if it is valid."""
    draft = DRAFTS[-1]
    for seed in range(round(25 * TIMES)):
        rng = random.Random(f"{RUN}order {block} {seed}")
        schema = document(rng, draft)
        try:
            grammar = compiled(backend, schema, property_order="schema")
        except GrammarUnsatisfiableError:
            continue
        if grammar is None:
            continue
        for text in texts(grammar, rng):
            is_right = is_valid(draft, schema, json.loads(text))
            every = list(itertools.islice(orders(json.loads(text)), MOST_ORDERS + 1))
            if is_right is None or len(every) > MOST_ORDERS:
                continue
            is_taken = any(takes(grammar, json.dumps(one, ensure_ascii=False)) for one in every)
            assert agree(is_right, is_taken, grammar), (seed, text, json.dumps(schema))


def test_compiler_when_punctuation_is_asked_for_then_texts_have_exactly_that(backend: Backend) -> None:
    """Separators and white space are those of the options, and validity is as without them."""
    draft = DRAFTS[-1]
    for seed in range(round(25 * TIMES)):
        rng = random.Random(f"{RUN}punctuation {seed}")
        schema = document(rng, draft)
        item, key = rng.choice([(",", ":"), (", ", ": "), (",\n", " : ")])
        try:
            grammar = compiled(backend, schema, max_whitespace=0, item_separator=item, key_separator=key)
            loose = compiled(backend, schema, max_whitespace=1)
        except GrammarUnsatisfiableError:
            continue
        if grammar is None or loose is None:
            continue
        for text in texts(loose, rng):
            one = json.loads(text)
            exact, other = (
                json.dumps(one, ensure_ascii=False, separators=separators)
                for separators in ((item, key), (item + " ", key + "\n"))
            )
            assert agree(is_valid(draft, schema, one), takes(grammar, exact), grammar), (seed, exact, schema)
            assert exact == other or not takes(grammar, other), (seed, other, schema)


def test_compiler_when_further_properties_are_forbidden_then_only_named_ones_come(backend: Backend) -> None:
    """As if each object schema said so itself."""
    draft = DRAFTS[-1]
    for seed in range(round(50 * TIMES)):
        rng = random.Random(f"{RUN}closed {seed}")
        schema = plain(rng)
        try:
            grammar = compiled(backend, schema, additional_properties="forbid")
        except GrammarUnsatisfiableError:
            continue
        if grammar is None:
            continue
        for text in texts(grammar, rng):
            is_right = is_valid(draft, closed(schema), json.loads(text))
            assert agree(is_right, takes(grammar, text), grammar), (seed, text, schema)


@pytest.mark.parametrize("block", range(2))
def test_compiler_when_tokens_are_random_then_every_finished_output_is_valid(backend: Backend, block: int) -> None:
    """A walk over allowed tokens never meets a row that allows nothing, and what it ends with is valid."""
    finished, seed = 0, 0
    while finished < round(25 * TIMES):
        seed += 1
        rng = random.Random(f"{RUN}walk {block} {seed}")
        draft = rng.choice(DRAFTS)
        schema = document(rng, draft)
        try:
            grammar = compiled(backend, schema)
        except GrammarUnsatisfiableError:
            continue
        text = walk(grammar, rng) if grammar is not None else None
        if text is None or UNCLEAR.search(text):
            continue
        finished += 1
        assert agree(is_valid(draft, schema, json.loads(text)), True, grammar), (seed, schema, text)
