r"""Numbers as regular languages of their decimal spelling, without exponents.

A bound is a set of digit strings. A number above 317 has more digits, or a greater one at the first difference.
"At most" is the complement of "greater than", so two expressions are enough.
A number has few spellings, so that none goes on without end. A fraction ends in two zeros at most: ``1``, ``1.0``,
``1.00``, ``9.90``. A language here holds all spellings of a number, or none.
Owns: bounds, integers, multiples, constants. Knows nothing about: keywords, grammars.
"""

from __future__ import annotations

import functools
from decimal import Decimal

from maskd.errors import GrammarUnsupportedError
from maskd.regular.assertions import whole
from maskd.regular.expression import (
    NOTHING,
    Expression,
    both,
    choice,
    complement,
    literal,
    repeat,
    sequence,
)

__all__ = [
    "ANY_NUMBER",
    "INTEGER",
    "JSON_NUMBER",
    "PLAIN_INTEGER",
    "PLAIN_NUMBER",
    "at_least",
    "greater",
    "multiple",
    "number_constant",
]

ANY_NUMBER = r"/-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?/"
"""Every JSON number, as a terminal (RFC 8259, section 6)."""
JSON_NUMBER = whole(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+\-]?[0-9]+)?")
"""The same as an expression."""
PLAIN_NUMBER = whole(r"-?(0|[1-9][0-9]*)(\.(0{1,2}|[0-9]*[1-9]0{0,2}))?")
"""Every number without an exponent: what all languages here are part of."""
INTEGER = whole(r"-?(0|[1-9][0-9]*)(\.0{1,2})?")
PLAIN_INTEGER = whole(r"-?(0|[1-9][0-9]*)")
"""Integers of draft 4, where ``1.0`` is none."""

_FRACTION = whole(r"(\.(0{1,2}|[0-9]*[1-9]0{0,2}))?")
_NOT_NEGATIVE = sequence(whole("0|[1-9][0-9]*"), _FRACTION)
_ZEROS = whole(r"(\.0{1,2})?")
_NEGATIVE_ZERO = sequence(literal("-0"), _ZEROS)
_LAST_ZEROS = whole("0{0,2}")
_MORE_THAN_ZEROS = whole("[0-9]*[1-9]0{0,2}")
_DIGITS = choice(_MORE_THAN_ZEROS, _LAST_ZEROS)
"""What may stand behind a digit of a fraction that is not 0."""
_LARGEST_MODULUS = 7
_MOST_SUFFIXES = 10_000
_MOST_LAST_DIGITS = 12


def spelled(numbers: Expression) -> Expression:
    """Returns ``numbers``, boolean operations on languages of this module, without texts that are no numbers."""
    return numbers if numbers.plain else both(PLAIN_NUMBER, numbers)


