"""What is right: the row of a history is that of a new matcher which accepts the history in one call, and is filled
once.

Nothing of the daemon's way (rollbacks, drafts, copies, threads, gates) has a part in it. The reasoning gate is written
here once more, in the plainest way: look through the whole text for its end.
Knows nothing about: items, sequences.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskd import backends
from maskd.backends.base import Backend, Grammar, Matcher
from maskd.bitmask import allowed_token_ids, row_of, row_stride_words
from maskd.errors import BackendError
from maskd.grammar import GrammarSpec
from maskd.vocabulary import Vocabulary

__all__ = ["NotKnown", "Reference", "RightGrammar"]

Tokens = tuple[int, ...]
Row = NDArray[np.int32]
_CACHE_BYTES = 128 << 20
_LONG = 12


class NotKnown(Exception):
    """The library gives up on a token, or contradicts itself: its row allowed a token that a new matcher refuses."""


class Reference:
    """The grammars of one vocabulary, compiled in this process."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.stride = row_stride_words(vocabulary.vocab_size)
        self.token_count = len(vocabulary.tokens)
        self.stop_row = row_of(vocabulary.stop_token_ids, vocabulary.vocab_size)
        self.cache: dict[tuple[int, Tokens], Row | None] = {}
        self.contradictions = 0
        """Tokens that were forbidden by a row of xgrammar's and taken by its matcher."""
        self.cache_limit = max(256, _CACHE_BYTES // (4 * self.stride))
        self._backends: dict[str, Backend] = {}
        self._compiled: dict[GrammarSpec, Grammar] = {}
        self._right: dict[tuple[GrammarSpec, str], RightGrammar] = {}

    def grammar(self, spec: GrammarSpec, backend: str, alternate: str = "") -> RightGrammar:
        """Returns ``spec`` on ``backend``, which may move to ``alternate``."""
        key = (spec, backend)
        if key not in self._right:
            plain = dataclasses.replace(spec, backend=backend, reasoning=None, when_slow="wait")
            if plain not in self._compiled:
                if backend not in self._backends:
                    self._backends[backend] = backends.load(backend)(self.vocabulary, threads=1)
                self._compiled[plain] = self._backends[backend].compile(plain)
            other = self.grammar(spec, alternate) if alternate else None
            self._right[key] = RightGrammar(self, len(self._right), spec, backend, self._compiled[plain], other)
        return self._right[key]


class RightGrammar:
    """One grammar on one backend.

    Attributes:
        spec: as the daemon got it.
        backend: that compiled it.
        stops: its stop tokens.
        other: the same on the backend to which its sequences may move; None = they stay.
    """

    def __init__(
        self,
        reference: Reference,
        number: int,
        spec: GrammarSpec,
        backend: str,
        grammar: Grammar,
        other: RightGrammar | None,
    ) -> None:
        self.spec, self.backend, self.other = spec, backend, other
        self.stops = grammar.stop_token_ids
        self._reference, self._number, self._grammar = reference, number, grammar
        self._never = self.stops.union(reference.vocabulary.stop_token_ids)

    def __repr__(self) -> str:
        return (
            f"{self.spec.kind} {self.spec.source[:60]!r} on {self.backend}, {self.spec.options.stop_token_ids}, "
            f"{self.spec.reasoning}"
        )

    def row(self, history: Tokens) -> Row | None:
        """Returns the row after ``history``, which has not terminated; None if the library fails to make it. Raises
        NotKnown."""
        cache, key = self._reference.cache, (self._number, history)
        if key not in cache:
            if len(cache) >= self._reference.cache_limit:
                cache.clear()
            cache[key] = self._row(history)
        return cache[key]

    def allowed(self, history: Tokens) -> list[int]:
        """Returns the ids that the row after ``history`` allows, ascending."""
        row = self.row(history)
        return [] if row is None else allowed_token_ids(row).tolist()

    def terminated(self, history: Tokens) -> bool:
        """Whether ``history``, which was accepted, ended with a stop token. A gate lets none through."""
        return bool(history) and history[-1] in self.stops

    def takes(self, history: Tokens, tokens: Sequence[int]) -> int:
        """Returns how many of ``tokens`` may follow ``history``: a token may exactly where the row has its bit, and
        none may follow a
        stop token. Raises NotKnown."""
        matcher, taken = None, 0
        for token in tokens:
            text = history + tuple(tokens[:taken])
            if self.terminated(text):
                break
            # forward in one matcher: a new one each time takes too long
            if len(tokens) > _LONG and self._grammar_text(text) is not None:
                matcher = matcher or self._matcher(text)
                row = self._filled(matcher)
            else:
                row = self.row(text)
            if row is None:  # then the library's own word has to do
                if not self._matcher(text).accept((token,)):
                    break
            elif not has(row, token) and not self._is_taken_all_the_same(text, token):
                break
            if matcher is not None and not matcher.accept((token,)):
                raise NotKnown(f"{self}: the row after {text} allows {token}, and the matcher refuses it")
            taken += 1
        return taken

    def _is_taken_all_the_same(self, history: Tokens, token: int) -> bool:
        """Whether a new matcher takes a token that its row forbids. xgrammar 0.2.8 does where a rule is recursive and
        ambiguous: its rows lack tokens that reach beyond the rule. No text of the grammar is lost, and none is added:
        they are only said in other tokens."""
        vocabulary = self._reference.vocabulary
        if (
            self.backend != "xgrammar"
            or token >= len(vocabulary.tokens)
            or token in vocabulary.special_token_ids
            or token in self.stops
        ):
            return False
        if not vocabulary.tokens[token] or self._grammar_text(history) is None:
            return False
        taken = bool(self._matcher(history).accept((token,)))
        self._reference.contradictions += taken
        return taken

    def _row(self, history: Tokens) -> Row | None:
        text = self._grammar_text(history)
        return self._reasoning_row(history) if text is None else self._filled(self._matcher(history))

    def _matcher(self, history: Tokens) -> Matcher:
        """Returns a new matcher that has accepted ``history``."""
        text = self._grammar_text(history)
        assert text is not None
        matcher = self._grammar.matcher()
        try:
            accepted = matcher.accept(text)
        except BackendError as error:
            raise NotKnown(f"{self} after {history}: {error}") from None
        if accepted != len(text):
            raise NotKnown(f"{self}: a new matcher refuses token {accepted} of {text}, which rows allowed")
        return matcher

    def _filled(self, matcher: Matcher) -> Row | None:
        row = np.zeros(self._reference.stride, dtype=np.int32)
        try:
            matcher.fill_bitmask(row)
        except BackendError:
            return None
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        bits[self._reference.token_count :] = 0  # padding is no token
        return np.packbits(bits, bitorder="little").view(np.int32)

    # -- the gate ----------------------------------------------------------------------------------------------------

    def _grammar_text(self, history: Tokens) -> Tokens | None:
        """Returns what of ``history`` is the grammar's; None while it is reasoning."""
        if self.spec.reasoning is None:
            return history
        end = self.spec.reasoning.end_token_ids
        for at in range(len(end), len(history) + 1):
            if history[at - len(end) : at] == end:
                return history[at:]
        return None

    def _reasoning_row(self, history: Tokens) -> Row:
        gate = self.spec.reasoning
        assert gate is not None
        size = self._reference.vocabulary.vocab_size
        if gate.max_tokens is not None and len(history) >= gate.max_tokens:
            begun = max(
                k for k in range(len(gate.end_token_ids)) if history[len(history) - k :] == gate.end_token_ids[:k]
            )
            return row_of((gate.end_token_ids[begun],), size)
        return self._free

    @functools.cached_property
    def _free(self) -> Row:
        """What is allowed while reasoning goes on: all but stop tokens and padding."""
        return row_of(set(range(self._reference.token_count)) - self._never, self._reference.vocabulary.vocab_size)


def has(row: Row, token_id: int) -> bool:
    """Whether ``row`` allows ``token_id``."""
    return token_id >> 5 < len(row) and bool(int(row[token_id >> 5]) >> (token_id & 31) & 1)
