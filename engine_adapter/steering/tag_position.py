"""Where in the text of a structural tag an output stands, and the shortest text that ends an open tag.

Owns: beginnings and ends of tags. ``JsonPosition`` reads the JSON value between them.
Knows nothing about: tokens, masks.

Contents of other kinds (regexes, grammars) are not followed. There the ending is taken to be empty, and the mask
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine_adapter.steering.json_position import MARKS, JsonPosition
from maskd.json_schema.endings.schema import SchemaEndings
from maskd.json_schema.strict_json import Json

__all__ = ["TagPosition", "tags_of"]

_MOST_TAGS, _MOST_EDGE = 256, 256  # characters


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag around a JSON value.

    Attributes:
        begin: the text that it begins with.
        ends: the texts that it may end with, the shortest first.
        schema: the endings of the value.
    """

    begin: bytes
    ends: tuple[bytes, ...]
    schema: SchemaEndings

    @property
    def shortest(self) -> bytes:
        """The shortest text from behind the beginning to the end."""
        return (self.schema.shortest.document(self.schema.root) or b"") + self.ends[0]


def tags_of(source: Any, endings_of: Callable[[Json], SchemaEndings]) -> list[Tag]:
    """Returns the tags of a parsed structural tag whose edges are text and whose content is JSON.

    Args:
        source: in any of the spellings of structural tags.
        endings_of: reads the schema of a content.
    Raises:
        ValueError: there are too many tags, or their edges are too long; each is searched for at each byte.
    """
    found = list(_found(source))
    if len(found) > _MOST_TAGS or any(len(edge) > _MOST_EDGE for begin, _, ends in found for edge in (begin, *ends)):
        raise ValueError(
            f"there are more than {_MOST_TAGS} tags, or one has an edge of more than {_MOST_EDGE} characters"
        )
    return [
        Tag(begin.encode(), tuple(sorted((end.encode() for end in ends), key=len)), endings_of(schema))
        for begin, schema, ends in found
    ]


def _found(node: Any) -> Iterator[tuple[str, Any, list[str]]]:
    if isinstance(node, list):
        for part in node:
            yield from _found(part)
    if not isinstance(node, Mapping):
        return
    begin = node.get("begin")
    content = node.get("content", {"type": "json_schema", "json_schema": node.get("schema", {})})
    if isinstance(begin, str) and "end" in node:
        ends = node["end"] if isinstance(node["end"], list) else [node["end"]]
        if (
            begin
            and isinstance(content, Mapping)
            and content.get("type") == "json_schema"
            and all(isinstance(end, str) for end in ends)
        ):
            yield begin, content.get("json_schema", {}), ends
        return
    for key, part in node.items():
        if key not in ("json_schema", "schema"):
            yield from _found(part)


class TagPosition:
    """Reads one output. See ``Position``."""

    def __init__(self, source: Any, tags: list[Tag]) -> None:
        """``source``: a parsed structural tag, which says where a tag is required; ``tags``: its ``tags_of``."""
        self._format = source.get("format", source) if isinstance(source, Mapping) else {}
        self._tags = tags
        self._longest = max((len(tag.begin) for tag in tags), default=1)
        self._has_tag = False
        self._outside = b""  # the last bytes of the text since the last tag
        self._tag: Tag | None = None  # the tag that is open
        self._value: JsonPosition | None = None  # within its value; None while its end is being read
        self._end = b""  # the part of its end that has been read

    def fork(self) -> TagPosition:
        """See ``Position.fork``."""
        other = TagPosition(self._format, self._tags)
        other._has_tag, other._outside, other._tag, other._end = self._has_tag, self._outside, self._tag, self._end
        other._value = None if self._value is None else self._value.fork()
        return other

    def feed(self, text: bytes) -> None:
        """See ``Position.feed``."""
        for byte in text:
            self._feed(bytes([byte]))

    def ending(self) -> bytes:
        """See ``Position.ending``: ends the tag that is open, or completes a tag that is begun or required."""
        if self._tag is not None:
            rest = (end[len(self._end) :] for end in self._tag.ends if end.startswith(self._end))
            return (b"" if self._value is None else self._value.ending()) + next(rest, b"")
        begun = [
            tag.begin[size:] + tag.shortest for tag in self._tags if (size := self._begun(tag)) or self._is_tag_due
        ]
        return min(begun, key=len, default=b"")

    def substitutes(self) -> bytes:
        """See ``Position.substitutes``: none outside of tags."""
        if self._tag is None:
            return b""
        return MARKS if self._value is None else self._value.substitutes()

    def largest_part(self) -> int:
        """See ``Position.largest_part``."""
        return max(len(tag.begin + tag.shortest) + tag.schema.largest for tag in self._tags)

    @property
    def _is_tag_due(self) -> bool:
        """Whether a tag must follow: one is required and none came yet, or a separator came after the last one."""
        if self._format.get("at_least_one") and not self._has_tag:
            return True
        return self._format.get("type") == "tags_with_separator" and bool(self._outside)

    def _begun(self, tag: Tag) -> int:
        """Returns how many bytes of the beginning of ``tag`` stand at the end of the text."""
        return next((size for size in range(len(tag.begin) - 1, 0, -1) if self._outside.endswith(tag.begin[:size])), 0)

    def _feed(self, byte: bytes) -> None:
        if self._tag is None:
            self._outside = (self._outside + byte)[-self._longest :]
            self._tag = next((tag for tag in self._tags if self._outside.endswith(tag.begin)), None)
            if self._tag is not None:
                self._value, self._end, self._has_tag = JsonPosition(self._tag.schema), b"", True
            return
        if self._value is not None and not (
            self._value.may_end and any(end.startswith(byte) for end in self._tag.ends)
        ):
            self._value.feed(byte)
            if not (self._value.may_end and b"" in self._tag.ends):
                return
            byte = b""
        self._value = None
        self._end += byte
        if self._end in self._tag.ends:
            self._tag, self._outside = None, b""
