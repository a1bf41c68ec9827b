"""Shared-memory sessions are made and freed on a thread of their own, for the kernel may have to clear gigabytes.

The data path goes on meanwhile. If the client leaves before its session is ready, the session is freed at once.
Owns: the thread, and which openings are still wanted. Knows nothing about: messages, what a session is for.
"""

from __future__ import annotations

from collections.abc import Callable

from maskd.errors import MaskdError, UnavailableError
from maskd.worker.pool import WorkPool
from maskd.worker.shared_session import SharedSession

__all__ = ["Openings"]


class Openings:
    """One thread, so that memory is free before more is taken. Only the data path calls the methods.

    Attributes:
        done_fd: readable when ``finish`` has something to do.
    """

    def __init__(self) -> None:
        self._pool = WorkPool("allocation of a session", 1)
        self._wanted: dict[int, object] = {}  # by session id: the opening
        self.done_fd = self._pool.done_fd
        self.finish = self._pool.finish

    def open(
        self, session_id: int, make: Callable[[], SharedSession], then: Callable[[SharedSession | MaskdError], None]
    ) -> None:
        """Has ``make`` called on the thread.

        ``finish`` then calls ``then`` with the session, or with why there is none; after ``cancel`` it does not.
        """
        opening = self._wanted[session_id] = object()

        def make_if_wanted() -> SharedSession:
            if self._wanted.get(session_id) is not opening:
                raise UnavailableError("the session was closed before it was open")
            return make()

        def made(session: SharedSession | MaskdError, _: float) -> None:
            if self._wanted.get(session_id) is opening:
                del self._wanted[session_id]
                then(session)
            elif not isinstance(session, MaskdError):
                self.free(session)

        self._pool.submit(make_if_wanted, made)

    def cancel(self, session_id: int) -> None:
        """Gives up an opening. Does nothing to a session that is open, or that was never asked for."""
        self._wanted.pop(session_id, None)

    def free(self, session: SharedSession) -> None:
        """Frees a session, which must not be served any more."""
        self._pool.submit(session.close, lambda *_: None)
