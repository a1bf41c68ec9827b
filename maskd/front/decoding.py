"""Bytes that are no message are the caller's error, and answered so.

Without this check gRPC would answer INTERNAL with the parser's words, and write a traceback.
Owns: the check before every handler. Knows nothing about: what the messages mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from maskd.errors import InvalidRequestError
from maskd.front.handlers import Context, Continue, Handler, checked
from maskd.rpc.status import abort

__all__ = ["Decoding"]


class _Undecodable:
    """Stands for a message that could not be read."""


class Decoding(grpc.aio.ServerInterceptor):
    """Answers INVALID_ARGUMENT / INVALID_REQUEST to bytes that are no message of the call's type, also in a stream."""

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler:
        """Returns the handler of ``details`` behind the check."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler

        def read(raw: bytes) -> Any:
            try:
                return handler.request_deserializer(raw)
            except Exception:  # whatever the parser raises, the bytes are wrong
                return _Undecodable()

        return checked(handler, _check, read=read)


async def _check(request: Any, context: Context) -> Any:
    if isinstance(request, _Undecodable):
        await _refuse(context)
    return _messages(request, context) if hasattr(request, "__aiter__") else request


async def _messages(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for message in requests:
        if isinstance(message, _Undecodable):
            await _refuse(context)
        yield message


async def _refuse(context: Context) -> None:
    await abort(
        context,
        InvalidRequestError("the bytes are no message of this call; are both sides of one version?", field="message"),
    )
