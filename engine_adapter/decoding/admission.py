"""The way of a request to its slot: its grammar is compiled on a thread beside the loop, then it waits until a slot is
free.

One without a grammar has no business with the masker, so that it can run while the daemon is away.
Owns: the compile threads and the queue of those that wait. Knows nothing about: slots, tokens, text.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from engine_adapter.decoding.request import FinishReason, Generation
from engine_adapter.masker import Masker

__all__ = ["Admission"]

_COMPILE_THREADS = 2


class Admission:
    """Generations on their way. ``add`` is for any thread, the rest for the loop's."""

    def __init__(self, masker: Masker, finish: Callable[[Generation, FinishReason, Exception | None], None]) -> None:
        """``finish`` ends those whose grammar is refused and those that are cancelled before they join; it is called on
        any thread."""
        self._masker = masker
        self._finish = finish
        self._compiling = ThreadPoolExecutor(max_workers=_COMPILE_THREADS, thread_name_prefix="grammar")
        # A grammar that is compiled waits for no other one that is not.
        self._known = ThreadPoolExecutor(max_workers=1, thread_name_prefix="known-grammar")
        self._compiled: queue.SimpleQueue[tuple[Generation, int | None]] = queue.SimpleQueue()
        self._ready: deque[tuple[Generation, int | None]] = deque()

    def add(self, generation: Generation) -> None:
        """Sends ``generation`` on its way; one without a grammar is ready at once."""
        if generation.request.grammar is None:
            self._compiled.put((generation, None))
        else:
            known = self._masker.knows(generation.request.grammar)
            (self._known if known else self._compiling).submit(self._open, generation)

    def wait(self, timeout_seconds: float) -> None:
        """Waits until one is ready, or ``timeout_seconds`` are over."""
        if not self._ready:
            with contextlib.suppress(queue.Empty):
                self._ready.append(self._compiled.get(timeout=timeout_seconds))

    def drop_cancelled(self, *, masked: bool = True) -> None:
        """Ends those that wait for a slot and were cancelled; without ``masked``, only those that the masker does not
        know."""
        self._collect()
        for waiting in [
            waiting for waiting in self._ready if waiting[0].is_cancelled and (masked or waiting[1] is None)
        ]:
            self._ready.remove(waiting)
            if waiting[1] is not None:
                self._masker.close(waiting[1])
            self._finish(waiting[0], "cancelled", None)

    def take(self) -> tuple[Generation, int | None] | None:
        """Returns the next one that is ready and its handle at the masker, if it has one; None if there is none."""
        self._collect()
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Waits for the compiles that are running, and starts no other."""
        self._compiling.shutdown(cancel_futures=True)
        self._known.shutdown(cancel_futures=True)

    def _collect(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.append(self._compiled.get_nowait())

    def _open(self, generation: Generation) -> None:
        try:
            if generation.is_cancelled:
                self._finish(generation, "cancelled", None)
                return
            handle = self._masker.open(generation.request.grammar)
            generation.report = self._masker.report(handle)
        except Exception as error:  # whatever it is, somebody waits for this generation
            self._finish(generation, "error", error)
        else:
            self._compiled.put((generation, handle))
