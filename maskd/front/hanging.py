"""How long a native call has been stuck. Waiting for a core on a busy machine does not count.

A call may be long for five reasons. It works; it sleeps for ever; or another thread holds the interpreter. It waits
for a core on a busy machine, or an operator stopped the process. Only the first three are faults of the worker. Wall
time alone would condemn the last two, and processor time alone would never find a sleeper. The kernel's account of the
threads tells them apart.
Owns: the judgement, and how the threads are looked at. Knows nothing about: workers, grammars, what follows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Thread", "Threads", "is_stopped", "look", "stuck_seconds"]

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Thread(NamedTuple):
    """A thread at one moment.

    Attributes:
        state: as in /proc/PID/stat. R: runs or waits for a core. D: waits for the kernel. S: sleeps. T, t: stopped.
        seconds: processor time that it had so far.
    """

    state: str
    seconds: float


Threads = Mapping[int, Thread]
"""The threads of a process, by the kernel's thread id."""


def stuck_seconds(passed: float, before: Threads, now: Threads, thread: int) -> float:
    """Returns how much of ``passed`` counts for the call of ``thread``, in seconds.

    The cases, in the order in which they are tried:

    1. The thread is stopped, by SIGSTOP or a debugger. Nothing counts, for the call is not the reason.
    2. It runs, or waits for a core or for the kernel. Its processor time counts. A thread that shares a core with ten
       others gets a tenth of what passes, and no more counts.
    3. It sleeps, and another thread of its process runs, or waits for a core or for the kernel. The thread may wait
       for the interpreter, which the other thread holds. The processor time of the whole process counts.
    4. All threads sleep. All that passed counts: a process that asks for no core will sleep for ever.

    Never more than ``passed`` counts: the caller may have been frozen for longer than it measured.

    Args:
        passed: seconds between the two looks.
        before, now: the threads of the process at both. A new thread had all its time in between.
        thread: id of the thread. It counts as asleep if it is not in ``now``.
    """
    state = now[thread].state if thread in now else "S"
    if state in "Tt":
        return 0.0
    had = {number: each.seconds - (before[number].seconds if number in before else 0.0) for number, each in now.items()}
    if state in "RD":
        return min(passed, had[thread])
    if any(each.state in "RD" for each in now.values()):
        return min(passed, sum(had.values()))
    return passed


def is_stopped(threads: Threads) -> bool:
    """Returns whether the process is stopped."""
    return bool(threads) and all(thread.state in "Tt" for thread in threads.values())


def look(pid: int) -> Threads:
    """Returns the threads of a process; empty if it is gone."""
    threads = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ends
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                threads[int(task.name)] = Thread(fields[0], _processor_seconds(task, fields))
    return threads


def _processor_seconds(task: Path, fields: list[str]) -> float:
    """Returns the processor time of a thread: in nanoseconds where the kernel keeps them, else in ticks."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS
