"""What may still come in an array whose items ``contains`` counts.

An item satisfies some of the conditions and not the others, which is its kind. An array stands at a place, with counts.
For each of these pairs this module works out after how many further items the array can end. It goes from the end to
the start, as dynamic programming does. Otherwise an item could be taken behind which the array can never be completed.
Owns: kinds of items, and for which lengths and counts an end is near. Knows nothing about: keywords, rules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.nodes import Node, Nodes
from maskd.json_schema.compiler.values import ArrayShape

__all__ = ["Contents", "Counts", "Kind", "Room"]

Kind = frozenset[int]
"""Which conditions of the shape an item satisfies, by number."""
Counts = tuple[int, ...]
"""How many items satisfied each condition so far; more than are asked for count as just as many."""
Room = tuple[int, "int | None"]
"""From how many to how many items; None = without limit."""
Splits = Callable[[Node, Sequence[tuple[Node, Node]]], Iterable[tuple[tuple[bool, ...], Node]]]
_MOST_STEPS = 100_000
"""Most combinations of counts and kinds."""


class Contents:
    """What may still come in arrays of one shape.

    Args:
        nodes: the arena.
        is_empty: says whether no value satisfies a node.
        splits: yields the choices, of one node of each pair, that a node allows, with what is then allowed.
        shape: of the arrays.
        longest: how many items they can have; None = without limit.

    Attributes:
        loop_at: items from here on are alike.
        most: the greatest counts that are told apart.
        is_free: whether the array can be completed whatever comes: each condition can still be satisfied often enough.
        is_known: whether it was worked out; there may be too many combinations.
    """

    def __init__(
        self, nodes: Nodes, is_empty: Callable[[Node], bool], splits: Splits, shape: ArrayShape, longest: int | None
    ) -> None:
        self._nodes, self._splits, self._shape, self._longest = nodes, splits, shape, longest
        self.loop_at = max(1, len(shape.prefix), *(contains.start for contains in shape.contains))
        self.most = [contains.low if contains.high is None else contains.high for contains in shape.contains]
        self._horizon = self.loop_at + sum(self.most) + 1
        self._kinds: dict[int, list[tuple[Kind, Node]]] = {}
        self._further: list[dict[Counts, int]] = []
        self.is_free = longest is None and not any(
            contains.high is not None or is_empty(nodes.all_of((shape.rest, contains.node)))
            for contains in shape.contains
        )
        self.is_known = self.is_free or self._is_small()
        if self.is_known and not self.is_free:
            self._work_out()

    def _is_small(self) -> bool:
        try:
            kinds = sum(len(self.kinds(index)) for index in range(self.loop_at + 1))
        except GrammarTooLargeError:
            return False
        return math.prod(most + 1 for most in self.most) * kinds <= _MOST_STEPS

    def kinds(self, index: int) -> list[tuple[Kind, Node]]:
        """Returns the kinds of item ``index``, each with what the item satisfies; alike from ``loop_at`` on.

        Raises:
            GrammarTooLargeError: there are too many.
        """
        if self._longest is not None and index >= self._longest:
            return []
        if index not in self._kinds:
            self._kinds[index] = self._kinds_at(index)
        return self._kinds[index]

    def _kinds_at(self, index: int) -> list[tuple[Kind, Node]]:
        active = [(number, one.node) for number, one in enumerate(self._shape.contains) if one.start <= index]
        cases = [(self._nodes.opposite(node), node) for _, node in active]
        return [
            (frozenset(number for (number, _), is_so in zip(active, holds, strict=True) if is_so), node)
            for holds, node in self._splits(self._shape.item(index), cases)
        ]

    def counts(self) -> Iterator[Counts]:
        """Yields every combination of counts."""
        return itertools.product(*(range(cap + 1) for cap in self.most))

    def counted(self, counts: Counts, kind: Kind) -> Counts | None:
        """Returns ``counts`` with an item of ``kind``; None if there are too many of it then."""
        found = list(counts)
        for number in kind:
            if found[number] < self.most[number]:
                found[number] += 1
            elif self._shape.contains[number].high is not None:
                return None
        return tuple(found)

    def rooms(self, index: int, counts: Counts) -> list[Room]:
        """Returns when an array can be completed that has ``index`` items and ``counts``.

        At ``loop_at``, the answer is the numbers of items that came since. Before it, such a number is 0.
        """
        if self.is_free:
            return [(0, None)]
        low = self._shape.low - index
        high = None if self._longest is None else self._longest - index
        found = []
        for least, most in _runs(self._further[index][counts], self._horizon):
            room = (0 if most is None else max(0, low - most), None if high is None else high - least)
            if (room[1] is None or room[1] >= room[0]) and (index == self.loop_at or room[0] == 0):
                found.append(room)
        return found

    # -- numbers of further items, as bits; the last bit stands for all that are not less -----------------------------

    def _work_out(self) -> None:
        every = list(self.counts())[::-1]  # counts only rise
        last: dict[Counts, int] = {}
        self._further = [last]
        for counts in every:
            found, repeats = self._ends(counts), False
            for kind, _ in self.kinds(self.loop_at):
                following = self.counted(counts, kind)
                repeats |= following == counts
                found |= self._one_more(last.get(following, 0)) if following is not None else 0
            last[counts] = -(found & -found) & self._all if repeats else found
        for index in range(self.loop_at - 1, -1, -1):
            behind, here = self._further[0], dict[Counts, int]()
            for counts in every:
                here[counts] = self._ends(counts)
                for kind, _ in self.kinds(index):
                    following = self.counted(counts, kind)
                    here[counts] |= self._one_more(behind[following]) if following is not None else 0
            self._further.insert(0, here)

    def _ends(self, counts: Counts) -> int:
        return int(all(count >= contains.low for count, contains in zip(counts, self._shape.contains, strict=True)))

    @property
    def _all(self) -> int:
        return (2 << self._horizon) - 1

    def _one_more(self, numbers: int) -> int:
        return (numbers << 1 | numbers & 1 << self._horizon) & self._all


def _runs(numbers: int, last: int) -> Iterator[Room]:
    """Yields the runs of bits that are set; one that ends with bit ``last`` has no end."""
    start = None
    for number in range(last + 2):
        is_set = numbers >> number & 1
        if is_set and start is None:
            start = number
        elif not is_set and start is not None:
            yield start, None if number > last else number - 1
            start = None
