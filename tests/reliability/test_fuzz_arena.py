"""Shared memory with anything in it: the engine's side against a daemon that lies, the worker's side against an engine
that scribbles."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import open_session, until

from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import MaskdError
from maskd.grammar import GrammarSpec
from maskd.shm import layout as lay
from maskd.shm.arena import Arena
from maskd.shm.cells import Reply
from maskd.shm.segments import Mapping, create_segment, seal
from maskd.step import Action, Item, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary
from tests.fuzzing import budget

pytestmark = [pytest.mark.xdist_group("fuzz"), pytest.mark.slow]

Daemon = Any
LAYOUT = lay.Layout(vocab_size=300, item_capacity=4, row_capacity=4, token_capacity=64)
WORDS = st.sampled_from([0, 1, 2, 3, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
WORDS64 = st.one_of(WORDS, st.sampled_from([2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]))


# -- the engine's side
# ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def granted(
    data: bytes, rows: bytes, steps_bytes: int, *, shape: str = "right", sealed: bool = True
) -> Iterator[Arena]:
    """An arena from a grant of these bytes, with a rows segment of these bytes; ``shape`` says which descriptors come
    with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, contextlib.ExitStack() as stack:
        rows_fd, steps_fd = create_segment("rows", max(1, len(rows))), create_segment("steps", max(1, steps_bytes))
        os.pwrite(rows_fd, rows, 0)
        os.ftruncate(rows_fd, len(rows))
        os.ftruncate(steps_fd, steps_bytes)
        if sealed:
            for fd in (rows_fd, steps_fd):
                seal(fd, foreign_writes=True)
        doorbell, (read, write) = os.eventfd(0, os.EFD_NONBLOCK), os.pipe2(os.O_NONBLOCK)
        fds = [rows_fd, steps_fd, doorbell, read]
        for fd in (*fds, write):
            stack.callback(os.close, fd)
        sent = {
            "right": fds,
            "none": [],
            "three": fds[:3],
            "six": [*fds, *fds[:2]],
            "turned": fds[::-1],
            "pipes": [read] * 4,
        }[shape]
        theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else [])
        arena = Arena(ours, timeout_seconds=1)
        try:
            yield arena
        finally:
            arena.close()


def good_rows(layout: lay.Layout = LAYOUT) -> bytearray:
    rows = bytearray(layout.rows_bytes)
    rows[: lay.ROWS_HEADER.size] = layout.pack_rows_header(7, 1, bytes(32))
    rows[:8] = lay.MAGIC_ROWS.to_bytes(8, "little")
    return rows


def grant(rows_bytes: int = LAYOUT.rows_bytes, steps_bytes: int = LAYOUT.steps_bytes) -> bytes:
    return lay.GRANT.pack(lay.MAGIC_GRANT, 0, lay.MAJOR, lay.MINOR, 7, rows_bytes, steps_bytes)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


NOISE = st.tuples(st.integers(0, lay.GRANT.size - 1), st.binary(min_size=1, max_size=8))


