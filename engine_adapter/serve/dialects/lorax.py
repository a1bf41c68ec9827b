"""LoRAX's routes: ``POST /generate``, ``POST /generate_stream``, and ``POST /``, which answers with a list.

Owns: the body and the answers of these routes.
Knows nothing about: decoding.

LoRAX's client calls ``/``. It cannot read OpenAI's ``[DONE]``, so a stream ends with its last event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import Choice, Reasoning, TextGeneration, TextRequest
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.serve.answer import Event, HttpAnswer, sse
from engine_adapter.serve.core import MOST_CHOICES, Core
from engine_adapter.serve.errors import Dialect, HttpFailure, RequestError
from engine_adapter.serve.fields.body import OwnFields
from engine_adapter.serve.fields.generation import read_format, sampling, shape_of, stop_strings

__all__ = ["LORAX", "generate", "generate_list", "generate_stream"]

ANY_OBJECT = {
    "type": "object",
    "title": "ArbitraryJsonModel",
    "additionalProperties": {"type": ["object", "string", "integer", "number", "boolean", "null"]},
}
"""What LoRAX means by ``json_object`` without a schema (router/src/lib.rs): values may be anything but arrays."""
_ERROR_TYPES = {429: "overloaded", 503: "overloaded", 500: "generation", 504: "generation"}


def _error_body(failure: HttpFailure) -> dict[str, Any]:
    return {"error": failure.message, "error_type": _ERROR_TYPES.get(failure.status, "validation")}


LORAX = Dialect(error_body=_error_body, stream_error=lambda failure: sse(_error_body(failure), event="error"))


class LoraxParameters(OwnFields, kw_only=True):
    """``parameters`` of the body; those that are not listed (adapters among them) are ignored."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    best_of: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    response_format: dict[str, Any] | None = None
    apply_chat_template: bool | None = None


class LoraxFields(msgspec.Struct, kw_only=True):
    """The body."""

    inputs: str
    parameters: LoraxParameters = msgspec.field(default_factory=LoraxParameters)
    stream: bool = False


async def _serve(request: Request, *, is_list: bool = False, is_stream: bool | None = None) -> Response:
    core: Core = request.app.state.core
    return await core.serve(request, LoraxFields, partial(_LoraxAnswer, is_list=is_list, is_stream=is_stream))


generate_list = partial(_serve, is_list=True)
"""Serves ``/``: a list of one answer, or a stream if the body asks for it."""
generate = partial(_serve, is_stream=False)
"""Serves ``/generate``."""
generate_stream = partial(_serve, is_stream=True)
"""Serves ``/generate_stream``."""


class _LoraxAnswer(HttpAnswer):
    dialect = LORAX

    def __init__(
        self, core: Core, body: LoraxFields, request: Request, *, is_list: bool, is_stream: bool | None
    ) -> None:
        parameters = body.parameters
        prompt, reasons = body.inputs, False
        if parameters.apply_chat_template:
            messages = [{"role": "user", "content": body.inputs}]
            prompt, reasons = core.engine.prompts.render(messages, enable_thinking=False)
        is_stream = body.stream if is_stream is None else is_stream
        super().__init__(
            _text_request(core, parameters, prompt, reasons, is_stream),
            is_stream=is_stream,
            error_places={"": "parameters.response_format"},
            field_names={"max_tokens": "max_new_tokens"},
        )
        self._core, self._parameters, self._is_list = core, parameters, is_list
        self._before = body.inputs if parameters.return_full_text else ""
        self._prompt_ids = core.engine.tokenizer.encode(prompt) if parameters.decoder_input_details else []

    def whole(self, generations: Sequence[TextGeneration]) -> Any:
        choice = generations[0].best[0]
        answer: dict[str, Any] = {"generated_text": self._before + choice.text}
        if self._parameters.details:
            text_of = self._core.token_text
            answer["details"] = self._details(generations[0], choice) | {
                "prefill": [{"id": each, "text": text_of(each), "logprob": None} for each in self._prompt_ids],
                "tokens": [self._token(token) for token in choice.logprobs or ()],
            }
        return [answer] if self._is_list else answer

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        held: dict[str, Any] | None = None
        async for _, delta in events:
            for token in delta.logprobs or ():
                if held is not None:
                    yield sse(held)
                held = {"token": self._token(token), "generated_text": None, "details": None}
        choice = generations[0].choices[0]
        last = held or {"token": {"id": 0, "text": "", "logprob": 0.0, "special": True}}
        details = self._details(generations[0], choice)
        yield sse(last | {"generated_text": self._before + choice.text, "details": details})

    def _details(self, generation: TextGeneration, choice: Choice) -> dict[str, Any]:
        reason = "length"
        if choice.stop_string is not None:
            reason = "stop_sequence"
        elif choice.finish_reason == "stop":
            reason = "eos_token"
        return {
            "finish_reason": reason,
            "prompt_tokens": generation.prompt_tokens,
            "generated_tokens": len(choice.token_ids),
            "seed": self._parameters.seed,
        }

    def _token(self, token: TokenLogprobs) -> dict[str, Any]:
        text = self._core.token_text(token.token_id)
        return {"id": token.token_id, "text": text, "logprob": token.logprob, "special": False}


def _text_request(core: Core, parameters: LoraxParameters, prompt: str, reasons: bool, is_stream: bool) -> TextRequest:
    drawn = _sampling(parameters)
    best_of = parameters.best_of
    if best_of not in (None, 1) and (not 1 < best_of <= MOST_CHOICES or not drawn.temperature or is_stream):
        instead = f"give 1 to {MOST_CHOICES}, more than 1 with do_sample and without stream"
        raise RequestError(f"best_of is {best_of}; {instead}", "parameters.best_of")
    wanted = parameters.response_format
    if wanted and wanted.get("type") in ("json_object", "JsonObject") and wanted.get("schema") is None:
        wanted = {"type": "json_schema", "json_schema": {"schema": ANY_OBJECT}}
    return TextRequest(
        prompt=prompt,
        sampling=drawn,
        max_tokens=parameters.max_new_tokens,
        stop=stop_strings(parameters.stop),
        logprobs=0,
        best_of=best_of,
        reasoning=Reasoning() if reasons else None,
        **shape_of(parameters, read_format(wanted), core.defaults),
    )


def _sampling(parameters: LoraxParameters) -> SamplingParams:
    """Greedy, unless ``do_sample`` or a parameter of sampling says otherwise."""
    temperature = parameters.temperature
    if temperature is None:
        given = (parameters.top_k, parameters.top_p, parameters.typical_p)
        temperature = 1.0 if parameters.do_sample or any(value is not None for value in given) else 0.0
    return sampling({}, parameters, temperature=temperature)
