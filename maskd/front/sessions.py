"""The front's book of sessions: who holds which, which worker serves it, and how it ends.

A shared-memory session is claimed on the data socket with its one-time token; the connection goes to the worker and is
the lease. An inline session has no segments: its steps go through the front (``inline_steps``), and it ends when nobody
uses it.
Owns: sessions, their tokens and leases. Knows nothing about: protobuf, listening sockets, how grammars are made
    (``grammars``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
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

__all__ = ["Session", "SessionBook"]

_DEFAULT_TOKENS_PER_ITEM = 64
_MIN_TOKENS = 16384
"""Room for the replay of a long sequence: a restored sequence accepts its whole history in one step."""
_REQUEST_SECONDS = 10.0
_LAST_NUMBER = (1 << 32) - 1
_LAST_SESSION_ID = (1 << 53) - 1
_log = structlog.get_logger()


@dataclass(eq=False)
class Session:
    """One engine's lease.

    Attributes:
        session_id: random, 1 to 2**53 - 1, for JSON and JavaScript read numbers as doubles: whoever knows it may use
            the session.
        number: stands for it in logs and marks.
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
        self._sessions: dict[int, Session] = {}
        self._numbered: dict[int, Session] = {}
        self._next_number = 1
        self._opening: set[int] = set()
        self._emptied = asyncio.Event()
        self.draining = False

        self.claim_seconds = config.claim_seconds
        self.lease_seconds = config.lease_seconds

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: int) -> Session:
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
    ) -> Session:
        """Opens a session on the least loaded worker of its vocabulary.

        Raises:
            DrainingError, CapacityError, InvalidRequestError, VocabularyMismatchError, UnavailableError.
        """
        config = self._config
        if self.draining:
            raise DrainingError("the daemon is shutting down and takes no new session")
        if len(self._sessions) + len(self._opening) >= config.sessions:
            raise CapacityError(
                f"the daemon holds its {config.sessions} sessions", limit="sessions", value=config.sessions
            )
        if vocab_size != vocabulary.vocab_size:
            raise VocabularyMismatchError(
                f"the engine's logits are {vocab_size} wide, the vocabulary {vocabulary.name!r} is "
                f"{vocabulary.vocab_size}",
                engine=vocab_size,
                vocabulary=vocabulary.vocab_size,
            )
        if not 1 <= row_capacity <= config.rows_per_session:
            raise CapacityError(
                f"row_capacity is {row_capacity}; give 1 to {config.rows_per_session}",
                limit="rows_per_session",
                value=config.rows_per_session,
            )
        if min(item_capacity, token_capacity, sequence_capacity) < 0:
            raise InvalidRequestError("capacities are counts; leave them out for the defaults", field="item_capacity")
        if sequence_capacity > config.sequences_per_session:
            raise CapacityError(
                f"sequence_capacity is {sequence_capacity}; at most {config.sequences_per_session}",
                limit="sequences_per_session",
                value=config.sequences_per_session,
            )
        items = item_capacity or max(row_capacity, 16)
        layout = lay.Layout(
            vocab_size, items, row_capacity, token_capacity or max(_MIN_TOKENS, items * _DEFAULT_TOKENS_PER_ITEM)
        )
        worker = self._choose_worker(vocabulary.fingerprint)
        session_id, session_number = self._new_id(), self._next_number
        self._next_number = self._next_number % _LAST_NUMBER + 1
        self._opening.add(session_id)
        try:
            opened = await worker.request(
                lambda number: messages.OpenSession(
                    number,
                    session_id,
                    session_number,
                    layout.item_capacity,
                    layout.row_capacity,
                    layout.token_capacity,
                    sequence_capacity or config.sequences_per_session,
                    inline,
                ),
                _REQUEST_SECONDS,
            )
        except BaseException:  # the caller may have left while the worker was at it
            worker.send(messages.CloseSession(session_id))
            raise
        finally:
            self._opening.discard(session_id)
        assert isinstance(opened, messages.SessionOpened)
        grammars = SessionGrammars(session_id, vocabulary, worker, self._desk, config)
        session = Session(session_id, session_number, worker, vocabulary, engine, opened, layout, grammars)
        self._sessions[session_id] = self._numbered[session_number] = session
        worker.sessions.add(session_id)
        if inline:
            session.inline = InlineSteps(session_id, worker, layout, config.step_seconds)
        else:
            session.token = secrets.token_bytes(lay.TOKEN_BYTES)
        _log.info(
            "session opened",
            session=session_number,
            worker=worker.number,
            engine=engine,
            inline=inline,
            rows=row_capacity,
        )
        return session

    def _new_id(self) -> int:
        """Returns an id that no session has. With 256 sessions, who tries 5,000 ids a second meets one in a hundred
        years or so."""
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
        """Gives the session of ``token`` to the engine at the other end of ``lease``, which is handed to the worker.

        Returns whether a session waits for this token. A token works once.
        """
        found = None
        for session in self._sessions.values():  # every one is compared, so that the time tells nothing
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
        """Strikes a session that ended; the worker has freed it."""
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
        """Ends sessions that were never claimed, and inline sessions that nobody uses. Runs until cancelled."""
        while True:
            await asyncio.sleep(min(0.5, self._config.claim_seconds / 2, self._config.lease_seconds / 2))
            now = time.monotonic()
            for session in tuple(self._sessions.values()):
                limit = (
                    self._config.claim_seconds
                    if session.token
                    else self._config.lease_seconds
                    if session.inline
                    else None
                )
                if limit is not None and now - session.used > limit:
                    _log.warning("session expired", session=session.number, unclaimed=bool(session.token))
                    self.delete(session.session_id)

    async def drain(self, seconds: float) -> None:
        """Takes no new sessions, tells the engines, and waits until they have left, for at most ``seconds``."""
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
        return await self.get(session_id).grammars.create(spec, validate_only=validate_only)

    def delete_grammar(self, session_id: int, grammar_id: int) -> None:
        """Lets go of a grammar. Safe to repeat."""
        self.get(session_id).grammars.delete(grammar_id)

    def blame(self, calls: Iterable[tuple[int, int]], why: str) -> None:
        """Passes on in which calls (number of the session, grammar id) a worker died or hung; grammar 0 = several of
        the session's."""
        keys: set[Key | None] = set()
        for number, grammar_id in calls:
            session = self._numbered.get(number)
            keys |= session.grammars.suspects(grammar_id) if session is not None else {None}
        self._desk.blame(keys, why)

    async def read(self, session_id: int) -> messages.SessionState:
        """Returns the counts of a session, from its worker."""
        session = self.get(session_id)
        state = await session.worker.request(lambda number: messages.ReadSession(number, session_id), _REQUEST_SECONDS)
        assert isinstance(state, messages.SessionState)
        return state

    # -- inline steps ----------------------------------------------------------------------------------------------

    async def step(self, session_id: int, step: int, items: Sequence[Item]) -> Reply:
        """Runs one step of an inline session. The same step again gives the same reply, or goes on waiting for it.

        Raises:
            StepOrderError, CapacityError, DeadlineError, NotFoundError, UnavailableError.
        """
        session = self.get(session_id)
        if session.inline is None:
            raise InvalidRequestError(
                f"session {session_id} steps through shared memory, not through messages", field="session_id"
            )
        try:
            return await session.inline.step(step, items)
        finally:
            session.used = time.monotonic()
