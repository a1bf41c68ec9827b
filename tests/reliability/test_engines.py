"""Engines that stop: their lease is bounded, nobody waits for them, and they go on where they stood if they come back
in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from looks import open_session, until

from maskd.bitmask import allowed_token_ids
from maskd.client import Client
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary
from tests.bench.faults import ENGINE

Daemon = Any


@pytest.mark.parametrize("transport", ["shm", "inline"])
@pytest.mark.parametrize("lease_seconds", ["1", "600"])
def test_fault_2_engine_when_stopped_then_its_lease_is_bounded_and_others_step_on(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, transport: str, lease_seconds: str
) -> None:
    """Inline: longer than its lease, and the session ends, as the engine is told; shorter, and it goes on. Shared
    memory: its socket is its lease, so it goes on. Neighbours on either transport are answered all the while."""
    daemon = start_daemon("--lease-seconds", lease_seconds)
    command = [sys.executable, "-c", ENGINE, daemon.target, transport]
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as neighbour:
        neighbour.step(
            [Item(1, Action.OPEN, neighbour.create_grammar(GrammarSpec("regex", "(Paris|London)")).grammar_id)],
            timeout_seconds=60,
        )

        def step() -> None:
            reply = neighbour.step([Item(1, rollback=-1, accept=(ord("P"),), row=0)], timeout_seconds=60)
            assert reply.ok and allowed_token_ids(reply.rows[0]).tolist() == [ord("a")]

        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
            try:
                assert engine.stdout is not None
                assert engine.stdout.readline() == "right\n"
                os.kill(engine.pid, signal.SIGSTOP)
                ends = transport == "inline" and lease_seconds == "1"
                if ends:
                    until(lambda: step() or client.info().session_count == 1, "its lease has ended")
                else:
                    end = time.monotonic() + 1.5
                    while time.monotonic() < end:
                        step()
                    assert client.info().session_count == 2
                os.kill(engine.pid, signal.SIGCONT)
                if ends:
                    rest = engine.stdout.read().splitlines()
                    assert rest[-1].startswith("lost ") and set(rest[:-1]) <= {"right"}
                else:
                    assert [engine.stdout.readline() for _ in range(100)] == ["right\n"] * 100
            finally:
                engine.kill()
        until(
            lambda: client.info().session_count == (2 if transport == "inline" and not ends else 1),
            "killed, its session is freed",
        )
        step()
