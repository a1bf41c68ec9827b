"""One sequence: its matcher, and every token that the matcher accepted.

Owns: the token history. ``rollback`` is checked against it, and undone tokens come from it.
Knows nothing about: other sequences, rows, steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from maskd import _shm
from maskd.backends.base import PIECE_TOKENS, Advance, BatchFill, Detach, Grammar, LookAhead, Matcher, in_pieces
from maskd.errors import BackendError
from maskd.grammar import WhenSlow
from maskd.sequences.result import Broken, ItemFailed
from maskd.sequences.rows import Rows
from maskd.step import Action, Status

__all__ = ["Copying", "HeldGrammar", "Late", "LateWork", "NextCall", "Sequence"]

NextCall = Callable[[], None]
"""Called before a native call of an item that makes several. The front, which looks for hangs, then times each call."""


def _no_next_call() -> None:
    """For calls that are short, or of which there is one."""


@dataclass(frozen=True, kw_only=True)
class HeldGrammar:
    """A grammar that a session holds, with the values that a step needs.

    Attributes:
        grammar_id: in the session; a mark names the grammar by it.
        grammar: the compiled grammar.
        stop_token_ids: of the grammar.
        stop_bytes: the same, packed as int32.
        batch: its backend, if rows of this grammar may be filled together with those of others; else None.
        slow: its rows are made in the slow lane from the start.
        when_slow: what happens to a sequence whose row is late.
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
        return cls(
            grammar_id=grammar_id,
            grammar=grammar,
            stop_token_ids=stop,
            stop_bytes=np.array(sorted(stop), dtype=np.int32).tobytes(),
            batch=batch,
            slow=slow,
            when_slow=when_slow,
        )

    def with_alternate(self, alternate: HeldGrammar) -> HeldGrammar:
        """Returns this grammar with another backend to switch to."""
        return replace(self, alternate=alternate)


class LateWork(Protocol):
    """A job in a lane. ``outcome`` and ``error`` may be read once ``wait`` returned True."""

    outcome: Any
    error: BaseException | None

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``; returns whether the job is done, or has failed."""

    def cancel(self) -> None:
        """Says that the outcome is not wanted any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A slow item under way, or done.

    Attributes:
        work: its job in the lane.
        sequence: the sequence being advanced; after a switch, its replacement on the other backend.
        rows: private rows: the cell of its step may be in use again when they are done.
        item: the item.
        position: tokens of the sequence before the item.
        before: the tokens before the item, if it may be moved to another backend; else None.
    """

    work: LateWork
    sequence: Sequence
    rows: Rows
    item: _shm.CheckedItem
    position: int
    before: tuple[int, ...] | None

    @property
    def created(self) -> bool:
        """Whether the item opened or forked the sequence."""
        return self.item.action != Action.ADVANCE

    @property
    def closes(self) -> bool:
        """Whether this item, which is done, closes the sequence."""
        error = self.work.error
        return error is not None and (self.created or not isinstance(error, ItemFailed) or error.closes)

    def answers(self, item: _shm.CheckedItem) -> bool:
        """Whether ``item`` only asks for the result of this one."""
        return (
            not (item.rollback or item.accept)
            and item.drafts in ((), self.item.drafts)
            and (item.row < 0 or self.item.row >= 0)
        )


@dataclass(frozen=True, slots=True)
class Copying:
    """A lane job that begins with a copy of a sequence.

    The copy is made once ``copied`` is set. It is not wanted any more once ``work`` was left out.
    """

    copied: threading.Event
    work: LateWork

    def wait(self, seconds: float) -> bool:
        """Waits for at most ``seconds``; returns whether the copied sequence is free."""
        return (self.copied.wait(seconds) if seconds > 0 else self.copied.is_set()) or self.work.wait(0)


class Sequence:
    """One sequence. It has no matcher until ``begin`` or ``begin_as_copy``.

    Attributes:
        matcher: its state in the grammar.
        held: its grammar.
        mark: its session and grammar, for the front (``maskd.ipc.progress``).
        history: every accepted token, stop token included.
        terminated: a stop token was accepted.
        slow: its items run in the slow lane.
        late: its item in the slow lane. The lane has the matcher until ``late.work`` is done; then ``late.sequence``
            takes the place of this sequence.
        copied_by: the lane job that copies the matcher, and has it until the copy is made.
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
        # Copied from ``held``: every step of every sequence reads them.
        self.advance: Callable[[int, int, int], int] | None = None
        self.stop_token_ids = held.stop_token_ids
        self.stop_bytes = held.stop_bytes
        self.batch = held.batch

    def begin(self) -> None:
        """Stands at the start of the grammar. Raises what the backend raises."""
        self._take_matcher(self.held.grammar.matcher())

    def begin_as_copy(self, source: Sequence) -> None:
        """Stands where ``source`` stands; both have the same grammar. Raises what the backend raises."""
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
        """Tokens accepted; with a late item those before it, because the lane works on the history."""
        return self.late.position if self.late else len(self.history)

    def detach(self) -> None:
        """Separates the matcher from what it shares with others, once. For the lane; raises what the backend raises."""
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
        accepted, size = 0, 1 if self._detached else PIECE_TOKENS  # a token of a slow grammar may take a second
        for piece in in_pieces(token_ids, size):
            if accepted:
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
    """Always 0: slow sequences never use the fast path."""
    return 0
