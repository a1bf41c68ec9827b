"""The book of sessions, with workers that answer as they are told to: limits, ids, claims, and callers that leave."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from maskd.errors import (
    CapacityError,
    DrainingError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    UnavailableError,
    VocabularyMismatchError,
)
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.sessions import SessionBook, SessionRecord
from maskd.front.worker_process import Worker
from maskd.ipc import messages
from tests.conftest import byte_vocabulary

VOCABULARY = byte_vocabulary()
WIDTH = VOCABULARY.vocab_size


class WorkerStandIn:
    """Opens sessions when ``go`` is set; everything that it was sent is in ``sent``."""

    def __init__(self, number: int = 0, fingerprint: bytes = VOCABULARY.fingerprint) -> None:
        self.number, self.fingerprint = number, fingerprint
        self.is_ready = True
        self.sessions: set[int] = set()
        self.sent: list[object] = []
        self.leases: list[int] = []
        self.refusal: MaskdError | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def request(self, message: messages.Numbered, seconds: float) -> object:
        self.sent.append(message)
        await self.go.wait()
        if self.refusal is not None:
            raise self.refusal
        if isinstance(message, messages.ReadSession):
            return messages.SessionState(True, 1, 2, 3)
        return messages.SessionOpened(4096, 8192)

    def send(self, message: object, fds: list[int] | None = None) -> None:
        self.sent.append(message)
        self.leases += fds or []

    @property
    def opened(self) -> list[messages.OpenSession]:
        return [message for message in self.sent if isinstance(message, messages.OpenSession)]

    @property
    def closed(self) -> list[int]:
        return [message.session_id for message in self.sent if isinstance(message, messages.CloseSession)]


def book_of(*workers: WorkerStandIn, **config: Any) -> SessionBook:
    async def compile_in_child(fingerprint: bytes, spec: object) -> messages.Compiled:
        raise AssertionError("no grammar is made here")

    settings = Config(**config)
    return SessionBook(settings, cast("list[Worker]", list(workers)), CompileDesk(settings, compile_in_child))


async def create(book: SessionBook, **wanted: Any) -> SessionRecord:
    sizes = {"item_capacity": 0, "token_capacity": 0, "sequence_capacity": 0, "row_capacity": 4, "vocab_size": WIDTH}
    return await book.create(VOCABULARY, **{**sizes, "inline": False, "engine": "test", **wanted})


async def opening(book: SessionBook, worker: WorkerStandIn) -> asyncio.Task[SessionRecord]:
    """Begins a session that the worker does not answer yet."""
    worker.go.clear()
    before = len(worker.opened)
    task = asyncio.create_task(create(book))
    while len(worker.opened) == before:
        await asyncio.sleep(0)
    return task


@pytest.fixture
def lease() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs


async def test_create_when_there_are_workers_then_the_least_loaded_of_the_vocabulary_opens_it() -> None:
    down, busy, idle, foreign = (WorkerStandIn(number) for number in range(4))
    down.is_ready, foreign.fingerprint = False, b"another vocabulary"
    busy.sessions |= {1, 2}
    session = await create(book_of(down, busy, idle, foreign))
    assert [worker.opened != [] for worker in (down, busy, idle, foreign)] == [False, False, True, False]
    assert idle.sessions == {session.session_id}
    assert (session.opened.rows_bytes, session.opened.steps_bytes) == (4096, 8192)


async def test_create_when_no_worker_is_up_then_it_may_be_tried_again() -> None:
    worker = WorkerStandIn()
    worker.is_ready = False
    with pytest.raises(UnavailableError):
        await create(book_of(worker))


async def test_create_when_capacities_are_left_out_then_the_worker_gets_the_defaults() -> None:
    worker = WorkerStandIn()
    book = book_of(worker, sequences_per_session=99)
    session = await create(book)
    await create(book, row_capacity=500, item_capacity=7, token_capacity=8, sequence_capacity=9, inline=True)
    small, large = worker.opened
    assert (small.item_capacity, small.row_capacity, small.token_capacity) == (16, 4, 16384)
    assert (small.sequence_capacity, small.inline) == (99, False)
    assert (large.item_capacity, large.row_capacity, large.token_capacity) == (7, 500, 8)
    assert (large.sequence_capacity, large.inline) == (9, True)
    assert (session.layout.item_capacity, session.layout.token_capacity) == (16, 16384)
    assert [message.number for message in worker.opened] == [1, 2]


@pytest.mark.parametrize(
    ("wanted", "cls", "limit"),
    [
        ({"vocab_size": WIDTH + 1}, VocabularyMismatchError, None),
        ({"row_capacity": 0}, CapacityError, "rows_per_session"),
        ({"row_capacity": 11}, CapacityError, "rows_per_session"),
        ({"item_capacity": -1}, InvalidRequestError, None),
        ({"token_capacity": -1}, InvalidRequestError, None),
        ({"sequence_capacity": -1}, InvalidRequestError, None),
        ({"sequence_capacity": 21}, CapacityError, "sequences_per_session"),
    ],
)
async def test_create_when_a_size_is_wrong_then_it_is_named_and_the_worker_is_not_asked(
    wanted: dict[str, int], cls: type[MaskdError], limit: str | None
) -> None:
    worker = WorkerStandIn()
    book = book_of(worker, rows_per_session=10, sequences_per_session=20)
    with pytest.raises(MaskdError) as caught:
        await create(book, **wanted)
    assert (type(caught.value), caught.value.metadata.get("limit"), worker.sent) == (cls, limit, [])


async def test_create_when_sizes_are_the_largest_then_they_are_taken() -> None:
    book = book_of(WorkerStandIn(), rows_per_session=10, sequences_per_session=20)
    assert (await create(book, row_capacity=10, sequence_capacity=20)).layout.row_capacity == 10


async def test_create_when_sessions_are_being_opened_then_they_count() -> None:
    worker = WorkerStandIn()
    book = book_of(worker, sessions=2)
    await create(book)
    second = await opening(book, worker)
    with pytest.raises(CapacityError) as caught:
        await create(book)
    assert caught.value.metadata["limit"] == "sessions"
    worker.go.set()
    book.delete((await second).session_id)
    await create(book)


@pytest.mark.parametrize("how", ["the caller leaves", "the worker refuses"])
async def test_create_when_it_fails_at_the_worker_then_the_session_is_freed_and_its_place_too(how: str) -> None:
    worker = WorkerStandIn()
    book = book_of(worker, sessions=1)
    task = await opening(book, worker)
    if how == "the caller leaves":
        task.cancel()
    else:
        worker.refusal = CapacityError("no memory", limit="memory")
    worker.go.set()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], BaseException)
    assert worker.closed == [worker.opened[0].session_id] and len(book) == 0
    worker.refusal = None
    await create(book)


async def test_create_when_an_id_is_taken_then_the_next_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are being opened have theirs already."""
    drawn = iter([6, 7, 6, 7, 0])
    monkeypatch.setattr(secrets, "randbelow", lambda limit: next(drawn))
    worker = WorkerStandIn()
    book = book_of(worker)
    first = await create(book)
    second = await opening(book, worker)
    third = asyncio.create_task(create(book))
    worker.go.set()
    assert [first.session_id, (await second).session_id, (await third).session_id] == [7, 8, 1]


