"""Where in a JSON document an output stands, and the shortest text that ends the document from there.

Owns: a pushdown reader of bytes.
Knows nothing about: tokens, masks, what a schema allows and what is shortest (``maskd.json_schema.endings``).
"""

from __future__ import annotations

from typing import Literal

from engine_adapter.steering.base import UNKNOWN
from maskd.errors import GrammarError
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.endings.open_values import Endings, OpenValue
from maskd.json_schema.endings.scalars import string_endings, string_satisfies, word_endings, word_satisfies
from maskd.json_schema.endings.schema import SchemaEndings
from maskd.json_schema.endings.strings import MOST_BYTES, BegunString

__all__ = ["MARKS", "JsonPosition"]

MARKS = b'}]",:0123456789tfn-{['
"""Bytes to try where a document does not go on as foreseen, outside of strings, numbers and literals."""
_SPACE = b" \t\n\r"
_Mode = Literal["value", "string", "word", "after", "first item", "first key", "next key", "key", "colon"]


class JsonPosition:
    """Reads one document. See ``Position``."""

    def __init__(self, schema: SchemaEndings) -> None:
        self._schema = schema
        self._reader = schema.shortest.reader
        self._open: list[OpenValue] = []
        self._mode: _Mode = "value"
        self._expected = [schema.root]  # what the value that is read, or comes next, may satisfy
        self._text = bytearray()
        self._begin = 0  # of the string or word that is being read, or of what stands behind the last one
        self._string = BegunString()

    @property
    def may_end(self) -> bool:
        """Whether the document is whole, or is a number or literal that may be whole."""
        return not self._open and self._mode in ("after", "word")

    def fork(self) -> JsonPosition:
        """See ``Position.fork``."""
        other = JsonPosition(self._schema)
        other._open = [value.fork() for value in self._open]
        other._mode, other._expected = self._mode, self._expected
        other._text, other._begin, other._string = self._text[:], self._begin, self._string.fork()
        return other

    def feed(self, text: bytes) -> None:
        """See ``Position.feed``."""
        try:
            for byte in text:
                self._schema.rest()
                self._text.append(byte)
                self._feed(byte)
        except GrammarError as error:
            raise ValueError(str(error)) from None

    def substitutes(self) -> bytes:
        """See ``Position.substitutes``: none in a number or literal, the quote in a string."""
        return b"" if self._mode == "word" else b'"' if self._mode in ("string", "key") else MARKS

    def largest_part(self) -> int:
        """See ``Position.largest_part``."""
        return self._schema.largest

    # -- reading ---------------------------------------------------------------------------------------------------

    def _feed(self, byte: int) -> None:
        here = len(self._text) - 1
        if self._mode in ("string", "key"):
            self._string.feed(byte)
            if self._string.is_closed:
                self._end_string(here + 1)
            return
        if self._mode == "word":
            if byte not in b",]}" + _SPACE:
                return
            self._end_value(word_satisfies(self._reader, self._word(here), self._expected), self._begin, here)
        if byte in _SPACE:
            return
        if self._mode == "colon":
            self._mode = "value"
        elif self._mode in ("first key", "next key") and byte == ord('"'):
            self._mode, self._string = "key", BegunString()
        elif byte in b"}]":
            if self._open:
                closed = self._open.pop()
                self._end_value(closed.satisfied(), closed.start, here + 1)
        elif self._mode == "after":
            self._after_comma()
        else:
            self._begin_value(byte, here)

    def _after_comma(self) -> None:
        if self._open and self._open[-1].is_object:
            self._mode = "next key"
        elif self._open:
            self._mode, self._expected = "value", self._open[-1].begin()

    def _begin_value(self, byte: int, here: int) -> None:
        if byte in b"{[":
            is_object = byte == ord("{")
            self._open.append(OpenValue(self._schema.shortest, self._expected, here, is_object=is_object))
            self._mode = "first key" if is_object else "first item"
            if not is_object:
                self._expected = self._open[-1].begin()
        else:
            self._mode, self._string = "string" if byte == ord('"') else "word", BegunString()
            self._begin = here

    def _end_string(self, end: int) -> None:
        if self._mode == "string":
            self._end_value(string_satisfies(self._reader, self._string, self._expected), self._begin, end)
        elif self._open:
            self._mode, self._begin = "colon", end
            self._expected = self._open[-1].begin(self._string.text)

    def _end_value(self, satisfied: set[Node], begin: int, end: int) -> None:
        """Ends the value that stands from ``begin`` to before ``end``."""
        self._mode, self._begin = "after", end
        if self._open:
            holder = self._open[-1]
            holder.end(satisfied, bytes(self._text[begin:end]) if holder.needs_text else b"")

    def _word(self, end: int) -> str:
        return self._text[self._begin : end].decode("ascii", "replace")

    # -- ending ----------------------------------------------------------------------------------------------------

    def ending(self) -> bytes:
        """See ``Position.ending``."""
        if self._mode == "after" and not self._open:
            return b""
        try:
            text = self._ending()
        except GrammarError as error:
            raise ValueError(str(error)) from None
        if len(text) > MOST_BYTES:
            raise ValueError(f"the shortest ending has more than {MOST_BYTES} bytes")
        return text

    def _ending(self) -> bytes:
        if self._mode in ("value", "colon", "string", "word"):
            begin = self._begin if self._mode in ("string", "word") else len(self._text)
            outer, below = self._open, self._value_endings()
        else:
            outer, begin, below = self._open[:-1], self._open[-1].start, self._open_endings(self._open[-1])
        for holder in reversed(outer):
            begun = bytes(self._text[begin:]) if holder.needs_text else b""
            below, begin = holder.endings_from_value(below, begun), holder.start
        return min(below.values(), key=len)

    def _value_endings(self) -> Endings:
        """Returns the endings of the string or word that is begun, or of a value that must come next."""
        shortest, nodes = self._schema.shortest, self._expected
        if self._mode == "string":
            return string_endings(self._reader, self._string, nodes)
        if self._mode == "word":
            return word_endings(self._reader, self._word(len(self._text)), nodes)
        gap = b""
        if self._open:
            gap = shortest.key_separator if self._open[-1].is_object else shortest.item_separator
            gap = gap if self._mode == "colon" else self._missing(gap)
        found = {node: gap + text for node in nodes if (text := shortest.document(node)) is not None}
        return found or dict.fromkeys(nodes, gap + UNKNOWN)

    def _open_endings(self, value: OpenValue) -> Endings:
        """Returns the endings of ``value``, the innermost one that is open, from outside of the values in it."""
        if self._mode == "key":
            return value.endings_from_key(self._string)
        if self._mode == "next key":
            gap = self._missing(self._schema.shortest.item_separator)
            return {node: gap + text for node, text in value.endings_from_key(None).items()}
        return value.endings(is_first=self._mode != "after")

    def _missing(self, separator: bytes) -> bytes:
        """Returns what is missing of a separator whose mark was read."""
        mark = separator.strip()
        wanted = separator[separator.find(mark) + 1 :]
        behind = bytes(self._text[self._begin :]).partition(mark)[2]
        return wanted[len(behind) :] if wanted.startswith(behind) else b""
