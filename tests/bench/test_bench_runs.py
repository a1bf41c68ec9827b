"""The benchmark runs, shows every path, and finds every row equal. How long anything takes is nobody's business
here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_run_shows_every_path_with_equal_rows(tmp_path: Path) -> None:
    """``--quick`` prints a line for every path and backend, verified rows, and writes the same paths to ``--json``."""
    command = [sys.executable, "-m", "tests.bench.step", "--quick", "--json", str(tmp_path / "figures.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["backends"]) == {"xgrammar", "llguidance"}
    for backend, measured in figures["backends"].items():
        # steps, sequences of both batch sizes, paths of the daemon
        assert measured["verified_rows"] == 5 * (1 + 4) * 5, backend
        for paths in measured["batches"].values():
            for name, one in paths.items():
                assert name in run.stdout
                assert one["p50_us"] > 0
            assert len(paths) == 7
    assert run.stdout.count("rows verified") == 2
    assert run.stdout.count("where in process wins") == 2
