"""Worker processes as the front sees them: start, talk, watch, notice death, start again.

A worker may die at any time, and its sessions die with it. Their engines see the end of their leases at once. They
open new sessions and restore their sequences by replay. The front has the nursery fork a new worker, in milliseconds.
The pause before it grows while the worker keeps dying. Nothing else needs repair.
Owns: the control channels, the markers, and the judgement which grammar a dead or hung worker was busy with.
Knows nothing about: gRPC, the data socket, what a session is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import structlog

from maskd.errors import UnavailableError
from maskd.front.config import Config
from maskd.front.hanging import Threads, is_stopped, look, stuck_seconds
from maskd.front.nursery_process import Nursery
from maskd.front.supervised import Supervised
from maskd.ipc import messages
from maskd.ipc.marker import Marker
from maskd.ipc.peer import Peer

__all__ = ["Worker"]

_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.05, 0.5
_PATIENCE = 5
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_log = structlog.get_logger()


class Worker(Supervised):
    """One supervised worker.

    Args:
        number: for logs.
        nursery: forks it, and has its vocabulary.
        on_session_closed: called with (session_id, why) when a session ends, also when it ends with its worker.
        on_blame: called with ([(number of the session, grammar_id)], why) when the worker crashed or hung. The list
            has the calls that were under way; one of them is at fault. Grammar 0 = a batch of the session's grammars.

    Attributes:
        fingerprint: of the vocabulary that it serves.
        sessions: ids of the sessions that it holds.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        nursery: Nursery,
        on_session_closed: Callable[[int, str], None],
        on_blame: Callable[[list[tuple[int, int]], str], None],
    ) -> None:
        super().__init__("worker", config.restart_seconds, worker=number)
        self.number = number
        self.fingerprint = nursery.fingerprint
        self.sessions: set[int] = set()
        self._config = config
        self._nursery = nursery
        self._on_session_closed = on_session_closed
        self._on_blame = on_blame
        self._hung: list[tuple[int, int]] = []

    async def request(self, message: messages.Numbered, seconds: float | None) -> object:
        """Sends ``message`` and returns the result of its answer, within ``seconds``; None = without limit.

        Raises:
            MaskdError: what the worker answered. UnavailableError: it is gone. DeadlineError: no answer in time.
        """
        if self._peer is None or not self._ready.is_set():
            raise UnavailableError("the worker is restarting; try again", worker=self.number)
        return await self._peer.request(message, seconds)

    def send(self, message: messages.ToWorker, fds: Sequence[int] = ()) -> None:
        """Sends a message that has no answer. The descriptors are closed here when they are sent."""
        if self._peer is not None:
            self._peer.send(message, fds)
        else:
            for fd in fds:
                os.close(fd)

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """One life of the process: fork, serve, until its channel closes."""
        with contextlib.ExitStack() as stack:
            ours, theirs = self._channel(stack)
            marker = Marker()
            stack.callback(marker.close)
            stack.enter_context(theirs)
            marker_fd = os.dup(marker.fd)  # may fail, and then ``theirs`` is closed
            pid = await self._nursery.spawn_worker(self.number, theirs.detach(), marker_fd)
            self._know(pid, self._nursery.exits, stack)
            self._peer = Peer(f"worker {self.number}", ours, self._on_message)
            watch = asyncio.create_task(self._watch(marker))
            try:
                await self._peer.run()
            finally:
                self._is_down()
                watch.cancel()
                if not self._stopping:
                    await self._find_guilty(marker, pid)
                sessions, self.sessions = self.sessions, set()
                for session_id in sessions:
                    self._on_session_closed(session_id, "its worker died")

    async def _find_guilty(self, marker: Marker, pid: int) -> None:
        """Reports the calls in which the worker crashed or hung. A kill from outside proves nothing."""
        if self._hung:
            calls, why = self._hung, "it hung"
        else:
            calls, why = [call[2:] for call in marker.busy()], "its worker crashed"
        exited = await self._nursery.exits.of(pid)
        if calls and (self._hung or (exited is not None and exited.signal in _CRASHES)):
            self._on_blame(calls, why)
        self._hung = []

    async def _watch(self, marker: Marker) -> None:
        """Kills a worker that is too long in one native call.

        The slow lane has more time, for no batch waits for it. So has a call that fills the rows of a whole batch.
        Time counts only as far as the front saw it pass, and as ``hanging`` judges it. A call that waits for a core
        does not hang. A worker that is frozen and thawed together with the front does not either.
        """
        assert self.pid is not None
        limit, stopped_for = self._config.hang_seconds, 0.0
        watched: dict[int, tuple[tuple[int, int, int, int], float]] = {}  # by slot: (call, seconds)
        before: Threads = {}
        looked = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            passed, looked = min(time.monotonic() - looked, _LONGEST_LOOK_SECONDS), time.monotonic()
            calls = {call[0]: call for call in marker.busy()}
            same = [slot for slot, call in calls.items() if slot in watched and watched[slot][0] == call]
            now = look(self.pid) if same else {}
            stuck = {
                slot: stuck_seconds(passed, before, now, marker.slots[slot].thread_id) if before else 0.0
                for slot in same
            }
            watched = {
                slot: (call, watched[slot][1] + stuck[slot] if slot in stuck else 0.0) for slot, call in calls.items()
            }
            before = now
            stopped_for = stopped_for + passed if is_stopped(now) else 0.0
            for slot, (call, seconds) in watched.items():
                if max(seconds, stopped_for) > limit * (_PATIENCE if slot or not call[3] else 1):
                    _log.error(
                        "worker hangs, killing it",
                        worker=self.number,
                        lane=slot,
                        session=call[2],
                        grammar=call[3],
                        seconds=round(seconds, 1),
                        stopped=stopped_for > 0,
                    )
                    # Several calls are stuck if one holds the interpreter, and which one is not known.
                    # After SIGSTOP no grammar is to blame.
                    self._hung = (
                        [] if stopped_for else [other[2:] for other, since in watched.values() if since > limit / 2]
                    )
                    self.kill()
                    return

    def _on_message(self, message: object) -> None:
        match message:
            case messages.Ready():
                _log.info("worker is up", worker=self.number, pid=message.pid)
                self._is_up()
            case messages.SessionClosed():
                self.sessions.discard(message.session_id)
                self._on_session_closed(message.session_id, message.why)
