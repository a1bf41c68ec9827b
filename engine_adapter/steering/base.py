"""What steerings and positions are: a steering takes some choices from the sampler; a position follows an output.

Owns: the two interfaces, and what both need of rows and texts.
Knows nothing about: which tokens are chosen, and why; kinds of grammars.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNKNOWN", "Position", "Steering", "allows"]

UNKNOWN = b"\0"
"""In the text of an ending: one character that only the mask can know (a pattern)."""


class Steering(Protocol):
    """Takes the choice of some tokens away from the sampler."""

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """Returns the token to take instead of ``drawn``, which ``row`` must allow; None = take ``drawn``.

        Args:
            row: (row_words,) int32, read-only: bit j of word w is token 32 * w + j; 1 = allowed. All ones without a
                grammar.
            drawn: the token that the sampler drew.
            remaining: tokens left, this one included. A stop token drawn after them comes too late: the output ends by
                "length".
        """

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was taken."""


class Position(Protocol):
    """Where an output stands in its grammar.

    A position trusts its input, because the mask let it through. Its endings are estimates: the mask decides what is
    valid.
    """

    def feed(self, text: bytes) -> None:
        """Takes the next bytes of the output.

        Raises:
            ValueError: the output cannot be followed any longer, within the work that an output may cost.
        """

    def fork(self) -> Position:
        """Returns another position at the same place."""

    def ending(self) -> bytes:
        """Returns the shortest text that ends the output from here; empty if the output may end here.

        It may hold ``UNKNOWN``. Raises ValueError as ``feed`` does.
        """

    def substitutes(self) -> bytes:
        """Returns single bytes to try, in this order, where the row does not allow the ending."""

    def largest_part(self) -> int:
        """Returns an estimate of the most bytes that one token adds to the ending. It is the same at every place."""


def allows(row: NDArray[np.int32], token_id: int) -> bool:
    """Says whether ``row``, (row_words,) int32, allows ``token_id``, 0 or more."""
    return bool(int(row[token_id >> 5]) >> (token_id & 31) & 1)
