r"""How characters are spelled in JSON strings, and what else ``lark`` and ``ebnf`` have in common.

In a JSON string a character always has the same spellings. So ``&`` and ``~`` mean the same for the spelled text as for
the text itself. Printable characters stand for themselves, ``/`` also as ``\/``. Control characters have their short
escape, or else ``\u00XX`` in either case of the digits.
Source: RFC 8259, section 7.
Knows nothing about: how a library has characters written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from maskd.errors import GrammarTooLargeError
from maskd.regular.charset import CharSet
from maskd.regular.expression import Expression

__all__ = ["any_json", "check_weight", "json_spellings", "times"]

MOST_PARTS = 4_000_000
_PLAIN = ~(CharSet([(0, 0x1F)]) | CharSet.of('"\\'))
_SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def times(low: int, high: int | None) -> str:
    """Returns the quantifier for ``low`` to ``high`` times; ``high`` None = without limit."""
    if high is None:
        return "*" if low == 0 else "+" if low == 1 else f"{{{low},}}"
    # Not "?": in a macro of xgrammar 0.2.8, (ab+)?c also takes bc.
    return f"{{{low}}}" if low == high else f"{{{low},{high}}}"


@functools.lru_cache(maxsize=4096)
def json_spellings(charset: CharSet) -> tuple[tuple[CharSet, ...], ...]:
    """Returns how a character of ``charset`` stands in a JSON string: alternatives, each a sequence of sets."""
    found: list[tuple[CharSet, ...]] = [(plain,)] if (plain := charset & _PLAIN) else []
    if short := "".join(letter for char, letter in _SHORT.items() if char in charset):
        found.append((CharSet.of("\\"), CharSet.of(short)))
    for high in (0, 1):
        low = (f"{low:x}" for low in range(16) if (char := chr(16 * high + low)) in charset and char not in _SHORT)
        if digits := "".join(digit + digit.upper() for digit in low):
            found.append((*map(CharSet.of, f"\\u00{high}"), CharSet.of(digits)))
    return tuple(found)


def any_json(one: Callable[[CharSet], str]) -> str:
    """Returns a regular expression for every JSON string that is well-formed, in every spelling, quotes included."""

    def of(characters: str) -> str:
        return one(CharSet.of(characters))

    digits = "0123456789abcdefABCDEF"
    hexadecimal = of(digits)
    backslash, quote, high = of("\\"), of('"'), of("dD")
    scalar = (
        f"{of(digits.replace('d', '').replace('D', ''))}{hexadecimal}{{3}}|{high}{of('01234567')}{hexadecimal}{{2}}"
    )
    pair = f"{high}{of('89abAB')}{hexadecimal}{{2}}{backslash}u{high}{of('cdefCDEF')}{hexadecimal}{{2}}"
    escape = rf"{backslash}(?:{of(''.join(_SHORT.values()))}|u(?:{scalar}|{pair}))"
    return f"{quote}(?:{one(_PLAIN)}|{escape})*{quote}"


def check_weight(expression: Expression) -> None:
    """Parts that a tree shares are written out, so a small tree can have a text without end.

    Raises:
        GrammarTooLargeError: it has more than ``MOST_PARTS`` parts.
    """
    if expression.weight > MOST_PARTS:
        raise GrammarTooLargeError(
            f"patterns, bounds and lengths make an expression of more than {MOST_PARTS} parts; combine fewer of them",
            limit="expression_parts",
            value=MOST_PARTS,
        )
