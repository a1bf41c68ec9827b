"""The shelf of vocabularies, with a zygote that forks no nursery: single flight, the limit, and what a failure leaves.

Loads that succeed are tested with real processes, in tests/e2e/test_vocabularies.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import cast

import pytest

from maskd.errors import CapacityError, NotFoundError
from maskd.front.config import Config
from maskd.front.nursery_process import Nursery
from maskd.front.supervised import Exits
from maskd.front.vocabulary_shelf import VocabularyShelf
from maskd.front.worker_process import Worker
from maskd.front.zygote_process import Zygote
from maskd.grammar import GrammarSpec
from maskd.vocabulary import Vocabulary
from tests.conftest import byte_vocabulary

NO_ROOM = CapacityError("no room for another process", limit="processes")


class ZygoteStandIn:
    """Refuses to fork a nursery, when ``go`` is set."""

    def __init__(self) -> None:
        self.exits = Exits()
        self.asked = 0
        self.go = asyncio.Event()
        self.go.set()

    async def fork_nursery(self, number: int, channel_fd: int) -> int:
        self.asked += 1
        try:
            await self.go.wait()
        finally:
            os.close(channel_fd)
        raise NO_ROOM


class WorkerStandIn:
    """A worker that was never started; it ends when ``go`` is set."""

    def __init__(self) -> None:
        self.stopping = self.stopped = False
        self.go = asyncio.Event()
        self.go.set()

    async def stop(self) -> None:
        self.stopping = True
        await self.go.wait()
        self.stopped = True


def shelf_of(
    zygote: ZygoteStandIn, *, vocabularies_limit: int = 8, worker: WorkerStandIn | None = None
) -> VocabularyShelf:
    def new_worker(number: int, nursery: Nursery) -> Worker:
        return cast("Worker", worker or WorkerStandIn())

    return VocabularyShelf(Config(vocabularies_limit=vocabularies_limit), cast("Zygote", zygote), new_worker)


async def loading(shelf: VocabularyShelf, zygote: ZygoteStandIn, vocabulary: Vocabulary) -> asyncio.Task[object]:
    """Begins a load that the zygote does not answer yet."""
    zygote.go.clear()
    before = zygote.asked
    task: asyncio.Task[object] = asyncio.create_task(shelf.add(vocabulary))
    while zygote.asked == before:
        await asyncio.sleep(0.001)
    return task


def descriptors() -> int:
    gc.collect()  # what other tests have left open
    return len(list(Path("/proc/self/fd").iterdir()))


async def settles_at(count: int) -> bool:
    """Whether this process comes down to ``count`` descriptors; threads may still be at it."""
    for _ in range(200):
        if descriptors() == count:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_add_when_the_load_fails_then_all_callers_hear_it_nothing_stays_and_it_may_be_tried_again() -> None:
    zygote = ZygoteStandIn()
    shelf, before = shelf_of(zygote), descriptors()
    callers = [await loading(shelf, zygote, byte_vocabulary())]
    callers += [asyncio.create_task(shelf.add(byte_vocabulary())) for _ in range(5)]
    await asyncio.sleep(0.05)
    zygote.go.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [NO_ROOM] * 6
    assert zygote.asked == 1, "one load for all"
    assert (list(shelf), shelf.workers) == ([], []) and await settles_at(before)
    with pytest.raises(CapacityError):
        await shelf.add(byte_vocabulary())
    assert zygote.asked == 2


async def test_add_when_the_shelf_is_full_of_loads_then_another_vocabulary_is_refused_and_the_same_one_joins() -> None:
    zygote = ZygoteStandIn()
    shelf = shelf_of(zygote, vocabularies_limit=1)
    first = await loading(shelf, zygote, byte_vocabulary())
    with pytest.raises(CapacityError) as caught:
        await shelf.add(byte_vocabulary(vocab_size=400))
    assert (caught.value.metadata["limit"], caught.value.metadata["value"]) == ("vocabularies_limit", "1")
    second = asyncio.create_task(shelf.add(byte_vocabulary()))
    await asyncio.sleep(0.05)
    zygote.go.set()
    assert await asyncio.gather(first, second, return_exceptions=True) == [NO_ROOM] * 2


async def test_add_when_its_only_caller_leaves_then_the_load_is_given_up() -> None:
    zygote = ZygoteStandIn()
    shelf, before = shelf_of(zygote, vocabularies_limit=1), descriptors()
    caller = await loading(shelf, zygote, byte_vocabulary())
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert await settles_at(before)
    zygote.go.set()
    with pytest.raises(CapacityError, match="no room"):
        await shelf.add(byte_vocabulary(vocab_size=400))


async def test_add_when_its_only_caller_leaves_while_a_failed_load_is_cleared_away_then_all_of_it_is() -> None:
    worker = WorkerStandIn()
    worker.go.clear()
    shelf, before = shelf_of(ZygoteStandIn(), worker=worker), descriptors()
    caller = asyncio.create_task(shelf.add(byte_vocabulary()))
    while not worker.stopping:
        await asyncio.sleep(0.001)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    worker.go.set()
    await asyncio.sleep(0.05)
    assert worker.stopped and await settles_at(before)


@pytest.mark.parametrize("turns", range(4))
async def test_add_when_it_is_cancelled_at_any_time_then_no_descriptor_stays(turns: int) -> None:
    """Among others while a thread writes the vocabulary into its file."""
    shelf = shelf_of(ZygoteStandIn())
    vocabulary = byte_vocabulary()
    vocabulary.fingerprint  # noqa: B018  (cached, so that the file is written soon)
    with pytest.raises(CapacityError):
        await shelf.add(vocabulary)
    before = descriptors()
    for _ in range(5):
        task = asyncio.create_task(shelf.add(vocabulary))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await settles_at(before)


async def test_stop_when_vocabularies_are_loading_then_the_loads_end() -> None:
    zygote = ZygoteStandIn()
    shelf, before = shelf_of(zygote), descriptors()
    caller = await loading(shelf, zygote, byte_vocabulary())
    await shelf.stop()
    assert caller.cancelled() or isinstance((await asyncio.gather(caller, return_exceptions=True))[0], BaseException)
    assert await settles_at(before)


async def test_get_and_compile_when_the_vocabulary_is_not_there_then_its_fingerprint_is_named() -> None:
    shelf, fingerprint = shelf_of(ZygoteStandIn()), byte_vocabulary().fingerprint
    with pytest.raises(NotFoundError) as caught:
        shelf.get(fingerprint)
    assert (caught.value.metadata["kind"], caught.value.metadata["fingerprint"]) == ("vocabulary", fingerprint.hex())
    with pytest.raises(NotFoundError):
        await shelf.compile(fingerprint, GrammarSpec("regex", "a"))
