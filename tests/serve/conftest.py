"""A real server in a process of its own, with a daemon of its own, for all tests of a worker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from engine_adapter.model.loading import BUNDLED

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
"""Published examples of other projects, not part of the repository; tests that need them skip where they are absent."""
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
TRAINED = any(BUNDLED.glob("*.safetensors"))
SHORT_FLAGS = ("--bounded",)
"""Tests ask for little: with this, and with closing, any weights end within it."""


class Server:
    """An ``engine-adapter serve`` process."""

    def __init__(self, directory: Path, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = directory / "serve.log"
        command = [sys.executable, "-m", "engine_adapter", "serve", "--port", str(port), *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(self.url + "/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server is not up after 90 s:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels."""
        lines = httpx2.get(self.url + "/metrics").text.splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line and not line.startswith("#")
        }

    def wait_for(self, sample: str, value: float) -> None:
        """Waits until a sample of /metrics has ``value``."""
        while self.metrics()[sample] != value:
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers: ``start_server("--slots", "2")``."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Server:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="serve"))
            server = Server(Path(directory), *flags)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="session")
def short_server(start_server: Callable[..., Server]) -> Server:
    """The server that tests share."""
    return start_server(*SHORT_FLAGS)


@pytest.fixture(scope="session")
def server(short_server: Server) -> Server:
    return short_server


@pytest.fixture(scope="session")
def plain_server(start_server: Callable[..., Server]) -> Server:
    """One without flags, as ``make serve`` starts it."""
    return start_server()


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=60) as opened:
        yield opened


def python_blocks(path: Path) -> list[str]:
    """The Python examples of a page."""
    text = path.read_text(encoding="utf-8")
    return [match[1] for match in re.finditer(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
