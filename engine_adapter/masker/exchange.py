"""One step with the daemon: sent, answered, and sent again to a new session whenever the session is lost.

Owns: the way to a new session in which every sequence stands where the ledger says, and how long to try.
Knows nothing about: threads, logits, when a step is due.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from engine_adapter.masker.connection import MAY_COME_BACK, SESSION_LOST, Connection
from engine_adapter.masker.late_rows import StepAnswer
from engine_adapter.masker.ledger import Ledger, Step
from maskd.client import Session
from maskd.errors import UnavailableError

__all__ = ["FIRST_DELAY_SECONDS", "Exchange"]

FIRST_DELAY_SECONDS = 0.02
"""Between two looks for a session that is lost."""
_LAST_DELAY_SECONDS = 1.0


class Exchange:
    """Sends steps and brings their answers. One step at a time, one thread at a time, but for ``stop``."""

    def __init__(
        self, connection: Connection, ledger: Ledger, *, restore_seconds: float, row_stride_words: int
    ) -> None:
        """``restore_seconds``: how long a lost daemon may stay away. ``row_stride_words``: width of a row."""
        self._connection = connection
        self._ledger = ledger
        self._restore_seconds = restore_seconds
        self._stopping = threading.Event()
        self._sent_to: Session | None = None  # the session that was sent the present step
        self._nothing = StepAnswer(np.empty((0, row_stride_words), dtype=np.int32), True, list)

    def stop(self) -> None:
        """Ends the waiting for a lost daemon, now and from now on. For any thread."""
        self._stopping.set()

    def deadline(self) -> float:
        """Returns when a daemon that is lost now has stayed away for too long, by the monotonic clock."""
        return time.monotonic() + self._restore_seconds

    def send(self, step: Step) -> None:
        """Sends ``step`` to the present session and returns at once.

        Raises:
            one of ``SESSION_LOST``: ``answer`` sends it again. Other MaskdErrors: nothing was sent.
        """
        self._sent_to = None
        session = self._connection.present
        self._ledger.write_items(step, self._connection.grammar_id, self._connection.item_capacity)
        if step.items:
            session.submit(step.items)
        self._sent_to = session

    def answer(self, step: Step, *, restore: bool) -> StepAnswer | None:
        """Waits for the answer to ``step``, through as many sessions as that takes.

        Args:
            step: the one of the last ``send``.
            restore: replace a lost session. Without it, a lost session is answered by None, and the step stays due.

        Raises:
            UnavailableError: the daemon stayed away for ``restore_seconds``.
        """
        deadline = 0.0
        while True:
            try:
                if self._sent_to is None or self._sent_to is not self._connection.session:
                    self.send(step)
                return self._connection.collect(step.items) if step.items else self._nothing
            except SESSION_LOST as error:
                if not self._ledger.is_asking(step):  # only closes, and the lost session took those sequences along
                    step.withdraw()
                    return self._nothing
                if not restore:
                    return None
                deadline = deadline or self.deadline()
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"no session lived through this step for {self._restore_seconds} s: {error}"
                    ) from error
                self.restore(deadline)

    def restore(self, deadline: float) -> None:
        """Replaces the session by a new one in which every sequence stands where it stood.

        Raises:
            UnavailableError: ``deadline`` passed. Others: the daemon answered, and refused for good.
        """
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                self._ledger.refuse(self._connection.renew(self._ledger.specs()))
                standing = self._ledger.standing()
                failed = self._connection.replay(standing)
                self._ledger.fail(failed)
                self._ledger.stand_again(standing.keys() - failed.keys())
                return
            except MAY_COME_BACK as error:
                if error.metadata.get("limit") == "rows_per_session":  # of each session: it will not pass
                    self._connection.drop()
                    raise
                if time.monotonic() + delay > deadline or self._stopping.wait(delay):
                    self._connection.drop()
                    raise UnavailableError(f"no session with maskd: {error}") from error
            delay = min(2 * delay, _LAST_DELAY_SECONDS)
