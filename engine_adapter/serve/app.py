"""The application: the handler and the dialect of each route, and what holds for all of them.

Owns: routes and their aliases, health, metrics, answers to requests that no route takes.
Knows nothing about: sockets, flags.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine_adapter.engine import Engine
from engine_adapter.serve.core import Core
from engine_adapter.serve.dialects import lorax, models, ollama
from engine_adapter.serve.dialects.chat import chat_completions
from engine_adapter.serve.dialects.completions import completions
from engine_adapter.serve.dialects.lorax import LORAX
from engine_adapter.serve.dialects.ollama import OLLAMA
from engine_adapter.serve.dialects.openai import OPENAI
from engine_adapter.serve.dialects.responses import responses
from engine_adapter.serve.errors import Dialect, RequestError, error_response
from engine_adapter.serve.fields.body import Defaults
from engine_adapter.serve.metrics import Metrics
from engine_adapter.serve.stream import ClientGoneError
from maskd.grammar import PropertyOrder

__all__ = ["create_app"]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_OPENAI_ROOTS = ("/v1", "/openai/v1")  # the second is Groq's


def create_app(
    engine: Engine,
    *,
    bounded: bool = False,
    close_before_budget: bool = True,
    max_whitespace: int | None = 32,
    property_order: PropertyOrder = "schema",
    body_bytes: int = 4 << 20,
    body_seconds: float = 60.0,
) -> Starlette:
    """Returns the application over ``engine``, which the caller closes.

    Args:
        engine: makes the outputs.
        bounded: whether the engine narrows JSON schemas; then the schemas of tools are narrowed as well.
        close_before_budget: for requests that do not say whether JSON is to be closed before the token limit.
        max_whitespace: for requests that do not say how much white space may stand between two JSON tokens; None = any.
        property_order: for requests that do not say in which order the properties of an object come.
        body_bytes: longest body; more is answered with 413.
        body_seconds: how long a body may take to arrive; more is answered with 408.
    """
    metrics = Metrics(engine.stats)
    routes = [
        *(
            Route(root + path, guarded(handler, OPENAI), methods=[method])
            for root in _OPENAI_ROOTS
            for method, path, handler in _OPENAI
        ),
        *(Route(path, guarded(handler, LORAX), methods=["POST"]) for path, handler in _LORAX.items()),
        Route("/api/chat", guarded(ollama.chat, OLLAMA), methods=["POST"]),
        Route("/api/generate", guarded(ollama.generate, OLLAMA), methods=["POST"]),
        Route("/api/tags", ollama.tags, methods=["GET"]),
        Route("/api/version", ollama.version, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", show_metrics, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    app.state.core = Core(
        engine,
        metrics,
        bounded=bounded,
        defaults=Defaults(close_before_budget, max_whitespace, property_order),
        body_bytes=body_bytes,
        body_seconds=body_seconds,
        created=int(time.time()),
    )
    app.add_middleware(_Counting, metrics=metrics, paths=frozenset(route.path for route in routes))
    return app


def guarded(handler: Handler, dialect: Dialect) -> Handler:
    """Returns a handler that answers every error of ``handler`` in ``dialect``."""

    async def answer(request: Request) -> Response:
        core: Core = request.app.state.core
        try:
            return await core.unless_ended(handler(request))
        except (ClientGoneError, ClientDisconnect):
            return Response(status_code=499)  # not read by the client; nginx' status for it, for the metrics
        except Exception as error:
            return error_response(dialect, error)

    return answer


async def health(request: Request) -> Response:
    """Says whether the decode loop works: 503 after a turn that failed, until one goes well.

    The loop tries again by itself. If it goes on failing, a device is gone, and the process should be started again.
    """
    core: Core = request.app.state.core
    if core.engine.failure is not None:
        return JSONResponse({"status": "failing", "reason": str(core.engine.failure)}, 503)
    stats = core.engine.stats()
    return JSONResponse(
        {"status": "ok", "model": core.engine.model_name, "running": stats.running, "waiting": stats.waiting}
    )


async def show_metrics(request: Request) -> Response:
    """Returns the metrics in Prometheus' text format."""
    core: Core = request.app.state.core
    return Response(core.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def refused(request: Request, error: Exception) -> Response:
    """Answers requests that no route takes."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    dialect = OLLAMA if path.startswith("/api/") else LORAX if path in _LORAX else OPENAI
    unknown = RequestError(f"{request.method} {path}: {error.detail}", status=error.status_code, code="unknown_route")
    response = error_response(dialect, unknown)
    response.headers.update(error.headers or {})
    return response


_LORAX: dict[str, Handler] = {
    "/": lorax.generate_list,
    "/generate": lorax.generate,
    "/generate_stream": lorax.generate_stream,
}
_OPENAI: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/chat/completions", chat_completions),
    ("POST", "/completions", completions),
    ("POST", "/responses", responses),
    ("GET", "/models", models.list_models),
    ("GET", "/models/{name:path}", models.show_model),
)


class _Counting:
    """Counts answers per route. Pure ASGI, so that streams pass as they come."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(route, status, time.monotonic() - started)
