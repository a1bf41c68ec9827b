"""The worker's loop: one thread that serves every session's steps and, between steps, the front's messages.

It sleeps in epoll on the doorbells of its sessions, their leases, the control channel and the compile threads. Before it
sleeps it raises the need-wakeup word of every session, fences, and looks once more (io_uring's protocol), so an engine
rings only a sleeping worker; no sleep is longer than 50 ms, so even a lost ring is no hang. Whatever may take long is done on other
threads: compiles, and making and freeing the segments of sessions, for which the kernel may have to clear gigabytes.
Owns: the sessions and vocabularies of this worker.
Knows nothing about: gRPC, tokens that open data sockets, other workers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import time
from collections.abc import Mapping

import structlog

from maskd import _shm, backends, control
from maskd.backends.auto import AutoBackend
from maskd.backends.base import Backend, BatchFill, Grammar, Serializer
from maskd.errors import (
    CapacityError,
    GrammarError,
    GrammarUnsupportedError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)
from maskd.grammar import GrammarSpec
from maskd.grammars import Compiled, GrammarCache
from maskd.layout import Layout
from maskd.marker import Marker
from maskd.sequences import GatedFill, GatedGrammar, HeldGrammar, SequenceTable
from maskd.vocabulary import Vocabulary
from maskd.worker.openings import Openings
from maskd.worker.placement import Placement
from maskd.worker.pool import STACK_BYTES, WorkPool
from maskd.worker.session import InlineSession, SharedSession, WorkerSession
from maskd.worker.slow_lane import SlowLane

__all__ = ["WorkerLoop"]

_SLEEP_SECONDS = 0.05
_CONTROL_SECONDS = 0.001
"""While steps keep coming, other descriptors are looked at this often."""
_log = structlog.get_logger()


class WorkerLoop:
    """Runs until the front closes the control channel.

    Args:
        channel: socket to the front.
        marker_fd: the page where the worker says what it computes.
        options: from the front.
        loaded: vocabularies by fingerprint, with their backends by name, as the nursery built them.
    """

    def __init__(
        self, channel: socket.socket, marker_fd: int, options: control.SpawnWorker,
        loaded: Mapping[bytes, tuple[Vocabulary, Mapping[str, Backend]]],
    ) -> None:  # fmt: skip
        channel.setblocking(False)
        self._channel = channel
        self._reader = control.FrameReader(channel, control.ToWorker)
        self._outbox = bytearray()
        self._factories = {name: backends.load(name) for name in options.backend_names}
        self._native_threads = options.native_threads
        self._vocabularies = dict(loaded)
        self._marker = Marker(marker_fd)
        self._lane = SlowLane(self._marker)
        self._row_seconds = options.row_seconds
        self._cache = GrammarCache(options.cache_bytes)
        self._gated_fills: dict[int, GatedFill] = {}
        self._grammars_per_session = options.grammars_per_session
        self._pool = WorkPool("compile", options.compile_threads, STACK_BYTES)
        self._openings = Openings()
        self._sessions: dict[int, WorkerSession] = {}
        self._shared: dict[int, SharedSession] = {}
        self._by_fd: dict[int, SharedSession] = {}
        self._draining = False
        self._spin_ns = int(options.spin_seconds * 1e9)
        self._placement = Placement()
        self._epoch = (os.getpid() << 32) | (time.time_ns() & 0xFFFFFFFF)
        self._epoll = select.epoll()
        self._epoll.register(channel.fileno(), select.EPOLLIN)
        self._finishers = {self._pool.done_fd: self._pool.finish, self._openings.done_fd: self._openings.finish}
        for fd in self._finishers:
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serves until the front is gone."""
        self._send(control.Ready(os.getpid(), tuple(self._factories)))
        looked = time.monotonic()
        with contextlib.suppress(UnavailableError):  # the front is gone: nobody is left to work for
            while True:
                if self._serve_ready() or self._spin():
                    if time.monotonic() - looked < _CONTROL_SECONDS:
                        continue
                    self._poll(0)
                else:
                    self._sleep()
                looked = time.monotonic()

    # -- the data path ---------------------------------------------------------------------------------------------

    def _serve_ready(self) -> bool:
        """Serves one step of every session that has one; returns whether any had."""
        served = False
        for session in tuple(self._shared.values()):
            if session.has_work:
                served = True
                try:
                    session.serve()
                except Exception as error:
                    self._end_broken(session, error)
        return served

    def _end_broken(self, session: WorkerSession, error: Exception) -> str:
        """Ends a session whose step failed as a whole, and returns why. A surprise of our own or of a library ends one session, never
        its neighbours."""
        if isinstance(error, ProtocolError):
            why = error.message
        else:
            _log.error("step failed", session=session.session_id, exc_info=error)
            why = "the worker failed in its step"
        self._close(session, why)
        return why

    def _spin(self) -> bool:
        """Looks for the next step without sleeping, for as long as configured."""
        if not self._spin_ns or not self._shared:
            return False
        sessions = self._shared.values()
        return _shm.spin([s.published_word for s in sessions], [s.completed + 1 for s in sessions], self._spin_ns) >= 0

    def _sleep(self) -> None:
        sessions = tuple(self._shared.values())
        for session in sessions:
            _shm.store_u32(session.sleep_word, 1)
        _shm.fence()
        self._poll(0 if any(session.has_work for session in sessions) else _SLEEP_SECONDS)
        for session in sessions:
            if session.session_id in self._shared:
                _shm.store_u32(session.sleep_word, 0)
                if session.has_work:
                    self._placement.keep_off(session.engine_processor)

    def _poll(self, seconds: float) -> None:
        for every in self._shared.values():
            every.beat()
        for fd, _ in self._epoll.poll(seconds):
            if fd == self._channel.fileno():
                self._flush()
                for message, fds in self._reader.read():
                    self._handle(message, fds)
            elif fd in self._finishers:
                self._finishers[fd]()
            elif (session := self._by_fd.get(fd)) is not None and fd != session.doorbell_fd:
                self._close(session, "the engine went away")

    # -- messages --------------------------------------------------------------------------------------------------

    def _handle(self, message: object, fds: list[int]) -> None:
        try:
            match message:
                case control.LoadVocabulary():
                    self._load_vocabulary(message)
                case control.OpenSession():
                    self._open_session(message)
                case control.AttachSession():
                    self._attach(message.session_id, fds[0])
                case control.InlineStep():
                    self._step_inline(message)
                case control.CloseSession():
                    self._openings.cancel(message.session_id)
                    if message.session_id in self._sessions:
                        self._close(self._sessions[message.session_id], "the session was closed")
                case control.CompileGrammar():
                    self._compile(message)
                case control.DropGrammar():
                    if message.session_id in self._sessions:
                        session = self._sessions[message.session_id]
                        session.awaited_grammars.discard(message.grammar_id)
                        session.table.drop_grammar(message.grammar_id)
                case control.ReadSession():
                    session = self._session(message.session_id)
                    state = control.SessionState(session.attached, len(session.table), len(session.table.grammars), session.completed)
                    self._reply(message.request, state)
                case control.Drain():
                    self._draining = True
                    for session in self._sessions.values():
                        session.set_draining()
        except MaskdError as error:
            self._reply(message.request, control.failure_of(error))  # type: ignore[attr-defined]

    def _load_vocabulary(self, message: control.LoadVocabulary) -> None:
        def build() -> tuple[Vocabulary, dict[str, Backend]]:
            vocabulary = Vocabulary.from_bytes(message.data, message.name)
            return vocabulary, {name: create(vocabulary, threads=self._native_threads) for name, create in self._factories.items()}

        def built(result: tuple[Vocabulary, dict[str, Backend]] | MaskdError, _: float) -> None:
            if isinstance(result, MaskdError):
                self._reply(message.request, control.failure_of(result))
                return
            vocabulary, named = result
            self._vocabularies[vocabulary.fingerprint] = (vocabulary, {**named, "auto": AutoBackend(list(named.values()))})
            self._reply(message.request, None)

        self._pool.submit(build, built)

    def _open_session(self, message: control.OpenSession) -> None:
        if message.fingerprint not in self._vocabularies:
            raise NotFoundError(f"no vocabulary {message.fingerprint.hex()[:16]}…; upload it first", kind="vocabulary")
        vocabulary, _ = self._vocabularies[message.fingerprint]
        layout = Layout(vocabulary.vocab_size, message.item_capacity, message.row_capacity, message.token_capacity)
        table = SequenceTable(
            len(vocabulary.tokens),
            vocabulary.vocab_size,
            vocabulary.stop_token_ids,
            message.sequence_capacity,
            marker=self._marker.words,
            session_id=message.session_id,
            lane=self._lane,
            row_seconds=self._row_seconds,
        )
        if message.inline:
            self._sessions[message.session_id] = InlineSession(message.session_id, vocabulary, layout, table, self._marker)
            self._reply(message.request, control.SessionOpened(0, 0))
            return

        def opened(session: SharedSession | MaskdError) -> None:
            if isinstance(session, MaskdError):
                self._reply(message.request, control.failure_of(session))
            else:
                self._add_shared(session)
                self._reply(message.request, control.SessionOpened(layout.rows_bytes, layout.steps_bytes))

        make = functools.partial(SharedSession, message.session_id, vocabulary, layout, table, self._epoch, self._marker)
        self._openings.open(message.session_id, make, opened)

    def _add_shared(self, session: SharedSession) -> None:
        self._sessions[session.session_id] = self._shared[session.session_id] = session
        self._by_fd[session.doorbell_fd] = session
        # Edge-triggered and never read: the engine shares the descriptor's flags, a read might be made to block.
        self._epoll.register(session.doorbell_fd, select.EPOLLIN | select.EPOLLET)
        if self._draining:
            session.set_draining()

    def _step_inline(self, message: control.InlineStep) -> None:
        session = self._session(message.session_id)
        if not isinstance(session, InlineSession):
            raise InvalidRequestError(f"session {message.session_id} steps through shared memory, not through messages", field="session_id")
        try:
            stepped = control.Stepped(*session.step(message.cell, message.row_count))
        except CapacityError:  # it was not begun
            raise
        except Exception as error:
            raise UnavailableError(self._end_broken(session, error)) from None
        self._reply(message.request, stepped)

    def _attach(self, session_id: int, fd: int) -> None:
        session = self._shared.get(session_id)
        if fd < 0:
            _log.error("out of descriptors: an engine cannot attach", session=session_id)
            if session is not None:
                self._close(session, "no descriptor was left for its lease")
            return
        lease = socket.socket(fileno=fd)
        if session is None or session.lease is not None:
            lease.close()
            return
        try:
            session.attach(lease)
        except OSError as error:
            self._close(session, f"the engine left before its grant: {error.strerror}")
            return
        self._by_fd[lease.fileno()] = session
        self._epoll.register(lease.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _session(self, session_id: int) -> WorkerSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError(f"no session {session_id}; it ended, open a new one", kind="session", session_id=session_id)
        return session

    def _compile(self, message: control.CompileGrammar) -> None:
        session = self._session(message.session_id)
        grammars = session.table.grammars
        if message.grammar_id and len(grammars) >= self._grammars_per_session:
            raise CapacityError(
                f"the session holds its {self._grammars_per_session} grammars; delete one first",
                limit="grammars_per_session", value=self._grammars_per_session,
            )  # fmt: skip
        spec, verdict = message.spec, message.verdict
        _, named = self._vocabularies[session.vocabulary.fingerprint]
        name = verdict.report.backend if verdict is not None else spec.backend
        backend = named.get(name)
        if backend is None:
            raise GrammarUnsupportedError(f"no backend {name!r} here; give one of {', '.join(named)}", backends=", ".join(named))
        key = (session.vocabulary.fingerprint, spec.digest())

        def answer(compiled: Compiled) -> None:
            outcome, wanted = compiled.outcome, message.grammar_id in session.awaited_grammars
            session.awaited_grammars.discard(message.grammar_id)
            if isinstance(outcome, MaskdError):
                self._reply(message.request, control.failure_of(outcome))
            elif session.session_id not in self._sessions:
                self._reply(message.request, control.failure_of(NotFoundError("the session ended during the compile", kind="session")))
            else:
                if wanted:  # else it was dropped while it compiled, or is to be reported only
                    held = self._held(message, outcome, named.get(outcome.report.backend, backend), session.vocabulary)
                    grammars[message.grammar_id] = held
                    if message.alternate_of in grammars:
                        grammars[message.alternate_of] = grammars[message.alternate_of].with_alternate(held)
                    if message.solo:
                        self._lane.alone.add(session.session_id << 32 | message.grammar_id)
                self._reply(message.request, control.GrammarCompiled(outcome.report, compiled.seconds, compiled.cached))

        if message.grammar_id:
            session.awaited_grammars.add(message.grammar_id)
        if self._cache.request(key, answer):
            self._pool.submit(functools.partial(_make, backend, spec, verdict), functools.partial(self._finish_compile, key))

    def _held(self, message: control.CompileGrammar, grammar: Grammar, backend: Backend, vocabulary: Vocabulary) -> HeldGrammar:
        """Returns ``grammar``, compiled by ``backend``, as a session holds it: behind its gate, if it has one."""
        spec, verdict = message.spec, message.verdict
        batch: BatchFill | None = backend if isinstance(backend, BatchFill) and not message.solo else None
        if spec.reasoning is not None:
            forbidden = grammar.stop_token_ids.union(vocabulary.stop_token_ids)
            grammar = GatedGrammar(grammar, spec.reasoning, len(vocabulary.tokens), vocabulary.vocab_size, forbidden)
            if batch is not None:  # one for all grammars of a backend, so that they are filled together
                batch = self._gated_fills.setdefault(id(batch), GatedFill(batch))
        slow = verdict is not None and verdict.slowest_mask_seconds > self._row_seconds / 2
        return HeldGrammar.of(message.grammar_id, grammar, batch, slow=slow, when_slow=spec.when_slow)

    def _finish_compile(self, key: tuple[bytes, bytes], outcome: Grammar | MaskdError, seconds: float) -> None:
        if isinstance(outcome, MaskdError) and not isinstance(outcome, GrammarError):
            _log.warning("compile failed", reason=outcome.reason)
        self._cache.finish(key, outcome, seconds)

    # -- out -------------------------------------------------------------------------------------------------------

    def _close(self, session: WorkerSession, why: str) -> None:
        del self._sessions[session.session_id]
        self._lane.alone = {mark for mark in self._lane.alone if mark >> 32 != session.session_id}
        if isinstance(session, SharedSession):
            del self._shared[session.session_id]
            for fd in [session.doorbell_fd] + ([session.lease.fileno()] if session.lease is not None else []):
                if self._by_fd.pop(fd, None) is not None:
                    self._epoll.unregister(fd)
            session.end()
            self._openings.free(session)
        self._send(control.SessionClosed(session.session_id, why))

    def _reply(
        self,
        request: int,
        result: control.Failure | control.SessionOpened | control.GrammarCompiled | control.SessionState | control.Stepped | None,
    ) -> None:
        self._send(control.Reply(request, result))

    def _send(self, message: control.ToFront) -> None:
        """Queues a message; the data path never waits for the front."""
        self._outbox += control.encode(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: self._channel.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise UnavailableError(f"the front is gone: {error.strerror}") from None
        self._epoll.modify(self._channel.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._outbox else 0))


def _make(backend: Backend, spec: GrammarSpec, verdict: control.Compiled | None) -> Grammar:
    """Returns the grammar: from the artefact of its verdict where there is one, else compiled."""
    if verdict is not None and verdict.artefact and isinstance(backend, Serializer):
        return backend.deserialize(verdict.artefact, spec, verdict.report)
    return backend.compile(spec)
