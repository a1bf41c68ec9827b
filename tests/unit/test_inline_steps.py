"""The steps of an inline session: sent to a real session of a worker, one at a time, and safe to repeat."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from maskd.bitmask import allowed_token_ids
from maskd.errors import (
    CapacityError,
    DeadlineError,
    MaskdError,
    NotFoundError,
    ProtocolError,
    StepOrderError,
    UnavailableError,
)
from maskd.front.inline_steps import InlineSteps
from maskd.front.worker_process import Worker
from maskd.ipc import messages
from maskd.ipc.marker import Marker
from maskd.sequences import SequenceTable
from maskd.shm.layout import Layout
from maskd.step import Action, Item, ItemField, Status
from maskd.worker.session import InlineSession
from tests.conftest import byte_vocabulary

SESSION, ROWS, LONG = 77, 4, 60.0
VOCABULARY = byte_vocabulary()
LAYOUT = Layout(VOCABULARY.vocab_size, 8, ROWS, 64)


class WorkerStandIn:
    """The session of a worker in this process; it answers when ``go`` is set."""

    def __init__(self) -> None:
        marker = Marker()
        table = SequenceTable(
            len(VOCABULARY.tokens), VOCABULARY.vocab_size, VOCABULARY.stop_token_ids, 8, progress=marker.slots[0]
        )
        self.session = InlineSession(SESSION, VOCABULARY, LAYOUT, table, marker)
        self.go = asyncio.Event()
        self.go.set()
        self.refusal: MaskdError | None = None
        self.asked: list[messages.InlineStep] = []

    async def request(self, message: messages.InlineStep, seconds: float | None) -> messages.Stepped:
        assert seconds is None, "a step may take its time: its caller asks again"
        self.asked.append(message)
        await self.go.wait()
        if self.refusal is not None:
            raise self.refusal
        return messages.Stepped(*self.session.step(message.cell, message.row_count))


def steps_of(worker: WorkerStandIn, step_seconds: float = LONG) -> InlineSteps:
    return InlineSteps(SESSION, cast("Worker", worker), LAYOUT, step_seconds)


async def under_way(steps: InlineSteps, worker: WorkerStandIn, step: int, items: list[Item]) -> asyncio.Task[object]:
    """Begins a step that the worker does not answer yet."""
    worker.go.clear()
    before = len(worker.asked)
    task: asyncio.Task[object] = asyncio.create_task(steps.step(step, items))
    while len(worker.asked) == before:
        await asyncio.sleep(0)
    return task


async def test_step_when_items_differ_then_every_one_has_its_result_and_rows() -> None:
    worker = WorkerStandIn()
    reply = await steps_of(worker).step(
        1, [Item(5, row=0), Item(6, Action.CLOSE), Item(7, Action.OPEN, grammar_id=9, accept=(1, 2), row=2)]
    )
    assert reply.step == 1
    assert [(result.sequence_id, result.status) for result in reply.results] == [
        (5, Status.SEQUENCE_NOT_FOUND),
        (6, Status.SEQUENCE_NOT_FOUND),
        (7, Status.GRAMMAR_NOT_FOUND),
    ]
    assert reply.rows.shape == (3, LAYOUT.row_stride_words)
    for row in (0, 2):  # a failed item may be ended, and no more
        assert tuple(allowed_token_ids(reply.rows[row])) == VOCABULARY.stop_token_ids


async def test_step_when_one_item_wants_the_first_row_then_it_has_that_row_and_an_empty_step_is_ok() -> None:
    steps = steps_of(WorkerStandIn())
    reply = await steps.step(1, [Item(5, row=0)])
    assert reply.rows.shape == (1, LAYOUT.row_stride_words) and not reply.ok
    reply = await steps.step(2, [])
    assert reply.rows.shape == (0, LAYOUT.row_stride_words) and reply.ok


async def test_step_when_it_is_sent_again_after_its_answer_then_the_same_reply_comes() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    first = await steps.step(1, [Item(1)])
    assert await steps.step(1, [Item(2)]) is first
    assert (await steps.step(2, [])).step == 2
    assert len(worker.asked) == 2


async def test_step_when_it_is_sent_again_while_it_is_under_way_then_both_callers_get_one_answer() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    first = await under_way(steps, worker, 1, [Item(1)])
    second = asyncio.create_task(steps.step(1, [Item(1)]))
    worker.go.set()
    assert await first is await second
    assert len(worker.asked) == 1


@pytest.mark.parametrize("step", [0, 1, 4, -1])
async def test_step_when_it_is_out_of_order_then_the_error_names_the_next_one(step: int) -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    for number in (1, 2):
        await steps.step(number, [])
    with pytest.raises(StepOrderError) as caught:
        await steps.step(step, [])
    assert caught.value.metadata["expected"] == "3"
    assert (await steps.step(3, [])).step == 3


async def test_step_when_the_worker_is_slow_then_the_caller_may_ask_again_for_the_same_step() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker, step_seconds=0.01)
    worker.go.clear()
    for _ in range(2):
        with pytest.raises(DeadlineError) as caught:
            await steps.step(1, [Item(1)])
        assert caught.value.metadata["limit"] == "step_seconds"
    worker.go.set()
    while True:
        try:
            reply = await steps.step(1, [Item(1)])
            break
        except DeadlineError:  # a busy machine
            continue
    assert reply.step == 1 and len(worker.asked) == 1


async def test_step_when_the_caller_leaves_then_the_step_goes_on_and_the_next_caller_gets_its_reply() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    caller = await under_way(steps, worker, 1, [Item(1)])
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    worker.go.set()
    assert (await steps.step(1, [Item(1)])).step == 1
    assert len(worker.asked) == 1


async def test_step_when_the_worker_did_not_begin_it_then_it_may_be_sent_again() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    worker.refusal = CapacityError("no memory", limit="memory")
    with pytest.raises(CapacityError):
        await steps.step(1, [Item(1)])
    worker.refusal = None
    assert (await steps.step(1, [Item(1)])).step == 1


async def test_step_when_the_session_ends_meanwhile_then_the_caller_hears_why_and_earlier_replies_stay() -> None:
    worker = WorkerStandIn()
    steps = steps_of(worker)
    answered = await steps.step(1, [])
    caller = await under_way(steps, worker, 2, [])
    steps.end("its worker died")
    for call in (caller, steps.step(2, [])):
        with pytest.raises(UnavailableError, match="its worker died, step 2 is unanswered"):
            await call
    assert await steps.step(1, []) is answered
    assert len(worker.asked) == 2


async def test_step_when_the_worker_does_not_know_the_session_then_it_has_ended() -> None:
    worker = WorkerStandIn()
    worker.refusal = NotFoundError("no session")
    with pytest.raises(UnavailableError, match="the session ended, step 1 is unanswered"):
        await steps_of(worker).step(1, [])


@pytest.mark.parametrize("item", [Item(1, row=ROWS), Item(1, row=ROWS - 1, drafts=(1,)), Item(1, row=1 << 30)])
async def test_step_when_an_item_wants_rows_that_there_are_not_then_it_alone_is_refused(item: Item) -> None:
    """The worker is asked for no more rows than the session has, whatever an item says."""
    worker = WorkerStandIn()
    reply = await steps_of(worker).step(1, [item, Item(2, row=0)])
    refused, other = reply.results
    assert (refused.status, refused.detail_index) == (Status.INVALID_ITEM, ItemField.ROW)
    assert other.status == Status.SEQUENCE_NOT_FOUND
    assert worker.asked[0].row_count == ROWS


@pytest.mark.parametrize("wrong", ["rows", "step"])
async def test_step_when_the_worker_answers_something_else_then_it_is_refused(wrong: str) -> None:
    class Confused(WorkerStandIn):
        async def request(self, message: messages.InlineStep, seconds: float | None) -> messages.Stepped:
            stepped = await super().request(message, seconds)
            if wrong == "rows":
                return messages.Stepped(stepped.head, stepped.rows + bytes(4))
            return messages.Stepped(bytes(len(stepped.head)), stepped.rows)

    with pytest.raises(ProtocolError):
        await steps_of(Confused()).step(1, [Item(1, row=0)])
