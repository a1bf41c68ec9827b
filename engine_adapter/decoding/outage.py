"""An outage of the daemon as the decode loop sees it: somebody waits for it on a thread of its own, while outputs
without a grammar go on.

Knows nothing about: slots, how a session is had again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Outage"]


class Outage:
    """Waits in the background until the masker stands again, or has given up.

    Attributes:
        error: why it gave up; None if it stands, or while ``is_over`` is False.
    """

    def __init__(self, wait: Callable[[], object]) -> None:
        """Calls ``wait``, which raises if there is no way back, on a thread."""
        self.error: Exception | None = None
        self._wait = wait
        self._thread = threading.Thread(target=self._run, name="daemon away", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the masker can be asked again."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._wait()
        except Exception as error:  # whatever it is, outputs wait for it
            self.error = error
