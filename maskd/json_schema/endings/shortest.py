"""The shortest document of a node.

A document may hold another one of the same node. The shortest one does not need that. So lengths are a least fixpoint,
and what is being worked out has no document yet. Where such a node was asked about, all are worked out again until none
becomes shorter. Source: Knuth, "A generalization of Dijkstra's algorithm", 1977.
Owns: the answers, and the ends of shapes. Knows nothing about: bytes that were read.
"""

from __future__ import annotations

from collections.abc import Iterator

from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import JSON_NUMBER, spelled
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import ArrayShape, ObjectShape
from maskd.json_schema.endings.arrays import ArrayEnd
from maskd.json_schema.endings.ends import ShapeEnd
from maskd.json_schema.endings.objects import ObjectEnd
from maskd.json_schema.endings.strings import MOST_BYTES, lightest, quoted
from maskd.regular.expression import ANYTHING, Expression

__all__ = ["Shortest", "number_texts"]


class Shortest:
    """The shortest documents of one schema.

    Args:
        reader: what nodes allow.
        in_order: names come in the order of the schema.
        item_separator, key_separator: what stands between items, and between a key and its value.
    """

    def __init__(self, reader: SchemaReader, *, in_order: bool, item_separator: str, key_separator: str) -> None:
        self.reader, self._in_order = reader, in_order
        self.item_separator, self.key_separator = item_separator.encode(), key_separator.encode()
        self._known: dict[Node, bytes | None] = {}
        self._found: list[Node] = []
        self._open: set[Node] = set()
        self._is_circular = False
        self._ends: dict[int, ShapeEnd] = {}

    def document(self, node: Node) -> bytes | None:
        """Returns the shortest document of ``node``; None if there is none, or none of at most ``MOST_BYTES``.

        Raises:
            GrammarUnsupportedError, GrammarTooLargeError: a part of the schema cannot be done.
        """
        if node in self._known:
            self._is_circular |= node in self._open
            return self._known[node]
        is_first = not self._found and not self._open
        self._known[node] = None
        self._open.add(node)
        try:
            self._known[node] = self._worked_out(node)
        except BaseException:
            del self._known[node]
            raise
        finally:
            self._open.discard(node)
        self._found.append(node)
        if is_first:
            self._settle()
        return self._known[node]

    def _settle(self) -> None:
        """Works out what was found since the last time, until nothing becomes shorter."""
        while self._is_circular:
            self._is_circular = False
            for node in self._found:  # may grow
                document, known = self._worked_out(node), self._known[node]
                if document is not None and (known is None or len(document) < len(known)):
                    self._known[node], self._is_circular = document, True
        self._found.clear()

    def ends_of(self, node: Node, *, objects: bool) -> Iterator[ShapeEnd]:
        """Yields the ends of the arrays, or objects, that ``node`` allows."""
        value = self.reader.value(node)
        for shape in value.objects if objects else value.arrays:
            yield self._end_of(shape)

    def _end_of(self, shape: ArrayShape | ObjectShape) -> ShapeEnd:
        found = self._ends.get(id(shape))  # which stays that of this shape: the end holds it
        if found is None:
            if isinstance(shape, ArrayShape):
                found = ArrayEnd(self.reader, shape, self.document)
            else:
                found = ObjectEnd(
                    self.reader, shape, self.document, key_separator=self.key_separator, in_order=self._in_order
                )
            self._ends[id(shape)] = found
        return found

    def _worked_out(self, node: Node) -> bytes | None:
        self.reader.nodes.work.spend(1)
        texts = list(self._scalars(node))
        if min(map(len, texts), default=2) >= 2:  # no array or object is shorter
            texts += self._containers(node)
        return min((text for text in texts if len(text) <= MOST_BYTES), key=len, default=None)

    def _scalars(self, node: Node) -> Iterator[bytes]:
        value = self.reader.value(node)
        if (number := lightest(number_texts(value.numbers))) is not None:
            yield number.encode()
        if (string := lightest(value.strings)) is not None:
            yield quoted(string)
        yield from (word.encode() for word in ("null", "true", "false") if getattr(value, word))

    def _containers(self, node: Node) -> Iterator[bytes]:
        for opening, closing, is_object in ((b"[", b"]", False), (b"{", b"}", True)):
            for end in self.ends_of(node, objects=is_object):
                if (rest := end.rest(end.start)) is not None:
                    yield opening + self.item_separator.join(rest) + closing


def number_texts(numbers: Expression) -> Expression:
    """Returns the spellings of ``numbers``, as ``Value`` has them."""
    return JSON_NUMBER if numbers is ANYTHING else spelled(numbers)
