"""Text to token ids and back, and the chat template: the parts of a model directory that are about text.

Chat templates are found by Hugging Face's convention: ``chat_template.jinja``, or ``chat_template`` in
``tokenizer_config.json``. The transformers library runs them in jinja's sandbox.
Owns: ``TextTokenizer``. Knows nothing about: requests, networks, grammars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

__all__ = ["TextTokenizer"]

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TextTokenizer:
    """The tokenizer of one model. Thread-safe.

    Attributes:
        chat_template: source of the default chat template; None = the model has none.
    """

    def __init__(self, tokenizer: Tokenizer, directory: Path) -> None:
        """Wraps ``tokenizer``; reads the chat template from ``directory``, if there is one."""
        self._tokenizer = tokenizer
        config = _read_json(directory / "tokenizer_config.json")
        self._special = {name: text for name in _SPECIAL_NAMES if (text := _content(config.get(name))) is not None}
        self._templates = _templates(config.get("chat_template"))
        own_file = directory / "chat_template.jinja"
        if own_file.exists():
            self._templates["default"] = own_file.read_text(encoding="utf-8")
        self.chat_template = self._templates.get("default")
        self._bos_id: int | None = (
            tokenizer.token_to_id(self._special["bos_token"]) if "bos_token" in self._special else None
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text``, with one beginning-of-text token even if text and tokenizer both have it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        doubled = self._bos_id is not None and ids[:2] == [self._bos_id] * 2
        return ids[1:] if doubled else ids

    def encode_piece(self, text: str) -> list[int]:
        """Returns the ids of ``text`` within other text: without beginning and end tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of ``token_ids``, without special tokens. Raises ValueError: no such id."""
        try:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        except (OverflowError, TypeError) as error:
            raise ValueError(f"token ids have one that can be none: {error}") from None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> Any:
        """Returns the prompt of a conversation: a string, or with ``tokenize`` a list of ids.

        Args:
            messages: mappings with ``role`` and ``content``.
            tools: the functions that the model may call, in OpenAI's form.
            tokenize: return ids instead of text.
            add_generation_prompt: end with the head of the assistant's turn.
            variables: for the template, for instance ``enable_thinking``.

        Raises:
            ValueError: the model has no chat template, or the template refuses the messages.
        """
        template = self._templates.get("tool_use" if tools and "tool_use" in self._templates else "default")
        if template is None:
            raise ValueError("the model has no chat template; give a prompt as text")
        try:
            rendered, _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=None if tools is None else [dict(tool) for tool in tools],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **{**self._special, **variables},
            )
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refused the messages: {error}") from error
        return self.encode(rendered[0]) if tokenize else rendered[0]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _templates(given: Any) -> dict[str, str]:
    """Reads a template, or a list of named ones."""
    if isinstance(given, str):
        return {"default": given}
    return {str(entry["name"]): str(entry["template"]) for entry in given or ()}
