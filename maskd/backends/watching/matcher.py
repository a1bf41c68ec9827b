"""A matcher around a matcher, which takes out of its rows what its watch does not allow.

What the grammar knows about the text, the inner matcher knows. What it cannot hold stands in a reading of the text, one
after each token. A reading is immutable, so a rollback drops the last ones and a fork copies the list.
Owns: ``WatchedGrammar`` and ``WatchedMatcher``; each wraps its counterpart.
Knows nothing about: how a reading is made, which library is inside.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskd.backends.base import Advance, Detach, Grammar, Matcher
from maskd.backends.watching.outlook import Search, outlook
from maskd.backends.watching.scanner import Reading, start
from maskd.backends.watching.tokens import WatchTokens
from maskd.errors import BackendError
from maskd.json_schema.compiler.watch import WatchedPlace

__all__ = ["WatchedGrammar", "WatchedMatcher"]


class WatchedGrammar:
    """A grammar with a watch beside it. See ``Grammar``.

    Args:
        grammar: lets too much through.
        watch: what must be watched, from the place of the document on.
        tokens: of the vocabulary.
    """

    def __init__(self, grammar: Grammar, watch: WatchedPlace, tokens: WatchTokens) -> None:
        self.report = grammar.report
        self.stop_token_ids = grammar.stop_token_ids
        self.tokens = tokens
        self._grammar, self._start = grammar, start(watch)

    def matcher(self) -> WatchedMatcher:
        """See ``Grammar.matcher``."""
        return WatchedMatcher(self, self._grammar.matcher(), [self._start])


class WatchedMatcher:
    """The state of one sequence. See ``Matcher``.

    Attributes:
        inner: the matcher of the grammar.
    """

    __slots__ = ("_advance", "_grammar", "_readings", "_tokens", "inner")

    def __init__(self, grammar: WatchedGrammar, inner: Matcher, readings: list[Reading]) -> None:
        self._grammar, self._tokens = grammar, grammar.tokens
        self.inner = inner
        self._readings = readings  # of the empty text, then one after every token
        self._advance = inner.advance if isinstance(inner, Advance) else None

    @property
    def is_terminated(self) -> bool:
        """See ``Matcher.is_terminated``."""
        return self.inner.is_terminated

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        self.inner.fill_bitmask(row)
        self._restrict(row)

    def _restrict(self, row: NDArray[np.int32]) -> None:
        """Takes out of ``row``, which the inner matcher has filled, what the watch does not allow."""
        reading, search, bits = self._readings[-1], None, row.view(np.uint32)
        is_less = False
        for token_id in set(self._tokens.worth_a_look(reading, row)):
            following = reading.after(self._tokens.texts[token_id])
            is_allowed = outlook(following) if following is not None else False
            if is_allowed is None and following is not None:
                search = search or self._search(row)
                is_allowed = search.may_follow(self.inner, token_id, following)
            if not is_allowed:
                bits[token_id >> 5] &= ~np.uint32(1 << (token_id & 31))
                is_less = True
        if is_less and not row.any():
            raise BackendError("no token is left: all values that could follow here were there already")

    def _search(self, row: NDArray[np.int32]) -> Search:
        return Search(self._tokens, np.empty_like(row), self._grammar.stop_token_ids)

    def accept(self, token_ids: Sequence[int]) -> int:
        """See ``Matcher.accept``."""
        for taken, token_id in enumerate(token_ids):
            following = self._following(token_id)
            if following is None or self.inner.accept((token_id,)) == 0:
                return taken
            self._readings.append(following)
        return len(token_ids)

    def _following(self, token_id: int) -> Reading | None:
        """Returns the reading behind ``token_id``; None = the watch does not allow it."""
        reading = self._readings[-1]
        if token_id in self._grammar.stop_token_ids or token_id >= len(self._tokens.texts):
            return reading
        following = reading.after(self._tokens.texts[token_id])
        if following is None or outlook(following) is True:
            return following
        row = np.empty(self._tokens.row_words, dtype=np.int32)
        return following if self._search(row).may_follow(self.inner, token_id, following) else None

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        self.inner.rollback(token_count)
        del self._readings[len(self._readings) - token_count :]

    def fork(self) -> WatchedMatcher:
        """See ``Matcher.fork``."""
        return WatchedMatcher(self._grammar, self.inner.fork(), self._readings.copy())

    look_ahead = fork
    """See ``LookAhead.look_ahead``."""

    def detach(self) -> None:
        """See ``Detach.detach``."""
        if isinstance(self.inner, Detach):
            self.inner.detach()

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """See ``Advance.advance``."""
        if self._advance is None or token_id in self._grammar.stop_token_ids:
            return 0
        following = self._following(token_id)
        if following is None:
            return 0
        done = self._advance(token_id, row_address, row_bytes)
        if done:
            self._readings.append(following)
        if done == 2:
            self._restrict(np.ctypeslib.as_array((ctypes.c_int32 * (row_bytes // 4)).from_address(row_address)))
        return done
