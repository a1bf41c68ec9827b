"""The reasoning gate: a sequence may say anything until its end-of-reasoning tokens; then it follows its grammar.

Owns: ``GatedGrammar``, ``GatedMatcher``, ``GatedFill``: each wraps its counterpart of the grammar behind the gate.
Knows nothing about: text. The engine gives the end of the reasoning as token ids.

A gate is a matcher around a matcher. So everything that a sequence can do works across it: roll back, fork, drafts,
late rows, forced tokens. The end tokens are found with the automaton of Knuth, Morris and Pratt ("Fast pattern matching
in strings", 1977). Its state after each token is kept, so a rollback drops the last states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskd.backends.base import Advance, BatchFill, Detach, Grammar, Matcher
from maskd.bitmask import row_of, row_of_all_but
from maskd.grammar import ReasoningGate

__all__ = ["GatedFill", "GatedGrammar", "GatedMatcher"]


class GatedGrammar:
    """A grammar behind a gate. See ``Grammar``.

    Args:
        grammar: begins after the gate.
        gate: its end tokens are of the vocabulary, and none of them is in ``forbidden``.
        token_count: number of token ids of the vocabulary.
        vocab_size: width of the logits.
        forbidden: stop tokens: an output must not end before its grammar has begun.
    """

    def __init__(
        self, grammar: Grammar, gate: ReasoningGate, token_count: int, vocab_size: int, forbidden: frozenset[int]
    ) -> None:
        self.report = grammar.report
        self.stop_token_ids = grammar.stop_token_ids
        self.end_token_ids = gate.end_token_ids
        self.max_tokens = gate.max_tokens
        self.forbidden = forbidden
        self.token_count = token_count
        self.row = row_of_all_but(forbidden, token_count, vocab_size)
        """The row while reasoning."""
        self.row_address = self.row.ctypes.data
        self.end_rows = [row_of((token_id,), vocab_size) for token_id in gate.end_token_ids]
        """The rows once the reasoning must end: each allows the next end token only."""
        self._grammar = grammar
        self._failures = _failures(gate.end_token_ids)

    def matcher(self) -> GatedMatcher:
        """See ``Grammar.matcher``."""
        return GatedMatcher(self, self._grammar.matcher(), [], 0)

    def move(self, state: int, token_id: int) -> int:
        """Returns how many end tokens stand at the end of the text when ``token_id`` follows ``state`` of them."""
        end, failures = self.end_token_ids, self._failures
        while state and end[state] != token_id:
            state = failures[state - 1]
        return state + (end[state] == token_id)


class GatedMatcher:
    """The state of one sequence before, at and after its gate. See ``Matcher``.

    Attributes:
        inner: the matcher of the grammar; it never sees the reasoning.
        is_open: whether the end of the reasoning was accepted.
    """

    __slots__ = ("_advance", "_constrained", "_grammar", "_states", "inner", "is_open")

    def __init__(self, grammar: GatedGrammar, inner: Matcher, states: list[int], constrained: int) -> None:
        self._grammar = grammar
        self.inner = inner
        self._states = states  # of the automaton, after every token of the reasoning
        self._constrained = constrained  # tokens that ``inner`` accepted
        self.is_open = bool(states) and states[-1] == len(grammar.end_token_ids)
        self._advance = inner.advance if isinstance(inner, Advance) else None

    @property
    def is_terminated(self) -> bool:
        """See ``Matcher.is_terminated``."""
        return self.inner.is_terminated

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        if self.is_open:
            self.inner.fill_bitmask(row)
        else:
            row[:] = self._grammar.end_rows[self._state] if self._must_end else self._grammar.row

    def accept(self, token_ids: Seq[int]) -> int:
        """See ``Matcher.accept``."""
        taken = 0
        while not self.is_open and taken < len(token_ids):
            if not self._reason(token_ids[taken]):
                return taken
            taken += 1
        if taken == len(token_ids):
            return taken
        accepted = self.inner.accept(token_ids[taken:])
        self._constrained += accepted
        return taken + accepted

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        back = min(token_count, self._constrained)
        if back:
            self.inner.rollback(back)
            self._constrained -= back
        if token_count > back:
            del self._states[len(self._states) - (token_count - back) :]
            self.is_open = False

    def fork(self) -> GatedMatcher:
        """See ``Matcher.fork``."""
        return GatedMatcher(self._grammar, self.inner.fork(), self._states.copy(), self._constrained)

    look_ahead = fork
    """See ``LookAhead.look_ahead``."""

    def detach(self) -> None:
        """See ``Detach.detach``."""
        if isinstance(self.inner, Detach):
            self.inner.detach()

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """See ``Advance.advance``."""
        if not self.is_open:
            if not self._reason(token_id):
                return 0
            if self.is_open or self._must_end:
                return 1
            ctypes.memmove(row_address, self._grammar.row_address, row_bytes)
            return 2
        if self._advance is not None:
            done = self._advance(token_id, row_address, row_bytes)
        elif self.inner.is_terminated or token_id in self._grammar.stop_token_ids:
            return 0
        else:
            done = self.inner.accept((token_id,))
        self._constrained += done > 0
        return done

    @property
    def _state(self) -> int:
        return self._states[-1] if self._states else 0

    @property
    def _must_end(self) -> bool:
        limit = self._grammar.max_tokens
        return limit is not None and len(self._states) >= limit

    def _reason(self, token_id: int) -> bool:
        """Takes a token of the reasoning; returns whether it is allowed there."""
        grammar, state = self._grammar, self._state
        if (
            grammar.end_token_ids[state] != token_id
            if self._must_end
            else token_id in grammar.forbidden or token_id >= grammar.token_count
        ):
            return False
        state = grammar.move(state, token_id)
        self._states.append(state)
        self.is_open = state == len(grammar.end_token_ids)
        return True


class GatedFill:
    """Fills the rows of gated sequences of one backend. See ``BatchFill``."""

    def __init__(self, inner: BatchFill) -> None:
        self._inner = inner

    def fill_bitmasks(self, matchers: Seq[Any], rows: NDArray[np.int32], indices: Seq[int]) -> None:
        """See ``BatchFill.fill_bitmasks``. ``matchers``: each a ``GatedMatcher``."""
        constrained = []
        for matcher, index in zip(matchers, indices, strict=True):
            if matcher.is_open:
                constrained.append((matcher.inner, index))
            else:
                matcher.fill_bitmask(rows[index])
        if constrained:
            self._inner.fill_bitmasks(
                [matcher for matcher, _ in constrained], rows, [index for _, index in constrained]
            )


def _failures(pattern: Seq[int]) -> list[int]:
    """Returns for every prefix of ``pattern`` the length of its longest proper prefix that is also its suffix."""
    failures = [0] * len(pattern)
    state = 0
    for at in range(1, len(pattern)):
        while state and pattern[at] != pattern[state]:
            state = failures[state - 1]
        state += pattern[at] == pattern[state]
        failures[at] = state
    return failures
