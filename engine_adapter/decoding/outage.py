"""An outage of the daemon, as the decode loop sees it.

A thread waits for the daemon. Meanwhile slots with a grammar are held back, and the others go on.
Owns: whether there is an outage, and which slots it holds back. Knows nothing about: how a session is had again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine_adapter.decoding.batch import Slot

__all__ = ["Outage"]


class Outage:
    """The outages of one loop, one at a time. For the loop's thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def is_on(self) -> bool:
        """Whether an outage has begun and not ended: the masker may be in use by another thread."""
        return self._thread is not None

    def holds(self, slot: Slot) -> bool:
        """Whether ``slot`` is left as it is until the outage ends."""
        return self.is_on and slot.handle is not None

    def begin(self, wait: Callable[[], object]) -> None:
        """Begins an outage: calls ``wait`` on a thread, which raises if the daemon stays away."""
        self._thread = threading.Thread(target=self._run, args=(wait,), name="daemon away", daemon=True)
        self._thread.start()

    def end(self) -> Exception | None:
        """Ends the outage if ``wait`` has returned; returns the error that it raised, None if there is none."""
        if self._thread is None or self._thread.is_alive():
            return None
        error, self._thread, self._error = self._error, None, None
        return error

    def _run(self, wait: Callable[[], object]) -> None:
        try:
            wait()
        except Exception as error:  # of any kind: outputs wait for it
            self._error = error
