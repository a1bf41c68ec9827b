"""What ``make chaos`` does to a daemon: processes killed and stopped, sockets dropped, resources taken away, segments
scribbled over, hostile grammars and masks; and to an engine of its own, which is stopped, goes on and is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from maskd.client import Client, Session
from maskd.errors import MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from tests.conftest import Daemon, byte_vocabulary

VOCABULARY = byte_vocabulary()
_PLAIN = GrammarSpec("regex", "[a-z ]{0,80}", backend="xgrammar")
ENGINE = """
import sys
from maskd.bitmask import allowed_token_ids
from maskd.client import Client
from maskd.errors import MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from tests.conftest import byte_vocabulary
vocabulary = byte_vocabulary()
try:
    client = Client.connect(sys.argv[1])
    fingerprint = client.upload_vocabulary(vocabulary)
    session = client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=1, transport=sys.argv[2])
    grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
    session.step([Item(1, Action.OPEN, grammar.grammar_id)], timeout_seconds=60)
    while True:
        row = session.step([Item(1, rollback=-1, accept=(ord("P"),), row=0)], timeout_seconds=60).rows[0]
        print("right" if allowed_token_ids(row).tolist() == [ord("a")] else "wrong", flush=True)
except MaskdError as error:
    print("lost", error.reason, flush=True)
