r"""JSON strings as bytes: how short they can be spelled, and how one that is begun can end.

Spellings are those that ``maskd.regular.lark`` writes: printable characters stand for themselves.
Knows nothing about: schemas. Source: RFC 8259, section 7.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator

from maskd.regular.charset import ANY, CharSet
from maskd.regular.expression import Expression, derivative
from maskd.regular.questions import TooManyStatesError, classes, shortest

__all__ = ["MOST_BYTES", "BegunString", "lightest", "quoted"]

MOST_BYTES = 1 << 13
"""Longest text that is looked for: hardly any output has room for more."""

_SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_TIERS = (
    (1, CharSet([(0x61, 0x7A)])),
    (1, CharSet([(0x30, 0x39)])),
    (1, CharSet([(0x20, 0x7F)]) - CharSet.of('"\\')),
    (2, CharSet.of('"\\\b\f\n\r\t')),
    (2, CharSet([(0x80, 0x7FF)])),
    (3, CharSet([(0x800, 0xFFFF)])),
    (4, CharSet([(0x10000, 0x10FFFF)])),
    (6, ANY),
)
"""Bytes of each character within quotes."""


def lightest(expression: Expression) -> str | None:
    """Returns a text of ``expression`` with the shortest spelling; None if none is found within the usual work."""
    try:
        return shortest(expression, MOST_BYTES // 2, _TIERS)
    except TooManyStatesError:
        return None


@functools.lru_cache(maxsize=1 << 12)
def quoted(text: str) -> bytes:
    """Returns the JSON string of ``text``."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")


class BegunString:
    """A JSON string whose opening quote was read.

    Attributes:
        text: its characters so far.
        is_closed: whether the closing quote was read.
    """

    def __init__(self) -> None:
        self.text, self.is_closed = "", False
        self._pending = b""  # of a character that is not whole
        self._after: dict[Expression, tuple[int, Expression]] = {}

    def fork(self) -> BegunString:
        """Returns another one at the same place."""
        other = BegunString()
        other.text, other.is_closed, other._pending = self.text, self.is_closed, self._pending
        other._after = dict(self._after)
        return other

    def feed(self, byte: int) -> None:
        """Reads one byte, which may follow."""
        if self._pending[:1] == b"\\":
            self._feed_escape(byte)
        elif self._pending or byte >= 0x80:
            self._pending += bytes([byte])
            if len(self._pending) >= _utf8_length(self._pending[0]):
                self._take(self._pending.decode("utf-8", "replace"))
        elif byte == ord("\\"):
            self._pending = b"\\"
        elif byte == ord('"'):
            self.is_closed = True
        else:
            self.text += chr(byte)

    def _feed_escape(self, byte: int) -> None:
        pending = self._pending
        if len(pending) == 6 and byte != ord("\\"):  # a surrogate that stays alone
            self._take("\ufffd")
            self.feed(byte)
            return
        self._pending = pending = pending + bytes([byte])
        is_high_surrogate = pending[2:4].lower() in (b"d8", b"d9", b"da", b"db")
        is_whole = len(pending) == 6 and not is_high_surrogate
        if is_whole or len(pending) == 12 or (len(pending) in (2, 8) and byte != ord("u")):
            self._take(_unescaped(pending))

    def _take(self, text: str) -> None:
        self.text, self._pending = self.text + text, b""

    def belongs(self, strings: Expression) -> bool:
        """Says whether the text so far is one of ``strings``."""
        return self._derived(strings).nullable

    # -- ending ----------------------------------------------------------------------------------------------------

    def ending(self, strings: Expression) -> bytes | None:
        """Returns the shortest rest, closing quote included, that makes it one of ``strings``; None = not found."""
        text = self.completed(strings)
        return None if text is None else self.rest_of(text)

    def completed(self, strings: Expression) -> str | None:
        """Returns the text among ``strings`` that it becomes with the fewest bytes; None = none is found."""
        state = self._derived(strings)
        if not self._pending:
            rest = lightest(state)
            return None if rest is None else self.text + rest
        texts = []
        for charset, _ in self._completions():
            for alike in classes(state):
                if common := alike & charset:
                    char = chr(common.ranges[0][0])
                    rest = lightest(derivative(state, char))
                    if rest is not None:
                        texts.append(self.text + char + rest)
        return min(texts, key=lambda text: len(self.rest_of(text)), default=None)

    def may_become(self, text: str) -> bool:
        """Says whether ``text`` begins with what is there."""
        if not text.startswith(self.text):
            return False
        following = text[len(self.text) :][:1]
        if not self._pending or not following:
            return not self._pending
        return any(following in charset for charset, _ in self._completions())

    def rest_of(self, text: str) -> bytes:
        """Returns the rest, closing quote included, that makes it ``text``, which it may become."""
        rest = text[len(self.text) :]
        if not self._pending:
            return quoted(rest)[1:]
        write = next(write for charset, write in self._completions() if rest[0] in charset)
        return write(rest[0]) + quoted(rest[1:])[1:]

    def _derived(self, strings: Expression) -> Expression:
        """Returns what may follow the text in ``strings``."""
        at, state = self._after.get(strings, (0, strings))
        for char in self.text[at:]:
            state = derivative(state, char)
        self._after[strings] = len(self.text), state
        return state

    def _completions(self) -> Iterator[tuple[CharSet, Callable[[str], bytes]]]:
        """Yields characters that the pending bytes can become, and how the missing bytes of each are written."""
        pending, have = self._pending, len(self._pending)
        if pending == b"\\":
            for chars in ("\n", "".join(_SHORT)):
                yield CharSet.of(chars), lambda char: _SHORT[char].encode()
            yield CharSet([(0, 0x1F)]), lambda char: _escaped(char)[1:]
        elif pending[:1] == b"\\":
            yield _escapes_from(pending), lambda char: _escaped(char)[have:]
        else:
            yield _utf8_from(pending), lambda char: char.encode()[have:]


