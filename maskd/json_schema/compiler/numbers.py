r"""Numbers as regular languages of their decimal spelling, without exponents.

A bound is a set of digit strings. A number above 317 has more digits, or a greater one at the first difference.
"At most" is the complement of "greater than", so two expressions are enough.
A number has few spellings, so that none goes on without end. A fraction ends in two zeros at most: ``1``, ``1.0``,
``1.00``, ``9.90``. A language here holds all spellings of a number, or none.
Owns: bounds, integers, multiples, constants. Knows nothing about: keywords, grammars.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

from maskd.errors import GrammarUnsupportedError
from maskd.regular.assertions import whole
from maskd.regular.expression import (
    EMPTY_TEXT,
    NOTHING,
    Both,
    Complement,
    Concatenation,
    Expression,
    Remainder,
    Union,
    both,
    choice,
    complement,
    literal,
    remainder,
    repeat,
    sequence,
    words,
)
from maskd.regular.questions import MOST_STATES, may_match

__all__ = [
    "ANY_NUMBER",
    "INTEGER",
    "JSON_NUMBER",
    "PLAIN_INTEGER",
    "PLAIN_NUMBER",
    "apart",
    "as_schemas",
    "at_least",
    "greater",
    "in_all",
    "may_be",
    "multiple",
    "number_constant",
    "number_constants",
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
SHORTEST_SPELLING = whole(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")
"""Of every number but 0 one spelling, of those that ``PLAIN_NUMBER`` has."""

_FRACTION = whole(r"(\.(0{1,2}|[0-9]*[1-9]0{0,2}))?")
_NOT_NEGATIVE = sequence(whole("0|[1-9][0-9]*"), _FRACTION)
_ZEROS = whole(r"(\.0{1,2})?")
_NEGATIVE_ZERO = sequence(literal("-0"), _ZEROS)
_LAST_ZEROS = whole("0{0,2}")
_MORE_THAN_ZEROS = whole("[0-9]*[1-9]0{0,2}")
_DIGITS = choice(_MORE_THAN_ZEROS, _LAST_ZEROS)
"""What may stand behind a digit of a fraction that is not 0."""
_LARGEST_MODULUS = 7
_LARGEST_DIVISOR = 100_000
"""llguidance's automaton of larger ones takes more work than it allows itself (1.9.1)."""
_MOST_SUFFIXES = 10_000
_MOST_LAST_DIGITS = 12


def spelled(numbers: Expression) -> Expression:
    """Returns ``numbers``, boolean operations on languages of this module, without texts that are no numbers."""
    return numbers if numbers.plain else both(PLAIN_NUMBER, numbers)


def decimal_of(value: float) -> Decimal:
    """Returns ``value`` as JSON wrote it, or the shortest text that reads the same; zero has no sign."""
    if value == 0:
        return Decimal(0)
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


@functools.lru_cache(maxsize=1024)
def at_least(bound: Decimal) -> Expression:
    """Returns the numbers that are ``bound`` or more."""
    return _beyond(bound, inclusive=True)


@functools.lru_cache(maxsize=1024)
def greater(bound: Decimal) -> Expression:
    """Returns the numbers above ``bound``."""
    return _beyond(bound, inclusive=False)


def in_all(parts: Iterable[Expression]) -> Expression:
    """Returns what belongs to all of ``parts``. Of many bounds, only the narrowest matter."""
    lowest: Expression | None = None
    highest: Expression | None = None
    others = []
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, Both) else (part,))]
    for part in flat:
        if part in _BOUNDS:
            lowest = part if lowest is None else max(lowest, part, key=_BOUNDS.__getitem__)
        elif isinstance(part, Complement) and part.inner in _BOUNDS:
            highest = part.inner if highest is None else min(highest, part.inner, key=_BOUNDS.__getitem__)
        else:
            others.append(part)
    if lowest is not None and highest is not None and _BOUNDS[lowest] >= _BOUNDS[highest]:
        return NOTHING
    return both(*others, *([lowest] if lowest else []), *([complement(highest)] if highest else []))


