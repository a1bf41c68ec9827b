"""The front's book of sessions: who holds which, which worker serves it, and how it ends.

A shared-memory session is claimed on the data socket with its one-time token; the connection goes to the worker and is
the lease. An inline session has no segments: its steps go through the front (``inline_steps``), and it ends when nobody uses it.
Owns: sessions, their tokens, leases and grammar ids. Knows nothing about: protobuf, listening sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from maskd import control
from maskd import layout as lay
from maskd.arena import Reply
from maskd.config import Config
from maskd.errors import (
    CapacityError,
    DeadlineError,
    DrainingError,
    GrammarError,
    GrammarTimeoutError,
    GrammarTooLargeError,
    GrammarUnsupportedError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    VocabularyMismatchError,
    clip,
)
from maskd.front.compiles import CompileDesk
from maskd.front.inline_steps import InlineSteps
from maskd.front.quarantine import Key
from maskd.front.workers import Worker
from maskd.grammar import GrammarSpec
from maskd.step import Item
from maskd.vocabulary import Vocabulary

__all__ = ["Session", "SessionBook"]

_DEFAULT_TOKENS_PER_ITEM = 64
_MIN_TOKENS = 16384
"""Room for the replay of a long sequence: a restored sequence accepts its whole history in one step."""
_REQUEST_SECONDS = 10.0
_LAST_NUMBER = (1 << 32) - 1
_log = structlog.get_logger()


@dataclass(eq=False)
class Session:
    """One engine's lease.

    Attributes:
        session_id: random, below 2**63: whoever knows it may use the session.
        number: stands for it in logs and marks.
    """

    session_id: int
    number: int
    worker: Worker
    vocabulary: Vocabulary
    engine: str
    opened: control.SessionOpened
    layout: lay.Layout
    token: bytes = b""
    inline: InlineSteps | None = None
    used: float = field(default_factory=time.monotonic)
    next_grammar: int = 1
    grammar_keys: dict[int, Key] = field(default_factory=dict)
    alternates: dict[int, int] = field(default_factory=dict)


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
        self._opening = 0
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
            raise NotFoundError(f"no session {session_id}; it ended, open a new one", kind="session", session_id=session_id)
        session.used = time.monotonic()
        return session

    async def create(
        self, vocabulary: Vocabulary, *, vocab_size: int, row_capacity: int, item_capacity: int, token_capacity: int,
        sequence_capacity: int, inline: bool, engine: str,
    ) -> Session:  # fmt: skip
        """Opens a session on the least loaded worker.

        Raises:
            DrainingError, CapacityError, InvalidRequestError, VocabularyMismatchError, UnavailableError.
        """
        config = self._config
        if self.draining:
            raise DrainingError("the daemon is shutting down and takes no new session")
        if len(self._sessions) + self._opening >= config.sessions:
            raise CapacityError(f"the daemon holds its {config.sessions} sessions", limit="sessions", value=config.sessions)
        if vocab_size != vocabulary.vocab_size:
            raise VocabularyMismatchError(
                f"the engine's logits are {vocab_size} wide, the vocabulary {vocabulary.name!r} is {vocabulary.vocab_size}",
                engine=vocab_size, vocabulary=vocabulary.vocab_size,
            )  # fmt: skip
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
                limit="sequences_per_session", value=config.sequences_per_session,
            )  # fmt: skip
        items = item_capacity or max(row_capacity, 16)
        layout = lay.Layout(vocab_size, items, row_capacity, token_capacity or max(_MIN_TOKENS, items * _DEFAULT_TOKENS_PER_ITEM))
        worker = self._choose_worker()
        session_id, session_number = secrets.randbits(62) + 1, self._next_number
        self._next_number = self._next_number % _LAST_NUMBER + 1
        self._opening += 1
        try:
            opened = await worker.request(lambda number: control.OpenSession(
                number, session_id, session_number, vocabulary.fingerprint,
                layout.item_capacity, layout.row_capacity, layout.token_capacity,
                sequence_capacity or config.sequences_per_session, inline,
            ), _REQUEST_SECONDS)  # fmt: skip
        except BaseException:  # the caller may have left while the worker was at it
            worker.send(control.CloseSession(session_id))
            raise
        finally:
            self._opening -= 1
        assert isinstance(opened, control.SessionOpened)
        session = Session(session_id, session_number, worker, vocabulary, engine, opened, layout)
        self._sessions[session_id] = self._numbered[session_number] = session
        worker.sessions.add(session_id)
        if inline:
            session.inline = InlineSteps(session_id, worker, layout, config.step_seconds)
        else:
            session.token = secrets.token_bytes(lay.TOKEN_BYTES)
        _log.info("session opened", session=session_number, worker=worker.number, engine=engine, inline=inline, rows=row_capacity)
        return session

    def _choose_worker(self) -> Worker:
        ready = [worker for worker in self._workers if worker.is_ready]
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
        found.worker.send(control.AttachSession(found.session_id), [lease.detach()])
        return True

    def delete(self, session_id: int) -> None:
        """Ends a session. Safe to repeat."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.worker.send(control.CloseSession(session_id))
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
                limit = self._config.claim_seconds if session.token else self._config.lease_seconds if session.inline else None
                if limit is not None and now - session.used > limit:
                    _log.warning("session expired", session=session.number, unclaimed=bool(session.token))
                    self.delete(session.session_id)

    async def drain(self, seconds: float) -> None:
        """Takes no new sessions, tells the engines, and waits until they have left, for at most ``seconds``."""
        self.draining = True
        for worker in self._workers:
            if worker.is_ready:
                worker.send(control.Drain())
        self._emptied.clear()
        if self._sessions:
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), seconds)

    # -- grammars --------------------------------------------------------------------------------------------------

    async def create_grammar(self, session_id: int, spec: GrammarSpec, *, validate_only: bool) -> tuple[int, control.GrammarCompiled]:
        """Compiles ``spec`` on the session's worker: (grammar id, or 0 for ``validate_only``; what came out).

        Where it is to switch when it is slow, another backend compiles it too.

        Raises:
            GrammarError: or a child. InvalidRequestError, NotFoundError, CapacityError, UnavailableError.
        """
        session = self.get(session_id)
        self._check(session, spec)
        grammar_id, compiled = await self._create_grammar(session, spec, validate_only=validate_only)
        if spec.when_slow == "switch":
            try:
                compiled.alternate_backend = await self._create_alternate(session, spec, grammar_id, compiled.report.backend)
            except BaseException:
                if grammar_id:
                    self.delete_grammar(session_id, grammar_id)
                raise
        return grammar_id, compiled

    def _check(self, session: Session, spec: GrammarSpec) -> None:
        """Raises GrammarTooLargeError, or InvalidRequestError where ``spec`` does not fit the vocabulary of ``session``."""
        size = len(spec.source.encode("utf-8", "surrogatepass"))
        if size > self._config.grammar_bytes:
            raise GrammarTooLargeError(
                f"the grammar has {size} bytes; the limit grammar_bytes is {self._config.grammar_bytes}",
                limit="grammar_bytes", value=self._config.grammar_bytes,
            )  # fmt: skip
        vocabulary = session.vocabulary
        for token_id in spec.options.stop_token_ids:
            if not 0 <= token_id < len(vocabulary.tokens):
                raise InvalidRequestError(f"stop token {token_id} is not in the vocabulary", field="stop_token_ids", token_id=token_id)
        for token_id in spec.reasoning.end_token_ids if spec.reasoning else ():
            wrong = (
                "is not in the vocabulary" if not 0 <= token_id < len(vocabulary.tokens)
                else "is a stop token: an output would end there" if token_id in {*vocabulary.stop_token_ids, *spec.options.stop_token_ids}
                else ""
            )  # fmt: skip
            if wrong:
                raise InvalidRequestError(f"end-of-reasoning token {token_id} {wrong}", field="reasoning.end_token_ids", token_id=token_id)

    async def _create_alternate(self, session: Session, spec: GrammarSpec, grammar_id: int, backend: str) -> str:
        """Has the first backend but ``backend`` that can do ``spec`` compile it, for sequences of ``grammar_id`` that are slow, and
        returns its name. Raises GrammarUnsupportedError if none can."""
        refusals = []
        for other in self._config.backends:
            if other == backend:
                continue
            try:
                alternate_id, _ = await self._create_grammar(
                    session, dataclasses.replace(spec, backend=other), validate_only=not grammar_id, alternate_of=grammar_id
                )
            except GrammarError as error:
                refusals.append(f"{other}: {error.message}")
                continue
            if alternate_id:
                session.alternates[grammar_id] = alternate_id
            return other
        raise GrammarUnsupportedError(
            f"when_slow is 'switch', and no backend but {backend} does this grammar; give 'wait' or 'fail'. "
            + clip("; ".join(refusals), 900),
            backends=backend,
        )

    async def _create_grammar(
        self, session: Session, spec: GrammarSpec, *, validate_only: bool, alternate_of: int = 0
    ) -> tuple[int, control.GrammarCompiled]:
        session_id, fingerprint = session.session_id, session.vocabulary.fingerprint
        verdict = await self._desk.admit(fingerprint, spec)
        if validate_only and verdict is not None:
            return 0, control.GrammarCompiled(verdict.report, verdict.seconds, cached=False)
        grammar_id, key = 0, (fingerprint, spec.digest())
        if not validate_only:
            grammar_id, session.next_grammar = session.next_grammar, session.next_grammar + 1
            session.grammar_keys[grammar_id] = key
        try:
            compiled = await session.worker.request(
                lambda number: control.CompileGrammar(
                    number, session_id, grammar_id, spec, verdict, self._desk.is_suspect(key), alternate_of
                ),
                self._config.compile_seconds,
            )
        except BaseException as error:  # also when the caller has left: nobody would know the id
            if grammar_id:
                session.worker.send(control.DropGrammar(session_id, grammar_id))
            if not isinstance(error, DeadlineError):
                raise
            raise GrammarTimeoutError(
                f"the compile did not end within compile_seconds = {self._config.compile_seconds}",
                limit="compile_seconds", value=self._config.compile_seconds,
            ) from None  # fmt: skip
        assert isinstance(compiled, control.GrammarCompiled)
        if verdict is not None:  # what the jail saw is the whole story: the worker only loaded it
            seconds = 0.0 if compiled.cached else verdict.seconds
            compiled = control.GrammarCompiled(verdict.report, seconds, compiled.cached)
        return grammar_id, compiled

    def delete_grammar(self, session_id: int, grammar_id: int) -> None:
        """Lets go of a grammar. Safe to repeat."""
        session = self.get(session_id)
        for dropped in (grammar_id, session.alternates.pop(grammar_id, 0)):
            session.grammar_keys.pop(dropped, None)  # a sequence may still use it, but a crash will not be blamed on it
        session.worker.send(control.DropGrammar(session_id, grammar_id))

    def blame(self, calls: Iterable[tuple[int, int]], why: str) -> None:
        """Passes on in which calls (number of the session, grammar id) a worker died or hung; grammar 0 = several of the session's."""
        keys: set[Key | None] = set()
        for number, grammar_id in calls:
            session = self._numbered.get(number)
            of_session = session.grammar_keys if session is not None else {}
            if grammar_id:
                keys.add(of_session.get(grammar_id))
            else:  # one of these, or one that was dropped and that a sequence still uses
                keys.update(of_session.values(), [None])
        self._desk.blame(keys, why)

    async def read(self, session_id: int) -> control.SessionState:
        """Returns the counts of a session, from its worker."""
        session = self.get(session_id)
        state = await session.worker.request(lambda number: control.ReadSession(number, session_id), _REQUEST_SECONDS)
        assert isinstance(state, control.SessionState)
        return state

    # -- inline steps ----------------------------------------------------------------------------------------------

    async def step(self, session_id: int, step: int, items: Sequence[Item]) -> Reply:
        """Runs one step of an inline session. The same step again gives the same reply, or goes on waiting for it.

        Raises:
            StepOrderError, CapacityError, DeadlineError, NotFoundError, UnavailableError.
        """
        session = self.get(session_id)
        if session.inline is None:
            raise InvalidRequestError(f"session {session_id} steps through shared memory, not through messages", field="session_id")
        try:
            return await session.inline.step(step, items)
        finally:
            session.used = time.monotonic()
