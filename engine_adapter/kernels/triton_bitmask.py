"""``apply_bitmask_`` as a Triton kernel: one launch, which reads each word once and writes only forbidden tokens.

Imported only where there is CUDA, and by its test, which runs it on the CPU through Triton's interpreter.
Owns: the kernel. Knows nothing about: checking arguments; ``apply`` does that.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["apply_bitmask_triton_"]

BLOCK_WORDS = 128
"""Words per program: 4,096 columns, 32 per thread of four warps."""


def apply_bitmask_triton_(logits: Tensor, rows: Tensor, row_indices: Tensor | None) -> None:
    """Does what ``apply_bitmask_`` does, for arguments that it has checked. An index past the rows allows nothing."""
    if logits.numel() == 0:
        return
    grid = (logits.shape[0], triton.cdiv(logits.shape[1], 32 * BLOCK_WORDS))
    _apply_bitmask_kernel[grid](
        logits,
        rows,
        rows if row_indices is None else row_indices,
        logits.shape[1],
        rows.shape[0],
        logits.stride(0),
        logits.stride(1),
        rows.stride(0),
        rows.stride(1),
        row_indices.stride(0) if row_indices is not None else 0,
        HAS_INDICES=row_indices is not None,
        BLOCK_WORDS=BLOCK_WORDS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _apply_bitmask_kernel(
    logits: Any,
    rows: Any,
    row_indices: Any,
    vocab_size: Any,
    row_count: Any,
    logits_stride: Any,
    column_stride: Any,
    rows_stride: Any,
    word_stride: Any,
    index_stride: Any,
    HAS_INDICES: tl.constexpr,  # noqa: N803 - Triton writes constants so
    BLOCK_WORDS: tl.constexpr,  # noqa: N803
) -> None:
    position = tl.program_id(0).to(tl.int64)  # 64 bits: B * V passes 2**31
    row = position
    if HAS_INDICES:
        row = tl.load(row_indices + position * index_stride).to(tl.int64)
        if row < 0:
            return
    readable = tl.where(row < row_count, vocab_size, 0)
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    bits = tl.load(rows + row * rows_stride + word * word_stride, mask=word * 32 < readable, other=0)  # (BLOCK_WORDS,)
    bit = tl.arange(0, 32)
    forbidden = ((bits[:, None] >> bit[None, :]) & 1) == 0  # (BLOCK_WORDS, 32)
    column = word[:, None] * 32 + bit[None, :]
    tl.store(
        logits + position * logits_stride + column * column_stride,
        float("-inf"),
        mask=forbidden & (column < vocab_size),
    )
