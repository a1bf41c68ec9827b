"""What the front knows of processes that others forked for it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from maskd.errors import UnavailableError
from maskd.front.supervised import Exits, Supervised
from maskd.front.vocabulary_shelf import _as_file
from maskd.ipc import messages
from tests.conftest import byte_vocabulary


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_exits_when_a_process_dies_before_it_is_expected_then_its_end_is_known() -> None:
    """Both words of its parent may come in one read."""
    exits = Exits()
    exits.tell(messages.Exited(7, 11, 0))
    exits.tell(messages.Exited(8, 6, 0))
    with contextlib.ExitStack() as stack:
        exits.expect(7, stack)
        exited = await exits.of(7)
        assert exited is not None and exited.signal == 11
        exits.expect(7, stack)  # the kernel may give the number again
    with contextlib.ExitStack() as stack:
        exits.expect(9, stack)
        exits.tell(messages.Exited(9, 9, 0))
        exited = await exits.of(9)
        assert exited is not None and exited.signal == 9


async def test_start_when_our_own_code_fails_then_it_says_so_and_does_not_wait_for_ever() -> None:
    class Failing(Supervised):
        async def _live(self) -> None:
            raise KeyError("a fault of our own")

    with pytest.raises(UnavailableError):
        await asyncio.wait_for(Failing("thing", 0.1).start(), 60)


async def test_upload_when_it_is_cancelled_while_its_file_is_written_then_no_descriptor_stays() -> None:
    before = descriptors()
    for _ in range(5):
        task = asyncio.create_task(_as_file(byte_vocabulary()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for _ in range(100):
        if descriptors() == before:
            break
        await asyncio.sleep(0.05)
    assert descriptors() == before
