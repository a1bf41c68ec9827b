"""Ollama's routes: ``POST /api/chat``, ``POST /api/generate``, ``GET /api/tags``, ``GET /api/version``. Streams are one
JSON object a line.

Arguments of a call are an object there, so a call is sent when it is whole.
Owns: the bodies and the answers of these routes. Knows nothing about: how it is decoded.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import maskd
from engine_adapter.engine.generation import Reasoning, TextGeneration, TextRequest
from engine_adapter.serve.core import Ask, Core, Event, as_json
from engine_adapter.serve.errors import Failure, error_body
from engine_adapter.serve.fields.body import OwnFields
from engine_adapter.serve.fields.constraints import read_format, sampling, shape_of, stop_strings
from engine_adapter.serve.fields.conversation import read_messages
from engine_adapter.serve.fields.reasoning import prompt_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallEnd, Content
from engine_adapter.serve.tools.plan import Plan, plan_output, read_tools

__all__ = ["chat", "generate", "tags", "version"]


_NAMES = {"max_tokens": "num_predict"}


class OllamaOptions(msgspec.Struct, kw_only=True):
    """``options``; those that are not listed are ignored, as they concern how Ollama loads a model."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class OllamaFields(OwnFields, kw_only=True):
    """What both bodies have."""

    model: str = ""
    stream: bool = True
    format: Any = None
    options: OllamaOptions | None = None
    tools: list[Any] | None = None
    think: bool | str | None = None


class OllamaChatFields(OllamaFields, kw_only=True):
    """The body of ``/api/chat``."""

    messages: list[Any]


class OllamaGenerateFields(OllamaFields, kw_only=True):
    """The body of ``/api/generate``."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False


async def chat(request: Request) -> Response:
    """Serves ``/api/chat``."""
    core: Core = request.app.state.core
    body = await core.read(request, OllamaChatFields)

    def prepare() -> tuple[Plan, Ask]:
        backend = body.guided_decoding_backend or "auto"
        tools, grammar = read_tools(body.tools or (), backend), read_format(body.format, backend, "format")
        plan, prompt, reasoning = prompt_of(
            core.engine.prompts,
            read_messages(body.messages),
            lambda _: plan_output(tools, None, parallel=None, grammar=grammar, backend=backend, bounded=core.bounded),
            _variables(body),
        )
        places = {start: "format" if field == "response_format" else field for start, field in plan.places.items()}
        return plan, Ask(_text_request(core, body, prompt, plan, reasoning), places, _NAMES)

    plan, ask = await core.prepare(prepare)
    return await _answer(
        request, core, body, plan, ask, lambda text: {"message": {"role": "assistant", "content": text}}
    )


async def generate(request: Request) -> Response:
    """Serves ``/api/generate``."""
    core: Core = request.app.state.core
    body = await core.read(request, OllamaGenerateFields)
    plan = Plan(read_format(body.format, body.guided_decoding_backend or "auto", "format"))

    def prepare() -> Ask:
        prompt, reasoning = body.prompt, None
        if not body.raw:
            system = [{"role": "system", "content": body.system}] if body.system else []
            messages = [*system, {"role": "user", "content": body.prompt}]
            _, prompt, reasoning = prompt_of(core.engine.prompts, messages, lambda _: plan, _variables(body))
        return Ask(_text_request(core, body, prompt, plan, reasoning), {"": "format"}, _NAMES)

    return await _answer(request, core, body, plan, await core.prepare(prepare), lambda text: {"response": text})


def _variables(body: OllamaFields) -> dict[str, Any]:
    if isinstance(body.think, str):
        return template_variables(None, body.think, None, "think")
    return template_variables(None, None, body.think)


def _text_request(core: Core, body: OllamaFields, prompt: str, plan: Plan, reasoning: Reasoning | None) -> TextRequest:
    options = body.options or OllamaOptions()
    limit = options.num_predict
    return TextRequest(
        prompt=prompt,
        sampling=sampling(
            core.engine.model_sampling,
            names={"repetition_penalty": "repeat_penalty"},
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=options.seed,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            repetition_penalty=options.repeat_penalty,
            typical_p=options.typical_p,
        ),
        max_tokens=None if limit is None or limit < 0 else limit,  # -1: no limit, -2: fill the context
        stop=stop_strings(options.stop),
        reasoning=reasoning,
        **shape_of(body, plan.grammar, core.defaults),
    )


async def _answer(request: Request, core: Core, body: OllamaFields, plan: Plan, ask: Ask, shape: Any) -> Response:
    started = time.monotonic_ns()
    model = body.model or core.engine.model_name

    def line(part: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": model, "created_at": _now(), **part, "done": False, **more}

    def last(generation: TextGeneration, part: Mapping[str, Any]) -> dict[str, Any]:
        took = time.monotonic_ns() - started
        return line(
            part,
            done=True,
            done_reason="stop" if generation.choices[0].finish_reason == "stop" else "length",
            total_duration=took,
            load_duration=0,
            prompt_eval_count=generation.prompt_tokens,
            prompt_eval_duration=0,
            eval_count=generation.completion_tokens,
            eval_duration=took,
        )

    def thought(part: dict[str, Any], text: str | None) -> dict[str, Any]:
        """Puts the reasoning into a message, or beside a response."""
        if text:
            (part.get("message") or part)["thinking"] = text
        return part

    def whole(generations: Sequence[TextGeneration]) -> dict[str, Any]:
        reader = plan.read(generations[0].choices[0].text)
        part = shape(reader.content + "".join(call.arguments for call in reader.calls if not _is_whole(call)))
        calls = [_call(call) for call in reader.calls if _is_whole(call)]
        if calls:
            part["message"]["tool_calls"] = calls
        return last(generations[0], thought(part, generations[0].choices[0].reasoning))

    async def pieces(generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        reader = plan.reader()
        async for _, delta in events:
            if delta.reasoning:
                yield as_json(line(thought(shape(""), delta.reasoning))) + "\n"
            parts = reader.feed(delta.text)
            if delta.finish_reason is not None:
                parts += reader.finish()
            for part in parts:
                if isinstance(part, Content):
                    yield as_json(line(shape(part.text))) + "\n"
                elif isinstance(part, CallEnd) and _is_whole(part.call):
                    yield (
                        as_json(
                            line({"message": {"role": "assistant", "content": "", "tool_calls": [_call(part.call)]}})
                        )
                        + "\n"
                    )
                elif isinstance(part, CallEnd):  # cut by the limit: no object, so it is shown as text
                    yield as_json(line(shape(part.call.arguments))) + "\n"
        yield as_json(last(generations[0], shape(""))) + "\n"

    def failed(failure: Failure) -> str:
        return as_json(error_body(failure, request.url.path)) + "\n"

    return await core.respond(
        request,
        [ask],
        whole=whole,
        pieces=pieces if body.stream else None,
        failed=failed,
        media_type="application/x-ndjson",
    )


def _is_whole(call: Call) -> bool:
    return call.is_complete and not call.is_custom


def _call(call: Call) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


async def tags(request: Request) -> Response:
    """Serves ``/api/tags``."""
    core: Core = request.app.state.core
    name = core.engine.model_name
    when = datetime.datetime.fromtimestamp(core.created, datetime.timezone.utc).isoformat().replace("+00:00", "Z")
    details = {
        "parent_model": "",
        "format": "safetensors",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }
    model = {"name": name, "model": name, "modified_at": when, "size": 0, "digest": "", "details": details}
    return JSONResponse({"models": [model]})


async def version(request: Request) -> Response:
    """Serves ``/api/version``."""
    return JSONResponse({"version": maskd.__version__})
