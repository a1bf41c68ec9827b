"""What stands in a cell, as values: items written, results read. Both transports use it.

Owns: items as bytes, results as values. Knows nothing about: mappings, sockets, who waits for whom.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskd.errors import InvalidRequestError, ProtocolError
from maskd.shm import layout as lay
from maskd.step import Item, Result, Status

__all__ = ["Reply", "pack_items", "result_of"]

_STATUSES = tuple(Status)


def result_of(row: Sequence[Any], forced: NDArray[np.int32]) -> Result:
    """Returns the ``Result`` of one record of ``layout.RESULT``, given as a tuple."""
    flags = row[2]
    return Result(
        row[0],
        _STATUSES[row[1]],
        row[3],
        row[4],
        row[5],
        row[6],
        bool(flags & 1),
        bool(flags & 2),
        bool(flags & 4),
        tuple(forced[row[7] : row[7] + row[8]].tolist()) if row[8] else (),
        row[9],
        row[10],
    )


def pack_items(view: memoryview | bytearray, at: int, items: Sequence[Item]) -> bytes:
    """Writes ``items`` to ``view`` from ``at`` on, as a cell has them, and returns their tokens, int32.

    Raises:
        InvalidRequestError: a number does not fit its field.
    """
    flat: list[int] = []
    try:
        for item in items:
            lay.ITEM.pack_into(
                view,
                at,
                item.sequence_id,
                item.grammar_id,
                item.source_sequence_id,
                item.action,
                item.want_forced,
                item.rollback,
                item.row,
                len(flat),
                len(item.accept),
                len(item.drafts),
            )
            at += lay.ITEM.size
            flat += item.accept
            flat += item.drafts
        return array.array("i", flat).tobytes()
    except (struct.error, OverflowError) as error:
        raise InvalidRequestError(f"a number of the step does not fit its field: {error}", field="items") from None


@dataclass(slots=True)
class Reply:
    """The answer to one step.

    Attributes:
        step: its number.
        packed: the results as bytes of ``layout.RESULT``, in the order of the items.
        rows: (row_capacity, row_stride_words) int32, read-only; with shared memory a view of it, valid until the second
            next submit. Row r belongs to the item that asked for row r.
        forced: (n,) int32, the forced tokens of all items.
        worker_seconds: time the worker spent on this step.
        ok: whether every item is OK.
    """

    step: int
    packed: bytes
    rows: NDArray[np.int32]
    forced: NDArray[np.int32]
    worker_seconds: float
    ok: bool
    _results: list[Result] | None = field(default=None, repr=False)

    @property
    def table(self) -> NDArray[np.void]:
        """The results as records, (item_count,) of ``layout.RESULT_DTYPE``, in the order of the items; read-only."""
        return np.frombuffer(self.packed, dtype=lay.RESULT_DTYPE)

    @property
    def results(self) -> list[Result]:
        """One ``Result`` an item, in the order of the items. Raises ProtocolError if one has a status that nobody
        knows."""
        if self._results is None:
            try:
                self._results = [result_of(row, self.forced) for row in lay.RESULT.iter_unpack(self.packed)]
            except IndexError:
                raise ProtocolError(f"step {self.step} has a result with a status above {len(_STATUSES) - 1}") from None
        return self._results
