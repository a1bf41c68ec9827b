"""The rows of one step, and their way into the logits of the batch.

Owns: ``Masks``, and the memory that rows are staged in. Knows nothing about: sessions, sequences, waiting.
Importing it does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_adapter.masker.late_rows import StepAnswer
from maskd.bitmask import mask_array, row_stride_words
from maskd.errors import MaskdError
from maskd.step import Result

if TYPE_CHECKING:
    from engine_adapter.kernels.staging import RowStaging

__all__ = ["MaskApplier", "Masks"]


@dataclass(slots=True)
class Masks:
    """The rows of one step.

    Attributes:
        rows: (rows, row_stride_words) int32, read-only; a view of shared memory, valid until the second next
            ``advance``.
        row_indices: (positions,) int32: position i of the batch is masked by ``rows[row_indices[i]]``; -1 = by none.
        errors: the sequences that must not be sampled from, and why. Their rows allow only stop tokens.
        wait_seconds: how long the caller stood still for the rows: what the forward pass did not hide.
    """

    rows: NDArray[np.int32]
    row_indices: NDArray[np.int32]
    errors: Mapping[int, MaskdError]
    wait_seconds: float
    _answer: StepAnswer = field(repr=False)

    @property
    def results(self) -> dict[int, Result]:
        """What the daemon said about each sequence with a grammar: terminated, accepting, rows over its drafts, ..."""
        return {result.sequence_id: result for result in self._answer.results}


class MaskApplier:
    """Applies masks to the logits of one engine. One thread at a time."""

    def __init__(self, vocab_size: int, row_capacity: int) -> None:
        self._vocab_size = vocab_size
        self._row_capacity = row_capacity
        self._staging: RowStaging | None = None

    def apply_(self, logits: Any, masks: Masks) -> None:
        """Sets what ``masks`` forbid to -inf, in place. On CUDA, returns before it is done.

        Args:
            logits: (positions, vocab_size), a floating-point numpy array or torch tensor, any device, any strides.
            masks: of the same batch.

        Raises:
            ValueError: another shape than the batch has, or not writable.
        """
        if tuple(logits.shape) != (len(masks.row_indices), self._vocab_size):
            raise ValueError(
                f"logits are {tuple(logits.shape)}; the batch is ({len(masks.row_indices)}, {self._vocab_size})"
            )
        if isinstance(logits, np.ndarray):
            mask_array(logits, masks.rows, masks.row_indices.tolist())
            return
        if self._staging is None or self._staging.device != logits.device:
            from engine_adapter.kernels.staging import RowStaging

            self._staging = RowStaging(logits.device, self._row_capacity, row_stride_words(self._vocab_size))
        self._staging.apply_(logits, masks.rows, masks.row_indices)
