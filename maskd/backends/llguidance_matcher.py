"""Matchers and compiled grammars of llguidance.

Owns: what hides the habits of native matchers. They die of a refused or a failed token. Stop tokens do not always
    count. Rows are wrong after a rollback. All matchers of a grammar share a lexer, and each can spoil it.
Knows nothing about: how a grammar is compiled (``llguidance``), sequences, rows beyond the one it is given.
Written against llguidance 1.9.1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskd.backends.base import in_pieces
from maskd.errors import BackendError
from maskd.grammar import GrammarReport
from maskd.vocabulary import Vocabulary

__all__ = ["LlguidanceGrammar", "LlguidanceMatcher", "address_of", "first_lines"]


class LlguidanceMatcher:
    """The state of one sequence. See ``Matcher``.

    The native matcher never sees a stop token: it would record it in some states and not in others. Its end-of-sequence
    bits say whether the text is a complete match. This class keeps the stop token itself.

    The native matcher is never rolled back: its masks are wrong afterwards (docs/llguidance-rollback.md). A copy of an
    earlier native matcher replaces it and takes the remaining tokens. Drafts are walked on a copy.

    All copies of one native matcher share a lexer. If the lexer's states pass the library's limit, it refuses every
    further request of every copy, without an error. So the lexer is checked before a refusal is believed. A matcher
    whose lexer is spoiled replays on a sound one. The lexer also has a lock, so a slow matcher gets a lexer of its own:
    ``detach``.
    """

    __slots__ = (
        "_careful",
        "_checkpoint",
        "_grammar",
        "_history",
        "_native",
        "_not_text",
        "_overrides_stop",
        "_root",
        "is_terminated",
    )

    def __init__(
        self,
        grammar: LlguidanceGrammar,
        root: Any,
        native: Any,
        history: list[int],
        checkpoint: tuple[Any, int],
        is_terminated: bool,
    ) -> None:
        self._grammar = grammar
        self._root = root  # at the start, with the lexer of ``native``; only copied
        self._native = native
        self._not_text = grammar.not_text
        self._history = history
        # a native matcher and the number of tokens of the history that it took; only copied, so forks share it
        self._checkpoint = checkpoint
        self._overrides_stop = grammar.overrides_stop
        self._careful = False
        self.is_terminated = is_terminated

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        self.fill_at(address_of(row), row)

    def fill_at(self, address: int, row: NDArray[np.int32]) -> None:
        """As ``fill_bitmask``; ``address`` is that of the data of ``row``."""
        self._native.unsafe_compute_mask_ptr(address, row.nbytes)
        if self._native.is_error():  # then the row allows the stop tokens only, which is wrong
            message = first_lines(self._native.get_error())
            if self._leave_spoiled_lexer():
                self._native.unsafe_compute_mask_ptr(address, row.nbytes)
            if self._native.is_error():
                self._stand_again()
                raise BackendError(f"llguidance cannot fill a row: {message}")
        if self._overrides_stop:
            self._grammar.override_stop_bits(row, may_stop=self._native.is_accepting())

    def _stand_again(self) -> None:
        """Replaces the native matcher by one that took exactly the history."""
        for _ in range(2):
            start, count = self._checkpoint if self._checkpoint[1] <= len(self._history) else (self._root, 0)
            native = start.deep_copy()
            if all(map(native.consume_tokens, in_pieces(self._history[count:]))):
                self._native = native
                return
            self._move(self._grammar.sound_root(self._root))
        raise BackendError("llguidance refuses tokens that it took before")

    def _move(self, root: Any) -> None:
        self._root = root
        self._checkpoint = (root, 0)

    def _leave_spoiled_lexer(self) -> bool:
        """Replays on a sound lexer if this lexer is spoiled; returns whether it did."""
        if not self._grammar.is_spoiled(self._root):
            return False
        self._move(self._grammar.sound_root(self._root))
        self._stand_again()
        return True

    def detach(self) -> None:
        """See ``Detach.detach``."""
        if self._grammar.is_quick:
            self._move(self._grammar.new_root())
            self._stand_again()

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """See ``Advance.advance``.

        ``consume_token`` takes a token without trying it first, and a refused token kills the native matcher. The
        history must then be replayed. So this path is closed to the matcher after its first refusal.
        """
        if token_id in self._not_text or self.is_terminated or self._careful:
            return 0
        native = self._native
        if native.consume_token(token_id):
            if self._overrides_stop:
                self._history.append(token_id)
                return 1
            native.unsafe_compute_mask_ptr(row_address, row_bytes)
            if not native.is_error():
                self._history.append(token_id)
                return 2
        self._careful = True
        self._stand_again()
        return 0

    def accept(self, token_ids: Sequence[int]) -> int:
        """See ``Matcher.accept``."""
        if self.is_terminated:
            return 0
        text = token_ids
        for index, token_id in enumerate(token_ids):
            if token_id in self._not_text:
                text = token_ids[:index]
                break
        accepted: int = 0
        if text:
            accepted = self._native.try_consume_tokens(text)
            if accepted < len(text) and self._leave_spoiled_lexer():
                accepted = self._native.try_consume_tokens(text)
            if accepted < len(text):
                if self._native.is_error():
                    raise BackendError(f"llguidance failed on a token: {first_lines(self._native.get_error())}")
                self._history.extend(text[:accepted])
                return accepted
            self._history.extend(text)
        if len(text) < len(token_ids) and token_ids[len(text)] in self._grammar.stop_token_ids and self._may_stop():
            self.is_terminated = True
            return accepted + 1
        return accepted

    def _may_stop(self) -> bool:
        return self._native.is_accepting() or (self._leave_spoiled_lexer() and self._native.is_accepting())

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        if token_count and self.is_terminated:
            self.is_terminated = False
            token_count -= 1
        if token_count:
            del self._history[-token_count:]
            self._stand_again()
            # An engine that rolled back will do so again, near here. The next replay then starts here.
            self._checkpoint = (self._native.deep_copy(), len(self._history))

    def fork(self) -> LlguidanceMatcher:
        """See ``Matcher.fork``."""
        native = self._native.deep_copy()
        return LlguidanceMatcher(
            self._grammar, self._root, native, self._history.copy(), self._checkpoint, self.is_terminated
        )

    look_ahead = fork
    """See ``LookAhead.look_ahead``."""


class LlguidanceGrammar:
    """A compiled grammar: a native matcher at the start, from which all others are copied. See ``Grammar``.

    Args:
        root: a native matcher at the start.
        make_root: makes another root, with a lexer of its own.
        never_text: ids that are not text: the vocabulary's stop tokens, and padding.
        names_ids: whether the grammar names token ids.
        is_quick: whether ``make_root`` is fast enough for the data path to wait for it.

    Attributes:
        canary: a token that the grammar allows at its start, and refuses only if its lexer is spoiled. None if the
            grammar allows no token but stop tokens there.
    """

    def __init__(
        self,
        root: Any,
        make_root: Callable[[], Any],
        report: GrammarReport,
        vocabulary: Vocabulary,
        stop_token_ids: Sequence[int],
        never_text: frozenset[int],
        *,
        names_ids: bool,
        is_quick: bool,
    ) -> None:
        self._make_root = make_root
        self._root = root
        self.is_quick = is_quick
        self._lock = threading.Lock()
        self.report = report
        self.canary: int | None = None
        self.stop_token_ids = frozenset(stop_token_ids or vocabulary.stop_token_ids)
        self.not_text = never_text if self.stop_token_ids <= never_text else never_text | self.stop_token_ids
        self.overrides_stop = names_ids or self.stop_token_ids != frozenset(vocabulary.stop_token_ids)
        self._default_stop = tuple(
            (token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in vocabulary.stop_token_ids
        )
        self._new_stop = tuple((token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in self.stop_token_ids)

    def matcher(self) -> LlguidanceMatcher:
        """See ``Grammar.matcher``."""
        root = self._root
        return LlguidanceMatcher(self, root, root.deep_copy(), [], (root, 0), False)

    def is_spoiled(self, root: Any) -> bool:
        """Whether the lexer of ``root``, a native matcher at the start, refuses everything."""
        return self.canary is not None and not root.deep_copy().validate_tokens([self.canary])

    def new_root(self) -> Any:
        """Returns another native matcher at the start. Raises BackendError if that would hold up the data path."""
        if not self.is_quick:
            raise BackendError(
                "llguidance passed its limit of lexer states, and the grammar takes too long to be compiled again"
            )
        return self._make_root()

    def sound_root(self, spoiled: Any) -> Any:
        """Returns the root of new matchers. Makes another first, if the root is ``spoiled`` or its lexer is.

        Raises:
            BackendError: as ``new_root``.
        """
        with self._lock:
            if self._root is spoiled or self.is_spoiled(self._root):
                self._root = self.new_root()
            return self._root

    def override_stop_bits(self, row: NDArray[np.int32], *, may_stop: bool) -> None:
        """Makes ``row`` allow this grammar's stop tokens if the text ``may_stop`` here, and no other stop token.

        Stop tokens match no text, also where a grammar names every id.
        """
        words = row.view(np.uint32)
        for word, bit in self._default_stop + self._new_stop:
            words[word] &= ~bit
        if may_stop:
            for word, bit in self._new_stop:
                words[word] |= bit


def address_of(array: NDArray[np.int32]) -> int:
    """Returns the address of the data: in 0.3 µs, where ``array.ctypes.data`` takes 0.9 µs."""
    return addressof(c_char.from_buffer(cast("memoryview", array)))


def first_lines(message: str) -> str:
    """Returns the first lines of a message of the library; the rest repeats the grammar."""
    lines = [line.strip() for line in message.replace("<non-verbose/>", "").strip().splitlines()]
    picked = [lines[0], *[line for line in lines[1:] if line.startswith("error:")]] if lines else ["no reason given"]
    return "; ".join(picked)[:300]
