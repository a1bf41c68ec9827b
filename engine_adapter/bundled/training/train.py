"""Trains the bundled model and writes ``model.safetensors``.

Owns: the steps of training, checkpoints, the loss.
Knows nothing about: what the examples say.

Run ``python -m engine_adapter.bundled.training.train``; run it again to go on where it stopped. Checkpoints lie in
``build/bundled-model``. Only the assistant's tokens count. The learning rate rises, stays, and falls to zero over the
last 30 % (``--fall-share``). Until the fall begins, a run may be lengthened or cut short with ``--steps`` or
``--minutes``. Works on a CPU and on CUDA, in bfloat16 with float32 weights.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, LlamaForCausalLM

from engine_adapter.bundled.training.dialogue import Example, segments
from engine_adapter.bundled.training.drills import astray
from engine_adapter.bundled.training.forward import hidden_states, position_tables, start_with_copying
from engine_adapter.bundled.training.make_data import TASKS, WARM_UP, examples, make

BUNDLED = Path(__file__).parents[1]
IGNORED = -100
SEED = 0
ASTRAY_SHARE = 0.08
"""Share of the examples whose answer has begun to repeat itself, so that the network learns to end it."""
console = Console(highlight=False)


@dataclass(frozen=True)
class TrainingBatch:
    """Examples of similar length, padded on the right.

    Attributes:
        token_ids: (B, T) int64.
        targets: (B, T) int64: the token after each position if the assistant says it, else ``IGNORED``.
        examples: (B,) what they were made of.
    """

    token_ids: Tensor
    targets: Tensor
    examples: Sequence[Example]


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns token ids (T,) and targets (T,)."""
    token_ids: list[int] = []
    said: list[bool] = []
    for text, is_answer in segments(example.messages, example.tools):
        piece = tokenizer.encode(text).ids
        token_ids += piece
        said += [is_answer] * len(piece)
    targets = [token if is_answer else IGNORED for token, is_answer in zip(token_ids[1:], said[1:], strict=True)] + [
        IGNORED
    ]
    return token_ids, targets


