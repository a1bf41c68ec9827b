"""What a decode loop is asked for, and what comes of it.

Knows nothing about: slots, models, masks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine_adapter.sampler import SamplingParams
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = ["FinishReason", "Generation", "Request"]

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    Attributes:
        prompt: token ids, at least one, fewer than the context length.
        grammar: what the output must match; None = anything.
        sampling: how tokens are drawn.
        max_tokens: the output ends here at the latest.
        on_token: called with every token of the output, on the loop's thread; must be quick and not raise.
    """

    prompt: Sequence[int]
    grammar: GrammarSpec | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    on_token: Callable[[int], None] | None = None


class Generation:
    """The output of one request, growing until it is finished.

    Attributes:
        request: what was asked.
        token_ids: the output so far, without the stop token.
        finish_reason: None while it grows; "stop": a stop token was drawn; "length": ``max_tokens`` or the context is full.
        error: why ``finish_reason`` is "error".
        report: what was said when the grammar was compiled.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.report: GrammarReport | None = None
        self.is_cancelled = False
        self._finished = threading.Event()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until it is finished and says whether it is."""
        return self._finished.wait(timeout_seconds)

    def cancel(self) -> None:
        """Lets the loop end it before its next token."""
        self.is_cancelled = True

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends it; for the loop."""
        self.finish_reason, self.error = reason, error
        self._finished.set()
