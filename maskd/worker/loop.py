"""The worker's loop: one thread that serves every session's steps and, between steps, the front's messages.

It sleeps in epoll, on doorbells and leases of its sessions, the control channel and the threads for long work.
Before it sleeps it raises the need-wakeup word of every session, fences, and looks once more (io_uring's protocol). So
an engine rings only a sleeping worker. No sleep is longer than 50 ms, so even a lost ring is no hang. Other threads do
what may take long. They compile grammars, and make and free segments, for which the kernel may clear gigabytes.
Owns: the sessions of this worker.
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
from typing import NoReturn

import structlog

from maskd import _shm
from maskd.backends.base import Backend
from maskd.errors import (
    CapacityError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)
from maskd.ipc import messages
from maskd.ipc.frames import FrameReader, encode
from maskd.ipc.marker import Marker
from maskd.ipc.progress import mark_of, split
from maskd.sequences import SequenceTable
from maskd.shm.layout import Layout
from maskd.vocabulary import Vocabulary
from maskd.worker.grammars import WorkerGrammars
from maskd.worker.openings import Openings
from maskd.worker.placement import Placement
from maskd.worker.session import InlineSession, WorkerSession
from maskd.worker.shared_session import SharedSession
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
        vocabulary: of its sessions.
        named: backends by name, as the nursery built them for it.
    """

    def __init__(
        self,
        channel: socket.socket,
        marker_fd: int,
        options: messages.SpawnWorker,
        vocabulary: Vocabulary,
        named: Mapping[str, Backend],
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._reader = FrameReader(channel, messages.ToWorker)
        self._outbox = bytearray()
        self._vocabulary = vocabulary
        self._grammars = WorkerGrammars(options, named)
        self._marker = Marker(marker_fd)
        self._lane = SlowLane(self._marker)
        self._row_seconds = options.row_seconds
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
        self._finishers = {work.done_fd: work.finish for work in (self._grammars, self._openings)}
        for fd in self._finishers:
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serves until the front is gone."""
        self._marker.slots[0].claim()
        self._send(messages.Ready(os.getpid()))
        looked = time.monotonic()
        with contextlib.suppress(UnavailableError):  # the front is gone
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
        """Ends a session whose step failed as a whole, and returns why.

        Its engine broke the contract, or our own code failed. An error of a backend ends one sequence, in the table.
        """
        if isinstance(error, ProtocolError):
            why = error.message
        else:
            _log.error("step failed", session=session.table.number, exc_info=error)
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

    def _handle(self, message: messages.ToWorker, fds: list[int]) -> None:
        if not isinstance(message, messages.Numbered):
            self._heed(message, fds)
            return
        try:
            self._serve(message)
        except MaskdError as error:
            self._answer(message.request, messages.failure_of(error))

    def _serve(
        self,
        message: messages.OpenSession | messages.InlineStep | messages.CompileGrammar | messages.ReadSession,
    ) -> None:
        """Answers ``message``, or has it answered later. Raises MaskdError: the answer."""
        match message:
            case messages.OpenSession():
                self._open_session(message)
            case messages.InlineStep():
                self._step_inline(message)
            case messages.CompileGrammar():
                self._compile(message)
            case messages.ReadSession():
                session = self._session(message.session_id)
                state = messages.SessionState(
                    session.attached, len(session.table), len(session.table.grammars), session.completed
                )
                self._answer(message.request, state)
            case _:
                _never(message)

    def _heed(
        self,
        message: messages.AttachSession | messages.CloseSession | messages.DropGrammar | messages.Drain,
        fds: list[int],
    ) -> None:
        """Does what a message without an answer asks for."""
        match message:
            case messages.AttachSession():
                self._attach(message.session_id, fds[0])
            case messages.CloseSession():
                self._openings.cancel(message.session_id)
                if message.session_id in self._sessions:
                    self._close(self._sessions[message.session_id], "the session was closed")
            case messages.DropGrammar():
                if message.session_id in self._sessions:
                    session = self._sessions[message.session_id]
                    session.awaited_grammars.discard(message.grammar_id)
                    session.table.drop_grammar(message.grammar_id)
            case messages.Drain():
                self._draining = True
                for session in self._sessions.values():
                    session.set_draining()
            case _:
                _never(message)

    def _open_session(self, message: messages.OpenSession) -> None:
        vocabulary = self._vocabulary
        layout = Layout(vocabulary.vocab_size, message.item_capacity, message.row_capacity, message.token_capacity)
        table = SequenceTable(
            len(vocabulary.tokens),
            vocabulary.vocab_size,
            vocabulary.stop_token_ids,
            message.sequence_capacity,
            progress=self._marker.slots[0],
            number=message.number,
            lane=self._lane,
            row_seconds=self._row_seconds,
        )
        if message.inline:
            self._sessions[message.session_id] = InlineSession(
                message.session_id, vocabulary, layout, table, self._marker
            )
            self._answer(message.request, messages.SessionOpened(0, 0))
            return

        def opened(session: SharedSession | MaskdError) -> None:
            if isinstance(session, MaskdError):
                self._answer(message.request, messages.failure_of(session))
            else:
                self._add_shared(session)
                self._answer(message.request, messages.SessionOpened(layout.rows_bytes, layout.steps_bytes))

        make = functools.partial(
            SharedSession, message.session_id, vocabulary, layout, table, self._epoch, self._marker
        )
        self._openings.open(message.session_id, make, opened)

    def _add_shared(self, session: SharedSession) -> None:
        self._sessions[session.session_id] = self._shared[session.session_id] = session
        self._by_fd[session.doorbell_fd] = session
        # Edge-triggered and never read: the engine shares the descriptor's flags, a read might be made to block.
        self._epoll.register(session.doorbell_fd, select.EPOLLIN | select.EPOLLET)
        if self._draining:
            session.set_draining()

    def _step_inline(self, message: messages.InlineStep) -> None:
        session = self._session(message.session_id)
        if not isinstance(session, InlineSession):
            raise InvalidRequestError(
                f"session {message.session_id} steps through shared memory, not through messages", field="session_id"
            )
        try:
            stepped = messages.Stepped(*session.step(message.cell, message.row_count))
        except CapacityError:  # it was not begun
            raise
        except Exception as error:
            raise UnavailableError(self._end_broken(session, error)) from None
        self._answer(message.request, stepped)

    def _attach(self, session_id: int, fd: int) -> None:
        session = self._shared.get(session_id)
        if fd < 0:
            _log.error("out of descriptors: an engine cannot attach", session=session.table.number if session else None)
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
            raise NotFoundError(
                f"no session {session_id}; it ended, open a new one", kind="session", session_id=session_id
            )
        return session

    def _compile(self, message: messages.CompileGrammar) -> None:
        session = self._session(message.session_id)
        if message.solo and message.grammar_id:
            self._lane.alone.add(mark_of(session.table.number, message.grammar_id))
        self._grammars.compile(
            message,
            session,
            lambda: session.session_id in self._sessions,
            functools.partial(self._answer, message.request),
        )

    # -- out -------------------------------------------------------------------------------------------------------

    def _close(self, session: WorkerSession, why: str) -> None:
        del self._sessions[session.session_id]
        session.table.close()
        self._lane.alone = {mark for mark in self._lane.alone if split(mark)[0] != session.table.number}
        if isinstance(session, SharedSession):
            del self._shared[session.session_id]
            for fd in [session.doorbell_fd] + ([session.lease.fileno()] if session.lease is not None else []):
                if self._by_fd.pop(fd, None) is not None:
                    self._epoll.unregister(fd)
            session.end()
            self._openings.free(session)
        self._send(messages.SessionClosed(session.session_id, why))

    def _answer(self, request: int, result: messages.AnyResult | None) -> None:
        self._send(messages.Answered(request, result))

    def _send(self, message: messages.ToFront) -> None:
        """Queues a message; the data path never waits for the front."""
        self._outbox += encode(message)
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


def _never(message: NoReturn) -> NoReturn:
    """``typing.assert_never``, which Python 3.10 lacks."""
    raise AssertionError(f"no case for {message!r}")
