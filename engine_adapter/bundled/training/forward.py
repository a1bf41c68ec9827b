"""The forward pass of training: Llama's layers in bfloat16, so written that ``torch.compile`` fuses them on a CPU.

Owns: the forward pass, the start weights.
Knows nothing about: losses, data.

On a CPU it is twice as fast as the original of ``transformers``, whose attention has a slow backward pass. A test holds
the two together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["hidden_states", "position_tables", "start_with_copying"]

_LENGTH = 8.0
"""Length of a token in the starting embedding: such that all starting weights are about 1, where no step of training
drowns them."""

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
        qkv = functional.linear(h, _joined(attention.q_proj, attention.k_proj, attention.v_proj)).view(
            batch, length, 3, heads, size
        )
        # (B, heads, T, D)
        queries, keys = (part.transpose(1, 2) for part in _rotated(qkv[:, :, :2], cosines, sines).unbind(2))
        scores = queries @ keys.transpose(-1, -2) * size**-0.5 + later
        mixed = (
            (torch.softmax(scores, -1) @ qkv[:, :, 2].transpose(1, 2))
            .transpose(1, 2)
            .reshape(batch, length, heads * size)
        )
        x = x + functional.linear(mixed, _joined(attention.o_proj))
        gate, up = functional.linear(
            _norm(x, layer.post_attention_layernorm), _joined(mlp.gate_proj, mlp.up_proj)
        ).chunk(2, -1)
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
    """Sets weights so that, before any training, the network has an induction head over two tokens.

    Layer 0 looks one and two positions back and notes which tokens stand there; layer 2 looks for notes that equal the
    current token and its own note, and repeats what stands where it finds one (Olsson et al., "In-context Learning and
    Induction Heads", 2022). Its last
    head reads one token further, which tells whether a copied name is over. Random weights find this too, after more
    examples than this model is trained on. The residual stream has a part for the token (``here``), one for each note
    (``once``, ``twice``), and one
    direction (``always``) that is the same for all tokens, for attention that depends on the distance alone.
    """
    model, config = network.model, network.config
    width, heads, size = config.hidden_size, config.num_attention_heads, network.model.layers[0].self_attn.head_dim
    part = (width - 1) // 3 // 4 * 4
    here, once, twice, always = torch.linalg.qr(torch.randn(width, width, generator=generator))[0].split(
        (part, part, part, width - 3 * part)
    )
    tokens = torch.randn(config.vocab_size, part, generator=generator) * _LENGTH / part**0.5
    model.embed_tokens.weight.copy_(tokens @ here + _LENGTH * always[0])
    model.norm.weight.fill_(0.8 / _LENGTH)  # the embedding is the output matrix too: keeps logits small
    for layer in model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()

    looking, finding = model.layers[0].self_attn, model.layers[2].self_attn
    # rotary features turn at a speed each, the fastest first; feature f turns with feature f + size/2
    fast = torch.arange(6)
    slow = torch.arange(size // 5, size // 2)
    slow = torch.cat([slow, slow + size // 2])
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        distance, note = (1, once) if head < heads // 2 else (2, twice)
        mine = slice(head % (heads // 2) * 2 * part // heads, (head % (heads // 2) + 1) * 2 * part // heads)
        angles = model.rotary_emb.inv_freq[fast] * distance
        query, key = torch.zeros(size), torch.zeros(size)
        query[fast], key[fast], key[fast + size // 2] = 0.6, 0.6 * angles.cos(), 0.6 * angles.sin()
        looking.q_proj.weight[rows] = query[:, None] * always[0]
        looking.k_proj.weight[rows] = key[:, None] * always[0]
        _carry(looking, rows, here[mine], _LENGTH / (width / 2) ** 0.5 * note[mine])

        probes = [torch.linalg.qr(torch.randn(part, part, generator=generator))[0][: len(slow)] for _ in range(2)]
        if head < heads - 1:
            mine = slice(head * part // (heads - 1), (head + 1) * part // (heads - 1))
            query, key = probes[0] @ here + 0.8 * probes[1] @ once, probes[0] @ once + 0.8 * probes[1] @ twice
            _carry(finding, rows, here[mine], 2.5 * _LENGTH / (width / 4) ** 0.5 * here[mine])
        else:
            query, key = probes[0] @ here, probes[0] @ twice
            # apart from the notes
            further = torch.linalg.qr(torch.randn(part, part, generator=generator))[0][:size] @ twice
            _carry(finding, rows, here[:size], _LENGTH / (width / 4) ** 0.5 * further)
        finding.q_proj.weight[rows] = torch.zeros(size, width).index_copy(0, slow, 1.6 * query)
        finding.k_proj.weight[rows] = finding.k_proj.weight[rows].index_copy(0, slow, 1.6 * key)


def _carry(attention: Any, rows: slice, source: Tensor, target: Tensor) -> None:
    """Lets the head in ``rows`` copy what it attends to, from directions ``source`` (N, W) to ``target`` (N, W)."""
    attention.v_proj.weight[rows][: len(source)] = source
    attention.o_proj.weight[:, rows][:, : len(target)] = target.T
