"""Client libraries that cannot share an environment with the engine; their tests run in ``.venv-clients``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import CLIENTS_PYTHON, SEEDS, TRAINED, Server

pytestmark = [
    pytest.mark.xdist_group("serve"),
    pytest.mark.skipif(not CLIENTS_PYTHON.exists(), reason="no .venv-clients; make test makes it"),
    pytest.mark.timeout(300),
]
FILES = sorted((Path(__file__).parent / "clients").glob("*_client.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_client_when_run_against_the_server_then_its_own_tests_pass(file: Path, plain_server: Server) -> None:
    """As ``make serve`` starts it. Modes that need a trained model skip until there is one; all others pass."""
    here = str(file.parent)
    options = [
        "-q",
        "-rs",
        "-c",
        os.devnull,
        "--rootdir",
        here,
        "--confcutdir",
        here,
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    ]
    command = [str(CLIENTS_PYTHON), "-m", "pytest", *options, str(file)]
    environment = {
        "SERVE_URL": plain_server.url,
        "SERVE_TRAINED": str(int(TRAINED)),
        "SERVE_SEEDS": str(SEEDS),
        "PATH": os.environ["PATH"],
        "HOME": str(file.parent / "nowhere"),
        "NO_PROXY": "*",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    print(done.stdout[-200:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
