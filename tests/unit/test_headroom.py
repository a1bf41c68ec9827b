"""Headroom from files as the kernel writes them: cgroup v2 and v1, limits on parents, containers, and files that say
nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskd.errors import CapacityError
from maskd.shm import segments
from maskd.shm.headroom import headroom_bytes

MIB = 1 << 20


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def machine(root: Path, cgroup: str, files: dict[str, object], available_kib: int = 1 << 30) -> int | None:
    write(root, {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB", "proc/self/cgroup": cgroup})
    write(root / "cgroup", files)
    return headroom_bytes(root / "proc", root / "cgroup")


def v2(limit: object, used: int, inactive: int = 0, at: str = "") -> dict[str, object]:
    return {
        f"{at}memory.max": limit,
        f"{at}memory.current": used,
        f"{at}memory.stat": f"anon 5\ninactive_file {inactive}",
    }


def test_headroom_when_in_a_v2_group_then_what_is_left_and_what_can_be_taken_back(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/a/b", v2(100 * MIB, 70 * MIB, 10 * MIB, "a/b/")) == 40 * MIB


def test_headroom_when_a_parent_is_tighter_then_that_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/a/b", v2("max", 70 * MIB, 0, "a/b/") | v2(90 * MIB, 80 * MIB, 0, "a/")) == 10 * MIB


def test_headroom_when_in_a_container_then_the_root_is_its_group(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/", v2(50 * MIB, 20 * MIB)) == 30 * MIB
    assert machine(tmp_path, "0::/kept/outside", v2(50 * MIB, 20 * MIB)) == 30 * MIB


def test_headroom_when_in_a_v1_group_then_the_same(tmp_path: Path) -> None:
    files = {
        "memory.limit_in_bytes": 64 * MIB,
        "memory.usage_in_bytes": 70 * MIB,
        "memory.stat": "total_inactive_file 0",
    }
    assert machine(tmp_path, "9:cpu:/x\n4:memory:/x", {f"memory/x/{name}": value for name, value in files.items()}) == 0


def test_headroom_when_the_machine_has_less_then_that_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/", v2(50 * MIB, 20 * MIB), available_kib=2048) == 2 * MIB


@pytest.mark.parametrize("files", [{}, {"memory.max": "garbage", "memory.current": "?"}, {"memory.max": 5}])
def test_headroom_when_files_are_missing_or_odd_then_they_say_nothing(tmp_path: Path, files: dict[str, object]) -> None:
    assert machine(tmp_path, "nonsense\n0::/", files) == 1 << 40
    assert headroom_bytes(tmp_path / "nowhere", tmp_path / "nowhere") is None


def test_segment_when_there_is_no_room_for_it_then_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is taken: the kernel would give it, and kill a process for it later."""
    monkeypatch.setattr(segments, "headroom_bytes", lambda: 40 * MIB)
    with pytest.raises(CapacityError, match=f"{9 * MIB} bytes was needed .* {40 * MIB} bytes are left") as caught:
        segments.create_segment("test", 9 * MIB)
    assert (caught.value.metadata["limit"], caught.value.metadata["bytes"]) == ("memory", str(9 * MIB))
