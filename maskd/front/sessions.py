"""The front's book of sessions: which engine holds which session, which worker serves it, and how it ends.

An engine claims a shared-memory session on the data socket, with a one-time token. The connection goes to the worker
and is the lease. An inline session has no segments: its steps go through the front (``inline_steps``). It ends when
its engine has not used it for some time.
Owns: sessions, their tokens and leases.
Knows nothing about: protobuf, listening sockets, how grammars are made (``session_grammars``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from maskd.errors import (
    CapacityError,
    DrainingError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    VocabularyMismatchError,
)
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.inline_steps import InlineSteps
from maskd.front.quarantine import Key
from maskd.front.session_grammars import SessionGrammars
from maskd.front.worker_process import Worker
from maskd.grammar import GrammarSpec
from maskd.ipc import messages
from maskd.shm import layout as lay
from maskd.shm.cells import Reply
from maskd.step import Item
from maskd.vocabulary import Vocabulary

__all__ = ["SessionRecord", "SessionBook"]

_DEFAULT_TOKENS_PER_ITEM = 64
_MIN_TOKENS = 16384
"""Room for the replay of a long sequence: a restored sequence accepts its whole history in one step."""
_REQUEST_SECONDS = 10.0
_LAST_NUMBER = (1 << 32) - 1
_LAST_SESSION_ID = (1 << 53) - 1
_log = structlog.get_logger()


@dataclass(eq=False, kw_only=True)
class SessionRecord:
    """One engine's lease.

    Attributes:
        session_id: random, and a secret: a client that knows it may use the session. 1 to 2**53 - 1, since JSON and
            JavaScript read numbers as doubles.
        number: stands for it in logs and marks.
        worker: holds it.
        engine: what the engine calls itself.
        opened: sizes of its segments.
        token: with which the engine claims it; empty once it did, and for an inline session.
        inline: its steps; None for a shared-memory session.
        used: when its engine last used it, by ``time.monotonic``.
    """

    session_id: int
    number: int
    worker: Worker
    vocabulary: Vocabulary
    engine: str
    opened: messages.SessionOpened
    layout: lay.Layout
    grammars: SessionGrammars
    token: bytes = b""
    inline: InlineSteps | None = None
    used: float = field(default_factory=time.monotonic)


class SessionBook:
    """Every session of the daemon.

    Args:
        config: the limits.
        workers: where sessions live.
        desk: admits grammars.
    """

    def __init__(self, config: Config, workers: Sequence[Worker], desk: CompileDesk) -> None:
        self._config = config
        self._desk = desk
        self._workers = workers
        self._sessions: dict[int, SessionRecord] = {}
        self._numbered: dict[int, SessionRecord] = {}
        self._next_number = 1
        self._opening: set[int] = set()
        self._emptied = asyncio.Event()
        self.draining = False

        self.claim_seconds = config.claim_seconds
        self.lease_seconds = config.lease_seconds

    def __len__(self) -> int:
        return len(self._sessions)

    def touch(self, session_id: int) -> SessionRecord:
        """Returns a session and renews its lease. Raises NotFoundError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError(
                f"no session {session_id}; it ended, open a new one", kind="session", session_id=session_id
            )
        session.used = time.monotonic()
        return session

    async def create(
        self,
        vocabulary: Vocabulary,
        *,
        vocab_size: int,
        row_capacity: int,
        item_capacity: int,
        token_capacity: int,
        sequence_capacity: int,
        inline: bool,
        engine: str,
    ) -> SessionRecord:
        """Opens a session on the least loaded worker of its vocabulary.

        Args:
            vocabulary: of the session.
            vocab_size: width of the engine's logits.
            row_capacity: rows of one step.
            item_capacity, token_capacity, sequence_capacity: 0 = the default.
            inline: the steps come in messages, not through shared memory.
            engine: what the engine calls itself, for logs.

        Raises:
            DrainingError, CapacityError, InvalidRequestError, VocabularyMismatchError, UnavailableError.
        """
        self._check_room()
        _check_width(vocabulary, vocab_size)
        self._check_capacities(row_capacity, item_capacity, token_capacity, sequence_capacity)
        items = item_capacity or max(row_capacity, 16)
        tokens = token_capacity or max(_MIN_TOKENS, items * _DEFAULT_TOKENS_PER_ITEM)
        layout = lay.Layout(vocab_size, items, row_capacity, tokens)
        worker = self._choose_worker(vocabulary.fingerprint)
        session_id, number = self._new_id(), self._next_number
        self._next_number = self._next_number % _LAST_NUMBER + 1
        message = messages.OpenSession(
            session_id=session_id,
            number=number,
            item_capacity=items,
            row_capacity=row_capacity,
            token_capacity=tokens,
            sequence_capacity=sequence_capacity or self._config.sequences_per_session,
            inline=inline,
        )
        opened = await self._open(worker, message)
        session = SessionRecord(
            session_id=session_id,
            number=number,
            worker=worker,
            vocabulary=vocabulary,
            engine=engine,
            opened=opened,
            layout=layout,
            grammars=SessionGrammars(session_id, vocabulary, worker, self._desk, self._config),
        )
        if inline:
            session.inline = InlineSteps(session_id, worker, layout, self._config.step_seconds)
        else:
            session.token = secrets.token_bytes(lay.TOKEN_BYTES)
        self._keep(session)
        return session

    def _check_room(self) -> None:
        if self.draining:
            raise DrainingError("the daemon is shutting down and takes no new session")
        limit = self._config.sessions
        if len(self._sessions) + len(self._opening) >= limit:
            raise CapacityError(f"the daemon holds its {limit} sessions", limit="sessions", value=limit)

    def _check_capacities(self, rows: int, items: int, tokens: int, sequences: int) -> None:
        most_rows, most_sequences = self._config.rows_per_session, self._config.sequences_per_session
        if not 1 <= rows <= most_rows:
            raise CapacityError(
                f"row_capacity is {rows}; give 1 to {most_rows}", limit="rows_per_session", value=most_rows
            )
        if min(items, tokens, sequences) < 0:
            raise InvalidRequestError("capacities are counts; leave them out for the defaults", field="item_capacity")
        if sequences > most_sequences:
            raise CapacityError(
                f"sequence_capacity is {sequences}; at most {most_sequences}",
                limit="sequences_per_session",
                value=most_sequences,
            )

    async def _open(self, worker: Worker, message: messages.OpenSession) -> messages.SessionOpened:
        """Has ``worker`` make a session. If the caller leaves meanwhile, the worker frees it at once."""
        self._opening.add(message.session_id)
        try:
            opened = await worker.request(message, _REQUEST_SECONDS)
        except BaseException:
            worker.send(messages.CloseSession(message.session_id))
            raise
        finally:
            self._opening.discard(message.session_id)
        assert isinstance(opened, messages.SessionOpened)
        return opened

    def _keep(self, session: SessionRecord) -> None:
        self._sessions[session.session_id] = self._numbered[session.number] = session
        session.worker.sessions.add(session.session_id)
        _log.info(
            "session opened",
            session=session.number,
            worker=session.worker.number,
            engine=session.engine,
            inline=session.inline is not None,
            rows=session.layout.row_capacity,
        )

    def _new_id(self) -> int:
        """Returns an id that no session has.

        With 256 sessions, an attacker who tries 5,000 ids a second finds one in about a hundred years.
        """
        while True:
            session_id = 1 + secrets.randbelow(_LAST_SESSION_ID)
            if session_id not in self._sessions and session_id not in self._opening:
                return session_id

    def _choose_worker(self, fingerprint: bytes) -> Worker:
        ready = [worker for worker in self._workers if worker.is_ready and worker.fingerprint == fingerprint]
        if not ready:
            raise UnavailableError("no worker is up; they are restarting, try again")
        return min(ready, key=lambda worker: len(worker.sessions))

    def claim(self, token: bytes, lease: socket.socket) -> bool:
        """Hands ``lease`` to the worker of the session with ``token``: its engine is at the other end.

        Returns whether there is such a session; else ``lease`` is left alone. A token works once.
        """
        found = None
        for session in self._sessions.values():  # all are compared: the time tells nothing
            if session.token and hmac.compare_digest(session.token, token):
                found = session
        if found is None:
            return False
        found.token = b""
        found.worker.send(messages.AttachSession(found.session_id), [lease.detach()])
        return True

    def delete(self, session_id: int) -> None:
        """Ends a session. Safe to repeat."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.worker.send(messages.CloseSession(session_id))
            self.on_closed(session_id, "the session was closed")

    def on_closed(self, session_id: int, why: str) -> None:
        """Removes a session that ended; its worker has freed it, or died."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        self._numbered.pop(session.number, None)
        session.worker.sessions.discard(session_id)
        if session.inline is not None:
            session.inline.end(why)
        _log.info("session closed", session=session.number, why=why)
        if not self._sessions:
            self._emptied.set()

    async def expire(self) -> None:
        """Ends sessions that are not claimed in time, and inline sessions that are not used. Runs until cancelled."""
        while True:
            await asyncio.sleep(min(0.5, self._config.claim_seconds / 2, self._config.lease_seconds / 2))
            now = time.monotonic()
            for session in tuple(self._sessions.values()):
                limit = math.inf
                if session.token:
                    limit = self._config.claim_seconds
                elif session.inline:
                    limit = self._config.lease_seconds
                if now - session.used > limit:
                    _log.warning("session expired", session=session.number, unclaimed=bool(session.token))
                    self.delete(session.session_id)

    async def drain(self, seconds: float) -> None:
        """Takes no new sessions, tells the engines, and waits for at most ``seconds`` until all have left."""
        self.draining = True
        for worker in self._workers:
            if worker.is_ready:
                worker.send(messages.Drain())
        self._emptied.clear()
        if self._sessions:
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), seconds)

    # -- grammars --------------------------------------------------------------------------------------------------

    async def create_grammar(
        self, session_id: int, spec: GrammarSpec, *, validate_only: bool
    ) -> tuple[int, messages.GrammarCompiled]:
        """See ``SessionGrammars.create``. Raises NotFoundError as well."""
        return await self.touch(session_id).grammars.create(spec, validate_only=validate_only)

    def delete_grammar(self, session_id: int, grammar_id: int) -> None:
        """Lets go of a grammar. Safe to repeat. Raises NotFoundError: the session ended."""
        self.touch(session_id).grammars.delete(grammar_id)

    def blame(self, calls: Iterable[tuple[int, int]], why: str) -> None:
        """Tells the desk in which calls, (number of the session, grammar id), a worker died or hung.

        Grammar 0 = a batch of the session's grammars.
        """
        keys: set[Key | None] = set()
        for number, grammar_id in calls:
            session = self._numbered.get(number)
            keys |= session.grammars.suspects(grammar_id) if session is not None else {None}
        self._desk.blame(keys, why)

    async def read(self, session_id: int) -> messages.SessionState:
        """Returns the counts of a session, from its worker."""
        session = self.touch(session_id)
        state = await session.worker.request(messages.ReadSession(session_id), _REQUEST_SECONDS)
        assert isinstance(state, messages.SessionState)
        return state

    # -- inline steps ----------------------------------------------------------------------------------------------

    async def step(self, session_id: int, step: int, items: Sequence[Item]) -> Reply:
        """Runs one step of an inline session. Sent again, the same step gives the same reply, or waits on for it.

        Raises:
            StepOrderError, CapacityError, DeadlineError, NotFoundError, UnavailableError.
        """
        session = self.touch(session_id)
        if session.inline is None:
            raise InvalidRequestError(
                f"session {session_id} steps through shared memory, not through messages", field="session_id"
            )
        try:
            return await session.inline.step(step, items)
        finally:
            session.used = time.monotonic()


def _check_width(vocabulary: Vocabulary, vocab_size: int) -> None:
    if vocab_size != vocabulary.vocab_size:
        raise VocabularyMismatchError(
            f"the engine's logits are {vocab_size} wide, the vocabulary {vocabulary.name!r} is {vocabulary.vocab_size}",
            engine=vocab_size,
            vocabulary=vocabulary.vocab_size,
        )
