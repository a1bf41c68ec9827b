"""Sets of characters, as sorted ranges of code points.

A character is a Unicode scalar value: surrogates are none, because well-formed UTF-8 cannot hold one.
Owns: the set operations; Unicode properties by name, and the other cases of characters.
Knows nothing about: the syntax of patterns.
"""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterable, Iterator

import regex

__all__ = ["ANY", "CharSet", "Range", "case_variants", "unicode_property"]

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)

Range = tuple[int, int]


class CharSet:
    """An immutable set of characters. Equal sets are equal values.

    Attributes:
        ranges: (first, last) code points, both inclusive, ascending, with gaps between them.
    """

    __slots__ = ("_hash", "ranges")
    ranges: tuple[Range, ...]

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        merged: list[Range] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            elif first <= last:
                merged.append((first, last))
        self.ranges = tuple(_without_surrogates(merged))
        self._hash = hash(self.ranges)

    @classmethod
    def of(cls, text: str) -> CharSet:
        """Returns the characters of ``text``."""
        return cls((ord(char), ord(char)) for char in text)

    def __or__(self, other: CharSet) -> CharSet:
        return CharSet((*self.ranges, *other.ranges))

    def __invert__(self) -> CharSet:
        gaps, begin = [], 0
        for first, last in self.ranges:
            gaps.append((begin, first - 1))
            begin = last + 1
        return CharSet((*gaps, (begin, _LAST)))

    def __and__(self, other: CharSet) -> CharSet:
        common: list[Range] = []
        mine, others = iter(self.ranges), iter(other.ranges)
        a, b = next(mine, None), next(others, None)
        while a and b:
            common.append((max(a[0], b[0]), min(a[1], b[1])))
            if a[1] < b[1]:
                a = next(mine, None)
            else:
                b = next(others, None)
        return CharSet(pair for pair in common if pair[0] <= pair[1])

    def __sub__(self, other: CharSet) -> CharSet:
        return self & ~other

    def __contains__(self, char: str) -> bool:
        return any(first <= ord(char) <= last for first, last in self.ranges)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharSet) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"CharSet({self.ranges!r})"


def _without_surrogates(ranges: Iterable[Range]) -> Iterator[Range]:
    low, high = _SURROGATES
    for first, last in ranges:
        if last < low or first > high:
            yield first, last
            continue
        if first < low:
            yield first, low - 1
        if last > high:
            yield high + 1, last


ANY = CharSet([(0, _LAST)])


@functools.lru_cache(maxsize=256)
def unicode_property(name: str, value: str | None = None) -> CharSet | None:
    r"""Returns the characters of ``\p{name}`` or ``\p{name=value}``; None if there is no such property.

    The tables are those of the package ``regex``, which follow the current version of Unicode.
    """
    spelled = name if value is None else f"{name}={value}"
    if not spelled.replace("_", "").replace("=", "").isalnum():
        return None
    try:
        runs = regex.compile(rf"\p{{{spelled}}}+")
    except regex.error:
        return None
    # Position i of the text is code point i below the surrogates; behind them a position is 2,048 too low.
    spans = (match.span() for match in runs.finditer(_every_character()))
    return CharSet(pair for begin, end in spans for pair in _code_points(begin, end - 1))


@functools.lru_cache(maxsize=1024)
def case_variants(charset: CharSet) -> CharSet:
    """Returns the characters that differ from one of ``charset`` only in their case, by simple case folding.

    Source: Unicode's CaseFolding.txt, the mappings C and S, from the tables of the package ``regex``. That package also
    takes the dotless and the dotted i of Turkish for cases of i, the mappings T. Those two are cases of nothing here.
    """
    members = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in (charset & _cased()).ranges)
    found = regex.findall(f"(?i)[{members}]", "".join(map(chr, _points(_cased())))) if members else ()
    return CharSet.of("".join(found))


@functools.lru_cache(maxsize=1)
def _cased() -> CharSet:
    """Returns the characters that have cases; beyond the planes 0 and 1 there are none."""
    text = "".join(map(chr, _points(CharSet([(0, 0x1FFFF)]) - CharSet.of("\u0130\u0131"))))
    return CharSet.of("".join(regex.findall(r"[\p{Changes_When_Casemapped}\p{Changes_When_Casefolded}]", text)))


def _points(charset: CharSet) -> Iterator[int]:
    for first, last in charset.ranges:
        yield from range(first, last + 1)


def _code_points(first: int, last: int) -> Iterator[Range]:
    low, high = _SURROGATES
    width = high - low + 1
    if first < low:
        yield first, min(last, low - 1)
    if last >= low:
        yield max(first, low) + width, last + width


@functools.lru_cache(maxsize=1)
def _every_character() -> str:
    low, high = _SURROGATES
    points = array("I", itertools.chain(range(low), range(high + 1, _LAST + 1)))
    return points.tobytes().decode("utf-32")
