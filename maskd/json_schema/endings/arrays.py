"""What an array of one shape still needs: its shortest further items.

Without ``contains`` that is one item after another, up to the least number. With it, an item may satisfy what is
counted or not, and what that costs differs. So the fewest bytes are a shortest path through the counts.
Where items are to differ, each is the shortest that was not there.
Knows nothing about: bytes that were read, other shapes.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import ArrayShape
from maskd.json_schema.endings.ends import Option
from maskd.json_schema.endings.strings import MOST_BYTES

__all__ = ["ArrayEnd"]

_MOST_DIFFERENT = 48
"""Items from which a further one is kept different."""


@dataclass(frozen=True, slots=True)
class SeenItems:
    """Items that are there.

    Attributes:
        count: how many they are.
        matched: how many of them satisfy each ``contains`` of the shape.
        values: the items, as constants, if they are to differ.
    """

    count: int
    matched: tuple[int, ...]
    values: tuple[Node, ...] = ()


class ArrayEnd:
    """One shape. See ``ShapeEnd``.

    Args:
        reader: what nodes allow.
        shape: the shape.
        document: the shortest document of a node; None = there is none.
    """

    def __init__(self, reader: SchemaReader, shape: ArrayShape, document: Callable[[Node], bytes | None]) -> None:
        self._reader, self.shape, self._document = reader, shape, document
        self.needs_text = shape.unique is True
        self.start = SeenItems(0, (0,) * len(shape.contains))

    def options(self, seen: SeenItems, key: str = "") -> list[Option]:
        """See ``ShapeEnd.options``."""
        shape, nodes = self.shape, self._reader.nodes
        if shape.high is not None and seen.count >= shape.high:
            return []
        base = shape.item(seen.count)
        if seen.values and len(seen.values) <= _MOST_DIFFERENT:
            base = nodes.all_of((base, nodes.opposite(nodes.any_of(seen.values))))
        asking = [number for number, contains in enumerate(shape.contains) if contains.start <= seen.count]
        nodes.work.spend(1 << len(asking))
        return [
            Option(nodes.all_of((base, *self._matching(asking, matched))), matched)
            for size in range(len(asking) + 1)
            for matched in itertools.combinations(asking, size)
            if not any(self._is_full(number, seen) for number in matched)
        ]

    def _matching(self, asking: list[int], matched: tuple[int, ...]) -> list[Node]:
        """Returns what an item satisfies that is counted by ``matched`` and, where there is a limit, by no other."""
        found = []
        for number in asking:
            contains = self.shape.contains[number]
            if number in matched:
                found.append(contains.node)
            elif contains.high is not None:
                found.append(self._reader.nodes.opposite(contains.node))
        return found

    def _is_full(self, number: int, seen: SeenItems) -> bool:
        high = self.shape.contains[number].high
        return high is not None and seen.matched[number] >= high

    def parts(self) -> Iterator[Node]:
        """See ``ShapeEnd.parts``."""
        yield from (*self.shape.prefix, self.shape.rest)

    def after(self, seen: SeenItems, key: str, text: bytes, marks: Iterable[object]) -> SeenItems:
        """See ``ShapeEnd.after``."""
        matched = set(marks)
        counts = tuple(count + (number in matched) for number, count in enumerate(seen.matched))
        values = (*seen.values, self._reader.nodes.constant(json.loads(text))) if self.needs_text else ()
        return SeenItems(seen.count + 1, counts, values)

    def rest(self, seen: SeenItems) -> list[bytes] | None:
        """See ``ShapeEnd.rest``."""
        if self.shape.high is not None and seen.count > self.shape.high:
            return None
        if self.needs_text:
            return self._one_by_one(seen)
        if not self.shape.contains:
            return self._alike(seen.count)
        return self._path(seen)

    def _missing(self, seen: SeenItems) -> bool:
        contains = zip(self.shape.contains, seen.matched, strict=True)
        return seen.count < self.shape.low or any(one.low > count for one, count in contains)

    def _alike(self, count: int) -> list[bytes] | None:
        shape, found, size = self.shape, list[bytes](), 0
        if shape.high is not None and shape.high < shape.low:
            return None
        for index in range(count, shape.low):
            self._reader.nodes.work.spend(index % 2)
            item = self._document(shape.item(index))
            if item is None or (size := size + 1 + len(item)) > MOST_BYTES:
                return None
            found.append(item)
        return found

    def _one_by_one(self, seen: SeenItems) -> list[bytes] | None:
        """Takes the shortest item again and again, one that is counted first while one is missing."""
        found: list[bytes] = []
        while self._missing(seen):
            missing = {number for number, one in enumerate(self.shape.contains) if one.low > seen.matched[number]}
            texts = [
                (option, text) for option in self.options(seen) if (text := self._document(option.node)) is not None
            ]
            if not texts or len(found) > _MOST_DIFFERENT:
                return None
            option, text = min(texts, key=lambda entry: (-len(missing.intersection(entry[0].marks)), len(entry[1])))
            found.append(text)
            seen = self.after(seen, "", text, option.marks)
        return found

    def _path(self, seen: SeenItems) -> list[bytes] | None:
        waiting: list[tuple[int, int, SeenItems, list[bytes]]] = [(0, 0, seen, [])]
        reached, number = set[tuple[int, tuple[int, ...]]](), 0
        while waiting:
            size, _, seen, items = heapq.heappop(waiting)
            if not self._missing(seen):
                return items
            if (seen.count, seen.matched) in reached or size > MOST_BYTES:
                continue
            reached.add((seen.count, seen.matched))
            self._reader.nodes.work.spend(5 + len(items) // 16)
            for option in self.options(seen):
                if (text := self._document(option.node)) is not None:
                    number += 1
                    after = self.after(seen, "", text, option.marks)
                    heapq.heappush(waiting, (size + 1 + len(text), number, after, [*items, text]))
        return None
