"""Tests of client libraries, run by ``test_clients.py`` in an environment of their own against a server that is up."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def url() -> str:
    """Of the server, without a path."""
    return os.environ["SERVE_URL"]


@pytest.fixture
def trained() -> None:
    """For tests that need a model which does as it is told: no constraint is on the wire."""
    if os.environ["SERVE_TRAINED"] != "1":
        pytest.skip("the bundled model has random weights; this mode puts the schema into the prompt only")
