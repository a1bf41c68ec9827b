"""The compiler of JSON schemas: what it lets through is what a validator calls valid."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from maskd.errors import GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from tests import random_schemas
from tests.fuzzing import TIMES
from tests.lark import STOP, matcher_of_lark

LONG_NUMBER = re.compile(r"[0-9.]{15}")
"""Python reads it as a float that is another number."""


def matcher_of(schema: Any, **options: Any) -> Any:
    """Returns a matcher of the compiled ``schema``."""
    return matcher_of_lark(compile_schema(schema, GrammarOptions(**options)).lark)


def takes(matcher: Any, text: str) -> bool:
    """Whether ``matcher``, which stays as it is, takes ``text`` and may stop there."""
    copy = matcher.deep_copy()
    tokens = list(text.encode())
    return copy.try_consume_tokens(tokens) == len(tokens) and bool(copy.is_accepting())


def compiled(seed: int) -> Iterator[tuple[random.Random, Any, Any, Any]]:
    """Yields a random generator, a schema, its validator and its matcher, unless the schema is refused or needs a watch
    beside its grammar (tests/contract/test_watch.py)."""
    rng = random.Random(seed)
    schema = random_schemas.document(rng)
    validator = jsonschema.Draft202012Validator(schema)
    try:
        if compile_schema(schema, GrammarOptions()).watch is None:
            yield rng, schema, validator, matcher_of(schema)
    except GrammarUnsatisfiableError:
        for _ in range(20):
            value = random_schemas.value(rng)
            assert not is_valid(validator, value), (schema, value)
    except (GrammarUnsupportedError, GrammarTooLargeError):
        pass


def is_valid(validator: Any, value: Any) -> bool | None:
    """What the validator says; None if a reference leads back to its schema at the same place, which is undefined."""
    try:
        return bool(validator.is_valid(value))
    except RecursionError:
        return None


@pytest.mark.parametrize("block", range(8))
def test_compiler_when_schemas_are_random_then_agrees_with_a_validator(block: int) -> None:
    """Every value, in a random order of its members, is taken exactly if python-jsonschema calls it valid."""
    each = round(40 * TIMES)
    for seed in range(block * each, block * each + each):
        for rng, schema, validator, matcher in compiled(seed):
            for _ in range(14):
                value = random_schemas.value(rng)
                text = json.dumps(random_schemas.shuffled(value, rng), ensure_ascii=False)
                assert is_valid(validator, value) in (takes(matcher, text), None), (seed, schema, text)


@pytest.mark.parametrize("block", range(4))
def test_compiler_when_tokens_are_random_then_every_finished_output_is_valid(block: int) -> None:
    """A walk over allowed tokens never meets a row that allows nothing, and what it ends with is valid."""
    each = round(25 * TIMES)
    for seed in range(block * each, block * each + each):
        for rng, schema, validator, matcher in compiled(1_000_000 + seed):
            text = walk(matcher, rng)
            if text is not None and not has_repeated_keys(text) and not LONG_NUMBER.search(text):
                assert is_valid(validator, json.loads(text)) is not False, (seed, schema, text)


def walk(matcher: Any, rng: random.Random, most: int = 200) -> str | None:
    """Takes random allowed tokens, mostly those that end something; returns the output, None if it did not end."""
    taken: list[int] = []
    for _ in range(most):
        allowed = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)).tolist()
        assert allowed, (bytes(taken), matcher.get_error())
        if STOP in allowed and (len(allowed) == 1 or rng.random() < 0.5):
            return bytes(taken).decode()
        ending = [token for token in allowed if chr(token) in '"}],:'] if rng.random() < 0.3 + len(taken) / 300 else []
        plain = [token for token in allowed if 32 < token < 127]
        token = rng.choice(ending or plain or [token for token in allowed if token != STOP])
        assert matcher.consume_token(token)
        taken.append(token)
    return None


def has_repeated_keys(text: str) -> bool:
    found = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(members)) < len(members))
        return dict(members)

    json.loads(text, object_pairs_hook=pairs)
    return any(found)
