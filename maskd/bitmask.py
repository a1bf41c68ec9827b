"""Packed-row arithmetic: how many words a row has, and what its bits mean.

A row is little-endian int32 words. Bit j of word w is token 32*w + j; 1 = allowed. Bits beyond the tokenizer's last
token are 0. Rows are padded to whole 128-byte lines, so a block of rows is one C-contiguous array. Both grammar
libraries can fill it in place (xgrammar ignores strides), and a single copy moves it to a GPU.
Owns: the form of a row, and the masking of logits with it. Knows nothing about: where rows live, what fills them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskd import _shm

__all__ = [
    "ROW_ALIGN_WORDS",
    "allowed_token_ids",
    "mask_array",
    "mask_logits",
    "row_of",
    "row_of_all_but",
    "row_stride_words",
    "row_words",
]

ROW_ALIGN_WORDS = 32
"""Rows start on 128-byte lines: no two writers share a cache line, nor one that the processor prefetches with it."""
_MINUS_INFINITY = {
    "float16": (2, 0xFC00),
    "bfloat16": (2, 0xFF80),
    "float32": (4, 0xFF80_0000),
    "float64": (8, 0xFFF0_0000_0000_0000),
}
"""Bytes and bits of -inf."""


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


def row_of_all_but(token_ids: Iterable[int], token_count: int, vocab_size: int) -> NDArray[np.int32]:
    """Returns a new row, (row_stride_words,) int32, that allows the ids below ``token_count`` except ``token_ids``."""
    bits = np.zeros(32 * row_stride_words(vocab_size), dtype=np.uint8)
    bits[:token_count] = 1
    bits[list(token_ids)] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)


def allowed_token_ids(row: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the ids that ``row`` allows, ascending, (n,) int64. Does not change the row."""
    bits = np.unpackbits(np.ascontiguousarray(row).view(np.uint8), bitorder="little")
    return np.flatnonzero(bits)


def mask_logits(
    address: int,
    dtype: str,
    shape: tuple[int, int],
    strides: tuple[int, int],
    rows: NDArray[np.int32],
    row_indices: list[int],
) -> None:
    """Sets the logits of every token that its row does not allow to -inf, in place.

    Takes an address, so the same code masks the arrays of any library. Position i is masked by
    ``rows[row_indices[i]]``, or not at all if that index is -1. Releases the GIL.

    Args:
        address: of the first logit. The caller guarantees that all logits may be written.
        dtype: "float16", "bfloat16", "float32" or "float64".
        shape: (B, V).
        strides: from one position, and from one token, to the next, in logits.
        rows: (R, W) int32, 32 * W >= V.
        row_indices: B of them, below R.

    Raises:
        ValueError: another dtype, or rows that are too narrow. IndexError: an index beyond the rows.
            After an error nothing is masked.
    """
    if dtype not in _MINUS_INFINITY:
        raise ValueError(f"logits are {dtype}; give {', '.join(_MINUS_INFINITY)}")
    if rows.shape[1] * 32 < shape[1] or len(row_indices) != shape[0]:
        raise ValueError(f"{len(row_indices)} rows of {rows.shape[1] * 32} bits for {shape[0]} x {shape[1]} logits")
    rows = np.ascontiguousarray(rows)
    rows_address = rows.__array_interface__["data"][0]  # ``ctypes.data`` takes 30 µs when its code is cold
    _shm.mask_logits(
        address, *_MINUS_INFINITY[dtype], *strides, shape[1], rows_address, rows.shape[1], rows.shape[0], row_indices
    )


def mask_array(logits: NDArray[np.floating[Any]], rows: NDArray[np.int32], row_indices: list[int]) -> None:
    """Masks an array of logits, (B, V), any strides, in place. See ``mask_logits``.

    Raises:
        ValueError: the array cannot be written, or as for ``mask_logits``. IndexError: an index beyond the rows.
    """
    memory, size = logits.__array_interface__, logits.itemsize
    if (
        memory["data"][1]
        or not (logits.dtype.isnative and logits.flags.aligned)
        or any(stride % size for stride in logits.strides)
    ):
        raise ValueError(
            "the logits cannot be masked in place; give a writable, aligned array of the machine's byte order"
        )
    batch_size, vocab_size = logits.shape
    strides = (logits.strides[0] // size, logits.strides[1] // size)
    mask_logits(memory["data"][0], logits.dtype.name, (batch_size, vocab_size), strides, rows, row_indices)
