"""Applies packed bitmask rows to logits, in place, on the device of the logits.

On the CPU this is one native call (``maskd.bitmask.mask_logits``), the reference; on CUDA one kernel
(``triton_bitmask``). The format of rows is described in ``maskd.bitmask``.
Owns: the contract of ``apply_bitmask_``. Knows nothing about: where rows come from, grammars, sampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskd.bitmask import mask_logits

__all__ = ["apply_bitmask_", "mask_on_host_", "rows_to_tensor"]


def apply_bitmask_(logits: Tensor, rows: Tensor, *, row_indices: Tensor | None = None) -> None:
    """Sets the logits of every token that its row does not allow to -inf.

    Changes ``logits`` only. Never synchronises with the device. Refuses rows narrower than the logits: other appliers
    leave the tail of a padded vocabulary unmasked.

    Args:
        logits: (B, V) floating point, any strides, on the CPU or on CUDA.
        rows: (R, W) int32 on the same device, 32 * W >= V; bit j of word w is token 32 * w + j, 1 = allowed. R = B
            without ``row_indices``.
        row_indices: (B,) int32 or int64 on the same device: ``logits[i]`` gets ``rows[row_indices[i]]``, or stays as it
            is if that is -1. An index outside of the rows raises IndexError on the CPU. On CUDA, where it is seen too
            late to raise, it allows nothing.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        IndexError: see ``row_indices``.
    """
    _check(logits, rows, row_indices)
    if logits.is_cuda:
        from engine_adapter.kernels.triton_bitmask import apply_bitmask_triton_

        apply_bitmask_triton_(logits, rows, row_indices)
    else:
        indices = list(range(len(rows))) if row_indices is None else row_indices.tolist()
        mask_on_host_(logits, rows.numpy(), indices)


def mask_on_host_(logits: Tensor, rows: NDArray[np.int32], row_indices: list[int]) -> None:
    """Does what ``apply_bitmask_`` does, for logits on the CPU and rows in a numpy array.

    Raises:
        ValueError, IndexError: as ``maskd.bitmask.mask_logits``.
    """
    batch_size, vocab_size = logits.shape
    position_stride, token_stride = logits.stride()
    dtype = str(logits.dtype).removeprefix("torch.")
    mask_logits(logits.data_ptr(), dtype, (batch_size, vocab_size), (position_stride, token_stride), rows, row_indices)


def rows_to_tensor(rows: NDArray[np.int32]) -> Tensor:
    """Returns a tensor over the memory of ``rows``, without a copy and without torch's warning about read-only arrays.

    The tensor keeps ``rows`` alive and is as valid as they are. It must not be written: the memory may be mapped
    read-only, and a write would end the process.

    Args:
        rows: (R, W) int32, CPU, read-only or not.
    """
    return torch.from_numpy(np.asarray(_SameMemory(rows)))


class _SameMemory:
    """Offers the memory of an array as writable: torch warns about every other kind."""

    def __init__(self, array: NDArray[np.int32]) -> None:
        self.array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__: dict[str, Any] = {**interface, "data": (interface["data"][0], False)}


def _check(logits: Tensor, rows: Tensor, row_indices: Tensor | None) -> None:
    if logits.device.type not in ("cpu", "cuda"):
        raise ValueError(f"logits are on {logits.device}; give them on cpu or cuda")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits are {tuple(logits.shape)} {logits.dtype}; give (B, V) floating point")
    if rows.ndim != 2 or rows.dtype != torch.int32:
        raise ValueError(f"rows are {tuple(rows.shape)} {rows.dtype}; give (R, W) int32")
    if rows.shape[1] * 32 < logits.shape[1]:
        raise ValueError(
            f"rows carry {rows.shape[1] * 32} bits for {logits.shape[1]} logits; "
            "vocab_size must be the width of the logits"
        )
    if row_indices is None and rows.shape[0] != logits.shape[0]:
        raise ValueError(f"{rows.shape[0]} rows for {logits.shape[0]} logits; give as many, or row_indices")
    if row_indices is not None and (
        row_indices.shape != logits.shape[:1] or row_indices.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"row_indices are {tuple(row_indices.shape)} {row_indices.dtype}; give ({logits.shape[0]},) int32 or int64"
        )
    if any(tensor.device != logits.device for tensor in (rows, row_indices) if tensor is not None):
        raise ValueError(f"logits are on {logits.device}; rows and row_indices must be there too")
