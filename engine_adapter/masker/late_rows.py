"""Late rows: a batch has one forward pass, so an engine asks for the rows of slow grammars until they are there, or
time is up.

Knows nothing about: handles, histories, what is done about those that stay late.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskd.client import Session
from maskd.shm.cells import Reply
from maskd.step import Item, LateIndex, Result, Status

__all__ = ["await_late"]


def await_late(
    session: Session, items: Sequence[Item], reply: Reply, *, slow_seconds: float, step_seconds: float
) -> tuple[NDArray[np.int32], Sequence[Result]]:
    """Returns the rows and results of ``reply``, those of late items replaced by what they came to within
    ``slow_seconds``.

    Args:
        items: what ``reply`` answers.
        reply: its rows are copied first, for each question may overwrite them.
        slow_seconds: how long to ask; what is late then keeps its STEP_DEADLINE.
        step_seconds: a question that is not answered for so long raises, as ``Session.collect`` does.
    """
    results, rows = list(reply.results), None
    deadline = time.monotonic() + slow_seconds
    while time.monotonic() < deadline:
        late = [index for index, result in enumerate(results) if _is_late(result)]
        if not late:
            break
        rows = reply.rows.copy() if rows is None else rows
        questions = [_question(items[index], results[index]) for index in late]
        again = session.step(questions, timeout_seconds=step_seconds)
        for index, result in zip(late, again.results, strict=True):
            results[index], item = result, items[index]
            if item.row >= 0:
                rows[item.row : item.row + 1 + len(item.drafts)] = again.rows[
                    item.row : item.row + 1 + len(item.drafts)
                ]
    return reply.rows if rows is None else rows, results


def _is_late(result: Result) -> bool:
    return result.status == Status.STEP_DEADLINE and result.detail_index != LateIndex.CLOSED


def _question(item: Item, result: Result) -> Item:
    """Returns what to ask next: the item itself if it was not begun, else what became of it."""
    if result.detail_index == LateIndex.NOT_BEGUN:
        return item
    return Item(item.sequence_id, drafts=item.drafts, row=item.row)
