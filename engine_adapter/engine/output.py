"""One output on its way to its readers: tokens become reasoning and text, and stop strings end the text.

Owns: the callbacks of a ``Request``. Knows nothing about: the loop, the readers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine_adapter.decoding.request import Generation
from engine_adapter.engine.generation import Choice, Delta, TextGeneration
from engine_adapter.steering.reasoning import ReasoningEnd
from engine_adapter.text.stream import TextStream
from maskd.vocabulary import Vocabulary

__all__ = ["Output"]

# kinds of grammars that allow the blank lines which follow reasoning
_FREE_KINDS = (None, "structural_tag")


class Output:
    """Keeps one choice of ``outputs`` up to date. Its methods are the callbacks of a ``Request``."""

    def __init__(
        self,
        outputs: TextGeneration,
        choice: Choice,
        vocabulary: Vocabulary,
        *,
        end_token_ids: Sequence[int],
        when_finished: Callable[[Choice, float], None],
    ) -> None:
        """Follows one of ``outputs``.

        Args:
            outputs: of the request.
            choice: the output.
            vocabulary: of the model.
            end_token_ids: end the reasoning, if the request says that the output begins with one.
            when_finished: called with the choice and its seconds, waiting included, before readers hear of the end.
        """
        request = outputs.request
        self._outputs = outputs
        self._choice = choice
        self._tokens = vocabulary.tokens
        self._silent = frozenset(vocabulary.special_token_ids) if request.ignore_special else frozenset()
        self._end = None if request.reasoning is None else ReasoningEnd(end_token_ids)
        self._reasoning = TextStream(skip_space=True)
        self._space = ""  # white space that is shown only if more reasoning follows
        kind = None if request.grammar is None else request.grammar.kind
        self._stream = TextStream(request.stop, skip_space=self._end is not None and kind in _FREE_KINDS)
        self._when_finished = when_finished
        self._started = time.monotonic()

    def on_token(self, generation: Generation) -> bool:
        """Passes on the last token of ``generation``; returns whether a stop string is complete."""
        choice, token_id = self._choice, generation.token_ids[-1]
        text = reasoning = ""
        is_reasoning = self._end is not None and not self._end.is_over
        if self._end is not None and is_reasoning:
            reasoning = self._reason(self._end.accept(token_id))
            choice.reasoning_token_count += 1
        elif (piece := self._bytes(token_id)) is not None:
            text = self._stream.feed(piece, may_stop=len(generation.token_ids) > self._outputs.request.min_tokens)
        self._outputs.report = generation.report
        choice.token_ids.append(token_id)
        choice.text = self._stream.text
        logprobs = None
        if choice.logprobs is not None:
            logprobs = (generation.logprobs[-1],)
            choice.logprobs += logprobs
        self._outputs.push(
            Delta(
                choice.index,
                text,
                (token_id,),
                logprobs=logprobs,
                reasoning=reasoning,
                is_reasoning=is_reasoning,
            )
        )
        return self._stream.stop_string is not None

    def on_finish(self, generation: Generation) -> None:
        """Passes on how the output ended, and the text that was held back."""
        choice = self._choice
        reasoning = rest = ""
        choice.finish_reason, choice.error = generation.finish_reason, generation.error
        self._outputs.report = generation.report
        try:
            reasoning = "" if self._end is None else self._reason(self._end.finish())
            rest = self._stream.finish()
            choice.text, choice.stop_string = self._stream.text, self._stream.stop_string
            # the last bytes may have completed a stop string
            if choice.stop_string is not None:
                choice.finish_reason = "stop"
        except Exception as error:  # of any kind: readers wait for the end
            choice.finish_reason, choice.error = "error", error
        self._when_finished(choice, time.monotonic() - self._started)
        self._outputs.push(Delta(choice.index, rest, (), finish_reason=choice.finish_reason, reasoning=reasoning))

    def _bytes(self, token_id: int) -> bytes | None:
        return None if token_id in self._silent or token_id >= len(self._tokens) else self._tokens[token_id]

    def _reason(self, token_ids: Sequence[int]) -> str:
        """Adds tokens to the reasoning; returns the text that is certain to belong to it."""
        pieces = [self._reasoning.feed(piece) for token_id in token_ids if (piece := self._bytes(token_id)) is not None]
        text = self._space + "".join(pieces)
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._choice.reasoning = (self._choice.reasoning or "") + shown
        return shown
