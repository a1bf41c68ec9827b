"""One item in full: roll back, accept, fill; all or nothing.

An item touches its own sequence only, so the slow lane may run it.
Knows nothing about: the table, opening and closing, the lane.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from maskd import _shm
from maskd.sequences.fill import RowMaker
from maskd.sequences.result import Broken, ItemFailed, ItemResult
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import NextCall, Sequence
from maskd.step import ADVANCE, FORK, NO_ROW, ROLLBACK_ALL, TERMINATED, WANT_FORCED, Status

__all__ = ["Effect", "item_of", "read_by", "run_item"]


def item_of(batch: _shm.Batch, at: int) -> _shm.CheckedItem:
    """Returns item ``at`` of ``batch`` in full."""
    item = batch.others.get(at)
    if item is None:
        plain = (0, batch.ids[at], ADVANCE, 0, 0, 0, 0, batch.rows[at], (batch.tokens[at],), (), -1, 0)
        item = _shm.CheckedItem(plain)
    return item


def read_by(item: _shm.CheckedItem) -> tuple[int, ...]:
    """Returns the sequences whose earlier items ``item`` must not overtake: none if it only asks for a row."""
    if item.action == FORK:
        return item.sequence_id, item.source_sequence_id
    return (item.sequence_id,) if item.action or item.rollback or item.accept else ()


@dataclass(slots=True)
class Effect:
    """What an item did to its sequence, so that it can be taken back when the row cannot be made.

    Attributes:
        accepted: tokens that the item had the sequence accept.
        undone: tokens that the item rolled back before that.
        created: the item opened or forked the sequence.
    """

    sequence: Sequence
    accepted: int
    undone: Seq[int]
    created: bool

    def take_back(self, next_call: NextCall) -> None:
        """Restores the sequence as it stood before the item, unless the item created it. Raises Broken."""
        if self.created:
            return
        self.sequence.rollback(self.accepted)
        if self.undone and self.sequence.accept(self.undone, next_call) != len(self.undone):
            raise Broken


def run_item(
    item: _shm.CheckedItem,
    sequence: Sequence,
    row: int,
    rows: Rows,
    maker: RowMaker,
    next_call: NextCall,
    *,
    may_defer: bool,
) -> tuple[ItemResult, Effect | None]:
    """Runs ``item`` on ``sequence``, with its first row in ``rows[row]``.

    Args:
        next_call: called between its native calls.
        may_defer: on the data path: leave a plain row for the batch fill, and compute forced tokens.

    Returns:
        the result and, if its one row is still to be filled, what the item did.

    Raises:
        ItemFailed: the sequence is as it was. After any other error, its state is not known.
    """
    position, accept, drafts, flags = len(sequence.history), item.accept, item.drafts, item.flags
    count = position if item.rollback == ROLLBACK_ALL else item.rollback
    if count > position:
        raise ItemFailed(Status.ROLLBACK_TOO_FAR, value=position)
    effect = Effect(sequence, 0, sequence.rollback(count), item.action != ADVANCE)
    row_count, result_flags, deferred = 0, 0, False
    forced: tuple[int, ...] = ()
    try:
        sequence.accept_all(accept, next_call)
        effect.accepted = len(accept)
        if sequence.terminated:
            maker.close(rows, row, 1 + len(drafts))
            result_flags = TERMINATED
        else:
            deferred = may_defer and row >= 0 and not drafts and not flags
            if deferred:
                row_count = 1
            elif row >= 0:
                row_count, result_flags = maker.fill_drafts(sequence, row, drafts, rows, next_call)
            if flags & WANT_FORCED and may_defer:
                forced = maker.forced(sequence, next_call)
    except ItemFailed:
        effect.take_back(next_call)
        raise
    result = ItemResult(
        item.sequence_id,
        flags=result_flags,
        row=row if row_count else NO_ROW,
        row_count=row_count,
        accepted_count=len(accept),
        position=len(sequence.history),
        forced=forced,
    )
    return result, effect if deferred else None