_BOUNDS: weakref.WeakKeyDictionary[Expression, tuple[Decimal, bool]] = weakref.WeakKeyDictionary()
"""What the numbers beyond each bound begin with: the bound, and whether it is left out."""


def _beyond(bound: Decimal, *, inclusive: bool) -> Expression:
    found = _numbers_beyond(bound, inclusive=inclusive)
    _BOUNDS[found] = bound, not inclusive
    return found


def _numbers_beyond(bound: Decimal, *, inclusive: bool) -> Expression:
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
            head = sequence(_text(integer[:place]), _digit_from(chr(ord(digit) + 1)))
            found.append(sequence(head, repeat(_digit_from("0"), tail := len(integer) - place - 1, tail), _FRACTION))
    for place, digit in enumerate(fraction):
        if digit != "9":
            head = sequence(_text(f"{integer}.{fraction[:place]}"), _digit_from(chr(ord(digit) + 1)))
            found.append(sequence(head, _DIGITS))
    behind = _text(f"{integer}.{fraction}")
    if inclusive:
        found.append(sequence(behind, _DIGITS) if fraction else sequence(_text(integer), _FRACTION))
    else:
        found.append(sequence(behind, _MORE_THAN_ZEROS))
    return choice(*found)


def _text(text: str) -> Expression:
    """Returns ``text`` as one part of a sequence: with one part a character, long bounds take seconds to search."""
    return words((text,)) if text else EMPTY_TEXT


def _digit_from(lowest: str) -> Expression:
    return whole(f"[{lowest}-9]")


