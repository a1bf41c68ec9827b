"""A daemon is replaced by one of another version while engines decode: nothing is lost, and every row is what it would
have been."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from looks import until

from engine_adapter.masker import Masker
from maskd import __version__
from maskd.bitmask import allowed_token_ids
from maskd.client import Client
from maskd.errors import DrainingError
from maskd.grammar import GrammarSpec
from maskd.rpc.status import from_rpc_error
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary
from tests.conftest import byte_vocabulary

pytestmark = [pytest.mark.slow]

Daemon = Any
NEW_VERSION = "9.9.9"
VOCABULARY = byte_vocabulary()
_SCHEMA = (
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"array","items":{"enum":["Paris","London"]}}},'
    '"required":["a","b"]}'
)
SPECS = tuple(
    GrammarSpec(kind, source, backend=backend)  # type: ignore[arg-type]
    for backend in ("xgrammar", "llguidance")
    for kind, source in (("json_schema", _SCHEMA), ("regex", "[a-z ]{0,200}"))
)
"""Some end soon and are begun anew, some are long: their histories are what is replayed."""


class Decoder:
    """Decodes with a masker until told to stop. Which token comes next follows from the row and the place, so a run can
    be repeated."""

    def __init__(self, connect: Callable[[], Client], transport: str) -> None:
        self.masker = Masker(
            connect,
            VOCABULARY,
            row_capacity=len(SPECS),
            restore_seconds=100,
            step_seconds=30,
            transport=transport,  # type: ignore[arg-type]
        )
        self.turns = 0
        self.rows = hashlib.sha256()
        self.tokens: list[list[int]] = []
        self.failure: BaseException | None = None

    def run(self, is_over: Callable[[int], bool], pause_seconds: float = 0.0) -> None:
        try:
            batch = [self.begin(spec) for spec in SPECS]
            tokens: dict[int, int] = {}
            while not is_over(self.turns):
                handles = [handle for handle, _ in batch]
                self.masker.advance(tokens, rows=handles)
                masks = self.masker.collect()
                assert not masks.errors, masks.errors
                tokens = {}
                for position, (handle, history) in enumerate(batch):
                    row = masks.rows[masks.row_indices[position]]
                    self.rows.update(np.ascontiguousarray(row).tobytes())
                    allowed = allowed_token_ids(row).tolist()
                    token = allowed[(7 * len(history) + position) % len(allowed)]
                    if token in VOCABULARY.stop_token_ids:
                        self.masker.close(handle)
                        batch[position] = self.begin(SPECS[position])
                    else:
                        history.append(token)
                        tokens[handle] = token
                self.turns += 1
                time.sleep(pause_seconds)
        except BaseException as error:
            self.failure = error
        finally:
            self.masker.disconnect()

    def begin(self, spec: GrammarSpec) -> tuple[int, list[int]]:
        history: list[int] = []
        self.tokens.append(history)
        return self.masker.open(spec), history


@contextlib.contextmanager
def decoding(connect: Callable[[], Client]) -> Iterator[tuple[list[Decoder], threading.Event]]:
    """Two engines under way, one over each transport."""
    decoders, over = [Decoder(connect, transport) for transport in ("shm", "inline")], threading.Event()
    threads = [threading.Thread(target=decoder.run, args=(lambda _: over.is_set(), 0.02)) for decoder in decoders]
    for thread in threads:
        thread.start()
    try:
        yield decoders, over
    finally:
        over.set()
        for thread in threads:
            thread.join()


def further(decoders: list[Decoder], turns: int) -> None:
    """Waits until every engine has made ``turns`` more."""
    goals = [decoder.turns + turns for decoder in decoders]

    def reached() -> bool:
        for decoder in decoders:
            assert decoder.failure is None, decoder.failure
        return all(decoder.turns >= goal for decoder, goal in zip(decoders, goals, strict=True))

    until(reached, f"{turns} turns more")


def of_another_version(directory: Path) -> dict[str, str]:
    """The environment of a daemon that says it is ``NEW_VERSION``."""
    (directory / "sitecustomize.py").write_text(f"import maskd\nmaskd.__version__ = {NEW_VERSION!r}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))}


def assert_refused_with_a_delay(daemon: Daemon, vocabulary: Vocabulary) -> None:
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=vocabulary.fingerprint,
            vocab_size=vocabulary.vocab_size,
            row_capacity=1,
            transport=pb.TRANSPORT_INLINE,
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateSession(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert isinstance(from_rpc_error(caught.value), DrainingError)
    assert any(
        detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in rpc_status.from_call(caught.value).details
    )


@pytest.mark.parametrize("address", ["same", "new"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_upgrade_when_engines_decode_then_the_new_daemon_takes_over_and_no_row_differs(
    start_daemon: Callable[..., Daemon], daemon: Daemon, tmp_path: Path, how: str, address: str
) -> None:
    """SIGTERM: what is under way goes on, newcomers are refused with a delay, exit 0; SIGKILL: nothing of that. Either
    way the engines find themselves in the new daemon, on the old path or at the address that they are given, and decode
    what an undisturbed run decodes."""
    old = start_daemon("--drain-seconds", "1.5")
    targets = [old.target]
    with decoding(lambda: Client.connect(targets[-1])) as (decoders, over):
        further(decoders, 20)
        sessions = [decoder.masker._connection.session for decoder in decoders]
        new = (
            start_daemon("--drain-seconds", "0.2", environment=of_another_version(tmp_path))
            if address == "new"
            else old
        )
        targets.append(new.target)
        if how == "SIGTERM":
            with Client.connect(old.target) as watcher:
                old.process.terminate()
                until(lambda: watcher.info().draining, "the old daemon drains")
                assert_refused_with_a_delay(old, VOCABULARY)
                further(decoders, 5)  # steps go on meanwhile
                assert [decoder.masker._connection.session for decoder in decoders] == sessions, "nobody was thrown out"
            assert old.process.wait(60) == 0
        else:
            old.kill()
        if address == "same":
            old.restart(environment=of_another_version(tmp_path))
        further(decoders, 20)
        assert all(decoder.masker._connection.session not in sessions for decoder in decoders)
        with Client.connect(new.target) as watcher:
            info = watcher.info()
            assert (info.version, info.session_count) == (NEW_VERSION, 2)
            assert info.version != __version__
        over.set()
    for decoder in decoders:
        again = Decoder(lambda: Client.connect(daemon.target), "shm")
        again.run(lambda turns, goal=decoder.turns: turns == goal)  # type: ignore[misc]
        assert (again.failure, decoder.failure) == (None, None)
        assert decoder.tokens == again.tokens
        assert decoder.rows.digest() == again.rows.digest()


def test_upgrade_when_the_new_daemon_is_started_too_early_then_it_says_so_and_engines_notice_nothing(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Two daemons never share a path: the second one exits with a reason, the first one serves on."""
    old = start_daemon("--drain-seconds", "1")
    with decoding(lambda: Client.connect(old.target)) as (decoders, _):
        further(decoders, 5)
        sessions = [decoder.masker._connection.session for decoder in decoders]
        early = subprocess.run(
            [sys.executable, "-m", "maskd", "serve", "--listen", old.target],
            env=os.environ | of_another_version(tmp_path),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (early.returncode, "another maskd serves" in early.stderr) == (2, True), early.stderr
        further(decoders, 5)
        assert [decoder.masker._connection.session for decoder in decoders] == sessions
        with Client.connect(old.target) as watcher:
            assert watcher.info().version == __version__
