"""The model: a Llama-like network from ``transformers`` over static slots.

Every slot stands at a position of its own in the key-value cache. Every buffer is written in place. A decode step has
one of few shapes: numbers of slots and of cache columns, both rounded up. On CUDA each shape has a graph.
Owns: the cache, prefill of one slot, and the decode step over all slots.
Knows nothing about: requests, sampling, grammars, text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from engine_adapter.model.cuda_graphs import StepGraphs
from engine_adapter.model.loading import LoadedModel

__all__ = ["SlotModel", "slots_that_fit"]

_CPU_SLOTS, _CUDA_SLOTS = 16, 256
_CPU_COLUMNS, _CUDA_COLUMNS = 64, 256
_MEMORY_SHARE = 0.8  # of what is free on the device; activations and graphs need the rest


def slots_that_fit(loaded: LoadedModel, context_length: int, wanted: int | None = None) -> int:
    """Returns how many slots of ``context_length`` tokens to make: ``wanted``, on CUDA only as many as fit.

    Raises:
        ValueError: ``wanted`` is below 1, or there is no room for one.
    """
    device = loaded.network.device
    if wanted is not None and wanted < 1:
        raise ValueError(f"slots is {wanted}; give at least 1")
    if device.type != "cuda":
        return wanted or _CPU_SLOTS
    config: Any = loaded.network.config
    token_bytes = (
        2 * config.num_hidden_layers * config.num_key_value_heads * _head_size(config) * loaded.network.dtype.itemsize
    )
    free: int
    free, _ = torch.cuda.mem_get_info(device)
    fitting: int = int(_MEMORY_SHARE * free) // (token_bytes * context_length)
    if not fitting:
        raise ValueError(
            f"{free >> 20} MiB are free on {device}; a slot of {context_length} tokens needs "
            f"{token_bytes * context_length >> 20} MiB"
        )
    return min(wanted or _CUDA_SLOTS, fitting)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class SlotModel:
    """Runs a network over ``slot_count`` slots, each with the tokens of one sequence. One caller at a time.

    A sequence joins by ``prefill`` and leaves by ``free``, between steps; the others do not notice.

    Attributes:
        lengths: tokens in the cache of each slot.
        logits: (S, V) in the network's dtype, on its device, overwritten in place. Row s is valid after a ``prefill``
            of slot s or a ``decode`` that named it.
    """

    def __init__(self, network: Any, slot_count: int, context_length: int) -> None:
        self.device: torch.device = network.device
        self.slot_count = slot_count
        self.context_length = context_length
        self.lengths = [0] * slot_count
        self.logits = torch.zeros(slot_count, network.config.vocab_size, dtype=network.dtype, device=self.device)
        self._network = network
        self._cache = SlotCache(network, slot_count, context_length)
        self._token_ids = torch.zeros(slot_count, 1, dtype=torch.int64, device=self.device)
        self._positions = torch.zeros(slot_count, 1, dtype=torch.int64, device=self.device)
        self._columns = torch.arange(context_length, device=self.device)  # (C,)
        self._graphs = StepGraphs(self.device) if self.device.type == "cuda" else None

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        """Appends ``token_ids`` to ``slot`` and sets ``logits[slot]`` to those after the last one.

        Raises:
            ValueError: there are no ``token_ids``, or more than the slot has room for.
        """
        start, end = self.lengths[slot], self.lengths[slot] + len(token_ids)
        if not token_ids or end > self.context_length:
            raise ValueError(
                f"slot {slot} holds {start} tokens and has room for {self.context_length - start} more, not "
                f"{len(token_ids)}"
            )
        tokens = torch.tensor([token_ids], device=self.device)  # (1, T)
        positions = torch.arange(start, end, device=self.device)[None]  # (1, T)
        self.logits[slot] = self._forward(tokens, positions, slice(slot, slot + 1), self._rounded_columns(end))[0]
        self.lengths[slot] = end

    def decode(self, token_ids: Tensor, slots: Sequence[int]) -> None:
        """Appends one token to each of ``slots`` and sets their ``logits``.

        All slots up to the last of ``slots`` are computed. An idle slot writes behind its last token, where nothing is
        read before its next token is written.

        Args:
            token_ids: (S,) int64, on the model's device; those of other slots have no effect.
            slots: no slot twice, each with room for one token.
        """
        self._token_ids.copy_(token_ids[:, None])
        last = self.context_length - 1
        positions = [min(length, last) for length in self.lengths]
        self._positions.copy_(torch.tensor(positions)[:, None])
        count = self._rounded_slots(1 + max(slots))
        width = self._rounded_columns(1 + max(positions[:count]))
        if self._graphs is None:
            self._decode_slots(count, width)
        else:
            self._graphs.run((count, width), lambda: self._decode_slots(count, width))
        for slot in slots:
            self.lengths[slot] += 1

    def rewind(self, slot: int) -> None:
        """Takes the last token of ``slot`` back; the caller gives it again."""
        self.lengths[slot] -= 1

    def free(self, slot: int) -> None:
        """Empties ``slot``."""
        self.lengths[slot] = 0

    def _decode_slots(self, count: int, width: int) -> None:
        """Computes the logits; a CUDA graph can hold this, for it uses only memory of this object and never waits."""
        self.logits[:count] = self._forward(self._token_ids[:count], self._positions[:count], slice(0, count), width)

    def _rounded_slots(self, count: int) -> int:
        """Rounds up on CUDA, where idle slots cost little and every number would need its own graph."""
        return count if self._graphs is None else min(1 << (count - 1).bit_length(), self.slot_count)

    def _rounded_columns(self, width: int) -> int:
        """Rounds up: to multiples on the CPU, where each column costs time, to powers of two on CUDA."""
        if self._graphs is None:
            return min(-(-width // _CPU_COLUMNS) * _CPU_COLUMNS, self.context_length)
        return min(max(_CUDA_COLUMNS, 1 << (width - 1).bit_length()), self.context_length)

    @torch.inference_mode()
    def _forward(self, token_ids: Tensor, positions: Tensor, slots: slice, width: int) -> Tensor:
        """Runs (B, T) tokens at (B, T) positions of B neighbouring slots; returns (B, V) logits after the last of each.

        ``width`` columns of the cache are attended to; it is above all positions.
        """
        self._cache.aim(slots, positions, width)
        visible = self._columns[None, None, None, :width] <= positions[:, None, :, None]  # (B, 1, T, W)
        output = self._network(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=visible,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all slots, allocated once; ``aim`` says where the next forward pass writes."""

    def __init__(self, network: Any, slot_count: int, context_length: int) -> None:
        config = network.config
        shape = (slot_count, config.num_key_value_heads, context_length, _head_size(config))
        self.slot_layers = [
            _SlotLayer(torch.zeros(2, *shape, dtype=network.dtype, device=network.device))
            for _ in range(config.num_hidden_layers)
        ]
        super().__init__(layers=self.slot_layers)

    def aim(self, slots: slice, positions: Tensor, width: int) -> None:
        """Lets the next pass write (B, T) ``positions`` of B ``slots``, and attend to their first ``width`` columns."""
        for layer in self.slot_layers:
            layer.slots, layer.positions, layer.width = slots, positions, width


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    is_compileable = True

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self.keys, self.values = memory  # (S, H, C, D) each
        self.is_initialized = True
        self.slots = slice(0, 0)
        self.positions: Tensor = torch.empty(0)
        self.width = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (B, H, T, D) keys and values in place; returns views of the slots, (B, H, width, D)."""
        index = self.positions[:, None, :, None].expand_as(key_states)
        keys, values = self.keys[self.slots, :, : self.width], self.values[self.slots, :, : self.width]
        return keys.scatter_(2, index, key_states), values.scatter_(2, index, value_states)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the memory is there from the start."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width, 0

    def get_seq_length(self) -> int:
        """Returns 0: the slots have no common length, and every pass is given its positions."""
        return 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])
