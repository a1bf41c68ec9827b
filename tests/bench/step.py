"""The cost of one batch step, every way side by side in one run: ``make bench``, or ``python -m tests.bench.step
--help``.

In process the grammar library is used directly; the other ways get the same rows from a daemon. Every way walks the
same
documents (``workload.py``), in short rounds that take turns, so that noise hits all alike; the first steps of a round
only
warm up. The client's thread has core 0, the workers core 1. Rows are compared before the clock runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from maskd import __version__
from maskd.bitmask import row_stride_words
from maskd.client import Client
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary
from tests.bench import paths as ways
from tests.bench import report
from tests.bench.workload import TEKKEN, Walk, documents, walk
from tests.conftest import Daemon

LOOP, BATCH = "in process, a loop", "in process, its batch calls"
SPINNING, ITEMS, PARKED = "shared memory, spinning", "the same, lists of Item", "shared memory, parked"
STREAM, UNARY = "gRPC stream, rows inline", "gRPC unary, rows inline"
PATHS = (LOOP, BATCH, SPINNING, ITEMS, PARKED, STREAM, UNARY)

_ROUND, _WARMING = 60, 10
_WORKER_SPIN_SECONDS = 0.002
_CLIENT_SPIN_SECONDS = 0.05
_COPIED_STEPS = 50
_MEMORY_STEPS, _MEMORY_BATCH = 200, 64


@dataclass
class Measured:
    """One path at one batch size: nanoseconds of every counted step, and seconds of the worker's own."""

    steps: list[int] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        p50, p99 = np.percentile(np.array(self.steps) / 1e3, [50, 99])
        return {"p50_us": float(p50), "p99_us": float(p99), "worker_us": float(np.median(self.worker)) * 1e6}


class Bench:
    """Two daemons (one whose worker spins, one whose worker parks), a client of each, and the in-process grammars."""

    def __init__(self, stack: contextlib.ExitStack, vocabulary: Vocabulary, backends: list[str]) -> None:
        self.vocabulary = vocabulary
        self.parking, self.parking_daemon = self._start(stack, 0.0)
        self.spinning, self.spinning_daemon = self._start(stack, _WORKER_SPIN_SECONDS)
        make: dict[str, Callable[[Vocabulary], Any]] = {
            "xgrammar": ways.xgrammar_matchers,
            "llguidance": ways.llguidance_matchers,
        }
        self.matcher = {name: make[name](vocabulary) for name in backends}

    @staticmethod
    def _start(stack: contextlib.ExitStack, spin_seconds: float) -> tuple[Client, Daemon]:
        directory = tempfile.mkdtemp(prefix="mk")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        daemon = Daemon(
            directory,
            "--vocabularies",
            str(TEKKEN),
            "--native-threads",
            "1",
            "--spin-seconds",
            str(spin_seconds),
            "--drain-seconds",
            "0.5",
            "--log-level",
            "warning",
        )
        stack.callback(daemon.stop)
        return stack.enter_context(Client.connect(daemon.target)), daemon

    def session(self, client: Client, batch: int, **how: Any) -> ways.Session:
        vocabulary = self.vocabulary
        return client.open_session(vocabulary.fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=batch, **how)

    def in_process(self, backend: str, walked: Walk, *, batch_calls: bool) -> ways.Path:
        one_by_one, at_once = {
            "xgrammar": (ways.XgrammarLoop, ways.XgrammarBatch),
            "llguidance": (ways.LlguidanceLoop, ways.LlguidanceBatch),
        }[backend]
        return (at_once if batch_calls else one_by_one)(walked, self.vocabulary.vocab_size, self.matcher[backend])

    def paths(self, backend: str, walked: Walk) -> dict[str, ways.Path]:
        batch, spin = walked.batch, {"transport": "shm", "spin_seconds": _CLIENT_SPIN_SECONDS}
        return {
            LOOP: self.in_process(backend, walked, batch_calls=False),
            BATCH: self.in_process(backend, walked, batch_calls=True),
            SPINNING: ways.SessionArrays(walked, self.session(self.spinning, batch, **spin), backend),
            ITEMS: ways.SessionItems(walked, self.session(self.spinning, batch, **spin), backend),
            PARKED: ways.SessionArrays(walked, self.session(self.parking, batch, transport="shm"), backend),
            STREAM: ways.SessionItems(walked, self.session(self.parking, batch, transport="inline"), backend),
            UNARY: ways.Unary(walked, self.parking, self.vocabulary.fingerprint, self.vocabulary.vocab_size, backend),
        }

    def worker_pids(self) -> list[int]:
        return self.parking_daemon.worker_pids() + self.spinning_daemon.worker_pids()


