"""Packed-row arithmetic: how many words a row has, and what its bits mean.

A row is little-endian int32 words; bit j of word w is token 32*w + j; 1 = allowed. Rows are padded to whole 128-byte
lines, so that a block of rows is one C-contiguous array that both grammar libraries can fill in place (xgrammar ignores
strides) and that one copy moves to a GPU. Bits from the tokenizer's last token on are 0.
Knows nothing about: where rows live, who fills them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROW_ALIGN_WORDS", "allowed_token_ids", "row_of", "row_stride_words", "row_words"]

ROW_ALIGN_WORDS = 32
"""Rows start on 128-byte lines: no two writers share a cache line, adjacent-line prefetch included."""


def row_words(vocab_size: int) -> int:
    """Returns the int32 words that carry bits: ceil(vocab_size / 32)."""
    return (vocab_size + 31) // 32


def row_stride_words(vocab_size: int) -> int:
    """Returns the int32 words from one row to the next: ``row_words`` rounded up to ``ROW_ALIGN_WORDS``."""
    return -(-row_words(vocab_size) // ROW_ALIGN_WORDS) * ROW_ALIGN_WORDS


def row_of(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    """Returns a new row, (row_stride_words,) int32, that allows exactly ``token_ids``."""
    row = np.zeros(row_stride_words(vocab_size), dtype=np.uint32)
    for token_id in token_ids:
        row[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return row.view(np.int32)


def allowed_token_ids(row: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the ids that ``row`` allows, ascending, (n,) int64. Does not change the row."""
    bits = np.unpackbits(np.ascontiguousarray(row).view(np.uint8), bitorder="little")
    return np.flatnonzero(bits)