async def test_claim_when_the_token_is_right_then_the_worker_gets_the_lease_once(lease: socket.socket) -> None:
    worker = WorkerStandIn()
    book = book_of(worker)
    session = await create(book)
    token, fd = session.token, lease.fileno()
    for wrong in (b"", bytes(len(token)), token[:-1]):
        assert not book.claim(wrong, lease)
    assert book.claim(token, lease)
    assert worker.leases == [fd] and worker.sent[-1] == messages.AttachSession(session.session_id)
    assert not book.claim(token, lease) and lease.fileno() == -1
    socket.socket(fileno=fd).close()


async def test_claim_when_the_session_is_inline_then_no_token_opens_it(lease: socket.socket) -> None:
    book = book_of(WorkerStandIn())
    session = await create(book, inline=True)
    assert session.token == b"" and not book.claim(b"", lease)


async def test_touch_when_a_session_is_used_then_its_lease_is_renewed_and_one_that_ended_is_not_found() -> None:
    worker = WorkerStandIn()
    book = book_of(worker)
    session = await create(book, inline=True)
    session.used = 0.0
    assert book.touch(session.session_id) is session and session.used > 0
    session.used = 0.0
    assert await book.read(session.session_id) == messages.SessionState(True, 1, 2, 3) and session.used > 0
    for _ in range(2):
        book.delete(session.session_id)
    assert worker.closed == [session.session_id] and worker.sessions == set()
    for call in (book.touch, lambda session_id: book.delete_grammar(session_id, 1)):
        with pytest.raises(NotFoundError):
            call(session.session_id)


async def test_step_when_the_session_has_shared_memory_then_it_is_refused() -> None:
    book = book_of(WorkerStandIn())
    session = await create(book)
    with pytest.raises(InvalidRequestError):
        await book.step(session.session_id, 1, [])


async def test_drain_when_sessions_leave_then_it_ends_and_new_ones_are_refused() -> None:
    worker = WorkerStandIn()
    book = book_of(worker)
    session = await create(book)
    draining = asyncio.create_task(book.drain(60))
    await asyncio.sleep(0)
    assert worker.sent[-1] == messages.Drain()
    with pytest.raises(DrainingError):
        await create(book)
    book.on_closed(session.session_id, "the engine went away")
    await draining


async def test_drain_when_sessions_stay_then_it_ends_after_its_time() -> None:
    book = book_of(WorkerStandIn())
    await create(book)
    await book.drain(0.01)
    assert len(book) == 1
