"""What a steering is: it takes the choice of some tokens away from the sampler, within what the row allows.

Knows nothing about: which tokens, and why.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Steering", "allows"]


class Steering(Protocol):
    """Takes the choice of some tokens away from the sampler."""

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """Returns the token to take instead of ``drawn``, which ``row`` must allow; None = take that.

        Args:
            row: (row_words,) int32, read-only: bit j of word w is token 32 * w + j; 1 = allowed. All ones without a
                grammar.
            drawn: by the sampler.
            remaining: tokens left, this one included; so many and a stop token after them still end by "length".
        """

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was taken."""


def allows(row: NDArray[np.int32], token_id: int) -> bool:
    """Says whether ``row``, (row_words,) int32, allows ``token_id``, 0 or more."""
    return bool(int(row[token_id >> 5]) >> (token_id & 31) & 1)
