"""A worker process whose data path fails: the process ends, so that the front starts another."""

from __future__ import annotations

import socket
import subprocess
import sys

WORKER = """
import os, sys
from maskd.ipc.messages import SpawnWorker
from maskd.ipc.marker import Marker
from maskd.worker.process import run_worker
from tests.conftest import byte_vocabulary
options = SpawnWorker(
    number=0, log_level="info", compile_threads=1, cache_bytes=1 << 20, grammars_per_session=4, spin_seconds=0.0,
    row_seconds=0.02,
)
run_worker(int(sys.argv[1]), os.dup(Marker().fd), options, byte_vocabulary(), {})
"""


def test_worker_when_its_data_path_fails_then_the_process_ends_and_says_why() -> None:
    """A message that it cannot read, as from a front of another version."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.sendall(b"\x01\x00\x00\x00\x00\x00\x00\x00\xc0")
        _, log = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "the data path failed" in log and "ValidationError" in log
