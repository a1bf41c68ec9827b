"""Reasoning before the answer: how a model marks it, whether a prompt asks for it, and where in an output it ends.

The end is looked for among token ids, as the daemon's gate does, so that an answer begins where its grammar does.
Owns: what chat templates say about reasoning, the search for its end, the steering that ends it or waits for it.
Knows nothing about: grammars, requests, how text is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_adapter.request import Steering
from engine_adapter.tokenizer import TextTokenizer

__all__ = ["AfterReasoning", "EndReasoning", "ReasoningEnd", "ReasoningPrompts"]

_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_ASK: tuple[Mapping[str, str], ...] = ({"role": "user", "content": "?"},)


class ReasoningPrompts:
    """Renders conversations, and says whether the assistant begins with reasoning.

    Attributes:
        end: text that ends the reasoning; None = the model has none.
        end_token_ids: its tokens.
    """

    def __init__(self, tokenizer: TextTokenizer, end: str | None = None) -> None:
        """Asks the chat template of ``tokenizer`` how the model reasons.

        Args:
            tokenizer: of the model.
            end: text that ends the reasoning of a model that always begins with it, whatever the template says; None = what the
                template says; "" = none.

        Raises:
            ValueError: ``end`` has no tokens.
        """
        self._tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        start, found = next((marks for marks in _MARKS if any(mark in template for mark in marks)), ("", None))
        self.end = found if end is None else end or None
        self._start = next((first for first, last in _MARKS if last == self.end), "" if end else start)
        self.end_token_ids = tuple(tokenizer.encode_piece(self.end)) if self.end is not None else ()
        if self.end is not None and not self.end_token_ids:
            raise ValueError(f"reasoning_end is {self.end!r}, which has no tokens; give the text that ends the model's reasoning")
        # A template that can only turn reasoning off is that of a model that begins with it by itself.
        self._begins_by_itself = self.end is not None and (
            bool(end) or (self._state_after(_ASK) is None and self._state_after(_ASK, enable_thinking=False) is False)
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> tuple[str, bool]:
        """Returns the prompt, and whether what follows it is reasoning, up to its end.

        Args:
            messages, tools, variables: see ``TextTokenizer.apply_chat_template``; ``enable_thinking`` is a variable.

        Raises:
            ValueError: see there.
        """
        prompt = str(self._tokenizer.apply_chat_template(messages, tools, **variables))
        if self.end is None:
            return prompt, False
        state = self._state(prompt, messages, tools, variables)
        if state is not None or not self._begins_by_itself or variables.get("enable_thinking") is False:
            return prompt, bool(state)
        # The model would begin with this by itself; standing in the prompt it is certain.
        return prompt + (f"{self._start}\n" if self._start else ""), True

    def follows(self, prompt: str) -> bool:
        """Says whether what follows ``prompt``, a text that somebody else rendered, is reasoning: it ends with the mark that begins it,
        or the model begins by itself and nothing has ended it."""
        if self.end is None:
            return False
        text = prompt.rstrip()
        return bool(self._start and text.endswith(self._start)) or (self._begins_by_itself and not text.endswith(self.end))

    def _state(
        self, prompt: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, variables: Mapping[str, Any]
    ) -> bool | None:
        """Says whether ``prompt`` leaves the assistant within its reasoning, has ended it (False), or does not speak of it (None).

        Only what the template adds for the assistant is looked at: anybody may write marks into a message.
        """
        assert self.end is not None
        without = self._tokenizer.apply_chat_template(messages, tools, add_generation_prompt=False, **variables)
        same = next((at for at, pair in enumerate(zip(prompt, without, strict=False)) if pair[0] != pair[1]), len(without))
        head = prompt[same:]
        begun, ended = head.rfind(self._start) if self._start else -1, head.rfind(self.end)
        return None if begun == ended == -1 else begun > ended

    def _state_after(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> bool | None:
        try:
            prompt = self._tokenizer.apply_chat_template(messages, **variables)
            return self._state(prompt, messages, None, variables)
        except ValueError:  # a template that does not take this conversation shows nothing
            return None


class ReasoningEnd:
    """Looks for the end of the reasoning in one output.

    Attributes:
        is_over: all end tokens were accepted.
        matched: end tokens that stand at the end of the output so far.
    """

    def __init__(self, end_token_ids: Sequence[int]) -> None:
        self.is_over = False
        self.matched = 0
        self.end_token_ids = list(end_token_ids)
        self._held: list[int] = []

    def accept(self, token_id: int) -> list[int]:
        """Takes the next token; returns those that are certain to be reasoning. End tokens are none."""
        self._held.append(token_id)
        end = self.end_token_ids
        self.matched = next(
            size for size in range(min(len(end), len(self._held)), -1, -1) if self._held[len(self._held) - size :] == end[:size]
        )
        self.is_over = self.matched == len(end)
        certain = self._held[: len(self._held) - self.matched]
        self._held = self._held[len(certain) :]
        return certain

    def finish(self) -> list[int]:
        """Takes the end of an output that stopped within its reasoning; returns what was held back."""
        held, self._held = self._held, []
        return [] if self.is_over else held


class AfterReasoning:
    """A steering that begins when the reasoning is over. See ``request.Steering``."""

    def __init__(self, inner: Steering, end_token_ids: Sequence[int]) -> None:
        self._inner = inner
        self._end = ReasoningEnd(end_token_ids)

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """See ``Steering.choose``."""
        return self._inner.choose(row, drawn, remaining) if self._end.is_over else None

    def accept(self, token_id: int) -> None:
        """See ``Steering.accept``."""
        if self._end.is_over:
            self._inner.accept(token_id)
        else:
            self._end.accept(token_id)


class EndReasoning:
    """Ends the reasoning of an output without a grammar after so many tokens; with a grammar the daemon's gate does. See ``Steering``."""

    def __init__(self, end_token_ids: Sequence[int], max_tokens: int) -> None:
        self._end = ReasoningEnd(end_token_ids)
        self._left = max_tokens

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        """See ``Steering.choose``."""
        return None if self._end.is_over or self._left > 0 else self._end.end_token_ids[self._end.matched]

    def accept(self, token_id: int) -> None:
        """See ``Steering.accept``."""
        if not self._end.is_over:
            self._left -= 1
            self._end.accept(token_id)
