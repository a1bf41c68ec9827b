r"""Expressions as terminals of llguidance's Lark, in which terminals have ``&`` and ``~``.

Two spellings: ``as_text`` writes characters as they are, ``as_json`` as they stand in a JSON string (RFC 8259,
section 7). There the spellings of a character are always the same ones. So ``&`` and ``~`` mean the same for
the spelled text as for the text itself. Printable characters stand for themselves, ``/`` also as ``\/``. Control
characters have their short escape, or else ``\u00XX`` in either case of the digits.
Knows nothing about: what the texts mean; rules.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.regular.charset import ANY, CharSet
from maskd.regular.expression import (
    ANYTHING,
    NOTHING,
    Both,
    Chars,
    Complement,
    Concatenation,
    Expression,
    Remainder,
    Repeat,
    Union,
    Words,
    sequence,
)

__all__ = ["as_json", "as_text"]

MOST_PARTS = 4_000_000
_NEVER = "(/a/ & /b/)"
_CONTROLS = CharSet([(0, 0x1F)])
_PLAIN = ~(_CONTROLS | CharSet.of('"\\'))
_SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}

_ANY_JSON = (
    r"""/\x{22}(?:[^\x{22}\x{5c}\x{0}-\x{1f}]|\x{5c}(?:[\x{22}\x{5c}\x{2f}bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}"""
    r"""|[dD][0-7][0-9a-fA-F]{2}|[dD][89abAB][0-9a-fA-F]{2}\x{5c}u[dD][c-fC-F][0-9a-fA-F]{2})))*\x{22}/"""
)
Spelling: TypeAlias = Callable[[CharSet], str]
"""Returns a regular expression for one character of a set, to be repeated as it stands."""


def as_text(expression: Expression) -> str:
    """Returns ``expression`` as the right side of a terminal.

    Raises:
        GrammarTooLargeError: it has more than ``MOST_PARTS`` parts.
    """
    _check_weight(expression)
    return _terminal(expression, _text_spelling)


def as_json(expression: Expression) -> str:
    """Returns ``expression`` as JSON strings, quotes included, as the right side of a terminal.

    ``ANYTHING`` is every JSON string, in every spelling. The quotes stand inside every operand of ``&`` and ``~``: the
    library is quick then to see that most tokens lie within a string (25 µs a row against 1.2 ms, 131,072 tokens).

    Raises:
        GrammarTooLargeError: it has more than ``MOST_PARTS`` parts.
    """
    _check_weight(expression)
    return _ANY_JSON if expression is ANYTHING else _quoted(expression)


def _check_weight(expression: Expression) -> None:
    """Parts that a tree shares are written out, so a small tree can have a text without end."""
    if expression.weight > MOST_PARTS:
        raise GrammarTooLargeError(
            f"patterns, bounds and lengths make an expression of more than {MOST_PARTS} parts; combine fewer of them",
            limit="expression_parts",
            value=MOST_PARTS,
        )


def _quoted(expression: Expression) -> str:
    if expression is NOTHING:
        return _NEVER
    match expression:
        case Both(parts=parts):
            return _intersection(parts, _quoted)
        case Complement():
            return _intersection((expression,), _quoted)
        case Union(parts=parts) if not expression.plain:
            return "(" + " | ".join(sorted(map(_quoted, parts))) + ")"
    if expression.plain:
        return rf"/\x{{22}}{_regex(expression, _json_spelling)}\x{{22}}/"
    return f'("\\"" {_terminal(expression, _json_spelling)} "\\"")'


def _terminal(expression: Expression, spelling: Spelling) -> str:
    if expression is NOTHING:
        return _NEVER
    if expression.plain:
        return f"/{plain}/" if (plain := _regex(expression, spelling)) else '""'
    write = functools.partial(_terminal, spelling=spelling)
    match expression:
        case Concatenation(parts=parts):
            return "(" + " ".join(map(write, _runs(parts))) + ")"
        case Union(parts=parts):
            return "(" + " | ".join(sorted(map(write, parts))) + ")"
        case Both(parts=parts):
            return _intersection(parts, write)
        case Complement():
            return _intersection((expression,), write)
        case Repeat(inner=inner, low=low, high=high):
            return f"({write(inner)}){_times(low, high)}"
        case Remainder(modulus=modulus):
            raise GrammarUnsupportedError(
                f"multiples of {modulus} beside not, oneOf or other conditions are not done; "
                "leave the conditions out, or multipleOf",
                keyword="multipleOf",
            )
    raise TypeError(type(expression))


def _intersection(parts: Iterable[Expression], write: Callable[[Expression], str]) -> str:
    operands = sorted(write(part) for part in parts if not isinstance(part, Complement))
    # A complement alone holds what is no UTF-8 as well; beside anything else it does not.
    operands = operands or [write(ANYTHING)]
    if negative := sorted(write(part.inner) for part in parts if isinstance(part, Complement)):
        operands.append("~(" + " | ".join(negative) + ")")
    return "(" + " & ".join(operands) + ")"


def _runs(parts: tuple[Expression, ...]) -> Iterator[Expression]:
    """Yields ``parts``, neighbours that are plain as one."""
    for plain, run in itertools.groupby(parts, key=lambda part: part.plain):
        if plain:
            yield sequence(*run)
        else:
            yield from run


def _regex(expression: Expression, spelling: Spelling) -> str:
    """Returns a plain expression in the syntax of Rust's ``regex``, without its flags."""
    match expression:
        case Chars(charset=charset):
            return spelling(charset)
        case Words(texts=texts):
            return f"(?:{'|'.join(sorted(''.join(_spelled(char, spelling) for char in text) for text in texts))})"
        case Concatenation(parts=parts):
            return "".join(_regex(part, spelling) for part in parts)
        case Union(parts=parts):
            return f"(?:{'|'.join(sorted(_regex(part, spelling) for part in parts))})"
        case Repeat(inner=inner, low=low, high=high):
            once = _regex(inner, spelling)
            return (once if isinstance(inner, Chars | Union | Words) else f"(?:{once})") + _times(low, high)
    raise TypeError(type(expression))


