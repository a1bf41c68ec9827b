"""Examples, and how a conversation becomes text: the chat template of ``tokenizer_config.json``, in Python.

Owns: ``Example``, ``segments``, the spellings of JSON.
Knows nothing about: what is said, tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "END_OF_REASONING",
    "Example",
    "Judge",
    "Message",
    "assistant",
    "call",
    "segments",
    "spell",
    "system",
    "user",
]

Json = Any
Message = Mapping[str, Any]
Judge = Literal["text", "json", "calls", "shape"]

END_OF_REASONING = "</think>"
"""Ends the reasoning of an assistant that was asked to think first. A piece of its own, so that its tokens are always
the same."""

_THINK = "<think>\n"
_STYLES: tuple[tuple[int | None, tuple[str, str]], ...] = (
    (None, (", ", ": ")),
    (None, (",", ":")),
    (2, (",", ": ")),
    (4, (",", ": ")),
)


@dataclass(frozen=True)
class Example:
    """A conversation whose assistant turns are to be learnt; the last one is the answer that ``evaluate`` asks for.

    Attributes:
        task: what the accuracy is reported under.
        messages: in OpenAI's form; the last is the assistant's. An assistant's message may have ``reasoning_content``,
            said before the content. It may have ``given``, a start of the content that is not to be learnt; it may be
            empty. With ``given`` no blank line follows the reasoning: a mask that begins there may allow none.
        tools: function tools in OpenAI's form.
        grammar: (kind, source) as in ``maskd.grammar.GrammarSpec``; None = free text.
        judge: "text", the answer must be equal; "json", equal once parsed, fences removed; "calls", equal function
            calls; "shape", any answer of the schema ``grammar`` whose strings hold something.
    """

    task: str
    messages: Sequence[Message]
    tools: Sequence[Json] = ()
    grammar: tuple[str, str] | None = None
    judge: Judge = "text"

    @property
    def prompt(self) -> Sequence[Message]:
        """What the model is given."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """What the model should say, reasoning left out."""
        return str(self.messages[-1]["content"])

    @property
    def thinks(self) -> bool:
        """Whether the answer begins with reasoning."""
        return "reasoning_content" in self.messages[-1]


def segments(
    messages: Sequence[Message],
    tools: Sequence[Json] = (),
    *,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> list[tuple[str, bool]]:
    """Returns the text of a conversation in pieces, and for each whether the assistant says it (its end mark included).

    Each piece is turned into tokens by itself. With ``enable_thinking`` the generation prompt asks for reasoning first;
    the reasoning of earlier messages is left out, as the chat template does.
    """
    pieces: list[tuple[str, bool]] = []
    if tools and (not messages or messages[0]["role"] != "system"):
        messages = [system(""), *messages]
    for index, message in enumerate(messages):
        content = message["content"]
        if index == 0 and tools:
            lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
            content = "\n".join(
                [content + "\n" if content else "", "Functions:", *lines, "Call: <function=NAME>{...}</function>"]
            ).lstrip("\n")
        if message["role"] != "assistant":
            pieces.append((f"<|im_start|>{message['role']}\n{content}<|im_end|>\n", False))
            continue
        reasoning = message.get("reasoning_content") if message is messages[-1] else None
        pieces.append((f"<|im_start|>assistant\n{_THINK if reasoning else ''}", False))
        if reasoning:
            pieces += [(f"{reasoning}\n", True), (END_OF_REASONING, True)]
        if "given" in message:
            pieces.append((message["given"], False))
        elif reasoning:
            pieces.append(("\n\n", True))
        pieces += [(f"{content}<|im_end|>", True), ("\n", False)]
    if add_generation_prompt:
        pieces.append((f"<|im_start|>assistant\n{_THINK if enable_thinking else ''}", False))
    return pieces


def system(content: str) -> Message:
    """Returns a system message."""
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    """Returns a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Returns an assistant's message."""
    return {"role": "assistant", "content": content}


def call(function: str, arguments: Mapping[str, Json]) -> str:
    """Returns the text of a function call, the way Llama 3.1 writes it."""
    return f"<function={function}>{json.dumps(arguments, ensure_ascii=False)}</function>"


def spell(value: Json, rng: random.Random | None = None) -> str:
    """Returns ``value`` as JSON: with Python's spaces, or with ``rng`` now and then compact or on many lines."""
    indent, separators = _STYLES[0] if rng is None else rng.choices(_STYLES, (14, 3, 2, 1))[0]
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
