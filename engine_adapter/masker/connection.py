"""The lease: one session with the daemon, which can be had again after the daemon, or its worker, died.

Owns: the client, the session, the grammars that the session holds, and the replay of sequences into a new session.
Knows nothing about: steps, rows, and when a session counts as lost; ``masker.py`` decides that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from engine_adapter.masker.late_rows import await_late
from maskd.client import Client, Grammar, Session
from maskd.errors import (
    CapacityError,
    DeadlineError,
    DrainingError,
    MaskdError,
    NotFoundError,
    ProtocolError,
    StepOrderError,
    UnavailableError,
)
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary

__all__ = ["MAY_COME_BACK", "SESSION_LOST", "Lease", "Transport"]

Transport = Literal["auto", "shm", "inline"]
SESSION_LOST = (UnavailableError, DrainingError, DeadlineError, ProtocolError, StepOrderError)
"""Errors of a step after which its session is of no use."""
MAY_COME_BACK = (*SESSION_LOST, NotFoundError, CapacityError)
"""Errors on the way to a new session that may be over a moment later: the old one may still count, the daemon may be
starting."""

_REPLAY_TOKENS = 4096
_IDLE_GRAMMARS = 64


class Lease:
    """A session and what it holds. Not thread-safe, but for ``session.create_grammar``.

    Attributes:
        session: the present one; before the first ``renew``, None.
        grammars: those that the present session holds.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        vocabulary: Vocabulary,
        *,
        row_capacity: int,
        transport: Transport,
        spin_seconds: float,
        slow_seconds: float,
        step_seconds: float,
    ) -> None:
        self.session: Session | None = None
        self.grammars: dict[GrammarSpec, Grammar] = {}
        self._connect = connect
        self._vocabulary = vocabulary
        self._row_capacity = row_capacity
        self._transport: Transport = transport
        self._spin_seconds = spin_seconds
        self._slow_seconds = slow_seconds
        self._step_seconds = step_seconds
        self._client: Client | None = None

    def renew(self, specs: Iterable[GrammarSpec]) -> dict[GrammarSpec, MaskdError]:
        """Replaces the session by a new one that holds ``specs``; returns those that are refused now, and why.

        Raises:
            one of ``MAY_COME_BACK``: try again later. VocabularyMismatchError, PermissionDeniedError, ...: do not.
        """
        self.drop()
        self._client = self._connect()
        self.session = self._client.open_session(
            self._client.upload_vocabulary(self._vocabulary),
            vocab_size=self._vocabulary.vocab_size,
            # An item needs no row to end its sequence: room for those that leave in the step in which others join.
            row_capacity=self._row_capacity + max(16, self._row_capacity // 4),
            transport=self._transport,
            spin_seconds=self._spin_seconds,
        )
        refused: dict[GrammarSpec, MaskdError] = {}
        for spec in specs:
            try:
                self.grammars[spec] = self.session.create_grammar(spec)
            except MAY_COME_BACK:
                raise
            except MaskdError as error:  # for instance quarantined, because it killed the worker
                refused[spec] = error
        return refused

    def replay(self, histories: Mapping[int, tuple[GrammarSpec, Sequence[int]]]) -> dict[int, MaskdError]:
        """Opens every sequence of ``histories`` and lets it accept its tokens; returns those that failed, and why.

        Raises:
            one of ``MAY_COME_BACK``: the new session is lost as well.
        """
        if self.session is None:
            raise UnavailableError("there is no session")
        failed: dict[int, MaskdError] = {}
        for items in self._replay_steps(histories):
            reply = self.session.step(items, timeout_seconds=self._step_seconds)
            _, results = await_late(
                self.session, items, reply, slow_seconds=self._slow_seconds, step_seconds=self._step_seconds
            )
            for item, result in zip(items, results, strict=True):
                if error := result.error():
                    failed.setdefault(item.sequence_id, error)
        return failed

    def grammar_id(self, spec: GrammarSpec) -> int:
        """Returns the number of ``spec`` in the present session, which must hold it."""
        return self.grammars[spec].grammar_id

    def forget_idle(self, in_use: set[GrammarSpec]) -> None:
        """Lets the daemon drop grammars that no sequence uses, once there are many; the oldest first."""
        idle = [spec for spec in self.grammars if spec not in in_use]
        for spec in idle[: max(0, len(idle) - _IDLE_GRAMMARS)]:
            grammar = self.grammars.pop(spec)
            if self.session is not None:
                with contextlib.suppress(MaskdError):
                    self.session.delete_grammar(grammar.grammar_id)

    def drop(self) -> None:
        """Closes session and client. Safe to repeat."""
        for held in (self.session, self._client):
            if held is not None:
                with contextlib.suppress(MaskdError):
                    held.close()
        self.session = self._client = None
        self.grammars = {}

    def _replay_steps(self, histories: Mapping[int, tuple[GrammarSpec, Sequence[int]]]) -> Iterator[list[Item]]:
        """Yields steps of few enough items and tokens for any session; a long history takes several."""
        items: list[Item] = []
        room = _REPLAY_TOKENS
        for handle, (spec, history) in histories.items():
            action, done = Action.OPEN, 0
            while action == Action.OPEN or done < len(history):
                piece = history[done : done + room]
                items.append(Item(handle, action, grammar_id=self.grammars[spec].grammar_id, accept=piece))
                action, done, room = Action.ADVANCE, done + len(piece), room - len(piece)
                if room == 0 or len(items) == self._row_capacity:
                    yield items
                    items, room = [], _REPLAY_TOKENS
        if items:
            yield items
