"""An answer in pieces, and work that ends early when its client goes away.

Owns: sending pieces, the error at the end of a stream, and noticing a client that is gone.
Knows nothing about: bodies, the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from engine_adapter.serve.errors import HttpFailure, describe

__all__ = ["ClientGoneError", "PiecewiseResponse", "gone", "unless"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection before its answer was whole."""


class PiecewiseResponse(Response):
    """An answer in pieces."""

    def __init__(
        self,
        pieces: AsyncIterator[str],
        *,
        failed: Callable[[HttpFailure], str],
        run: Callable[[Coroutine[Any, Any, None], Receive], Awaitable[None]],
        close: Callable[[], None],
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        """Sends ``pieces`` when it is called.

        Args:
            pieces: of the body.
            failed: makes the last piece if ``pieces`` raises.
            run: runs a coroutine until it ends, the client of ``Receive`` goes away, or the server shuts down.
            close: called once, at the end of whatever kind.
            media_type: of the answer.
            headers: further ones of the answer.
        """
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self._pieces, self._failed, self._run, self._close = pieces, failed, run, close
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the head and the pieces; an ASGI application."""

        async def tell(message: Message) -> None:
            try:
                await send(message)
            except OSError as error:
                raise ClientGoneError from error

        async def say(text: str, *, more: bool = True) -> None:
            await tell({"type": "http.response.body", "body": text.encode(), "more_body": more})

        async def say_all() -> None:
            async for piece in self._pieces:
                await say(piece)

        try:
            await tell({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._run(say_all(), receive)
            except ClientGoneError:
                raise
            except Exception as error:  # the status is sent already, so the stream itself must tell
                await say(self._failed(describe(error)))
            await say("", more=False)
        except ClientGoneError:
            logger.debug("the client went away")
        finally:
            self._close()


async def unless(work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, NoReturn]) -> T:
    """Returns what ``work`` returns; if one of ``ends`` raises first, cancels ``work`` and raises that."""
    task, others = asyncio.ensure_future(work), [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done() and not task.done():
                other.result()
        return task.result()
    finally:
        for pending in (task, *others):
            pending.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


async def gone(receive: Receive) -> NoReturn:
    """Waits until the client is gone. Raises ClientGoneError then."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGoneError
