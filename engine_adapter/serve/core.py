"""From a request in any dialect to its outputs, and back: what all routes share.

Owns: submitting, waiting, streaming, and what happens when a client goes away (its outputs are cancelled, so its slots
    and its sequences
in the daemon are free within a step). The first delta is awaited before anything is sent, so a wrong grammar is a whole
answer
with its own status, also to a client that asked for a stream.
Knows nothing about: the shape of bodies, functions, the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import Delta, TextGeneration, TextRequest
from engine_adapter.serve.errors import Failure, RequestError, describe, error_body, with_names, with_places
from engine_adapter.serve.fields.body import Defaults, read_body
from engine_adapter.serve.metrics import Metrics

__all__ = ["MOST_CHOICES", "Ask", "ClientGoneError", "Core", "Event", "as_json", "sse", "sse_failure"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
MOST_CHOICES = 128


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Ask:
    """One request to the engine.

    Attributes:
        request: what to generate.
        places: beginning of a pointer into the grammar's source to the field of the body, for errors; see
            ``with_places``.
        names: fields of ``request`` to those of the body, where they differ; see ``with_names``.
    """

    request: TextRequest
    places: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


Event = tuple[int, Delta]
"""Which of the generations, and what one step added to it."""

Whole = Callable[[Sequence[TextGeneration]], Any]
Pieces = Callable[[Sequence[TextGeneration], AsyncIterator[Event]], AsyncIterator[str]]


class Core:
    """Serves requests with one engine.

    Attributes:
        engine: makes the outputs.
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
        return await _unless(work, self._ended(), *([] if receive is None else [_gone(receive)]))

    async def _ended(self) -> NoReturn:
        await self._ending.wait()
        raise RequestError("the server is shutting down; ask another one, or later", status=503, code="shutting_down")

    async def read(self, request: Request, form: type[T]) -> T:
        """Reads the body of ``request``; see ``read_body``."""
        return await read_body(request, form, self._body_bytes, self._body_seconds)

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token; part of a character becomes U+FFFD."""
        return self.engine.tokenizer.decode([token_id])

    async def prepare(self, make: Callable[[], T]) -> T:
        """Runs ``make``, which may render a template or tokenize, beside the event loop."""
        return await asyncio.to_thread(make)

    async def respond(
        self,
        request: Request,
        asks: Sequence[Ask],
        *,
        whole: Whole,
        pieces: Pieces | None = None,
        failed: Callable[[Failure], str],
        media_type: str = "text/event-stream",
    ) -> Response:
        """Generates, and answers.

        Args:
            request: whoever sent it is watched; going away cancels everything.
            asks: answered together.
            whole: makes the body of the answer from finished generations.
            pieces: makes a stream instead; None = no stream.
            failed: makes the end of a stream that fails after it began.
            media_type: of the stream.

        Raises:
            Exception: whatever ended an output before its first piece; any failed output if there is no stream.
                ClientGoneError.
        """
        started = time.monotonic()
        generations = await self._submit(asks)
        try:
            await _unless(self._opened(generations, asks, started), _gone(request.receive))
            headers = _headers(generations)
            if pieces is None:
                await _unless(self._finished(generations, asks), _gone(request.receive))
                return JSONResponse(whole(generations), headers=headers)
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        return _Stream(
            self, pieces(generations, self._events(generations, asks)), failed, generations, media_type, headers
        )

    async def _submit(self, asks: Sequence[Ask]) -> list[TextGeneration]:
        generations: list[TextGeneration] = []
        for ask in asks:
            if not 1 <= ask.request.output_count <= MOST_CHOICES:
                raise RequestError(f"n is {ask.request.n}; give 1 to {MOST_CHOICES}", "n")
        try:
            for ask in asks:
                try:
                    generation = await asyncio.to_thread(self.engine.submit, ask.request)
                except ValueError as error:
                    raise with_names(error, ask.names) from error
                generations.append(generation)
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        return generations

    async def _opened(self, generations: Sequence[TextGeneration], asks: Sequence[Ask], started: float) -> None:
        """Waits until every generation has something to show."""
        for generation, ask in zip(generations, asks, strict=True):
            async with _reading(generation) as deltas:
                async for _ in deltas:
                    break
            _raise_failure(generation, ask)
            self.metrics.opened(generation, time.monotonic() - started)

    async def _finished(self, generations: Sequence[TextGeneration], asks: Sequence[Ask]) -> None:
        for generation, ask in zip(generations, asks, strict=True):
            async with _reading(generation) as deltas:
                async for _ in deltas:
                    pass
            _raise_failure(generation, ask)

    async def _events(self, generations: Sequence[TextGeneration], asks: Sequence[Ask]) -> AsyncIterator[Event]:
        """Yields what comes, of all generations as it comes.

        Raises:
            Exception: an output failed.
        """
        if len(generations) == 1:
            async with _reading(generations[0]) as deltas:
                async for delta in deltas:
                    if delta.finish_reason in ("error", "cancelled"):
                        _raise_failure(generations[0], asks[0])
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
                        _raise_failure(generations[event[0]], asks[event[0]])
                    yield event
        finally:
            for task in tasks:
                task.cancel()


class _Stream(Response):
    """An answer in pieces. When the client goes away, or the pieces end in whatever way, the generations are
    cancelled."""

    def __init__(
        self,
        core: Core,
        pieces: AsyncIterator[str],
        failed: Callable[[Failure], str],
        generations: Sequence[TextGeneration],
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self._core, self._pieces, self._failed, self._generations = core, pieces, failed, generations
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                await self._core.unless_ended(say_all(), receive)
            except ClientGoneError:
                raise
            except Exception as error:  # the status is sent; what is left is to say it within the stream, and to end
                await say(self._failed(describe(error)))
            await say("", more=False)
        except ClientGoneError:
            logger.debug("the client went away")
        finally:
            for generation in self._generations:
                generation.cancel()


async def _unless(work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, NoReturn]) -> T:
    """Returns what ``work`` returns; or raises what the first of ``ends`` raises before, and cancels ``work``."""
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


async def _gone(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGoneError


def _reading(generation: TextGeneration) -> contextlib.aclosing[AsyncGenerator[Delta, None]]:
    """Returns the deltas as a context, so that whoever stops in the middle is forgotten at once."""
    return contextlib.aclosing(cast("AsyncGenerator[Delta, None]", generation.__aiter__()))


def _raise_failure(generation: TextGeneration, ask: Ask) -> None:
    for choice in generation.choices:
        if choice.error is not None:
            raise with_places(choice.error, ask.places)
        if choice.finish_reason == "cancelled":
            raise RequestError(
                "the server is shutting down; ask another one, or later", status=503, code="shutting_down"
            )


def _headers(generations: Sequence[TextGeneration]) -> dict[str, str]:
    """Says who masked the output, and what of the schema the masks do not enforce."""
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


def as_json(body: Any) -> str:
    """Returns compact JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def sse(body: Any, event: str | None = None) -> str:
    """Returns one server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {as_json(body)}\n\n"


def sse_failure(failure: Failure, path: str, ending: str = "") -> str:
    """Returns the error of the dialect served at ``path`` as the last server-sent event but ``ending``."""
    body = error_body(failure, path)
    return sse(body, event="error" if "error_type" in body else None) + ending
