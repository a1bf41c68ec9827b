"""Threads for what takes long: where a worker compiles grammars and makes segments, off the data path.

The threads spend their time in native code without the GIL. The data path picks up their results when the eventfd
rings.
Owns: the threads and their queues. Knows nothing about: what a job does.
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

__all__ = ["STACK_BYTES", "WorkPool"]

STACK_BYTES = 64 << 20
"""Both libraries recurse over the grammar; 8 MiB are not enough for chains of a few thousand references."""
_log = structlog.get_logger()


class WorkPool:
    """A few threads that run jobs and ring ``done_fd`` after each.

    Args:
        name: of a job, for logs and errors.
        threads: jobs at a time; with one, jobs are done in their order.
        stack_bytes: of each thread; 0 = the system's.
    """

    def __init__(self, name: str, threads: int, stack_bytes: int = 0) -> None:
        self.done_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, float], None]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Callable[[Any, float], None], Any, float]] = queue.SimpleQueue()
        previous = threading.stack_size(stack_bytes)
        try:
            for number in range(threads):
                threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()
        finally:
            threading.stack_size(previous)

    def submit(self, job: Callable[[], Any], then: Callable[[Any, float], None]) -> None:
        """Runs ``job`` on a thread; ``then(result or MaskdError, seconds)`` is called by ``finish``."""
        self._jobs.put((job, then))

    def finish(self) -> None:
        """Calls the ``then`` of every finished job, on the caller's thread."""
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
            # an error of a library, or a panic of Rust, fails this job only
            except BaseException as error:
                _log.exception("job failed", job=self._name)
                result = BackendError(f"the {self._name} failed inside the worker: {type(error).__name__}")
            self._done.put((then, result, time.perf_counter() - started))
            os.eventfd_write(self.done_fd, 1)
