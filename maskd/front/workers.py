"""Worker processes as the front sees them: start, talk, notice death, start again.

A worker may die at any time. Its sessions die with it: their engines see the end of their leases at once, open new
sessions, and restore their sequences by replay. The front starts the worker again, with a pause that grows while it keeps
dying, and gives it the vocabularies; nothing else needs repair.
Owns: the processes, the control channels and the pending requests.
Knows nothing about: gRPC, the data socket, what a session is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from maskd import control
from maskd.config import Config, resolve_threads
from maskd.errors import DeadlineError, MaskdError, UnavailableError

__all__ = ["Worker"]

_STABLE_SECONDS = 30.0
"""A worker that lived so long has its next restart without a pause."""
_log = structlog.get_logger()


class Worker:
    """One supervised worker.

    Args:
        number: for logs.
        vocabularies: called at every start: what the worker must load before it is ready.
        on_session_closed: called with (session_id, why) when a session ends on its own, or with its worker.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        vocabularies: Callable[[], Iterable[tuple[str, bytes]]],
        on_session_closed: Callable[[int, str], None],
    ) -> None:
        self.number = number
        self.sessions: set[int] = set()
        self.restarts = 0
        self._config = config
        self._vocabularies = vocabularies
        self._on_session_closed = on_session_closed
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: dict[int, asyncio.Future[object]] = {}
        self._next_request = 0
        self._outbox: asyncio.Queue[tuple[bytes, Sequence[int]]] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the worker is up and has its vocabularies."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the process and its supervision; returns when it is ready for sessions.

        Raises:
            MaskdError: a vocabulary cannot be loaded, or the worker dies at once.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first))
        await first

    async def stop(self) -> None:
        """Ends the worker; its sessions end with it."""
        self._stopping = True
        if self._process:
            self._process.kill()
        if self._supervisor:
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def request(self, make: Callable[[int], control.ToWorker], seconds: float) -> object:
        """Sends ``make(request number)`` and returns the result of its reply.

        Raises:
            MaskdError: what the worker answered. UnavailableError: it is gone. DeadlineError: no answer in time.
        """
        if not self._ready.is_set():
            raise UnavailableError("the worker is restarting; try again", worker=self.number)
        return await self._request(make, seconds)

    def send(self, message: control.ToWorker, fds: Sequence[int] = ()) -> None:
        """Sends a message without an answer. The descriptors are closed here once they are sent."""
        self._outbox.put_nowait((control.encode(message, len(fds)), fds))

    def kill(self) -> None:
        """Kills the process; the supervisor starts it again."""
        if self._process:
            self._process.kill()

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
            except Exception as error:  # no descriptor or no memory for a process, or no answer: try again later
                if not first.done():
                    first.set_exception(UnavailableError(f"the worker cannot be started: {type(error).__name__}: {error}"))
                    return
                _log.exception("worker failed", worker=self.number)
            if self._stopping:
                break
            if not first.done():
                first.set_exception(UnavailableError("the worker died while it started; its log says why"))
                return
            pause = 0.0 if time.monotonic() - started > _STABLE_SECONDS else min(self._config.restart_seconds, 2 * pause + 0.05)
            self.restarts += 1
            _log.warning("worker died, restarting", worker=self.number, restarts=self.restarts, pause_seconds=pause)
            await asyncio.sleep(pause)

    async def _live(self, first: asyncio.Future[None]) -> None:
        """One life of the process: spawn, load, serve, until the channel closes."""
        options = {
            "front_pid": os.getpid(), "number": self.number, "log_level": self._config.log_level,
            "backend_names": self._config.backends, "native_threads": resolve_threads(self._config),
            "compile_threads": self._config.compile_threads, "cache_bytes": self._config.cache_bytes,
            "grammars_per_session": self._config.grammars_per_session, "spin_seconds": self._config.spin_seconds,
        }  # fmt: skip
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._outbox = asyncio.Queue()
        with theirs:
            command = [sys.executable, "-m", "maskd.worker", str(theirs.fileno()), json.dumps(options)]
            try:
                self._process = process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603
            except OSError:
                ours.close()
                raise
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(self._read(ours, up)), asyncio.create_task(self._write(ours))]
        try:
            await asyncio.wait([up, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                loaded = set[bytes]()
                while missing := [(name, data) for name, data in self._vocabularies() if data not in loaded]:
                    for name, data in missing:  # others may be uploaded meanwhile
                        await self._load(name, data)
                        loaded.add(data)
                self._ready.set()
                if not first.done():
                    first.set_result(None)
            await tasks[0]
        finally:
            self._ready.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            ours.close()
            process.kill()
            await asyncio.to_thread(process.wait)
            self._bury()

    async def load_vocabulary(self, name: str, data: bytes) -> None:
        """Gives the worker one more vocabulary. Raises what the worker answers."""
        if self.is_ready:
            await self._load(name, data)

    async def _load(self, name: str, data: bytes) -> None:
        await self._request(lambda number: control.LoadVocabulary(number, name, data), 120.0)

    async def _request(self, make: Callable[[int], control.ToWorker], seconds: float) -> object:
        self._next_request += 1
        number = self._next_request
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self.send(make(number))
            result = await asyncio.wait_for(future, seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise DeadlineError(f"worker {self.number} did not answer within {seconds} s", worker=self.number) from None
        finally:
            self._pending.pop(number, None)
        if isinstance(result, control.Failure):
            raise control.error_of(result)
        return result

    async def _read(self, channel: socket.socket, up: asyncio.Future[None]) -> None:
        loop, reader = asyncio.get_running_loop(), control.FrameReader(channel, control.ToFront)
        readable = asyncio.Event()
        loop.add_reader(channel, readable.set)
        try:
            with contextlib.suppress(UnavailableError):
                while True:
                    await readable.wait()
                    readable.clear()
                    for message, _ in reader.read():
                        self._handle(message, up)
        finally:
            loop.remove_reader(channel)
            self._fail_pending()

    def _handle(self, message: object, up: asyncio.Future[None]) -> None:
        match message:
            case control.Ready():
                _log.info("worker is up", worker=self.number, pid=message.pid, backends=message.backends)
                if not up.done():
                    up.set_result(None)
            case control.Reply(request=0):  # it could not be built, and has exited
                if isinstance(message.result, control.Failure) and not up.done():
                    up.set_exception(control.error_of(message.result))
            case control.Reply():
                future = self._pending.get(message.request)
                if future is not None and not future.done():
                    future.set_result(message.result)
            case control.SessionClosed():
                self.sessions.discard(message.session_id)
                self._on_session_closed(message.session_id, message.why)

    async def _write(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frame, fds = await self._outbox.get()
            try:
                while fds:
                    try:
                        frame = frame[control.write_frame(channel, frame, fds) :]
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                await loop.sock_sendall(channel, frame)
            except OSError:
                return  # the reader sees the end of the channel
            finally:
                for fd in fds:
                    os.close(fd)

    def _fail_pending(self) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(UnavailableError("the worker died", worker=self.number))
        self._pending.clear()

    def _bury(self) -> None:
        self._process = None
        self._fail_pending()
        while not self._outbox.empty():
            for fd in self._outbox.get_nowait()[1]:
                os.close(fd)
        sessions, self.sessions = self.sessions, set()
        for session_id in sessions:
            self._on_session_closed(session_id, "its worker died")
