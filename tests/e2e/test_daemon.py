"""The daemon's life: ready, drained, killed; and clients that die, lie or never come."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import signal
import socket
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
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from maskd import _shm
from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import CapacityError, DrainingError, MaskdError, PermissionDeniedError, UnavailableError
from maskd.grammar import GrammarSpec
from maskd.rpc.status import from_rpc_error
from maskd.shm import layout as lay
from maskd.shm.arena import Arena
from maskd.step import Action, Item, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

SPEC = GrammarSpec("regex", "(Paris|London)")
PARIS, STOP = 256, 263
Daemon = Any
ServingStatus = health_pb2.HealthCheckResponse


def open_session(client: Client, vocabulary: Vocabulary, transport: str = "shm", rows: int = 4) -> Session:
    fingerprint = client.upload_vocabulary(vocabulary)
    return client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=rows, transport=transport)  # type: ignore[arg-type]


def check(session: Session, sequence_id: int = 1) -> None:
    """A session that works: opens a sequence and looks at its row."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    reply = session.step([Item(sequence_id, Action.OPEN, grammar_id, accept=(PARIS,), row=0)], timeout_seconds=30)
    assert reply.results[0].status == Status.OK
    assert allowed_token_ids(reply.rows[0]).tolist() == [STOP]


def until(condition: Callable[[], object], what: str) -> None:
    """Waits, with a limit that only a hang reaches."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def channel_to(daemon: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def create(channel: grpc.Channel, vocabulary: Vocabulary, **more: object) -> pb.CreateSessionResponse:
    request = pb.CreateSessionRequest(
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocab_size=vocabulary.vocab_size,
        row_capacity=4,
        **more,  # type: ignore[arg-type]
    )
    stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
    return stub.CreateSession(request, timeout=30)  # type: ignore[no-any-return]


def greet(daemon: Daemon, hello: bytes) -> bytes:
    """Says ``hello`` on the data socket and returns what comes back; empty = hung up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.directory / "m.sock.data"))
        if hello:
            connection.send(hello)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(256)
        return b""


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_kb(pid: int) -> int:
    return int(
        next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[
            1
        ]
    )


# -- ready and drained
# --------------------------------------------------------------------------------------------------


def test_health_and_reflection_when_asked_then_they_answer(daemon: Daemon, client: Client) -> None:
    """Stock probes work: grpc.health.v1 for the whole and for the service, and reflection lists it."""
    assert client.info().worker_count == 1
    with channel_to(daemon) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "maskd.v1.MaskService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == ServingStatus.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
        assert {service.name for service in answer.list_services_response.service} >= {
            "maskd.v1.MaskService",
            "grpc.health.v1.Health",
        }


def test_sigterm_when_sessions_are_open_then_they_finish_and_new_ones_are_refused(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """NOT_SERVING at once, DRAINING with RetryInfo for newcomers, steps go on, exit 0 when the last one has left."""
    daemon = start_daemon("--drain-seconds", "60")
    with Client.connect(daemon.target) as client, channel_to(daemon) as channel:
        sessions = [open_session(client, vocabulary, transport) for transport in ("shm", "inline")]
        for session in sessions:
            check(session)
        health = health_pb2_grpc.HealthStub(channel)
        health.Check(health_pb2.HealthCheckRequest())
        daemon.process.terminate()
        until(
            lambda: health.Check(health_pb2.HealthCheckRequest()).status == ServingStatus.NOT_SERVING,
            "health says NOT_SERVING",
        )
        until(lambda: client.info().draining, "the daemon drains")
        with pytest.raises(grpc.RpcError) as caught:
            create(channel, vocabulary)
        assert isinstance(from_rpc_error(caught.value), DrainingError)
        details = rpc_status.from_call(caught.value).details
        assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
        for session in sessions:
            check(session, 2)
            session.close()
    assert daemon.process.wait(60) == 0
    assert sorted(path.name for path in daemon.directory.iterdir()) == ["log"], "no socket and no lock is left"


def test_sigterm_when_engines_do_not_leave_then_the_daemon_does(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """After drain_seconds the daemon goes with exit code 0, and the engine is told."""
    daemon = start_daemon("--drain-seconds", "0.2")
    with Client.connect(daemon.target) as client:
        session = open_session(client, vocabulary)
        check(session)
        assert daemon.stop() == 0
        session.submit([Item(1)])
        with pytest.raises(UnavailableError):
            session.collect()
        session.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_when_draining_then_exit_at_once(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, number: int
) -> None:
    """The first signal asks, the second one means it."""
    daemon = start_daemon("--drain-seconds", "1000")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        check(session)
        workers = daemon.worker_pids()
        daemon.process.send_signal(number)
        until(lambda: client.info().draining, "the daemon drains")
        daemon.process.send_signal(number)
        assert daemon.process.wait(60) == 130
    until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers), "the workers are gone")


