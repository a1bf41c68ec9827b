"""``POST /v1/responses``, OpenAI's Responses API, without a memory: every request brings its whole conversation.

Owns: the body, the answer and the events of this route.
Knows nothing about: decoding.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.engine.generation import TextGeneration
from engine_adapter.serve.answer import Event, HttpAnswer, sse
from engine_adapter.serve.core import Core
from engine_adapter.serve.dialects.openai import OPENAI, ConversationFields, text_request
from engine_adapter.serve.errors import HttpFailure, RequestError
from engine_adapter.serve.fields.generation import read_format
from engine_adapter.serve.fields.reasoning import plan_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallDelta, CallStart, Content, Part

__all__ = ["responses"]


class ResponseFields(ConversationFields, kw_only=True):
    """The body; fields that are not listed are ignored."""

    input: str | list[Any]
    instructions: str | None = None
    text: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    reasoning: dict[str, Any] | None = None


async def responses(request: Request) -> Response:
    """Serves the route."""
    core: Core = request.app.state.core
    return await core.serve(request, ResponseFields, _ResponsesAnswer)


class _ResponsesAnswer(HttpAnswer):
    dialect = OPENAI

    def __init__(self, core: Core, body: ResponseFields, request: Request) -> None:
        for field in ("previous_response_id", "background"):
            if getattr(body, field):
                message = f"{field} is not supported; nothing is stored here"
                raise RequestError(message, field, code="unsupported_parameter")
        effort = (body.reasoning or {}).get("effort")
        self._plan = plan_of(
            core.engine.prompts,
            _messages(body),
            template_variables(body.chat_template_kwargs, effort, body.enable_thinking, "reasoning.effort"),
            bounded=core.bounded,
            grammar=read_format((body.text or {}).get("format"), "text.format"),
            format_field="text.format",
            tools=body.tools,
            tool_choice=body.tool_choice,
            parallel=body.parallel_tool_calls,
            reasoning_limit=body.reasoning_limit,
        )
        asked = text_request(core, body, self._plan, max_tokens=body.max_output_tokens)
        super().__init__(
            asked,
            is_stream=body.stream,
            error_places=self._plan.error_places,
            field_names={"max_tokens": "max_output_tokens"},
        )
        self._event_count = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._base: dict[str, Any] = {
            "id": "resp_" + secrets.token_hex(12),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model or core.engine.model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": effort, "summary": None},
            "store": False,
            "temperature": asked.sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": asked.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    def whole(self, generations: Sequence[TextGeneration]) -> dict[str, Any]:
        choice = generations[0].choices[0]
        reader = self._plan.read(choice.text)
        is_whole = choice.finish_reason == "stop"
        items = []
        if choice.reasoning is not None:
            items.append(_reasoning(choice.reasoning, choice.reasoning_token_count < len(choice.token_ids)))
        items += [_message(reader.content, is_whole)] if reader.content or not reader.calls else []
        return self._ended([*items, *(_call_item(call) for call in reader.calls)], generations[0])

    def _ended(self, items: Sequence[Mapping[str, Any]], generation: TextGeneration) -> dict[str, Any]:
        is_whole = generation.choices[0].finish_reason == "stop"
        prompt, completion = generation.prompt_tokens, generation.completion_tokens
        return self._base | {
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": items,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": completion,
                "output_tokens_details": {"reasoning_tokens": generation.reasoning_tokens},
                "total_tokens": prompt + completion,
            },
        }

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        yield self._event("response.created", response=self._base)
        yield self._event("response.in_progress", response=self._base)
        reader = self._plan.reader()
        async for _, delta in events:
            for event in self._reason(delta.reasoning):
                yield event
            parts = reader.feed(delta.text)
            if delta.finish_reason is not None:
                parts += reader.finish()
            for part in parts:
                for event in self._part(part):
                    yield event
        for event in self._end(generations[0]):
            yield event

    def failed(self, failure: HttpFailure) -> str:
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        broken = {"status": "failed", "error": {"code": code, "message": failure.message}, "output": self._items}
        return self._event("response.failed", response=self._base | broken)

    def _end(self, generation: TextGeneration) -> list[str]:
        is_whole = generation.choices[0].finish_reason == "stop"
        events = []
        if all(item["type"] == "reasoning" for item in self._items):
            events += self._start(_message("", is_whole) | {"content": []})
        events += self._close(is_whole)
        response = self._ended(self._items, generation)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def _reason(self, text: str) -> list[str]:
        if not text:
            return []
        events = [] if self._open else self._start(_reasoning("", False) | {"status": "in_progress", "content": []})
        assert self._open is not None
        self._open["content"][0]["text"] += text
        return [*events, self._event("response.reasoning_text.delta", **self._place(), content_index=0, delta=text)]

    def _part(self, part: Part) -> list[str]:
        if isinstance(part, Content):
            events = []
            if self._open is None or self._open["type"] != "message":
                events = self._start(_message("", False) | {"status": "in_progress", "content": []})
            assert self._open is not None
            self._open["content"][0]["text"] += part.text
            place = self._place() | {"content_index": 0}
            return [*events, self._event("response.output_text.delta", **place, delta=part.text, logprobs=[])]
        if isinstance(part, CallStart):
            return self._start(_call_item(part.call) | {"status": "in_progress"})
        if isinstance(part, CallDelta):
            assert self._open is not None
            self._open[_value_key(part.call)] = part.call.arguments
            kind = "custom_tool_call_input" if part.call.is_custom else "function_call_arguments"
            return [self._event(f"response.{kind}.delta", **self._place(), delta=part.text)]
        return self._close(part.call.is_complete)

    def _start(self, item: dict[str, Any]) -> list[str]:
        events = self._close(True)
        self._items.append(item)
        self._open = item
        events.append(self._event("response.output_item.added", output_index=len(self._items) - 1, item=item))
        if item["type"] in ("message", "reasoning"):
            part = (_reasoning if item["type"] == "reasoning" else _message)("", False)["content"][0]
            events.append(self._event("response.content_part.added", **self._place(), content_index=0, part=part))
            item["content"] = [part]
        return events

    def _close(self, is_whole: bool) -> list[str]:
        item, place = self._open, self._place() if self._open else {}
        if item is None:
            return []
        item["status"] = "completed" if is_whole else "incomplete"
        events = []
        if item["type"] in ("message", "reasoning"):
            part, place = item["content"][0], place | {"content_index": 0}
            extra: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            events.append(self._event(f"response.{part['type']}.done", **place, text=part["text"], **extra))
            events.append(self._event("response.content_part.done", **place, part=part))
        elif item["type"] == "function_call":
            call = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **place, **call))
        else:
            events.append(self._event("response.custom_tool_call_input.done", **place, input=item["input"]))
        events.append(self._event("response.output_item.done", output_index=len(self._items) - 1, item=item))
        self._open = None
        return events

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: Any) -> str:
        self._event_count += 1
        return sse({"type": kind, "sequence_number": self._event_count - 1, **fields}, event=kind)


def _message(text: str, is_whole: bool) -> dict[str, Any]:
    return {
        "type": "message",
        "id": "msg_" + secrets.token_hex(12),
        "status": "completed" if is_whole else "incomplete",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _reasoning(text: str, is_whole: bool) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "rs_" + secrets.token_hex(12),
        "status": "completed" if is_whole else "incomplete",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def _value_key(call: Call) -> str:
    return "input" if call.is_custom else "arguments"


def _call_item(call: Call) -> dict[str, Any]:
    return {
        "type": "custom_tool_call" if call.is_custom else "function_call",
        "id": "fc_" + secrets.token_hex(12),
        "call_id": call.id,
        "name": call.name,
        _value_key(call): call.arguments,
        "status": "completed" if call.is_complete else "incomplete",
    }


def _messages(body: ResponseFields) -> list[Any]:
    """Returns the input as messages of chat completions."""
    messages: list[Any] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for index, item in enumerate(body.input):
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            messages.append(item)
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item.get("arguments", item.get("input", ""))
            call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            raise RequestError(
                f"input[{index}] is of type {kind!r}; give message, function_call or function_call_output",
                f"input[{index}]",
            )
    return messages
