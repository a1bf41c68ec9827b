"""The demo as a newcomer runs it: a process of its own, without a network or a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from engine_adapter.bundled.training.writing import INTRODUCTION


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "engine_adapter", "demo", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "COLUMNS": "100"})


def test_demo_when_run_then_ends_with_the_document_and_valid() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("}\nvalid\n")
    document = json.loads(done.stdout[done.stdout.index("\n{\n") : -len("valid\n")])
    assert set(document) >= set(INTRODUCTION["required"])
    for line in ("JSON schema", "regex", "EBNF", "none", "why llguidance", "why xgrammar"):
        assert line in done.stdout


def test_demo_when_no_daemon_answers_then_says_so_in_one_line() -> None:
    done = run("--target", "unix:/nowhere/maskd.sock")
    assert done.returncode == 2
    assert done.stderr.startswith("engine_adapter: no daemon answers at unix:/nowhere") and done.stderr.count("\n") == 1
