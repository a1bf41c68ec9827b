"""How a stream ends, by whose fault: without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, cast

import pytest

from engine_adapter.serve.stream import PiecewiseResponse


@pytest.mark.parametrize("error", [OSError("no space left"), ValueError("a bug")])
@pytest.mark.parametrize("is_gone", [False, True])
def test_stream_when_its_pieces_fail_then_it_ends_with_an_error_and_a_client_that_is_gone_is_none(
    error: Exception, is_gone: bool
) -> None:
    said: list[bytes] = []

    async def pieces() -> AsyncIterator[str]:
        yield "first"
        raise error

    async def send(message: Any) -> None:
        if is_gone:
            raise ConnectionResetError
        said.append(message.get("body", b""))

    async def run(work: Coroutine[Any, Any, None], receive: Any) -> None:
        await work

    stream = PiecewiseResponse(
        pieces(),
        failed=lambda failure: f"failed {failure.status}",
        run=run,
        close=lambda: said.append(b"closed"),
        media_type="text/event-stream",
        headers={},
    )
    asyncio.run(stream({}, cast("Any", None), send))
    status = 400 if isinstance(error, ValueError) else 500
    assert said == ([] if is_gone else [b"", b"first", b"failed %d" % status, b""]) + [b"closed"]
