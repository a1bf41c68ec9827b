"""What a decode loop is asked for, and its output.

Owns: ``Request`` and ``Generation``. Knows nothing about: slots, models, text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from engine_adapter.sampling.banned_words import BannedWords
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.steering.base import Steering
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = ["EngineFault", "FinishReason", "Generation", "Request", "TokenLogprobs"]

FinishReason = Literal["stop", "length", "cancelled", "error"]


class EngineFault(RuntimeError):
    """An output ended because the engine failed, not because of what was asked; asking again may help."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely one token was, in the distribution after the mask and before penalties and temperature.

    Attributes:
        token_id: the token.
        logprob: the natural logarithm of its probability.
        top: (token id, logprob) of the most likely tokens, likeliest first, without those that the mask forbids.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    Attributes:
        prompt: token ids, at least one, fewer than the context length.
        grammar: what the output must match; None = anything.
        sampling: how tokens are drawn.
        max_tokens: most tokens of the output.
        min_tokens: no stop token is drawn before so many tokens, unless the grammar allows nothing else.
        stop_token_ids: end the output, besides those of the model or the grammar.
        banned_words: the output has none of these, unless the grammar allows nothing else.
        logprobs: record ``Generation.logprobs`` with so many most likely tokens each; None = do not.
        steering: of this request only.
        on_token: called with the output after every token, on the loop's thread. True ends the output. Must be quick.
        on_finish: called once, after ``finish_reason`` was set, on any thread. Must be quick and not raise.
    """

    prompt: Sequence[int]
    grammar: GrammarSpec | None = None
    _: KW_ONLY
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    banned_words: BannedWords | None = None
    logprobs: int | None = None
    steering: Steering | None = None
    on_token: Callable[[Generation], bool] | None = None
    on_finish: Callable[[Generation], None] | None = None


class Generation:
    """The output of one request, growing until it is finished.

    Attributes:
        request: what was asked.
        token_ids: the output so far, without the stop token.
        logprobs: one per token, if the request asks for them.
        finish_reason: None while it grows. "stop": a stop token was drawn, or ``on_token`` returned True.
            "length": ``max_tokens`` are there, or the context is full.
        error: why ``finish_reason`` is "error".
        report: what the daemon said when it compiled the grammar.
        is_cancelled: whether ``cancel`` was called.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.report: GrammarReport | None = None
        self.is_cancelled = False
        self._finished = threading.Event()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the output is finished; returns whether it is."""
        return self._finished.wait(timeout_seconds)

    def cancel(self) -> None:
        """Lets the loop end the output before its next token."""
        self.is_cancelled = True

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends the output; for the loop. Calls ``on_finish``."""
        self.finish_reason, self.error = reason, error
        self._finished.set()
        if self.request.on_finish is not None:
            self.request.on_finish(self)
