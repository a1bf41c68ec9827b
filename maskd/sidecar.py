"""A daemon of the caller's own: ``maskd serve`` as a child process, on a unix socket in a temporary directory.

Owns: the process and its directory.
Knows nothing about: sessions, models.

For demos, offline generation, tests and the command line. A deployment runs the daemon by itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from maskd.client import Client
from maskd.errors import ConfigError, UnavailableError

__all__ = ["Sidecar"]

_STOP_SECONDS = 10.0
_CONNECT_SECONDS = 0.5


class Sidecar:
    """A running ``maskd serve``; a context manager. Starting returns at once; ``connect`` fails until it is up.

    Attributes:
        target: for ``Client.connect``.
        log: the file that its log goes to, while it lives.
    """

    def __init__(self, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        """Starts it; ``flags`` are those of ``maskd serve``. ``environment``: of the process; None = the caller's."""
        self._directory = Path(tempfile.mkdtemp(prefix="maskd-"))
        self.target = f"unix:{self._directory}/maskd.sock"
        self.log = self._directory / "log"
        command = [sys.executable, "-m", "maskd", "serve", "--listen", self.target, "--drain-seconds", "0", *flags]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own module

    def connect(self, *, wait_seconds: float = 0.0) -> Client:
        """Returns a new client. ``Masker`` takes it as a function and asks again until the daemon is up.

        Args:
            wait_seconds: how long to wait for a daemon that is not up yet.
        Raises:
            UnavailableError: not up yet. ConfigError: it exited; the end of its log is in the message.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            if self._process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-1500:].strip()
                raise ConfigError(f"maskd exited with code {self._process.returncode}: {tail}")
            try:
                return Client.connect(self.target, timeout_seconds=_CONNECT_SECONDS)
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise

    def close(self) -> None:
        """Stops the daemon and removes its directory. Safe to repeat."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
