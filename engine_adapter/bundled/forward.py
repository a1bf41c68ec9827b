"""The forward pass of training: the layers of ``transformers``' Llama in bfloat16, written so that ``torch.compile`` fuses them on a CPU.

Twice as fast there as the original, whose attention has a slow backward pass; a test holds the two together. Also the start weights.
Knows nothing about: losses, data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["hidden_states", "position_tables", "start_with_copying"]

_HIDDEN = -1e4
"""What the scores of later positions get: far below any score, and finite in bfloat16."""


def position_tables(network: Any, length: int) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of the rotary embedding, (T, 1, 1, D/2) each, bfloat16."""
    frequencies = network.model.rotary_emb.inv_freq  # (D/2,)
    angles = torch.arange(length, device=frequencies.device)[:, None] * frequencies.float()
    cosines, sines = (table.to(torch.bfloat16)[:, None, None, :] for table in (angles.cos(), angles.sin()))
    return cosines, sines


def hidden_states(network: Any, token_ids: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Returns the last hidden states (B, T, H), bfloat16. Needs as many key-value heads as heads.

    Args:
        network: ``LlamaForCausalLM`` with float32 weights.
        token_ids: (B, T) int64, padded on the right; no position sees a later one.
        cosines: of ``position_tables``. sines: likewise.
    """
    batch, length = token_ids.shape
    heads, size = network.config.num_attention_heads, network.model.layers[0].self_attn.head_dim
    later = torch.full((length, length), _HIDDEN, dtype=torch.bfloat16, device=token_ids.device).triu(1)
    x = functional.embedding(token_ids, network.model.embed_tokens.weight).to(torch.bfloat16)
    for layer in network.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        h = _norm(x, layer.input_layernorm)
        qkv = functional.linear(h, _joined(attention.q_proj, attention.k_proj, attention.v_proj)).view(batch, length, 3, heads, size)
        queries, keys = (part.transpose(1, 2) for part in _rotated(qkv[:, :, :2], cosines, sines).unbind(2))  # (B, heads, T, D)
        scores = queries @ keys.transpose(-1, -2) * size**-0.5 + later
        mixed = (torch.softmax(scores, -1) @ qkv[:, :, 2].transpose(1, 2)).transpose(1, 2).reshape(batch, length, heads * size)
        x = x + functional.linear(mixed, _joined(attention.o_proj))
        gate, up = functional.linear(_norm(x, layer.post_attention_layernorm), _joined(mlp.gate_proj, mlp.up_proj)).chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, _joined(mlp.down_proj))
    return _norm(x, network.model.norm)


def _joined(*projections: Any) -> Tensor:
    return torch.cat([projection.weight for projection in projections]).to(torch.bfloat16)


def _norm(x: Tensor, norm: Any) -> Tensor:
    wide = x.float()
    normed: Tensor = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    return normed.to(torch.bfloat16)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns (B, T, 2, heads, D) by the angles of its positions."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


@torch.no_grad()
def start_with_copying(network: Any, generator: torch.Generator) -> None:
    """Sets weights so that, before any training, the network goes on as it once went on after the same token: an induction head.

    Layer 0 looks one position back and notes which token stands there; layer 2 looks for notes that equal the current token, and repeats
    what stands where it finds one (Olsson et al., "In-context Learning and Induction Heads", 2022). Random weights find this too, after
    more examples than this model is trained on. Half of the embedding holds the token (``here``), the other half the note (``there``), and
    one direction (``always``) is the same for all tokens, for attention that depends on the distance alone.
    """
    model, config = network.model, network.config
    width, heads = config.hidden_size, config.num_attention_heads
    size, half, part = width // heads, width // 2 - 1, (width // 2 - 1) // heads
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    here, there, always = basis[:half], basis[half : 2 * half], basis[-1]
    deviation = config.initializer_range
    length = deviation * width**0.5  # of each of the two parts of an embedding
    tokens = torch.randn(config.vocab_size, half, generator=generator) * length / half**0.5
    model.embed_tokens.weight.copy_(tokens @ here + length * always)
    for layer in model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()

    frequencies = model.rotary_emb.inv_freq  # (D/2,), the fastest first; feature f turns with feature f + D/2
    fast = torch.arange(6)
    looking, noting = model.layers[0].self_attn, there.T @ here  # (W, W) what a note does to a token
    finding = model.layers[2].self_attn
    slow = torch.arange(size // 5, size // 2)
    slow = torch.cat([slow, slow + size // 2])
    for head in range(heads):
        rows, mine = slice(head * size, (head + 1) * size), slice(head * part, (head + 1) * part)
        query = torch.zeros(size)
        query[fast] = 0.6
        key = torch.zeros(size)
        key[fast], key[fast + size // 2] = 0.6 * frequencies[fast].cos(), 0.6 * frequencies[fast].sin()  # turned by one position
        looking.q_proj.weight[rows] = query[:, None] * always
        looking.k_proj.weight[rows] = key[:, None] * always
        looking.v_proj.weight[rows][:part] = here[mine]
        looking.o_proj.weight[:, rows][:, :part] = deviation * 2**0.5 * there[mine].T

        probe = 1.7 * torch.linalg.qr(torch.randn(half, half, generator=generator))[0][: len(slow)] @ here  # (slow, W)
        finding.q_proj.weight[rows] = torch.zeros(size, width).index_copy(0, slow, probe)
        finding.k_proj.weight[rows] = finding.k_proj.weight[rows].index_copy(0, slow, probe @ noting.T)
        finding.v_proj.weight[rows][:part] = here[mine]
        finding.o_proj.weight[:, rows][:, :part] = 4 * deviation * here[mine].T
