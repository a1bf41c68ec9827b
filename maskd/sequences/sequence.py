"""One sequence: its matcher, and every token that the matcher accepted.

Owns: the token history (``rollback`` is checked against it, undone tokens come from it), and the two ways in which an
    item
ends early. Knows nothing about: other sequences, rows, steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from maskd import _shm
from maskd.backends.base import Advance, BatchFill, Detach, Grammar, LookAhead, Matcher
from maskd.errors import BackendError
from maskd.grammar import WhenSlow
from maskd.sequences.rows import Rows
from maskd.step import Status

__all__ = ["NOTHING", "Broken", "Copying", "HeldGrammar", "ItemFailed", "Late", "LateWork", "NextCall", "Sequence"]

NOTHING: tuple[int, ...] = ()
_PIECE_TOKENS = 16
"""Tokens of one native call. llguidance holds the interpreter for as long as it takes tokens, so a history of thousands
must not be one call: not for the data path, which waits for the interpreter, and not for the front, which looks for
hangs."""

NextCall = Callable[[], None]
"""Called before a native call of an item that makes several, so that the front, which looks for hangs, times each for
itself."""


def _no_next_call() -> None:
    """For calls that are short, or of which there is one."""


class ItemFailed(Exception):
    """Ends an item: status and details of its result; ``closes``: its sequence is gone."""

    def __init__(
        self, status: Status, index: int = -1, value: int = 0, accepted: int = 0, *, closes: bool = False
    ) -> None:
        super().__init__(status)
        self.status, self.index, self.value, self.accepted, self.closes = status, index, value, accepted, closes


class Broken(Exception):
    """The matcher cannot be trusted any more: the sequence is closed."""


@dataclass(frozen=True)
class HeldGrammar:
    """A grammar that a session holds, with what the step needs of it at hand.

    Attributes:
        grammar_id: in the session; marks say with it what a worker is busy with.
        grammar: the compiled one.
        stop_token_ids: of the grammar.
        stop_bytes: the same, packed as int32.
        batch: its backend, if that fills in batches and this grammar may be filled with others.
        slow: its rows are made in the slow lane from the start.
        when_slow: what becomes of a sequence whose row is late.
        alternate: the same grammar on another backend, for "switch".
    """

    grammar_id: int
    grammar: Grammar
    stop_token_ids: frozenset[int]
    stop_bytes: bytes
    batch: BatchFill | None
    slow: bool
    when_slow: WhenSlow
    alternate: HeldGrammar | None = None

    @classmethod
    def of(
        cls,
        grammar_id: int,
        grammar: Grammar,
        batch: BatchFill | None,
        *,
        slow: bool = False,
        when_slow: WhenSlow = "wait",
    ) -> HeldGrammar:
        """Returns ``grammar`` as a session holds it."""
        stop = grammar.stop_token_ids
        return cls(grammar_id, grammar, stop, np.array(sorted(stop), dtype=np.int32).tobytes(), batch, slow, when_slow)

    def with_alternate(self, alternate: HeldGrammar) -> HeldGrammar:
        """Returns this grammar with another backend to switch to."""
        return replace(self, alternate=alternate)


class LateWork(Protocol):
    """What a lane is doing; ``outcome`` and ``error`` are good once ``wait`` said so."""

    outcome: Any
    error: BaseException | None

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``; returns whether the job is done, or has failed."""

    def cancel(self) -> None:
        """Says that its outcome is not wanted."""


@dataclass(frozen=True, slots=True)
class Late:
    """A slow item under way, or done.

    Attributes:
        work: what the lane does for it.
        sequence: the one that it works on, which is another one once the item was moved to another backend.
        rows: rows of its own: they may come after their cell is used again.
        item: what was asked.
        position: tokens of the sequence before the item.
        created: the item opened or forked the sequence.
        before: the tokens before the item, if it may be moved.
    """

    work: LateWork
    sequence: Sequence
    rows: Rows
    item: _shm.ItemTuple
    position: int
    created: bool
    before: tuple[int, ...] | None

    @property
    def closes(self) -> bool:
        """Whether the sequence is gone with this item, which is done."""
        error = self.work.error
        return error is not None and (self.created or not isinstance(error, ItemFailed) or error.closes)

    def answers(self, item: _shm.ItemTuple) -> bool:
        """Whether ``item`` does no more than ask what became of this one."""
        _, _, _, _, _, _, rollback, row, accept, drafts, _, _ = item
        _, _, _, _, _, _, _, own_row, _, own_drafts, _, _ = self.item
        return not rollback and not accept and drafts in (NOTHING, own_drafts) and (row < 0 or own_row >= 0)