def decimal_of(value: float) -> Decimal:
    """Returns ``value`` as JSON wrote it, or the shortest text that reads the same."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


@functools.lru_cache(maxsize=1024)
def at_least(bound: Decimal) -> Expression:
    """Returns the numbers that are ``bound`` or more."""
    return _beyond(bound, inclusive=True)


@functools.lru_cache(maxsize=1024)
def greater(bound: Decimal) -> Expression:
    """Returns the numbers above ``bound``."""
    return _beyond(bound, inclusive=False)


def _beyond(bound: Decimal, *, inclusive: bool) -> Expression:
    if bound > 0 or (bound == 0 and not inclusive):
        return _magnitude_beyond(bound, inclusive=inclusive)
    if bound == 0:
        return choice(_NOT_NEGATIVE, _NEGATIVE_ZERO)
    smaller = both(_NOT_NEGATIVE, complement(_magnitude_beyond(-bound, inclusive=not inclusive)))
    return choice(_NOT_NEGATIVE, sequence(literal("-"), smaller))


def _magnitude_beyond(bound: Decimal, *, inclusive: bool) -> Expression:
    """Returns the numbers without a sign above ``bound``, which is 0 or more."""
    integer, _, fraction = format(bound, "f").partition(".")
    integer, fraction = integer.lstrip("0") or "0", fraction.rstrip("0")
    longer = sequence(_digit_from("1"), repeat(_digit_from("0"), len(integer)), _FRACTION)
    found = [longer]
    for place, digit in enumerate(integer):
        if digit != "9":
            head = sequence(literal(integer[:place]), _digit_from(chr(ord(digit) + 1)))
            found.append(sequence(head, repeat(_digit_from("0"), tail := len(integer) - place - 1, tail), _FRACTION))
    point = sequence(literal(integer), literal("."))
    for place, digit in enumerate(fraction):
        if digit != "9":
            found.append(sequence(point, literal(fraction[:place]), _digit_from(chr(ord(digit) + 1)), _DIGITS))
    behind = sequence(point, literal(fraction))
    if inclusive:
        found.append(sequence(behind, _DIGITS) if fraction else sequence(literal(integer), _FRACTION))
    else:
        found.append(sequence(behind, _MORE_THAN_ZEROS))
    return both(_NOT_NEGATIVE, choice(*found))


def _digit_from(lowest: str) -> Expression:
    return whole(f"[{lowest}-9]")


@functools.lru_cache(maxsize=1024)
def multiple(divisor: Decimal) -> Expression:
    """Returns the multiples of ``divisor``, which is above 0.

    Written as a fraction of a power of ten, a divisor is made of powers of 2 and 5 and of other prime powers. The last
    digits decide about the former. The remainder of all digits decides about each of the others, wherever the point is.

    Raises:
        GrammarUnsupportedError: a prime power is above ``_LARGEST_MODULUS``, or too many last digits decide.
    """
    _, digits, exponent = divisor.normalize().as_tuple()
    assert isinstance(exponent, int)
    factor, decimals = int("".join(map(str, digits))) * 10 ** max(exponent, 0), max(0, -exponent)
    rest, twos, fives = factor, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    length = max(twos, fives)
    powers = _prime_powers(rest)
    if 10**length * rest // factor > _MOST_SUFFIXES or length > _MOST_LAST_DIGITS or powers is None:
        raise GrammarUnsupportedError(
            f"multipleOf {divisor} is not done: only powers of 2 and 5 and prime powers up to {_LARGEST_MODULUS} are; "
            "leave it out, or give bounds",
            keyword="multipleOf",
        )
    by_suffix = INTEGER if (factor // rest, decimals) == (1, 0) else _by_suffix(factor // rest, length, decimals)
    return both(by_suffix, *(sequence(_SIGN, both(_NOT_NEGATIVE, _by_remainder(power))) for power in powers))


def _prime_powers(number: int) -> list[int] | None:
    """Returns powers of different primes whose product is ``number``; None if one is above ``_LARGEST_MODULUS``."""
    found = []
    for prime in (3, 7, 11, 13):
        power = 1
        while number % prime == 0:
            number, power = number // prime, power * prime
        if power > 1:
            found.append(power)
    return found if number == 1 and max(found, default=1) <= _LARGEST_MODULUS else None


_SIGN = whole("-?")


def _by_suffix(factor: int, length: int, decimals: int) -> Expression:
    """Numbers whose last ``length`` digits, with ``decimals`` places behind the point, are a multiple of ``factor``."""
    found = []
    for last in range(0, 10**length, factor):
        suffix = f"{last:0{length}d}" if length else ""
        cut = max(0, length - decimals)
        head, tail = suffix[:cut], suffix[cut:]
        free = decimals - len(tail)  # digits between the point and the suffix
        if head:
            # A number with fewer digits than the suffix is the suffix without its leading zeros.
            integer = choice(sequence(whole("[1-9][0-9]*"), literal(head)), literal(str(int(head))))
        else:
            integer = whole("0|[1-9][0-9]*")
        kept = tail.rstrip("0")
        if kept:
            fraction = sequence(literal("."), repeat(_digit_from("0"), free, free), literal(kept), _LAST_ZEROS)
        elif free:
            some = sequence(literal("."), repeat(_digit_from("0"), 0, free - 1), _digit_from("1"), _LAST_ZEROS)
            fraction = choice(_ZEROS, some)
        else:
            fraction = _ZEROS
        found.append(sequence(integer, fraction))
    return sequence(_SIGN, choice(*found))


@functools.cache
def _by_remainder(modulus: int) -> Expression:
    """Digits, and points among them, that make a multiple of ``modulus``: the automaton of remainders, its states
    eliminated one by one (McNaughton and Yamada, 1960)."""
    edges = {(state, state): literal(".") for state in range(modulus)}

    def add(source: int, target: int, label: Expression) -> None:
        edges[source, target] = choice(edges.get((source, target), NOTHING), label)

    for state in range(modulus):
        for digit in range(10):
            add(state, (10 * state + digit) % modulus, literal(str(digit)))
    for state in range(1, modulus):
        around = repeat(edges.pop((state, state)))
        before = [(source, label) for (source, target), label in edges.items() if target == state]
        behind = [(target, label) for (source, target), label in edges.items() if source == state]
        edges = {edge: label for edge, label in edges.items() if state not in edge}
        for source, first in before:
            for target, last in behind:
                add(source, target, sequence(first, around, last))
    return repeat(edges[0, 0])


@functools.lru_cache(maxsize=1024)
def number_constant(value: float) -> Expression:
    """Returns the spellings of ``value``."""
    number = decimal_of(value)
    if number == 0:
        return sequence(_SIGN, literal("0"), _ZEROS)
    integer, _, fraction = format(number.normalize(), "f").partition(".")
    if not fraction:
        return sequence(literal(integer), _ZEROS)
    return sequence(literal(f"{integer}.{fraction}"), _LAST_ZEROS)