@functools.lru_cache(maxsize=1 << 12)
def _spelled(char: str, spelling: Spelling) -> str:
    return spelling(CharSet.of(char))


def _times(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else "+" if low == 1 else f"{{{low},}}"
    return "?" if (low, high) == (0, 1) else f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _text_spelling(charset: CharSet) -> str:
    return _bracketed(charset)


@functools.lru_cache(maxsize=4096)
def _json_spelling(charset: CharSet) -> str:
    spelled = [_bracketed(plain)] if (plain := charset & _PLAIN) else []
    escaped = []
    if short := "".join(letter for char, letter in _SHORT.items() if char in charset):
        escaped.append(_bracketed(CharSet.of(short)))
    for high in (0x00, 0x10):
        low = (f"{low:x}" for low in range(16) if chr(high + low) in charset and chr(high + low) not in _SHORT)
        if digits := "".join(digit + digit.upper() for digit in low):
            escaped.append(f"u00{high >> 4}{_bracketed(CharSet.of(digits))}")
    if not escaped:
        return spelled[0]
    spelled.append(rf"\\(?:{'|'.join(escaped)})")
    return f"(?:{'|'.join(spelled)})"


def _bracketed(charset: CharSet) -> str:
    """Returns a class of Rust's ``regex`` for ``charset``, or the one character that it has."""
    if charset == ANY:
        return "(?s:.)"
    ranges = [_one(first) if first == last else f"{_one(first)}-{_one(last)}" for first, last in charset.ranges]
    return ranges[0] if len(ranges) == 1 and charset.ranges[0][0] == charset.ranges[0][1] else f"[{''.join(ranges)}]"


def _one(code_point: int) -> str:
    char = chr(code_point)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code_point:x}}}"
