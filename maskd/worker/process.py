"""A worker process from its first line: the nursery forks, and calls ``run_worker`` in the child.

Owns: the threads of the process, and its end. Knows nothing about: sessions, messages.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import threading
from collections.abc import Mapping

import structlog

from maskd.backends.base import Backend
from maskd.ipc.messages import SpawnWorker
from maskd.observability.logs import configure_logging
from maskd.vocabulary import Vocabulary
from maskd.worker.loop import WorkerLoop
from maskd.worker.pool import STACK_BYTES

__all__ = ["run_worker"]

_log = structlog.get_logger()
_PR_SET_NAME, _PR_SET_TIMERSLACK = 15, 29


def run_worker(
    channel_fd: int, marker_fd: int, options: SpawnWorker, vocabulary: Vocabulary, named: Mapping[str, Backend]
) -> None:
    """Runs the loop on a thread with a large stack, for matchers recurse as compilers do. Never returns.

    The worker outlives its nursery and ends with the front, even when the data path is stuck in native code. For that
    the main thread does nothing but wait until the other end of the control channel closes. If the data path fails, it
    ends the process, and the front starts another worker.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_NAME, b"maskd-worker")
    prctl(_PR_SET_TIMERSLACK, 1000)
    configure_logging(options.log_level, process=f"worker-{options.number}")
    channel = socket.socket(fileno=channel_fd)
    loop = WorkerLoop(channel, marker_fd, options, vocabulary, named)

    def data_path() -> None:
        try:
            loop.run()
        except BaseException:
            _log.exception("the data path failed")
            os._exit(1)

    threading.stack_size(STACK_BYTES)
    threading.Thread(target=data_path, name="data-path", daemon=True).start()
    gc.freeze()
    end = select.poll()
    end.register(channel, select.POLLRDHUP)
    end.poll()
    os._exit(0)
