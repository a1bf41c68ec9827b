"""Output text to content and function calls, piece by piece while it arrives.

Owns: ``Call``, the parts that a piece of text is made of, and one reader for each form of output.
Knows nothing about: grammars, dialects, tokens.

The forms are plain text, the arguments of one call, and text with calls ``<function=NAME>{...}</function>`` in it. The
last is Llama 3.1's form, which the bundled model's chat template uses.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = [
    "BEGIN",
    "END",
    "ArgumentsReader",
    "Call",
    "CallDelta",
    "CallEnd",
    "CallStart",
    "Content",
    "Part",
    "PlainReader",
    "Reader",
    "TaggedReader",
]

BEGIN = "<function="
END = "</function>"


@dataclass
class Call:
    """One call, growing.

    Attributes:
        index: among the calls of its output.
        name: of the tool.
        is_custom: whether the tool is a custom one, whose input is text.
        arguments: JSON text of a function, or the input of a custom tool.
        is_complete: whether the call was written to its end.
    """

    index: int
    name: str
    is_custom: bool
    arguments: str = ""
    is_complete: bool = False
    id: str = field(default_factory=lambda: "call_" + secrets.token_hex(12))


@dataclass(frozen=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call whose name is known."""

    call: Call


@dataclass(frozen=True)
class CallDelta:
    """More of the arguments of a call."""

    call: Call
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call of which nothing more comes."""

    call: Call


Part = Content | CallStart | CallDelta | CallEnd


class Reader(Protocol):
    """Reads one output.

    Attributes:
        content: the text so far, without calls.
        calls: the calls so far.
    """

    content: str
    calls: list[Call]

    def feed(self, text: str) -> list[Part]:
        """Takes the next piece of the output; returns the parts that are certain now."""
        ...

    def finish(self) -> list[Part]:
        """Takes the end of the output, wherever it came; returns the rest."""
        ...


class PlainReader:
    """An output without calls."""

    def __init__(self) -> None:
        self.content = ""
        self.calls: list[Call] = []

    def feed(self, text: str) -> list[Part]:
        """See ``Reader``."""
        self.content += text
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """See ``Reader``."""
        return []


class ArgumentsReader:
    """An output that is the arguments of one call; its name is known before."""

    def __init__(self, name: str, is_custom: bool) -> None:
        self.content = ""
        self.calls: list[Call] = []
        self._call = Call(0, name, is_custom)

    def feed(self, text: str) -> list[Part]:
        """See ``Reader``."""
        parts: list[Part] = [] if self.calls else [CallStart(self._call)]
        self.calls = [self._call]
        self._call.arguments += text
        return [*parts, CallDelta(self._call, text)] if text else parts

    def finish(self) -> list[Part]:
        """See ``Reader``."""
        parts = self.feed("")
        self._call.is_complete = True
        return [*parts, CallEnd(self._call)]


class TaggedReader:
    """An output with any number of tagged calls. White space around calls is no content."""

    def __init__(self, tools: Mapping[str, bool]) -> None:
        """Reads calls of ``tools``, name to whether it is a custom one. Calls of other names are content."""
        self.content = ""
        self.calls: list[Call] = []
        self._tools = tools
        self._held = ""  # may be the beginning of a tag, or white space before one
        self._open: Call | None = None
        self._json = _JsonEnd()

    def feed(self, text: str) -> list[Part]:
        """See ``Reader``."""
        self._held += text
        parts: list[Part] = []
        while self._arguments(parts) if self._open else self._text(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """See ``Reader``."""
        parts: list[Part] = []
        if self._open:
            self._extend(self._open, self._held, parts)
            parts.append(CallEnd(self._open))
        elif self._held.strip() or not self.calls:
            self._say(self._held, parts)
        self._held, self._open = "", None
        return parts

    def _text(self, parts: list[Part]) -> bool:
        """Reads up to the next call; says whether to go on."""
        at = self._held.find(BEGIN)
        if at < 0:
            certain = self._held[: _certain_length(self._held, BEGIN)].rstrip()
            self._say(certain, parts)
            self._held = self._held[len(certain) :]
            return False
        close = self._held.find(">", at)
        if close < 0:
            certain = self._held[:at].rstrip()
            self._say(certain, parts)
            self._held = self._held[len(certain) :]
            return False
        name = self._held[at + len(BEGIN) : close]
        if name not in self._tools:
            self._say(self._held[: close + 1], parts)
            self._held = self._held[close + 1 :]
            return True
        self._say(self._held[:at].rstrip(), parts)
        self._open = Call(len(self.calls), name, self._tools[name])
        self._json = _JsonEnd()
        self.calls.append(self._open)
        parts.append(CallStart(self._open))
        self._held = self._held[close + 1 :]
        return True

    def _arguments(self, parts: list[Part]) -> bool:
        """Reads arguments up to their end tag; says whether to go on. A tag within a JSON string is none."""
        call = self._open
        assert call is not None
        if not call.is_custom and not self._json.is_over:
            length = self._json.feed(self._held)
            self._extend(call, self._held[:length], parts)
            self._held = self._held[length:]
            if not self._json.is_over:
                return False
        at = self._held.find(END)
        if at < 0:
            certain = _certain_length(self._held, END)
            self._extend(call, self._held[:certain], parts)
            self._held = self._held[certain:]
            return False
        self._extend(call, self._held[:at], parts)
        call.is_complete = True
        parts.append(CallEnd(call))
        self._held, self._open = self._held[at + len(END) :], None
        return True

    def _say(self, text: str, parts: list[Part]) -> None:
        if text and (self.calls and not self.content):
            text = text.lstrip()
        if text:
            self.content += text
            parts.append(Content(text))

    @staticmethod
    def _extend(call: Call, text: str, parts: list[Part]) -> None:
        if text:
            call.arguments += text
            parts.append(CallDelta(call, text))


def _certain_length(text: str, tag: str) -> int:
    """Returns how much of ``text`` cannot be the beginning of ``tag``."""
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return len(text) - next((size for size in sizes if tag.startswith(text[-size:])), 0)


class _JsonEnd:
    """Finds the end of one JSON object or array in pieces of text. A value of another type is over at once."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Returns how much of ``text`` belongs to the value."""
        for position, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"' and self._depth:
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_over = True
                    return position + 1
            elif not self._depth and not char.isspace():
                self.is_over = True
                return position
        return len(text)
