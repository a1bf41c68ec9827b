"""One item in full: roll back, accept, fill; all or nothing. Touches its own sequence only, so the slow lane may run
it.

Knows nothing about: the table, opening and closing, the lane.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from maskd import _shm
from maskd.sequences.fill import RowMaker
from maskd.sequences.rows import TERMINATED, Rows
from maskd.sequences.sequence import NOTHING, Broken, ItemFailed, NextCall, Sequence
from maskd.step import NO_ROW, ROLLBACK_ALL, Status

__all__ = ["Effect", "run_item"]

_WANT_FORCED = 1


@dataclass(frozen=True, slots=True)
class Effect:
    """What an item did to its sequence, so that it can be taken back when the row cannot be made."""

    sequence: Sequence
    accepted: int
    undone: Seq[int]
    created: bool

    def take_back(self, next_call: NextCall) -> None:
        """Puts the sequence to where it stood before its item; one that the item created is dropped. Raises Broken."""
        if self.created:
            return
        self.sequence.rollback(self.accepted)
        if self.undone and self.sequence.accept(self.undone, next_call) != len(self.undone):
            raise Broken


def run_item(
    item: _shm.ItemTuple,
    sequence: Sequence,
    created: bool,
    row: int,
    rows: Rows,
    maker: RowMaker,
    next_call: NextCall,
    *,
    may_defer: bool,
) -> tuple[_shm.ResultTuple, Effect | None]:
    """Runs ``item``, its first row into ``rows[row]``.

    Args:
        created: the item opened or forked the sequence; if it fails nothing needs to be taken back.
        next_call: called between its native calls.
        may_defer: one plain row may be left to be filled with those of others, and forced tokens may be looked for. For
            the
            data path only.

    Returns:
        its result and, if its one row is still to be filled, what it did.

    Raises:
        ItemFailed: the sequence is as it was. Anything else: its state is not known.
    """
    _, sequence_id, _, flags, _, _, rollback, _, accept, drafts, _, _ = item
    count = len(sequence.history) if rollback == ROLLBACK_ALL else rollback
    if count > len(sequence.history):
        raise ItemFailed(Status.ROLLBACK_TOO_FAR, value=len(sequence.history))
    undone, accepted = sequence.rollback(count), 0
    row_count, flags_out, forced, deferred = 0, 0, NOTHING, False
    try:
        sequence.accept_all(accept, next_call)
        accepted = len(accept)
        if sequence.terminated:
            maker.close(rows, row, 1 + len(drafts))
            flags_out = TERMINATED
        else:
            deferred = may_defer and row >= 0 and not drafts and not flags
            if row >= 0 and not deferred:
                row_count, flags_out = maker.fill_drafts(sequence, row, drafts, rows, next_call)
            if flags & _WANT_FORCED and may_defer:
                forced = maker.forced(sequence, next_call)
    except ItemFailed:
        Effect(sequence, accepted, undone, created).take_back(next_call)
        raise
    row_count += deferred
    result = (
        sequence_id,
        0,
        flags_out,
        row if row_count else NO_ROW,
        row_count,
        accepted,
        len(sequence.history),
        forced,
        -1,
        0,
    )
    return result, Effect(sequence, accepted, undone, created) if deferred else None
