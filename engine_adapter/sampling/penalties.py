"""Changes of the logits before the draw: bias, and penalties for tokens that the text of a slot has already.

A logit of -inf stays -inf: nothing here can allow what a mask forbids.
Owns: the biases of every slot, and the tokens of its prompt and output, as tensors on the device. The first slot that
needs a tensor makes it. Only the rows of slots that use it are touched.
Knows nothing about: drawing, grammars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine_adapter.sampling.params import SamplingParams

__all__ = ["Penalties", "forbid"]


class Penalties:
    """Bias, repetition, presence and frequency of every slot. One caller at a time."""

    def __init__(self, slot_count: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._shape = (slot_count, vocab_size)
        self._device = device
        self._bias: Tensor | None = None  # (S, V) float32
        self._counts: Tensor | None = None  # (S, V) float32: how often the slot's output has the token
        self._in_prompt: Tensor | None = None  # (S, V) bool
        self._factors = torch.zeros(slot_count, 3, device=device)  # repetition, presence, frequency
        self._biased: set[int] = set()
        self._counted: set[int] = set()
        self._repeating: set[int] = set()
        self._rows: list[int] = []  # slots with any of these, ascending

    def set(self, slot: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        """Sets the parameters of ``slot``; its output is empty. ``prompt`` counts for the repetition penalty."""
        repeats = params.repetition_penalty != 1
        _mark(self._biased, slot, bool(params.logit_bias))
        _mark(self._repeating, slot, repeats)
        _mark(self._counted, slot, repeats or bool(params.presence_penalty or params.frequency_penalty))
        self._rows = sorted(self._biased | self._counted)
        if slot in self._biased:
            self._bias = torch.zeros(self._shape, device=self._device) if self._bias is None else self._bias
            self._bias[slot] = 0
            ids = torch.tensor(list(params.logit_bias), device=self._device)
            self._bias[slot, ids] = torch.tensor(list(params.logit_bias.values()), device=self._device)
        if slot in self._counted:
            self._counts = torch.zeros(self._shape, device=self._device) if self._counts is None else self._counts
            self._counts[slot] = 0
            factors = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            self._factors[slot] = torch.tensor(factors, device=self._device)
        if repeats:
            if self._in_prompt is None:
                self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._in_prompt[slot] = False
            self._in_prompt[slot, torch.tensor(sorted(set(prompt)), dtype=torch.int64, device=self._device)] = True

    def release(self, slot: int) -> None:
        """Applies nothing to ``slot`` any more."""
        for slots in (self._biased, self._counted, self._repeating):
            slots.discard(slot)
        self._rows = sorted(self._biased | self._counted)

    def count(self, token_ids: Tensor, slots: Sequence[int]) -> None:
        """Counts ``token_ids[slot]`` ((S,) int64) for each of ``slots``, where that slot has a penalty."""
        if self._counts is not None and (counted := sorted(self._counted.intersection(slots))):
            index = torch.tensor(counted, device=token_ids.device)
            self._counts[index, token_ids[index]] += 1

    def apply(self, logits: Tensor) -> Tensor:
        """Returns (S, V) float32 ``logits`` with biases, then penalties; a copy if there are any.

        The repetition penalty divides a logit above 0 by its factor and multiplies one below 0, as Hugging Face and
        vLLM do (Keskar et al., "CTRL", 2019). Presence and frequency penalties are taken off, as OpenAI defines them.
        """
        if not self._rows:
            return logits
        rows = torch.tensor(self._rows, device=logits.device)
        part = logits[rows]  # (R, V), a copy
        forbidden = part == -torch.inf
        if self._bias is not None and self._biased:
            part = part + torch.where(_among(self._rows, self._biased, rows), self._bias[rows], 0.0)
        if self._counts is not None and self._counted:
            counts = torch.where(_among(self._rows, self._counted, rows), self._counts[rows], 0.0)
            repetition, presence, frequency = self._factors[rows].unsqueeze(-1).unbind(1)  # (R, 1) each
            if self._in_prompt is not None and self._repeating:
                repeating = _among(self._rows, self._repeating, rows)
                seen = repeating & ((counts > 0) | self._in_prompt[rows])
                part = torch.where(seen, torch.where(part > 0, part / repetition, part * repetition), part)
            part = part - frequency * counts - presence * (counts > 0)
        # The mask has the last word: -inf stays -inf.
        part = part.masked_fill(forbidden, -torch.inf)
        return logits.index_copy(0, rows, part)


def forbid(logits: Tensor, forbidden: Mapping[int, Sequence[int]]) -> Tensor:
    """Returns ``logits`` with forbidden tokens set to -inf, but not for slots that would have no token left.

    Args:
        logits: (S, V) float32.
        forbidden: slot to token ids.
    """
    pairs = [(slot, token_id) for slot, token_ids in forbidden.items() for token_id in token_ids]
    if not pairs:
        return logits
    slots, token_ids = torch.tensor(pairs, device=logits.device).T
    narrowed = logits.clone()
    narrowed[slots, token_ids] = -torch.inf
    return torch.where(narrowed.amax(dim=-1, keepdim=True) == -torch.inf, logits, narrowed)


def _mark(slots: set[int], slot: int, belongs: bool) -> None:
    (slots.add if belongs else slots.discard)(slot)


def _among(rows: Sequence[int], slots: set[int], like: Tensor) -> Tensor:
    """Returns (R, 1) bool: which of ``rows`` are in ``slots``."""
    return torch.tensor([row in slots for row in rows], device=like.device)[:, None]
