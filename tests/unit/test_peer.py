"""One end of a control channel: requests are numbered, and messages of the caller stay as they are."""

from __future__ import annotations

import asyncio
import socket

import pytest

from maskd.errors import NotFoundError
from maskd.ipc import messages
from maskd.ipc.frames import FrameReader, encode
from maskd.ipc.peer import Peer


async def test_request_when_one_message_is_sent_twice_then_each_has_its_number_and_the_message_none() -> None:
    """The caller may send a message again. Answers may come in any order, and an error is raised."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        peer = Peer("worker", ours, lambda message: None)
        running = asyncio.create_task(peer.run())
        message = messages.ReadSession(7)
        asked = [asyncio.create_task(peer.request(message, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        reader, received = FrameReader(theirs, messages.ToWorker), list[messages.ReadSession]()
        while len(received) < 2:
            received += [one for one, _ in reader.read()]
        assert [one.session_id for one in received] == [7, 7]
        assert message == messages.ReadSession(7)
        first, second = (one.request for one in received)
        assert 0 not in (first, second) and first != second
        theirs.sendall(encode(messages.Answered(second, messages.Spawned(1))))
        theirs.sendall(encode(messages.Answered(first, messages.failure_of(NotFoundError("gone", kind="session")))))
        assert await asked[1] == messages.Spawned(1)
        with pytest.raises(NotFoundError, match="gone"):
            await asked[0]
    await running
