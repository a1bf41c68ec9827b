"""One end of a control channel, on the event loop: requests go out and answers come in.

Owns: the pending requests, and the order of what goes out. Knows nothing about: processes, what a message means.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

import msgspec

from maskd.errors import DeadlineError, UnavailableError
from maskd.ipc import messages
from maskd.ipc.frames import FrameReader, encode, write_frame

__all__ = ["Message", "Peer"]

Message = messages.ToWorker | messages.ToNursery | messages.ToZygote


class Peer:
    """Speaks to the process at the other end of ``channel``.

    Args:
        name: for error messages.
        channel: non-blocking; closed by ``run``.
        on_message: called with every message that answers no request.
    """

    def __init__(self, name: str, channel: socket.socket, on_message: Callable[[object], None]) -> None:
        self._name = name
        self._channel = channel
        self._on_message = on_message
        self._pending: dict[int, asyncio.Future[object]] = {}
        self._next_request = 0
        self._outbox: asyncio.Queue[tuple[bytes, Sequence[int]]] = asyncio.Queue()
        self._waiting_to_go = 0
        self._gone = False

    async def run(self) -> None:
        """Reads and writes until the other end closes; then every pending request fails. Call once."""
        writer = asyncio.create_task(self._write())
        try:
            await self._read()
        finally:
            self._gone = True
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._channel.close()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(UnavailableError(f"{self._name} died"))
            self._pending.clear()
            while not self._outbox.empty():
                for fd in self._outbox.get_nowait()[1]:
                    os.close(fd)

    async def request(
        self,
        message: messages.Numbered,
        seconds: float | None,
        fds: Sequence[int] = (),
        cancel: Callable[[int], Message] | None = None,
    ) -> object:
        """Sends a numbered copy of ``message``, and returns the result of its answer.

        Args:
            message: for the other end; stays as it is.
            seconds: how long to wait for the answer; None = without limit.
            fds: go with the message, and are closed here.
            cancel: makes, of the number, the message that is sent if the caller gives up.

        Raises:
            MaskdError: what the other end answered. UnavailableError: it is gone. DeadlineError: no answer in time.
        """
        if self._gone:
            for fd in fds:
                os.close(fd)
            raise UnavailableError(f"{self._name} is gone")
        self._next_request += 1
        number = self._next_request
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self.send(msgspec.structs.replace(message, request=number), fds)
            result = await asyncio.wait_for(future, seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise DeadlineError(f"{self._name} did not answer within {seconds} s") from None
        finally:
            self._pending.pop(number, None)
            if cancel is not None and not self._gone and (future.cancelled() or not future.done()):
                self.send(cancel(number))
        if isinstance(result, messages.Failure):
            raise messages.error_of(result)
        return result

    def send(self, message: Message | messages.Numbered, fds: Sequence[int] = ()) -> None:
        """Sends a message: at once, if no other message waits to go.

        The descriptors are closed here when they are sent, or when the other end is gone.
        """
        if self._gone:
            for fd in fds:
                os.close(fd)
            return
        frame = encode(message, len(fds))
        if not fds and not self._waiting_to_go:
            try:
                frame = frame[self._channel.send(frame) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the reader sees the end of the channel
            if not frame:
                return
        self._waiting_to_go += 1
        self._outbox.put_nowait((frame, fds))

    async def _read(self) -> None:
        loop, reader = asyncio.get_running_loop(), FrameReader(self._channel, messages.ToFront)
        end: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                for message, _ in reader.read():
                    self._handle(message)
            except UnavailableError:
                if not end.done():
                    end.set_result(None)
            except Exception as error:
                if not end.done():
                    end.set_exception(error)

        loop.add_reader(self._channel, read)
        try:
            await end
        finally:
            loop.remove_reader(self._channel)

    def _handle(self, message: object) -> None:
        if not isinstance(message, messages.Answered) or message.request == 0:
            self._on_message(message)
            return
        future = self._pending.get(message.request)
        if future is not None and not future.done():
            future.set_result(message.result)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frame, fds = await self._outbox.get()
            try:
                while fds:
                    try:
                        frame = frame[write_frame(self._channel, frame, fds) :]
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                await loop.sock_sendall(self._channel, frame)
                self._waiting_to_go -= 1
            except OSError:
                return  # the reader sees the end of the channel
            finally:
                for fd in fds:
                    os.close(fd)
