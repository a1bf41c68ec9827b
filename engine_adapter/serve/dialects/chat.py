"""``POST /v1/chat/completions``, for the clients of OpenAI and of the many servers that speak like it.

Owns: the body and the answers of this route.
Knows nothing about: decoding.

Clients of OpenAI, LMDeploy, TensorRT-LLM, Groq, Together, Anyscale, vLLM, SGLang and Mistral use it. Mistral's client
wants a whole call in one delta; all others are sent arguments as they come.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import Choice, TextGeneration
from engine_adapter.serve.answer import Event, HttpAnswer, sse
from engine_adapter.serve.core import Core
from engine_adapter.serve.dialects.openai import DONE, OPENAI, ConversationFields, text_request
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.fields.body import usage_of
from engine_adapter.serve.fields.generation import grammar_of_fields
from engine_adapter.serve.fields.reasoning import plan_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallDelta, CallEnd, CallStart, Content, Part, Reader

__all__ = ["chat_completions"]

MOST_TOP_LOGPROBS = 20


class ChatFields(ConversationFields, kw_only=True):
    """The body; fields that are not listed are ignored."""

    messages: list[Any]
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None  # Together gives a number
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None


async def chat_completions(request: Request) -> Response:
    """Serves the route."""
    core: Core = request.app.state.core
    return await core.serve(request, ChatFields, _ChatAnswer)


class _ChatAnswer(HttpAnswer):
    dialect = OPENAI

    def __init__(self, core: Core, body: ChatFields, request: Request) -> None:
        self._plan = plan_of(
            core.engine.prompts,
            body.messages,
            template_variables(body.chat_template_kwargs, body.reasoning_effort, body.enable_thinking),
            bounded=core.bounded,
            grammar=grammar_of_fields(body),
            tools=body.tools,
            tool_choice=body.tool_choice,
            parallel=body.parallel_tool_calls,
            reasoning_limit=body.reasoning_limit,
        )
        limit_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        logprobs = _logprobs_wanted(body)
        count = 1 if body.n is None else body.n
        asked = text_request(
            core,
            body,
            self._plan,
            is_several=count > 1,
            n=count,
            max_tokens=getattr(body, limit_name),
            logprobs=logprobs,
        )
        super().__init__(
            asked, is_stream=body.stream, error_places=self._plan.error_places, field_names={"max_tokens": limit_name}
        )
        self._core = core
        self._head = {
            "id": "chatcmpl-" + secrets.token_hex(12),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.model or core.engine.model_name,
            "system_fingerprint": None,
        }
        self._has_logprobs = logprobs is not None
        self._whole_calls = body.tool_choice == "any" or request.headers.get("user-agent", "").startswith("mistral")
        self._shows_reasoning = body.include_reasoning is not False
        self._includes_usage = bool((body.stream_options or {}).get("include_usage"))

    def whole(self, generations: Sequence[TextGeneration]) -> dict[str, Any]:
        choices = [self._choice(choice) for choice in generations[0].choices]
        return self._head | {"choices": choices, "usage": usage_of(generations)}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        reader = self._plan.read(choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": reader.content, "refusal": None}
        if reader.calls:
            message["content"] = reader.content or None
            message["tool_calls"] = [_call(call) for call in reader.calls]
        if choice.reasoning is not None and self._shows_reasoning:
            message |= _reasoning(choice.reasoning)
        logprobs = None
        if self._has_logprobs:
            logprobs = _logprobs(self._core, (choice.logprobs or ())[choice.reasoning_token_count :])
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _finish_reason(choice.finish_reason, reader),
        }

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        head = self._head | {"object": "chat.completion.chunk"}

        def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None) -> str:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return sse(head | {"choices": [choice]} | ({"usage": None} if self._includes_usage else {}))

        readers = [self._plan.reader() for _ in generations[0].choices]
        for index in range(len(readers)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for _, delta in events:
            reader = readers[delta.index]
            parts = reader.feed(delta.text)
            if delta.finish_reason is not None:
                parts += reader.finish()
            if delta.reasoning and self._shows_reasoning:
                yield chunk(delta.index, _reasoning(delta.reasoning))
            shown = [piece for part in parts for piece in _delta(part, self._whole_calls)]
            if delta.logprobs and self._has_logprobs and not delta.is_reasoning:
                shown = shown or [{"content": ""}]
                yield chunk(delta.index, shown.pop(0), logprobs=_logprobs(self._core, delta.logprobs))
            for piece in shown:
                yield chunk(delta.index, piece)
            if delta.finish_reason is not None:
                yield chunk(delta.index, {}, _finish_reason(delta.finish_reason, reader))
        if self._includes_usage:
            yield sse(head | {"choices": [], "usage": usage_of(generations)})
        yield DONE


def _logprobs_wanted(body: ChatFields) -> int | None:
    top = body.top_logprobs
    if not body.logprobs:
        if top:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        return None
    if top is None:
        top = 0 if body.logprobs is True else body.logprobs
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise RequestError(f"top_logprobs is {top}; give 0 to {MOST_TOP_LOGPROBS}", "top_logprobs")
    return top


def _finish_reason(reason: str | None, reader: Reader) -> str | None:
    """Says ``tool_calls`` of an output that ended by itself and has calls."""
    return "tool_calls" if reason == "stop" and reader.calls else reason


def _reasoning(text: str) -> dict[str, str]:
    """Returns it in the spelling of DeepSeek, vLLM and SGLang, and in that of OpenRouter and newer vLLM."""
    return {"reasoning_content": text, "reasoning": text}


def _call(call: Call) -> dict[str, Any]:
    if call.is_custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(core: Core, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any]:
    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        text = core.token_text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        shown(token.token_id, token.logprob)
        | {"top_logprobs": [shown(token_id, logprob) for token_id, logprob in token.top]}
        for token in logprobs or ()
    ]
    return {"content": content, "refusal": None}


def _delta(part: Part, whole_calls: bool) -> list[dict[str, Any]]:
    if isinstance(part, Content):
        return [{"content": part.text}]
    call = part.call
    if whole_calls:
        return [{"tool_calls": [{"index": call.index, **_call(call)}]}] if isinstance(part, CallEnd) else []
    key, value = ("custom", "input") if call.is_custom else ("function", "arguments")
    if isinstance(part, CallStart):
        kind = "custom" if call.is_custom else "function"
        return [
            {"tool_calls": [{"index": call.index, "id": call.id, "type": kind, key: {"name": call.name, value: ""}}]}
        ]
    if isinstance(part, CallDelta):
        return [{"tool_calls": [{"index": call.index, key: {value: part.text}}]}]
    return []
