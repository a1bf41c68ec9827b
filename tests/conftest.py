"""Fixtures: real daemons in processes of their own, on unix sockets in short temporary directories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from maskd.client import Client
from maskd.vocabulary import Vocabulary

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Data that is not part of the repository; tests that need it skip where it is absent."""


def byte_vocabulary(
    vocab_size: int = 300, words: tuple[bytes, ...] = (b"Paris", b"London", b'":', b'{"', b"true", b"null", b" is ")
) -> Vocabulary:
    """Ids 0..255 are the bytes, then some words, then <stop> and <pad>, then padding up to ``vocab_size``."""
    tokens = [bytes([b]) for b in range(256)] + list(words) + [b"<stop>", b"<pad>"]
    stop = len(tokens) - 2
    return Vocabulary(tokens, vocab_size, (stop,), (stop, stop + 1), "bytes")


class Daemon:
    """A ``maskd serve`` process. ``target`` is what a client connects to."""

    def __init__(self, directory: str, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = Path(directory)
        self._environment = {**os.environ, **(environment or {})}
        self.target = f"unix:{directory}/m.sock"
        self._flags = flags
        self._log = self.directory / "log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "error", "-m", "maskd", "serve", "--listen", self.target, *self._flags]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True, env=self._environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the daemon exited with {process.returncode}:\n{self.log}")
            with contextlib.suppress(Exception):
                Client.connect(self.target, timeout_seconds=0.5).close()
                return process
        raise RuntimeError(f"the daemon is not up after 60 s:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def events(self) -> list[dict[str, object]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def pids(self, name: str) -> list[int]:
        """Live processes of this daemon called ``name``: maskd-zygote, maskd-nursery, maskd-worker or maskd-jail."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                head, _, tail = stat.read_text().rpartition(")")
                fields = tail.split()
                if head.endswith(f"({name}") and int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(stat.parent.name))
        return found

    def worker_pids(self) -> list[int]:
        """The live workers."""
        return self.pids("maskd-worker")

    def kill_worker(self) -> int:
        """kill -9 of the first worker; returns its pid."""
        pid = self.worker_pids()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill(self) -> None:
        """kill -9 of the front; its workers die with it."""
        self.process.kill()
        self.process.wait()

    def restart(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts the daemon again on the same path, after ``kill``; with more in its ``environment``."""
        self._environment |= environment or {}
        self.process = self._start()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


@pytest.fixture(scope="session")
def start_daemon_for_session() -> Iterator[Callable[..., Daemon]]:
    with contextlib.ExitStack() as stack:
        yield lambda *flags, **more: _started(stack, *flags, **more)


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of this test's own: ``start_daemon("--workers", "2", environment={...})``."""
    with contextlib.ExitStack() as stack:
        yield lambda *flags, **more: _started(stack, *flags, **more)


def _started(stack: contextlib.ExitStack, *flags: str, environment: Mapping[str, str] | None = None) -> Daemon:
    directory = tempfile.mkdtemp(prefix="mk")  # short: a socket path has 107 bytes
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    daemon = Daemon(directory, "--drain-seconds", "0.5", *flags, environment=environment)
    stack.callback(daemon.stop)
    return daemon


@pytest.fixture(scope="session")
def daemon(start_daemon_for_session: Callable[..., Daemon]) -> Daemon:
    """A daemon that tests share and must not kill."""
    return start_daemon_for_session()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client.connect(daemon.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return byte_vocabulary()
