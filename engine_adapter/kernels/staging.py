"""Rows on their way to the device of the logits, and into the logits.

On CUDA the rows are copied into pinned memory, a snapshot that the daemon cannot change during the transfer. They go to
the device on a stream of their own, and the current stream waits for them. On the CPU they are used in place.
Owns: staging memory, stream, events. Knows nothing about: grammars, sessions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_adapter.kernels.apply import apply_bitmask_, mask_on_host_, rows_to_tensor

__all__ = ["RowStaging"]


class RowStaging:
    """Memory for the rows of one step on one device. One thread at a time."""

    def __init__(self, device: torch.device, row_capacity: int, row_stride_words: int) -> None:
        self.device = device
        if device.type == "cuda":
            self._pinned_rows = torch.empty(row_capacity, row_stride_words, dtype=torch.int32, pin_memory=True)
            self._pinned_indices = torch.empty(row_capacity, dtype=torch.int32, pin_memory=True)
            self._rows = torch.empty_like(self._pinned_rows, device=device)
            self._indices = torch.empty_like(self._pinned_indices, device=device)
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied, self._applied = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def apply_(self, logits: Tensor, rows: NDArray[np.int32], row_indices: NDArray[np.int32]) -> None:
        """Masks position i of ``logits`` by ``rows[row_indices[i]]``, -1 = not at all. On CUDA, returns before the end.

        Args:
            logits: (B, V) floating point, on ``device``.
            rows: (R, W) int32, of which the first B are used. May be written again once this returns.
            row_indices: (B,) int32, below B.
        """
        if self.device.type == "cpu":
            mask_on_host_(logits, rows, row_indices.tolist())
            return
        count = len(row_indices)
        if not count or row_indices.max() < 0:
            return
        used = rows_to_tensor(rows[:count])  # (R, W)
        self._copied.synchronize()  # the pinned memory is free again
        self._pinned_rows[: len(used)].copy_(used)
        self._pinned_indices[:count].copy_(torch.from_numpy(row_indices))
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._applied)  # the kernel has read the device memory
            self._rows[: len(used)].copy_(self._pinned_rows[: len(used)], non_blocking=True)
            self._indices[:count].copy_(self._pinned_indices[:count], non_blocking=True)
            self._copied.record()
        current.wait_event(self._copied)
        apply_bitmask_(logits, self._rows[:count], row_indices=self._indices[:count])
        self._applied.record(current)
