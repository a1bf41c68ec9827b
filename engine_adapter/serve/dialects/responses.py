"""``POST /v1/responses``, OpenAI's Responses API, without a memory: every request brings its whole conversation.

Owns: the body, the answer and the events of this route. Knows nothing about: how it is decoded.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.engine.generation import TextGeneration, TextRequest
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.serve.core import Ask, Core, Event, sse
from engine_adapter.serve.errors import Failure, RequestError
from engine_adapter.serve.fields.body import CommonFields
from engine_adapter.serve.fields.constraints import backend_of, limits_of, read_format, sampling_of, shape_of
from engine_adapter.serve.fields.conversation import read_messages
from engine_adapter.serve.fields.reasoning import prompt_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallDelta, CallStart, Content, Part, Reader
from engine_adapter.serve.tools.plan import Plan, plan_output, read_tools

__all__ = ["responses"]


class ResponseFields(CommonFields, kw_only=True):
    """The body; fields that are not listed are ignored."""

    input: str | list[Any]
    instructions: str | None = None
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    reasoning: dict[str, Any] | None = None


async def responses(request: Request) -> Response:
    """Serves the route."""
    core: Core = request.app.state.core
    body = await core.read(request, ResponseFields)
    plan, ask = await core.prepare(lambda: _ask(core, body))
    answer = _Answer(core, body, plan, ask.request.sampling)
    return await core.respond(
        request,
        [ask],
        whole=lambda generations: answer.whole(generations[0]),
        pieces=answer.pieces if body.stream else None,
        failed=answer.failed,
    )


def _ask(core: Core, body: ResponseFields) -> tuple[Plan, Ask]:
    for field in ("previous_response_id", "background"):
        if getattr(body, field):
            raise RequestError(f"{field} is not supported; nothing is stored here", field, code="unsupported_parameter")
    backend = backend_of(body)
    tools, grammar = (
        read_tools(body.tools or (), backend),
        read_format((body.text or {}).get("format"), backend, "text.format"),
    )

    def make_plan(behind_reasoning: bool) -> Plan:
        return plan_output(
            tools,
            body.tool_choice,
            parallel=body.parallel_tool_calls,
            grammar=grammar,
            backend=backend,
            bounded=core.bounded,
            behind_reasoning=behind_reasoning,
        )

    effort = (body.reasoning or {}).get("effort")
    variables = template_variables(body.chat_template_kwargs, effort, body.enable_thinking, "reasoning.effort")
    messages = read_messages(_messages(body))
    plan, prompt, reasoning = prompt_of(core.engine.prompts, messages, make_plan, variables, body.reasoning_limit)
    places = {start: "text.format" if field == "response_format" else field for start, field in plan.places.items()}
    request = TextRequest(
        prompt,
        sampling=sampling_of(body, core.engine.model_sampling),
        max_tokens=body.max_output_tokens,
        reasoning=reasoning,
        **limits_of(body),
        **shape_of(body, plan.grammar, core.defaults),
    )
    return plan, Ask(request, places, {"max_tokens": "max_output_tokens"})


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


class _Answer:
    """The answer to one request, whole or in events."""

    def __init__(self, core: Core, body: ResponseFields, plan: Plan, sampling: SamplingParams) -> None:
        self._plan = plan
        self._sequence = 0
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
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    def whole(self, generation: TextGeneration) -> dict[str, Any]:
        """Returns the response."""
        choice = generation.choices[0]
        reader = self._plan.read(choice.text)
        is_whole = choice.finish_reason == "stop"
        items = (
            []
            if choice.reasoning is None
            else [_reasoning(choice.reasoning, choice.reasoning_token_count < len(choice.token_ids))]
        )
        items += [_message(reader.content, is_whole)] if reader.content or not reader.calls else []
        return self._ended([*items, *(_call_item(call) for call in reader.calls)], generation)

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

    # -- events ------------------------------------------------------------------------------------------------------

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """Yields the events."""
        generation = generations[0]
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
        for event in self._end(generation, reader):
            yield event

    def failed(self, failure: Failure) -> str:
        """Returns the event that ends a stream in the middle."""
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        broken = {"status": "failed", "error": {"code": code, "message": failure.message}, "output": self._items}
        return self._event("response.failed", response=self._base | broken)

    def _end(self, generation: TextGeneration, reader: Reader) -> list[str]:
        is_whole = generation.choices[0].finish_reason == "stop"
        events = (
            []
            if any(item["type"] != "reasoning" for item in self._items)
            else self._start(_message("", is_whole) | {"content": []})
        )
        events += self._close(is_whole)
        return [
            *events,
            self._event(
                f"response.{'completed' if is_whole else 'incomplete'}", response=self._ended(self._items, generation)
            ),
        ]

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
        if item["type"] == "message":
            part = item["content"][0]
            events.append(
                self._event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
            )
            events.append(self._event("response.content_part.done", **place, content_index=0, part=part))
        elif item["type"] == "reasoning":
            part = item["content"][0]
            events.append(self._event("response.reasoning_text.done", **place, content_index=0, text=part["text"]))
            events.append(self._event("response.content_part.done", **place, content_index=0, part=part))
        elif item["type"] == "function_call":
            events.append(
                self._event(
                    "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
                )
            )
        else:
            events.append(self._event("response.custom_tool_call_input.done", **place, input=item["input"]))
        events.append(self._event("response.output_item.done", output_index=len(self._items) - 1, item=item))
        self._open = None
        return events

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: Any) -> str:
        self._sequence += 1
        return sse({"type": kind, "sequence_number": self._sequence - 1, **fields}, event=kind)


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
