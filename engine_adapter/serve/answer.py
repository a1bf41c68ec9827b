"""What a route makes of one body: requests to the engine, and an answer from what comes of them.

Owns: ``HttpAnswer``, which every route that generates has a kind of, and how JSON is written into streams.
Knows nothing about: sockets, the engine's life, any dialect.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from engine_adapter.engine.generation import Delta, TextGeneration, TextRequest
from engine_adapter.serve.errors import Dialect, HttpFailure

__all__ = ["Event", "HttpAnswer", "as_json", "sse"]

Event = tuple[int, Delta]
"""Index of a request, and what one step added to one of its outputs."""


class HttpAnswer(ABC):
    """The answer to one body. Making it reads the body; what is wrong in it is raised then.

    Attributes:
        dialect: how the clients read errors.
        media_type: of a stream.
        requests: what the engine generates for the answer.
        is_stream: whether the client wants pieces.
        error_places: see ``errors.located``; "" alone = the grammar stands in one field.
        field_names: see ``errors.renamed``.
    """

    dialect: ClassVar[Dialect]
    media_type: ClassVar[str] = "text/event-stream"

    def __init__(
        self,
        *requests: TextRequest,
        is_stream: bool | None,
        error_places: Mapping[str, str],
        field_names: Mapping[str, str] | None = None,
    ) -> None:
        self.requests, self.is_stream = requests, bool(is_stream)
        self.error_places, self.field_names = error_places, field_names or {}

    @abstractmethod
    def whole(self, generations: Sequence[TextGeneration]) -> Any:
        """Returns the JSON body; ``generations`` are finished, one for each request."""

    @abstractmethod
    def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """Yields the pieces of a stream while ``generations`` grow by ``events``."""

    def failed(self, failure: HttpFailure) -> str:
        """Returns the end of a stream that failed after it began."""
        return self.dialect.stream_error(failure)


def as_json(body: Any) -> str:
    """Returns compact JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def sse(body: Any, event: str | None = None) -> str:
    """Returns one server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {as_json(body)}\n\n"
