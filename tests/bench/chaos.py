"""Faults, one after the other, under a load of sequences that know what their rows must be: ``make chaos``.

Engines decode on both backends, over both transports, with a masker or with sessions of their own; each row is compared with a matcher
in this process. Meanwhile processes are killed and stopped, leases dropped, segments scribbled over, and hostile grammars compiled and
run. A sequence is *affected* if its session had to be replaced, *wrong* if a row differs, *lost* if it ended with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine_adapter.masker import Masker
from maskd import backends
from maskd.backends.base import Matcher
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.client import Client, Session
from maskd.errors import MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary
from tests.bench.faults import VOCABULARY, Faults
from tests.conftest import Daemon

RELIABILITY = Path(__file__).resolve().parents[1] / "reliability"
Looks = dict[int, tuple[int, int, int]]
_SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["Paris","London"]}},"required":["a","b"]}'
SPECS = tuple(
    GrammarSpec(kind, source, backend=backend)  # type: ignore[arg-type]
    for backend in ("xgrammar", "llguidance")
    for kind, source in (("regex", "[a-z ]{0,80}"), ("json_schema", _SCHEMA), ("regex", "((Paris|London) is (true|null) ){1,9}"))
)
_LONGEST = 60


@dataclass
class Tally:
    """What happened, counted under a lock."""

    faults: Counter[str] = field(default_factory=Counter)
    sequences: int = 0
    steps: int = 0
    affected: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    longest_stall: float = 0.0
    longest_restore: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sequence:
    """One sequence with its matcher in this process."""

    def __init__(self, grammar: object, spec: GrammarSpec) -> None:
        self.spec = spec
        self.matcher: Matcher = grammar.matcher()  # type: ignore[attr-defined]
        self.history: list[int] = []
        self._row = np.zeros(row_stride_words(VOCABULARY.vocab_size), dtype=np.int32)

    def accept(self, token: int) -> None:
        assert self.matcher.accept((token,)) == 1
        self.history.append(token)

    def allowed(self) -> list[int]:
        self.matcher.fill_bitmask(self._row)
        return [token for token in allowed_token_ids(self._row).tolist() if token < len(VOCABULARY.tokens)]


class Engine(threading.Thread):
    """Decodes until told to stop. ``step`` is the subclass's: rows for every sequence after one token each."""

    def __init__(self, number: int, seed: int, daemon: Daemon, tally: Tally, stopping: threading.Event) -> None:
        super().__init__(name=f"engine-{number}")
        self.random = random.Random(seed * 100 + number)
        self.daemon_process, self.tally, self.stopping = daemon, tally, stopping
        self.transport = ("shm", "shm", "inline")[number % 3]
        made = {name: backends.load(name)(VOCABULARY, threads=1) for name in ("xgrammar", "llguidance")}
        self.grammars = {spec: made[spec.backend].compile(spec) for spec in SPECS}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.decode()
        except BaseException as error:
            self.failure = error

    def new(self) -> Sequence:
        spec = self.random.choice(SPECS)
        with self.tally.lock:
            self.tally.sequences += 1
        return Sequence(self.grammars[spec], spec)

    def check(self, sequence: Sequence, row: np.ndarray) -> list[int]:
        expected, got = sequence.allowed(), allowed_token_ids(row).tolist()
        if expected != got:
            with self.tally.lock:
                self.tally.wrong.append(f"{sequence.spec.backend} {sequence.spec.source[:20]!r} at {len(sequence.history)}")
        return expected

    def book(self, seconds: float, affected: int) -> None:
        with self.tally.lock:
            self.tally.steps += 1
            self.tally.affected += affected
            if affected:
                self.tally.longest_restore = max(self.tally.longest_restore, seconds)
            else:
                self.tally.longest_stall = max(self.tally.longest_stall, seconds)

    def lose(self, why: object) -> None:
        with self.tally.lock:
            self.tally.lost.append(f"{self.name}: {why}")

    def decode(self) -> None:
        raise NotImplementedError