def batches(
    made: Sequence[Example], tokenizer: Tokenizer, batch_tokens: int, device: torch.device
) -> Iterator[TrainingBatch]:
    """Yields ``made`` in batches of at most ``batch_tokens``, padding included, longest first."""
    encoded = sorted(((*encode(example, tokenizer), example) for example in made), key=lambda item: -len(item[0]))
    while encoded:
        length = -(-len(encoded[0][0]) // 8) * 8
        count = max(1, batch_tokens // length)
        part, encoded = encoded[:count], encoded[count:]
        token_ids = torch.zeros(len(part), length, dtype=torch.int64)
        targets = torch.full((len(part), length), IGNORED)
        for row, (ids, wanted, _) in enumerate(part):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            targets[row, : len(ids)] = torch.tensor(wanted)
        yield TrainingBatch(token_ids.to(device), targets.to(device), [example for _, _, example in part])


class Learner:
    """The network with a fast forward pass.

    Attributes:
        network: ``LlamaForCausalLM`` with float32 weights.
    """

    def __init__(self, network: LlamaForCausalLM, *, compiled: bool) -> None:
        self.network = network
        self._hidden_states = torch.compile(hidden_states, dynamic=True) if compiled else hidden_states
        self._cosines, self._sines = position_tables(network, network.config.max_position_embeddings)

    def answer_logits(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Returns the logits (N, V) at the positions that have a target, float32, and those targets (N,)."""
        length = batch.token_ids.shape[1]
        # (B, T, H)
        hidden = self._hidden_states(self.network, batch.token_ids, self._cosines[:length], self._sines[:length])
        chosen = batch.targets != IGNORED
        logits = functional.linear(hidden[chosen], self.network.lm_head.weight.to(torch.bfloat16))
        return logits.float(), batch.targets[chosen]


def step_examples(step: int, count_tokens: int, warm_up_steps: int) -> list[Example]:
    """Returns the examples of one step, about ``count_tokens`` together; a function of the step alone.

    During the warm-up the short examples of ``WARM_UP`` give way to all of ``TASKS``.
    """
    rng = random.Random(f"{SEED} step {step}")  # noqa: S311 - text, no secret
    made, length = [], 0
    while length < count_tokens:
        example = make(rng, tasks=WARM_UP if rng.random() < 1 - step / max(warm_up_steps, 1) else TASKS)
        if rng.random() < ASTRAY_SHARE:
            example = astray(example, rng) or example
        made.append(example)
        length += sum(len(text) for text, _ in segments(example.messages, example.tools)) // 3
    return made


def make_optimizers(network: LlamaForCausalLM, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices and AdamW for the embedding and the norms."""
    matrices = [
        p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    ids = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, progress: float, rise: int = 100, fall_share: float = 0.3) -> float:
    """Returns the share of the full learning rate at ``step``, when ``progress`` (0 to 1) of the training is over."""
    return max(0.0, min(1.0, (step + 1) / rise, (1 - progress) / fall_share))


@torch.no_grad()
def validate(learner: Learner, held_back: Sequence[TrainingBatch]) -> tuple[float, dict[str, float]]:
    """Returns the mean loss a token, and by task the share of examples whose answer tokens are all the likeliest."""
    total, count = 0.0, 0
    right: dict[str, list[bool]] = {}
    for batch in held_back:
        logits, targets = learner.answer_logits(batch)
        total += functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
        rows = (batch.targets != IGNORED).nonzero()[:, 0]  # (N,) which example a target belongs to
        wrong = set(rows[logits.argmax(-1) != targets].tolist())
        for row, example in enumerate(batch.examples):
            right.setdefault(example.task, []).append(row not in wrong)
    return total / count, {task: sum(hits) / len(hits) for task, hits in sorted(right.items())}


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; a crash leaves the one before."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def export(network: LlamaForCausalLM, path: Path) -> None:
    """Writes the weights in float16, the tied output matrix left out."""
    tensors = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def main() -> None:
    """Trains until ``--steps`` or ``--minutes`` are over."""
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--step-tokens", type=int, default=2048, help="tokens of one optimizer step, about")
    parser.add_argument(
        "--batch-tokens", type=int, default=2048, help="tokens of one forward pass at most; raise it on CUDA"
    )
    parser.add_argument(
        "--warm-up-steps", type=int, default=100, help="until the short examples have given way to all tasks"
    )
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument(
        "--fall-share", type=float, default=0.3, help="share of the training in which the rate falls to zero"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="do without a C++ compiler, at half the speed")
    parser.add_argument("--minutes", type=float, default=1e9, help="be done after so long, learning rate and all")
    parser.add_argument("--checkpoint-minutes", type=float, default=4)
    parser.add_argument("--directory", type=Path, default=Path("build/bundled-model"))
    parser.add_argument("--output", type=Path, default=BUNDLED / "model.safetensors")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    network = LlamaForCausalLM._from_config(AutoConfig.from_pretrained(BUNDLED), dtype=torch.float32)
    start_with_copying(network, torch.Generator().manual_seed(SEED))
    network.to(device)
    learner = Learner(network, compiled=not arguments.no_compile)
    optimizers = make_optimizers(network, arguments.muon_lr, arguments.adam_lr)
    full_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    step, seen = 0, 0
    arguments.directory.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.directory / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seen = state["step"], state["tokens"]
    stream = examples(SEED + 1, held_back=True)
    held_back = list(batches([next(stream) for _ in range(300)], tokenizer, arguments.batch_tokens, device))
    console.print(
        f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}; from step {step} to {arguments.steps}"
    )

    def keep() -> None:
        loss, accuracy = validate(learner, held_back)
        states = [optimizer.state_dict() for optimizer in optimizers]
        save(checkpoint, {"network": network.state_dict(), "optimizers": states, "step": step, "tokens": seen})
        export(network, arguments.output)
        console.print(
            f"held back: loss {loss:.4f}, all tokens right {sum(accuracy.values()) / len(accuracy):.1%} (mean over tasks)"
        )
        console.print("  " + "; ".join(f"{task} {share:.0%}" for task, share in accuracy.items()), soft_wrap=True)

    started = reported = kept = time.monotonic()
    first, losses, tokens_then = step, [], seen
    while step < arguments.steps and time.monotonic() - started < 60 * arguments.minutes:
        made = step_examples(step, arguments.step_tokens, arguments.warm_up_steps)
        parts = list(batches(made, tokenizer, arguments.batch_tokens, device))
        target_count = sum(int((batch.targets != IGNORED).sum()) for batch in parts)
        loss_sum = 0.0
        for batch in parts:
            logits, targets = learner.answer_logits(batch)
            loss = functional.cross_entropy(logits, targets, reduction="sum") / target_count
            torch.autograd.backward(loss)
            loss_sum += loss.item()
            seen += batch.token_ids.numel()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        progress = max(step / arguments.steps, (time.monotonic() - started) / (60 * arguments.minutes))
        share = rate(step, progress, fall_share=arguments.fall_share)
        for group, full in zip((g for o in optimizers for g in o.param_groups), full_rates, strict=True):
            group["lr"] = full * share
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss_sum)
        now = time.monotonic()
        if now - reported > 20 or step == arguments.steps:
            pace = (now - started) / (step - first)
            console.print(
                f"step {step}/{arguments.steps}  loss {sum(losses) / len(losses):.4f}  {seen / 1e6:.1f} M tokens, "
                f"{(seen - tokens_then) / (now - reported):,.0f}/s  {pace:.2f} s/step  {pace * (arguments.steps - step) / 60:.0f} min left"
            )
            reported, losses, tokens_then = now, [], seen
        if now - kept > 60 * arguments.checkpoint_minutes:
            keep()
            kept = time.monotonic()
    keep()


if __name__ == "__main__":
    main()
