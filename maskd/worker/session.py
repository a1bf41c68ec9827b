"""A session inside its worker: one sequence table, and the step from a cell of items to results and rows.

``SharedSession`` (``shared_session.py``) has its cells in two segments, which an engine has mapped too.
``InlineSession`` gets and returns its cells in messages. Both do the same step.
Owns: the private cell of an inline session.
Knows nothing about: the event loop (``loop.py``), compiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from maskd import _shm
from maskd.errors import CapacityError, ProtocolError
from maskd.ipc.marker import Marker
from maskd.sequences import Rows, SequenceTable
from maskd.shm import layout as lay
from maskd.vocabulary import Vocabulary

__all__ = ["InlineSession", "WorkerSession"]


class WorkerSession:
    """What every session has: its sequences, and the one way to do a step.

    Attributes:
        completed: number of the last step that was answered.
        awaited_grammars: ids of the grammars that are being made for the session.
    """

    def __init__(
        self, session_id: int, vocabulary: Vocabulary, layout: lay.Layout, table: SequenceTable, marker: Marker
    ) -> None:
        self.session_id = session_id
        self.vocabulary = vocabulary
        self.layout = layout
        self.table = table
        self.completed = 0
        self.awaited_grammars: set[int] = set()
        self._progress = marker.slots[0]

    @property
    def attached(self) -> bool:
        """Whether an engine is attached."""
        return True

    def set_draining(self) -> None:
        """Tells the engine that the daemon is going away, if the session has a way to."""

    def close(self) -> None:
        """Frees everything."""

    def _do(self, layout: lay.Layout, steps_cell: int, rows_cell: int, rows: Rows, clock: Callable[[], int]) -> None:
        """Does the next step: copies and checks the items, runs the table, writes rows and results.

        Args:
            layout: of both cells.
            steps_cell: address of the items.
            rows_cell: address of the results.
            rows: those of the cell.

        Raises:
            ProtocolError: the items are nonsense; the session must be closed.
        """
        step, started = self.completed + 1, clock()
        batch = _shm.read_step(
            steps_cell,
            layout.items_offset,
            layout.tokens_offset,
            layout.item_capacity,
            layout.token_capacity,
            layout.vocab_size,
            layout.row_capacity,
            step,
        )
        if batch is None:
            raise ProtocolError(f"the cell of step {step} holds another step, or counts beyond its capacity")
        _shm.store_u64(rows_cell, 2 * step - 1)
        self._progress.begin()
        try:
            results = self.table.step(step, batch, rows)
        finally:
            self._progress.end()
        _shm.write_results(
            rows_cell,
            layout.results_offset,
            layout.forced_offset,
            layout.forced_capacity,
            step,
            clock() - started,
            batch.ids,
            batch.rows,
            results,
        )
        _shm.store_u64(rows_cell, 2 * step)
        self.completed = step


class InlineSession(WorkerSession):
    """A session whose steps come and go in messages.

    It holds no segment and no descriptor. Its one cell is private memory, as large as its largest step so far needed.
    """

    def __init__(
        self, session_id: int, vocabulary: Vocabulary, layout: lay.Layout, table: SequenceTable, marker: Marker
    ) -> None:
        super().__init__(session_id, vocabulary, layout, table, marker)
        self._head: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._rows = Rows(np.zeros((0, layout.row_stride_words), dtype=np.int32))

    def step(self, cell: bytes, row_count: int, clock: Callable[[], int] = time.perf_counter_ns) -> tuple[bytes, bytes]:
        """Does the step in ``cell`` and returns (head, rows) as ``control.Stepped`` has them.

        Raises:
            CapacityError: no memory for it; the step is not done. ProtocolError: the session must be closed.
        """
        step, item_count, token_count = lay.STEPS_CELL.unpack_from(cell)
        if step != self.completed + 1:
            raise ProtocolError(f"step {step} was sent, {self.completed} is the last one answered")
        if len(cell) != lay.CELL_HEADER_BYTES + lay.ITEM.size * item_count + 4 * token_count:
            raise ProtocolError(f"a cell of {len(cell)} bytes was sent for {item_count} items and {token_count} tokens")
        layout = self.layout.cut(item_count, token_count, row_count)
        head_bytes = layout.forced_offset + 4 * layout.forced_capacity
        try:
            if self._head.nbytes < head_bytes:
                self._head = np.zeros(-(-head_bytes // 8), dtype=np.uint64)
            if len(self._rows.row) < row_count:
                self._rows = Rows(np.zeros((row_count, layout.row_stride_words), dtype=np.int32))
        except MemoryError:
            size = head_bytes + row_count * layout.row_stride_bytes
            raise CapacityError(
                f"{size} bytes were needed for a step and are not to be had", limit="memory", bytes=size
            ) from None
        items = np.frombuffer(cell, dtype=np.uint8)
        self._do(layout, items.ctypes.data, self._head.ctypes.data, self._rows, clock)
        return self._head.tobytes()[:head_bytes], self._rows.block[:row_count].tobytes()
