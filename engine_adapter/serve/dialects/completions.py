"""``POST /v1/completions``: text continued, for one prompt or a list of them.

Owns: the body and the answers of this route.
Knows nothing about: decoding.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine_adapter.decoding.request import TokenLogprobs
from engine_adapter.engine.generation import TextGeneration
from engine_adapter.serve.answer import Event, HttpAnswer, sse
from engine_adapter.serve.core import Core
from engine_adapter.serve.dialects.openai import DONE, OPENAI, text_request
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.fields.body import CommonFields, usage_of
from engine_adapter.serve.fields.generation import grammar_of_fields
from engine_adapter.serve.tools.plan import Plan

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
    return await core.serve(request, CompletionFields, _CompletionAnswer)


class _CompletionAnswer(HttpAnswer):
    dialect = OPENAI

    def __init__(self, core: Core, body: CompletionFields, request: Request) -> None:
        prompts = _prompts(body)
        plan = Plan(grammar_of_fields(body))
        self._per_prompt = count = _checked_count(body)
        max_tokens = body.max_tokens
        # A document cut after 16 tokens is of no use: with a grammar, an output may fill the context.
        if max_tokens is None and plan.grammar is None:
            max_tokens = _DEFAULT_TOKENS
        asked = text_request(
            core,
            body,
            plan,
            is_several=max(count, body.best_of or 1) > 1,
            n=count,
            best_of=body.best_of,
            max_tokens=max_tokens,
            logprobs=body.logprobs,
        )
        super().__init__(
            *(dataclasses.replace(asked, prompt=prompt) for prompt in prompts),
            is_stream=body.stream,
            error_places=plan.error_places,
        )
        self._core = core
        self._echoes = [_echo(core, prompt) if body.echo else "" for prompt in prompts]
        self._includes_usage = bool((body.stream_options or {}).get("include_usage"))
        self._head = {
            "id": "cmpl-" + secrets.token_hex(12),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model or core.engine.model_name,
        }

    def whole(self, generations: Sequence[TextGeneration]) -> dict[str, Any]:
        choices = []
        for number, generation in enumerate(generations):
            for choice in generation.best:
                index, text = number * self._per_prompt + choice.index, self._echoes[number] + choice.text
                choices.append(self._choice(index, text, choice.logprobs, choice.finish_reason))
        return self._head | {"choices": choices, "usage": usage_of(generations)}

    async def pieces(self, generations: Sequence[TextGeneration], events: AsyncIterator[Event]) -> AsyncIterator[str]:
        unsaid = dict(enumerate(echo for echo in self._echoes for _ in range(self._per_prompt)))
        async for number, delta in events:
            index = number * self._per_prompt + delta.index
            text = unsaid.pop(index, "") + delta.text
            if text or delta.finish_reason or delta.logprobs:
                choice = self._choice(index, text, delta.logprobs, delta.finish_reason)
                yield sse(self._head | {"choices": [choice]})
        if self._includes_usage:
            yield sse(self._head | {"choices": [], "usage": usage_of(generations)})
        yield DONE

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs] | None, reason: str | None
    ) -> dict[str, Any]:
        shown = None if logprobs is None else _logprobs(self._core, logprobs)
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}


def _prompts(body: CompletionFields) -> list[Any]:
    """Returns the prompts of a body, each a text or a list of token ids."""
    prompts = [body.prompt] if isinstance(body.prompt, str) or _is_ids(body.prompt) else body.prompt
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise RequestError(f"prompt has {len(prompts)} prompts; give 1 to {MOST_PROMPTS}", "prompt")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not _is_ids(prompt):
            raise RequestError(f"prompt[{index}] is neither a text nor a list of token ids", f"prompt[{index}]")
    return prompts


def _checked_count(body: CompletionFields) -> int:
    """Returns the number of outputs for each prompt, and checks the fields that no other route has."""
    if body.suffix:
        message = "suffix is not supported; the model continues text only"
        raise RequestError(message, "suffix", code="unsupported_parameter")
    count = 1 if body.n is None else body.n
    if body.stream and body.best_of is not None and body.best_of > count:
        raise RequestError("best_of cannot be streamed: the best are known at the end", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= MOST_LOGPROBS:
        raise RequestError(f"logprobs is {body.logprobs}; give 0 to {MOST_LOGPROBS}", "logprobs")
    return count


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token_id) is int for token_id in prompt)


def _echo(core: Core, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else core.engine.tokenizer.decode(prompt)


def _logprobs(core: Core, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    tokens = [core.token_text(token.token_id) for token in logprobs]
    offsets = [sum(map(len, tokens[:position])) for position in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in logprobs],
        "top_logprobs": [{core.token_text(token_id): logprob for token_id, logprob in token.top} for token in logprobs],
        "text_offset": offsets,
    }
