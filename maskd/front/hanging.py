"""How long a native call has been stuck: not the time that passed, but the time that it had.

A call may be long because it works, because it sleeps for ever, because another thread holds the interpreter, because
it waits for a core on a busy machine, or because an operator stopped the process. Only the first three are its doing,
so wall time alone condemns the innocent, and processor time alone never finds a sleeper. What the kernel says about the
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
        state: as /proc/PID/stat has it: R = runs or waits for a core, D = waits for the kernel, S = sleeps, T and t =
            stopped.
        seconds: processor time that it had so far.
    """

    state: str
    seconds: float


Threads = Mapping[int, Thread]
"""The threads of a process, by the kernel's thread id."""


def stuck_seconds(passed: float, before: Threads, now: Threads, thread: int) -> float:
    """Returns how much of ``passed`` counts as time that the call of ``thread`` was at it.

    The cases, in the order in which they are asked:

    1. The thread is stopped (SIGSTOP, a debugger): nothing counts: the call did not do that.
    2. It runs, or waits for a core or for the kernel: the processor time that it had counts. A thread that shares its
      core with ten
       others gets a tenth of what passes, and is no more stuck than that.
    3. It sleeps, and another thread of its process runs, or waits for a core or for the kernel: the thread may wait for
      the interpreter,
       which the other one holds, so what the process had counts, whichever thread had it.
    4. All threads sleep: what passed counts. Nothing is in the way of a process that asks for no core, so it will sleep
      for ever.

    No more than ``passed`` counts in any case: the caller may have been frozen for longer than it admits.

    Args:
        passed: seconds between the two looks.
        before, now: the threads of the process at both; a thread that is new has had its time since.
        thread: id of the thread; one that is not among ``now`` is taken for asleep.
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
    """Returns the threads of a process; none if it is gone."""
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
