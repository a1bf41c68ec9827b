"""What went wrong, as each dialect says it.

Owns: ``RequestError``, the status and the words of every error that leaves the server, and the three shapes of an error
    body.
A grammar that is wrong is the client's error (4xx), because clients repeat whatever is 5xx; the message of an error
that nobody expected stays in the log. Knows nothing about: routes, engines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from engine_adapter.decoding.request import EngineFault
from engine_adapter.structured_output.response_format import ResponseFormatError
from maskd.errors import (
    CapacityError,
    DeadlineError,
    DrainingError,
    GrammarError,
    InvalidRequestError,
    MaskdError,
    UnavailableError,
)

__all__ = ["Failure", "RequestError", "describe", "error_body", "error_response", "with_names", "with_places"]

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1
_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
}
_TYPES |= {408: "timeout", 429: "rate_limit_error", 503: "service_unavailable", 504: "timeout"}
_ENGINE_FIELDS = ("max_tokens", "min_tokens", "logit_bias", "stop_token_ids", "logprobs", "best_of", "n")
"""Fields that only the engine can check; its messages begin with them."""
_LORAX_TYPES = {429: "overloaded", 503: "overloaded", 500: "generation", 504: "generation"}


class RequestError(Exception):
    """A request that cannot be served as it is.

    Args:
        message: what is wrong and what to do.
        param: the field, as OpenAI's ``error.param`` names it.
        status: of the answer.
        code: a word for programs.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True)
class Failure:
    """An error, ready to be put into a body."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_seconds: float | None = None

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer."""
        if self.status == 408:
            return {"Connection": "close"}  # what is left of the body may still come
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after_seconds)))}


def describe(error: Exception) -> Failure:
    """Returns what is said about ``error``. One that nobody expected is logged, and its text stays here."""
    if isinstance(error, RequestError):
        return Failure(error.status, error.message, error.param, error.code)
    if isinstance(error, ResponseFormatError):
        return Failure(400, f"response_format: {error}", f"response_format.{error.field}", "response_format_invalid")
    if isinstance(error, MaskdError):
        return _of_maskd(error)
    if isinstance(error, EngineFault):
        return Failure(500, str(error), code="engine_failed")
    retry_after = getattr(error, "retry_after_seconds", None)
    if retry_after is not None:
        return Failure(429, str(error), code="queue_full", retry_after_seconds=float(retry_after))
    if isinstance(error, ValueError):
        return Failure(400, str(error), code="invalid_value")
    if isinstance(error, RecursionError):
        return Failure(400, "the body is nested too deeply; flatten it", code="nested_too_deeply")
    logger.error("request failed: %r", error, exc_info=error)
    return Failure(500, "the server failed; its log says more", code="internal")


def _of_maskd(error: MaskdError) -> Failure:
    code = error.reason.lower()
    if isinstance(error, GrammarError):
        pointer = error.metadata.get("pointer")
        param = error.metadata.get("param") or (
            f"response_format#{pointer}" if pointer is not None else "response_format"
        )
        shown = f" (at {pointer})" if pointer and pointer not in error.message else ""
        return Failure(400, error.message + shown, param, code)
    if isinstance(error, InvalidRequestError):
        return Failure(400, error.message, error.metadata.get("field"), code)
    if isinstance(error, CapacityError):
        return Failure(429, error.message, code=code, retry_after_seconds=_RETRY_SECONDS)
    if isinstance(error, UnavailableError | DrainingError):
        return Failure(503, f"the mask service is away: {error.message}", code=code, retry_after_seconds=_RETRY_SECONDS)
    if isinstance(error, DeadlineError):
        return Failure(504, error.message, code=code)
    logger.error("request failed: %r", error, exc_info=error)
    return Failure(500, error.message, code=code)


def with_places(error: Exception, places: Mapping[str, str]) -> Exception:
    """Returns ``error`` with the field of the request that it is about.

    Args:
        error: if it is a ``GrammarError`` with a pointer, the pointer is looked up; any other is returned as it is.
        places: beginning of a pointer into the grammar's source to the field where the client wrote it.
    """
    if not isinstance(error, GrammarError):
        return error
    pointer = error.metadata.get("pointer", "")
    for start, field in sorted(places.items(), key=lambda place: -len(place[0])):
        if pointer.startswith(start):
            rest = pointer[len(start) :]
            param = f"{field}#{rest}" if "pointer" in error.metadata else field
            message = error.message if not rest or rest in error.message else f"{error.message} (at {rest})"
            return type(error)(message, **{**error.metadata, "pointer": rest or None, "param": param})
    return error


def with_names(error: ValueError, names: Mapping[str, str]) -> RequestError:
    """Returns ``error``, whose message begins with the name of a field, in the words of a dialect.

    Args:
        error: of the engine.
        names: the engine's name of a field to that of the body.
    """
    engine_name, _, rest = str(error).partition(" ")
    name = names.get(engine_name) or (engine_name if engine_name in _ENGINE_FIELDS else None)
    return RequestError(str(error) if name is None else f"{name} {rest}", name, code="invalid_value")


# -- bodies ----------------------------------------------------------------------------------------------------------


def error_body(failure: Failure, path: str) -> dict[str, Any]:
    """Returns the body that clients of the dialect served at ``path`` read."""
    if path.startswith("/api/"):
        return {"error": failure.message}
    if path in ("/", "/generate", "/generate_stream"):
        return {"error": failure.message, "error_type": _LORAX_TYPES.get(failure.status, "validation")}
    return {"error": {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}}


def error_response(request: Request, error: Exception) -> JSONResponse:
    """Returns the whole answer to a request that failed before anything was sent."""
    failure = describe(error)
    return JSONResponse(error_body(failure, request.url.path), failure.status, failure.headers)
