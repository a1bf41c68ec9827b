"""How messages travel over a socket between two of our processes, with the descriptors that belong to them.

A frame is ``<II`` (payload bytes, descriptors), then the payload: one msgpack-encoded message.
Owns: the framing, and the order of descriptors. Knows nothing about: which messages there are (``messages.py``).
"""

from __future__ import annotations

import array
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from maskd.errors import UnavailableError

__all__ = ["FrameReader", "encode", "write_frame"]

_HEAD = struct.Struct("<II")
_MAX_FDS = 4
_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct, fd_count: int = 0) -> bytes:
    """Returns the frame of ``message``, which ``fd_count`` descriptors go with."""
    payload = _encoder.encode(message)
    return _HEAD.pack(len(payload), fd_count) + payload


def write_frame(sock: socket.socket, frame: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Sends as much of ``frame`` as goes, descriptors with its first byte, and returns the number of bytes sent."""
    if not fds:
        return sock.send(frame)
    return sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


class FrameReader:
    """Turns what comes in on a socket into messages with their descriptors.

    A descriptor that this process had no room for (EMFILE) comes as -1. Its message must fail, the channel must not.

    Args:
        sock: is read, and not closed.
        kind: type of the messages, or a union of types.
    """

    def __init__(self, sock: socket.socket, kind: object) -> None:
        self._sock = sock
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._truncated = False

    def read(self) -> Iterator[tuple[Any, list[int]]]:
        """Reads what is there (blocks once if the socket blocks) and yields the complete messages.

        Raises:
            UnavailableError: the other end is closed. msgspec.DecodeError: not a message of this kind.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 1 << 18, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            raise UnavailableError(f"the control channel broke: {error.strerror}") from None
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            self._truncated = True
        if not data:
            raise UnavailableError("the control channel is closed")
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, fd_count = _HEAD.unpack_from(self._buffer, at)
            if len(self._buffer) - at - _HEAD.size < length:
                break
            if len(self._fds) < fd_count:
                if not self._truncated:
                    break
                self._fds.extend([-1] * (fd_count - len(self._fds)))
                self._truncated = False
            start = at + _HEAD.size
            payload = bytes(memoryview(self._buffer)[start : start + length])
            at = start + length
            yield self._decoder.decode(payload), [self._fds.popleft() for _ in range(fd_count)]
        del self._buffer[:at]
