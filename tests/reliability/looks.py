"""Looks into processes, and waits that only a hang lets fail."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from maskd.client import Client, Session
from maskd.errors import MaskdError
from maskd.vocabulary import Vocabulary

_TICKS = os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def can(call: Callable[[], object]) -> bool:
    try:
        call()
    except MaskdError:
        return False
    return True


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """User and system time of ``pid`` and of its buried children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = str(path.readlink())
    return found


def memory_kb(pid: int) -> int:
    return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def maps(pid: int) -> int:
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def open_session(client: Client, vocabulary: Vocabulary, rows: int = 8, transport: str = "shm") -> Session:
    fingerprint = client.upload_vocabulary(vocabulary)
    return client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=rows, transport=transport)  # type: ignore[arg-type]
