"""Messages of every dialect to those that chat templates take: ``role``, ``content`` as text, ``tool_calls``.

Owns: reading and checking messages.
Knows nothing about: templates, engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapter.serve.errors import RequestError

__all__ = ["as_text", "read_messages"]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_TYPES = ("text", "input_text", "output_text")


def read_messages(given: Sequence[Any]) -> list[dict[str, Any]]:
    """Reads the ``messages`` of a body.

    Raises:
        RequestError: none, an unknown role, content that is not text.
    """
    if not given:
        raise RequestError("messages is empty; give at least one", "messages")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(given)]


def _read_message(given: Any, param: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RequestError(f"{param} is not an object", param)
    role = given.get("role")
    if role not in _ROLES:
        raise RequestError(f"{param}.role is {role!r}; give one of {', '.join(_ROLES)}", f"{param}.role")
    message: dict[str, Any] = {
        "role": "tool" if role == "function" else role,
        "content": as_text(given.get("content"), f"{param}.content"),
    }
    if given.get("images"):
        raise RequestError(f"{param}.images: the model reads text only", f"{param}.images")
    for key in ("name", "tool_call_id"):
        if given.get(key) is not None:
            message[key] = given[key]
    # templates know the first name only, and decide whether a prompt has the text
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(text := given.get(key), str) and text:
            message["reasoning_content"] = text
            break
    calls = given.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise RequestError(f"{param}.tool_calls is not a list", f"{param}.tool_calls")
        message["tool_calls"] = [_read_call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return message


def _read_call(given: Any, param: str) -> dict[str, Any]:
    kind = given.get("type") or "function" if isinstance(given, Mapping) else None
    inner = given.get(kind) if isinstance(given, Mapping) and isinstance(kind, str) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise RequestError(f"{param} has no function with a name", param)
    arguments = inner.get("arguments", inner.get("input", ""))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": str(given.get("id") or ""), "type": "function", "function": {"name": name, "arguments": arguments}}


def as_text(content: Any, param: str) -> str:
    """Returns the text of a message's content: a string, nothing, or a list of text parts.

    Raises:
        RequestError: something else, for instance an image.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{param} is neither a string nor a list of parts", param)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else part
        if (kind not in (*_TEXT_TYPES, "refusal") and not isinstance(part, str)) or not isinstance(text, str):
            raise RequestError(f"{param}[{index}] is of type {kind!r}; the model reads text only", f"{param}[{index}]")
        texts.append(text)
    return "".join(texts)
