"""A request in terms of text, and its outputs, which readers on threads and event loops follow while they grow.

Owns: ``TextRequest``, ``Choice``, ``Delta``, ``TextGeneration`` and how readers wait.
Knows nothing about: the loop, how tokens become text.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

from engine_adapter.decoding.request import FinishReason, TokenLogprobs
from engine_adapter.sampling.params import SamplingParams
from maskd.grammar import GrammarReport, GrammarSpec, WhenSlow

__all__ = ["Choice", "Delta", "Reasoning", "TextGeneration", "TextRequest"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An output begins with reasoning.

    Attributes:
        max_tokens: most tokens of the reasoning; None = until the model ends it.
    """

    max_tokens: int | None = None


@dataclass(frozen=True)
class TextRequest:
    """What to generate.

    Attributes:
        prompt: text, or token ids.
        grammar: what every output must match; None = anything.
        sampling: how tokens are drawn. Output i uses seed + i.
        max_tokens: of each output; None = as many as the context has room for.
        min_tokens: no output ends by itself before so many tokens, unless its grammar allows nothing else.
        stop: an output ends before the first of these texts. Those within the first ``min_tokens`` do not count.
        stop_token_ids: end an output, besides the model's own.
        banned_words: no output has any of these, unless its grammar allows nothing else.
        banned_token_ids: the same for tokens.
        logprobs: report every token's log probability and those of so many most likely tokens; None = none. They are
            of the distribution after the mask, before penalties and temperature. Forbidden tokens have none.
        n: number of outputs.
        best_of: generate so many outputs; ``TextGeneration.best`` gives the ``n`` likeliest. None = ``n``.
        close_before_budget: with a grammar, end the output whole before ``max_tokens`` cuts it: see ``steering``.
        when_slow: "wait", "fail" or "switch", see ``GrammarSpec``; None = the engine's setting.
        ignore_special: leave special tokens out of the text.
        reasoning: the prompt ends within the assistant's reasoning, and the grammar begins behind the reasoning's end.
            None = no reasoning.
    """

    prompt: str | Sequence[int]
    grammar: GrammarSpec | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    _: KW_ONLY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1
    close_before_budget: bool = False
    ignore_special: bool = True
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    banned_words: tuple[str, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    when_slow: WhenSlow | None = None
    best_of: int | None = None
    reasoning: Reasoning | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are recorded: for the caller, or to find the best outputs."""
        return self.logprobs is not None or self.output_count > self.n

    @property
    def output_count(self) -> int:
        """How many outputs are generated."""
        return self.n if self.best_of is None else self.best_of


@dataclass
class Choice:
    """One output, growing until ``finish_reason`` is set.

    Attributes:
        index: 0 to n - 1.
        text: without the stop string, and without the reasoning.
        token_ids: all tokens but the stop token, those of reasoning and stop string included.
        logprobs: one per token id; None unless asked for.
        finish_reason: "stop": complete, or ended by a stop string; "length": the budget or the context is used up.
        error: why ``finish_reason`` is "error": a ``GrammarError``, or another.
        stop_string: the stop string that ended it, if one did.
        reasoning: its text; None if there is to be none.
        reasoning_token_count: how many of ``token_ids`` are of the reasoning and its end.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    stop_string: str | None = None
    reasoning: str | None = None
    reasoning_token_count: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one output.

    Attributes:
        index: of the output.
        text: may be empty: half a character, or what may begin a stop string.
        token_ids: may be empty in the last delta.
        logprobs: one per token id; None unless asked for.
        finish_reason: set in the last delta of an output, and only there.
        reasoning: more of its text.
        is_reasoning: whether its tokens are of the reasoning, or of its end.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    _: KW_ONLY
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    is_reasoning: bool = False


class TextGeneration:
    """The outputs of one request.

    Iterating, also with ``async for``, yields every ``Delta`` from the first on, to every reader. Iteration ends when
    all outputs have ended. It raises no error of an output: ``choices[i].error`` has that, ``result`` raises it.

    Attributes:
        request: what was asked.
        choices: the outputs, in order.
        prompt_tokens: length of the prompt.
        report: what the daemon said about the grammar; None without one, or before it is compiled.
    """

    def __init__(self, request: TextRequest, prompt_tokens: int, cancel: Callable[[], None]) -> None:
        """For the engine, which also calls ``push``. ``cancel`` tells the loop."""
        self.request = request
        reasons = request.reasoning is not None
        self.choices = [
            Choice(index, logprobs=[] if request.wants_logprobs else None, reasoning="" if reasons else None)
            for index in range(request.output_count)
        ]
        self.prompt_tokens = prompt_tokens
        self.report: GrammarReport | None = None
        self._cancel = cancel
        self._deltas: list[Delta] = []
        self._growth = threading.Condition()
        self._unfinished = request.output_count
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def is_finished(self) -> bool:
        """Whether every output has ended."""
        return self._unfinished == 0

    @property
    def completion_tokens(self) -> int:
        """Tokens of all outputs so far."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def best(self) -> list[Choice]:
        """The ``n`` outputs whose tokens have the highest mean log probability, likeliest first.

        For finished outputs. They are numbered anew, and have log probabilities only if those were asked for.
        """
        if self.request.output_count == self.request.n:
            return self.choices
        best = sorted(self.choices, key=_mean_logprob, reverse=True)[: self.request.n]
        shown = self.request.logprobs is not None
        return [
            dataclasses.replace(choice, index=index, logprobs=choice.logprobs if shown else None)
            for index, choice in enumerate(best)
        ]

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning of all outputs so far."""
        return sum(choice.reasoning_token_count for choice in self.choices)

    def cancel(self) -> None:
        """Ends unfinished outputs within a turn of the loop, and frees their slots and sequences. Safe to repeat."""
        self._cancel()

    def result(self, timeout_seconds: float | None = None) -> list[Choice]:
        """Waits for the end and returns the outputs.

        Raises:
            TimeoutError: not finished in time; the outputs go on. Others: the error of the first failed output.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._growth:
            while self._unfinished:
                left = None if deadline is None else deadline - time.monotonic()
                if not self._growth.wait(left) and self._unfinished:
                    raise TimeoutError(f"not finished after {timeout_seconds} s")
        for choice in self.choices:
            if choice.error is not None:
                raise choice.error
        return self.choices

    def __iter__(self) -> Iterator[Delta]:
        position = 0
        while True:
            with self._growth:
                while position == len(self._deltas):
                    if not self._unfinished:
                        return
                    self._growth.wait()
                fresh = self._deltas[position:]
            yield from fresh
            position += len(fresh)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        position = 0
        grown = asyncio.Event()
        me = (asyncio.get_running_loop(), grown)
        with self._growth:
            self._waiting.append(me)
        try:
            while True:
                grown.clear()
                finished = self.is_finished  # read before the deltas: the last delta comes first
                fresh = self._deltas[position:]
                for delta in fresh:
                    yield delta
                position += len(fresh)
                if not fresh:
                    if finished:
                        return
                    await grown.wait()
        finally:
            with self._growth:
                self._waiting.remove(me)

    def push(self, delta: Delta) -> None:
        """Adds ``delta``, which ``choices`` shows already, and wakes all readers; for the engine."""
        with self._growth:
            self._deltas.append(delta)
            if delta.finish_reason is not None:
                self._unfinished -= 1
            self._growth.notify_all()
            for loop, grown in self._waiting:
                with contextlib.suppress(RuntimeError):  # its event loop is closed, and the reader with it
                    loop.call_soon_threadsafe(grown.set)


def _mean_logprob(choice: Choice) -> float:
    """Returns the mean over the tokens of ``choice``; an empty output comes last."""
    logprobs = [token.logprob for token in choice.logprobs or ()]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
