"""Reasoning before the answer: where it ends, and the steerings that end it or wait for its end.

Owns: ``ReasoningEnd``, which searches for the end among token ids, as the daemon's gate does. So an answer begins
    where its grammar does.
Knows nothing about: grammars, requests, how a model marks reasoning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine_adapter.steering.base import Steering

__all__ = ["AfterReasoning", "EndReasoning", "ReasoningEnd"]


class ReasoningEnd:
    """Searches for the end of the reasoning in one output.

    Attributes:
        is_over: whether all end tokens were accepted.
        matched: number of end tokens that stand at the end of the output so far.
    """

    def __init__(self, end_token_ids: Sequence[int]) -> None:
        self.is_over = False
        self.matched = 0
        self.end_token_ids = list(end_token_ids)
        self._held: list[int] = []

    def accept(self, token_id: int) -> list[int]:
        """Takes the next token; returns the tokens that are now certain to be reasoning, which end tokens are not."""
        self._held.append(token_id)
        end = self.end_token_ids
        self.matched = next(
            size
            for size in range(min(len(end), len(self._held)), -1, -1)
            if self._held[len(self._held) - size :] == end[:size]
        )
        self.is_over = self.matched == len(end)
        certain = self._held[: len(self._held) - self.matched]
        self._held = self._held[len(certain) :]
        return certain

    def finish(self) -> list[int]:
        """Takes the end of an output that stopped within its reasoning; returns the tokens that were held back."""
        held, self._held = self._held, []
        return [] if self.is_over else held


class AfterReasoning:
    """Begins another steering when the reasoning is over. See ``Steering``."""

    def __init__(self, inner: Steering, end_token_ids: Sequence[int]) -> None:
        self._inner = inner
        self._end = ReasoningEnd(end_token_ids)

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """See ``Steering.choose``."""
        return self._inner.choose(row, drawn, remaining) if self._end.is_over else None

    def accept(self, token_id: int) -> None:
        """See ``Steering.accept``."""
        if self._end.is_over:
            self._inner.accept(token_id)
        else:
            self._end.accept(token_id)


class EndReasoning:
    """Ends the reasoning of an output without a grammar after ``max_tokens``. See ``Steering``.

    With a grammar, the daemon's gate ends the reasoning.
    """

    def __init__(self, end_token_ids: Sequence[int], max_tokens: int) -> None:
        self._end = ReasoningEnd(end_token_ids)
        self._left = max_tokens

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """See ``Steering.choose``."""
        return None if self._end.is_over or self._left > 0 else self._end.end_token_ids[self._end.matched]

    def accept(self, token_id: int) -> None:
        """See ``Steering.accept``."""
        if not self._end.is_over:
            self._left -= 1
            self._end.accept(token_id)
