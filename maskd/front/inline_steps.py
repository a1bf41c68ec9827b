"""The steps of one inline session, as the front passes them on: items in, cell to the worker, reply out.

The worker does an inline step as it does one in shared memory. Only the way differs: the cells have the layout of the
segments, but they travel over the control channel.
Owns: the order of the steps, the step under way, and the last reply.
Knows nothing about: protobuf, what an item means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from maskd import _shm
from maskd.errors import DeadlineError, NotFoundError, ProtocolError, StepOrderError, UnavailableError
from maskd.front.worker_process import Worker
from maskd.ipc import messages
from maskd.shm import layout as lay
from maskd.shm.cells import Reply, pack_items
from maskd.step import Item

__all__ = ["InlineSteps"]


class InlineSteps:
    """One step at a time. A step that is sent again gives the same reply, until the next step is sent.

    Args:
        session_id: of the session, which is open.
        worker: serves the session.
        layout: of the session.
        step_seconds: how long a call waits for its step.
    """

    def __init__(self, session_id: int, worker: Worker, layout: lay.Layout, step_seconds: float) -> None:
        self._session_id = session_id
        self._worker = worker
        self._layout = layout
        self._seconds = step_seconds
        self._next = 1
        self._under_way: asyncio.Task[Reply] | None = None
        self._answered: Reply | None = None
        self._ended = ""
        self._busy = asyncio.Lock()

    async def step(self, step: int, items: Sequence[Item]) -> Reply:
        """Runs one step; for a step that was sent before, waits on or returns its reply again.

        Raises:
            CapacityError, InvalidRequestError: the step was not begun. StepOrderError. DeadlineError: send it again.
            UnavailableError: the session is gone.
        """
        async with self._busy:
            if self._answered is not None and self._answered.step == step:
                return self._answered
            if step != self._next:
                raise StepOrderError(
                    f"step {step} was sent, step {self._next} comes next",
                    step=step,
                    expected=self._next,
                    session_id=self._session_id,
                )
            if self._ended:
                raise UnavailableError(f"{self._ended}, step {step} is unanswered", step=step)
            if self._under_way is None:
                self._under_way = asyncio.create_task(self._run(step, *self._pack(step, items)))
                # The client may never ask for the outcome: an exception must not be reported as lost.
                self._under_way.add_done_callback(lambda task: task.cancelled() or task.exception())
            done, _ = await asyncio.wait({self._under_way}, timeout=self._seconds)
            if not done:
                raise DeadlineError(
                    f"step {step} was not answered within step_seconds = {self._seconds}",
                    step=step,
                    limit="step_seconds",
                    value=self._seconds,
                )
            under_way, self._under_way = self._under_way, None
            try:
                self._answered = under_way.result()
            except (NotFoundError, asyncio.CancelledError):  # it ended between the front and its worker
                raise UnavailableError(
                    f"{self._ended or 'the session ended'}, step {step} is unanswered", step=step
                ) from None
            self._next = step + 1
            return self._answered

    def end(self, why: str) -> None:
        """Ends the session. Calls that wait for a step raise UnavailableError with ``why``."""
        self._ended = why
        if self._under_way is not None:
            self._under_way.cancel()

    def _pack(self, step: int, items: Sequence[Item]) -> tuple[lay.Layout, int, bytes]:
        """Returns the layout of a step's cells, its number of rows, and the steps cell."""
        token_count = sum(len(item.accept) + len(item.drafts) for item in items)
        row_count = max((item.row + 1 + len(item.drafts) for item in items if item.row >= 0), default=0)
        row_count = min(row_count, self._layout.row_capacity)  # items that want more are refused one by one
        layout = self._layout.cut(len(items), token_count, row_count)
        cell = bytearray(lay.CELL_HEADER_BYTES + lay.ITEM.size * len(items))
        lay.STEPS_CELL.pack_into(cell, 0, step, len(items), token_count)
        cell += pack_items(cell, lay.CELL_HEADER_BYTES, items)
        return layout, row_count, bytes(cell)

    async def _run(self, step: int, layout: lay.Layout, row_count: int, cell: bytes) -> Reply:
        stepped = await self._worker.request(
            messages.InlineStep(session_id=self._session_id, row_count=row_count, cell=cell), None
        )
        assert isinstance(stepped, messages.Stepped)
        head = np.frombuffer(stepped.head, dtype=np.uint8)
        copied = _shm.read_reply(
            head.ctypes.data,
            layout.results_offset,
            layout.forced_offset,
            layout.item_capacity,
            layout.forced_capacity,
            step,
        )
        rows = np.frombuffer(stepped.rows, dtype=np.int32)
        if copied is None or len(rows) != row_count * layout.row_stride_words:
            raise ProtocolError(f"the worker answered step {step} with something else")
        results, forced, duration_ns, failed = copied
        return Reply(
            step,
            results,
            rows.reshape(row_count, layout.row_stride_words),
            np.frombuffer(forced, dtype=np.int32),
            duration_ns / 1e9,
            not failed,
        )