# -- kill -9
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["shm", "inline"])
def test_worker_when_killed_then_its_sessions_are_told_and_the_daemon_serves_again(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, transport: str
) -> None:
    """A step in flight ends with UnavailableError; a new session has the vocabulary and the same masks."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client:
        for _ in range(2):
            session = open_session(client, vocabulary, transport)
            check(session)
            daemon.kill_worker()
            with pytest.raises(UnavailableError):
                session.step([Item(1)], timeout_seconds=60)
            session.close()
            until(lambda: can(lambda: open_session(client, vocabulary, transport).close()), "the worker is up again")
        with open_session(client, vocabulary, transport) as session:
            check(session)
        until(lambda: client.info().session_count == 0, "every session was struck off")


def can(call: Callable[[], object]) -> bool:
    try:
        call()
    except MaskdError:
        return False
    return True


def test_worker_when_killed_then_the_other_workers_sessions_go_on(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """--workers 2: half of the sessions do not notice."""
    daemon = start_daemon("--workers", "2")
    with Client.connect(daemon.target) as client, contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(client, vocabulary, t)) for t in ("shm", "shm", "inline", "inline")
        ]
        for session in sessions:
            check(session)
        daemon.kill_worker()
        alive = [can(lambda session=session: check(session, 2)) for session in sessions]
        assert sorted(alive) == [False, False, True, True]
        for session in (session for session, lives in zip(sessions, alive, strict=True) if lives):
            check(session, 3)


def test_inline_step_when_the_worker_dies_under_two_waiters_then_both_are_told_and_the_front_lives(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """A step that is sent again while the first one still waits must not outlive the memory that it waits on."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client, channel_to(daemon) as channel:
        client.upload_vocabulary(vocabulary)
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        session_id = create(channel, vocabulary, transport=pb.TRANSPORT_INLINE).session_id
        worker = daemon.worker_pids()[0]
        os.kill(worker, signal.SIGSTOP)
        calls = [stub.StepSequences.future(pb.StepSequencesRequest(session_id=session_id, step=1)) for _ in range(3)]
        time.sleep(0.3)  # all three are in the front; only one of them can be waiting for the worker
        os.kill(worker, signal.SIGKILL)
        errors = [from_rpc_error(call.exception(60)) for call in calls]
        assert {type(error) for error in errors} == {UnavailableError}
        assert daemon.process.poll() is None
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "the daemon serves again")


