"""How an item ends: with a result, or with an exception that says what its result is.

Knows nothing about: sequences, rows, how results are encoded.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from maskd.step import NO_ROW, Status

__all__ = ["Broken", "ItemFailed", "ItemResult", "StepResult"]


class ItemResult(NamedTuple):
    """What became of one item, as ``_shm.write_results`` takes it; the fields are those of ``maskd.step.Result``.

    ``flags`` is a ``ResultFlag``, or an int of the same value.
    """

    sequence_id: int
    status: int = 0
    flags: int = 0
    row: int = NO_ROW
    row_count: int = 0
    accepted_count: int = 0
    position: int = 0
    forced: tuple[int, ...] = ()
    detail_index: int = -1
    detail_value: int = 0


StepResult: TypeAlias = int | ItemResult | tuple[int | ItemResult, int]
"""What a step returns for an item: its result, or a pair of its result and the flags of its row.

The result of a plain item that went well is an int: the position of its sequence. The pairs and the ints save the time
of an ItemResult for nearly every item.
"""


class ItemFailed(Exception):
    """Ends an item, with the status and the details of its result. ``closes``: the sequence is closed as well."""

    def __init__(
        self, status: Status, index: int = -1, value: int = 0, accepted: int = 0, *, closes: bool = False
    ) -> None:
        super().__init__(status)
        self.status, self.index, self.value, self.accepted, self.closes = status, index, value, accepted, closes


class Broken(Exception):
    """The state of a matcher is not known any more: its sequence is closed."""
