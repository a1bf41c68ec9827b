"""What went wrong, as clients read it.

Owns: ``RequestError``, status and words of every error that leaves the server, and what a dialect adds (``Dialect``).
Knows nothing about: routes, the shape of a body.

A wrong grammar is the client's error (4xx), because clients repeat a request that gets a 5xx. The text of an unexpected
error stays in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from engine_adapter.decoding.request import EngineFault
from engine_adapter.engine import QueueFullError
from engine_adapter.sampling.params import FieldError
from maskd.errors import (
    CapacityError,
    DeadlineError,
    DrainingError,
    GrammarError,
    InvalidRequestError,
    MaskdError,
    UnavailableError,
)

__all__ = ["Dialect", "HttpFailure", "RequestError", "describe", "error_response", "located", "renamed"]

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1
_TYPES = {408: "timeout", 429: "rate_limit_error", 503: "service_unavailable", 504: "timeout"}


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
class HttpFailure:
    """An error with its HTTP status, before a dialect gives it a shape."""

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
            return {"Connection": "close"}  # the rest of the body may still arrive
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after_seconds)))}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How the clients of some routes read errors.

    Attributes:
        error_body: makes the body of an answer that failed.
        stream_error: makes the end of a stream that failed after it began.
    """

    error_body: Callable[[HttpFailure], dict[str, Any]]
    stream_error: Callable[[HttpFailure], str]


def describe(error: Exception) -> HttpFailure:
    """Returns what the client is told about ``error``. An unexpected error is logged, and its text is not sent."""
    if isinstance(error, RequestError):
        return HttpFailure(error.status, error.message, error.param, error.code)
    if isinstance(error, FieldError):
        return HttpFailure(400, str(error), error.field, "invalid_value")
    if isinstance(error, MaskdError):
        return _of_maskd(error)
    if isinstance(error, EngineFault):
        return HttpFailure(500, str(error), code="engine_failed")
    if isinstance(error, QueueFullError):
        return HttpFailure(429, str(error), code="queue_full", retry_after_seconds=error.retry_after_seconds)
    if isinstance(error, ValueError):
        return HttpFailure(400, str(error), code="invalid_value")
    if isinstance(error, RecursionError):
        return HttpFailure(400, "the body is nested too deeply; flatten it", code="nested_too_deeply")
    logger.error("request failed: %r", error, exc_info=error)
    return HttpFailure(500, "the server failed; its log says more", code="internal")


def _of_maskd(error: MaskdError) -> HttpFailure:
    code = error.reason.lower()
    if isinstance(error, GrammarError | InvalidRequestError):
        return HttpFailure(400, error.message, error.metadata.get("field"), code)
    if isinstance(error, CapacityError):
        return HttpFailure(429, error.message, code=code, retry_after_seconds=_RETRY_SECONDS)
    if isinstance(error, UnavailableError | DrainingError):
        message = f"the mask service is away: {error.message}"
        return HttpFailure(503, message, code=code, retry_after_seconds=_RETRY_SECONDS)
    if isinstance(error, DeadlineError):
        return HttpFailure(504, error.message, code=code)
    logger.error("request failed: %r", error, exc_info=error)
    return HttpFailure(500, error.message, code=code)


def located(error: Exception, error_places: Mapping[str, str]) -> Exception:
    """Returns ``error`` with the field of the body that it is about, where it is a ``GrammarError``.

    Args:
        error: of an output.
        error_places: beginning of a JSON pointer into the grammar's source to the field where the client wrote that
            part. The longest beginning counts.
    """
    if not isinstance(error, GrammarError):
        return error
    pointer = error.metadata.get("pointer", "")
    starts = [start for start in error_places if pointer.startswith(start)]
    if not starts:
        return error
    start = max(starts, key=len)
    rest = pointer[len(start) :]
    param = f"{error_places[start]}#{rest}" if "pointer" in error.metadata else error_places[start]
    message = error.message if rest in error.message else f"{error.message} (at {rest})"
    return RequestError(message, param, code=error.reason.lower())


@contextmanager
def renamed(field_names: Mapping[str, str]) -> Iterator[None]:
    """Raises a ``FieldError`` from within as one about the field of the body.

    Args:
        field_names: the engine's name of a field to that of the body, where they differ.
    """
    try:
        yield
    except FieldError as error:
        raise FieldError(field_names.get(error.field, error.field), error.complaint) from error


def error_response(dialect: Dialect, error: Exception) -> JSONResponse:
    """Returns the whole answer to a request that failed before anything was sent."""
    failure = describe(error)
    return JSONResponse(dialect.error_body(failure), failure.status, failure.headers)
