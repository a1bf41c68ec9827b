"""A nursery as the front sees it: the process that builds one vocabulary, forks its workers and compiles in children.

A dead nursery takes no worker with it. Compiles under way fail and may be tried again.
Owns: the process, its restart, and the error when it does not survive its vocabulary.
Knows nothing about: sessions, caches, gRPC, other vocabularies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

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
    """One supervised nursery.

    ``start`` raises VocabularyError if the vocabulary cannot be used; the error names the limit or the backend.

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
            messages.SpawnWorker(
                number=number,
                log_level=config.log_level,
                compile_threads=config.compile_threads,
                cache_bytes=config.cache_bytes,
                grammars_per_session=config.grammars_per_session,
                spin_seconds=config.spin_seconds,
                row_seconds=config.row_seconds,
            ),
            (channel_fd, marker_fd),
        )

    async def compile(self, spec: GrammarSpec) -> messages.Compiled | messages.Crashed:
        """Compiles in a child process. Cancelling the call kills that process.

        Raises:
            GrammarError: or one of its subclasses. BackendError: the library failed. UnavailableError: no nursery.
        """
        await self.wait_until_ready(SPAWN_SECONDS)
        config = self._config
        limits = messages.CompileLimits(
            seconds=config.compile_seconds,
            bytes=config.compile_bytes,
            mask_seconds=config.mask_seconds,
            nice=config.compile_nice,
            cpus=tuple(config.compile_cpus),
        )
        assert self._peer is not None
        verdict = await self._peer.request(
            messages.Compile(spec, limits),
            config.compile_seconds + _GRACE_SECONDS,
            cancel=messages.CancelCompile,
        )
        assert isinstance(verdict, messages.Compiled | messages.Crashed)
        return verdict

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        with contextlib.ExitStack() as stack:
            ours, theirs = self._channel(stack)
            pid = await self._zygote.fork_nursery(self.number, theirs.detach())
            self._know(pid, self.exits, stack)
            peer = self._peer = Peer("the nursery", ours, self._on_message)
            life = asyncio.create_task(peer.run())
            try:
                await self._build(peer, pid)
                self._is_up()
                await life
            finally:
                self._is_down()
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)

    async def _build(self, peer: Peer, pid: int) -> None:
        seconds, size = self._config.build_seconds, self._config.build_bytes
        load = messages.LoadVocabulary(name=self._name, seconds=seconds, bytes=size)
        try:
            loaded = await peer.request(load, seconds + _GRACE_SECONDS, (os.dup(self._data_fd),))
        except DeadlineError:  # it was stopped, by SIGSTOP
            raise self._late() from None
        except UnavailableError:
            raise self._why(await self.exits.of(pid)) from None
        assert isinstance(loaded, messages.Loaded)
        self.warnings = loaded.warnings

    def _why(self, exited: messages.Exited | None) -> MaskdError:
        """Returns why the process did not survive its vocabulary."""
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
