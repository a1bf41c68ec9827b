"""``GET /v1/models`` and ``GET /v1/models/{id}``: the one model there is.

Owns: the card of the model, with the fields that OpenAI's and Mistral's clients read.
Knows nothing about: requests that generate. They may name any model, so that a client runs without a change.

Together's client before version 3 wants a bare list of cards, and is known by its user agent. Later ones ask elsewhere.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine_adapter.serve.core import Core
from engine_adapter.serve.errors import RequestError

__all__ = ["list_models", "show_model"]


async def list_models(request: Request) -> Response:
    """Serves ``/v1/models``."""
    card = _card(request.app.state.core)
    if request.headers.get("user-agent", "").startswith(("Together/", "AsyncTogether/")):
        return JSONResponse([card | {"type": "chat", "pricing": {}}])
    return JSONResponse({"object": "list", "data": [card]})


async def show_model(request: Request) -> Response:
    """Serves ``/v1/models/{id}``."""
    core: Core = request.app.state.core
    name = request.path_params["name"]
    if name != core.engine.model_name:
        raise RequestError(
            f"there is no model {name!r}; there is {core.engine.model_name!r}",
            "model",
            status=404,
            code="model_not_found",
        )
    return JSONResponse(_card(core))


def _card(core: Core) -> dict[str, Any]:
    return {
        "id": core.engine.model_name,
        "object": "model",
        "created": core.created,
        "owned_by": "maskd",
        "type": "base",
        "capabilities": {
            "completion_chat": True,
            "completion_fim": False,
            "function_calling": True,
            "fine_tuning": False,
            "vision": False,
        },
        "max_context_length": core.engine.context_length,
    }
