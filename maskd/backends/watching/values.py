"""JSON values as JSON Schema compares them, and which of them were there.

Numbers are equal if they are the same number, however they are written. The order of members does not matter.
Source: JSON Schema Core 2020-12, section 4.2.2.
Knows nothing about: tokens, grammars.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["ARRAY", "OBJECT", "Number", "Seen", "canonical", "nothing_seen", "number_of"]

ARRAY, OBJECT = "[", "{"
"""The first element of the canonical form of an array or object; the second is a tuple of items, or the members."""


class Number(NamedTuple):
    """``digits`` * 10 ** ``exponent``; ``digits`` has no zeros at its ends, and is empty for zero."""

    is_negative: bool
    digits: str
    exponent: int


def number_of(text: str) -> Number:
    """Returns the number that ``text`` spells.

    Raises:
        ValueError: it spells none, or its exponent has thousands of digits.
    """
    mantissa, _, exponent = text.lower().partition("e")
    integer, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (integer + fraction).lstrip("0")
    short = digits.rstrip("0")
    if not short:
        return Number(False, "", 0)
    return Number(text[0] == "-", short, int(exponent or 0) - len(fraction) + len(digits) - len(short))


def canonical(text: bytes) -> Hashable:
    """Returns the value that the JSON ``text`` spells; equal values are equal, and hash alike.

    Raises:
        ValueError: it is not JSON. RecursionError: it is nested too deeply.
    """
    return _frozen(json.loads(text, parse_int=number_of, parse_float=number_of))


def _frozen(value: Any) -> Hashable:
    if isinstance(value, list):
        return ARRAY, tuple(map(_frozen, value))
    if isinstance(value, dict):
        return OBJECT, frozenset((key, _frozen(member)) for key, member in value.items())
    return value  # type: ignore[no-any-return]


class Seen:
    """Values that were there, an immutable set in order. A longer one shares what it has in common with this one.

    The last value stands beside the log that is shared. It enters the log when another one follows. So the many sets
    that are only tried cost nothing. The log grows at its end. Growing from its middle copies it.
    """

    __slots__ = ("_count", "_last", "_log")

    def __init__(self, log: _Log, count: int, last: tuple[Hashable, ...]) -> None:
        self._log, self._count, self._last = log, count, last

    def __contains__(self, value: Hashable) -> bool:
        return self._log.places.get(value, self._count) < self._count or value in self._last

    def __len__(self) -> int:
        return self._count + len(self._last)

    def __iter__(self) -> Iterator[Hashable]:
        yield from self._log.first(self._count)
        yield from self._last

    def with_value(self, value: Hashable) -> Seen:
        """Returns this and ``value``, which is not in it."""
        if not self._last:
            return Seen(self._log, self._count, (value,))
        log = self._log.longer(self._count, self._last[0])
        return Seen(log, self._count + 1, (value,))


class _Log:
    """Different values, each with its place, in order."""

    __slots__ = ("_lock", "places")

    def __init__(self, values: Iterable[Hashable] = ()) -> None:
        self.places = {value: place for place, value in enumerate(values)}
        self._lock = threading.Lock()

    def first(self, count: int) -> list[Hashable]:
        """Returns the first ``count`` values."""
        with self._lock:
            return list(itertools.islice(self.places, count))

    def longer(self, count: int, value: Hashable) -> _Log:
        """Returns a log that has ``value`` behind the first ``count`` values of this one."""
        with self._lock:  # forks of a sequence may run on two threads
            if len(self.places) == count:
                self.places[value] = count
            if self.places.get(value) == count:
                return self
            return _Log((*itertools.islice(self.places, count), value))


def nothing_seen() -> Seen:
    """Returns the empty set."""
    return Seen(_Log(), 0, ())
