"""Whether the beginning of a JSON text may still become a given value.

It errs on one side: "no" is always true. "Yes" may be wrong for numbers, whose exponent can move the point.
Knows nothing about: what a grammar allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from maskd.backends.watching.values import ARRAY, OBJECT, Number, canonical

__all__ = ["Beginning", "beginning_of"]

_TOKENS = re.compile(rb'[ \t\r\n]*(?:([\[\]{},:])|("(?:[^"\\]|\\.)*")|([^\[\]{},:" \t\r\n]+))', re.DOTALL)
_UNFINISHED_ESCAPE = re.compile(
    rb"\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
)


class Beginning:
    """The beginning of a value. Itself: nothing of it is there yet."""

    def agrees(self, value: Any) -> bool:
        """Whether it may become ``value``, which is canonical."""
        return True

    def strings(self, value: Any) -> Iterator[str]:
        """Yields what the string at its end may become, if all becomes ``value``, with which it agrees."""
        return iter(())

    @property
    def last(self) -> Beginning:
        """The scalar at its end; itself if there is none."""
        return self


@dataclass(slots=True)
class Complete(Beginning):
    """A value that has ended, or true, false or null."""

    value: Hashable

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``."""
        return type(self.value) is type(value) and self.value == value


@dataclass(slots=True)
class WordBeginning(Beginning):
    """The beginning of true, false or null."""

    text: str

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``."""
        return (value is None or isinstance(value, bool)) and json.dumps(value).startswith(self.text)


@dataclass(slots=True)
class StringBeginning(Beginning):
    """The beginning of a string, decoded."""

    text: str

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``."""
        return isinstance(value, str) and value.startswith(self.text)

    def strings(self, value: Any) -> Iterator[str]:
        """See ``Beginning``."""
        yield value


@dataclass(slots=True)
class NumberBeginning(Beginning):
    """The beginning of a number."""

    text: str

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``. Looks at the digits, not at where the point is."""
        if not isinstance(value, Number):
            return False
        mantissa, exponent, _ = self.text.lower().partition("e")
        digits = mantissa.lstrip("-").replace(".", "").lstrip("0")
        if not value.digits:
            return not digits
        if value.is_negative != mantissa.startswith("-"):
            return False
        if exponent:
            return digits.rstrip("0") == value.digits
        return value.digits.ljust(len(digits), "0").startswith(digits)


@dataclass(slots=True)
class ArrayBeginning(Beginning):
    """An array that is open."""

    items: list[Beginning] = field(default_factory=list)

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``."""
        if not isinstance(value, tuple) or value[0] != ARRAY or len(value[1]) < len(self.items):
            return False
        return all(item.agrees(other) for item, other in zip(self.items, value[1], strict=False))

    def strings(self, value: Any) -> Iterator[str]:
        """See ``Beginning``."""
        if self.items:
            yield from self.items[-1].strings(value[1][len(self.items) - 1])

    @property
    def last(self) -> Beginning:
        """See ``Beginning``."""
        return self.items[-1].last if self.items else self


@dataclass(slots=True)
class ObjectBeginning(Beginning):
    """An object that is open.

    Attributes:
        members: by key; the last one may have begun.
        key: the beginning of a further key; None = there is none.
    """

    members: dict[str, Beginning] = field(default_factory=dict)
    key: StringBeginning | None = None

    def agrees(self, value: Any) -> bool:
        """See ``Beginning``."""
        if not isinstance(value, tuple) or value[0] != OBJECT:
            return False
        members = dict(value[1])
        if not all(key in members and member.agrees(members[key]) for key, member in self.members.items()):
            return False
        return self.key is None or any(self.key.agrees(key) for key in members if key not in self.members)

    def strings(self, value: Any) -> Iterator[str]:
        """See ``Beginning``."""
        members = dict(value[1])
        if self.key is not None:
            yield from (key for key in members if key not in self.members and self.key.agrees(key))
        elif self.members:
            last = next(reversed(self.members))
            yield from self.members[last].strings(members[last])

    @property
    def last(self) -> Beginning:
        """See ``Beginning``."""
        if self.key is not None:
            return self.key
        return self.members[next(reversed(self.members))].last if self.members else self


def beginning_of(text: bytes) -> Beginning:
    """Returns what ``text``, the beginning of a JSON value, begins.

    Raises:
        ValueError: it begins none.
    """
    parser = _Parser(text)
    return parser.value()


class _Parser:
    def __init__(self, text: bytes) -> None:
        self._text, self._at = text, 0

    def value(self) -> Beginning:
        found = _TOKENS.match(self._text, self._at)
        if found is None:
            return self._rest()
        begin, self._at = self._at, found.end()
        mark, string, scalar = found.groups()
        if mark == b"[":
            return self._array(begin)
        if mark == b"{":
            return self._object(begin)
        if string is not None:
            return Complete(canonical(string))
        if scalar is None:
            raise ValueError("no value")
        if self._at < len(self._text):
            return Complete(canonical(scalar))
        text = scalar.decode()
        return WordBeginning(text) if text[0] in "tfn" else NumberBeginning(text)

    def _rest(self) -> Beginning:
        """A string that is open, or nothing."""
        rest = self._text[self._at :].lstrip(b" \t\r\n")
        self._at = len(self._text)
        return StringBeginning(_decoded(rest)) if rest else Beginning()

    def _array(self, begin: int) -> Beginning:
        array = ArrayBeginning()
        while True:
            mark = self._mark()
            if mark == b"]":
                return Complete(canonical(self._text[begin : self._at]))
            if mark is None and self._at_end():
                return array
            array.items.append(self.value())

    def _object(self, begin: int) -> Beginning:
        found = ObjectBeginning()
        while True:
            mark = self._mark()
            if mark == b"}":
                return Complete(canonical(self._text[begin : self._at]))
            if self._at_end():
                found.key = StringBeginning("") if mark == b"," else None
                return found
            key = self.value()
            if not isinstance(key, Complete):
                found.key = key if isinstance(key, StringBeginning) else StringBeginning("")
                return found
            self._mark()
            found.members.pop(str(key.value), None)
            found.members[str(key.value)] = self.value()

    def _mark(self) -> bytes | None:
        """Takes a comma, a colon, or the end of a container, if one is next."""
        found = _TOKENS.match(self._text, self._at)
        if found is None or found[1] is None or found[1] in b"[{":
            return None
        self._at = found.end()
        return found[1]

    def _at_end(self) -> bool:
        return not self._text[self._at :].strip(b" \t\r\n")


def _decoded(text: bytes) -> str:
    """Returns the whole characters of ``text``, a string without its closing quote."""
    text = _UNFINISHED_ESCAPE.sub(b"", text) if _is_escaping(text) else text
    return str(json.loads(text.decode(errors="ignore") + '"'))


def _is_escaping(text: bytes) -> bool:
    """Whether an escape sequence at the end may go on: the backslash that begins it is not escaped itself."""
    found = _UNFINISHED_ESCAPE.search(text)
    if found is None:
        return False
    before = text[: found.start()]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0