def _utf8_length(first: int) -> int:
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _utf8_from(begun: bytes) -> CharSet:
    """Returns the characters whose UTF-8 begins with ``begun``. Source: RFC 3629, section 3."""
    length = _utf8_length(begun[0])
    value = begun[0] & (0x7F >> length)
    for byte in begun[1:]:
        value = value << 6 | byte & 0x3F
    missing = 6 * (length - len(begun))
    shortest_form = (0, 0, 0x80, 0x800, 0x10000)[length]
    return CharSet([(max(value << missing, shortest_form), min(((value + 1) << missing) - 1, 0x10FFFF))])


def _escaped(char: str) -> bytes:
    r"""Returns ``char`` as ``\uXXXX``, as two of them beyond the basic plane. Source: RFC 8259, section 7."""
    units = char.encode("utf-16-be").hex()
    return b"".join(f"\\u{units[at : at + 4]}".encode() for at in range(0, len(units), 4))


def _escapes_from(begun: bytes) -> CharSet:
    r"""Returns the characters whose ``\uXXXX`` begins with ``begun``, in either case of its digits."""
    low, high = _filled(begun[2:6])
    ranges = [(low, high)] if len(begun) < 6 else []
    first, last = max(low, 0xD800), min(high, 0xDBFF)
    if first <= last:
        second = _filled(begun[8:12])
        low, high = max(second[0], 0xDC00), min(second[1], 0xDFFF)
        ranges.append((_paired(first, low), _paired(last, high)))
    return CharSet(ranges)


def _filled(digits: bytes) -> tuple[int, int]:
    return int(digits.ljust(4, b"0"), 16), int(digits.ljust(4, b"f"), 16)


def _paired(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)


def _unescaped(escapes: bytes) -> str:
    text = str(json.loads(b'"' + escapes + b'"', strict=False))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
