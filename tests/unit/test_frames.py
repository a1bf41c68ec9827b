"""Messages between our processes: whole on the other side however they are cut, each with its own descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from maskd.errors import UnavailableError
from maskd.ipc import messages
from maskd.ipc.frames import FrameReader, encode, write_frame

SENT: list[messages.ToWorker] = [
    messages.DropGrammar(1, 2),
    messages.InlineStep(session_id=3, row_count=4, cell=bytes(70_000), request=5),
    messages.Drain(),
]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def inode(fd: int) -> int:
    """Tells descriptors of the same pipe from others; closes ``fd``."""
    found = os.fstat(fd).st_ino
    os.close(fd)
    return found


@pytest.mark.parametrize("size", [1000, 7, 1 << 20])
def test_read_when_the_stream_is_cut_anywhere_then_the_messages_are_whole_and_in_order(
    ends: tuple[socket.socket, socket.socket], size: int
) -> None:
    ours, theirs = ends
    reader, stream, got = FrameReader(ours, messages.ToWorker), b"".join(map(encode, SENT)), list[object]()
    if size < 10:
        stream = b"".join(encode(message) for message in (SENT[0], SENT[2], SENT[0]))
    for at in range(0, len(stream), size):
        theirs.sendall(stream[at : at + size])
        got += [message for message, _ in reader.read()]
    assert got == ([SENT[0], SENT[2], SENT[0]] if size < 10 else SENT)
    assert list(reader.read()) == [], "nothing is there, and that is no error"


def test_read_when_messages_have_descriptors_then_each_gets_its_own(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    pipes = [os.pipe() for _ in range(2)]
    expected = [os.fstat(read).st_ino for read, _ in pipes]
    for number, (read, write) in enumerate(pipes):
        frame = encode(messages.AttachSession(number), 1)
        assert write_frame(theirs, frame, [read]) == len(frame)
        write_frame(theirs, encode(messages.Drain()))
        os.close(read)
        os.close(write)
    reader = FrameReader(ours, messages.ToWorker)
    got = [pair for _ in range(4) for pair in reader.read()]
    assert [message for message, _ in got] == [
        messages.AttachSession(0), messages.Drain(), messages.AttachSession(1), messages.Drain(),
    ]  # fmt: skip
    assert [[inode(fd) for fd in fds] for _, fds in got] == [[expected[0]], [], [expected[1]], []]


def test_read_when_the_other_end_is_closed_then_the_channel_is_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(UnavailableError):
        list(FrameReader(ours, messages.ToWorker).read())


def test_read_when_it_is_another_kind_of_message_then_it_is_refused(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.sendall(encode(messages.Ready(1)))
    with pytest.raises(msgspec.ValidationError):
        list(FrameReader(ours, messages.ToWorker).read())