def verify(paths: dict[str, ways.Path], steps: int) -> int:
    """Runs the first steps on every path and compares all rows with those of the in-process loop; returns how many."""
    compared = 0
    for k in range(steps):
        for name, path in paths.items():
            path.step(k)
            expected = paths[LOOP].rows
            if not np.array_equal(path.rows[: len(expected), : expected.shape[1]], expected):
                raise SystemExit(f"step {k}: the rows of '{name}' differ from those of '{LOOP}'")
            compared += len(expected) if name not in (LOOP, BATCH) else 0
    return compared


def measure(paths: dict[str, ways.Path], first: int, steps: int) -> dict[str, Measured]:
    """Times every path from step ``first`` on, a round of each in turn."""
    measured = {name: Measured() for name in paths}
    clock = time.perf_counter_ns
    for start in range(first, first + steps, _ROUND):
        for name, path in paths.items():
            into = measured[name]
            for k in range(start, min(start + _ROUND, first + steps)):
                before = clock()
                path.step(k)
                after = clock()
                if k >= start + _WARMING:
                    into.steps.append(after - before)
                    into.worker.append(path.worker_seconds)
    return measured


def copying(paths: dict[str, ways.Path], first: int, steps: int) -> dict[str, float]:
    """Returns the median µs that one copy of the fresh rows takes, as towards a GPU: made on this core, and on
    another."""
    staging, times = np.zeros_like(paths[LOOP].rows), {LOOP: list[int](), SPINNING: list[int]()}
    for k in range(first, first + steps):
        for name, into in times.items():
            path = paths[name]
            path.step(k)
            before = time.perf_counter_ns()
            np.copyto(staging, path.rows[: len(staging), : staging.shape[1]])
            into.append(time.perf_counter_ns() - before)
    return {name: float(np.median(into)) / 1e3 for name, into in times.items()}


def memory(bench: Bench, backend: str, texts: list[list[int]], *, spinning: bool) -> dict[str, float]:
    """What a sequence costs, in rows: its share of the segments, and what the worker, or a process of its own, grows
    by.

    Growth is that of the second 64 sequences beside the first: what the first bring is the grammar's and the
    allocator's.
    The worker must be a fresh one, for memory that another backend has freed would be used again and not be seen.
    """
    client, daemon = (bench.spinning, bench.spinning_daemon) if spinning else (bench.parking, bench.parking_daemon)
    worker = daemon.worker_pids()[0]
    walked = walk(texts, _MEMORY_BATCH, _MEMORY_STEPS)
    rows = _MEMORY_BATCH * 4 * row_stride_words(bench.vocabulary.vocab_size)

    def grown(pid: int, make: Callable[[], ways.Path]) -> tuple[float, list[ways.Path]]:
        made: list[ways.Path] = []
        before = 0
        for _ in range(2):
            _give_back_freed_memory()
            before = _anonymous_bytes(pid)
            made.append(make())
            for k in range(_MEMORY_STEPS):
                made[-1].step(k)
        return max(0, _anonymous_bytes(pid) - before) / rows, made

    def through_daemon() -> ways.Path:
        return ways.SessionArrays(walked, bench.session(client, walked.batch, transport="shm"), backend)

    worker_rows, made = grown(worker, through_daemon)
    layout = made[0]._session._transport.layout  # type: ignore[attr-defined]
    for path in made:
        path.close()
    own_rows, _ = grown(os.getpid(), lambda: bench.in_process(backend, walked, batch_calls=False))
    return {"segments": (layout.rows_bytes + layout.steps_bytes) / rows, "worker": worker_rows, "in_process": own_rows}