"""
"""An engine that can be stopped: a line for every row; the last one says why its session ended."""


class Faults:
    """What is done to the daemon; ``inject`` does one thing at random."""

    def __init__(self, seed: int, daemon: Daemon, injected: Counter[str], wrong: list[str]) -> None:
        """``injected`` counts what was done, ``wrong`` gets a line for every wrong row of the engine that is
        stopped."""
        self.random, self.daemon, self.injected, self.wrong, self.number = (
            random.Random(seed),
            daemon,
            injected,
            wrong,
            0,
        )
        self._order: list[str] = []
        self.kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "kill -9 of the front": (1, self.kill_front),
            "kill -9 of the zygote": (1, lambda: self.kill("maskd-zygote")),
            "kill -9 of the nursery": (2, lambda: self.kill("maskd-nursery")),
            "kill -9 of a worker": (3, self.kill_worker),
            "kill -9 of a compile child": (2, lambda: self.signal_child(signal.SIGKILL)),
            "kill -9 of an engine that was stopped before": (2, self.stop_engine),
            "a worker stopped for a while": (2, lambda: self.stop(self.random.choice(self.daemon.worker_pids()))),
            "the nursery stopped for a while": (1, lambda: self.stop(self.daemon.pids("maskd-nursery")[0])),
            "the front stopped for a while": (1, lambda: self.stop(self.daemon.process.pid)),
            "a compile child stopped for good": (1, lambda: self.signal_child(signal.SIGSTOP)),
            "no memory for segments": (2, lambda: self.exhaust("maskd-worker", resource.RLIMIT_FSIZE, 4096)),
            "no descriptors in a worker": (1, lambda: self.exhaust("maskd-worker", resource.RLIMIT_NOFILE, 3)),
            "no descriptors in the nursery": (1, lambda: self.exhaust("maskd-nursery", resource.RLIMIT_NOFILE, 3)),
            "a vocabulary that a backend does not survive": (2, self.upload),
            "garbage on both sockets, dropped": (2, self.garbage),
            "a lease dropped in a step": (2, self.drop_lease),
            "a steps segment scribbled over": (2, self.scribble),
            "a hostile compile": (3, self.compile),
            "a matcher that crashes its worker": (1, lambda: self.run_evil("abort")),
            "slow masks": (2, lambda: self.run_evil("burn")),
        }

    def inject(self) -> None:
        if not self._order:  # every kind comes up, the lighter ones less often
            self._order = [kind for kind, (weight, _) in self.kinds.items() for _ in range(weight)]
            self.random.shuffle(self._order)
        kind = self._order.pop()
        with contextlib.suppress(MaskdError, OSError, IndexError):
            self.kinds[kind][1]()
        self.injected[kind] += 1

    def kill_front(self) -> None:
        self.daemon.kill()
        self.daemon.restart()

    def kill(self, name: str) -> None:
        os.kill(self.daemon.pids(name)[0], signal.SIGKILL)

    def kill_worker(self) -> None:
        os.kill(self.random.choice(self.daemon.worker_pids()), signal.SIGKILL)

    def stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.random.choice([0.1, 0.4]))
        os.kill(pid, signal.SIGCONT)

    def signal_child(self, number: int) -> None:
        """To the child of a compile that would never end; stopped, it has the same deadline."""
        with self.session() as session:
            spec = self.spec(do="hang", where="compile")
            caller = threading.Thread(
                target=lambda: self.quietly(lambda: session.create_grammar(spec, timeout_seconds=20))
            )
            caller.start()
            deadline = time.monotonic() + 5
            while not (children := self.daemon.pids("maskd-jail")) and time.monotonic() < deadline:
                time.sleep(0.01)
            for pid in children:
                os.kill(pid, number)
            caller.join()

    def stop_engine(self) -> None:
        """SIGSTOP in the middle of its steps, SIGCONT, and SIGKILL: it goes on where it stood, and nobody waits for it
        meanwhile."""
        transport = self.random.choice(["shm", "inline"])
        command = [sys.executable, "-c", ENGINE, self.daemon.target, transport]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
            assert engine.stdout is not None
            lines = [engine.stdout.readline()]
            self.stop(engine.pid)
            lines += [engine.stdout.readline() for _ in range(20)]
            engine.kill()
            lines += engine.stdout.read().splitlines()
        self.wrong += [f"engine that was stopped: {line}" for line in lines if line.startswith("wrong")]

    def exhaust(self, name: str, what: int, amount: int) -> None:
        """Takes a resource away from a process, asks for what needs it, and gives it back."""
        pid = self.random.choice(self.daemon.pids(name))
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (amount, before[1]))
        try:
            for _ in range(3):
                self.quietly(self.use)
        finally:
            resource.prlimit(pid, what, before)

    def use(self) -> None:
        with self.session() as session:
            self.number += 1
            session.create_grammar(GrammarSpec("regex", f"[ab]{{0,{self.number}}}"), timeout_seconds=10)

    def garbage(self) -> None:
        for path, kind in (("m.sock", socket.SOCK_STREAM), ("m.sock.data", socket.SOCK_SEQPACKET)):
            for _ in range(20):
                with socket.socket(socket.AF_UNIX, kind) as connection:
                    connection.settimeout(5)
                    connection.connect(str(self.daemon.directory / path))
                    connection.send(self.random.randbytes(self.random.choice([1, 48, 500])))

    @staticmethod
    def quietly(call: Callable[[], object]) -> None:
        with contextlib.suppress(MaskdError):
            call()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        with Client.connect(self.daemon.target, timeout_seconds=5) as client:
            fingerprint = client.upload_vocabulary(VOCABULARY)
            session = client.open_session(
                fingerprint, vocab_size=VOCABULARY.vocab_size, row_capacity=4, transport="shm"
            )
            try:
                yield session
            finally:
                session.close()

    def drop_lease(self) -> None:
        with self.session() as session:
            grammar = session.create_grammar(_PLAIN)
            session.submit([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
            session._transport.lease.shutdown(2)

    def scribble(self) -> None:
        with self.session() as session:
            arena = session._transport
            raw = np.frombuffer(arena._steps.view, dtype=np.uint8)
            for _ in range(50):
                at = self.random.randrange(arena.layout.steps_bytes - 64)
                raw[at : at + 64] = np.frombuffer(self.random.randbytes(64), dtype=np.uint8)
                raw[: 8 * self.random.randrange(2)] = 1
                os.eventfd_write(arena.doorbell_fd, 1)
            del raw

    def compile(self) -> None:
        how = self.random.choice(["hang", "spin", "eat", "abort"])
        with self.session() as session, contextlib.suppress(MaskdError):
            session.create_grammar(self.spec(do=how, where="compile"), timeout_seconds=self.random.choice([0.2, 10]))

    def upload(self) -> None:
        from evil_backend import evil_vocabulary

        self.number += 1
        with Client.connect(self.daemon.target, timeout_seconds=5) as client:
            client.upload_vocabulary(
                evil_vocabulary(do=self.random.choice(["abort", "segv", "raise"]), salt=self.number)
            )

    def run_evil(self, how: str) -> None:
        with self.session() as session, contextlib.suppress(MaskdError):
            grammar = session.create_grammar(self.spec(do=how, where="fill", seconds=0.1, at=2))
            session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
            session.step([Item(1, accept=(97, 98), row=0)])
            session.step([Item(1, row=0)])

    def spec(self, *, where: str, **orders: object) -> GrammarSpec:
        from evil_backend import evil

        self.number += 1
        return evil(f"[a-z]{{0,{20 + self.number}}}", in_=where, **orders)
