"""Faults, one after the other, under a load of sequences that know what their rows must be: ``make chaos``.

Engines decode on both backends, over both transports, with a masker or with sessions of their own, with drafts,
rollbacks and forks; each row is compared with that of a new matcher in this process (``tests/oracle``). Meanwhile
processes are killed and stopped, leases dropped, segments scribbled over, and hostile grammars compiled and run. A
sequence is *affected* if its session had to be replaced, *wrong* if a
row differs, *lost* if it ended with an error.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine_adapter.masker import Masker
from maskd.client import Client
from maskd.errors import MaskdError, UnavailableError
from maskd.grammar import GrammarSpec, ReasoningGate
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary
from tests.bench.faults import VOCABULARY, Faults
from tests.conftest import Daemon
from tests.oracle.driver import ROW_CAPACITY, Driver
from tests.oracle.model import Model, State
from tests.oracle.reference import Reference
from tests.oracle.run import Side, open_session

RELIABILITY = Path(__file__).resolve().parents[1] / "reliability"
Looks = dict[int, tuple[int, int, int]]
_SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["Paris","London"]}},"required":["a","b"]}'
SPECS = tuple(
    GrammarSpec(kind, source, backend=backend, reasoning=gate)  # type: ignore[arg-type]
    for backend in ("xgrammar", "llguidance")
    for kind, source, gate in (
        ("regex", "[a-z ]{0,80}", None),
        ("json_schema", _SCHEMA, None),
        ("regex", "((Paris|London) is (true|null) ){1,9}", None),
        ("regex", "(Paris|London)+", ReasoningGate((ord("a"), ord("b")), max_tokens=30)),
    )
)
_LONGEST = 60


@dataclass
class Tally:
    """What happened, counted under a lock."""

    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    affected: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    longest_stall: float = 0.0
    longest_restore: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Engine(threading.Thread):
    """Decodes until told to stop."""

    def __init__(self, number: int, seed: int, daemon: Daemon, tally: Tally, stopping: threading.Event) -> None:
        super().__init__(name=f"engine-{number}")
        self.random = random.Random(seed * 100 + number)
        self.daemon_process, self.tally, self.stopping = daemon, tally, stopping
        self.transport = ("shm", "shm", "inline")[number % 3]
        self.reference = Reference(VOCABULARY)
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.decode()
        except BaseException as error:
            self.failure = error

    def book(self, items: Sequence[Item], seconds: float, affected: int, wrong: Iterable[object]) -> None:
        self.count("sequences", sum(item.action == Action.OPEN for item in items))
        self.count("forks", sum(item.action == Action.FORK for item in items))
        self.count("rollbacks", sum(bool(item.rollback) for item in items))
        self.count("draft tokens", sum(len(item.drafts) for item in items))
        with self.tally.lock:
            self.tally.steps += 1
            self.tally.affected += affected
            self.tally.wrong += [f"{self.name}: {one}" for one in wrong]
            if affected:
                self.tally.longest_restore = max(self.tally.longest_restore, seconds)
            else:
                self.tally.longest_stall = max(self.tally.longest_stall, seconds)

    def count(self, what: str, number: int) -> None:
        with self.tally.lock:
            self.tally.done[what] += number

    def lose(self, why: object) -> None:
        with self.tally.lock:
            self.tally.lost.append(f"{self.name}: {why}")

    def decode(self) -> None:
        raise NotImplementedError


class MaskerEngine(Engine):
    """With a masker, which restores by itself."""

    def decode(self) -> None:
        model, states = Model(self.reference, {}), dict[int, State]()
        with Masker(
            self.daemon_process.target,
            VOCABULARY,
            row_capacity=ROW_CAPACITY,
            restore_seconds=100,
            slow_seconds=60,
            transport=self.transport,  # type: ignore[arg-type]
        ) as masker:
            while not self.stopping.is_set():
                for handle, state in list(states.items()):
                    if len(state.history) > _LONGEST or (state.terminated and self.random.random() < 0.5):
                        masker.close(handle)
                        del states[handle]
                while len(states) < 4:
                    spec = self.random.choice(SPECS)
                    self.count("sequences", 1)
                    states[masker.open(spec)] = State(self.reference.grammar(spec, spec.backend), ())
                items = [Item(handle) for handle in states]
                if len(states) < 7 and self.random.random() < 0.3:
                    source = self.random.choice(list(states))
                    items.append(Item(masker.fork(source), Action.FORK, source_sequence_id=source))
                    states[items[-1].sequence_id] = states[source]
                for at, item in enumerate(items):
                    item.row = items[at - 1].row + 1 + len(items[at - 1].drafts) if at else 0
                    self.think(item, states[item.sequence_id])
                    masker.rollback(item.sequence_id, item.rollback)
                session, started = masker._connection.session, time.monotonic()
                masker.advance(
                    {item.sequence_id: item.accept for item in items},
                    drafts={item.sequence_id: item.drafts for item in items},
                )
                masks = masker.collect()
                seconds = time.monotonic() - started
                affected, wrong = 0 if masker._connection.session is session else len(items), list[object]()
                for item in items:
                    if item.sequence_id in masks.errors:
                        self.lose(masks.errors[item.sequence_id])
                        del states[item.sequence_id]
                        masker.close(item.sequence_id)
                        continue
                    outcome = model.outcome(states[item.sequence_id], item, created=False)
                    assert outcome.state is not None
                    states[item.sequence_id] = outcome.state
                    wrong += [f"{item} {word}" for word in model.compare_rows(outcome.rows, item, masks.rows)]
                self.book(items, seconds, affected, wrong)
                time.sleep(0.002)

    def think(self, item: Item, state: State) -> None:
        """Gives ``item`` a rollback, a token and drafts, which may go wrong or beyond the end."""
        size = len(state.history)
        back = size and (state.terminated or self.random.random() < 0.1)
        item.rollback = self.random.randint(1, self.random.choice([min(4, size), size])) if back else 0
        text = state.history[: size - item.rollback]
        item.accept = (self.random.choice(state.grammar.allowed(text)),)
        drafts = text + item.accept
        for _ in range(self.random.choice([0, 0, 0, 1, 2, 4])):
            if state.grammar.terminated(drafts) or self.random.random() < 0.1:
                drafts += (1,)
                break
            drafts += (self.random.choice(state.grammar.allowed(drafts)),)
        item.drafts = drafts[len(text) + 1 :]


class RawEngine(Engine):
    """With sessions, whose items the oracle thinks of; it restores by its own replay."""

    def decode(self) -> None:
        with contextlib.ExitStack() as stack:
            side: Side | None = None
            states: list[State] = []
            lost_at = 0.0
            while not self.stopping.is_set():
                started = time.monotonic()
                try:
                    if side is None:
                        client = stack.enter_context(Client.connect(self.daemon_process.target, timeout_seconds=1))
                        session = stack.enter_context(open_session(client, VOCABULARY, self.transport))
                        side = Side(session, self.reference, SPECS)
                        if side.refused:
                            raise UnavailableError(f"not now: {side.refused}")
                        driver = Driver(self.random, side.model)
                        items = driver.replay(states)
                        started = lost_at or time.monotonic()
                    else:
                        items = driver.items()
                    side.session.submit(items)
                    reply = side.session.collect(timeout_seconds=10)
                except MaskdError:
                    lost_at = lost_at or started
                    if side is not None:
                        states = [one.states[0] for one in side.model.known.values()] or states
                    side = None
                    stack.close()
                    time.sleep(0.05)
                    continue
                seconds = time.monotonic() - (lost_at or started)
                wrong = side.model.check(items, reply.results, reply.rows)
                self.book(items, seconds, len(items) if lost_at else 0, wrong)
                lost_at = 0.0
                time.sleep(0.002)


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
        ]
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
                session = client.open_session(
                    fingerprint,
                    vocab_size=vocabulary.vocab_size,
                    row_capacity=4,
                    transport=transport,  # type: ignore[arg-type]
                )
                if turn % 20 < 2:
                    grammar = session.create_grammar(GrammarSpec("regex", f"[ab]{{0,{turn % 50}}}"))
                    session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60)
                if turn % 3 == 1 and transport == "shm":
                    session._transport.lease.shutdown(2)  # dropped, not closed
                session.close()
            deadline = time.monotonic() + 60
            while client.info().session_count and time.monotonic() < deadline:
                time.sleep(0.02)

        def look() -> Looks:
            return {
                pid: _look(pid) for pid in (daemon.process.pid, *daemon.pids("maskd-nursery"), *daemon.worker_pids())
            }

        some(min(200, count))
        before = look()
        some(count)
        time.sleep(0.2)
        return before, look()


def _look(pid: int) -> tuple[int, int, int]:
    process = Path(f"/proc/{pid}")
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return (
        len(list((process / "fd").iterdir())),
        len((process / "maps").read_text().splitlines()),
        int(resident.split()[1]),
    )


def _churn_and_print(count: int) -> None:
    directory = tempfile.mkdtemp(prefix="mk")
    daemon = Daemon(directory)
    try:
        before, after = churn(daemon, VOCABULARY, count)
        for pid, (fds, mappings, kb) in before.items():
            now = after[pid]
            print(
                f"  {count} sessions opened and dropped: descriptors {fds} -> {now[0]}, mappings {mappings} -> "
                f"{now[1]}, memory x {now[2] / kb:.2f}"
            )
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
    print(
        f"seed {arguments.seed}, {arguments.seconds:g} s, load of the machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    tally = run(arguments.seconds, arguments.seed)
    lines: list[tuple[str, object]] = [
        *sorted(tally.faults.items()),
        ("faults injected", sum(tally.faults.values())),
        ("batch steps", tally.steps),
        *sorted(tally.done.items()),
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
