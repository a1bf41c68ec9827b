"""How much memory may still be taken before the kernel kills a process for it.

Kernels promise memory first, in control groups and on most machines, and kill a process when there is none. So a
process that is about to take much memory asks here first.
Sources: the kernel's documentation of ``memory.max`` and ``memory.current`` (cgroup v2), of ``memory.limit_in_bytes``
and ``memory.usage_in_bytes`` (v1), and of ``MemAvailable`` in /proc/meminfo.
Owns: how the kernel's figures are read. Knows nothing about: what the memory is for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["headroom_bytes"]

_FILES = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}
"""For each file with a limit: the file with what is used, and the field of ``memory.stat`` that can be reclaimed."""


def headroom_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that this process may still take; None if the system does not say.

    It is the least of two figures: what the machine has available, and what each control group of the process has
    left. A file that cannot be read or understood is ignored.
    """
    return min([*_available(proc), *_left_in_groups(proc, cgroups)], default=None)


def _available(proc: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                root = cgroups if number == "0" else cgroups / "memory"
                group = root / path.strip("/")
                # a limit may stand on any of them; not all are visible in a container
                for directory in [group, *group.parents]:
                    yield from _left(directory)
                    if directory == root:
                        break


def _left(directory: Path) -> Iterator[int]:
    for limit, (used, reclaimable) in _FILES.items():
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            left = int((directory / limit).read_text()) - int((directory / used).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
            yield max(0, left + int(stat.get(reclaimable, 0)))
