"""What the ends of objects and arrays have in common.

An end remembers what is there of a value of its shape, in a form of its own.
Knows nothing about: which shapes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from maskd.json_schema.compiler.nodes import Node

__all__ = ["ShapeEnd", "Option"]


@dataclass(frozen=True, slots=True)
class Option:
    """What one value of an object or array may be.

    Attributes:
        node: what it satisfies then.
        marks: what is true then: events of an object, numbers of the ``contains`` of an array.
    """

    node: Node
    marks: tuple[object, ...]


class ShapeEnd(Protocol):
    """What an object or array of one shape still needs.

    Attributes:
        start: what is remembered where nothing is there.
        needs_text: whether the texts of values matter; else any may be given.
    """

    start: Any
    needs_text: bool

    def options(self, seen: Any, key: str) -> list[Option]:
        """Returns what the next value behind ``seen`` may be, the member ``key``; empty if there can be none.

        Raises:
            GrammarTooLargeError: there are too many.
        """

    def parts(self) -> Iterator[Node]:
        """Yields what its values satisfy, wherever they stand."""

    def after(self, seen: Any, key: str, text: bytes, marks: Iterable[object]) -> Any:
        """Returns what is remembered behind one more value: the member ``key``, or an item. ``text`` is the value."""

    def rest(self, seen: Any) -> list[bytes] | None:
        """Returns the members or items of the fewest bytes with which the value may close behind ``seen``.

        None: it cannot, or not within ``MOST_BYTES``.
        """
