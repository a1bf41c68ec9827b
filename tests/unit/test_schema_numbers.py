"""Numbers of the compiler: bounds and multiples of any divisor, compared with arithmetic."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from maskd.errors import GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from maskd.json_schema.compiler.numbers import PLAIN_NUMBER, at_least, decimal_of, greater, in_all, may_be, multiple
from maskd.regular.expression import both, complement, matches
from maskd.regular.questions import shortest
from tests.lark import STOP, matcher_of_lark

DIVISORS = [1, 2, 3, 7, 9, 11, 13, 22, 60, 77, 100, 360, 1000, 12345, 86400, 7.5, 0.25, 0.0001, 1e-8, 0.11, 7.7, 0.9]


def matcher_of(schema: Any) -> Any:
    return matcher_of_lark(compile_schema(schema, GrammarOptions()).lark)


def takes(matcher: Any, text: str) -> bool:
    copy = matcher.deep_copy()
    tokens = list(text.encode())
    return copy.try_consume_tokens(tokens) == len(tokens) and bool(copy.is_accepting())


@pytest.mark.parametrize("divisor", DIVISORS)
def test_numbers_when_multiples_are_asked_for_then_exactly_these_are_taken(divisor: float) -> None:
    rng, step = random.Random(0), Decimal(str(divisor))
    matcher = matcher_of({"type": "number", "multipleOf": divisor})
    for _ in range(60):
        number = step * rng.choice((0, 1, -1, rng.randrange(-50, 50), rng.randrange(10**9)))
        text = format(number, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        assert takes(matcher, text), text
        other = number + Decimal(rng.choice(("0.001", "1", "0.1", "3", "0.00000001")))
        is_multiple = Fraction(other) % Fraction(step) == 0
        assert takes(matcher, f"{other.normalize():f}") == is_multiple, other


@pytest.mark.parametrize("seed", range(30))
def test_numbers_when_bounds_and_multiples_meet_then_arithmetic_agrees_with_the_automaton(seed: int) -> None:
    """Whether any number is left: by arithmetic, by a search of the automaton, and by trying all of them."""
    rng = random.Random(seed)
    low, high, divisor = rng.randrange(-40, 40), rng.randrange(-40, 40), rng.choice((1, 3, 7, 11, 13, 22, 2.5))
    lower, upper = rng.choice((at_least, greater)), rng.choice((at_least, greater))
    parts = [lower(Decimal(low)), complement(upper(Decimal(high))), multiple(Decimal(str(divisor)))]
    step = Fraction(Decimal(str(divisor)))
    found = any(
        (number >= low if lower is at_least else number > low)
        and (number < high if upper is at_least else number <= high)
        for number in (step * count for count in range(math.floor(-90 / step), math.ceil(90 / step)))
    )
    assert may_be(in_all(parts)) == found
    assert (shortest(both(*parts)) is not None) == found


def test_numbers_when_many_bounds_meet_then_the_narrowest_are_left() -> None:
    rng = random.Random(1)
    bounds = [Decimal(rng.randrange(-300, 300)) / 10 for _ in range(12)]
    parts = [at_least(bound) if bound < 0 else complement(greater(bound)) for bound in bounds]
    together = in_all(parts)
    for value in (Decimal(count) / 20 for count in range(-700, 700)):
        text = f"{value.normalize():f}"
        assert matches(together, text) == all(matches(part, text) for part in parts), text


@pytest.mark.parametrize("divisor", [11, 12345, 0.11])
def test_numbers_when_the_library_decides_about_multiples_then_no_walk_ends_in_a_dead_end(divisor: float) -> None:
    schema = {"type": "number", "multipleOf": divisor, "minimum": divisor / 2, "maximum": divisor * 3.5}
    rng, root, outputs = random.Random(2), matcher_of(schema), set[str]()
    for _ in range(30):
        matcher, text = root.deep_copy(), ""
        while True:
            allowed = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)).tolist()
            assert allowed, text
            token = rng.choice([token for token in allowed if token == STOP or chr(token).isprintable()])
            if token == STOP:
                break
            assert matcher.consume_token(token)
            text = (text + chr(token)).lstrip()
        outputs.add(text.strip())
    assert {Fraction(text) / Fraction(str(divisor)) for text in outputs} == {1, 2, 3}


def test_numbers_when_several_kinds_of_multiples_are_alternatives_then_each_is_taken() -> None:
    matcher = matcher_of({"type": "number", "anyOf": [{"multipleOf": 11}, {"multipleOf": 13}, {"maximum": -5}]})
    assert [takes(matcher, text) for text in ("22", "26", "143", "-5.5", "12", "-4")] == [True] * 4 + [False] * 2


def test_numbers_when_multiples_contradict_bounds_then_nothing_satisfies() -> None:
    with pytest.raises(GrammarUnsatisfiableError) as caught:
        compile_schema({"type": "number", "multipleOf": 86400, "minimum": 1, "maximum": 86399}, GrammarOptions())
    assert {caught.value.metadata[key] for key in ("keyword", "keyword_2", "keyword_3")} == {
        "maximum",
        "minimum",
        "multipleOf",
    }


def test_numbers_when_there_is_no_expression_then_refused() -> None:
    for schema in ({"multipleOf": 1_000_003}, {"not": {"multipleOf": 11}}):
        with pytest.raises(GrammarUnsupportedError) as caught:
            compile_schema(schema, GrammarOptions())
        assert caught.value.metadata["keyword"] == "multipleOf"
        assert caught.value.metadata["pointer"] in ("/multipleOf", "/not")


def test_bound_when_it_is_minus_zero_then_it_is_zero() -> None:
    """Equal keys share a cache, so one spelling of zero must not decide for the other."""
    for zero in (-0.0, 0):
        above = both(PLAIN_NUMBER, greater(decimal_of(zero)))
        assert [matches(above, text) for text in ("5", "0", "-1", "/5", ".5")] == [True, False, False, False, False]
