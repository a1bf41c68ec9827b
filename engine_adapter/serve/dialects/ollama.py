"""Ollama's routes: ``POST /api/chat``, ``POST /api/generate``, ``GET /api/tags``, ``GET /api/version``.

Owns: the bodies and the answers of these routes.
Knows nothing about: decoding.

A stream has one JSON object a line. The arguments of a call are an object, so a call is sent when it is whole.
"""

from __future__ import annotations

import datetime
import json
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import maskd
from engine_adapter.engine.generation import TextGeneration, TextRequest
from engine_adapter.serve.answer import Event, HttpAnswer, as_json
from engine_adapter.serve.core import Core
from engine_adapter.serve.errors import Dialect, HttpFailure, renamed
from engine_adapter.serve.fields.body import OwnFields
from engine_adapter.serve.fields.generation import read_format, sampling, shape_of, stop_strings
from engine_adapter.serve.fields.reasoning import plan_of, template_variables
from engine_adapter.serve.tools.calls import Call, CallEnd, Content
from engine_adapter.serve.tools.plan import Plan

__all__ = ["OLLAMA", "chat", "generate", "tags", "version"]

_NAMES = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}


def _error_body(failure: HttpFailure) -> dict[str, Any]:
    return {"error": failure.message}


OLLAMA = Dialect(error_body=_error_body, stream_error=lambda failure: as_json(_error_body(failure)) + "\n")


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
    return await core.serve(request, OllamaChatFields, _ChatAnswer)


async def generate(request: Request) -> Response:
    """Serves ``/api/generate``."""
    core: Core = request.app.state.core
    return await core.serve(request, OllamaGenerateFields, _GenerateAnswer)


class _OllamaAnswer(HttpAnswer):
    """What both answers have in common."""

    dialect = OLLAMA
    media_type = "application/x-ndjson"

    def __init__(self, core: Core, body: OllamaFields, plan: Plan) -> None:
        with renamed(_NAMES):
            asked = _text_request(core, body, plan)
        super().__init__(asked, is_stream=body.stream, error_places=plan.error_places, field_names=_NAMES)
        self._plan = plan
        self._started = time.monotonic_ns()
        self._model = body.model or core.engine.model_name

    @abstractmethod
    def _part(self, text: str, *, reasoning: str | None = None, calls: Sequence[Call] = ()) -> dict[str, Any]:
        """Returns the fields of a line that say something."""

    def whole(self, generations: Sequence[TextGeneration]) -> dict[str, Any]:
        choice = generations[0].choices[0]
        reader = self._plan.read(choice.text)
        cut = "".join(call.arguments for call in reader.calls if not _is_whole(call))
        calls = [call for call in reader.calls if _is_whole(call)]
        return self._last(generations[0], self._part(reader.content + cut, reasoning=choice.reasoning, calls=calls))

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        reader = self._plan.reader()
        async for _, delta in events:
            if delta.reasoning:
                yield self._line(self._part("", reasoning=delta.reasoning))
            parts = reader.feed(delta.text)
            if delta.finish_reason is not None:
                parts += reader.finish()
            for part in parts:
                if isinstance(part, Content):
                    yield self._line(self._part(part.text))
                elif isinstance(part, CallEnd) and _is_whole(part.call):
                    yield self._line(self._part("", calls=[part.call]))
                elif isinstance(part, CallEnd):  # the limit cut it, so it is no object and shown as text
                    yield self._line(self._part(part.call.arguments))
        yield as_json(self._last(generations[0], self._part(""))) + "\n"

    def _line(self, part: Mapping[str, Any]) -> str:
        return as_json(self._body(part, done=False)) + "\n"

    def _body(self, part: Mapping[str, Any], *, done: bool, **more: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": _now(), **part, "done": done, **more}

    def _last(self, generation: TextGeneration, part: Mapping[str, Any]) -> dict[str, Any]:
        took = time.monotonic_ns() - self._started
        return self._body(
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


class _ChatAnswer(_OllamaAnswer):
    def __init__(self, core: Core, body: OllamaChatFields, request: Request) -> None:
        super().__init__(core, body, _plan(core, body, body.messages, tools=body.tools))

    def _part(self, text: str, *, reasoning: str | None = None, calls: Sequence[Call] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        if reasoning:
            message["thinking"] = reasoning
        return {"message": message}


class _GenerateAnswer(_OllamaAnswer):
    def __init__(self, core: Core, body: OllamaGenerateFields, request: Request) -> None:
        if body.raw:
            plan = Plan(read_format(body.format, "format"), {"": "format"}, prompt=body.prompt)
        else:
            system = [{"role": "system", "content": body.system}] if body.system else []
            plan = _plan(core, body, [*system, {"role": "user", "content": body.prompt}])
        super().__init__(core, body, plan)

    def _part(self, text: str, *, reasoning: str | None = None, calls: Sequence[Call] = ()) -> dict[str, Any]:
        return {"response": text} | ({"thinking": reasoning} if reasoning else {})


def _plan(core: Core, body: OllamaFields, messages: Sequence[Any], *, tools: Sequence[Any] | None = None) -> Plan:
    if isinstance(body.think, str):
        variables = template_variables(None, body.think, None, "think")
    else:
        variables = template_variables(None, None, body.think)
    return plan_of(
        core.engine.prompts,
        messages,
        variables,
        bounded=core.bounded,
        grammar=read_format(body.format, "format"),
        format_field="format",
        tools=tools,
    )


def _text_request(core: Core, body: OllamaFields, plan: Plan) -> TextRequest:
    options = body.options or OllamaOptions()
    limit = options.num_predict
    return TextRequest(
        prompt=plan.prompt,
        sampling=sampling(core.engine.model_sampling, options, repetition_penalty=options.repeat_penalty),
        max_tokens=None if limit is None or limit < 0 else limit,  # -1: no limit, -2: fill the context
        stop=stop_strings(options.stop),
        reasoning=plan.reasoning,
        **shape_of(body, plan.grammar, core.defaults),
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
