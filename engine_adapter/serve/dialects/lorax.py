"""LoRAX's own routes: ``POST /generate``, ``POST /generate_stream``, and ``POST /``, which its client calls and which
answers with a list.

Owns: the body and the answers of these routes. A stream ends with its last event: LoRAX's client cannot read OpenAI's
    ``[DONE]``.
Knows nothing about: how it is decoded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import Choice, Reasoning, TextGeneration, TextRequest
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.serve.core import MOST_CHOICES, Ask, Core, Event, sse, sse_failure
from engine_adapter.serve.errors import Failure, RequestError
from engine_adapter.serve.fields.body import OwnFields
from engine_adapter.serve.fields.constraints import read_format, sampling, shape_of, stop_strings

__all__ = ["generate", "generate_list", "generate_stream"]

ANY_OBJECT = {
    "type": "object",
    "title": "ArbitraryJsonModel",
    "additionalProperties": {"type": ["object", "string", "integer", "number", "boolean", "null"]},
}
"""What LoRAX means by ``json_object`` without a schema (router/src/lib.rs): values may be anything but arrays."""


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


async def generate_list(request: Request) -> Response:
    """Serves ``/``: a list of one answer, or a stream if the body asks for it."""
    return await _serve(request, is_list=True, stream=None)


async def generate(request: Request) -> Response:
    """Serves ``/generate``."""
    return await _serve(request, is_list=False, stream=False)


async def generate_stream(request: Request) -> Response:
    """Serves ``/generate_stream``."""
    return await _serve(request, is_list=False, stream=True)


async def _serve(request: Request, *, is_list: bool, stream: bool | None) -> Response:
    core: Core = request.app.state.core
    body = await core.read(request, LoraxFields)
    parameters = body.parameters
    wants_stream = body.stream if stream is None else stream
    if parameters.apply_chat_template:
        prompt, reasons = await core.prepare(
            lambda: core.engine.prompts.render([{"role": "user", "content": body.inputs}], enable_thinking=False)
        )
    else:
        prompt, reasons = body.inputs, False
    text_request = _text_request(core, body, prompt, reasons, wants_stream)
    ask = Ask(text_request, {"": "parameters.response_format"}, {"max_tokens": "max_new_tokens"})
    prompt_ids: Sequence[int] = await core.prepare(
        lambda: core.engine.tokenizer.encode(prompt) if parameters.decoder_input_details else []
    )
    before = body.inputs if parameters.return_full_text else ""

    def whole(generations: Sequence[TextGeneration]) -> Any:
        choice = generations[0].best[0]
        answer: dict[str, Any] = {"generated_text": before + choice.text}
        if parameters.details:
            prefill = [{"id": token_id, "text": core.token_text(token_id), "logprob": None} for token_id in prompt_ids]
            tokens = [_token(core, token) for token in choice.logprobs or ()]
            answer["details"] = _details(generations[0], choice, parameters.seed) | {
                "prefill": prefill,
                "tokens": tokens,
            }
        return [answer] if is_list else answer

    async def pieces(generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        held: dict[str, Any] | None = None
        async for _, delta in events:
            for token in delta.logprobs or ():
                if held is not None:
                    yield sse(held)
                held = {"token": _token(core, token), "generated_text": None, "details": None}
        choice = generations[0].choices[0]
        last = held or {"token": {"id": 0, "text": "", "logprob": 0.0, "special": True}}
        yield sse(
            last
            | {"generated_text": before + choice.text, "details": _details(generations[0], choice, parameters.seed)}
        )

    def failed(failure: Failure) -> str:
        return sse_failure(failure, request.url.path)

    return await core.respond(request, [ask], whole=whole, pieces=pieces if wants_stream else None, failed=failed)


def _text_request(core: Core, body: LoraxFields, prompt: str, reasons: bool, streams: bool) -> TextRequest:
    parameters = body.parameters
    drawn = _sampling(parameters)
    best_of = parameters.best_of
    if best_of not in (None, 1) and (not 1 < best_of <= MOST_CHOICES or not drawn.temperature or streams):
        instead = f"give 1 to {MOST_CHOICES}, more than 1 with do_sample and without stream"
        raise RequestError(f"best_of is {best_of}; {instead}", "parameters.best_of")
    response_format = parameters.response_format
    if (
        response_format is not None
        and response_format.get("type") in ("json_object", "JsonObject")
        and response_format.get("schema") is None
    ):
        response_format = {"type": "json_schema", "json_schema": {"schema": ANY_OBJECT}}
    return TextRequest(
        prompt=prompt,
        sampling=drawn,
        max_tokens=parameters.max_new_tokens,
        stop=stop_strings(parameters.stop),
        logprobs=0,
        best_of=best_of,
        reasoning=Reasoning() if reasons else None,
        **shape_of(
            parameters, read_format(response_format, parameters.guided_decoding_backend or "auto"), core.defaults
        ),
    )


def _sampling(parameters: LoraxParameters) -> SamplingParams:
    """Greedy, unless ``do_sample`` or a parameter of sampling says otherwise."""
    given: dict[str, Any] = {"top_k": parameters.top_k, "top_p": parameters.top_p, "typical_p": parameters.typical_p}
    samples = (
        parameters.do_sample or parameters.temperature is not None or any(value is not None for value in given.values())
    )
    temperature = parameters.temperature if parameters.temperature is not None else 1.0 if samples else 0.0
    return sampling(
        {}, temperature=temperature, seed=parameters.seed, repetition_penalty=parameters.repetition_penalty, **given
    )


def _details(generation: TextGeneration, choice: Choice, seed: int | None) -> dict[str, Any]:
    reason = (
        "stop_sequence"
        if choice.stop_string is not None
        else "eos_token"
        if choice.finish_reason == "stop"
        else "length"
    )
    return {
        "finish_reason": reason,
        "prompt_tokens": generation.prompt_tokens,
        "generated_tokens": len(choice.token_ids),
        "seed": seed,
    }


def _token(core: Core, token: TokenLogprobs) -> dict[str, Any]:
    return {"id": token.token_id, "text": core.token_text(token.token_id), "logprob": token.logprob, "special": False}
