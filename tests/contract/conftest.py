"""Fixtures of the contract suite: vocabularies, and one backend of each kind for each vocabulary."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # walks.py and reference.py

from walks import SMALL, tekken  # noqa: E402

from maskd.backends import load  # noqa: E402
from maskd.backends.base import Backend  # noqa: E402
from maskd.vocabulary import Vocabulary  # noqa: E402


@pytest.fixture(scope="session")
def xgrammar_small() -> Backend:
    return load("xgrammar")(SMALL, threads=1)


@pytest.fixture(scope="session")
def llguidance_small() -> Backend:
    return load("llguidance")(SMALL, threads=1)


@pytest.fixture(scope="session")
def tekken_vocabulary() -> Vocabulary:
    return tekken()