def _give_back_freed_memory() -> None:
    with contextlib.suppress(AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _anonymous_bytes(pid: int) -> int:
    for line in FilePath(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no Anonymous line in smaps_rollup")


@contextlib.contextmanager
def pinned(worker_pids: list[int]) -> Iterator[bool]:
    """This thread on one core, all threads of the workers on another; yields whether that could be done."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        yield False
        return
    threads = [int(task.name) for pid in worker_pids for task in FilePath(f"/proc/{pid}/task").iterdir()]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {allowed[1]})
        os.sched_setaffinity(0, {allowed[0]})
        yield True
    finally:
        for thread in (0, *threads):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, allowed)


def settings(vocabulary: Vocabulary, steps: int) -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in FilePath("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    versions = {name: importlib.metadata.version(name) for name in ("xgrammar", "llguidance", "grpcio", "numpy")}
    return {
        "time": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"maskd": __version__, "python": platform.python_version(), **versions},
        "vocabulary": f"{TEKKEN.name}, {vocabulary.vocab_size:,} tokens",
        "steps": steps,
        "round": _ROUND,
        "warming": _WARMING,
        "native_threads": 1,
        "worker_spin_seconds": _WORKER_SPIN_SECONDS,
        "client_spin_seconds": _CLIENT_SPIN_SECONDS,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.step", description="One batch step, every way side by side."
    )
    parser.add_argument("--batch", default="1,8,64", metavar="N,…", help="batch sizes (default: %(default)s)")
    parser.add_argument("--backends", default="xgrammar,llguidance", metavar="NAME,…", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=1200, metavar="N", help="steps of each path and batch size (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="few steps of batch 1 and 4: does it work?")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args(argv)
    backends = arguments.backends.split(",")
    batches, steps, verified_steps = [int(n) for n in arguments.batch.split(",")], arguments.steps, 40
    if arguments.quick:
        batches, steps, verified_steps = [1, 4], 40, 5
    console = Console(width=None if sys.stdout.isatty() else report.WIDTH)
    results: dict[str, Any] = {"backends": {}}
    progress = Progress(console=Console(stderr=True), transient=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)
        task = progress.add_task("starting", total=len(backends) * (len(batches) + 1))
        vocabulary = load_vocabulary(str(TEKKEN))
        texts = documents()
        bench = Bench(stack, vocabulary, backends)
        for number, backend in enumerate(backends):
            progress.update(task, description=f"{backend}, memory")
            used = memory(bench, backend, texts, spinning=number % 2 == 1)
            results["backends"][backend] = {"memory": used, "batches": {}, "verified_rows": 0}
            progress.advance(task)
        for backend, into in results["backends"].items():
            for batch in batches:
                progress.update(task, description=f"{backend}, batch {batch}")
                walked = walk(texts, batch, verified_steps + steps + _COPIED_STEPS)
                paths = bench.paths(backend, walked)
                into["verified_rows"] += verify(paths, verified_steps)
                with pinned(bench.worker_pids()) as results["pinned"]:
                    measured = measure(paths, verified_steps, steps)
                    into["copy_us"] = copying(paths, verified_steps + steps, _COPIED_STEPS)  # of the last batch size
                into["batches"][batch] = {name: one.summary() for name, one in measured.items()}
                for path in paths.values():
                    path.close()
                progress.advance(task)
        results["settings"] = settings(vocabulary, steps)
    report.show(console, results)
    if arguments.json:
        FilePath(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