@budget(120)
@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=80),
        st.just(grant()),
        NOISE.map(lambda n: grant()[: n[0]] + n[1] + grant()[n[0] + len(n[1]) :]),
    ),
    shape=st.sampled_from(["right", "right", "none", "three", "six", "turned", "pipes"]),
    rows_bytes=st.sampled_from([0, 1, 8, 100, 4096, LAYOUT.rows_bytes]),
    steps_bytes=st.sampled_from([0, 1, 4096, LAYOUT.steps_bytes]),
    header=st.lists(st.tuples(st.integers(0, 21), WORDS64), max_size=3),
    sizes_agree=st.booleans(),
    sealed=st.booleans(),
)
def test_grant_when_it_is_wild_then_typed_and_no_descriptor_stays(
    data: bytes,
    shape: str,
    rows_bytes: int,
    steps_bytes: int,
    header: list[tuple[int, int]],
    sizes_agree: bool,
    sealed: bool,
) -> None:
    """Whatever answers on the data socket: a session, or one of maskd's own errors."""
    before = descriptors()
    rows = good_rows()[:rows_bytes].ljust(rows_bytes, b"\0")
    words = memoryview(rows)[: len(rows) // 8 * 8].cast("Q")
    for at, value in header:
        if at < len(words):
            words[at] = value
    words.release()
    if sizes_agree:
        data = grant(rows_bytes, steps_bytes)
    with contextlib.suppress(MaskdError), granted(data, bytes(rows), steps_bytes, shape=shape, sealed=sealed) as arena:
        assert arena.layout == LAYOUT
        arena.submit([Item(1, row=0)])
    assert descriptors() == before


RESULTS = st.tuples(WORDS64, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS)


@budget(150)
@given(
    lock=st.sampled_from([2, 2, 2, 2, 1, 4, 2**64 - 1]),
    step=st.sampled_from([1, 1, 1, 1, 2, 2**63]),
    item_count=st.sampled_from([0, 1, 4, 4, 5, 2**32 - 1]),
    forced_count=st.sampled_from([0, 1, 1024, 1025, 2**32 - 1]),
    results=st.lists(RESULTS, min_size=4, max_size=4),
    noise=st.binary(max_size=64),
)
def test_reply_when_the_worker_wrote_nonsense_then_typed_or_within_bounds(
    lock: int, step: int, item_count: int, forced_count: int, results: list[tuple[int, ...]], noise: bytes
) -> None:
    """Statuses that nobody knows, counts and offsets beyond everything: an error of maskd's own, or values that can be
    used."""
    rows = good_rows()
    at = lay.PAGE_BYTES + LAYOUT.rows_cell_stride  # step 1 uses cell 1
    rows[lay.COMPLETED_STEP_OFFSET] = 1
    lay.ROWS_CELL.pack_into(rows, at, lock, step, item_count, forced_count, 5)
    record = np.frombuffer(rows, dtype=lay.RESULT_DTYPE, count=4, offset=at + LAYOUT.results_offset)
    for one, values in zip(record, results, strict=True):
        for name, value in zip(lay.RESULT_DTYPE.names or (), values, strict=False):
            one[name] = np.array(value & (2 ** (8 * one[name].itemsize) - 1), dtype=f"<u{one[name].itemsize}").view(
                one[name].dtype
            )
    del record
    rows[at + LAYOUT.results_offset : at + LAYOUT.results_offset + len(noise)] = noise
    with granted(grant(), bytes(rows), LAYOUT.steps_bytes) as arena:
        arena.submit([Item(1, row=0)])
        try:
            reply = arena.collect(timeout_seconds=0.01)
            read = reply.results
        except MaskdError:
            return
        assert len(read) == item_count <= LAYOUT.item_capacity
        assert reply.ok == all(result.status == Status.OK for result in read)
        for result in read:
            result.error()
            assert len(result.forced) <= LAYOUT.forced_capacity
            if result.row_count:
                assert len(reply.rows[result.row : result.row + result.row_count]) <= LAYOUT.row_capacity


# -- the worker's side
# ---------------------------------------------------------------------------------------------------


class Attacked:
    """A daemon with a neighbour that steps, and arenas to do harm with."""

    def __init__(self, daemon: Daemon, client: Client, vocabulary: Vocabulary, neighbour: Session) -> None:
        self.daemon, self.client, self.vocabulary, self.neighbour = daemon, client, vocabulary, neighbour
        self.workers = daemon.worker_pids()
        self._channel = grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = mask_service_pb2_grpc.MaskServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.arena: Arena | None = None

    def token(self) -> bytes:
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=self.vocabulary.fingerprint,
            vocab_size=self.vocabulary.vocab_size,
            row_capacity=4,
            item_capacity=4,
            token_capacity=64,
        )
        return bytes(self._stub.CreateSession(request, timeout=60).data_token)

    def fresh(self) -> Arena:
        """An arena that is alive, with grammar 1 in its session."""
        if self.arena is None or not self.arena.is_alive():
            if self.arena is not None:
                self.arena.close()
            self.arena = Arena.attach(str(self.daemon.directory / "m.sock.data"), self.token())
            self._stub.CreateGrammar(
                pb.CreateGrammarRequest(session_id=self.arena.session_id, grammar=pb.GrammarSpec(regex="[a-z]*")),
                timeout=60,
            )
        return self.arena

    def check(self) -> None:
        reply = self.neighbour.step([Item(1, rollback=-1, accept=(ord("P"),), row=0)], timeout_seconds=60)
        assert reply.ok and allowed_token_ids(reply.rows[0]).tolist() == [ord("a")]
        assert self.daemon.worker_pids() == self.workers

    def close(self) -> None:
        if self.arena is not None:
            self.arena.close()
        self._channel.close()


