"""The tree of a pattern that was read: an expression where it has no assertion, and the assertions elsewhere.

Owns: the shapes. Knows nothing about: syntax (``reader``), what assertions mean (``assertions``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from maskd.regular.expression import Expression

__all__ = ["Either", "End", "InOrder", "Look", "Pattern", "Start", "Times"]


@dataclass(frozen=True, slots=True)
class Start:
    """``^``: nothing stands before."""


@dataclass(frozen=True, slots=True)
class End:
    """``$``: nothing stands behind."""


@dataclass(frozen=True, slots=True)
class Look:
    """``(?=inner)``, or with ``negative`` ``(?!inner)``: what follows begins, or does not begin, with ``inner``."""

    inner: Pattern
    negative: bool


@dataclass(frozen=True, slots=True)
class InOrder:
    """Parts, one behind the other; at least one of them has an assertion."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several; at least one of them has an assertion."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """A repetition of something with an assertion; ``high`` None = without limit.

    ``position``: the offset of its first character in the text of the pattern.
    """

    inner: Pattern
    low: int
    high: int | None
    position: int


Pattern: TypeAlias = Expression | Start | End | Look | InOrder | Either | Times
"""What was read: an ``Expression`` where there is no assertion in it."""
