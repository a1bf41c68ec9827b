"""Anchors and look-aheads as set operations, so that what remains is an ``Expression``.

How: a pattern is read from its end. What may follow a part, its continuation, is known then. So an assertion is a
question about the continuation. ``$`` leaves only the empty text of it, ``(?=X)`` only what begins with X. Whether
``^`` holds depends on whether anything stands before. So a part has two continuations. One is for the start of the
text, as long as nothing was taken, and one for everywhere else.
Source: Miyazaki and Minamide, "Derivatives of regular expressions with lookahead", 2019.
Knows nothing about: syntax, JSON, grammar libraries.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from maskd.errors import GrammarUnsupportedError
from maskd.regular.characters import ECMA, Syntax
from maskd.regular.charset import ANY
from maskd.regular.expression import (
    ANYTHING,
    EMPTY_TEXT,
    NOTHING,
    Chars,
    Concatenation,
    Expression,
    Repeat,
    both,
    chars,
    choice,
    complement,
    repeat,
    sequence,
)
from maskd.regular.pattern import Either, End, InOrder, Look, Pattern, Start, Times
from maskd.regular.reader import read_pattern

__all__ = ["searched", "whole"]

_ANY_CHAR = chars(ANY)
_SOME_TEXT = repeat(_ANY_CHAR, 1)
_MOST_UNROLLED = 8
_MOST_CUT = 32


@functools.lru_cache(maxsize=4096)
def whole(pattern: str, dialect: Syntax = ECMA) -> Expression:
    """Returns the texts that ``pattern`` matches from their begin to their end. Raises what ``read_pattern`` raises."""
    return _meaning(read_pattern(pattern, dialect), _Continuation(EMPTY_TEXT, EMPTY_TEXT), at_start=True)


@functools.lru_cache(maxsize=4096)
def searched(pattern: str) -> Expression:
    """Returns the texts in which ``pattern`` matches somewhere, as JSON Schema's ``pattern``. Raises what
    ``read_pattern`` raises."""
    read = read_pattern(pattern)
    if isinstance(read, Expression):
        return _anywhere(read)
    behind = _Continuation(ANYTHING, ANYTHING)
    first = _meaning(read, behind, at_start=True)
    later = _meaning(read, behind, at_start=False)
    if first is later:
        return sequence(ANYTHING, first)
    return choice(first, sequence(_SOME_TEXT, later))


def _anywhere(expression: Expression) -> Expression:
    """Returns the texts that hold one of ``expression``, in a form that is cheap to run."""
    if expression.nullable:
        return ANYTHING
    parts = list(expression.parts) if isinstance(expression, Concatenation) else [expression]
    while parts[0].nullable:
        del parts[0]
    while parts[-1].nullable:
        del parts[-1]
    parts[0], parts[-1] = _cut(parts[0]), _cut(parts[-1])
    needle = sequence(*parts)
    if isinstance(needle, Chars):
        return sequence(repeat(chars(~needle.charset)), needle, ANYTHING)
    return sequence(ANYTHING, needle, ANYTHING)


def _cut(part: Expression) -> Expression:
    """At an open end of a search the least number of repetitions is enough."""
    return repeat(part.inner, part.low, part.low) if isinstance(part, Repeat) and part.low <= _MOST_CUT else part


class _Continuation(NamedTuple):
    """What may follow a part, up to the end of the text."""

    at_start: Expression
    """If the part is at the start of the text, and empty."""
    later: Expression

    def choose(self, *, at_start: bool) -> Expression:
        return self.at_start if at_start else self.later


@functools.lru_cache(maxsize=4096)  # a part is asked once for each start: without it, twice as often at each depth
def _meaning(pattern: Pattern, behind: _Continuation, *, at_start: bool) -> Expression:
    """Returns the texts of ``pattern`` and what follows it. ``at_start``: nothing stands before it."""
    following = behind.choose(at_start=at_start)
    match pattern:
        case Expression():
            if not at_start or not pattern.nullable or behind.at_start is behind.later:
                return sequence(pattern, behind.later)
            return choice(behind.at_start, sequence(_not_empty(pattern), behind.later))
        case Start():
            return following if at_start else NOTHING
        case End():
            return EMPTY_TEXT if following.nullable else NOTHING
        case Look(inner=inner, negative=negative):
            ahead = _meaning(inner, _Continuation(ANYTHING, ANYTHING), at_start=at_start)
            return both(following, complement(ahead) if negative else ahead)
        case InOrder(parts=parts):
            for part in reversed(parts[1:]):
                behind = _Continuation(_meaning(part, behind, at_start=True), _meaning(part, behind, at_start=False))
            return _meaning(parts[0], behind, at_start=at_start)
        case Either(options=options):
            return choice(*(_meaning(option, behind, at_start=at_start) for option in options))
        case Times():
            return _repeated(pattern, behind, at_start=at_start)
    raise TypeError(type(pattern))


def _not_empty(expression: Expression) -> Expression:
    if isinstance(expression, Repeat) and not expression.inner.nullable:
        return repeat(expression.inner, max(1, expression.low), expression.high)
    return both(expression, _SOME_TEXT)


def _repeated(pattern: Times, behind: _Continuation, *, at_start: bool) -> Expression:
    """A repetition of something with an assertion in it: unrolled if it is short, or ``(?:(?!X).)*`` to the end."""
    if pattern.high is None and (step := _guarded_step(pattern.inner)) is not None:
        unrolled = _guarded_run(*step, pattern.low, behind, at_start=at_start)
        if unrolled is not None:
            return unrolled
    if pattern.high is None or pattern.high > _MOST_UNROLLED:
        raise GrammarUnsupportedError(
            f"regular expression: an assertion inside a long or unlimited repetition at position {pattern.position} is "
            "not supported; write the repetition without it",
            feature="an assertion inside a repetition",
            position=pattern.position,
        )
    ends = behind
    for taken in range(pattern.high - 1, -1, -1):
        again = _Continuation(
            _meaning(pattern.inner, ends, at_start=True), _meaning(pattern.inner, ends, at_start=False)
        )
        if taken >= pattern.low:
            again = _Continuation(choice(again.at_start, behind.at_start), choice(again.later, behind.later))
        ends = again
    return ends.choose(at_start=at_start)


def _guarded_step(inner: Pattern) -> tuple[tuple[Look, ...], Expression] | None:
    """Returns look-aheads and the one character behind them, if ``inner`` is no more than that."""
    if not isinstance(inner, InOrder) or not isinstance(inner.parts[-1], Chars):
        return None
    looks = inner.parts[:-1]
    if not all(isinstance(look, Look) for look in looks):
        return None
    return tuple(look for look in looks if isinstance(look, Look)), inner.parts[-1]


def _guarded_run(
    looks: tuple[Look, ...], step: Expression, low: int, behind: _Continuation, *, at_start: bool
) -> Expression | None:
    """A run of ``step`` up to the end of the text; at each of its characters every one of ``looks`` holds.

    None if something other than the end may follow: then where the run ends matters.
    """
    if behind.later is not EMPTY_TEXT or behind.choose(at_start=at_start) not in (EMPTY_TEXT, NOTHING):
        return None
    anywhere = _Continuation(ANYTHING, ANYTHING)
    found = [repeat(step, low)]
    for look in looks:
        first = _meaning(look.inner, anywhere, at_start=at_start)
        later = _meaning(look.inner, anywhere, at_start=False)
        fails = [ahead if look.negative else complement(ahead) for ahead in (first, later)]
        fails = [
            both(fail, _SOME_TEXT) for fail in fails
        ]  # at the end of the text the run is over, and nothing is asked
        found.append(complement(choice(fails[0], sequence(_SOME_TEXT, fails[1]))))
    run = both(*found)
    if at_start and behind.at_start is NOTHING:
        run = both(run, _SOME_TEXT)
    return run