@pytest.fixture(scope="module")
def attacked(start_daemon_for_session: Callable[..., Daemon], vocabulary: Vocabulary) -> Iterator[Attacked]:
    daemon = start_daemon_for_session("--sessions", "100000")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as neighbour:
        neighbour.step(
            [Item(1, Action.OPEN, neighbour.create_grammar(GrammarSpec("regex", "(Paris|London)")).grammar_id)],
            timeout_seconds=60,
        )
        made = Attacked(daemon, client, vocabulary, neighbour)
        yield made
        made.close()
        print(*daemon.events()[-20:], sep="\n")


WILD_ITEMS = st.tuples(
    st.one_of(st.integers(-1, 4), st.sampled_from([2**63 - 1, -(2**63)])),
    st.integers(0, 2),
    st.integers(0, 4),
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1, -1, -2, 2**31 - 1, -(2**31)]),
    st.sampled_from([-1, 0, 1, 2, 3, 4, 2**31 - 1, -(2**31)]),
    st.one_of(st.integers(0, 9), WORDS),
    st.one_of(st.integers(0, 3), WORDS),
    st.one_of(st.integers(0, 3), WORDS),
)


def test_steps_when_their_cells_are_wild_then_answered_in_bounds_or_the_session_ends(attacked: Attacked) -> None:
    """The header of a cell and its items drawn field by field, tokens too; whatever comes, the neighbour is served by
    the same process."""

    @budget(80)
    @given(
        items=st.lists(WILD_ITEMS, max_size=4),
        tokens=st.lists(st.one_of(st.sampled_from([97, 98, 262, 263]), WORDS), max_size=16),
        head=st.sampled_from([None, None, None, None, (1, 5, 0), (1, 2**32 - 1, 0), (1, 4, 65), (0, 0, 0), (2, 1, 1)]),
        ahead=st.sampled_from([1, 1, 1, 1, 2, 0, 3, 2**32, 2**63]),
    )
    def publish(items: list[tuple[int, ...]], tokens: list[int], head: tuple[int, int, int] | None, ahead: int) -> None:
        arena = attacked.fresh()
        done = int.from_bytes(arena._rows.view[lay.COMPLETED_STEP_OFFSET : lay.COMPLETED_STEP_OFFSET + 8], "little")
        step = done + 1
        for cell in range(2):  # both, for ``ahead`` may be two
            at = lay.PAGE_BYTES + cell * arena.layout.steps_cell_stride
            number = step if step % 2 == cell else step + 1
            lay.STEPS_CELL.pack_into(
                arena._steps.view,
                at,
                *((number, len(items), len(tokens)) if head is None else (number + head[0] - 1, *head[1:])),
            )
            for index, item in enumerate(items):
                lay.ITEM.pack_into(arena._steps.view, at + arena.layout.items_offset + index * lay.ITEM.size, *item)
            raw = np.array(tokens, dtype=np.uint32).tobytes()
            arena._steps.view[at + arena.layout.tokens_offset : at + arena.layout.tokens_offset + len(raw)] = raw
        last = (done + ahead) % 2**64
        arena._steps.view[lay.PUBLISHED_STEP_OFFSET : lay.PUBLISHED_STEP_OFFSET + 8] = last.to_bytes(8, "little")
        os.eventfd_write(arena.doorbell_fd, 1)
        if last == done:
            return
        until(lambda: arena.is_done(min(last, done + 2)) or not arena.is_alive(), "answered, or the session ended")
        if arena.is_done(step):
            arena.submitted, arena.collected = step, done
            bounded(arena.read_reply(), arena)

    publish()
    attacked.check()
    assert "step failed" not in attacked.daemon.log


def bounded(reply: Reply, arena: Arena) -> None:
    taken: set[int] = set()
    for result in reply.results:
        rows = set(range(result.row, result.row + result.row_count))
        assert rows <= set(range(arena.layout.row_capacity)) and not rows & taken
        taken |= rows
        for row in rows:
            assert len(allowed_token_ids(reply.rows[row])) > 0


