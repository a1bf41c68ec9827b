"""The data socket: where an engine claims its session and gets descriptors, which gRPC cannot carry.

Each session has one SOCK_SEQPACKET connection. The engine sends its hello, and the connection goes to the worker. The
worker sends the grant and keeps the connection as the lease. Nothing blocks; a silent client is disconnected.
Owns: the listener. Knows nothing about: what a session is (``SessionBook.claim`` does).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from maskd.shm import layout as lay

__all__ = ["DataSocket"]

_HELLO_SECONDS = 2.0
_BAD_HELLO, _BAD_VERSION, _BAD_TOKEN, _BAD_USER = 1, 2, 3, 4
_log = structlog.get_logger()


class DataSocket:
    """Listens on ``path``.

    Args:
        path: of the socket; made with mode 0600.
        claim: called with (token, connection). Returns whether a session waits for the token, and then takes the
            connection.
    """

    def __init__(self, path: str, claim: Callable[[bytes, socket.socket], bool]) -> None:
        self._path = path
        self._claim = claim
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        mask = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(mask)
        self._listener.listen(128)
        self._greetings: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accepts until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors: try again
                _log.error("cannot accept on the data socket", error=error.strerror)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._greet(connection))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with connection:
            try:
                hello = await asyncio.wait_for(
                    asyncio.get_running_loop().sock_recv(connection, lay.HELLO.size + 1), _HELLO_SECONDS
                )
            except (OSError, TimeoutError, asyncio.TimeoutError):
                return
            refusal = self._check(connection, hello)
            if refusal == 0:
                token = lay.HELLO.unpack(hello)[4]
                if self._claim(token, connection):
                    return  # the connection is the worker's now
                refusal = _BAD_TOKEN
            _log.warning("data socket refused", refusal=refusal)
            with contextlib.suppress(OSError):
                connection.send(lay.GRANT.pack(lay.MAGIC_GRANT, refusal, lay.MAJOR, lay.MINOR, 0, 0, 0))

    @staticmethod
    def _check(connection: socket.socket, hello: bytes) -> int:
        """Returns the refusal, or 0 for a good hello."""
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (os.getuid(), 0):
            return _BAD_USER
        if len(hello) != lay.HELLO.size:
            return _BAD_HELLO
        magic, major, _, _, _ = lay.HELLO.unpack(hello)
        if magic != lay.MAGIC_HELLO:
            return _BAD_HELLO
        return 0 if major == lay.MAJOR else _BAD_VERSION

    def close(self) -> None:
        """Stops listening and removes the socket."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            Path(self._path).unlink()
