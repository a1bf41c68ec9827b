"""The zygote: imports the grammar libraries once, builds nothing, and forks a nursery for each vocabulary.

Owns: the nurseries as processes. Reaps workers whose nursery died before them.
Knows nothing about: vocabularies, grammars, why a child died.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from maskd import backends
from maskd.ipc import messages
from maskd.nursery.forking import ForkingLoop
from maskd.nursery.loop import run_nursery

__all__ = ["ZygoteLoop"]


class ZygoteLoop(ForkingLoop):
    """Runs until the front closes the control channel. Nurseries go on until the front closes theirs.

    Args:
        channel: socket to the front.
        backend_names: what ``auto`` tries, in this order.
        native_threads: threads that a worker's library may use for a batch.
        log_level: of the nurseries.
    Raises:
        GrammarUnsupportedError: no such backend.
    """

    def __init__(
        self, channel: socket.socket, *, backend_names: Sequence[str], native_threads: int, log_level: str
    ) -> None:
        self._factories = {name: backends.load(name) for name in backend_names}
        super().__init__(channel, messages.ToZygote)
        self._native_threads = native_threads
        self._log_level = log_level

    def run(self) -> None:
        """Serves until the front is gone."""
        self._send(messages.Ready(os.getpid()))
        super().run()

    def _handle(self, message: object, fds: list[int]) -> None:
        assert isinstance(message, messages.ForkNursery)
        self._fork_with(
            message.request,
            fds,
            lambda: run_nursery(fds[0], message.number, self._factories, self._native_threads, self._log_level),
        )
