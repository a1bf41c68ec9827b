"""What the decode loop holds between turns: its slots, the one value that a turn leaves for the next, and where turns
went.

Knows nothing about: how a turn is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine_adapter.decoding.request import Generation
from engine_adapter.steering.base import Steering

__all__ = ["Pending", "Slot", "TurnTiming"]


@dataclass(frozen=True, slots=True)
class TurnTiming:
    """Where one turn went, by the host's clock. On CUDA the forward pass is only launched, and ends within
    ``mask_wait_seconds`` or ``sample_seconds``.

    Attributes:
        batch_size: sequences that got a token.
        forward_seconds: decode of all slots and prefill of those that join.
        mask_wait_seconds: rows that were not ready when the forward pass returned: what the overlap did not hide.
        sample_seconds: mask, sample, and tokens to the host.
        turn_seconds: all of it, delivering and scheduling included.
    """

    batch_size: int
    forward_seconds: float
    mask_wait_seconds: float
    sample_seconds: float
    turn_seconds: float


@dataclass(slots=True)
class Slot:
    """A generation in its slot: its handle at the masker if it has a grammar, the end of the prompt that the cache
    lacks, its stop tokens, and its steering until that fails."""

    generation: Generation
    handle: int | None
    unread: Sequence[int]
    stop_token_ids: frozenset[int]
    steering: Steering | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """What one turn leaves for the next. The masker is at work on the rows of ``sampling``.

    Attributes:
        token_ids: (S,) int64, on the model's device: what was sampled last.
        decoding: slots whose sampled token goes through the model now.
        reading: (slot, tokens of its prompt) that go through the model now.
        sampling: slots that have logits afterwards.
        is_masked: whether any of them has a grammar, so that the masker was asked for rows.
    """

    token_ids: Tensor
    decoding: Sequence[int]
    reading: Sequence[tuple[int, Sequence[int]]]
    sampling: Sequence[int]
    is_masked: bool
