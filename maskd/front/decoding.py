"""Bytes that are no message are the caller's error: gRPC would answer INTERNAL, with the parser's words, and write a
traceback.

Owns: the check that stands before every handler. Knows nothing about: what the messages mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from maskd.errors import InvalidRequestError
from maskd.rpc.status import abort

__all__ = ["Decoding"]

_Context = grpc.aio.ServicerContext[Any, Any]


class _Undecodable:
    """Stands for a message that could not be read."""


class Decoding(grpc.aio.ServerInterceptor):
    """Answers INVALID_ARGUMENT / INVALID_REQUEST to a request, or to a message of a stream, that is no message of its
    type."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the handler of ``details`` behind the check."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = handler.request_deserializer

        def decode(raw: bytes) -> Any:
            try:
                return read(raw)
            except Exception:  # whatever the parser raises, the bytes are wrong
                return _Undecodable()

        if handler.response_streaming:
            inner_stream = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def stream(request: Any, context: _Context) -> Any:
                async for answer in inner_stream(await _checked(request, context), context):
                    yield answer

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, decode, handler.response_serializer)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def unary(request: Any, context: _Context) -> Any:
            return await inner(await _checked(request, context), context)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, decode, handler.response_serializer)


async def _checked(request: Any, context: _Context) -> Any:
    if isinstance(request, _Undecodable):
        await _refuse(context)
    return _messages(request, context) if hasattr(request, "__aiter__") else request


async def _messages(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
    async for message in requests:
        if isinstance(message, _Undecodable):
            await _refuse(context)
        yield message


async def _refuse(context: _Context) -> None:
    await abort(
        context,
        InvalidRequestError("the bytes are no message of this call; are both sides of one version?", field="message"),
    )
