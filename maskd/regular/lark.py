r"""Expressions as terminals of llguidance's Lark, in which terminals have ``&`` and ``~``.

``as_text`` writes characters as they are, ``as_json`` as they stand in a JSON string (``spelling``).
Knows nothing about: what the texts mean; rules.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from maskd.errors import GrammarUnsupportedError
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
from maskd.regular.spelling import any_json, check_weight, json_spellings, times

__all__ = ["as_json", "as_text"]

_NEVER = "(/a/ & /b/)"
Spelling: TypeAlias = Callable[[CharSet], str]
"""Returns a regular expression for one character of a set, to be repeated as it stands."""


def as_text(expression: Expression) -> str:
    """Returns ``expression`` as the right side of a terminal. Raises what ``check_weight`` raises."""
    check_weight(expression)
    return _terminal(expression, _bracketed)


def as_json(expression: Expression) -> str:
    """Returns ``expression`` as JSON strings, quotes included, as the right side of a terminal.

    ``ANYTHING`` is every JSON string, in every spelling. The quotes stand inside every operand of ``&`` and ``~``: the
    library is quick then to see that most tokens lie within a string (25 µs a row against 1.2 ms, 131,072 tokens).
    Raises what ``check_weight`` raises.
    """
    check_weight(expression)
    return f"/{any_json(_bracketed)}/" if expression is ANYTHING else _quoted(expression)


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
        return rf"/\x{{22}}{_regex(expression, _json_one)}\x{{22}}/"
    return f'("\\"" {_terminal(expression, _json_one)} "\\"")'


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
            return f"({write(inner)}){times(low, high)}"
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


def _regex(expression: Expression, one: Spelling) -> str:
    """Returns a plain expression in the syntax of Rust's ``regex``, without its flags."""
    match expression:
        case Chars(charset=charset):
            return one(charset)
        case Words(texts=texts):
            return _any_of(texts, one)
        case Concatenation(parts=parts):
            return "".join(_regex(part, one) for part in parts)
        case Union(parts=parts):
            return f"(?:{'|'.join(sorted(_regex(part, one) for part in parts))})"
        case Repeat(inner=inner, low=low, high=high):
            once = _regex(inner, one)
            return (once if isinstance(inner, Chars | Union | Words) else f"(?:{once})") + times(low, high)
    raise TypeError(type(expression))


def _any_of(texts: frozenset[str], one: Spelling) -> str:
    """A flat list, without common prefixes: the library does 10,000 of these in 0.2 s, and of others in minutes."""
    each = functools.lru_cache(maxsize=None)(lambda char: one(CharSet.of(char)))
    return f"(?:{'|'.join(sorted(''.join(map(each, text)) for text in texts))})"


@functools.lru_cache(maxsize=4096)
def _json_one(charset: CharSet) -> str:
    forms = json_spellings(charset)
    spelled = "|".join("".join(map(_bracketed, form)) for form in forms)
    return spelled if len(forms) == len(forms[0]) == 1 else f"(?:{spelled})"


def _bracketed(charset: CharSet) -> str:
    """Returns a class of Rust's ``regex`` for ``charset``, or the one character that it has."""
    if charset == ANY:
        return "(?s:.)"
    ranges = [_one(first) if first == last else f"{_one(first)}-{_one(last)}" for first, last in charset.ranges]
    return ranges[0] if len(ranges) == 1 and charset.ranges[0][0] == charset.ranges[0][1] else f"[{''.join(ranges)}]"


def _one(code_point: int) -> str:
    char = chr(code_point)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code_point:x}}}"
