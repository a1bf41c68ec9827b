"""The connection: one session with the daemon, which is opened again after the daemon, or its worker, died.

Owns: the client, the session, the grammars that the session holds, and the replay of sequences into a new session.
Knows nothing about: planning steps, and when a session counts as lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from engine_adapter.masker.late_rows import StepAnswer, await_late
from maskd.client import Client, Grammar, Session, Transport
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

__all__ = ["MAY_COME_BACK", "SESSION_LOST", "Connection"]

SESSION_LOST = (UnavailableError, DrainingError, DeadlineError, ProtocolError, StepOrderError)
"""Errors of a step after which its session is of no use."""
MAY_COME_BACK = (*SESSION_LOST, NotFoundError, CapacityError)
"""Errors on the way to a new session that may be over a moment later: the old session may still count against a limit,
the daemon may be starting."""

_REPLAY_TOKENS = 4096
_IDLE_GRAMMARS = 64


class Connection:
    """A session and what it holds. Not thread-safe, but for ``session.create_grammar`` and ``grammar_of``.

    Attributes:
        session: the present one; None before the first ``renew`` and after ``drop``.
        item_capacity: items of one step.
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
        """See ``Masker`` for the arguments. Opens nothing yet."""
        self.session: Session | None = None
        self._grammars: dict[GrammarSpec, Grammar] = {}
        self._connect = connect
        self._vocabulary = vocabulary
        self._row_capacity = row_capacity
        # An item needs no row to end its sequence: room for those that leave in the step in which others join.
        self.item_capacity = row_capacity + max(16, row_capacity // 4)
        self._transport: Transport = transport
        self._spin_seconds = spin_seconds
        self._slow_seconds = slow_seconds
        self._step_seconds = step_seconds
        self._client: Client | None = None

    @property
    def present(self) -> Session:
        """The present session. Raises UnavailableError: there is none."""
        if self.session is None:
            raise UnavailableError("there is no session")
        return self.session

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
            row_capacity=self._row_capacity,
            item_capacity=self.item_capacity,
            transport=self._transport,
            spin_seconds=self._spin_seconds,
        )
        refused: dict[GrammarSpec, MaskdError] = {}
        for spec in specs:
            try:
                self._grammars[spec] = self.session.create_grammar(spec)
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
        failed: dict[int, MaskdError] = {}
        for items in self._replay_steps(histories):
            self.present.submit(items)
            for item, result in zip(items, self.collect(items).results, strict=True):
                if error := result.error():
                    failed.setdefault(item.sequence_id, error)
        return failed

    def collect(self, items: Sequence[Item]) -> StepAnswer:
        """Waits for the answer to ``items``, which the present session was sent, late rows included.

        Raises:
            one of ``SESSION_LOST``: there will be no answer.
        """
        reply = self.present.collect(timeout_seconds=self._step_seconds)
        if reply.ok:
            return StepAnswer(reply.rows, True, lambda: reply.results)
        return await_late(self.present, items, reply, slow_seconds=self._slow_seconds, step_seconds=self._step_seconds)

    def hold(self, spec: GrammarSpec, grammar: Grammar, in_use: set[GrammarSpec]) -> None:
        """Notes that the present session holds ``grammar``. Once many are held, drops the oldest not in ``in_use``."""
        self._grammars[spec] = grammar
        idle = [each for each in self._grammars if each != spec and each not in in_use]
        for each in idle[: max(0, len(idle) - _IDLE_GRAMMARS)]:
            dropped = self._grammars.pop(each)
            with contextlib.suppress(MaskdError):
                self.present.delete_grammar(dropped.grammar_id)

    def grammar_of(self, spec: GrammarSpec) -> Grammar | None:
        """Returns the grammar of ``spec`` in the present session; None if the session does not hold it."""
        return self._grammars.get(spec)

    def grammar_id(self, spec: GrammarSpec) -> int:
        """Returns the number of ``spec`` in the present session, which must hold it."""
        return self._grammars[spec].grammar_id

    def drop(self) -> None:
        """Closes session and client. Safe to repeat."""
        for held in (self.session, self._client):
            if held is not None:
                with contextlib.suppress(MaskdError):
                    held.close()
        self.session = self._client = None
        self._grammars = {}

    def _replay_steps(self, histories: Mapping[int, tuple[GrammarSpec, Sequence[int]]]) -> Iterator[list[Item]]:
        """Yields steps of few enough items and tokens for any session; a long history takes several."""
        items: list[Item] = []
        room = _REPLAY_TOKENS
        for handle, (spec, history) in histories.items():
            action, done = Action.OPEN, 0
            while action == Action.OPEN or done < len(history):
                piece = history[done : done + room]
                items.append(Item(handle, action, grammar_id=self.grammar_id(spec), accept=piece))
                action, done, room = Action.ADVANCE, done + len(piece), room - len(piece)
                if room == 0 or len(items) == self._row_capacity:
                    yield items
                    items, room = [], _REPLAY_TOKENS
        if items:
            yield items
