"""``POST /v1/chat/completions``, for the clients of OpenAI, LMDeploy, TensorRT-LLM, Groq, Together, Anyscale, vLLM,
SGLang and Mistral.

Mistral's client wants the whole of a call in one delta, with its name and its arguments; all others are sent arguments
as they come.
Owns: the body and the answers of this route. Knows nothing about: how it is decoded.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import Choice, TextGeneration, TextRequest
from engine_adapter.serve.core import Ask, Core, Event, sse, sse_failure
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.fields.body import CommonFields, usage_of
from engine_adapter.serve.fields.constraints import backend_of, constraint_of, limits_of, sampling_of, shape_of
from engine_adapter.serve.fields.conversation import read_messages
from engine_adapter.serve.fields.reasoning import prompt_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallDelta, CallEnd, CallStart, Content, Part, Reader
from engine_adapter.serve.tools.plan import Plan, plan_output, read_tools

__all__ = ["chat_completions"]

MOST_TOP_LOGPROBS = 20


class ChatFields(CommonFields, kw_only=True):
    """The body; fields that are not listed are ignored."""

    messages: list[Any]
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None  # Together gives a number
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None


@dataclass(frozen=True)
class _Answering:
    """What the answers of one request have in common."""

    core: Core
    plan: Plan
    id: str
    created: int
    model: str
    has_logprobs: bool
    whole_calls: bool
    shows_reasoning: bool
    includes_usage: bool

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}


async def chat_completions(request: Request) -> Response:
    """Serves the route."""
    core: Core = request.app.state.core
    body = await core.read(request, ChatFields)
    plan, ask = await core.prepare(lambda: _ask(core, body))
    answering = _Answering(
        core=core,
        plan=plan,
        id="chatcmpl-" + secrets.token_hex(12),
        created=int(time.time()),
        model=body.model or core.engine.model_name,
        has_logprobs=ask.request.logprobs is not None,
        whole_calls=body.tool_choice == "any" or request.headers.get("user-agent", "").startswith("mistral"),
        shows_reasoning=body.include_reasoning is not False,
        includes_usage=bool((body.stream_options or {}).get("include_usage")),
    )
    return await core.respond(
        request,
        [ask],
        whole=lambda generations: _whole(answering, generations[0]),
        pieces=(lambda generations, events: _pieces(answering, generations[0], events)) if body.stream else None,
        failed=lambda failure: sse_failure(failure, request.url.path, "data: [DONE]\n\n"),
    )


def _ask(core: Core, body: ChatFields) -> tuple[Plan, Ask]:
    backend = backend_of(body)
    tools, grammar = read_tools(body.tools or (), backend), constraint_of(body)

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

    plan, prompt, reasoning = prompt_of(
        core.engine.prompts,
        read_messages(body.messages),
        make_plan,
        template_variables(body.chat_template_kwargs, body.reasoning_effort, body.enable_thinking),
        body.reasoning_limit,
    )
    limit, limit_name = body.max_completion_tokens, "max_completion_tokens"
    if limit is None:
        limit, limit_name = body.max_tokens, "max_tokens"
    return plan, Ask(
        TextRequest(
            prompt=prompt,
            sampling=sampling_of(body, core.engine.model_sampling, is_several=(body.n or 1) > 1),
            max_tokens=limit,
            logprobs=_logprobs_wanted(body),
            n=1 if body.n is None else body.n,
            reasoning=reasoning,
            **limits_of(body),
            **shape_of(body, plan.grammar, core.defaults),
        ),
        plan.places,
        {"max_tokens": limit_name},
    )


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


# -- one whole answer ------------------------------------------------------------------------------------------------


def _whole(answering: _Answering, generation: TextGeneration) -> dict[str, Any]:
    return answering.head("chat.completion") | {
        "choices": [_choice(answering, choice) for choice in generation.choices],
        "usage": usage_of([generation]),
    }


def _choice(answering: _Answering, choice: Choice) -> dict[str, Any]:
    reader = answering.plan.read(choice.text)
    message: dict[str, Any] = {"role": "assistant", "content": reader.content, "refusal": None}
    if reader.calls:
        message["content"] = reader.content or None
        message["tool_calls"] = [_call(call) for call in reader.calls]
    if choice.reasoning is not None and answering.shows_reasoning:
        message |= _reasoning(choice.reasoning)
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs(answering.core, (choice.logprobs or ())[choice.reasoning_token_count :])
        if answering.has_logprobs
        else None,
        "finish_reason": _finish_reason(choice.finish_reason, reader),
    }


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


# -- a stream --------------------------------------------------------------------------------------------------------


async def _pieces(
    answering: _Answering, generation: TextGeneration, events: AsyncIterator[Event]
) -> AsyncIterator[str]:
    head = answering.head("chat.completion.chunk")

    def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse(head | {"choices": [choice]} | ({"usage": None} if answering.includes_usage else {}))

    readers = [answering.plan.reader() for _ in generation.choices]
    for index in range(len(readers)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for _, delta in events:
        reader = readers[delta.index]
        parts = reader.feed(delta.text)
        if delta.finish_reason is not None:
            parts += reader.finish()
        if delta.reasoning and answering.shows_reasoning:
            yield chunk(delta.index, _reasoning(delta.reasoning))
        shown = [piece for part in parts for piece in _delta(part, answering.whole_calls)]
        if delta.logprobs and answering.has_logprobs and not delta.is_reasoning:
            shown = shown or [{"content": ""}]
            yield chunk(delta.index, shown.pop(0), logprobs=_logprobs(answering.core, delta.logprobs))
        for piece in shown:
            yield chunk(delta.index, piece)
        if delta.finish_reason is not None:
            yield chunk(delta.index, {}, _finish_reason(delta.finish_reason, reader))
    if answering.includes_usage:
        yield sse(head | {"choices": [], "usage": usage_of([generation])})
    yield "data: [DONE]\n\n"


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