def test_steps_when_scribbled_over_while_they_are_read_then_only_that_session_can_end(attacked: Attacked) -> None:
    """Two threads write noise into both cells all the time; a third publishes good steps. Reading happens in another
    process."""
    stopping = threading.Event()
    current: list[Arena] = [attacked.fresh()]

    def scribble(seed: int) -> None:
        pick = random.Random(seed)
        while not stopping.is_set():
            arena = current[0]
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # it was closed under us
                view, size = arena._steps.view, arena.layout.steps_bytes
                for _ in range(50):
                    at = (
                        lay.PAGE_BYTES
                        + pick.randrange(2) * arena.layout.steps_cell_stride
                        + pick.choice([8, 12, 128, 160, 384])
                        + pick.randrange(64)
                    )
                    view[at : min(size, at + 4)] = pick.choice([bytes(4), b"\xff" * 4, pick.randbytes(4), b"\1\0\0\0"])[
                        : min(size, at + 4) - at
                    ]

    threads = [threading.Thread(target=scribble, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    ended = answered = 0
    try:
        for _ in range(round(300 * float(os.environ.get("MASKD_FUZZ", "1")))):
            arena = attacked.arena
            if arena is None or not arena.is_alive():
                ended += 1
                attacked.arena = None
                fresh = attacked.fresh()
                if arena is not None:
                    current[0] = fresh
                    arena.close()
                arena = fresh
            with contextlib.suppress(MaskdError):
                arena.submit(
                    [
                        Item(n + 1, Action.OPEN if answered == 0 else Action.ADVANCE, 1, accept=(97,), row=n)
                        for n in range(4)
                    ]
                )
                bounded(arena.collect(timeout_seconds=5), arena)
                answered += 1
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    print(f"{answered} steps answered, {ended} sessions ended")
    assert answered or ended
    attacked.check()
    assert "step failed" not in attacked.daemon.log


# -- the data socket
# -----------------------------------------------------------------------------------------------------


def test_hello_when_it_is_wild_then_refused_and_tokens_keep(attacked: Attacked) -> None:
    """Random bytes, and good hellos with something wrong in them; a token in a wrong hello is still good for the right
    one."""
    tokens = [attacked.token() for _ in range(3)]
    path = str(attacked.daemon.directory / "m.sock.data")
    right = [lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0, token) for token in tokens]
    wrong_version = lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR + 1, lay.MINOR, 0, tokens[0])

    @budget(60)
    @given(
        hello=st.one_of(
            st.binary(min_size=1, max_size=60),
            st.sampled_from([right[0][:-1], right[1] + b"\0", wrong_version, bytes(lay.HELLO.size)]),
            st.tuples(st.integers(0, 31), st.integers(1, 255)).map(
                lambda n: right[2][: n[0]] + bytes([right[2][n[0]] ^ n[1]]) + right[2][n[0] + 1 :]
            ),
        ),
        fds=st.integers(0, 3),
    )
    def greet(hello: bytes, fds: int) -> None:
        if (
            len(hello) == lay.HELLO.size
            and hello[:8] == right[0][:8]
            and hello[8:10] == right[0][8:10]
            and hello[16:32] in tokens
        ):
            return  # only a field that may differ does
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(60)
            connection.connect(path)
            socket.send_fds(connection, [hello], [0] * fds)
            answer, received, _, _ = socket.recv_fds(connection, 256, 8)
            assert received == []
            assert answer == b"" or 1 <= lay.GRANT.unpack(answer)[1] <= 5

    greet()
    for token in tokens:
        Arena.attach(path, token).close()
    attacked.check()


def test_mapping_when_a_segment_is_cut_while_mapped_then_the_kernel_refuses(attacked: Attacked) -> None:
    """The steps segment is the engine's to write, not to resize, by any way to its descriptor."""
    arena = attacked.fresh()
    maps = Path("/proc/self/maps").read_text().splitlines()
    links = [Path("/proc/self/map_files") / line.split()[0] for line in maps if "maskd-steps" in line]
    assert links
    for link in links:
        with pytest.raises(OSError):
            os.truncate(link, 0)
        with contextlib.suppress(PermissionError), link.open("r+b") as again:
            for size in (0, 4096, 1 << 30):
                with pytest.raises(PermissionError):
                    os.ftruncate(again.fileno(), size)
    assert isinstance(arena._steps, Mapping) and arena.is_alive()
    attacked.check()
