"""What zygote, nurseries and workers have in common for the front: a process that is started again when it ends.

Owns: the pauses between restarts, and how processes ended that the zygote or a nursery forked.
Knows nothing about: what the processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence

import structlog

from maskd.errors import MaskdError, UnavailableError
from maskd.ipc import messages
from maskd.ipc.peer import Peer

__all__ = ["SPAWN_SECONDS", "Exits", "Supervised"]

_STABLE_SECONDS = 30.0
"""A process that lived at least so long is restarted without a pause."""
_EXIT_SECONDS = 1.0
SPAWN_SECONDS = 10.0
"""Time for a fork, and for the restart of the process that forks."""
_log = structlog.get_logger()


class Supervised:
    """One supervised process. A subclass implements ``_live``.

    Args:
        kind: for logs and errors.
        longest_pause: before a process that keeps dying is started again, in seconds.
        labels: for logs.

    Attributes:
        pid: of the process; None while there is none.
        restarts: how often it was started again.
    """

    def __init__(self, kind: str, longest_pause: float, **labels: object) -> None:
        self.pid: int | None = None
        self.restarts = 0
        self._kind = kind
        self._longest_pause = longest_pause
        self._labels = labels
        self._pidfd = -1
        self._peer: Peer | None = None
        self._ready = asyncio.Event()
        self._first: asyncio.Future[None] | None = None
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the process is up."""
        return self._ready.is_set()

    async def start(self) -> None:
        """Starts the process and its supervision; returns when it is ready.

        Raises:
            MaskdError: it could not be started, or died at once. It is not started again.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(self._first))
        await self._first

    async def stop(self) -> None:
        """Ends the process, and its supervision."""
        self._stopping = True
        self.kill()
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._first is not None and not self._first.done():
            self._first.cancel()

    def kill(self) -> None:
        """Kills the process. It is started again, unless it was stopped."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def _live(self) -> None:
        """Starts the process and returns when it has ended.

        Calls ``_is_up`` when the process is ready, and ``_is_down`` when it is not any more.
        """
        raise NotImplementedError

    def _is_up(self) -> None:
        self._ready.set()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _is_down(self) -> None:
        self._ready.clear()
        self.kill()

    def _channel(self, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        """Makes a control channel: the end of the front, which does not block, and the end of the process.

        The former is closed with ``stack``.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(ours.close)
        ours.setblocking(False)
        return ours, theirs

    def _know(self, pid: int, exits: Exits, stack: contextlib.ExitStack) -> None:
        """Holds the process, so that it can be killed, and expects its end from ``exits``, until ``stack`` closes."""

        def forget() -> None:
            os.close(self._pidfd)
            self._pidfd, self.pid = -1, None

        self._pidfd, self.pid = os.pidfd_open(pid), pid
        stack.callback(forget)
        exits.expect(pid, stack)

    async def wait_until_ready(self, seconds: float) -> None:
        """Waits for a process that is being started again. Raises UnavailableError after ``seconds``."""
        try:
            await asyncio.wait_for(self._ready.wait(), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise UnavailableError(f"the {self._kind} is restarting; try again") from None

    async def _have_forked(self, message: messages.Numbered, fds: Sequence[int]) -> int:
        """Has the process fork another one, when it is up, and returns the pid of that. ``fds`` are closed here."""
        try:
            await self.wait_until_ready(SPAWN_SECONDS)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        assert self._peer is not None
        spawned = await self._peer.request(message, SPAWN_SECONDS, fds)
        assert isinstance(spawned, messages.Spawned)
        return spawned.pid

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        pause = 0.0
        while True:
            started = time.monotonic()
            error: MaskdError = UnavailableError(f"the {self._kind} died while it started; its log says why")
            try:
                await self._live()
            except MaskdError as failure:
                error = failure
                if first.done():
                    _log.error(f"{self._kind} failed", **self._labels, reason=error.reason, error=error.message)
            except OSError as failure:  # no descriptor or no memory for it: try again later
                error = UnavailableError(f"the {self._kind} cannot be started: {failure.strerror}")
                _log.error(f"{self._kind} failed", **self._labels, error=failure.strerror)
            except Exception:  # our own fault: the supervision goes on
                error = UnavailableError(f"the {self._kind} cannot be supervised; the log says why")
                _log.exception(f"{self._kind} failed", **self._labels)
            if self._stopping:
                return
            if not first.done():
                first.set_exception(error)
                return
            pause = 0.0 if time.monotonic() - started > _STABLE_SECONDS else min(self._longest_pause, 2 * pause + 0.01)
            self.restarts += 1
            _log.warning(f"{self._kind} died, restarting", **self._labels, restarts=self.restarts, pause_seconds=pause)
            await asyncio.sleep(pause)


class Exits:
    """How processes ended that the zygote or a nursery forked. Their parents tell the front."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[messages.Exited]] = {}
        self._early: dict[int, tuple[messages.Exited, float]] = {}

    def expect(self, pid: int, stack: contextlib.ExitStack) -> None:
        """Keeps the end of ``pid``, once it is told, until ``stack`` closes."""
        awaited = self._awaited[pid] = asyncio.get_running_loop().create_future()
        early = self._early.pop(pid, None)
        if early is not None and time.monotonic() - early[1] < _EXIT_SECONDS:  # else it belongs to an older process
            awaited.set_result(early[0])

        def forget() -> None:
            if self._awaited.get(pid) is awaited:
                del self._awaited[pid]

        stack.callback(forget)

    def tell(self, exited: messages.Exited) -> None:
        """Notes the end of a process, as its parent tells it."""
        awaited = self._awaited.get(exited.pid)
        if awaited is None or awaited.done():  # it died before the front expected it
            now = time.monotonic()
            self._early = {pid: early for pid, early in self._early.items() if now - early[1] < _EXIT_SECONDS}
            self._early[exited.pid] = (exited, now)
        else:
            awaited.set_result(exited)

    async def of(self, pid: int) -> messages.Exited | None:
        """Returns how ``pid`` ended, or None if its parent cannot tell any more."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._awaited[pid]), _EXIT_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            return None
