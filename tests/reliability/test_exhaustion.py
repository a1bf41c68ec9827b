"""Descriptors, memory, address space, the log and the disk run out; thousands of sessions come and go."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from looks import Oracle, can, descriptors, maps, memory_kb, open_session, raw_stub, segments, until

from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import CapacityError, MaskdError, UnavailableError
from maskd.grammar import GrammarSpec
from maskd.rpc.status import from_rpc_error
from maskd.shm.layout import Layout
from maskd.step import Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import Vocabulary
from tests.bench import chaos
from tests.bench.chaos import churn

Daemon = Any
LETTERS = GrammarSpec("regex", "[ab]{0,60}")


def stand(session: Session) -> None:
    session.step([Item(1, Action.OPEN, session.create_grammar(LETTERS).grammar_id, row=0)], timeout_seconds=60)


def test_sessions_when_thousands_are_opened_and_dropped_then_everything_is_back_to_what_it_was(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """2,000, closed or just dropped, over both transports: descriptors and mappings as before, memory within a
    third."""
    before, after = churn(start_daemon(), vocabulary, 2000)
    print(f"pid: (descriptors, mappings, kB) before {before}, after {after}")
    for pid, (fds, mappings, kb) in before.items():
        assert after[pid][0] <= fds + 3
        assert after[pid][1] <= mappings + 12
        assert after[pid][2] < 1.33 * kb + 8192


@pytest.mark.parametrize("rows", [4096])
def test_session_when_there_is_no_memory_for_it_then_capacity_and_nobody_else_notices(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, rows: int
) -> None:
    """The worker's address space is used up: the newcomer is refused with a typed error; old sessions step, and later
    there is room."""
    daemon = start_daemon()
    big = Vocabulary(vocabulary.tokens, 262_144, vocabulary.stop_token_ids, vocabulary.special_token_ids, "wide")
    with Client.connect(daemon.target) as client, open_session(client, big) as session:
        stand(session)
        (worker,) = daemon.worker_pids()
        used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        unlimited = resource.prlimit(worker, resource.RLIMIT_AS)
        resource.prlimit(worker, resource.RLIMIT_AS, (used + (64 << 20), unlimited[1]))
        for _ in range(3):
            with pytest.raises(CapacityError) as caught:
                open_session(client, big, rows=rows)
            assert caught.value.metadata["limit"] == "memory"
            assert session.step([Item(1, row=0)]).ok
        resource.prlimit(worker, resource.RLIMIT_AS, unlimited)
        with open_session(client, big, rows=8) as newcomer:
            stand(newcomer)
        assert daemon.worker_pids() == [worker]


@pytest.mark.parametrize("transport", ["shm", "auto"])
def test_segments_when_they_are_not_to_be_had_then_the_number_is_named_and_inline_works(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, transport: str
) -> None:
    """The kernel gives the worker no file of more than 64 KiB, so shared memory is refused, with the bytes it takes.

    With "auto" the client gets an inline session, which needs no segment and has the same rows.
    """
    daemon, oracle = start_daemon(), Oracle(vocabulary)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as before:
        stand(before)
        (worker,) = daemon.worker_pids()
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1 << 16, resource.prlimit(worker, resource.RLIMIT_FSIZE)[1]))
        if transport == "shm":
            with pytest.raises(CapacityError) as caught:
                open_session(client, vocabulary, rows=64, transport="shm")
            assert caught.value.metadata["limit"] == "memory"
            layout = Layout(vocabulary.vocab_size, 64, 64, 16384)
            assert caught.value.metadata["bytes"] == str(layout.rows_bytes + layout.steps_bytes)
        else:
            with open_session(client, vocabulary, rows=64, transport="auto") as session:
                assert session.transport == "inline"
                assert not [
                    target for target in descriptors(worker).values() if f"maskd-rows-{session.session_id}" in target
                ]
                grammar = session.create_grammar(LETTERS).grammar_id
                session.step([Item(number, Action.OPEN, grammar) for number in range(1, 65)], timeout_seconds=60)
                for count in range(1, 6):
                    items = [Item(number, accept=(97 + number % 2,), row=number - 1) for number in range(1, 65)]
                    reply = session.step(items, timeout_seconds=60)
                    assert reply.ok and [result.position for result in reply.results] == [count] * 64
                    for number in (1, 32, 64):
                        expected = oracle.allowed(LETTERS, [97 + number % 2] * count)
                        assert allowed_token_ids(reply.rows[number - 1]).tolist() == expected
        assert before.step([Item(1, row=0)]).ok, "who has its segments keeps them"
        assert daemon.worker_pids() == [worker]


def test_inline_step_when_there_is_no_memory_for_it_then_it_is_refused_and_may_be_sent_again(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """The worker's address space is used up: a step of 4,096 wide rows says how many bytes it needed, and is done when
    there is room."""
    daemon = start_daemon()
    wide = Vocabulary(vocabulary.tokens, 262_144, vocabulary.stop_token_ids, vocabulary.special_token_ids, "wide")
    with (
        Client.connect(daemon.target) as client,
        open_session(client, wide, rows=4096, transport="inline") as session,
        raw_stub(daemon) as stub,
    ):
        grammar = session.create_grammar(LETTERS).grammar_id
        (worker,) = daemon.worker_pids()
        used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        unlimited = resource.prlimit(worker, resource.RLIMIT_AS)
        resource.prlimit(worker, resource.RLIMIT_AS, (used + (32 << 20), unlimited[1]))
        items = [pb.Item(sequence_id=1, action=2, grammar_id=grammar, draft_token_ids=[97] * 4000, row_wanted=True)]  # type: ignore[arg-type]
        request = pb.StepSequencesRequest(session_id=session.session_id, step=1, items=items)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                stub.StepSequences(request, timeout=60)
            error = from_rpc_error(caught.value)
            assert isinstance(error, CapacityError) and error.metadata["limit"] == "memory"
            assert int(error.metadata["bytes"]) > 4001 * 32768
        resource.prlimit(worker, resource.RLIMIT_AS, unlimited)
        answer = stub.StepSequences(request, timeout=60)
        assert answer.results[0].row_count == 61, "the grammar ends after sixty letters"
        assert daemon.worker_pids() == [worker]


def test_session_when_its_client_leaves_while_it_is_made_then_nothing_of_it_stays(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """A quarter of a gigabyte asked for and given up, ten times: no descriptor, mapping or session is left, and a
    neighbour steps on."""
    daemon = start_daemon()
    wide = Vocabulary(vocabulary.tokens, 262_144, vocabulary.stop_token_ids, vocabulary.special_token_ids, "wide")
    with Client.connect(daemon.target) as client, open_session(client, wide) as session, raw_stub(daemon) as stub:
        stand(session)
        (worker,) = daemon.worker_pids()
        before = (len(descriptors(worker)), segments(worker))
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=wide.fingerprint, vocab_size=wide.vocab_size, row_capacity=4096
        )
        given_up = 0
        for number in range(10):
            try:  # the later it gives up, the more is there already, perhaps all of it
                opened = stub.CreateSession(request, timeout=0.01 * number + 0.001)
                stub.DeleteSession(pb.DeleteSessionRequest(session_id=opened.session_id))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                given_up += 1
            assert session.step([Item(1, row=0)], timeout_seconds=60).ok
        assert given_up
        until(lambda: client.info().session_count == 1, "they are all gone")
        until(
            lambda: len(descriptors(worker)) <= before[0] and segments(worker) == before[1], "nothing of them is left"
        )
        open_session(client, wide, rows=4096).close()


def test_nursery_when_it_has_no_descriptor_left_then_compiles_are_refused_typed_and_work_again(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    daemon = start_daemon()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        stand(session)
        nursery = daemon.pids("maskd-nursery")[0]
        room = resource.prlimit(nursery, resource.RLIMIT_NOFILE)
        resource.prlimit(
            nursery, resource.RLIMIT_NOFILE, (min(set(range(1000)) - set(descriptors(nursery))) + 1, room[1])
        )
        with pytest.raises(CapacityError) as caught:
            session.create_grammar(GrammarSpec("regex", "no descriptor"))
        assert caught.value.metadata["limit"] == "processes"
        assert session.step([Item(1, row=0)]).ok
        resource.prlimit(nursery, resource.RLIMIT_NOFILE, room)
        assert session.create_grammar(GrammarSpec("regex", "no descriptor")).grammar_id
        assert daemon.pids("maskd-nursery") == [nursery]


def test_zygote_when_it_has_no_descriptor_left_then_uploads_are_refused_typed_and_work_again(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Sessions of the vocabularies that are loaded notice nothing."""
    daemon = start_daemon()
    other = Vocabulary([*vocabulary.tokens[:-1], b"<other>"], 300, vocabulary.stop_token_ids)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        (zygote,) = daemon.pids("maskd-zygote")
        room = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, (min(set(range(1000)) - set(descriptors(zygote))), room[1]))
        for _ in range(3):
            with pytest.raises(CapacityError) as caught:
                client.upload_vocabulary(other)
            assert caught.value.metadata["limit"] == "descriptors"
            assert session.create_grammar(GrammarSpec("regex", "[ab]{9}")).grammar_id
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, room)
        open_session(client, other).close()
        assert daemon.pids("maskd-zygote") == [zygote]