@dataclass(frozen=True, slots=True)
class Copying:
    """A lane job that begins with a copy of another sequence: over once ``copied`` is set, or once ``work`` was left
    out."""

    copied: threading.Event
    work: LateWork

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``; returns whether the other sequence is free."""
        return (self.copied.wait(seconds) if seconds > 0 else self.copied.is_set()) or self.work.wait(0)


class Sequence:
    """One sequence. It has no matcher until ``begin`` or ``begin_as_copy``.

    Attributes:
        matcher: its state in the grammar.
        held: its grammar.
        mark: for ``maskd.ipc.marker``: session and grammar.
        history: every accepted token, stop token included.
        terminated: a stop token was accepted.
        slow: its items run in the slow lane.
        late: its item in the slow lane. The lane has the matcher until ``late.work`` is done; ask ``late.sequence``
            then.
        copied_by: the lane job that copies the matcher, and has it until then.
        seen_in: the last step that had a full item for it.
        advance: ``Advance.advance`` of the matcher, if it has that.
        look_ahead: ``LookAhead.look_ahead`` of the matcher, if it has that.
    """

    __slots__ = (
        "_detached", "advance", "batch", "copied_by", "held", "history", "late", "look_ahead", "mark", "matcher",
        "seen_in", "slow", "stop_bytes", "stop_token_ids", "terminated",
    )  # fmt: skip
    matcher: Matcher

    def __init__(self, held: HeldGrammar, mark: int) -> None:
        self.held = held
        self.mark = mark
        self.history: list[int] = []
        self.terminated = False
        self.slow = False
        self.late: Late | None = None
        self.copied_by: Copying | None = None
        self.seen_in = -1
        self.look_ahead: Callable[[], Matcher] | None = None
        self._detached = False
        # At hand, because every step of every sequence looks at them.
        self.advance: Callable[[int, int, int], int] | None = None
        self.stop_token_ids = held.stop_token_ids
        self.stop_bytes = held.stop_bytes
        self.batch = held.batch

    def begin(self) -> None:
        """Stands at the start of the grammar. Raises what the backend raises."""
        self._take_matcher(self.held.grammar.matcher())

    def begin_as_copy(self, source: Sequence) -> None:
        """Stands where ``source`` stands, which has the same grammar. Raises what the backend raises."""
        self._take_matcher(source.matcher.fork())
        self.history = source.history.copy()
        self.terminated = source.terminated

    def _take_matcher(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.look_ahead = matcher.look_ahead if isinstance(matcher, LookAhead) else None
        if not self.slow:
            self.advance = matcher.advance if isinstance(matcher, Advance) else None

    @property
    def position(self) -> int:
        """Tokens accepted; those before its late item, if there is one: the lane works on the history."""
        return self.late.position if self.late else len(self.history)

    def detach(self) -> None:
        """Leaves what the matcher shares with others, once: for a sequence in the lane. Raises what the backend
        raises."""
        if not self._detached:
            self._detached = True
            if isinstance(self.matcher, Detach):
                self.matcher.detach()

    def set_quick(self) -> None:
        """Its items run on the data path again. The lane must have let go of the matcher."""
        self.slow = False
        self.advance = self.matcher.advance if isinstance(self.matcher, Advance) else None

    def set_slow(self) -> None:
        """From now on its items run in the lane."""
        self.slow, self.advance = True, _never_fast

    def take(self, token_id: int) -> int:
        """``Advance.advance`` of a matcher that has none: accepts a token that does not terminate."""
        return 0 if self.terminated or token_id in self.stop_token_ids else self.matcher.accept((token_id,))

    def accept(self, token_ids: Seq[int], next_call: NextCall = _no_next_call) -> int:
        """Accepts the longest allowed prefix and returns its length."""
        accepted, size = 0, 1 if self._detached else _PIECE_TOKENS  # a token of a slow grammar may take a second
        for at in range(0, len(token_ids), size):
            piece = token_ids[at : at + size]
            if at:
                next_call()
            try:
                taken = self.matcher.accept(piece)
            except BackendError:
                raise Broken from None
            accepted += taken
            self.history.extend(piece[:taken])
            if taken and piece[taken - 1] in self.stop_token_ids:
                self.terminated = self.matcher.is_terminated
            if taken < len(piece):
                break
        return accepted

    def accept_all(self, token_ids: Seq[int], next_call: NextCall) -> None:
        """Accepts all or none.

        Raises:
            ItemFailed: TOKEN_REJECTED or SEQUENCE_TERMINATED; the sequence is as it was.
        """
        if not token_ids:
            return
        if self.terminated:
            raise ItemFailed(Status.SEQUENCE_TERMINATED, value=len(self.history))
        accepted = self.accept(token_ids, next_call)
        if accepted < len(token_ids):
            status = Status.SEQUENCE_TERMINATED if self.terminated else Status.TOKEN_REJECTED
            value = len(self.history) if self.terminated else token_ids[accepted]
            self.rollback(accepted)
            raise ItemFailed(status, accepted, value, accepted)

    def rollback(self, token_count: int) -> list[int]:
        """Undoes the last tokens and returns them."""
        if not token_count:
            return []
        try:
            self.matcher.rollback(token_count)
        except BackendError:
            raise Broken from None
        undone = self.history[-token_count:]
        del self.history[-token_count:]
        self.terminated = False
        return undone


def _never_fast(token_id: int, row_address: int, row_bytes: int) -> int:
    """Always 0: slow sequences never take the short way."""
    return 0
