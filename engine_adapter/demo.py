"""The demo: a daemon, a small model and four sequences in one batch, each with another grammar, or none.

Owns: the four requests, how they are shown, and the verdict.
Knows nothing about: how a token is masked or drawn.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine_adapter.bundled.training.writing import INTRODUCTION
from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import Generation, Request
from engine_adapter.masker import Masker
from engine_adapter.model.loading import LoadedModel, load_model
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.structured_output.bounded import bounded_spec
from maskd.client import Client
from maskd.grammar import GrammarSpec
from maskd.sidecar import Sidecar
from maskd.tokenizer_files import load_vocabulary

__all__ = ["run_demo"]

# The regex and the grammar of TensorRT-LLM's documentation on guided decoding.
REGEX = "(Paris|London)"
EBNF = """root ::= description
city ::= "London" | "Paris" | "Berlin" | "Rome"
description ::= city " is " status
status ::= "the capital of " country
country ::= "England" | "France" | "Germany" | "Italy"
"""
SENTENCE = "(London|Paris|Berlin|Rome) is the capital of (England|France|Germany|Italy)"

_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CONTEXT_LENGTH = 512
FREE_TOKENS = 24
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class _Part:
    """One sequence of the demo. ``fault`` says what is wrong with its text, None = nothing."""

    name: str
    prompt: str
    grammar: GrammarSpec | None
    max_tokens: int
    fault: Callable[[str], str | None]


def run_demo(console: Console, *, model_path: Path | None = None, target: str | None = None, seed: int = 0) -> int:
    """Runs the demo and returns its exit code: 0 if every output is what its grammar says, else 1.

    Args:
        console: where it is shown; progress moves on a terminal only.
        model_path: a local Hugging Face directory; None = the bundled model.
        target: a running daemon; None = start one.
        seed: of all four sequences.

    Raises:
        MaskdError: the daemon cannot be started or reached.
    """
    # the daemon makes masks during the forward pass, on another core
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    if target is not None:
        # fails before anything heavy is loaded, if no daemon is there
        Client.connect(target, timeout_seconds=_CONNECT_SECONDS).close()
    with ExitStack() as stack:
        with _doing(console, "starting maskd, loading the model"):
            sidecar = None if target is not None else stack.enter_context(Sidecar())
            loaded = load_model(model_path)
            vocabulary = load_vocabulary(loaded.path, vocab_size=loaded.vocab_size)
            parts = _parts(loaded.trained)
            connect = sidecar.connect if sidecar else str(target)
            masker = stack.enter_context(Masker(connect, vocabulary, row_capacity=len(parts)))
            model = SlotModel(loaded.network, len(parts), CONTEXT_LENGTH)
            loop = stack.enter_context(DecodeLoop(model, masker, vocabulary.stop_token_ids))
        console.print(_setting(loaded), highlight=False)
        generations = [loop.add(_request(part, loaded, seed)) for part in parts]
        texts = _decode(console, loop, loaded, parts, generations)
    faults = [
        fault
        for part, text, generation in zip(parts, texts, generations, strict=True)
        if (fault := _fault(part, text, generation))
    ]
    console.print(_footnotes(loop, generations))
    for fault in faults:
        console.print(f"[red]invalid[/]: {fault}", highlight=False)
    if faults:
        return 1
    console.print_json(texts[0])
    console.print("[green]valid[/]", highlight=False)
    return 0


def _parts(trained: bool) -> list[_Part]:
    schema = GrammarSpec("json_schema", json.dumps(INTRODUCTION))
    return [
        # Random weights may never end a string, so they get the bounded schema. The verdict is by the original.
        _Part(
            "JSON schema",
            "Make a self introduction please.",
            schema if trained else bounded_spec(schema),
            400,
            _json_fault,
        ),
        _Part(
            "regex",
            "What is the capital of France?",
            GrammarSpec("regex", REGEX, backend="xgrammar"),
            16,
            _match_fault(REGEX),
        ),
        _Part(
            "EBNF",
            "Give me the information of the capital of France.",
            GrammarSpec("ebnf", EBNF),
            64,
            _match_fault(SENTENCE),
        ),
        _Part("none", "What do you think of Paris?", None, FREE_TOKENS, lambda text: None),
    ]


def _request(part: _Part, loaded: LoadedModel, seed: int) -> Request:
    prompt = loaded.tokenizer.encode(_CHAT.format(part.prompt), add_special_tokens=False).ids
    sampling = SamplingParams(temperature=0.8, seed=seed)
    return Request(prompt=prompt, grammar=part.grammar, sampling=sampling, max_tokens=part.max_tokens)


def _decode(
    console: Console, loop: DecodeLoop, loaded: LoadedModel, parts: Sequence[_Part], generations: Sequence[Generation]
) -> list[str]:
    """Runs the loop to its end, showing the outputs as they grow; returns them."""

    def texts() -> list[str]:
        return [loaded.tokenizer.decode(generation.token_ids) for generation in generations]

    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown = 0.0
        while any(generation.finish_reason is None for generation in generations):
            if not loop.step():
                time.sleep(0.005)  # grammars are being compiled
            if console.is_terminal and time.monotonic() - shown > 0.05:
                live.update(_table(parts, generations, texts(), console.width), refresh=True)
                shown = time.monotonic()
    console.print(_table(parts, generations, texts(), console.width))
    return texts()


# -- what is shown ---------------------------------------------------------------------------------------------------


@contextmanager
def _doing(console: Console, what: str) -> Iterator[None]:
    if not console.is_terminal:
        console.print(f"{what} ...", highlight=False)
    with console.status(what):
        yield


def _setting(loaded: LoadedModel) -> str:
    size = sum(parameter.numel() for parameter in loaded.network.parameters()) / 1e6
    weights = "trained" if loaded.trained else "random"
    return (
        f"{loaded.path.name} model: {size:.1f} M {weights} weights, {loaded.vocab_size:,} tokens, "
        f"on {loaded.network.device}"
    )


def _table(parts: Sequence[_Part], generations: Sequence[Generation], texts: Sequence[str], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", width=min(width, 120))
    for name in ("grammar", "backend"):
        table.add_column(name, no_wrap=True)
    table.add_column("tokens", justify="right")
    table.add_column("ended", no_wrap=True)
    table.add_column("output", ratio=1, no_wrap=True, overflow="ellipsis")
    for part, generation, text in zip(parts, generations, texts, strict=True):
        table.add_row(
            part.name,
            generation.report.backend if generation.report else "-",
            str(len(generation.token_ids)),
            Text(generation.finish_reason or "", "red" if generation.finish_reason == "error" else ""),
            Text("".join(character if character.isprintable() else "·" for character in text)),
        )
    return table


def _footnotes(loop: DecodeLoop, generations: Sequence[Generation]) -> Table:
    wait, forward = (
        1e3 * statistics.median(getattr(turn, name) for turn in loop.timings)
        for name in ("mask_wait_seconds", "forward_seconds")
    )
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_row()
    for backend, reason in {g.report.backend: g.report.backend_reason for g in generations if g.report}.items():
        notes.add_row(f"why {backend}", reason, style="dim")
    notes.add_row(
        f"{len(loop.timings)} steps",
        f"p50: forward pass {forward:.2f} ms, then {wait:.3f} ms waiting for masks",
        style="dim",
    )
    notes.add_row()
    return notes


# -- the verdict -----------------------------------------------------------------------------------------------------


def _fault(part: _Part, text: str, generation: Generation) -> str | None:
    if generation.finish_reason == "error":
        return f"{part.name}: {generation.error}"
    if part.grammar is not None and generation.finish_reason != "stop":
        return f"{part.name}: not finished after {len(generation.token_ids)} tokens"
    fault = part.fault(text)
    return fault and f"{part.name}: {fault}"


def _json_fault(text: str) -> str | None:
    try:
        jsonschema.validate(json.loads(text), INTRODUCTION)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error)
    return None


def _match_fault(pattern: str) -> Callable[[str], str | None]:
    return lambda text: None if re.fullmatch(pattern, text) else f"{text!r} does not match {pattern}"
