"""From masked logits to one token a slot: banned tokens, the draw, steering, log probabilities.

Owns: the last look at every token: none is returned that its row forbids.
Knows nothing about: where rows come from, scheduling, text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_adapter.decoding.batch import Batch, Slot
from engine_adapter.decoding.request import EngineFault, TokenLogprobs
from engine_adapter.decoding.turn import Sampled
from engine_adapter.masker import Masks
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.sampler import Sampler, token_logprobs
from engine_adapter.steering.base import allows

__all__ = ["Drawing"]


class Drawing:
    """Draws the tokens of a batch. A failure for one slot ends the output in it."""

    def __init__(self, model: SlotModel, sampler: Sampler, batch: Batch) -> None:
        self._model = model
        self._sampler = sampler
        self._batch = batch
        self._vocab_size = model.logits.shape[1]
        self._open_row = np.full(-(-self._vocab_size // 32), -1, dtype=np.int32)  # of slots without a grammar

    def draw(self, slots: Sequence[Slot], masks: Masks | None) -> Sampled:
        """Draws a token for each of ``slots`` from the model's logits, which ``masks`` were applied to.

        Outputs without a possible token end. Sequences in ``masks.errors`` get a token that must not be used.
        """
        forbidden = self._forbidden(slots)
        on_device = self.sample(slots, forbidden)
        token_ids = on_device.tolist()  # waits for the device
        on_device.clamp_(min=0)
        for slot in slots:
            if slot.has_left or (masks is not None and slot.handle in masks.errors):
                continue
            index = slot.index
            row = self._open_row if masks is None or slot.handle is None else masks.rows[masks.row_indices[index]]
            with self._batch.alone(slot):
                chosen = self._choose(slot, row, token_ids[index], forbidden.get(index, ()))
                if chosen != token_ids[index]:
                    on_device[index] = token_ids[index] = chosen
        slots = [slot for slot in slots if not slot.has_left]
        self._sampler.count(on_device, [slot.index for slot in slots])
        return Sampled(slots, on_device, token_ids, self._logprobs(slots, on_device))

    def sample(self, slots: Sequence[Slot], forbidden: Mapping[int, Sequence[int]]) -> Tensor:
        """Returns what the sampler draws for ``slots``, (S,) int64 on the device; -1 where nothing can be drawn."""
        positions = [0] * self._model.slot_count
        for slot in slots:
            positions[slot.index] = len(slot.generation.token_ids)
        return self._sampler.sample(self._model.logits, torch.tensor(positions, device=self._model.device), forbidden)

    def _forbidden(self, slots: Sequence[Slot]) -> dict[int, list[int]]:
        """Returns, by slot index, the tokens not to draw now although the grammar may allow them."""
        forbidden: dict[int, list[int]] = {}
        for slot in slots:
            request, output = slot.generation.request, slot.generation.token_ids
            token_ids = [*slot.stop_token_ids] if len(output) < request.min_tokens else []
            if request.banned_words is not None:
                with self._batch.alone(slot):
                    token_ids += request.banned_words.forbidden(output)
            if token_ids:
                forbidden[slot.index] = token_ids
        return forbidden

    def _choose(self, slot: Slot, row: NDArray[np.int32], drawn: int, forbidden: Sequence[int]) -> int:
        """Returns the token that the steering of ``slot`` wants, or else ``drawn``.

        Raises:
            EngineFault: nothing could be drawn, or ``row`` forbids what was drawn.
        """
        if drawn < 0:
            raise EngineFault("no token can be drawn: what the model says of the allowed ones is not finite")
        with slot.steering_alone():
            wanted = self._steered(slot, row, drawn)
            if wanted is not None and wanted not in forbidden:
                if not (0 <= wanted < self._vocab_size and allows(row, wanted)):
                    raise EngineFault(f"it wants token {wanted}, which the mask forbids")
                drawn = wanted
        if not allows(row, drawn):
            raise EngineFault("a token was drawn that the mask forbids")
        return drawn

    def _steered(self, slot: Slot, row: NDArray[np.int32], drawn: int) -> int | None:
        if slot.steering is None:
            return None
        budget = slot.generation.request.max_tokens - len(slot.generation.token_ids)
        # The last token of a full context is never read, so it needs no room.
        room = self._model.context_length - self._model.lengths[slot.index] + 1
        return slot.steering.choose(row, drawn, min(budget, room))

    def _logprobs(self, slots: Sequence[Slot], on_device: Tensor) -> dict[int, TokenLogprobs]:
        """Returns the log probabilities of the tokens whose requests ask for them, by slot index."""
        asking = [(slot.index, top) for slot in slots if (top := slot.generation.request.logprobs) is not None]
        if not asking:
            return {}
        rows = torch.tensor([index for index, _ in asking], device=on_device.device)
        drawn = on_device[rows]
        most = max(top for _, top in asking)
        logprobs: dict[int, TokenLogprobs] = {}
        for (index, top), token_id, logprob, ids, values in zip(
            asking, drawn.tolist(), *token_logprobs(self._model.logits[rows], drawn, most), strict=True
        ):
            likeliest = list(zip(ids, values, strict=True))[:top]
            logprobs[index] = TokenLogprobs(
                token_id, logprob, tuple(pair for pair in likeliest if pair[1] > -torch.inf)
            )
        return logprobs
