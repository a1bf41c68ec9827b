"""The benchmark of the decode loop runs and shows every way. How fast any of it is, is nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_run_shows_every_way_at_every_batch_size(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.bench.engine",
        "--quick",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["batches"]) == {"1", "16", "64"}
    for measured in figures["batches"].values():
        assert set(measured) == {"no grammar", "in process", "maskd"}
        assert all(one["tokens_per_second"] > 0 and one["turns"] > 0 for one in measured.values())
    assert run.stdout.count("a grammar on maskd") == 3
