"""Real schemas, our compiler beside llguidance's own front end: ``make bench-schemas``.

Both compile each schema, and make the rows of its valid instances, token by token, over the same vocabulary of 131,072
tokens. They take turns. Each round compiles anew, walks all instances once with cold caches and once with warm ones.
A figure is the least of all rounds, in time of the thread, so that the machine's noise is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from numpy.typing import NDArray

from maskd import backends
from maskd.backends.base import Backend, Grammar
from maskd.bitmask import row_stride_words
from maskd.errors import MaskdError
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.compiler.compiler import compile_schema
from maskd.tokenizer_files import load_vocabulary
from tests.bench.workload import TEKKEN
from tests.conftest import SHARED

DATA = SHARED / "data" / "jsonschema" / "dev.jsonl"
OURS, ORDERED, LIBRARY = "maskd", "maskd, in the schema's order", "llguidance's own"
SHARE, MICROSECONDS = 0.2, 20.0
"""A figure is called worse if it is so by this share and by so much."""


@dataclass
class Figures:
    """What one front end needs for one schema; the least of all rounds.

    Attributes:
        compile_ms: from text to a grammar, its first row included.
        cold_us, warm_us: each row of each instance.
    """

    compile_ms: float = float("inf")
    cold_us: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    warm_us: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, other: Figures) -> None:
        """Takes the lesser figures of both."""
        self.compile_ms = min(self.compile_ms, other.compile_ms)
        for name in ("cold_us", "warm_us"):
            mine, new = getattr(self, name), getattr(other, name)
            setattr(self, name, np.minimum(mine, new) if len(mine) else new)


class Bench:
    """Both front ends over one vocabulary."""

    def __init__(self) -> None:
        self._tekken = Tekkenizer.from_file(TEKKEN)
        vocabulary = load_vocabulary(TEKKEN)
        self._backend: Backend = backends.load("llguidance")(vocabulary, threads=1)
        self._row = np.zeros(row_stride_words(vocabulary.vocab_size), dtype=np.int32)

    def tokens(self, value: Any) -> list[int]:
        """Returns ``value`` as JSON text, in tokens."""
        return self._tekken.encode(json.dumps(value, ensure_ascii=False), bos=False, eos=False)

    def ours(self, schema: Any) -> Grammar:
        """Compiles with maskd."""
        return self._backend.compile(GrammarSpec("json_schema", json.dumps(schema), "llguidance"))

    def ordered(self, schema: Any) -> Grammar:
        """Compiles with maskd, properties in the order of the schema, as the library has them."""
        options = GrammarOptions(property_order="schema")
        return self._backend.compile(GrammarSpec("json_schema", json.dumps(schema), "llguidance", options=options))

    def library(self, schema: Any) -> Grammar:
        """Compiles with the library's front end, through the same adapter."""
        lark = '%llguidance {"no_forcing": true}\nstart: %json ' + json.dumps(schema)
        return self._backend.compile(GrammarSpec("lark", lark, "llguidance"))

    def figures(self, compile_one: Callable[[Any], Grammar], schema: Any, walks: Sequence[list[int]]) -> Figures:
        """Compiles and walks once; raises MaskdError if that fails, or ``walks`` are refused."""
        gc.collect()
        started = time.thread_time()
        grammar = compile_one(schema)
        seconds = time.thread_time() - started
        cold, warm = (np.concatenate([self._rows(grammar, walk) for walk in walks]) for _ in range(2))
        return Figures(1e3 * seconds, cold, warm)

    def _rows(self, grammar: Grammar, walk: list[int]) -> NDArray[np.float64]:
        matcher, found = grammar.matcher(), np.empty(len(walk) + 1)
        for index, token in enumerate((*walk, None)):
            started = time.thread_time_ns()
            matcher.fill_bitmask(self._row)
            found[index] = (time.thread_time_ns() - started) / 1e3
            if token is not None and matcher.accept((token,)) != 1:
                raise MaskdError("the instance is refused")
        return found


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.schemas", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="dev.jsonl: schemas with instances, one a line")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth schema")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        print(f"there is no {arguments.data}; give --data")
        return 2
    records = [json.loads(line) for line in arguments.data.read_bytes().split(b"\n") if line]
    records = [record for record in records if "Suite" not in record["source"] and record["valid"]]
    bench = Bench()
    front_ends = {OURS: bench.ours, ORDERED: bench.ordered, LIBRARY: bench.library}
    found: dict[str, dict[str, Figures]] = {}
    own_ms = []
    for record in records[:: arguments.every]:
        walks = [bench.tokens(value) for value in record["valid"]]
        figures = {name: Figures() for name in front_ends}
        try:
            for _ in range(arguments.rounds):
                for name, compile_one in front_ends.items():
                    figures[name].add(bench.figures(compile_one, record["schema"], walks))
        except MaskdError:
            continue
        found[record["id"]] = figures
        own_ms.append(min(_own_ms(record["schema"]) for _ in range(arguments.rounds)))
    _show(found, own_ms)
    return 0


def _own_ms(schema: Any) -> float:
    """Returns how long our compiler takes, without the library."""
    started = time.thread_time()
    compile_schema(schema, GrammarOptions())
    return 1e3 * (time.thread_time() - started)


def _show(found: dict[str, dict[str, Figures]], own_ms: Sequence[float]) -> None:
    print(f"{len(found)} schemas that both front ends do, with all their valid instances\n")
    print(f"{'':<56}{'mean':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'worst':>9}")
    _print_line("our compiler alone, ms", own_ms)
    names = list(next(iter(found.values())))
    for name in names:
        _print_line(f"text to first row, ms: {name}", [figures[name].compile_ms for figures in found.values()])
    for kind in ("cold", "warm"):
        for name in names:
            rows = [getattr(figures[name], f"{kind}_us") for figures in found.values()]
            _print_line(f"{kind} rows, µs: {name}", np.concatenate(rows))
    for name in (OURS, ORDERED):
        for kind in ("cold_us", "warm_us"):
            for title, percent in (("p50", 50), ("p99", 99), ("worst row", 100)):
                _show_worse(found, name, kind, title, percent)


def _show_worse(found: dict[str, dict[str, Figures]], name: str, kind: str, title: str, percent: float) -> None:
    worse = []
    for identity, figures in found.items():
        here, there = (float(np.percentile(getattr(figures[one], kind), percent)) for one in (name, LIBRARY))
        if here > there * (1 + SHARE) and here > there + MICROSECONDS:
            worse.append((here - there, identity, here, there))
    print(f"\n{name}, {kind.partition('_')[0]}, {title} of a schema: worse on {len(worse)} of {len(found)}")
    for _, identity, here, there in sorted(worse, reverse=True)[:12]:
        print(f"  {identity:<60}{here:>10.0f} µs against {there:.0f}")


def _print_line(title: str, values: Sequence[float] | NDArray[np.float64]) -> None:
    cells = [float(np.mean(values)), *(float(np.percentile(values, percent)) for percent in (50, 90, 99, 100))]
    print(f"{title:<56}" + "".join(f"{cell:>9.1f}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
