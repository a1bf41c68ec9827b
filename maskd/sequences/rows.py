"""The rows of one cell, and the flags that say what is in a row.

Knows nothing about: who fills them.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from maskd.step import ResultFlag

__all__ = ["EMPTY", "RowFlag", "Rows"]


class RowFlag(enum.IntFlag):
    """What ``_shm.finish_rows`` says about a row. A result passes all but EMPTY on, as the ``ResultFlag`` so named."""

    EMPTY = 1
    ACCEPTING = ResultFlag.ACCEPTING.value
    ALL_ALLOWED = ResultFlag.ALL_ALLOWED.value


EMPTY = RowFlag.EMPTY.value
"""A plain int: operations on an ``IntFlag`` are slow."""


class Rows:
    """The rows of one cell, as the table writes them.

    Args:
        block: (row_capacity, row_stride_words) int32, C-contiguous, writable; the caller's.
    """

    __slots__ = ("address", "block", "row", "row_address", "stride_words")

    def __init__(self, block: NDArray[np.int32]) -> None:
        self.block = block
        self.address: int = block.ctypes.data
        self.stride_words: int = block.shape[1]
        self.row: list[NDArray[np.int32]] = list(block)
        self.row_address = [self.address + at * block.strides[0] for at in range(len(block))]
