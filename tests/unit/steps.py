"""Steps of a table in tests: items as ``_shm.read_step`` gives them, results as an engine reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from maskd import _shm
from maskd.sequences import ItemResult, StepResult
from maskd.step import Action, Item, ItemFlag, Result, ResultFlag, Status

__all__ = ["batch_of", "checked", "in_full", "result_of"]


def checked(item: Item, status: int = 0) -> _shm.CheckedItem:
    """The item, with a status as ``read_step`` found it."""
    return _shm.CheckedItem(
        (
            status,
            item.sequence_id,
            int(item.action),
            int(ItemFlag.WANT_FORCED) if item.want_forced else 0,
            item.grammar_id,
            item.source_sequence_id,
            item.rollback,
            item.row,
            tuple(item.accept),
            tuple(item.drafts),
            -1,
            0,
        )
    )


def batch_of(items: Sequence[_shm.CheckedItem], *, plain: bool) -> _shm.Batch:
    """The items as ``read_step`` gives them, or all of them in full."""
    named = Counter(item.sequence_id for item in items)
    short = [plain and named[item.sequence_id] == 1 and is_plain(item) for item in items]
    return _shm.Batch(
        (
            [item.sequence_id if yes else 0 for item, yes in zip(items, short, strict=True)],
            [item.accept[0] if yes else 0 for item, yes in zip(items, short, strict=True)],
            [item.row if yes else 0 for item, yes in zip(items, short, strict=True)],
            {at: item for at, (item, yes) in enumerate(zip(items, short, strict=True)) if not yes},
        )
    )


def is_plain(item: _shm.CheckedItem) -> bool:
    """One token and one row for a sequence that is open already."""
    return (
        not (item.status or item.action != Action.ADVANCE or item.flags or item.rollback or item.drafts)
        and item.row >= 0
        and len(item.accept) == 1
    )


def in_full(batch: _shm.Batch, results: Iterable[StepResult]) -> list[ItemResult]:
    """The results as ``write_results`` writes them out."""
    return [written(batch.ids[at], batch.rows[at], result) for at, result in enumerate(results)]


def written(sequence_id: int, row: int, result: StepResult) -> ItemResult:
    if isinstance(result, ItemResult):
        return result
    if isinstance(result, tuple):
        whole = written(sequence_id, row, result[0])
        return whole._replace(flags=whole.flags | result[1])
    return ItemResult(sequence_id, row=row, row_count=1, accepted_count=1, position=result)


def result_of(result: ItemResult) -> Result:
    """The result as an engine reads it."""
    return Result(
        result.sequence_id,
        Status(result.status),
        result.row,
        result.row_count,
        result.accepted_count,
        result.position,
        bool(result.flags & ResultFlag.TERMINATED),
        bool(result.flags & ResultFlag.ACCEPTING),
        bool(result.flags & ResultFlag.ALL_ALLOWED),
        result.forced,
        result.detail_index,
        result.detail_value,
    )
