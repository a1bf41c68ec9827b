"""What the reliability tests share: daemons with a backend that misbehaves on request, and looks into processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]  # evil_backend.py and looks.py

from evil_backend import NAME  # noqa: E402

Daemon = Any


WITH_EVIL = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
"""Children import nothing from the working directory, so the evil backend must be on the path."""


@pytest.fixture
def evil_daemon(start_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts daemons with the evil backend beside the two real ones."""
    return lambda *flags: start_daemon(
        "--backends", f"llguidance,xgrammar,{NAME}", *flags, environment={"PYTHONPATH": WITH_EVIL}
    )


@pytest.fixture(scope="module")
def evil(start_daemon_for_session: Callable[..., Daemon]) -> Daemon:
    """One for a whole module: with short compiles and little memory. Not to be killed."""
    return start_daemon_for_session(
        "--backends",
        f"llguidance,xgrammar,{NAME}",
        "--compile-seconds",
        "3",
        "--compile-bytes",
        str(256 << 20),
        "--mask-seconds",
        "0.3",
        environment={"PYTHONPATH": WITH_EVIL},
    )
