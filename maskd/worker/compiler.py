"""Compile threads: where a worker builds backends and compiles grammars, off the data path.

The threads spend their time in native code without the GIL; what they hand back is picked up by the data path when it
hears the eventfd. They have large stacks: both libraries recurse over the grammar, and 8 MiB are not enough for chains
of a few thousand references.
Owns: the threads and their queues. Knows nothing about: caches, sessions, messages.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from maskd.errors import BackendError, MaskdError

__all__ = ["STACK_BYTES", "CompilePool"]

STACK_BYTES = 64 << 20
_log = structlog.get_logger()


class CompilePool:
    """A few threads that run jobs and ring ``done_fd`` after each.

    Args:
        threads: jobs at a time.
    """

    def __init__(self, threads: int) -> None:
        self.done_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, float], None]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Callable[[Any, float], None], Any, float]] = queue.SimpleQueue()
        previous = threading.stack_size(STACK_BYTES)
        try:
            for number in range(threads):
                threading.Thread(target=self._work, name=f"compile-{number}", daemon=True).start()
        finally:
            threading.stack_size(previous)

    def submit(self, job: Callable[[], Any], then: Callable[[Any, float], None]) -> None:
        """Runs ``job`` on a thread; ``then(result or MaskdError, seconds)`` is called by ``finish``."""
        self._jobs.put((job, then))

    def finish(self) -> None:
        """Calls what the finished jobs asked for, on the caller's thread."""
        os.eventfd_read(self.done_fd)
        while not self._done.empty():
            then, result, seconds = self._done.get()
            then(result, seconds)

    def _work(self) -> None:
        while True:
            job, then = self._jobs.get()
            started = time.perf_counter()
            try:
                result = job()
            except MaskdError as error:
                result = error
            except Exception as error:  # a library's own surprise is one grammar's failure, not the worker's
                _log.exception("compile job failed")
                result = BackendError(f"the compile failed inside the library: {type(error).__name__}")
            self._done.put((then, result, time.perf_counter() - started))
            os.eventfd_write(self.done_fd, 1)
