"""The zygote as the front sees it: the process that has the libraries loaded and forks nurseries.

A dead zygote takes no nursery and no worker with it.
Owns: the process and its restart.
Knows nothing about: vocabularies, workers, gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

from maskd.front.config import Config, resolve_threads
from maskd.front.supervised import Exits, Supervised
from maskd.ipc import messages
from maskd.ipc.peer import Peer

__all__ = ["Zygote"]

_ENVIRONMENT = {
    # No library may start threads at import: a process with threads cannot be forked safely.
    **{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")},
    # Nothing is imported from the directory in which the daemon was started.
    "PYTHONSAFEPATH": "1",
}


class Zygote(Supervised):
    """One supervised zygote.

    Attributes:
        exits: how nurseries and workers ended.
    """

    def __init__(self, config: Config) -> None:
        super().__init__("zygote", min(0.2, config.restart_seconds))
        self.exits = Exits()
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """See ``Supervised.kill``."""
        if self._process:
            self._process.kill()

    async def fork_nursery(self, number: int, channel_fd: int) -> int:
        """Forks a nursery and returns its pid. The descriptor is closed here."""
        return await self._have_forked(messages.ForkNursery(number), (channel_fd,))

    async def _live(self) -> None:
        options = {
            "front_pid": os.getpid(),
            "log_level": self._config.log_level,
            "backend_names": self._config.backends,
            "native_threads": resolve_threads(self._config),
        }
        with contextlib.ExitStack() as stack:
            ours, theirs = self._channel(stack)
            with theirs:
                command = [sys.executable, "-m", "maskd.nursery", str(theirs.fileno()), json.dumps(options)]
                self._process = subprocess.Popen(  # noqa: S603
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **_ENVIRONMENT}
                )
            refusals: list[messages.Failure] = []
            self._peer = Peer("the zygote", ours, lambda message: self._on_message(message, refusals))
            try:
                await self._peer.run()
            finally:
                self._is_down()
                await asyncio.to_thread(self._process.wait)
            if refusals:
                raise messages.error_of(refusals[0])

    def _on_message(self, message: object, refusals: list[messages.Failure]) -> None:
        match message:
            case messages.Ready():
                self._is_up()
            case messages.Answered(result=messages.Failure() as failure):  # an unknown backend; the zygote has ended
                refusals.append(failure)
            case messages.Exited():
                self.exits.tell(message)