class MaskerEngine(Engine):
    """With a masker, which restores by itself."""

    def decode(self) -> None:
        with Masker(
            self.daemon_process.target, VOCABULARY, row_capacity=8, restore_seconds=100, slow_seconds=60,
            transport=self.transport,  # type: ignore[arg-type]
        ) as masker:  # fmt: skip
            batch: dict[int, Sequence] = {}
            tokens: dict[int, int] = {}
            while not self.stopping.is_set():
                while len(batch) < 4:
                    sequence = self.new()
                    batch[masker.open(sequence.spec)] = sequence
                session, started = masker._lease.session, time.monotonic()
                masker.advance(tokens, rows=list(batch))
                masks = masker.collect()
                self.book(time.monotonic() - started, 0 if masker._lease.session is session else len(batch))
                tokens = {}
                for position, handle in enumerate(list(batch)):
                    sequence = batch[handle]
                    if handle in masks.errors:
                        self.lose(masks.errors[handle])
                    elif not sequence.matcher.is_terminated and len(sequence.history) < _LONGEST:
                        token = self.random.choice(self.check(sequence, masks.rows[masks.row_indices[position]]))
                        sequence.accept(token)
                        tokens[handle] = token
                        continue
                    masker.close(handle)
                    del batch[handle]
                time.sleep(0.002)


class RawEngine(Engine):
    """With sessions, restoring by its own replay."""

    def decode(self) -> None:
        session: Session | None = None
        client: Client | None = None
        batch: list[Sequence] = [self.new() for _ in range(3)]
        ids: dict[GrammarSpec, int] = {}
        lost_at = 0.0
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                if session is None:
                    client = Client.connect(self.daemon_process.target, timeout_seconds=1)
                    fingerprint = client.upload_vocabulary(VOCABULARY)
                    session = client.open_session(
                        fingerprint, vocab_size=VOCABULARY.vocab_size, row_capacity=4, transport=self.transport,  # type: ignore[arg-type]
                    )  # fmt: skip
                    ids = {spec: session.create_grammar(spec).grammar_id for spec in SPECS}
                    items = [Item(i + 1, Action.OPEN, ids[one.spec], accept=one.history, row=i) for i, one in enumerate(batch)]
                else:
                    items = [Item(i + 1, accept=one.history[-1:], row=i) for i, one in enumerate(batch)]
                reply = session.step(items, timeout_seconds=10)
            except MaskdError:
                lost_at = lost_at or started
                for held in (session, client):
                    if held is not None:
                        held.close()
                session = client = None
                time.sleep(0.05)
                continue
            self.book(time.monotonic() - (lost_at or started), len(batch) if lost_at else 0)
            lost_at = 0.0
            for i, (sequence, result) in enumerate(zip(batch, reply.results, strict=True)):
                if (error := result.error()) is not None:
                    self.lose(error)
                elif not sequence.matcher.is_terminated and len(sequence.history) < _LONGEST:
                    sequence.accept(self.random.choice(self.check(sequence, reply.rows[i])))
                    continue
                session.close()
                session = None
                batch = [self.new() for _ in range(3)]
                break
            time.sleep(0.002)
        for held in (session, client):
            if held is not None:
                held.close()


