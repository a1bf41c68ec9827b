"""Questions about an expression: does it match anything, and what is a shortest text of it.

Characters that an expression treats alike form a class. It has few classes and so few derivatives, however large the
alphabet is. Source: Owens, Reppy and Turon, "Regular-expression derivatives re-examined", 2009.
Knows nothing about: syntax, JSON, grammar libraries.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

from maskd.regular.charset import ANY, CharSet
from maskd.regular.expression import (
    NOTHING,
    Both,
    Chars,
    Complement,
    Concatenation,
    Expression,
    Repeat,
    Union,
    Words,
    derivative,
)

__all__ = ["TooManyStatesError", "may_match", "shortest"]

MOST_STATES = 2_000


class TooManyStatesError(Exception):
    """A question about an expression needs more states than its caller allows."""


def may_match(expression: Expression) -> bool:
    """Says whether any text belongs to ``expression``. True also if that takes more than ``MOST_STATES`` states."""
    if expression.plain:
        return expression is not NOTHING
    try:
        return shortest(expression) is not None
    except TooManyStatesError:
        return True


def shortest(expression: Expression, most_states: int = MOST_STATES) -> str | None:
    """Returns a shortest text of ``expression``, or None if it has none.

    Raises:
        TooManyStatesError: more than ``most_states`` derivatives were looked at.
    """
    seen, waiting = {expression}, deque([(expression, "")])
    while waiting:
        state, text = waiting.popleft()
        if state.nullable:
            return text
        for charset in classes(state):
            char = chr(_plainest(charset))
            following = derivative(state, char)
            if following is NOTHING or following in seen:
                continue
            if len(seen) >= most_states:
                raise TooManyStatesError(f"more than {most_states} states")
            seen.add(following)
            waiting.append((following, text + char))
    return None


@functools.lru_cache(maxsize=1 << 14)
def classes(expression: Expression) -> tuple[CharSet, ...]:
    """Returns disjoint sets that make up all characters; within one, all have the same derivative."""
    sets = list(dict.fromkeys(_first_sets(expression)))
    if not sets:
        return (ANY,)
    edges = sorted({0, 0x110000}.union(*({first, last + 1} for chars in sets for first, last in chars.ranges)))
    of_signature: dict[int, list[tuple[int, int]]] = {}
    inside = [0] * len(edges)
    at = {edge: index for index, edge in enumerate(edges)}
    for number, chars in enumerate(sets):
        for first, last in chars.ranges:
            for index in range(at[first], at[last + 1]):
                inside[index] |= 1 << number
    for index in range(len(edges) - 1):
        of_signature.setdefault(inside[index], []).append((edges[index], edges[index + 1] - 1))
    return tuple(found for ranges in of_signature.values() if (found := CharSet(ranges)))


def _first_sets(expression: Expression) -> Iterator[CharSet]:
    match expression:
        case Chars():
            yield expression.charset
        case Words():
            yield from map(CharSet.of, {text[:1] for text in expression.texts if text})
        case Concatenation():
            for part in expression.parts:
                yield from _first_sets(part)
                if not part.nullable:
                    return
        case Repeat() | Complement():
            yield from _first_sets(expression.inner)
        case Union() | Both():
            for part in expression.parts:
                yield from _first_sets(part)


def _plainest(charset: CharSet) -> int:
    """Returns a character that is easy to read and to write, if there is one."""
    for good in (CharSet([(0x61, 0x7A)]), CharSet([(0x30, 0x39)]), CharSet([(0x20, 0x7E)])):
        if common := charset & good:
            return common.ranges[0][0]
    return charset.ranges[0][0]
