"""From a body in any dialect to the engine's outputs, and back: what all routes share.

Owns: submitting, waiting, streaming, and cancelling the outputs of a client that goes away. Their slots, and their
    sequences in the daemon, are free within a step.
Knows nothing about: the shape of bodies, functions, the loop.

The first delta is awaited before anything is sent. So a wrong grammar is answered with its own status, also where the
client asked for a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, NoReturn, TypeVar, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import Delta, TextGeneration
from engine_adapter.serve.answer import Event, HttpAnswer
from engine_adapter.serve.errors import RequestError, located, renamed
from engine_adapter.serve.fields.body import Defaults, read_body
from engine_adapter.serve.metrics import Metrics
from engine_adapter.serve.stream import PiecewiseResponse, gone, unless

__all__ = ["MOST_CHOICES", "Core"]

T = TypeVar("T")
MOST_CHOICES = 128


class Core:
    """Serves requests with one engine.

    Attributes:
        engine: makes the outputs.
        metrics: what the server counts.
        bounded: whether the engine narrows JSON schemas.
        defaults: for requests that do not say.
        created: Unix time in seconds, of the server's start.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        bounded: bool,
        defaults: Defaults,
        body_bytes: int,
        body_seconds: float,
        created: int,
    ) -> None:
        """``body_bytes`` is the longest body, ``body_seconds`` how long one may take to arrive."""
        self.engine = engine
        self.metrics = metrics
        self.bounded = bounded
        self.defaults = defaults
        self.created = created
        self._body_bytes, self._body_seconds = body_bytes, body_seconds
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Ends every request that is under way, and each that still comes, with a 503 of its dialect."""
        self._ending.set()

    async def unless_ended(self, work: Coroutine[Any, Any, T], receive: Receive | None = None) -> T:
        """Returns what ``work`` returns.

        Raises:
            RequestError: the server ended first; ``work`` is cancelled. ClientGoneError: the same of the client, if
                there is ``receive``.
        """
        return await unless(work, self._ended(), *([] if receive is None else [gone(receive)]))

    async def _ended(self) -> NoReturn:
        await self._ending.wait()
        raise _shutting_down()

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token; part of a character becomes U+FFFD."""
        return self.engine.tokenizer.decode([token_id])

    async def serve(
        self, request: Request, form: type[T], answer_of: Callable[[Core, T, Request], HttpAnswer]
    ) -> Response:
        """Reads the body, generates, and answers.

        Args:
            request: going away cancels everything that was begun for it.
            form: of the body.
            answer_of: makes the answer of the body; it may render a template or tokenize, so it runs on a thread.

        Raises:
            RequestError: the body is wrong. ClientGoneError: the client went away.
            Exception: the error of an output. When streaming, only errors before the first piece are raised.
        """
        body = await read_body(request, form, self._body_bytes, self._body_seconds)
        answer = await asyncio.to_thread(answer_of, self, body, request)
        started = time.monotonic()
        generations = await self._submit(answer)
        try:
            await unless(self._opened(answer, generations, started), gone(request.receive))
            headers = _headers(generations)
            if not answer.is_stream:
                await unless(_finished(answer, generations), gone(request.receive))
                return JSONResponse(answer.whole(generations), headers=headers)
        except BaseException:
            _cancel(generations)
            raise
        return PiecewiseResponse(
            answer.pieces(generations, _events(answer, generations)),
            failed=answer.failed,
            run=self.unless_ended,
            close=lambda: _cancel(generations),
            media_type=answer.media_type,
            headers=headers,
        )

    async def _submit(self, answer: HttpAnswer) -> list[TextGeneration]:
        generations: list[TextGeneration] = []
        for asked in answer.requests:
            if not 1 <= asked.n <= MOST_CHOICES:
                raise RequestError(f"n is {asked.n}; give 1 to {MOST_CHOICES}", "n")
            if asked.best_of is not None and asked.best_of > MOST_CHOICES:
                raise RequestError(f"best_of is {asked.best_of}; give {asked.n} to {MOST_CHOICES}", "best_of")
        try:
            for asked in answer.requests:
                with renamed(answer.field_names):
                    generations.append(await asyncio.to_thread(self.engine.submit, asked))
        except BaseException:
            _cancel(generations)
            raise
        return generations

    async def _opened(self, answer: HttpAnswer, generations: Sequence[TextGeneration], started: float) -> None:
        """Waits until every generation has something to show."""
        for generation in generations:
            async with _reading(generation) as deltas:
                async for _ in deltas:
                    break
            _raise_failure(answer, generation)
            self.metrics.opened(generation, time.monotonic() - started)


async def _finished(answer: HttpAnswer, generations: Sequence[TextGeneration]) -> None:
    for generation in generations:
        async with _reading(generation) as deltas:
            async for _ in deltas:
                pass
        _raise_failure(answer, generation)


async def _events(answer: HttpAnswer, generations: Sequence[TextGeneration]) -> AsyncIterator[Event]:
    """Yields the deltas of all generations as they come.

    Raises:
        Exception: an output failed.
    """
    if len(generations) == 1:
        async with _reading(generations[0]) as deltas:
            async for delta in deltas:
                if delta.finish_reason in ("error", "cancelled"):
                    _raise_failure(answer, generations[0])
                yield 0, delta
        return
    arrivals: asyncio.Queue[Event | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with _reading(generations[number]) as deltas:
                async for delta in deltas:
                    arrivals.put_nowait((number, delta))
        finally:
            arrivals.put_nowait(None)

    tasks = [asyncio.create_task(pump(number)) for number in range(len(generations))]
    try:
        for _ in generations:
            while (event := await arrivals.get()) is not None:
                if event[1].finish_reason in ("error", "cancelled"):
                    _raise_failure(answer, generations[event[0]])
                yield event
    finally:
        for task in tasks:
            task.cancel()


def _cancel(generations: Sequence[TextGeneration]) -> None:
    for generation in generations:
        generation.cancel()


def _reading(generation: TextGeneration) -> contextlib.aclosing[AsyncGenerator[Delta, None]]:
    """Returns the deltas as a context, so that a reader that stops in the middle is forgotten at once."""
    return contextlib.aclosing(cast("AsyncGenerator[Delta, None]", generation.__aiter__()))


def _raise_failure(answer: HttpAnswer, generation: TextGeneration) -> None:
    for choice in generation.choices:
        if choice.error is not None:
            raise located(choice.error, answer.error_places)
        if choice.finish_reason == "cancelled":
            raise _shutting_down()


def _shutting_down() -> RequestError:
    return RequestError("the server is shutting down; ask another one, or later", status=503, code="shutting_down")


def _headers(generations: Sequence[TextGeneration]) -> dict[str, str]:
    """Returns which backend masked the output, and what of the schema the masks do not enforce."""
    report = generations[0].report if generations else None
    if report is None:
        return {}
    headers = {"x-guided-decoding-backend": report.backend}
    if report.unenforced:
        pointers = ", ".join(entry.pointer for entry in report.unenforced)
        headers["x-guided-decoding-unenforced"] = (
            pointers.encode("ascii", "backslashreplace").decode()[:2000].replace("\n", "\\n").replace("\r", "\\r")
        )
    return headers
