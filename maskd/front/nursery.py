"""The nursery as the front sees it: the process that forks workers and compiles in killable children.

Owns: the process and its restart. A dead nursery takes no worker with it; compiles under way fail and may be tried again.
Knows nothing about: sessions, caches, gRPC.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable

import structlog

from maskd import control
from maskd.config import Config, resolve_threads
from maskd.errors import MaskdError, UnavailableError
from maskd.front.peer import Peer
from maskd.grammar import GrammarSpec

__all__ = ["Nursery"]

_LOAD_SECONDS = 120.0
_SPAWN_SECONDS = 10.0
_GRACE_SECONDS = 5.0
_ENVIRONMENT = {
    # No library may start threads at import: the nursery forks, and a fork of a threaded process is a trap.
    **{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")},
    # Nothing is imported from the directory that the daemon happens to be started in.
    "PYTHONSAFEPATH": "1",
}
_log = structlog.get_logger()


class Nursery:
    """One supervised nursery.

    Args:
        vocabularies: called at every start: (name, bytes) of what it must load before it is ready.
    """

    def __init__(self, config: Config, vocabularies: Callable[[], Iterable[tuple[str, bytes]]]) -> None:
        self._config = config
        self._vocabularies = vocabularies
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: Peer | None = None
        self._ready = asyncio.Event()
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process and returns when it is ready.

        Raises:
            MaskdError: it died at once, or cannot load a vocabulary.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first))
        await first

    async def stop(self) -> None:
        """Ends the process."""
        self._stopping = True
        if self._process:
            self._process.kill()
        if self._supervisor:
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def load_vocabulary(self, name: str, data: bytes) -> None:
        """Gives it one more vocabulary. Raises what it answers."""
        await self._up()
        await self._load(name, data)

    async def spawn_worker(self, number: int, channel_fd: int, marker_fd: int) -> int:
        """Forks a worker and returns its pid. Both descriptors are closed here."""
        try:
            await self._up()
        except BaseException:
            os.close(channel_fd)
            os.close(marker_fd)
            raise
        config = self._config
        spawned = await self._request(
            lambda request: control.SpawnWorker(
                request, number, config.log_level, tuple(config.backends), resolve_threads(config), config.compile_threads,
                config.cache_bytes, config.grammars_per_session, config.spin_seconds, config.row_seconds,
            ),
            _SPAWN_SECONDS,
            (channel_fd, marker_fd),
        )  # fmt: skip
        assert isinstance(spawned, control.Spawned)
        self._exits[spawned.pid] = asyncio.get_running_loop().create_future()
        return spawned.pid

    async def compile(self, fingerprint: bytes, spec: GrammarSpec) -> control.Compiled:
        """Compiles in a child. Cancelling the call kills the child.

        Raises:
            GrammarError: or a child of it. BackendError: the child crashed (``metadata["crashed"]``). UnavailableError.
        """
        await self._up()
        config = self._config
        limits = control.CompileLimits(
            config.compile_seconds, config.compile_bytes, config.mask_seconds, config.compile_nice, tuple(config.compile_cpus)
        )
        verdict = await self._request(
            lambda request: control.Compile(request, fingerprint, spec, limits),
            config.compile_seconds + _GRACE_SECONDS,
            cancel=control.CancelCompile,
        )
        assert isinstance(verdict, control.Compiled)
        return verdict

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        while not self._stopping:
            try:
                await self._live(first)
            except MaskdError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                _log.error("nursery failed", reason=error.reason, error=error.message)
            except OSError as error:  # no descriptor or no memory for it: try again later
                if not first.done():
                    first.set_exception(UnavailableError(f"the nursery cannot be started: {error.strerror}"))
                    return
                _log.error("nursery failed", error=error.strerror)
            if not self._stopping:
                if not first.done():
                    first.set_exception(UnavailableError("the nursery died while it started; its log says why"))
                    return
                _log.warning("nursery died, restarting")
                await asyncio.sleep(min(0.2, self._config.restart_seconds))

    async def _live(self, first: asyncio.Future[None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        options = {
            "front_pid": os.getpid(), "log_level": self._config.log_level, "backend_names": self._config.backends,
            "native_threads": resolve_threads(self._config),
        }  # fmt: skip
        with theirs:
            command = [sys.executable, "-m", "maskd.nursery", str(theirs.fileno()), json.dumps(options)]
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **_ENVIRONMENT}
                )
            except OSError:
                ours.close()
                raise
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peer = Peer("the nursery", ours, lambda message: self._on_message(message, up))
        life = asyncio.create_task(self._peer.run())
        try:
            await asyncio.wait([up, life], return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                for name, data in self._vocabularies():
                    await self._load(name, data)
                self._ready.set()
                if not first.done():
                    first.set_result(None)
            await life
        finally:
            self._ready.clear()
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _on_message(self, message: object, up: asyncio.Future[None]) -> None:
        match message:
            case control.Ready() if not up.done():
                up.set_result(None)
            case control.Reply(result=control.Failure() as failure) if not up.done():  # it could not be built, and has exited
                up.set_exception(control.error_of(failure))
            case control.WorkerExited():
                exited = self._exits.get(message.pid)
                if exited is not None and not exited.done():
                    exited.set_result(message.signal)

    async def exit_signal(self, pid: int) -> int:
        """Returns the signal that ended worker ``pid``, 0 if none did, or if the nursery cannot tell any more."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._exits[pid]), 1.0)
        except (TimeoutError, asyncio.TimeoutError):
            return 0
        finally:
            del self._exits[pid]

    async def _up(self) -> None:
        """Waits for a nursery that is being restarted."""
        try:
            await asyncio.wait_for(self._ready.wait(), _SPAWN_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise UnavailableError("the nursery is restarting; try again") from None

    async def _load(self, name: str, data: bytes) -> None:
        await self._request(lambda request: control.LoadVocabulary(request, name, data), _LOAD_SECONDS)

    async def _request(
        self,
        make: Callable[[int], control.ToNursery],
        seconds: float,
        fds: tuple[int, ...] = (),
        cancel: Callable[[int], control.ToNursery] | None = None,
    ) -> object:
        assert self._peer is not None
        return await self._peer.request(make, seconds, fds, cancel)
