"""The values of a turn: what is to be done, what was sampled, and how long it took.

Owns: ``Pending``, ``Sampled``, ``TurnTiming``. Knows nothing about: how a turn is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine_adapter.decoding.batch import Slot
from engine_adapter.decoding.request import TokenLogprobs

__all__ = ["Pending", "Sampled", "TurnTiming"]


@dataclass(frozen=True, slots=True)
class Pending:
    """What one turn leaves for the next. The masker is at work on the rows of ``sampling``.

    Attributes:
        last_tokens: (S,) int64, on the model's device: what was sampled last.
        decoding: slots whose last token goes through the model now.
        reading: slots with tokens of their prompt that go through the model now.
        sampling: slots that have logits afterwards.
    """

    last_tokens: Tensor
    decoding: Sequence[Slot]
    reading: Sequence[tuple[Slot, Sequence[int]]]
    sampling: Sequence[Slot]

    @property
    def is_masked(self) -> bool:
        """Whether the masker is asked for rows."""
        return any(slot.handle is not None for slot in self.sampling)

    @property
    def rows(self) -> list[int | None]:
        """The handle whose row masks each position of the logits; None for those without."""
        handles: list[int | None] = [None] * len(self.last_tokens)
        for slot in self.sampling:
            handles[slot.index] = slot.handle
        return handles

    def without_grammars(self) -> Pending:
        """Returns the part of this that needs no daemon."""
        return dataclasses.replace(
            self,
            decoding=[slot for slot in self.decoding if slot.handle is None],
            reading=[(slot, token_ids) for slot, token_ids in self.reading if slot.handle is None],
            sampling=[slot for slot in self.sampling if slot.handle is None],
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of one turn.

    Attributes:
        slots: those that got a token.
        on_device: (S,) int64, on the model's device, 0 or more: for the next forward pass.
        token_ids: the same on the host, by slot index. Only those of ``slots`` count.
        logprobs: by slot index, where the request asks for them.
    """

    slots: Sequence[Slot]
    on_device: Tensor
    token_ids: Sequence[int]
    logprobs: Mapping[int, TokenLogprobs]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTiming:
    """Where one turn went, by the host's clock.

    On CUDA the forward pass is only launched. It ends within ``mask_wait_seconds`` or ``sample_seconds``.

    Attributes:
        batch_size: sequences that got a token.
        forward_seconds: decode of all slots and prefill of those that join.
        mask_wait_seconds: waiting for rows after the forward pass: what the overlap did not hide.
        sample_seconds: mask, sample, and tokens to the host.
        turn_seconds: all of it, delivering and scheduling included.
    """

    batch_size: int
    forward_seconds: float
    mask_wait_seconds: float
    sample_seconds: float
    turn_seconds: float
