"""``POST /v1/completions``: text continued, for one prompt or a list of them.

Owns: the body and the answers of this route. Knows nothing about: how it is decoded.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import TextGeneration, TextRequest
from engine_adapter.serve.core import MOST_CHOICES, Ask, Core, Event, sse, sse_failure
from engine_adapter.serve.errors import Failure, RequestError
from engine_adapter.serve.fields.body import CommonFields, usage_of
from engine_adapter.serve.fields.constraints import constraint_of, limits_of, sampling_of, shape_of

__all__ = ["completions"]

MOST_PROMPTS = 128
MOST_LOGPROBS = 20
_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionFields(CommonFields, kw_only=True):
    """The body; fields that are not listed are ignored."""

    prompt: str | list[Any] = ""
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


async def completions(request: Request) -> Response:
    """Serves the route."""
    core: Core = request.app.state.core
    body = await core.read(request, CompletionFields)
    asks = _asks(core, body)
    per_prompt = asks[0].request.n
    head = {
        "id": "cmpl-" + secrets.token_hex(12),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or core.engine.model_name,
    }
    echoes = [_echo(core, ask.request.prompt) if body.echo else "" for ask in asks]

    def whole(generations: Sequence[TextGeneration]) -> dict[str, Any]:
        choices = [
            _choice(
                core,
                number * per_prompt + choice.index,
                echoes[number] + choice.text,
                choice.logprobs,
                choice.finish_reason,
            )
            for number, generation in enumerate(generations)
            for choice in generation.best
        ]
        return head | {"choices": choices, "usage": usage_of(generations)}

    async def pieces(generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        unsaid = dict(enumerate(echo for echo in echoes for _ in range(per_prompt)))
        async for number, delta in events:
            index = number * per_prompt + delta.index
            text = unsaid.pop(index, "") + delta.text
            if text or delta.finish_reason or delta.logprobs:
                yield sse(head | {"choices": [_choice(core, index, text, delta.logprobs, delta.finish_reason)]})
        if (body.stream_options or {}).get("include_usage"):
            yield sse(head | {"choices": [], "usage": usage_of(generations)})
        yield "data: [DONE]\n\n"

    def failed(failure: Failure) -> str:
        return sse_failure(failure, request.url.path, "data: [DONE]\n\n")

    return await core.respond(request, asks, whole=whole, pieces=pieces if body.stream else None, failed=failed)


def _asks(core: Core, body: CompletionFields) -> list[Ask]:
    # A text, a list of ids, or a list of any of these.
    prompts = [body.prompt] if isinstance(body.prompt, str) or _is_ids(body.prompt) else body.prompt
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise RequestError(f"prompt has {len(prompts)} prompts; give 1 to {MOST_PROMPTS}", "prompt")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not _is_ids(prompt):
            raise RequestError(f"prompt[{index}] is neither a text nor a list of token ids", f"prompt[{index}]")
    if body.suffix:
        raise RequestError(
            "suffix is not supported; the model continues text only", "suffix", code="unsupported_parameter"
        )
    count = 1 if body.n is None else body.n
    if body.best_of is not None and not count <= body.best_of <= MOST_CHOICES:
        raise RequestError(f"best_of is {body.best_of}; give n, which is {count}, to {MOST_CHOICES}", "best_of")
    if body.stream and body.best_of is not None and body.best_of > count:
        raise RequestError("best_of cannot be streamed: the best are known at the end", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= MOST_LOGPROBS:
        raise RequestError(f"logprobs is {body.logprobs}; give 0 to {MOST_LOGPROBS}", "logprobs")
    shape, limits = shape_of(body, constraint_of(body), core.defaults), limits_of(body)
    sampling = sampling_of(body, core.engine.model_sampling, is_several=max(count, body.best_of or 1) > 1)
    # A document that is cut after 16 tokens helps nobody: with a grammar the default is what the context has room for.
    max_tokens = body.max_tokens if body.max_tokens is not None or shape["grammar"] is not None else _DEFAULT_TOKENS
    return [
        Ask(
            TextRequest(
                prompt=prompt,
                sampling=sampling,
                max_tokens=max_tokens,
                logprobs=body.logprobs,
                n=count,
                best_of=body.best_of,
                **limits,
                **shape,
            ),
            {"": "response_format"},
        )
        for prompt in prompts
    ]


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token_id) is int for token_id in prompt)


def _echo(core: Core, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else core.engine.tokenizer.decode(prompt)


def _choice(
    core: Core, index: int, text: str, logprobs: Sequence[TokenLogprobs] | None, reason: str | None
) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None if logprobs is None else _logprobs(core, logprobs),
        "finish_reason": reason,
    }


def _logprobs(core: Core, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    tokens = [core.token_text(token.token_id) for token in logprobs]
    offsets = [sum(map(len, tokens[:position])) for position in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in logprobs],
        "top_logprobs": [{core.token_text(token_id): logprob for token_id, logprob in token.top} for token in logprobs],
        "text_offset": offsets,
    }
