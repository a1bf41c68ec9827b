"""A request on its way to a slot: it waits for its grammar, then for a slot that is free.

A request without a grammar does not touch the masker, so it can run while the daemon is away.
Owns: the compile threads, and the queue of requests that wait. Knows nothing about: slots, tokens, text.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from engine_adapter.decoding.request import FinishReason, Generation
from engine_adapter.masker import Masker

__all__ = ["Admission", "Admitted"]

_COMPILE_THREADS = 2


class Admitted(NamedTuple):
    """An output that waits for a slot, and its sequence at the masker; None without a grammar."""

    generation: Generation
    handle: int | None


class Admission:
    """Outputs on their way to a slot. ``add`` is for any thread, the rest for the loop's."""

    def __init__(self, masker: Masker, finish: Callable[[Generation, FinishReason, Exception | None], None]) -> None:
        """``finish`` is called, on any thread, for outputs that end here: grammar refused, or cancelled."""
        self._masker = masker
        self._finish = finish
        self._compiling = ThreadPoolExecutor(max_workers=_COMPILE_THREADS, thread_name_prefix="grammar")
        # A known grammar does not wait for others that are being compiled.
        self._known = ThreadPoolExecutor(max_workers=1, thread_name_prefix="known-grammar")
        self._compiled: queue.SimpleQueue[Admitted] = queue.SimpleQueue()
        self._ready: deque[Admitted] = deque()

    def add(self, generation: Generation) -> None:
        """Sends ``generation`` on its way; without a grammar it is ready at once."""
        if generation.request.grammar is None:
            self._compiled.put(Admitted(generation, None))
        else:
            known = self._masker.knows(generation.request.grammar)
            (self._known if known else self._compiling).submit(self._open, generation)

    def wait(self, timeout_seconds: float) -> None:
        """Waits until an output is ready, or ``timeout_seconds`` are over."""
        if not self._ready:
            with contextlib.suppress(queue.Empty):
                self._ready.append(self._compiled.get(timeout=timeout_seconds))

    def drop_cancelled(self, *, masked: bool = True) -> None:
        """Ends cancelled outputs that wait for a slot; without ``masked``, only those without a grammar."""
        self._take_in()
        for ready in [each for each in self._ready if each.generation.is_cancelled and (masked or each.handle is None)]:
            self._ready.remove(ready)
            if ready.handle is not None:
                self._masker.close(ready.handle)
            self._finish(ready.generation, "cancelled", None)

    def take(self) -> Admitted | None:
        """Returns the next output that is ready; None if there is none."""
        self._take_in()
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Waits for running compiles, and starts no others."""
        self._compiling.shutdown(cancel_futures=True)
        self._known.shutdown(cancel_futures=True)

    def _take_in(self) -> None:
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
        except Exception as error:  # of any kind: a caller waits for this output
            self._finish(generation, "error", error)
        else:
            self._compiled.put(Admitted(generation, handle))
