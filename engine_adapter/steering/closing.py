"""Closing before the budget: steers an output to its end while the token budget has room for one.

Owns: when to step in, and with which token.
Knows nothing about: the loop, models, kinds of grammars (``positions``).

A position follows the output and knows the shortest text that ends it. The model chooses freely as long as that text
fits into the tokens that are left. A token after which it would not fit is replaced by the longest allowed token that
continues the text. If the row allows no such token, one of the position's substitutes is tried. If it allows none of
them either, the sampler's token is taken, and the text is worked out anew.

Every token is one that the mask allows, so an output can become plain but never invalid. If even the shortest text does
not fit, the output ends by "length", as it would without steering. Where no position follows the grammar, only the
last quarter of the budget is watched. There a stop token is taken as soon as the row allows one.

The tokens of a text are counted as if each were the longest that fits. A quarter more is kept in reserve.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine_adapter.steering.base import UNKNOWN, Position, Steering, allows
from engine_adapter.steering.positions import position_of
from maskd.errors import GrammarError
from maskd.grammar import GrammarSpec
from maskd.vocabulary import Vocabulary

__all__ = ["Closing", "ClosingVocabulary", "steering_for"]


class ClosingVocabulary:
    """The tokens of a model by their bytes; made once per model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.stop_token_ids = vocabulary.stop_token_ids
        special = frozenset(vocabulary.special_token_ids)
        self._ids = {
            token: token_id
            for token_id, token in reversed(list(enumerate(self.tokens)))
            if token and token_id not in special
        }
        self._longest = max(map(len, self._ids), default=0)
        self._longest_with: dict[bytes, int] = {}  # two bytes → bytes of the longest token that begins with them
        for token in self._ids:
            self._longest_with[token[:2]] = max(len(token), self._longest_with.get(token[:2], 0))

    def longest_start(self, text: bytes, row: NDArray[np.int32] | None = None) -> int | None:
        """Returns the longest token that ``text`` starts with and ``row`` allows; None if there is none."""
        known = text.partition(UNKNOWN)[0]
        for size in range(min(self._longest_with.get(known[:2], 1), len(known)), 0, -1):
            token_id = self._ids.get(known[:size])
            if token_id is not None and (row is None or allows(row, token_id)):
                return token_id
        return None

    def count(self, text: bytes) -> int:
        """Returns how many tokens ``text`` takes; each ``UNKNOWN`` counts as one."""
        tokens = at = 0
        while at < len(text):
            token_id = self.longest_start(text[at : at + self._longest])
            at += 1 if token_id is None else len(self.tokens[token_id])
            tokens += 1
        return tokens


class Closing(Steering, Protocol):
    """A steering that ends an output."""

    def reserve(self) -> int:
        """Returns the tokens to keep for the shortest ending, a stop token included; 0 if that is not known."""


def steering_for(spec: GrammarSpec, vocabulary: ClosingVocabulary) -> Closing:
    """Returns the steering that ends an output of ``spec`` in time. One per output.

    The source is not compiled yet. If it is malformed, or too large to be followed, its compile reports that.
    """
    stop_token_ids = spec.options.stop_token_ids or vocabulary.stop_token_ids
    try:
        position = position_of(spec)
        return _StopSoon(stop_token_ids) if position is None else _Closing(position, vocabulary, stop_token_ids)
    except (GrammarError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError):
        return _StopSoon(stop_token_ids)


class _StopSoon:
    """For grammars whose shortest ending is not known."""

    def __init__(self, stop_token_ids: tuple[int, ...]) -> None:
        self._stop_token_ids = stop_token_ids
        self._begin = 0  # stop when so many tokens are left; known with the first choice

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        self._begin = self._begin or max(1, remaining // 4)
        return _allowed_stop(row, self._stop_token_ids) if remaining <= self._begin else None

    def accept(self, token_id: int) -> None:
        """Does nothing: stopping needs no history."""

    def reserve(self) -> int:
        return 0


class _Closing:
    def __init__(self, position: Position, vocabulary: ClosingVocabulary, stop_token_ids: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        self._stop_token_ids = stop_token_ids
        self._position = position
        self._growth = 2 + position.largest_part()  # an estimate of the most that one token adds to the ending
        self._unchecked = 0  # tokens that may be taken before the ending must be worked out again

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        if drawn in self._stop_token_ids or self._has_room_for(drawn, remaining):
            return None
        if (stop := _allowed_stop(row, self._stop_token_ids)) is not None:
            return stop
        if (token_id := self._vocabulary.longest_start(self._position.ending(), row)) is not None:
            return token_id
        starts = (self._vocabulary.longest_start(bytes([byte]), row) for byte in self._position.substitutes())
        return next((token_id for token_id in starts if token_id is not None), None)

    def reserve(self) -> int:
        return self._reserve(self._position)

    def accept(self, token_id: int) -> None:
        self._position.feed(self._vocabulary.tokens[token_id])

    def _has_room_for(self, drawn: int, remaining: int) -> bool:
        """Says whether the document can still be ended in time after ``drawn``."""
        if self._unchecked > 0:
            self._unchecked -= 1
            return True
        spare = remaining - self._reserve(self._position)
        if spare > self._growth:
            self._unchecked = spare // (1 + self._growth) - 1
            return True
        after = self._position.fork()
        after.feed(self._vocabulary.tokens[drawn])
        return remaining - 1 >= self._reserve(after)

    def _reserve(self, position: Position) -> int:
        """Returns the tokens to keep for the ending from ``position``, and its stop token."""
        needed = self._vocabulary.count(position.ending()) + 1
        return needed + needed // 4 + 1


def _allowed_stop(row: NDArray[np.int32], stop_token_ids: tuple[int, ...]) -> int | None:
    return next((token_id for token_id in stop_token_ids if allows(row, token_id)), None)
