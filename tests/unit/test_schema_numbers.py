"""The languages of numbers: each spelling is in one exactly if its value ought to be."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest

from maskd.json_schema.compiler.numbers import at_least, greater, multiple, number_constant, spelled
from maskd.regular.expression import Expression, complement, matches
from tests.fuzzing import TIMES

SPELLING = re.compile(r"-?(0|[1-9][0-9]*)(\.(0{1,2}|[0-9]*[1-9]0{0,2}))?")
"""Numbers without an exponent, with two zeros at most at the end of a fraction."""
BOUNDS = ["0", "1", "-1", "0.5", "317", "-12.5", "100", "0.01", "99.99", "-0.003", "-1999.5"]
DIVISORS = ["1", "2", "5", "10", "0.5", "0.01", "3", "7", "0.25", "1.5", "100", "0.1", "6", "21", "12"]

LANGUAGES: dict[str, tuple[Callable[[Decimal], Expression], Callable[[Decimal, Decimal], bool], list[str]]] = {
    "at least": (at_least, lambda value, bound: value >= bound, BOUNDS),
    "greater": (greater, lambda value, bound: value > bound, BOUNDS),
    "at most": (lambda bound: complement(greater(bound)), lambda value, bound: value <= bound, BOUNDS),
    "multiple": (multiple, lambda value, divisor: value % divisor == 0, DIVISORS),
    "no multiple": (
        lambda divisor: complement(multiple(divisor)),
        lambda value, divisor: value % divisor != 0,
        DIVISORS,
    ),
    "constant": (lambda bound: number_constant(float(bound)), lambda value, bound: value == bound, BOUNDS),
}


def texts(rng: random.Random, near: Decimal) -> Iterator[str]:
    """Yields numbers, many of them near ``near``, with signs, zeros and fractions that may not be spelled so."""
    for _ in range(60):
        whole = rng.choice([0, 1, 9, 10, 99, 100, abs(int(near)), rng.randrange(10 ** rng.randrange(1, 6))])
        fraction = "".join(rng.choice("0012599") for _ in range(rng.randrange(6)))
        yield rng.choice(["", "-"]) + str(whole) + ("." + fraction if fraction else "")


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_of_numbers_when_spellings_are_drawn_then_it_has_those_of_its_values(name: str) -> None:
    make, holds, arguments = LANGUAGES[name]
    rng = random.Random(name)
    for _ in range(round(40 * TIMES)):
        argument = Decimal(rng.choice(arguments))
        language = spelled(make(argument))
        for text in texts(rng, argument):
            expected = bool(SPELLING.fullmatch(text)) and holds(Decimal(text), argument)
            assert matches(language, text) == expected, (argument, text)
