"""Questions about an expression: does it match anything, what is a shortest text of it,
which are its states.

Characters that an expression treats alike form a class. It has few classes and so few derivatives, however large the
alphabet is. A shortest text is a shortest path through the derivatives.
Source: Owens, Reppy and Turon, "Regular-expression derivatives re-examined", 2009.
Knows nothing about: syntax, JSON, grammar libraries.
"""

from __future__ import annotations

import functools
import heapq
import operator
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from maskd.regular.charset import ANY, CharSet
from maskd.regular.expression import (
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
    derivative,
)

__all__ = [
    "EQUAL",
    "MOST_STATES",
    "MOST_WEIGHT",
    "Tiers",
    "TooManyStatesError",
    "automaton",
    "classes",
    "may_match",
    "shortest",
]

MOST_STATES = 2_000
MOST_WEIGHT = 5_000_000
"""Most weight of all states together: a step takes some µs for each part of its state."""
Tiers: TypeAlias = tuple[tuple[int, CharSet], ...]
"""What characters weigh, the lightest first; all characters are in one of the sets. Earlier ones are preferred."""
EQUAL: Tiers = ((1, CharSet([(0x61, 0x7A)])), (1, CharSet([(0x30, 0x39)])), (1, CharSet([(0x20, 0x7E)])), (1, ANY))
"""All alike; those that are easy to read and to write are preferred."""


class TooManyStatesError(Exception):
    """A question about an expression needs more states than its caller allows."""


def may_match(expression: Expression, most_states: int = MOST_STATES) -> bool:
    """Says whether any text belongs to ``expression``. True also if that takes more than ``most_states`` states."""
    if expression.plain:
        return expression is not NOTHING
    try:
        return shortest(expression, most_states) is not None
    except TooManyStatesError:
        return True


@functools.lru_cache(maxsize=1 << 12)
def shortest(expression: Expression, most_states: int = MOST_STATES, tiers: Tiers = EQUAL) -> str | None:
    """Returns a text of ``expression`` that weighs least, or None if it has none. Characters weigh what ``tiers`` say.

    Raises:
        TooManyStatesError: more than ``most_states`` derivatives were looked at, they weigh more than ``MOST_WEIGHT``
            together, or the text is longer than ``most_states``.
    """
    if expression.plain:
        found = _lightest_text(expression, most_states, tiers)
        return None if found is None else found[1]
    lightest, waiting, number, size = {expression: 0}, [(0, 0, "", expression)], 0, 0
    while waiting:
        weight, _, text, state = heapq.heappop(waiting)
        if state.nullable:
            return text
        if weight > lightest[state]:
            continue
        size += state.weight
        if size > MOST_WEIGHT:
            raise TooManyStatesError("states that are too large")
        for charset in classes(state):
            more, char = _lightest(charset, tiers)
            following = derivative(state, char)
            if following is NOTHING or lightest.get(following, sys.maxsize) <= weight + more:
                continue
            if len(lightest) >= most_states:
                raise TooManyStatesError(f"more than {most_states} states")
            lightest[following] = weight + more
            number += 1
            heapq.heappush(waiting, (weight + more, number, text + char, following))
    return None


@functools.lru_cache(maxsize=1 << 14)
def _lightest_text(expression: Expression, most_chars: int, tiers: Tiers) -> tuple[int, str] | None:
    """Returns weight and text of the lightest text of a plain expression, which is made of those of its parts."""
    match expression:
        case Chars(charset=charset):
            return _lightest(charset, tiers)
        case Words(texts=texts):
            return min((sum(_weight(char, tiers) for char in text), text) for text in texts)
        case Concatenation(parts=parts):
            weight, text = 0, ""
            for part in parts:
                found = _lightest_text(part, most_chars, tiers)
                assert found is not None, "a sequence with an empty part is NOTHING"
                weight, text = weight + found[0], text + found[1]
                _check_length(len(text), most_chars)
            return weight, text
        case Union(parts=parts):
            options = [found for part in parts if (found := _lightest_text(part, most_chars, tiers)) is not None]
            return min(options, default=None)
        case Repeat(inner=inner, low=low):
            once = _lightest_text(inner, most_chars, tiers) if low else None
            if once is None:
                return 0, ""
            _check_length(len(once[1]) * low, most_chars)
            return once[0] * low, once[1] * low
    raise TypeError(type(expression))


def _check_length(chars: int, most_chars: int) -> None:
    if chars > most_chars:
        raise TooManyStatesError(f"a text of more than {most_chars} characters")


def automaton(
    expression: Expression,
    is_leaf: Callable[[Expression], bool],
    most_states: int = MOST_STATES,
    most_weight: int = MOST_WEIGHT,
) -> dict[Expression, dict[Expression, CharSet]]:
    """Returns the states of ``expression``: each with the states that follow it, and the characters that lead there.

    A state is the expression of what may follow. States from which no text ends are left out, so the result is empty if
    nothing belongs to ``expression``.

    Args:
        is_leaf: says of a plain state that it is not to be looked into; nothing follows it in the result.
    Raises:
        TooManyStatesError: it has more than ``most_states`` states, or they weigh more than ``most_weight`` together.
    """
    following: dict[Expression, dict[Expression, CharSet]] = {expression: {}}
    before: dict[Expression, list[Expression]] = {}
    live = set()
    waiting, weight = [expression], 0
    while waiting:
        state = waiting.pop()
        weight += 0 if is_leaf(state) else state.weight
        if len(following) > most_states or weight > most_weight:
            raise TooManyStatesError(f"more than {most_states} states")
        if state.nullable or is_leaf(state):
            live.add(state)
        if is_leaf(state):
            continue
        sets: dict[Expression, list[CharSet]] = {}
        for charset in classes(state):
            sets.setdefault(derivative(state, chr(charset.ranges[0][0])), []).append(charset)
        sets.pop(NOTHING, None)
        for target, some in sets.items():
            following[state][target] = functools.reduce(operator.or_, some)
            before.setdefault(target, []).append(state)
            if target not in following:
                following[target] = {}
                waiting.append(target)
    waiting = list(live)
    while waiting:
        found = [state for state in before.get(waiting.pop(), ()) if state not in live]
        live.update(found)
        waiting += found
    return {
        state: {target: charset for target, charset in steps.items() if target in live}
        for state, steps in following.items()
        if state in live
    }


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
        case Remainder():
            yield from map(CharSet.of, "0123456789.")
        case Repeat() | Complement():
            yield from _first_sets(expression.inner)
        case Union() | Both():
            for part in expression.parts:
                yield from _first_sets(part)


@functools.lru_cache(maxsize=1 << 14)
def _lightest(charset: CharSet, tiers: Tiers) -> tuple[int, str]:
    """Returns the weight of the lightest character of ``charset``, and that character."""
    for weight, tier in tiers:
        if common := charset & tier:
            return weight, chr(common.ranges[0][0])
    raise ValueError("a character is in no tier")


@functools.lru_cache(maxsize=1 << 12)
def _weight(char: str, tiers: Tiers) -> int:
    return _lightest(CharSet.of(char), tiers)[0]
