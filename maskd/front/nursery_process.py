"""A nursery as the front sees it: the process that has one vocabulary built, forks its workers and compiles in killable
children.

Owns: the process, its restart, and what to say where it does not survive its vocabulary. A dead nursery takes no worker
    with it; compiles
under way fail and may be tried again.
Knows nothing about: sessions, caches, gRPC, other vocabularies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket

from maskd.errors import CapacityError, DeadlineError, MaskdError, UnavailableError, VocabularyError
from maskd.front.config import Config
from maskd.front.supervised import SPAWN_SECONDS, Exits, Supervised
from maskd.front.zygote_process import Zygote
from maskd.grammar import GrammarSpec
from maskd.ipc import messages
from maskd.ipc.peer import Peer
from maskd.vocabulary import Vocabulary

__all__ = ["Nursery"]

_GRACE_SECONDS = 5.0


class Nursery(Supervised):
    """One supervised nursery. ``start`` raises VocabularyError if its vocabulary cannot be used, and which limit or
    backend is why.

    Args:
        number: for logs.
        zygote: forks it.
        vocabulary: what it builds.
        data_fd: of a file with ``vocabulary`` as bytes; closed by ``stop``.

    Attributes:
        fingerprint: of the vocabulary.
        exits: how its workers ended.
        warnings: what looks unusual in the vocabulary, for people.
    """

    def __init__(self, number: int, config: Config, zygote: Zygote, vocabulary: Vocabulary, data_fd: int) -> None:
        super().__init__("nursery", config.restart_seconds, nursery=number)
        self.number = number
        self.fingerprint = vocabulary.fingerprint
        self.exits: Exits = zygote.exits
        self.warnings: tuple[str, ...] = ()
        self._config = config
        self._zygote = zygote
        self._name = vocabulary.name
        self._data_fd = data_fd
        self._building = messages.Building("the reader", 0)

    async def stop(self) -> None:
        """Ends the process. Its workers live on."""
        await super().stop()
        os.close(self._data_fd)

    async def spawn_worker(self, number: int, channel_fd: int, marker_fd: int) -> int:
        """Forks a worker and returns its pid. Both descriptors are closed here."""
        config = self._config
        return await self._have_forked(
            lambda request: messages.SpawnWorker(
                request,
                number,
                config.log_level,
                config.compile_threads,
                config.cache_bytes,
                config.grammars_per_session,
                config.spin_seconds,
                config.row_seconds,
            ),
            (channel_fd, marker_fd),
        )

    async def compile(self, spec: GrammarSpec) -> messages.Compiled:
        """Compiles in a child. Cancelling the call kills the child.

        Raises:
            GrammarError: or a child of it. BackendError: the child crashed (``metadata["crashed"]``). UnavailableError.
        """
        await self.wait_until_ready(SPAWN_SECONDS)
        config = self._config
        limits = messages.CompileLimits(
            config.compile_seconds,
            config.compile_bytes,
            config.mask_seconds,
            config.compile_nice,
            tuple(config.compile_cpus),
        )
        assert self._peer is not None
        verdict = await self._peer.request(
            lambda request: messages.Compile(request, spec, limits),
            config.compile_seconds + _GRACE_SECONDS,
            cancel=messages.CancelCompile,
        )
        assert isinstance(verdict, messages.Compiled)
        return verdict

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            pid = await self._zygote.fork_nursery(self.number, theirs.detach())
            self._know(pid, stack)
            self.exits.expect(pid, stack)
            peer = self._peer = Peer("the nursery", ours, self._on_message)
            life = asyncio.create_task(peer.run())
            try:
                await self._build(peer, pid)
                self._is_up()
                await life
            finally:
                self._ready.clear()
                self.kill()
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)

    async def _build(self, peer: Peer, pid: int) -> None:
        seconds, size = self._config.build_seconds, self._config.build_bytes

        def load(request: int) -> messages.LoadVocabulary:
            return messages.LoadVocabulary(request, self._name, seconds, size)

        try:
            loaded = await peer.request(load, seconds + _GRACE_SECONDS, (os.dup(self._data_fd),))
        except DeadlineError:  # it is stopped
            raise self._late() from None
        except UnavailableError:
            raise self._why(await self.exits.of(pid)) from None
        assert isinstance(loaded, messages.Loaded)
        self.warnings = loaded.warnings

    def _why(self, exited: messages.Exited | None) -> MaskdError:
        """Says why the process did not survive its vocabulary."""
        size, backend = self._config.build_bytes, self._building.backend
        if exited is None:
            return UnavailableError("the nursery died while it read the vocabulary, and the zygote too; try again")
        if exited.signal == signal.SIGALRM:
            return self._late()
        if exited.signal == signal.SIGKILL:
            return CapacityError(
                "the nursery was killed while it read the vocabulary, most likely by the kernel for lack of memory; "
                "try again later",
                limit="memory",
            )
        # libraries abort in many ways when an allocation fails
        if exited.peak_bytes - self._building.resident_bytes > size / 2:
            return VocabularyError(
                f"{backend} needed more than build_bytes = {size} for the vocabulary; "
                "raise the limit, or use fewer tokens",
                limit="build_bytes",
                value=size,
                backend=backend,
            )
        how = f"signal {exited.signal}" if exited.signal else "an exit of its own"
        return VocabularyError(
            f"{backend} cannot use the vocabulary: its process died of {how} on it; "
            "leave out odd tokens, or the backend",
            backend=backend,
        )

    def _late(self) -> VocabularyError:
        seconds, backend = self._config.build_seconds, self._building.backend
        return VocabularyError(
            f"{backend} was not built for the vocabulary within build_seconds = {seconds}; "
            "raise the limit, or use fewer tokens",
            limit="build_seconds",
            value=seconds,
            backend=backend,
        )

    def _on_message(self, message: object) -> None:
        match message:
            case messages.Building():
                self._building = message
            case messages.Exited():
                self.exits.tell(message)
