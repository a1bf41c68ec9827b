"""What masks cost a decode loop: ``make bench-engine``, or ``python -m tests.bench.engine --help``.

The same loop, model and requests three ways: without a grammar, with masks made in the engine's process after each
forward pass, and with masks from a daemon, made while the forward pass runs. Rounds take turns, so that noise hits all
alike. The model's weights decide nothing: every request runs for the same number of tokens, under a schema that never
lets an output end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import Request
from engine_adapter.decoding.turn import TurnTiming
from engine_adapter.kernels.staging import RowStaging
from engine_adapter.masker import Masker, Masks
from engine_adapter.masker.late_rows import StepAnswer
from engine_adapter.model.loading import LoadedModel, load_model
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.params import SamplingParams
from maskd.backends import load
from maskd.backends.base import Matcher
from maskd.bitmask import row_words
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.sidecar import Sidecar
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary

FREE, IN_PROCESS, MASKD = "no grammar", "in process", "maskd"
_PROMPT_TOKENS, _WARM_TURNS = 8, 4
_TEXT = {"type": "string"}
_FIELDS = {"name": {**_TEXT, "maxLength": 20}, "age": {"type": "integer"}, "tags": {"type": "array", "items": _TEXT}}
_PERSON = {"type": "object", "properties": _FIELDS, "required": ["name", "age"], "additionalProperties": False}
SCHEMA = {"type": "array", "items": _PERSON, "minItems": 1000}


class Compile(Protocol):
    """What of a backend is needed here."""

    def compile(self, spec: GrammarSpec) -> Any: ...


class InProcessMasker:
    """Stands in for ``Masker``: the same backend, called by the engine's own thread when it needs the rows."""

    def __init__(self, backend: Compile, vocabulary: Vocabulary, row_capacity: int, device: torch.device) -> None:
        self._backend = backend
        self._grammars: dict[GrammarSpec, Any] = {}
        self._matchers: dict[int, Matcher | None] = {}
        self._rows = np.zeros((row_capacity, row_words(vocabulary.vocab_size)), dtype=np.int32)
        # the same way onto the logits as the daemon's rows have
        self._staging = RowStaging(device, row_capacity, self._rows.shape[1])
        self._asked: Sequence[int | None] = ()

    def knows(self, spec: GrammarSpec) -> bool:
        """See ``Masker.knows``."""
        return spec in self._grammars

    def open(self, spec: GrammarSpec | None) -> int:
        if spec is not None and spec not in self._grammars:
            self._grammars[spec] = self._backend.compile(spec)
        handle = len(self._matchers) + 1
        self._matchers[handle] = None if spec is None else self._grammars[spec].matcher()
        return handle

    def report(self, handle: int) -> GrammarReport | None:
        return None

    def close(self, handle: int) -> None:
        self._matchers[handle] = None

    def flush(self) -> None: ...

    def try_advance(self, tokens: dict[int, int], rows: Sequence[int | None]) -> bool:
        for handle, token_id in tokens.items():
            if (matcher := self._matchers[handle]) is not None:
                matcher.accept([token_id])
        self._asked = rows
        return True

    def try_apply_(self, logits: torch.Tensor) -> Masks:
        started = time.perf_counter()
        indices = np.full(len(self._asked), -1, dtype=np.int32)
        for position, handle in enumerate(self._asked):
            if handle is not None and (matcher := self._matchers[handle]) is not None:
                matcher.fill_bitmask(self._rows[position])
                indices[position] = position
        waited = time.perf_counter() - started
        self._staging.apply_(logits, self._rows, indices)
        return Masks(self._rows, indices, {}, waited, StepAnswer(self._rows, True, list))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints it; returns 0."""
    parser = argparse.ArgumentParser(prog="tests.bench.engine", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--model", type=Path, help="a local Hugging Face directory (default: the bundled model)")
    parser.add_argument("--backend", default="llguidance", help="xgrammar or llguidance (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few tokens: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args(argv)
    console = Console(width=110)
    threads = max(1, (os.cpu_count() or 2) - 1)
    torch.set_num_threads(threads)  # masks are made beside the forward pass, on a core of their own
    tokens, rounds = (12, 1) if arguments.quick else (96, 5)
    loaded = load_model(arguments.model)
    spec = GrammarSpec("json_schema", json.dumps(SCHEMA), backend=arguments.backend)
    results: dict[str, Any] = {
        "model": loaded.path.name,
        "device": str(loaded.network.device),
        "vocab_size": loaded.vocab_size,
        "backend": arguments.backend,
        "tokens": tokens,
        "rounds": rounds,
        "threads": threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d"),
        "batches": {},
    }
    _show_settings(console, results)
    for batch in (1, 16, 64):
        results["batches"][batch] = _measure(console, loaded, spec, batch, tokens, rounds)
        _show(console, batch, results["batches"][batch])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def _measure(
    console: Console, loaded: LoadedModel, spec: GrammarSpec, batch: int, tokens: int, rounds: int
) -> dict[str, dict[str, float]]:
    vocabulary = load_vocabulary(loaded.path, vocab_size=loaded.vocab_size)
    backend = load(spec.backend)(vocabulary, threads=1)
    timings: dict[str, list[TurnTiming]] = {FREE: [], IN_PROCESS: [], MASKD: []}
    with ExitStack() as stack:
        sidecar = stack.enter_context(Sidecar())
        masker = stack.enter_context(Masker(sidecar.connect, vocabulary, row_capacity=batch))
        makers: dict[str, Callable[[], Any]] = {
            FREE: lambda: masker,
            IN_PROCESS: lambda: InProcessMasker(backend, vocabulary, batch, model.device),
            MASKD: lambda: masker,
        }
        model = SlotModel(loaded.network, batch, _PROMPT_TOKENS + tokens + 1)
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        for number in progress.track(range(rounds), description=f"batch {batch}"):
            for name, make in makers.items():
                timings[name] += _round(model, make(), None if name == FREE else spec, batch, tokens, number)
    return {name: _summary(turns, batch) for name, turns in timings.items()}


def _round(
    model: SlotModel, masker: Any, spec: GrammarSpec | None, batch: int, tokens: int, seed: int
) -> list[TurnTiming]:
    """Runs one full batch; returns the turns in which all of it decoded, without the first ones."""
    masker.close(masker.open(spec))  # compiled before, so that all join at once
    with DecodeLoop(model, masker, stop_token_ids=()) as loop:
        for index in range(batch):
            loop.add(
                Request(
                    [5] * _PROMPT_TOKENS, spec, sampling=SamplingParams(seed=1000 * seed + index), max_tokens=tokens
                )
            )
        loop.run()
        return [turn for turn in loop.timings if turn.batch_size == batch][_WARM_TURNS:]


def _summary(turns: Sequence[TurnTiming], batch: int) -> dict[str, float]:
    token = 1e3 * np.quantile([turn.turn_seconds for turn in turns], (0.5, 0.99))
    exposed = 1e3 * np.quantile([turn.mask_wait_seconds for turn in turns], (0.5, 0.99))
    return {
        "tokens_per_second": batch * len(turns) / sum(turn.turn_seconds for turn in turns),
        "token_p50_ms": float(token[0]),
        "token_p99_ms": float(token[1]),
        "exposed_p50_ms": float(exposed[0]),
        "exposed_p99_ms": float(exposed[1]),
        "turns": len(turns),
    }


def _show_settings(console: Console, results: dict[str, Any]) -> None:
    machine = (
        f"{results['threads']} threads of {results['cores']} cores ({results['machine']}), load {results['load']:.1f}"
    )
    console.print(
        f"{results['time']}; {results['model']} model, {results['vocab_size']:,} tokens, on {results['device']}; torch "
        f"{results['torch']}, {machine}; {results['backend']}; "
        f"{results['tokens']} tokens a request, {results['rounds']} rounds",
        style="dim",
        highlight=False,
    )


def _show(console: Console, batch: int, measured: dict[str, dict[str, float]]) -> None:
    table = Table(
        title=f"[bold]batch {batch}[/]", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for name in ("masks", "tokens/s", "×", "ms a token, p50", "p99", "exposed mask ms, p50", "p99"):
        table.add_column(name, justify="left" if name == "masks" else "right", no_wrap=True)
    for name, one in measured.items():
        table.add_row(
            name,
            f"{one['tokens_per_second']:,.0f}",
            f"{one['tokens_per_second'] / measured[FREE]['tokens_per_second']:.2f}",
            *(f"{one[key]:.2f}" for key in ("token_p50_ms", "token_p99_ms")),
            *(f"{one[key]:.3f}" for key in ("exposed_p50_ms", "exposed_p99_ms")),
        )
    console.print(table)
    lost = 1 - measured[MASKD]["tokens_per_second"] / measured[FREE]["tokens_per_second"]
    against = measured[MASKD]["tokens_per_second"] / measured[IN_PROCESS]["tokens_per_second"] - 1
    better = "maskd is ahead of in process" if against >= 0 else "in process is ahead of maskd"
    verb = "costs" if lost >= 0 else "seems to gain (noise)"
    console.print(
        f"  a grammar on maskd {verb} {abs(lost):.1%} of the tokens/s; {better} by {abs(against):.1%}\n",
        highlight=False,
    )


if __name__ == "__main__":
    raise SystemExit(main())
