"""A session in shared memory, on the worker's side: two segments that an engine has mapped too, and their wake-ups.

Owns: the worker's mappings, wake-up descriptors and end of the lease.
Knows nothing about: the event loop (``loop.py``), what a step does (``session.py``).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Callable

from maskd import _shm
from maskd.errors import CapacityError, ProtocolError
from maskd.ipc.marker import Marker
from maskd.sequences import Rows, SequenceTable
from maskd.shm import layout as lay
from maskd.shm.segments import Mapping, create_segment, seal
from maskd.vocabulary import Vocabulary
from maskd.worker.session import WorkerSession

__all__ = ["SharedSession"]

_READY, _DRAINING, _CLOSED = 1, 2, 3


class SharedSession(WorkerSession):
    """A session in shared memory.

    ``attach`` gives it to an engine, ``serve`` does one step, ``end`` tells the engine, and ``close`` frees everything.
    Making and closing a session may take a while, and may be done on any thread.

    Raises (on creation):
        CapacityError: no memory or no descriptors for the segments.
    """

    def __init__(
        self,
        session_id: int,
        vocabulary: Vocabulary,
        layout: lay.Layout,
        table: SequenceTable,
        epoch: int,
        marker: Marker,
    ) -> None:
        super().__init__(session_id, vocabulary, layout, table, marker)
        self.lease: socket.socket | None = None
        self._cleanup = contextlib.ExitStack()
        self._granted_fds = self._cleanup.enter_context(contextlib.ExitStack())
        with contextlib.ExitStack() as undo:
            undo.callback(self._cleanup.close)
            self._rows_fd = self._segment(f"maskd-rows-{table.number}", layout.rows_bytes)
            self._steps_fd = self._segment(f"maskd-steps-{table.number}", layout.steps_bytes)
            self.doorbell_fd = self._doorbell()
            self._engines_reply_fd, self._reply_fd = self._reply_pipe()
            self._rows = self._map(self._rows_fd, layout.rows_bytes)
            steps = self._map(self._steps_fd, layout.steps_bytes)
            undo.pop_all()
        header = layout.pack_steps_header(session_id)
        steps.bytes[: len(header)] = bytearray(header)
        header = layout.pack_rows_header(session_id, epoch, vocabulary.fingerprint)
        self._rows.bytes[: len(header)] = bytearray(header)
        seal(self._steps_fd, foreign_writes=True)
        seal(self._rows_fd, foreign_writes=False)
        self._base = self._rows.base
        rows_at = [lay.PAGE_BYTES + c * layout.rows_cell_stride for c in range(lay.CELL_COUNT)]
        shape = (layout.row_capacity, layout.row_stride_words)
        self._cells = [
            (
                steps.base + lay.PAGE_BYTES + c * layout.steps_cell_stride,
                self._base + at,
                Rows(self._rows.int32(at + layout.rows_offset, shape)),
            )
            for c, at in enumerate(rows_at)
        ]
        self.published_word = steps.base + lay.PUBLISHED_STEP_OFFSET
        self._processor_word = steps.base + lay.ENGINE_PROCESSOR_OFFSET
        self._engine_flag = steps.base + lay.ENGINE_NEED_WAKEUP_OFFSET
        self._completed_word = self._base + lay.COMPLETED_STEP_OFFSET
        self.sleep_word = self._base + lay.WORKER_NEED_WAKEUP_OFFSET
        self._heartbeat = 0
        _shm.store_u32(self._base + lay.STATE_OFFSET, _READY)
        _shm.store_u64(self._base, lay.MAGIC_ROWS)

    def _segment(self, name: str, size_bytes: int) -> int:
        try:
            fd = create_segment(name, size_bytes)
        except CapacityError as error:
            needed = self.layout.rows_bytes + self.layout.steps_bytes
            metadata: dict[str, object] = {**error.metadata, "bytes": needed}
            raise CapacityError(
                f"the session needs segments of {needed} bytes together; {error.message}", **metadata
            ) from None
        self._granted_fds.callback(os.close, fd)
        return fd

    def _doorbell(self) -> int:
        try:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise CapacityError(
                f"no descriptor for a session's doorbell: {error.strerror}", limit="descriptors"
            ) from None
        self._cleanup.callback(os.close, fd)
        return fd

    def _reply_pipe(self) -> tuple[int, int]:
        """Returns the end that the engine reads and the end that the worker writes.

        An eventfd would not do: the engine shares its flags. It could make it blocking and full, and the worker would
        hang in its write.
        """
        try:
            read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CapacityError(
                f"no descriptor for a session's replies: {error.strerror}", limit="descriptors"
            ) from None
        self._granted_fds.callback(os.close, read)
        self._cleanup.callback(os.close, write)
        return read, write

    def _map(self, fd: int, size_bytes: int) -> Mapping:
        mapping = Mapping(fd, size_bytes, writable=True)
        self._cleanup.callback(mapping.close)
        return mapping

    def attach(self, lease: socket.socket) -> None:
        """Sends the grant, with the four descriptors, over ``lease`` and keeps the lease.

        The worker's descriptors of the segments are closed.

        Raises:
            OSError: the engine is gone already.
        """
        lease.setblocking(False)
        self.lease = lease
        grant = lay.GRANT.pack(
            lay.MAGIC_GRANT, 0, lay.MAJOR, lay.MINOR, self.session_id, self.layout.rows_bytes, self.layout.steps_bytes
        )
        fds = array.array("i", [self._rows_fd, self._steps_fd, self.doorbell_fd, self._engines_reply_fd])
        lease.sendmsg([grant], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self._granted_fds.close()

    @property
    def attached(self) -> bool:
        """Whether an engine is attached."""
        return self.lease is not None

    @property
    def has_work(self) -> bool:
        """Whether a step is published and not yet served."""
        return _shm.load_u64(self.published_word) > self.completed

    @property
    def engine_processor(self) -> int:
        """The processor that the engine last rang from, as the engine says; -1 if it does not say."""
        return _shm.load_u32(self._processor_word) - 1

    def serve(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Serves the next step: copy and check the items, run the table, write results and rows, publish.

        Raises:
            ProtocolError: the engine published nonsense; the session must be closed.
        """
        published = _shm.load_u64(self.published_word)
        step = self.completed + 1
        if not step <= published <= self.completed + lay.CELL_COUNT:
            raise ProtocolError(f"step {published} was published, {self.completed} is the last one answered")
        steps_cell, rows_cell, rows = self._cells[step % lay.CELL_COUNT]
        self._do(self.layout, steps_cell, rows_cell, rows, clock)
        # HANDOFF worker -> engine
        _shm.publish(self._completed_word, step, self._engine_flag, self._reply_fd)

    def beat(self) -> None:
        """Moves the heartbeat, so that an engine can tell a slow worker from a dead one."""
        self._heartbeat += 1
        _shm.store_u64(self._base + lay.HEARTBEAT_OFFSET, self._heartbeat)

    def set_draining(self) -> None:
        """Tells the engine, in the header, that the daemon is going away."""
        _shm.store_u32(self._base + lay.STATE_OFFSET, _DRAINING)

    def end(self) -> None:
        """Tells the engine, in the header and by the end of its lease. ``serve`` must not be called afterwards."""
        _shm.store_u32(self._base + lay.STATE_OFFSET, _CLOSED)
        if self.lease is not None:
            self.lease.close()

    def close(self) -> None:
        """Frees everything. The engine keeps what it has mapped."""
        self.end()
        self._cells.clear()
        self._cleanup.close()
