"""One output on its way from the loop to its readers: tokens become text, stop strings end it.

Owns: what the loop's callbacks do. Knows nothing about: the loop, who reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine_adapter.generation import Choice, Delta, TextGeneration
from engine_adapter.request import Generation
from engine_adapter.text import TextStream
from maskd.vocabulary import Vocabulary

__all__ = ["Output"]


class Output:
    """Keeps one choice of ``outputs`` up to date. Its methods are the callbacks of a ``Request``."""

    def __init__(
        self, outputs: TextGeneration, choice: Choice, vocabulary: Vocabulary, when_finished: Callable[[Choice, float], None]
    ) -> None:
        """``when_finished`` is called with the choice and how many seconds it took, waiting included, before readers hear of the end."""
        self._outputs = outputs
        self._choice = choice
        self._tokens = vocabulary.tokens
        self._silent = frozenset(vocabulary.special_token_ids) if outputs.request.ignore_special else frozenset()
        self._stream = TextStream(outputs.request.stop)
        self._when_finished = when_finished
        self._started = time.monotonic()

    def on_token(self, generation: Generation) -> bool:
        """Passes on the last token of ``generation``; returns whether a stop string is complete."""
        token_id = generation.token_ids[-1]
        text = ""
        if token_id not in self._silent and token_id < len(self._tokens):
            may_stop = len(generation.token_ids) > self._outputs.request.min_tokens
            text = self._stream.feed(self._tokens[token_id], may_stop=may_stop)
        self._outputs.report = generation.report
        self._choice.token_ids.append(token_id)
        self._choice.text = self._stream.text
        logprobs = None
        if self._choice.logprobs is not None:
            logprobs = (generation.logprobs[-1],)
            self._choice.logprobs += logprobs
        self._outputs.push(Delta(self._choice.index, text, (token_id,), logprobs))
        return self._stream.stop_string is not None

    def on_finish(self, generation: Generation) -> None:
        """Passes on the end, and the text that was held back."""
        choice = self._choice
        rest = self._stream.finish()
        choice.text, choice.stop_string = self._stream.text, self._stream.stop_string
        choice.error = generation.error
        # What was held back may be a stop string after all, complete only with the last bytes.
        choice.finish_reason = "stop" if choice.stop_string is not None else generation.finish_reason
        self._outputs.report = generation.report
        self._when_finished(choice, time.monotonic() - self._started)
        self._outputs.push(Delta(choice.index, rest, (), finish_reason=choice.finish_reason))