def serve_logging_to(directory: Path, stream: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "maskd", "serve", "--listen", f"unix:{directory}/m.sock", "--drain-seconds", "0.2"]
    return subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)


@pytest.mark.parametrize("sink", ["closed pipe", "full disk"])
def test_log_when_it_cannot_be_written_then_the_daemon_serves_on(
    tmp_path: Path, vocabulary: Vocabulary, sink: str
) -> None:
    """EPIPE, and ENOSPC from /dev/full: lines are lost, nothing else; workers that die are started again."""
    if sink == "full disk" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    read, write = os.pipe() if sink == "closed pipe" else (-1, os.open("/dev/full", os.O_WRONLY))
    process = serve_logging_to(tmp_path, write)
    os.close(write)
    if read >= 0:
        os.close(read)
    try:
        target = f"unix:{tmp_path}/m.sock"
        with Client.connect(target, timeout_seconds=60) as client:
            for _ in range(2):
                with open_session(client, vocabulary) as session:
                    stand(session)
                    with contextlib.suppress(MaskdError):
                        session.create_grammar(GrammarSpec("regex", "("))
                    for stat_file in Path("/proc").glob("[0-9]*/stat"):
                        with contextlib.suppress(OSError):
                            head, _, tail = stat_file.read_text().rpartition(")")
                            if head.endswith("(maskd-worker") and int(tail.split()[3]) == process.pid:
                                os.kill(int(stat_file.parent.name), signal.SIGKILL)
                    with pytest.raises(UnavailableError):
                        while True:
                            session.step([Item(1, row=0)], timeout_seconds=60)
                until(lambda: can(lambda: open_session(client, vocabulary).close()), "a worker is up again")
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_directory_when_it_becomes_read_only_then_engines_go_on_and_come(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Nothing is written there while the daemon serves. (Root writes anyway; the modes are what an operator would
    set.)"""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        stand(session)
        daemon.directory.chmod(0o500)
        before = {path.name: path.stat().st_mtime_ns for path in daemon.directory.iterdir() if path.name != "log"}
        daemon.kill_worker()
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "a worker is up again")
        with Client.connect(daemon.target) as other, open_session(other, vocabulary) as newcomer:
            stand(newcomer)
        after = {path.name: path.stat().st_mtime_ns for path in daemon.directory.iterdir() if path.name != "log"}
        assert after == before
        assert stat.S_IMODE(daemon.directory.stat().st_mode) == 0o500
        daemon.directory.chmod(0o700)


def test_directory_when_nothing_can_be_made_in_it_then_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = subprocess.run(
        [sys.executable, "-m", "maskd", "serve", "--listen", f"unix:{tmp_path}/file/run/m.sock"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert "cannot use" in run.stderr


def test_connections_when_a_client_opens_hundreds_then_others_are_served(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """More sessions than the daemon holds: the ones over the limit are refused, typed, and leave nothing behind."""
    daemon = start_daemon("--sessions", "20")
    with (
        Client.connect(daemon.target) as client,
        open_session(client, vocabulary) as session,
        contextlib.ExitStack() as stack,
    ):
        stand(session)
        refused = 0
        for _ in range(60):
            try:
                stack.enter_context(open_session(client, vocabulary))
            except CapacityError as error:
                assert error.metadata["limit"] == "sessions"
                refused += 1
        assert refused == 41
        oracle = Oracle(vocabulary)
        for count in range(10):
            reply = session.step([Item(1, rollback=-1, accept=(97,) * count, row=0)])
            assert allowed_token_ids(reply.rows[0]).tolist() == oracle.allowed(LETTERS, [97] * count)
        assert (
            len(descriptors(daemon.worker_pids()[0])) < 200
            and maps(daemon.worker_pids()[0]) > 0
            and memory_kb(daemon.process.pid) > 0
        )


@pytest.mark.slow
def test_chaos_when_run_for_a_short_while_then_no_sequence_is_wrong_or_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """The fixed seed makes the same faults in the same order; when they hit is up to the machine."""
    assert chaos.main(["--seconds", "15", "--seed", "7", "--sessions", "0"]) == 0, capsys.readouterr().out
    assert "sequences wrong                            0" in capsys.readouterr().out