@functools.lru_cache(maxsize=1024)
def multiple(divisor: Decimal) -> Expression:
    """Returns the multiples of ``divisor``, which is above 0.

    Written as a fraction of a power of ten, a divisor is made of powers of 2 and 5 and of other prime powers. The last
    digits decide about the former. The remainder of all digits decides about each of the others, wherever the point is.

    Raises:
        GrammarUnsupportedError: a divisor above ``_LARGEST_DIVISOR``, or too many last digits decide.
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
    if (
        10**length * rest // factor > _MOST_SUFFIXES
        or length > _MOST_LAST_DIGITS
        or (max(_prime_powers(rest), default=1) > _LARGEST_MODULUS and factor > _LARGEST_DIVISOR)
    ):
        raise GrammarUnsupportedError(
            f"multipleOf {divisor} is not done: it has too many digits that are no powers of 2, 3, 5 and 7; "
            "leave it out, or give bounds",
            keyword="multipleOf",
        )
    if (factor, decimals) == (1, 0):
        return INTEGER
    remainders = [
        _by_remainder(power) if power <= _LARGEST_MODULUS else remainder(power) for power in _prime_powers(rest)
    ]
    found = sequence(_SIGN, both(_by_suffix(factor // rest, length, decimals), *remainders))
    _DIVISORS[found] = Fraction(divisor)
    return found


_SIGN = whole("-?")
_DIVISORS: weakref.WeakKeyDictionary[Expression, Fraction] = weakref.WeakKeyDictionary()
"""Of what each set of multiples is made."""
_DIVISORS[INTEGER] = _DIVISORS[PLAIN_INTEGER] = Fraction(1)


def _prime_powers(number: int) -> list[int]:
    """Returns powers of different primes whose product is ``number``; a large one may be a product of several."""
    found = list[int]()
    prime = 3
    while number > 1:
        if prime > _LARGEST_MODULUS:
            return [*found, number]
        power = 1
        while number % prime == 0:
            number, power = number // prime, power * prime
        if power > 1:
            found.append(power)
        prime += 2
    return found


def may_be(numbers: Expression, most_states: int = MOST_STATES) -> bool:
    """Says whether any number belongs to ``numbers``; for bounds and multiples by arithmetic, without a search."""
    found = _as_range(numbers)
    if found is None:
        return may_match(spelled(numbers), most_states)
    low, high, divisor = found
    return divisor is None or _has_multiple(low, high, divisor)  # in_all has seen whether the bounds contradict


def _has_multiple(low: Bound | None, high: Bound | None, divisor: Fraction) -> bool:
    if low is None or high is None:
        return True
    first = -(-Fraction(low[0]) // divisor) * divisor
    if low[1] and first == low[0]:
        first += divisor
    return first < high[0] or (first == high[0] and high[1])


def as_schemas(numbers: Expression) -> list[str]:
    """Returns ``numbers`` as JSON schemas for llguidance, any of which may hold, if there is no terminal for them.

    These are multiples about which the library decides by an automaton of its own. It takes numbers with as many
    decimals as the divisor has, so there is a schema for each count of decimals. [] = there is a terminal.
    """
    found = _as_range(numbers)
    if found is None or not any(part in _DIVISORS and _has_remainder(part) for part in _parts(numbers)):
        return []
    low, high, divisor = found
    assert divisor is not None
    limits = ""
    for keyword, bound, is_exclusive in (("inimum", low, low and low[1]), ("aximum", high, high and not high[1])):
        if bound is not None:
            name = f"exclusiveM{keyword}" if is_exclusive else f"m{keyword}"
            limits += f',"{name}":{format(bound[0], "f")}'
    steps = [divisor]
    while steps[-1].denominator > 1:
        steps.append(
            _common_multiple(divisor, Fraction(1, 10 ** (len(_decimal_text(steps[-1]).partition(".")[2]) - 1)))
        )
    return [
        f'{{"type":"{"integer" if step.denominator == 1 else "number"}","multipleOf":{_decimal_text(step)}{limits}}}'
        for step in steps
        if _has_multiple(low, high, step)
    ]


def apart(numbers: Expression) -> Iterable[Expression]:
    """Returns ``numbers`` as several languages, if one of them is none that an expression can name."""
    parts = numbers.parts if isinstance(numbers, Union) else ()
    return parts if any(as_schemas(part) for part in parts) else (numbers,)


Bound = tuple[Decimal, bool]
"""A number, and whether what lies beyond it is without it."""


def _parts(numbers: Expression) -> Iterable[Expression]:
    return numbers.parts if isinstance(numbers, Both) else (numbers,)


def _as_range(numbers: Expression) -> tuple[Bound | None, Bound | None, Fraction | None] | None:
    """Returns the bounds and the divisor of ``numbers``, each None without one; None if they are anything else."""
    low: Bound | None = None
    high: Bound | None = None
    divisor: Fraction | None = None
    for part in _parts(numbers):
        if part in _BOUNDS:
            low = _BOUNDS[part]
        elif isinstance(part, Complement) and part.inner in _BOUNDS:
            high = _BOUNDS[part.inner]
        elif part in _DIVISORS:
            other = _DIVISORS[part]
            divisor = other if divisor is None else _common_multiple(divisor, other)
        elif part is not PLAIN_NUMBER:
            return None
    return low, high, divisor


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    scale = math.lcm(one.denominator, other.denominator)
    return Fraction(math.lcm(int(one * scale), int(other * scale)), scale)


def _has_remainder(multiples: Expression) -> bool:
    """Says whether ``multiples``, a value of ``multiple``, have no regular expression that is short."""
    inner = multiples.parts[-1] if isinstance(multiples, Concatenation) else multiples
    return any(isinstance(part, Remainder) for part in _parts(inner))


def _decimal_text(number: Fraction) -> str:
    return format(Decimal(number.numerator) / Decimal(number.denominator), "f")


def _by_suffix(factor: int, length: int, decimals: int) -> Expression:
    """Numbers whose last ``length`` digits, with ``decimals`` places behind the point, are a multiple of ``factor``,
    without a sign."""
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
    return choice(*found)


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
    return number_constants([value])


def number_constants(values: Iterable[float]) -> Expression:
    """Returns the spellings of all ``values``."""
    texts = {_shortest_spelling(decimal_of(value)) for value in values}
    signs = {"-0"} if "0" in texts else set()
    integers = sequence(words(text for text in texts | signs if "." not in text), _ZEROS)
    return choice(integers, sequence(words(text for text in texts if "." in text), _LAST_ZEROS))


def _shortest_spelling(number: Decimal) -> str:
    if number == 0:
        return "0"
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
