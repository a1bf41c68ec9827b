"""A gRPC handler with a check before it, whatever its kind: unary or stream, in and out.

Owns: the four kinds. Knows nothing about: what is checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

__all__ = ["Context", "Continue", "Handler", "checked"]

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler is generic in its stubs only
Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


def checked(handler: Handler, check: Callable[[Any, Context], Awaitable[Any]], *, read: Any = None) -> Handler:
    """Returns ``handler`` behind ``check``.

    Args:
        handler: of one method; None, an unknown method, stays None.
        check: gets the request, or the iterator of requests, and returns what the handler gets; or it aborts the call.
        read: deserializer instead of the handler's.
    """
    if handler is None:
        return None
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    inner = getattr(handler, kind)

    async def stream(request: Any, context: Context) -> Any:
        async for answer in inner(await check(request, context), context):
            yield answer

    async def unary(request: Any, context: Context) -> Any:
        return await inner(await check(request, context), context)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    behaviour = stream if handler.response_streaming else unary
    return make(behaviour, read or handler.request_deserializer, handler.response_serializer)
