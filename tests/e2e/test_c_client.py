"""An engine in C, made from maskd_shm.h alone, sees what the Python client sees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import maskd
from maskd.client import Client
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

NATIVE = Path(maskd.__file__).with_name("native")
SOURCE = Path(__file__).with_name("client.c")
SPEC = GrammarSpec("regex", "(Paris|London)( is (true|null))*")
PROGRAM = [256, 262, 257, 260, 263, 263]
"""Paris, is, a token that the grammar refuses, true, the stop token, and one after it."""
COMPILERS = {
    "c": ["cc", "-std=c11", "-Wpedantic"],
    "c++": ["g++", "-x", "c++", "-std=c++17"],
}


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, *flags = COMPILERS[request.param]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    path = tmp_path_factory.mktemp("client") / "client"
    command = [
        compiler,
        *flags,
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=undefined",
        "-fno-sanitize-recover",
        f"-I{NATIVE}",
        str(SOURCE),
    ]
    if subprocess.run([*command, "-o", str(path)], capture_output=True).returncode:  # no sanitiser library here
        command = [part for part in command if "sanitize" not in part]
        subprocess.run([*command, "-o", str(path)], check=True)
    return path


def create(daemon: Any, client: Client, vocabulary: Vocabulary) -> tuple[int, bytes]:
    fingerprint = client.upload_vocabulary(vocabulary)
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        session = stub.CreateSession(
            pb.CreateSessionRequest(
                vocabulary_fingerprint=fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=1
            )
        )
        grammar = pb.GrammarSpec(regex=SPEC.source)
        return stub.CreateGrammar(
            pb.CreateGrammarRequest(session_id=session.session_id, grammar=grammar)
        ).grammar_id, session.data_token


def run(program: Path, daemon: Any, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), f"{daemon.directory}/m.sock.data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_c_client_when_it_steps_then_it_has_the_same_results_and_rows_as_python(
    program: Path, daemon: Any, client: Client, vocabulary: Vocabulary
) -> None:
    """Statuses, flags, positions and every word of every row, terminated and refused steps included."""
    grammar_id, token = create(daemon, client, vocabulary)
    done = run(program, daemon, token.hex(), grammar_id, *PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    fingerprint = client.upload_vocabulary(vocabulary)
    with client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=1, transport="shm") as session:
        items = [Item(1, Action.OPEN, session.create_grammar(SPEC).grammar_id, row=0)]
        items += [Item(1, accept=(token_id,), row=0) for token_id in PROGRAM]
        assert len(lines) == len(items)
        for item, line in zip(items, lines, strict=True):
            reply = session.step([item])
            record = reply.table[0]
            assert [int(value) for value in line[:3]] == [record["status"], record["flags"], record["position"]]
            np.testing.assert_array_equal([int(word, 16) for word in line[3:]], reply.rows[0].view(np.uint32))


def test_c_client_when_the_token_was_used_then_it_is_refused(
    program: Path, daemon: Any, client: Client, vocabulary: Vocabulary
) -> None:
    """maskd_attach returns the refusal, and leaves no descriptor open (the program ends by itself)."""
    grammar_id, token = create(daemon, client, vocabulary)
    assert run(program, daemon, token.hex(), grammar_id).returncode == 0
    done = run(program, daemon, token.hex(), grammar_id)
    assert (done.returncode, done.stdout) == (3, "refused 3\n")


def test_c_client_when_nothing_listens_then_attach_fails(program: Path, tmp_path: Path) -> None:
    """-1 for a path where nobody is, and for one that is too long."""
    for path in (str(tmp_path / "absent"), "/" + "x" * 200):
        done = subprocess.run([str(program), path, "00" * 16, "1"], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout) == (3, "refused -1\n")


def test_c_client_when_the_worker_is_killed_then_wait_says_so(
    program: Path, start_daemon: Callable[..., Any], vocabulary: Vocabulary
) -> None:
    """maskd_wait ends with -1 as soon as the lease ends; it does not wait for its timeout."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client:
        grammar_id, token = create(daemon, client, vocabulary)
        worker = daemon.worker_pids()[0]
        command = [
            str(program),
            f"{daemon.directory}/m.sock.data",
            token.hex(),
            str(grammar_id),
            *["256", "263"] * 2000,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(worker, signal.SIGKILL)
            out, _ = process.communicate(timeout=60)
        assert out.splitlines()[-1] == "lost -1"
