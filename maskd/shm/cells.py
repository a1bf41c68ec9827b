"""The contents of a cell as values: items written, results read. Both transports use it.

Owns: items as bytes, results as values, flags as booleans.
Knows nothing about: mappings, sockets, who waits for whom.
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
from maskd.step import ACCEPTING, ALL_ALLOWED, STATUSES, TERMINATED, WANT_FORCED, Item, Result

__all__ = ["Reply", "pack_items", "pack_results", "result_of"]


def result_of(record: Sequence[Any], forced: NDArray[np.int32]) -> Result:
    """Returns the ``Result`` of one ``record`` of ``layout.RESULT``.

    Args:
        forced: (n,) int32, the forced tokens of all items.

    Raises:
        KeyError: the status is unknown.
    """
    sequence_id, status, flags, row, row_count, accepted, position, forced_at, forced_count, index, value = record
    return Result(
        sequence_id,
        STATUSES[status],
        row,
        row_count,
        accepted,
        position,
        bool(flags & TERMINATED),
        bool(flags & ACCEPTING),
        bool(flags & ALL_ALLOWED),
        tuple(forced[forced_at : forced_at + forced_count].tolist()) if forced_count else (),
        index,
        value,
    )


def pack_results(results: Sequence[Result]) -> tuple[bytes, NDArray[np.int32]]:
    """Returns ``results`` as records of ``layout.RESULT``, and the forced tokens of all of them, (n,) int32."""
    packed, forced = bytearray(), list[int]()
    for result in results:
        packed += lay.RESULT.pack(
            result.sequence_id,
            result.status,
            TERMINATED * result.terminated | ACCEPTING * result.accepting | ALL_ALLOWED * result.all_allowed,
            result.row,
            result.row_count,
            result.accepted_count,
            result.position,
            len(forced),
            len(result.forced),
            result.detail_index,
            result.detail_value,
        )
        forced += result.forced
    return bytes(packed), np.array(forced, dtype=np.int32)


def pack_items(view: memoryview | bytearray, at: int, items: Sequence[Item]) -> bytes:
    """Writes ``items`` to ``view`` from offset ``at`` on, and returns their tokens as bytes, int32.

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
                WANT_FORCED * item.want_forced,
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
        rows: (row_capacity, row_stride_words) int32, read-only. Row r belongs to the item that asked for row r. With
            shared memory a view of it, valid until the second next submit.
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

    @classmethod
    def of(cls, step: int, results: list[Result], *, rows: NDArray[np.int32], worker_seconds: float) -> Reply:
        """Returns the reply with these ``results``, which have their rows in ``rows``."""
        packed, forced = pack_results(results)
        ok = not any(result.status for result in results)
        return cls(step, packed, rows, forced, worker_seconds, ok, results)

    @property
    def table(self) -> NDArray[np.void]:
        """The results as records, (item_count,) of ``layout.RESULT_DTYPE``, in the order of the items; read-only."""
        return np.frombuffer(self.packed, dtype=lay.RESULT_DTYPE)

    @property
    def results(self) -> list[Result]:
        """One ``Result`` an item, in the order of the items. Raises ProtocolError for an unknown status."""
        if self._results is None:
            try:
                self._results = [result_of(row, self.forced) for row in lay.RESULT.iter_unpack(self.packed)]
            except KeyError:
                raise ProtocolError(f"step {self.step} has a result with a status above {len(STATUSES) - 1}") from None
        return self._results
