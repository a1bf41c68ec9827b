"""Reasoning in a prompt: how a chat template marks it, and whether the assistant begins with it.

Owns: ``ReasoningPrompts`` and the known marks. Knows nothing about: outputs, grammars, requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapter.text.tokenizer import TextTokenizer

__all__ = ["ReasoningPrompts"]

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
            end: text that ends the reasoning of a model that always begins with it, even against the template.
                None = the end that the template shows; "" = the model does not reason.

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
            raise ValueError(
                f"reasoning_end is {self.end!r}, which has no tokens; give the text that ends the model's reasoning"
            )
        # If a template can only turn reasoning off, its model begins with reasoning by itself.
        self._begins_by_itself = self.end is not None and (
            bool(end) or (self._state_after(_ASK) is None and self._state_after(_ASK, enable_thinking=False) is False)
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> tuple[str, bool]:
        """Returns the prompt, and whether the assistant's reasoning follows it.

        Args:
            messages, tools, variables: see ``TextTokenizer.apply_chat_template``; ``enable_thinking`` is a variable.

        Raises:
            ValueError: the model has no chat template, or the template refuses the messages.
        """
        prompt = str(self._tokenizer.apply_chat_template(messages, tools, **variables))
        if self.end is None:
            return prompt, False
        state = self._state(prompt, messages, tools, variables)
        if state is not None or not self._begins_by_itself or variables.get("enable_thinking") is False:
            return prompt, bool(state)
        # The model would write this mark by itself; in the prompt it is certain.
        return prompt + (f"{self._start}\n" if self._start else ""), True

    def follows(self, prompt: str) -> bool:
        """Whether reasoning follows ``prompt``, a text that the client rendered.

        It does if the text ends with the mark that begins reasoning. If the model begins by itself, it also does unless
        the text ends with the mark that ends reasoning.
        """
        if self.end is None:
            return False
        text = prompt.rstrip()
        return bool(self._start and text.endswith(self._start)) or (
            self._begins_by_itself and not text.endswith(self.end)
        )

    def _state(
        self,
        prompt: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> bool | None:
        """Whether ``prompt`` leaves the assistant within its reasoning; None if it has no mark of reasoning.

        Only the text that the template adds for the assistant counts: any message may have marks in it.
        """
        assert self.end is not None
        without = self._tokenizer.apply_chat_template(messages, tools, add_generation_prompt=False, **variables)
        same = next(
            (at for at, pair in enumerate(zip(prompt, without, strict=False)) if pair[0] != pair[1]), len(without)
        )
        head = prompt[same:]
        begun, ended = head.rfind(self._start) if self._start else -1, head.rfind(self.end)
        return None if begun == ended == -1 else begun > ended

    def _state_after(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> bool | None:
        try:
            prompt = self._tokenizer.apply_chat_template(messages, **variables)
            return self._state(prompt, messages, None, variables)
        except ValueError:  # the template refuses this conversation
            return None