def run(seconds: float, seed: int) -> Tally:
    """Runs load and faults for ``seconds``, and lets every engine take some steps more."""
    sys.path.insert(0, str(RELIABILITY))
    directory = tempfile.mkdtemp(prefix="mk")
    tally, stopping = Tally(), threading.Event()
    daemon = Daemon(
        directory, "--backends", "llguidance,xgrammar,evil_backend:create", "--workers", "2", "--compile-seconds", "2",
        "--compile-bytes", str(256 << 20), "--restart-seconds", "0.3", "--hang-seconds", "3", "--drain-seconds", "0.2",
        environment={"PYTHONPATH": os.pathsep.join(filter(None, [str(RELIABILITY), os.environ.get("PYTHONPATH")]))},
    )  # fmt: skip
    try:
        engines: list[Engine] = [
            (RawEngine if number % 2 else MaskerEngine)(number, seed, daemon, tally, stopping) for number in range(6)
        ]  # fmt: skip
        for engine in engines:
            engine.start()
        faults, deadline = Faults(seed, daemon, tally.faults, tally.wrong), time.monotonic() + seconds
        while time.monotonic() < deadline:
            faults.inject()
            time.sleep(faults.random.uniform(0.1, 0.6))
        steps = tally.steps
        patience = time.monotonic() + 60
        while tally.steps < steps + 20 * len(engines) and time.monotonic() < patience:
            time.sleep(0.05)
        stopping.set()
        for engine in engines:
            engine.join(110)
            if engine.failure is not None or engine.is_alive():
                tally.lost.append(f"{engine.name}: {engine.failure or 'stands still'}")
    finally:
        stopping.set()
        with contextlib.suppress(Exception):
            daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return tally


def churn(daemon: Daemon, vocabulary: Vocabulary, count: int) -> tuple[Looks, Looks]:
    """Opens and drops ``count`` sessions: (descriptors, mappings, kB) by pid, before and after."""
    with Client.connect(daemon.target) as client:
        fingerprint = client.upload_vocabulary(vocabulary)

        def some(number: int) -> None:
            for turn in range(number):
                transport = "inline" if turn % 10 == 0 else "shm"
                session = client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=4, transport=transport)  # type: ignore[arg-type]
                if turn % 20 < 2:
                    grammar = session.create_grammar(GrammarSpec("regex", f"[ab]{{0,{turn % 50}}}"))
                    session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60)
                if turn % 3 == 1 and transport == "shm":
                    session._transport._arena.lease.shutdown(2)  # dropped, not closed
                session.close()
            deadline = time.monotonic() + 60
            while client.info().session_count and time.monotonic() < deadline:
                time.sleep(0.02)

        def look() -> Looks:
            return {pid: _look(pid) for pid in (daemon.process.pid, *daemon.pids("maskd-nursery"), *daemon.worker_pids())}

        some(min(200, count))
        before = look()
        some(count)
        time.sleep(0.2)
        return before, look()


def _look(pid: int) -> tuple[int, int, int]:
    process = Path(f"/proc/{pid}")
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return len(list((process / "fd").iterdir())), len((process / "maps").read_text().splitlines()), int(resident.split()[1])


def _churn_and_print(count: int) -> None:
    directory = tempfile.mkdtemp(prefix="mk")
    daemon = Daemon(directory)
    try:
        before, after = churn(daemon, VOCABULARY, count)
        for pid, (fds, mappings, kb) in before.items():
            now = after[pid]
            print(f"  {count} sessions opened and dropped: descriptors {fds} -> {now[0]}, mappings {mappings} -> {now[1]}, "
                  f"memory x {now[2] / kb:.2f}")  # fmt: skip
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Runs, prints the table; returns 1 if a sequence was wrong or lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--sessions", type=int, default=10_000, help="sessions opened and dropped at the end; 0 = none")
    arguments = parser.parse_args(argv)
    print(f"seed {arguments.seed}, {arguments.seconds:g} s, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    tally = run(arguments.seconds, arguments.seed)
    lines: list[tuple[str, object]] = [
        *sorted(tally.faults.items()),
        ("faults injected", sum(tally.faults.values())),
        ("batch steps", tally.steps),
        ("sequences", tally.sequences),
        ("sequences affected (session replaced)", tally.affected),
        ("sequences wrong", len(tally.wrong)),
        ("sequences lost", len(tally.lost)),
        ("longest step of an unaffected batch", f"{tally.longest_stall:.2f} s"),
        ("longest step with a restore in it", f"{tally.longest_restore:.2f} s"),
    ]
    for name, value in lines:
        print(f"  {name:42} {value}")
    for line in (tally.wrong + tally.lost)[:10]:
        print("  !", line)
    if arguments.sessions:
        _churn_and_print(arguments.sessions)
    return 1 if tally.wrong or tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
