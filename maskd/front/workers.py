"""Worker processes as the front sees them: start, talk, watch, notice death, start again.

A worker may die at any time. Its sessions die with it: their engines see the end of their leases at once, open new
sessions, and restore their sequences by replay. The front has the nursery fork a new worker, in milliseconds, with a pause
that grows while it keeps dying; nothing else needs repair.
Owns: the control channels, the markers, and the judgement which grammar a dead or hung worker was busy with.
Knows nothing about: gRPC, the data socket, what a session is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from maskd import control
from maskd.config import Config
from maskd.errors import MaskdError, UnavailableError
from maskd.front.nursery import Nursery
from maskd.front.peer import Peer
from maskd.marker import Marker

__all__ = ["Worker"]

_STABLE_SECONDS = 30.0
"""A worker that lived so long has its next restart without a pause."""
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.05, 0.5
_LANE_PATIENCE = 5
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_log = structlog.get_logger()


class Worker:
    """One supervised worker.

    Args:
        number: for logs.
        nursery: forks it.
        on_session_closed: called with (session_id, why) when a session ends on its own, or with its worker.
        on_blame: called with ([(number of the session, grammar_id)], why) when the worker crashed or hung: the calls that were under
            way, one of which did it; grammar 0 = a batch of that session's grammars.
    """

    def __init__(
        self, number: int, config: Config, nursery: Nursery, on_session_closed: Callable[[int, str], None],
        on_blame: Callable[[list[tuple[int, int]], str], None],
    ) -> None:  # fmt: skip
        self.number = number
        self.sessions: set[int] = set()
        self.restarts = 0
        self.pid: int | None = None
        self._config = config
        self._nursery = nursery
        self._on_session_closed = on_session_closed
        self._on_blame = on_blame
        self._pidfd = -1
        self._hung: list[tuple[int, int]] = []
        self._peer: Peer | None = None
        self._ready = asyncio.Event()
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the worker is up."""
        return self._ready.is_set()

    async def start(self) -> None:
        """Starts the process and its supervision; returns when it is ready for sessions.

        Raises:
            MaskdError: the worker dies at once.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first))
        await first

    async def stop(self) -> None:
        """Ends the worker; its sessions end with it."""
        self._stopping = True
        self.kill()
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def request(self, make: Callable[[int], control.ToWorker], seconds: float | None) -> object:
        """Sends ``make(request number)`` and returns the result of its reply, within ``seconds``, or None = however late.

        Raises:
            MaskdError: what the worker answered. UnavailableError: it is gone. DeadlineError: no answer in time.
        """
        if self._peer is None or not self._ready.is_set():
            raise UnavailableError("the worker is restarting; try again", worker=self.number)
        return await self._peer.request(make, seconds)

    def send(self, message: control.ToWorker, fds: Sequence[int] = ()) -> None:
        """Sends a message without an answer. The descriptors are closed here once they are sent."""
        if self._peer is not None:
            self._peer.send(message, fds)
        else:
            for fd in fds:
                os.close(fd)

    def kill(self) -> None:
        """Kills the process; the supervisor starts it again."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        pause = 0.0
        while not self._stopping:
            started = time.monotonic()
            try:
                await self._live(first)
            except MaskdError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                _log.error("worker failed", worker=self.number, reason=error.reason, error=error.message)
            except OSError as error:  # no descriptor for it: try again later
                if not first.done():
                    first.set_exception(UnavailableError(f"the worker cannot be started: {error.strerror}"))
                    return
                _log.error("worker failed", worker=self.number, error=error.strerror)
            if self._stopping:
                break
            if not first.done():
                first.set_exception(UnavailableError("the worker died while it started; its log says why"))
                return
            pause = 0.0 if time.monotonic() - started > _STABLE_SECONDS else min(self._config.restart_seconds, 2 * pause + 0.01)
            self.restarts += 1
            _log.warning("worker died, restarting", worker=self.number, restarts=self.restarts, pause_seconds=pause)
            await asyncio.sleep(pause)

    async def _live(self, first: asyncio.Future[None]) -> None:
        """One life of the process: fork, serve, until its channel closes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            marker = Marker()
            stack.callback(marker.close)
            self.pid = await self._nursery.spawn_worker(self.number, theirs.detach(), os.dup(marker.fd))
            self._pidfd = os.pidfd_open(self.pid)
            stack.callback(self._forget)
            self._peer = Peer(f"worker {self.number}", ours, lambda message: self._on_message(message, first))
            watch = asyncio.create_task(self._watch(marker))
            try:
                await self._peer.run()
            finally:
                self._ready.clear()
                watch.cancel()
                self.kill()
                if not self._stopping:
                    await self._find_guilty(marker)
                sessions, self.sessions = self.sessions, set()
                for session_id in sessions:
                    self._on_session_closed(session_id, "its worker died")

    async def _find_guilty(self, marker: Marker) -> None:
        """Names the calls in which the worker crashed, or hung; a kill from outside proves nothing."""
        calls, why = (self._hung, "it hung") if self._hung else ([call[2:] for call in marker.busy()], "its worker crashed")
        assert self.pid is not None
        crashed = await self._nursery.exit_signal(self.pid) in _CRASHES
        if calls and (crashed or self._hung):
            self._on_blame(calls, why)
        self._hung = []

    def _forget(self) -> None:
        os.close(self._pidfd)
        self._pidfd, self.pid = -1, None

    async def _watch(self, marker: Marker) -> None:
        """Kills a worker that is too long in one native call. The slow lane has more time: it keeps nobody waiting.

        Time counts only as far as this process saw it pass: when both are frozen and thawed together, nobody hangs.
        """
        watched: dict[int, tuple[tuple[int, int, int, int], float]] = {}  # by slot: (call, seconds)
        looked = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            passed, looked = min(time.monotonic() - looked, _LONGEST_LOOK_SECONDS), time.monotonic()
            calls = {call[0]: call for call in marker.busy()}
            watched = {
                slot: (call, watched[slot][1] + passed if slot in watched and watched[slot][0] == call else 0.0)
                for slot, call in calls.items()
            }
            for slot, (call, seconds) in watched.items():
                if seconds > self._config.hang_seconds * (_LANE_PATIENCE if slot else 1):
                    _log.error("worker hangs, killing it", worker=self.number, session=call[2], grammar=call[3])
                    # Stuck together, one may hold the interpreter: nobody knows which.
                    stuck = [other[2:] for other, since in watched.values() if since > self._config.hang_seconds / 2]
                    self._hung = [] if self._is_stopped() else stuck
                    self.kill()
                    return

    def _is_stopped(self) -> bool:
        """Whether somebody stopped the process (SIGSTOP, a debugger): no grammar is to blame for that."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        except OSError:
            return False

    def _on_message(self, message: object, first: asyncio.Future[None]) -> None:
        match message:
            case control.Ready():
                _log.info("worker is up", worker=self.number, pid=message.pid)
                self._ready.set()
                if not first.done():
                    first.set_result(None)
            case control.SessionClosed():
                self.sessions.discard(message.session_id)
                self._on_session_closed(message.session_id, message.why)

    async def load_vocabulary(self, name: str, data: bytes) -> None:
        """Gives the worker one more vocabulary. Raises what the worker answers."""
        if self.is_ready:
            await self.request(lambda number: control.LoadVocabulary(number, name, data), 120.0)
