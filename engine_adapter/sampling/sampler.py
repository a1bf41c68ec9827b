"""Logits to token ids, on the device, one set of parameters per slot.

A draw is a pure function of seed, position, logits and tokens so far. It has no generator state. So a request gets the
same tokens in any slot, beside any neighbours, and again after a restart. Its random number is one 64-bit hash per row
(SplitMix64, Steele et al. 2014). A forbidden token has a logit of -inf and is never drawn.
Owns: the draw, and the parameters of every slot as tensors, changed in place when a request joins.
Knows nothing about: grammars, text, stop tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine_adapter.sampling.params import SamplingParams
from engine_adapter.sampling.penalties import Penalties, forbid

__all__ = ["Sampler", "token_logprobs"]


class Sampler:
    """Draws one token per slot. One caller at a time."""

    def __init__(self, slot_count: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._penalties = Penalties(slot_count, vocab_size, device)
        self._truncating: set[int] = set()  # slots with top_k or top_p: only they need a sort
        self._typical: set[int] = set()  # slots with typical_p: only they need another
        self._temperature = torch.ones(slot_count, 1, device=device)  # (S, 1) float32, as are the next four
        self._top_k = torch.full((slot_count, 1), vocab_size, device=device)
        self._top_p = torch.ones(slot_count, 1, device=device)
        self._min_p = torch.zeros(slot_count, 1, device=device)
        self._typical_p = torch.ones(slot_count, 1, device=device)
        self._seed = torch.zeros(slot_count, dtype=torch.int64, device=device)  # (S,)

    def set(self, slot: int, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        """Sets the parameters of ``slot``, for all draws from now on. ``prompt`` counts for the repetition penalty."""
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self._temperature[slot] = params.temperature
        self._top_k[slot] = min(params.top_k or self._vocab_size, self._vocab_size)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._typical_p[slot] = params.typical_p
        self._seed[slot] = (seed + 2**63) % 2**64 - 2**63
        (self._truncating.add if params.top_k or params.top_p < 1 else self._truncating.discard)(slot)
        (self._typical.add if params.typical_p < 1 else self._typical.discard)(slot)
        self._penalties.set(slot, params, prompt)

    def release(self, slot: int) -> None:
        """Forgets those parameters of ``slot`` that cost time in every step."""
        self._truncating.discard(slot)
        self._typical.discard(slot)
        self._penalties.release(slot)

    def count(self, token_ids: Tensor, slots: Sequence[int]) -> None:
        """Counts ``token_ids[slot]`` ((S,) int64) for each of ``slots``, where that slot has a penalty."""
        self._penalties.count(token_ids, slots)

    def sample(self, logits: Tensor, positions: Tensor, forbidden: Mapping[int, Sequence[int]] | None = None) -> Tensor:
        """Draws one token id per row. Changes neither the sampler nor its arguments; see ``count``.

        Args:
            logits: (S, V) floating point, on the sampler's device.
            positions: (S,) int64, same device: how many tokens each sequence has so far; each position is its own draw.
            forbidden: slot to tokens that it must not draw, unless all others are -inf.

        Returns:
            (S,) int64, same device; -1 for a row from which no token with a finite logit can be drawn.
        """
        masked = logits
        logits = self._penalties.apply(logits.float())
        if forbidden:
            logits = forbid(logits, forbidden)
        greedy = logits.argmax(dim=-1)  # (S,)
        scaled = logits / self._temperature.clamp(min=1e-5)  # (S, V)
        if self._truncating:
            scaled = self._truncate(scaled)
        if self._typical:
            scaled = self._keep_typical(scaled)
        probabilities = torch.softmax(scaled, dim=-1)  # (S, V)
        floor = self._min_p * probabilities.amax(dim=-1, keepdim=True)  # (S, 1)
        probabilities = torch.where(probabilities < floor, 0.0, probabilities)
        cumulative = probabilities.cumsum(dim=-1)  # (S, V)
        target = _uniform(self._seed, positions)[:, None] * cumulative[:, -1:]  # (S, 1)
        drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)  # (S, 1)
        # Rounding in a parallel sum may point beside the right token; a token of probability 0 must never be drawn.
        possible = probabilities.gather(1, drawn) > 0
        taken = torch.where(possible & (self._temperature > 0), drawn, greedy[:, None])  # (S, 1)
        return torch.where(masked.gather(1, taken).isfinite(), taken, -1).squeeze(1)

    def _truncate(self, scaled: Tensor) -> Tensor:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)  # (S, V) both
        before = torch.softmax(ordered, dim=-1).cumsum(dim=-1).roll(1, dims=-1)  # probability of all more likely tokens
        before[:, 0] = -1  # the most likely one stays, though top_p may be 0 in float32
        rank = torch.arange(ordered.shape[1], device=ordered.device)
        ordered = ordered.masked_fill((rank >= self._top_k) | (before >= self._top_p), -torch.inf)
        return ordered.new_empty(ordered.shape).scatter_(1, order, ordered)

    def _keep_typical(self, scaled: Tensor) -> Tensor:
        logprobs = torch.log_softmax(scaled, dim=-1)  # (S, V)
        probabilities = logprobs.exp()
        entropy = -torch.where(probabilities > 0, probabilities * logprobs, 0.0).sum(dim=-1, keepdim=True)  # (S, 1)
        order = (-logprobs - entropy).abs().argsort(dim=-1, stable=True)  # (S, V)
        before = probabilities.gather(1, order).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = -1
        dropped = torch.zeros_like(scaled, dtype=torch.bool).scatter_(
            1, order, (before >= self._typical_p) & (self._typical_p < 1)
        )
        return scaled.masked_fill(dropped, -torch.inf)


def token_logprobs(
    logits: Tensor, token_ids: Tensor, top: int
) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Returns how likely the token of each row is, and which tokens are the most likely ones.

    Args:
        logits: (B, V) floating point, after the mask.
        token_ids: (B,) int64, same device.
        top: how many of the most likely tokens to return; 0 for none.

    Returns:
        For each row: the log probability of its token, the ids of the ``top`` tokens, their log probabilities.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)  # (B, V)
    drawn = logprobs.gather(1, token_ids[:, None]).squeeze(1)  # (B,)
    values, ids = logprobs.topk(min(top, logits.shape[1]), dim=-1)  # (B, top) both
    return drawn.tolist(), ids.tolist(), values.tolist()


def _uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Returns (S,) float32 in [0, 1): the SplitMix64 output number ``position`` of each seed.

    int64 wraps as uint64 would.
    """
    x = seed + (position + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 40).float() * 2.0**-24  # 24 bits, the precision of float32


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return x >> bits & (1 << 64 - bits) - 1
