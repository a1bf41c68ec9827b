"""What the front knows of processes that the zygote or a nursery forked, and of their start."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from maskd.errors import UnavailableError
from maskd.front.supervised import Exits, Supervised
from maskd.ipc import messages


async def test_exits_when_a_process_dies_before_it_is_expected_then_its_end_is_known() -> None:
    """The parent tells of its start and of its end, and both may come in one read."""
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