def test_front_when_killed_then_its_processes_are_gone_and_engines_are_told(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """kill -9 of the front takes the nursery and the workers with it; both transports end; the path can be used
    again."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client:
        sessions = [open_session(client, vocabulary, transport) for transport in ("shm", "inline")]
        for session in sessions:
            check(session)
        pids = daemon.pids("maskd-worker") + daemon.pids("maskd-nursery")
        assert len(pids) == 2
        daemon.kill()
        for session in sessions:
            with pytest.raises(UnavailableError):
                session.step([Item(1)], timeout_seconds=60)
            session.close()
        with pytest.raises(UnavailableError):
            client.info()
    until(lambda: not any(alive(pid) for pid in pids), "no process is left")
    daemon.restart()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        check(session)


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_nursery_when_killed_then_sessions_go_on_and_grammars_are_compiled_again(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Workers outlive the nursery; the next compile waits for a new one, or says that it is on its way."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        check(session)
        os.kill(daemon.pids("maskd-nursery")[0], signal.SIGKILL)
        assert session.step([Item(1, row=0)]).results[0].position == 1
        until(lambda: can(lambda: session.create_grammar(GrammarSpec("regex", "again"))), "grammars compile again")
        daemon.kill_worker()
        until(
            lambda: can(lambda: open_session(client, vocabulary).close()),
            "the new nursery has the vocabulary and forks a worker",
        )


# -- clients
# ------------------------------------------------------------------------------------------------------------

VICTIM = """
import os, sys
from maskd.client import Client
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
target, transport = sys.argv[1:3]
client = Client.connect(target)
known = client.info().vocabularies[0]
session = client.open_session(known.fingerprint, vocab_size=known.vocab_size, row_capacity=64, transport=transport)
grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
session.step([Item(i + 1, Action.OPEN, grammar.grammar_id, row=i) for i in range(64)])
print("ready", flush=True)
while True:
    session.step([Item(i + 1, rollback=-1, accept=(256,), row=i) for i in range(64)])
"""


def test_client_when_killed_in_a_batch_then_its_session_is_freed_and_others_go_on(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """kill -9 of an engine: the lease ends, the memory is gone, the neighbour's steps stay right, before and after."""
    daemon = start_daemon("--lease-seconds", "1")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        check(session)
        for transport in ("shm", "inline"):
            victim = subprocess.Popen([sys.executable, "-c", VICTIM, daemon.target, transport], stdout=subprocess.PIPE)
            assert victim.stdout is not None
            with victim.stdout:
                assert victim.stdout.readline() == b"ready\n"
                assert client.info().session_count == 2
                for _ in range(50):
                    assert session.step([Item(1, row=0)], timeout_seconds=60).results[0].position == 1
                victim.kill()
                victim.wait()
            until(lambda: client.info().session_count == 1, "the session was freed")
            assert session.step([Item(1, row=0)]).results[0].position == 1


def test_sessions_when_opened_and_closed_many_times_then_nothing_grows(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Descriptors of front and worker come back to where they were, memory stays near it, and nothing has a name."""
    daemon = start_daemon()
    names = {path.name for path in Path("/dev/shm").iterdir()}
    with Client.connect(daemon.target) as client:

        def round_trip(count: int) -> None:
            for number in range(count):
                with open_session(client, vocabulary, "inline" if number % 5 == 0 else "shm") as session:
                    check(session)
            until(lambda: client.info().session_count == 0, "all are closed")

        round_trip(20)
        pids = [daemon.process.pid, daemon.worker_pids()[0], daemon.pids("maskd-nursery")[0]]
        before = {pid: (descriptors(pid), memory_kb(pid)) for pid in pids}
        round_trip(300)
        for pid in pids:
            until(
                lambda pid=pid: descriptors(pid) <= before[pid][0] + 2,
                f"{descriptors(pid)} descriptors, {before[pid][0]} before",
            )
            assert memory_kb(pid) < before[pid][1] + 32_768
    assert {path.name for path in Path("/dev/shm").iterdir()} - names == set()
    assert daemon.stop() == 0
    assert sorted(path.name for path in daemon.directory.iterdir()) == ["log"]


def test_session_when_never_claimed_or_never_used_then_it_expires(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Unclaimed tokens and idle inline sessions end by themselves; a claimed shared-memory session does not."""
    daemon = start_daemon("--claim-seconds", "0.3", "--lease-seconds", "0.3")
    with Client.connect(daemon.target) as client, channel_to(daemon) as channel:
        client.upload_vocabulary(vocabulary)
        with open_session(client, vocabulary) as session:
            token = create(channel, vocabulary).data_token
            create(channel, vocabulary, transport=pb.TRANSPORT_INLINE)
            until(lambda: client.info().session_count == 1, "two of three have expired")
            with pytest.raises(PermissionDeniedError):
                Arena.attach(str(daemon.directory / "m.sock.data"), token)
            time.sleep(0.5)
            check(session)


def test_data_socket_when_the_hello_is_wrong_then_refused_and_no_other_client_notices(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """Garbage, another version, a wrong or used token: each has its refusal, never descriptors."""
    client.upload_vocabulary(vocabulary)
    with channel_to(daemon) as channel:
        token = create(channel, vocabulary).data_token
    assert len(token) == lay.TOKEN_BYTES

    def refusal(hello: bytes) -> int | None:
        answer = greet(daemon, hello)
        return lay.GRANT.unpack(answer)[1] if answer else None

    good = (lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0)
    pick = random.Random(5)
    for size in (1, 47, 49, 200):
        assert refusal(pick.randbytes(size)) == 1
    assert refusal(pick.randbytes(lay.HELLO.size)) == 1
    assert refusal(lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR + 1, 0, 0, token)) == 2
    assert refusal(lay.HELLO.pack(*good, bytes(16))) == 3
    assert refusal(lay.HELLO.pack(*good, token[:-1] + bytes([token[-1] ^ 1]))) == 3
    arena = Arena.attach(str(daemon.directory / "m.sock.data"), token)
    with pytest.raises(PermissionDeniedError, match="wrong, used or expired"):
        Arena.attach(str(daemon.directory / "m.sock.data"), token)
    assert arena.is_alive()
    arena.close()


def test_data_socket_when_a_client_says_nothing_then_it_is_hung_up_on(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """Silent connections do not last, and do not stand in another client's way."""
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(50):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(str(daemon.directory / "m.sock.data"))
            silent.append(connection)
        with open_session(client, vocabulary) as session:
            check(session)
        for connection in silent:
            connection.settimeout(60)
            assert connection.recv(1) == b""


@pytest.mark.parametrize("timeout_seconds", [60.0, 0.2])
def test_data_socket_when_its_backlog_is_full_then_a_client_waits_for_room_as_long_as_it_may(
    timeout_seconds: float, start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """A real daemon that is stopped, and as many connections as the kernel queues: connect says EAGAIN then."""
    daemon = start_daemon("--claim-seconds", "60")
    path = str(daemon.directory / "m.sock.data")
    with channel_to(daemon) as channel, Client.connect(daemon.target) as client, contextlib.ExitStack() as queued:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        opened = stub.CreateSession(
            pb.CreateSessionRequest(
                vocabulary_fingerprint=client.upload_vocabulary(vocabulary), vocab_size=300, row_capacity=1
            ),
            timeout=60,
        )
        before = descriptors(os.getpid())
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(BlockingIOError):
                while True:
                    waiting = queued.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                    waiting.setblocking(False)
                    waiting.connect(path)
            if timeout_seconds < 1:
                with pytest.raises(UnavailableError, match=r"accepts no connection within 0\.2 s"):
                    Arena.attach(path, opened.data_token, timeout_seconds=timeout_seconds)
                queued.close()
                assert descriptors(os.getpid()) == before
                return
            going_on = threading.Timer(0.3, daemon.process.send_signal, [signal.SIGCONT])
            going_on.start()
            with contextlib.closing(Arena.attach(path, opened.data_token, timeout_seconds=timeout_seconds)) as arena:
                assert arena.session_id == opened.session_id
                assert arena.is_alive()
            going_on.join()
        finally:
            daemon.process.send_signal(signal.SIGCONT)


def test_data_socket_when_a_client_sends_descriptors_then_they_do_not_stay(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """A hello with SCM_RIGHTS in it leaves no descriptor behind."""
    with open_session(client, vocabulary) as session:
        check(session)
    before = descriptors(daemon.process.pid)
    for _ in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(daemon.directory / "m.sock.data"))
            socket.send_fds(
                connection, [lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0, bytes(16))], [0, 0, 0]
            )
            connection.settimeout(60)
            connection.recv(256)
    until(lambda: descriptors(daemon.process.pid) <= before + 2, "the descriptors are closed")


def raw_arena(daemon: Daemon, vocabulary: Vocabulary) -> Arena:
    with channel_to(daemon) as channel:
        return Arena.attach(str(daemon.directory / "m.sock.data"), create(channel, vocabulary).data_token)


WILD_STEPS = [3, 1 << 31, 1 << 40, (1 << 63) + 1, (1 << 64) - 1]


@pytest.mark.parametrize("published", WILD_STEPS)
def test_engine_when_it_publishes_a_wild_step_then_only_its_session_ends(
    daemon: Daemon, client: Client, vocabulary: Vocabulary, published: int
) -> None:
    """published_step beyond what is allowed breaks the contract: the lease ends, the neighbour steps on."""
    with open_session(client, vocabulary) as session:
        check(session)
        arena = raw_arena(daemon, vocabulary)
        np.frombuffer(arena._steps.view, dtype=np.uint64, count=1, offset=lay.PUBLISHED_STEP_OFFSET)[0] = published
        os.eventfd_write(arena.doorbell_fd, 1)
        until(lambda: not arena.is_alive(), "the session has ended")
        assert session.step([Item(1, row=0)]).results[0].position == 1
        arena.close()


def test_engine_when_it_scribbles_over_its_steps_then_only_its_session_can_end(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """Random bytes anywhere in the steps segment, published again and again, with rings: the worker survives them
    all."""
    pick = random.Random(11)
    with open_session(client, vocabulary) as session:
        check(session)
        worker = daemon.worker_pids()[0]
        arena = raw_arena(daemon, vocabulary)
        for turn in range(400):
            if not arena.is_alive():
                arena.close()
                arena = raw_arena(daemon, vocabulary)
            raw = np.frombuffer(arena._steps.view, dtype=np.uint8)
            at = pick.choice(
                [0, pick.randrange(arena.layout.steps_bytes), lay.PAGE_BYTES, lay.PAGE_BYTES + lay.CELL_HEADER_BYTES]
            )
            noise = pick.randbytes(min(pick.choice([8, 64, 4096]), arena.layout.steps_bytes - at))
            raw[at : at + len(noise)] = np.frombuffer(noise, dtype=np.uint8)
            if turn % 2:  # a plausible cell around the noise
                cell = lay.PAGE_BYTES + (turn % 2) * arena.layout.steps_cell_stride
                raw[cell : cell + 16] = np.frombuffer(
                    lay.STEPS_CELL.pack(1, pick.randrange(17), pick.randrange(64)), dtype=np.uint8
                )
                raw[lay.PUBLISHED_STEP_OFFSET : lay.PUBLISHED_STEP_OFFSET + 8] = np.frombuffer(
                    b"\1" + bytes(7), dtype=np.uint8
                )
            with contextlib.suppress(OSError):
                os.eventfd_write(arena.doorbell_fd, 1)
            del raw
            if turn % 20 == 0:
                assert session.step([Item(1, row=0)], timeout_seconds=60).results[0].position == 1
        arena.close()
        assert daemon.worker_pids() == [worker]
        check(session, 2)


def test_engine_when_it_blocks_its_descriptors_then_the_worker_does_not_wait_on_them(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """The flags of the doorbell are shared with the engine: blocking and full, it must not stop the worker; nor may the
    replies."""
    with open_session(client, vocabulary) as session:
        check(session)
        arena = raw_arena(daemon, vocabulary)
        replies = os.open(f"/proc/self/fd/{arena.reply_fd}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(replies, bytes(4096))
        os.close(replies)
        os.eventfd_write(arena.doorbell_fd, (1 << 64) - 2)
        for fd in (arena.doorbell_fd, arena.reply_fd):
            os.set_blocking(fd, True)
        arena.ask_for_wakeup()
        raw = np.frombuffer(arena._steps.view, dtype=np.uint8)
        raw[lay.PAGE_BYTES + arena.layout.steps_cell_stride :][:16] = np.frombuffer(
            lay.STEPS_CELL.pack(1, 0, 0), dtype=np.uint8
        )
        raw[lay.PUBLISHED_STEP_OFFSET] = 1
        del raw
        for _ in range(20):
            assert session.step([Item(1, row=0)], timeout_seconds=20).results[0].position == 1
        until(lambda: arena.is_done(1), "its own step is answered too")
        arena.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: there is nowhere to go")
def test_engine_when_it_rings_from_the_worker_s_processor_then_the_worker_moves_to_another(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """The engine says, wherever it runs, that it is where the worker slept last: that is where the kernel mostly wakes
    it."""
    client.upload_vocabulary(vocabulary)
    arena = raw_arena(daemon, vocabulary)
    arena._processor_word = 0  # the test writes it
    tasks = Path(f"/proc/{daemon.worker_pids()[0]}/task")
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()}
    moved: list[tuple[set[int], int]] = []

    def ring() -> bool:
        for task in before:
            last = int((tasks / str(task) / "stat").read_text().rpartition(")")[2].split()[36])
            _shm.store_u32(arena._steps.base + lay.ENGINE_PROCESSOR_OFFSET, 1 + last)
            arena.submit([])
            arena.collect()
            moved.extend(
                (now, last) for one, affinity in before.items() if (now := os.sched_getaffinity(one)) != affinity
            )
            if moved:
                return True
            time.sleep(0.002)  # the worker sleeps again
        return False

    until(ring, "the data path of the worker has moved")
    arena.close()
    (after, told), *more = moved
    assert (after, more) == (os.sched_getaffinity(0) - {told}, [])


def test_engine_when_it_tampers_with_its_rows_then_the_kernel_refuses(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """The rows that an engine gets are read-only for it, whatever it tries."""
    client.upload_vocabulary(vocabulary)
    with channel_to(daemon) as channel:
        token = create(channel, vocabulary).data_token
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lease:
        lease.connect(str(daemon.directory / "m.sock.data"))
        lease.send(lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0, token))
        _, fds, _, _ = socket.recv_fds(lease, lay.GRANT.size, 4)
        rows, steps = fds[:2]
        try:
            for fd in fds[:2]:
                for size in (0, 1 << 30):
                    with pytest.raises(PermissionError):
                        os.ftruncate(fd, size)
            with pytest.raises(PermissionError):
                os.pwrite(rows, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(rows, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            mmap.mmap(steps, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        finally:
            for fd in fds:
                os.close(fd)


def test_create_session_when_its_caller_leaves_then_the_worker_keeps_nothing(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Calls cancelled half-way leave no segments behind."""
    daemon = start_daemon("--claim-seconds", "0.5")
    with Client.connect(daemon.target) as client, channel_to(daemon) as channel:
        client.upload_vocabulary(vocabulary)
        with open_session(client, vocabulary) as session:
            check(session)
        worker = daemon.worker_pids()[0]
        until(lambda: client.info().session_count == 0, "quiet")
        before = descriptors(worker)
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=vocabulary.fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=64
        )
        for number in range(60):
            call = stub.CreateSession.future(request)
            time.sleep(0.0005 * (number % 6))
            call.cancel()
        until(
            lambda: client.info().session_count == 0 and descriptors(worker) <= before + 2,
            f"{descriptors(worker)} descriptors, {before} before",
        )


def test_descriptors_when_a_worker_has_none_left_then_new_sessions_are_refused_and_old_ones_go_on(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """EMFILE is a typed refusal for the newcomer; no other session is touched, and with room again all is well."""
    daemon = start_daemon("--claim-seconds", "0.5")
    with (
        Client.connect(daemon.target) as client,
        open_session(client, vocabulary) as session,
        contextlib.ExitStack() as stack,
    ):
        check(session)
        (worker,) = daemon.worker_pids()
        room = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (descriptors(worker) + 10, room[1]))
        refused = None
        for _ in range(20):
            try:
                stack.enter_context(open_session(client, vocabulary))
            except MaskdError as error:
                refused = error
                break
        assert isinstance(refused, (CapacityError, UnavailableError)), refused
        for _ in range(5):
            assert not can(lambda: open_session(client, vocabulary).close())
            assert session.step([Item(1, row=0)], timeout_seconds=60).results[0].position == 1
        with open_session(client, vocabulary, "inline") as inline:
            check(inline)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, room)
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "there is room again")
        assert daemon.worker_pids() == [worker]
        check(session, 2)


def test_descriptors_when_the_front_has_none_left_then_shared_memory_is_refused_and_inline_needs_none(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Engines that are connected already can have any number of inline sessions."""
    daemon = start_daemon("--claim-seconds", "0.5")
    pid = daemon.process.pid
    with (
        Client.connect(daemon.target) as client,
        open_session(client, vocabulary) as session,
        contextlib.ExitStack() as stack,
    ):
        check(session)
        room = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        held = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(1024)) - held), room[1]))
        with pytest.raises(UnavailableError):
            open_session(client, vocabulary)
        assert session.step([Item(1, row=0)], timeout_seconds=60).results[0].position == 1
        for _ in range(20):
            check(stack.enter_context(open_session(client, vocabulary, "inline")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, room)
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "there is room again")
        check(session, 2)


def test_clients_when_many_threads_have_sessions_then_each_sees_its_own(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """Sessions in parallel on one worker, over both transports: none sees another's rows."""
    failures: list[BaseException] = []

    def engine(number: int) -> None:
        try:
            with open_session(client, vocabulary, "inline" if number % 2 else "shm") as session:
                text = f"{number}" * 5
                grammar_id = session.create_grammar(GrammarSpec("regex", text)).grammar_id
                session.step([Item(1, Action.OPEN, grammar_id)], timeout_seconds=60)
                for position in range(4):
                    reply = session.step([Item(1, accept=(ord(text[0]),), row=position % 4)], timeout_seconds=60)
                    assert allowed_token_ids(reply.rows[position % 4]).tolist() == [ord(text[0])], number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=engine, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
