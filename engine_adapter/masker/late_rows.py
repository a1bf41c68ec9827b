"""Late rows: asked for until they are there, because a batch has one forward pass.

Owns: ``StepAnswer``, and asking again while there is time. Knows nothing about: handles, histories, failed sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskd.client import Session
from maskd.shm.cells import Reply
from maskd.step import Item, LateIndex, Result, Status

__all__ = ["StepAnswer", "await_late"]


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """What the daemon answers to one step.

    Attributes:
        rows: (rows, row_stride_words) int32, read-only.
        all_ok: whether every item is OK.
    """

    rows: NDArray[np.int32]
    all_ok: bool
    _read: Callable[[], Sequence[Result]] = field(repr=False)

    @property
    def results(self) -> Sequence[Result]:
        """One result an item, in the order of the items. They are read when they are asked for."""
        return self._read()


def await_late(
    session: Session, items: Sequence[Item], reply: Reply, *, slow_seconds: float, step_seconds: float
) -> StepAnswer:
    """Asks for the rows and results of late items for ``slow_seconds``, and puts them into those of ``reply``.

    Args:
        session: which gave ``reply``.
        items: what ``reply`` answers.
        reply: its rows are copied first, for each question may overwrite them.
        slow_seconds: how long to ask; items that are late then keep their STEP_DEADLINE.
        step_seconds: a question that is not answered for so long raises, as ``Session.collect`` does.
    """
    results, rows = list(reply.results), reply.rows
    deadline = time.monotonic() + slow_seconds
    while time.monotonic() < deadline:
        late = [index for index, result in enumerate(results) if _is_late(result)]
        if not late:
            break
        rows = reply.rows.copy() if rows is reply.rows else rows
        questions = [_question(items[index], results[index]) for index in late]
        again = session.step(questions, timeout_seconds=step_seconds)
        for index, result in zip(late, again.results, strict=True):
            results[index], item = result, items[index]
            if item.row >= 0:
                filled = slice(item.row, item.row + 1 + len(item.drafts))
                rows[filled] = again.rows[filled]
    return StepAnswer(rows, not any(result.status for result in results), lambda: results)


def _is_late(result: Result) -> bool:
    return result.status == Status.STEP_DEADLINE and result.detail_index != LateIndex.CLOSED


def _question(item: Item, result: Result) -> Item:
    """Returns what to ask next: the item itself if it was not begun, else what became of it."""
    if result.detail_index == LateIndex.NOT_BEGUN:
        return item
    return Item(item.sequence_id, drafts=item.drafts, row=item.row)
