"""Objects and arrays that are not closed: which shapes they may still have, and how they can end.

A value is read once for all nodes that it may satisfy. When it ends, it is known which of them it does. So each shape
of an object knows which events have happened. Each shape of an array knows how many items are counted.
A mask may let through more than the schema allows. A value that has none of its shapes any more ends anyhow.
Knows nothing about: bytes that were read, white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.endings.ends import Option, ShapeEnd
from maskd.json_schema.endings.objects import ObjectEnd
from maskd.json_schema.endings.shortest import Shortest
from maskd.json_schema.endings.strings import BegunString

__all__ = ["Endings", "OpenValue"]

Endings: TypeAlias = Mapping[Node, bytes]
"""The shortest rest of a value, by the node that it then satisfies."""
_MOST_NODES = 128
"""Most nodes that one value is read for."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """One shape that the value may have.

    Attributes:
        end: of the shape.
        nodes: those that allow the shape.
        seen: what ``end`` remembers.
        options: those of the value below that is not whole.
    """

    end: ShapeEnd
    nodes: tuple[Node, ...]
    seen: Any
    options: Sequence[Option] = ()


class OpenValue:
    """An object or array that is not closed. ``begin`` and ``end`` of the values in it take turns.

    Args:
        shortest: the shortest documents.
        nodes: what it may satisfy.
        start: where its first byte stands in the text.

    Attributes:
        is_object: whether it is an object.
        start: see above.
    """

    def __init__(self, shortest: Shortest, nodes: Sequence[Node], start: int, *, is_object: bool) -> None:
        self._shortest, self._nodes, self.start, self.is_object = shortest, nodes, start, is_object
        self._close = b"}" if is_object else b"]"
        self._key = ""
        self._rests: dict[tuple[int, tuple[object, ...]], list[bytes] | None] = {}
        allowing: dict[ShapeEnd, list[Node]] = {}
        for node in nodes:
            for end in shortest.ends_of(node, objects=is_object):
                allowing.setdefault(end, []).append(node)
        self._readings = [_Reading(end, tuple(of), end.start) for end, of in allowing.items()] or self._anything()

    def fork(self) -> OpenValue:
        """Returns another one at the same place."""
        other = object.__new__(OpenValue)
        other.__dict__.update(self.__dict__)  # nothing in it is changed in place
        return other

    @property
    def needs_text(self) -> bool:
        """Whether the texts of the values in it matter; else any may be given."""
        return any(reading.end.needs_text for reading in self._readings)

    def begin(self, key: str = "") -> list[Node]:
        """Begins the member ``key``, or an item; returns what it may satisfy.

        Raises:
            ValueError: that is too much to be followed.
        """
        self._key, self._rests = key, {}
        self._readings = [
            replace(reading, options=reading.end.options(reading.seen, key)) for reading in self._readings
        ]
        nodes = list(dict.fromkeys(option.node for reading in self._readings for option in reading.options))
        if len(nodes) > _MOST_NODES:
            raise ValueError(f"a value may satisfy more than {_MOST_NODES} parts of the schema")
        return nodes or [self._shortest.reader.nodes.anything]

    def end(self, satisfied: set[Node], text: bytes) -> None:
        """Ends the value below, ``text``, which satisfies ``satisfied``."""
        kept = []
        for reading in self._readings:
            held = [option for option in reading.options if option.node in satisfied]
            if held:
                marks = [mark for option in held for mark in option.marks]
                seen = reading.end.after(reading.seen, self._key, text, marks)
                kept.append(replace(reading, seen=seen, options=()))
        self._readings = kept or self._anything()

    def satisfied(self) -> set[Node]:
        """Returns the nodes that it satisfies if it is closed here."""
        return {node for each in self._readings if each.end.rest(each.seen) == [] for node in each.nodes}

    def _anything(self) -> list[_Reading]:
        ends = self._shortest.ends_of(self._shortest.reader.nodes.anything, objects=self.is_object)
        return [_Reading(end, (), end.start) for end in ends]

    # -- ending ----------------------------------------------------------------------------------------------------

    def endings(self, *, is_first: bool) -> Endings:
        """Returns the endings from behind a value; ``is_first``: from behind the opening bracket."""
        before = [] if is_first else [b""]
        return self._least((each, self._joined(before, each.end.rest(each.seen))) for each in self._readings)

    def endings_from_value(self, below: Endings, begun: bytes) -> Endings:
        """Returns the endings from within the value below, of which ``begun`` is there, and which can end as ``below``
        says."""
        return self._least(
            (reading, self._joined([text], self._rest_behind(index, option, begun + text)))
            for index, reading in enumerate(self._readings)
            for option in reading.options
            if (text := below.get(option.node)) is not None
        )

    def _rest_behind(self, index: int, option: Option, text: bytes) -> list[bytes] | None:
        """Returns the rest behind the value below, worked out once unless the text of the value matters."""
        end, seen, key = self._readings[index].end, self._readings[index].seen, (index, option.marks)
        if end.needs_text or key not in self._rests:
            self._rests[key] = end.rest(end.after(seen, self._key, text, option.marks))
        return self._rests[key]

    def endings_from_key(self, key: BegunString | None) -> Endings:
        """Returns the endings from within the key of a member; None = its quote is not there yet."""
        return self._least(
            (each, self._joined([], each.end.rest_from_key(each.seen, key)))
            for each in self._readings
            if isinstance(each.end, ObjectEnd)
        )

    def _joined(self, before: list[bytes], rest: list[bytes] | None) -> bytes | None:
        return None if rest is None else self._shortest.item_separator.join([*before, *rest]) + self._close

    def _least(self, found: Iterable[tuple[_Reading, bytes | None]]) -> Endings:
        best: dict[Node, bytes] = {}
        otherwise: bytes | None = None
        for reading, text in found:
            if text is None:
                continue
            otherwise = text if otherwise is None else min(otherwise, text, key=len)
            for node in reading.nodes:
                best[node] = min(best.get(node, text), text, key=len)
        return best or dict.fromkeys(self._nodes, self._close if otherwise is None else otherwise)
