"""Where in a JSON document an output stands, and the shortest text that ends the document from there.

Owns: a pushdown reader of bytes, and for each open object and array the shapes that it may still have.
Knows nothing about: tokens, masks, how a schema is read (``shapes``).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine_adapter.steering.base import UNKNOWN
from engine_adapter.steering.shapes import MOST_BYTES, Shape, Shapes, literals, string_length

__all__ = ["MARKS", "JsonPosition"]

MARKS = b'}]",:0123456789tfn-{['
"""Bytes to try where a document does not go on as foreseen, outside of strings, numbers and literals."""
_SPACE = b" \t\n\r"
_BEGUN_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*(\\u[0-9a-fA-F]{0,3})$")
_HIGH_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}$")
_MOST_SHAPES = 128
"""Most shapes of one value; each token costs work for each of them."""
_Mode = Literal["value", "string", "bare", "after", "first item", "first key", "next key", "key", "colon"]


@dataclass(slots=True)
class _Open:
    """An object or array that is not closed.

    Attributes:
        shapes: the shapes that it may still have.
        keys: the keys that it has.
        key: the last of them.
        count: number of its values.
    """

    is_object: bool
    shapes: list[Shape]
    keys: set[str] = field(default_factory=set)
    key: str = ""
    count: int = 0


class JsonPosition:
    """Reads one document. See ``Position``."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._open: list[_Open] = []
        self._mode: _Mode = "value"
        self._expected = shapes.alternatives(shapes.root)  # shapes of the value that is read, or comes next
        self._read = bytearray()  # of the key, string, number or literal that is being read
        self._is_escaped = False

    @property
    def may_end(self) -> bool:
        """Whether the document is whole, or is a number or literal that may be whole."""
        return not self._open and self._mode in ("after", "bare")

    def fork(self) -> JsonPosition:
        """See ``Position.fork``."""
        other = JsonPosition(self._shapes)
        other._open = [dataclasses.replace(holder, keys=set(holder.keys)) for holder in self._open]
        other._mode, other._expected = self._mode, self._expected
        other._read, other._is_escaped = self._read[:], self._is_escaped
        return other

    def feed(self, text: bytes) -> None:
        """See ``Position.feed``."""
        for byte in text:
            self._shapes.rest()
            self._feed(byte)

    def substitutes(self) -> bytes:
        """See ``Position.substitutes``: none in a number or literal, the quote in a string."""
        return b"" if self._mode == "bare" else b'"' if self._is_in_string else MARKS

    def largest_part(self) -> int:
        """See ``Position.largest_part``."""
        return self._shapes.largest_part()

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def _is_in_string(self) -> bool:
        """Whether a string or a key is being read."""
        return self._mode in ("string", "key")

    def _feed(self, byte: int) -> None:
        if self._is_in_string:
            self._read.append(byte)
            if self._is_escaped:
                self._is_escaped = False
            elif byte == ord("\\"):
                self._is_escaped = True
            elif byte == ord('"'):
                self._end_string()
            return
        if self._mode == "bare":
            if byte not in b",]}" + _SPACE:
                self._read.append(byte)
                return
            self._end_value(bytes(self._read))
        if byte in _SPACE:
            return
        if self._mode == "colon":
            self._mode = "value"
        elif self._mode in ("first key", "next key") and byte == ord('"'):
            self._mode, self._read = "key", bytearray(b'"')
        elif byte in b"}]":
            if self._open:
                self._open.pop()
                self._end_value(None)
        elif self._mode == "after":
            self._after_comma()
        else:
            self._begin_value(byte)

    def _after_comma(self) -> None:
        if self._open:
            holder = self._open[-1]
            self._mode = "next key" if holder.is_object else "value"
            self._expected = self._below(holder, lambda shape: self._shapes.item(shape, holder.count))

    def _begin_value(self, byte: int) -> None:
        if byte in b"{[":
            is_object = byte == ord("{")
            name = "object" if is_object else "array"
            holder = _Open(is_object, [shape for shape in self._expected if shape.get("type", name) == name])
            self._open.append(holder)
            self._mode = "first key" if is_object else "first item"
            self._expected = self._below(holder, lambda shape: self._shapes.item(shape, 0))
        else:
            self._mode, self._read = "string" if byte == ord('"') else "bare", bytearray([byte])

    def _end_string(self) -> None:
        if self._mode == "string":
            self._end_value(bytes(self._read))
            return
        holder = self._open[-1]
        holder.key = str(json.loads(self._read.decode("utf-8", "replace"), strict=False))
        holder.keys.add(holder.key)
        self._mode = "colon"
        self._expected = self._below(holder, lambda shape: self._shapes.property(shape, holder.key))

    def _end_value(self, text: bytes | None) -> None:
        """Ends a value. ``text``: that of a scalar, which may rule out some shapes of its object."""
        self._mode = "after"
        if not self._open:
            return
        holder = self._open[-1]
        holder.count += 1
        if text is not None and holder.is_object and len(holder.shapes) > 1:
            holder.shapes = [
                shape for shape in holder.shapes if self._allows(self._shapes.property(shape, holder.key), text)
            ]

    def _allows(self, schema: object, text: bytes) -> bool:
        alternatives = self._shapes.alternatives(schema)
        return any(not (named := self._literals(shape)) or text in named for shape in alternatives)

    def _literals(self, shape: Shape) -> list[bytes]:
        self._shapes.spend(len(shape.get("enum") or ()) // 4)
        return literals(shape)

    def _below(self, holder: _Open, schema_of: Callable[[Shape], object]) -> list[Shape]:
        """Returns the shapes that a value in ``holder`` may have; those of any value if ``holder`` has no known shape.

        Each shape is returned once: alternatives that refer to the same schema would multiply with every level.

        Raises:
            ValueError: there are more than ``_MOST_SHAPES``.
        """
        schemas = {id(schema): schema for schema in map(schema_of, holder.shapes)}
        found = {id(shape): shape for schema in schemas.values() for shape in self._shapes.alternatives(schema)}
        if len(found) > _MOST_SHAPES:
            raise ValueError(f"a value has more than {_MOST_SHAPES} shapes")
        return list(found.values()) if holder.shapes else self._shapes.alternatives(True)

    # -- ending ----------------------------------------------------------------------------------------------------

    def ending(self) -> bytes:
        """See ``Position.ending``."""
        inner = self._open[-1] if self._open else None
        text = self._end_of_scalar()
        is_first = False
        extra: set[str] = set()
        if self._mode == "value":
            text = self._shortest_expected()
        elif self._mode == "colon":
            text = self._shapes.key_separator + self._shortest_expected()
        elif self._mode == "key" and inner is not None:
            text, key = self._end_of_key(inner)
            extra = {key}
        elif self._mode == "next key" and inner is not None:
            text, key = self._any_property(inner)
            extra = {key}
        elif self._mode == "first key":
            is_first = True
        begun = self._mode in ("value", "string", "bare")  # then the value that ``text`` ends is not counted yet
        for holder in reversed(self._open):
            self._shapes.spend(1 + len(text) // 64)
            text += self._end_of_holder(holder, holder.count + begun, holder.keys | extra, is_first)
            is_first, extra, begun = False, set(), True
            if len(text) > MOST_BYTES:
                raise ValueError(f"the shortest ending has more than {MOST_BYTES} bytes")
        return text

    def _end_of_holder(self, holder: _Open, count: int, keys: set[str], is_first: bool) -> bytes:
        if holder.is_object:
            ends = (self._shapes.end_of_object(shape, keys, is_first=is_first) for shape in holder.shapes)
            return _least(ends, b"}")
        return _least((self._shapes.end_of_array(shape, count) for shape in holder.shapes), b"]")

    def _shortest_expected(self) -> bytes:
        return _least((self._shapes.shortest(shape) for shape in self._expected), UNKNOWN)

    def _end_of_scalar(self) -> bytes:
        if self._mode not in ("string", "bare"):
            return b""
        read = bytes(self._read)
        named = [text for shape in self._expected for text in self._literals(shape)]
        if begun := [text[len(read) :] for text in named if text.startswith(read)]:
            return min(begun, key=len)
        if self._mode == "string":
            shapes = [shape for shape in self._expected if shape.get("type") == "string" and not self._literals(shape)]
            return _least((self._end_of_string(shape) for shape in shapes), self._end_of_string({}))
        for word in (b"true", b"false", b"null"):
            if word.startswith(read):
                return word[len(read) :]
        return b"0" if read[-1:] in b"-+.eE" else self._missing_digits(read)

    def _end_of_string(self, shape: Shape) -> bytes:
        length, is_known = string_length(shape)
        missing = max(0, length - len(self._read.decode("utf-8", "ignore")) + 1)
        return self._end_of_character() + (b"a" if is_known else UNKNOWN) * missing + b'"'

    def _end_of_character(self) -> bytes:
        """Returns the rest of an escape, or of the UTF-8 bytes of a character."""
        if self._is_escaped:
            return b"n"
        if (escape := _BEGUN_ESCAPE.search(self._read)) is not None:
            return b"0" * (6 - len(escape[1]))
        if _HIGH_SURROGATE.search(self._read) is not None:
            return b"\\udc00"
        for size, byte in enumerate(reversed(self._read[-3:]), 1):
            if byte >= 0xC0:
                return UNKNOWN * max(0, (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) - size)
            if byte < 0x80:
                break
        return b""

    def _missing_digits(self, read: bytes) -> bytes:
        """Returns digits that take a number over its minimum."""
        least = [len(shortest) for shape in self._expected if (shortest := self._shapes.shortest(shape)) is not None]
        return UNKNOWN * max(0, min(least, default=0) - len(read))

    def _end_of_key(self, holder: _Open) -> tuple[bytes, str]:
        """Returns the rest of the property whose key is being read, and that key."""
        read = bytes(self._read)
        known = [key for key in self._keys(holder) if _quoted(key).startswith(read)]
        if not known:
            rest = self._below(holder, lambda shape: shape.get("additionalProperties", True))
            value = _least((self._shapes.shortest(shape) for shape in rest), b"0")
            return self._end_of_character() + b'"' + self._shapes.key_separator + value, ""
        return _quoted(known[0])[len(read) :] + self._shapes.key_separator + self._value_of(holder, known[0]), known[0]

    def _any_property(self, holder: _Open) -> tuple[bytes, str]:
        """Returns the text of the next property of an object that must have one, and its key."""
        for key in self._keys(holder):
            return _quoted(key) + self._shapes.key_separator + self._value_of(holder, key), key
        return b'"a"' + self._shapes.key_separator + b"0", ""

    def _keys(self, holder: _Open) -> Sequence[str]:
        """Returns the keys that ``holder`` may still have, the required ones first."""
        self._shapes.spend(
            sum(len(shape.get("properties") or ()) + len(shape.get("required") or ()) for shape in holder.shapes) // 4
        )
        required = {key for shape in holder.shapes for key in shape.get("required") or ()}
        names = dict.fromkeys(key for shape in holder.shapes for key in shape.get("properties") or ())
        return sorted((key for key in names if key not in holder.keys), key=lambda key: key not in required)

    def _value_of(self, holder: _Open, key: str) -> bytes:
        return _least((self._shapes.shortest(self._shapes.property(shape, key)) for shape in holder.shapes), UNKNOWN)


def _quoted(key: str) -> bytes:
    return json.dumps(key, ensure_ascii=False).encode()


def _least(texts: Iterable[bytes | None], otherwise: bytes) -> bytes:
    return min((text for text in texts if text is not None), key=len, default=otherwise)
