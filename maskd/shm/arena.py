"""The arena: an engine's side of a shared-memory session. Attach, submit a step, wait, read the reply.

The data socket is the session's lease. While it is open the session lives; its end tells either side at once that the
other side is gone.
Owns: the two mappings, the descriptors that wake either side, the data socket.
Knows nothing about: gRPC (``client.py`` gets the token), grammars, what the engine does with the rows.

Python stores no word that the peer waits on by itself: ordering is in ``maskd._shm`` (acquire, release, full fence).
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskd import _shm
from maskd.errors import (
    CapacityError,
    DeadlineError,
    PermissionDeniedError,
    ProtocolError,
    StepOrderError,
    UnavailableError,
)
from maskd.shm import layout as lay
from maskd.shm.cells import Reply, pack_items
from maskd.shm.segments import Mapping
from maskd.step import Item

__all__ = ["Arena"]

_RECHECK_SECONDS = 0.05
"""A wake-up that got lost costs this long, and never a hang."""
_CONNECT_AGAIN_SECONDS = 0.005
_REFUSALS = {
    1: "the daemon did not understand the hello",
    2: "the daemon has another layout version",
    3: "the session token is wrong, used or expired",
    4: "this user may not use the daemon",
    5: "the session's worker is gone",
}

_INT32 = np.dtype(np.int32)
_NO_TOKENS = np.zeros(0, dtype=_INT32)


class Arena:
    """One attached session. Not thread-safe: one thread submits and waits."""

    name: Literal["shm", "inline"] = "shm"

    def __init__(self, lease: socket.socket, *, timeout_seconds: float = 10.0, spin_seconds: float = 0.0) -> None:
        """Receives the grant over ``lease`` and maps the segments.

        Args:
            lease: connected SOCK_SEQPACKET socket whose hello was sent.
            timeout_seconds: for the grant.
            spin_seconds: how long ``collect`` spins, without the GIL, before it sleeps.
        Raises:
            PermissionDeniedError: the daemon refused. UnavailableError: it hung up. ProtocolError: it sent nonsense.
        """
        self._lease = lease
        self._spin_ns = int(spin_seconds * 1e9)
        self._fds: list[int] = []
        self._mappings: list[Mapping] = []
        self.closed = False
        try:
            rows_bytes, steps_bytes = self._receive_grant(timeout_seconds)
            rows = Mapping(self._fds[0], rows_bytes, writable=False)
            self._mappings.append(rows)
            steps = Mapping(self._fds[1], steps_bytes, writable=True)
            self._mappings.append(steps)
            if _shm.load_u64(rows.base) != lay.MAGIC_ROWS:
                raise ProtocolError("the rows segment is not ready")
            header = bytes(rows.bytes[: lay.ROWS_HEADER.size])
            self.layout, self.session_id, self.worker_epoch, self.fingerprint = lay.Layout.unpack_rows_header(
                header, rows_bytes
            )
            if self.layout.steps_bytes != steps_bytes:
                raise ProtocolError(f"steps segment has {steps_bytes} bytes, its layout says {self.layout.steps_bytes}")
            os.close(self._fds.pop(0))
            os.close(self._fds.pop(0))
        except BaseException:
            self.close()
            raise
        self.doorbell_fd, self.reply_fd = self._fds
        self._rows, self._steps = rows, steps
        layout = self.layout
        cells = range(lay.CELL_COUNT)
        rows_at = [lay.PAGE_BYTES + c * layout.rows_cell_stride for c in cells]
        steps_at = [lay.PAGE_BYTES + c * layout.steps_cell_stride for c in cells]
        self._rows_cell_at = [rows.base + at for at in rows_at]
        self._row_blocks = [
            rows.int32(at + layout.rows_offset, (layout.row_capacity, layout.row_stride_words)) for at in rows_at
        ]
        self._reply_shape = (layout.results_offset, layout.forced_offset, layout.item_capacity, layout.forced_capacity)
        self._steps_cell_at = steps_at
        self._items_at = [at + layout.items_offset for at in steps_at]
        self._tokens_at = [at + layout.tokens_offset for at in steps_at]
        self._published = steps.base + lay.PUBLISHED_STEP_OFFSET
        self._processor_word = steps.base + lay.ENGINE_PROCESSOR_OFFSET
        self._need_wakeup = steps.base + lay.ENGINE_NEED_WAKEUP_OFFSET
        self._completed = rows.base + lay.COMPLETED_STEP_OFFSET
        self._peer_flag = rows.base + lay.WORKER_NEED_WAKEUP_OFFSET
        self._poll = select.poll()
        self._poll.register(self.reply_fd, select.POLLIN)
        self._poll.register(self._lease, select.POLLIN)
        self.submitted = 0
        self.collected = 0

    @classmethod
    def attach(
        cls, data_socket: str, token: bytes, *, timeout_seconds: float = 10.0, spin_seconds: float = 0.0
    ) -> Arena:
        """Connects to the data socket at ``data_socket`` and claims the session of ``token`` (16 bytes, one use).

        Raises:
            UnavailableError: nothing listens there, or it takes no connection within ``timeout_seconds``.
            PermissionDeniedError: the token or the user is refused.
        """
        deadline = time.monotonic() + timeout_seconds
        lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lease.setblocking(False)
        try:
            while True:
                try:
                    lease.connect(data_socket)
                    break
                except BlockingIOError:  # too many wait to be accepted; the kernel does not tell when one was
                    if time.monotonic() > deadline:
                        raise UnavailableError(
                            f"the daemon at {data_socket} accepts no connection within {timeout_seconds} s; try again"
                        ) from None
                    time.sleep(_CONNECT_AGAIN_SECONDS)
            lease.send(lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0, token))
        except BaseException as error:
            lease.close()
            if isinstance(error, OSError):
                raise UnavailableError(f"no daemon at {data_socket}: {error.strerror or error}") from None
            raise
        return cls(lease, timeout_seconds=max(0.01, deadline - time.monotonic()), spin_seconds=spin_seconds)

    def _receive_grant(self, timeout_seconds: float) -> tuple[int, int]:
        self._lease.settimeout(timeout_seconds)
        fds = array.array("i")
        try:
            data, ancillary, flags, _ = self._lease.recvmsg(
                lay.GRANT.size, socket.CMSG_SPACE(4 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            raise UnavailableError(f"the daemon did not answer the hello within {timeout_seconds:.3g} s") from None
        except OSError as error:
            raise UnavailableError(f"the daemon hung up: {error.strerror}") from None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        self._fds = list(fds)
        if not data:
            raise UnavailableError("the daemon hung up before it granted the session")
        if len(data) != lay.GRANT.size:
            raise ProtocolError(f"the grant has {len(data)} bytes, not {lay.GRANT.size}")
        magic, refusal, _, _, _, rows_bytes, steps_bytes = lay.GRANT.unpack(data)
        if magic != lay.MAGIC_GRANT:
            raise ProtocolError("the data socket answered with something else than a grant")
        if refusal:
            raise PermissionDeniedError(f"the session was refused: {_REFUSALS.get(refusal, refusal)}", refusal=refusal)
        if len(self._fds) != 4 or flags & socket.MSG_CTRUNC:
            raise ProtocolError(
                f"the grant brought {len(self._fds)} descriptors, not 4; is the descriptor limit reached?"
            )
        return rows_bytes, steps_bytes

    # -- a step ----------------------------------------------------------------------------------------------------

    def submit(self, items: Sequence[Item]) -> int:
        """Publishes one step for the whole batch and returns its number, at once.

        Raises:
            CapacityError: more items or tokens than the session was opened for; nothing was published.
            InvalidRequestError: a number does not fit its field; nothing was published.
            StepOrderError: two steps are unanswered already.
        """
        cell, capacity = self._next_cell(), self.layout.item_capacity
        if len(items) > capacity:
            raise CapacityError(
                f"{len(items)} items in a step; the session takes {capacity}", limit="item_capacity", value=capacity
            )
        view = self._steps.view
        tokens = pack_items(view, self._items_at[cell], items)
        capacity, count = self.layout.token_capacity, len(tokens) // 4
        if count > capacity:
            raise CapacityError(
                f"{count} tokens in a step; the session takes {capacity}", limit="token_capacity", value=capacity
            )
        at = self._tokens_at[cell]
        view[at : at + len(tokens)] = tokens
        return self._publish(cell, len(items), count)

    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int:
        """Publishes one step from arrays: two copies, whatever the batch size.

        Args:
            items: (n,) of ``layout.ITEM_DTYPE``.
            tokens: (m,) int32, the accepted and draft tokens of all items.
        Raises:
            CapacityError, StepOrderError: nothing was published.
        """
        cell = self._next_cell()
        if len(items) > self.layout.item_capacity or len(tokens) > self.layout.token_capacity:
            raise CapacityError(
                f"{len(items)} items and {len(tokens)} tokens in a step; "
                f"the session takes {self.layout.item_capacity} and {self.layout.token_capacity}",
                limit="item_capacity",
            )
        # Through bytes, for numpy takes a microsecond to assign a slice of records.
        view, at = self._steps.view, self._items_at[cell]
        data = (items if items.dtype == lay.ITEM_DTYPE else items.astype(lay.ITEM_DTYPE)).tobytes()
        view[at : at + len(data)] = data
        at = self._tokens_at[cell]
        data = (tokens if tokens.dtype == _INT32 else tokens.astype(_INT32)).tobytes()
        view[at : at + len(data)] = data
        return self._publish(cell, len(items), len(tokens))

    def _next_cell(self) -> int:
        self._check_open()
        if self.submitted - self.collected >= lay.CELL_COUNT:
            raise StepOrderError(
                f"steps {self.collected + 1} to {self.submitted} are unanswered; collect one before the next submit"
            )
        return (self.submitted + 1) % lay.CELL_COUNT

    def _publish(self, cell: int, item_count: int, token_count: int) -> int:
        self.submitted = step = self.submitted + 1
        lay.STEPS_CELL.pack_into(self._steps.view, self._steps_cell_at[cell], step, item_count, token_count)
        # HANDOFF engine -> worker
        _shm.publish(self._published, step, self._peer_flag, self.doorbell_fd, self._processor_word)
        return step

    def _check_open(self) -> None:
        """Raises UnavailableError once the mappings are gone: their words must not be touched then."""
        if self.closed:
            raise UnavailableError("the session is closed; open a new one and restore its sequences")

    def is_done(self, step: int) -> bool:
        """Whether ``step`` is answered. Does not wait."""
        self._check_open()
        return _shm.load_u64(self._completed) >= step

    def collect(self, *, timeout_seconds: float = 5.0) -> Reply:
        """Waits for the oldest unanswered step and returns its reply.

        Raises:
            StepOrderError: no step is unanswered.
            DeadlineError: not answered in time; the step stays unanswered and may be collected later.
            UnavailableError: the daemon or the worker is gone.
        """
        step = self.collected + 1
        if step > self.submitted:
            raise StepOrderError("there is no unanswered step to collect")
        self._check_open()
        # HANDOFF worker -> engine
        if _shm.load_u64(self._completed) < step and (
            self._spin_ns <= 0 or _shm.spin([self._completed], [step], self._spin_ns) < 0
        ):
            self._park(step, timeout_seconds)
        return self.read_reply()

    def read_reply(self) -> Reply:
        """Returns the reply of the oldest unanswered step, which must be done (``is_done``)."""
        self._check_open()
        step = self.collected + 1
        cell = step % lay.CELL_COUNT
        copied = _shm.read_reply(self._rows_cell_at[cell], *self._reply_shape, step)
        if copied is None:
            raise ProtocolError(f"the cell of step {step} holds another step, or counts beyond its capacity")
        results, forced, duration_ns, failed = copied
        self.collected = step
        return Reply(
            step,
            results,
            self._row_blocks[cell],
            np.frombuffer(forced, dtype=_INT32) if forced else _NO_TOKENS,
            duration_ns / 1e9,
            not failed,
        )

    def _park(self, step: int, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                self.ask_for_wakeup()
                if _shm.load_u64(self._completed) >= step:
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"step {step} was not answered within {timeout_seconds} s", step=step)
                for fd, _ in self._poll.poll(1000 * min(left, _RECHECK_SECONDS)):
                    if fd == self.reply_fd:
                        self.clear_wakeup()
                    elif _shm.load_u64(self._completed) < step:
                        raise UnavailableError(f"the worker is gone, step {step} is unanswered", step=step)
        finally:
            _shm.store_u32(self._need_wakeup, 0)

    def ask_for_wakeup(self) -> None:
        """Asks the worker to ring ``reply_fd`` for its next reply. Look at ``is_done`` once more before sleeping."""
        self._check_open()
        _shm.store_u32(self._need_wakeup, 1)
        _shm.fence()

    def clear_wakeup(self) -> None:
        """Takes the rings off ``reply_fd``."""
        self._check_open()
        with contextlib.suppress(BlockingIOError):
            os.read(self.reply_fd, 4096)

    @property
    def lease(self) -> socket.socket:
        """The data socket; readable once the worker is gone."""
        return self._lease

    def is_alive(self) -> bool:
        """Whether the worker still holds the other end of the lease. Does not wait."""
        if self.closed:
            return False
        return not any(fd == self._lease.fileno() for fd, _ in self._poll.poll(0))

    def close(self) -> None:
        """Gives the session back. Rows that the caller still holds stay readable, and do not change any more."""
        if self.closed:
            return
        self.closed = True
        self._lease.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._row_blocks = []
        for mapping in self._mappings:
            mapping.close()
