"""How far a stuck compile outlives its deadline, and what hostile compiles cost the steps of others: ``python -m
tests.bench.isolation``.

Steps are timed in windows with and without hostile compiles, turn about, so that whatever else the machine does falls
on both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskd.client import Client, Session
from maskd.errors import GrammarTimeoutError, MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from tests.conftest import Daemon, byte_vocabulary

RELIABILITY = Path(__file__).resolve().parents[1] / "reliability"
VOCABULARY = byte_vocabulary()
_BATCH = 16
_PERIOD_SECONDS = 0.005
_WINDOW_SECONDS = 2.0


def hostile(number: int, how: str) -> GrammarSpec:
    """A grammar whose compile never ends: asleep, asleep with the interpreter's lock, or busy. No two are equal."""
    sys.path[:0] = [] if str(RELIABILITY) in sys.path else [str(RELIABILITY)]
    from evil_backend import evil

    return evil(f"[a-z]{{0,{number + 1}}}", in_="compile", do=how)


def start(*flags: str) -> Daemon:
    """A daemon with the backend that misbehaves beside the real ones."""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(RELIABILITY), os.environ.get("PYTHONPATH")]))}
    backends = ("--backends", "llguidance,xgrammar,evil_backend:create", "--drain-seconds", "0.2")
    return Daemon(tempfile.mkdtemp(prefix="mk"), *backends, *flags, environment=environment)


def stop(daemon: Daemon) -> None:
    daemon.stop()
    shutil.rmtree(daemon.directory, ignore_errors=True)


def open_session(client: Client) -> Session:
    return client.open_session(
        client.upload_vocabulary(VOCABULARY), vocab_size=VOCABULARY.vocab_size, row_capacity=_BATCH
    )


def overruns(count: int, compile_seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds beyond the deadline of ``count`` stuck compiles: until the caller had its answer, and until the
    child was gone."""
    daemon = start("--compile-seconds", str(compile_seconds))
    answered, gone = list[float](), list[float]()
    try:
        with Client.connect(daemon.target) as client, open_session(client) as session:
            session.create_grammar(GrammarSpec("regex", "warm"))
            for number in range(count):
                watcher = Lifetime(daemon)
                started = time.monotonic()
                try:
                    session.create_grammar(hostile(number, ("hang", "hold", "spin")[number % 3]), timeout_seconds=60)
                except GrammarTimeoutError:
                    answered.append(1e3 * (time.monotonic() - started - compile_seconds))
                gone.append(1e3 * (watcher.seconds() - compile_seconds))
    finally:
        stop(daemon)
    return answered, gone


class Lifetime:
    """Watches for the next compile child, every 2 ms."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._seconds = daemon, 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not (children := self._daemon.pids("maskd-jail")):
            time.sleep(0.002)
        started = time.monotonic()
        stat = Path(f"/proc/{children[0]}/stat")
        with contextlib.suppress(OSError):  # it went between two looks
            while ") Z " not in stat.read_text():
                time.sleep(0.002)
        self._seconds = time.monotonic() - started

    def seconds(self) -> float:
        """How long it was there."""
        self._thread.join()
        return self._seconds


def steps(seconds: float, flags: Sequence[str], engine_cpus: set[int] | None) -> tuple[list[float], list[float], int]:
    """Microseconds of every step of a batch of 16 in windows without and with two hostile compiles at a time; how many
    compiles."""
    daemon = start("--compile-seconds", "0.5", *flags)
    before = os.sched_getaffinity(0)
    quiet, busy, compiles = list[float](), list[float](), 0
    attacking, over = threading.Event(), threading.Event()

    def attack(first: int) -> None:
        nonlocal compiles
        number = first
        with Client.connect(daemon.target) as client, open_session(client) as session:
            while not over.is_set():
                if attacking.wait(0.1):
                    number += 2
                    compiles += 1
                    try:
                        session.create_grammar(hostile(number, "spin"), timeout_seconds=60)
                    except MaskdError:
                        continue

    threads = [threading.Thread(target=attack, args=(first,)) for first in (1000, 1001)]
    try:
        with Client.connect(daemon.target) as client, open_session(client) as session:
            if engine_cpus:
                os.sched_setaffinity(0, engine_cpus)
                for pid in daemon.worker_pids():
                    os.sched_setaffinity(pid, engine_cpus)
            grammar = session.create_grammar(GrammarSpec("regex", "[a-z ]*"))
            session.step(
                [Item(i + 1, Action.OPEN, grammar.grammar_id, row=i) for i in range(_BATCH)], timeout_seconds=60
            )
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for times, is_busy in ((quiet, False), (busy, True)):
                    (attacking.set if is_busy else attacking.clear)()
                    time.sleep(0.6)  # what was under way is over, or what is to come has begun
                    window(session, times)
            over.set()
            attacking.set()
            for thread in threads:
                thread.join()
    finally:
        over.set()
        os.sched_setaffinity(0, before)
        stop(daemon)
    return quiet, busy, compiles


def window(session: Session, times: list[float]) -> None:
    end = time.monotonic() + _WINDOW_SECONDS
    items = [Item(i + 1, accept=(ord("a"),), row=i) for i in range(_BATCH)]
    while time.monotonic() < end:
        started = time.perf_counter()
        assert session.step(items, timeout_seconds=60).ok
        times.append(1e6 * (time.perf_counter() - started))
        time.sleep(_PERIOD_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns 1 if a stuck compile was answered otherwise than by its deadline."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.isolation", description=__doc__)
    parser.add_argument("--compiles", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0, help="of steps, for every setting")
    arguments = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {len(cores)} cores")
    answered, gone = overruns(arguments.compiles, 0.5)
    print(f"{arguments.compiles} compiles that never end, deadline 500 ms: ms beyond it")
    for name, values in (("the caller has its answer", answered), ("the child is gone", gone)):
        p50, p90, most = np.quantile(values, (0.5, 0.9, 1.0))
        print(f"  {name:28} p50 {p50:6.1f}   p90 {p90:6.1f}   max {most:6.1f}")
    print(
        f"a step of {_BATCH} sequences every {1e3 * _PERIOD_SECONDS:g} ms, µs, without and with "
        "two busy compiles at a time"
    )
    settings: list[tuple[str, tuple[str, ...], set[int] | None]] = [
        ("compile_nice 0", ("--compile-nice", "0"), None),
        ("compile_nice 10 (default)", (), None),
        ("compile_nice 19", ("--compile-nice", "19"), None),
    ]
    if len(cores) > 1:
        pinned = ("--compile-cpus", str(cores[-1]))
        settings.append((f"compile_cpus {cores[-1]}, steps on the others", pinned, set(cores[:-1])))
    for name, flags, cpus in settings:
        quiet, busy, compiles = steps(arguments.seconds, flags, cpus)
        figures = [f"p50 {np.quantile(v, 0.5):6.0f}  p99 {np.quantile(v, 0.99):6.0f}" for v in (quiet, busy)]
        print(f"  {name:36} {figures[0]}   |   {figures[1]}   ({len(quiet)}, {len(busy)} steps, {compiles} compiles)")
    return 0 if len(answered) == arguments.compiles else 1


if __name__ == "__main__":
    sys.exit(main())
