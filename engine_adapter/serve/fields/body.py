"""Bodies: requests read with a limit and checked against a type, and the fields that several dialects share.

Owns: reading a body, ``OwnFields``, ``CommonFields``, token counts of an answer.
Knows nothing about: what the fields make an engine do.

Unknown fields are ignored, as most servers do. Every field that asks for structure is known in every dialect, so no
output is unconstrained because of a spelling.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from engine_adapter.engine.generation import TextGeneration
from engine_adapter.serve.errors import RequestError
from maskd.grammar import FormatPolicy, PropertyOrder, WhenSlow

__all__ = ["CommonFields", "Defaults", "OwnFields", "read_body", "usage_of"]

T = TypeVar("T")
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>.*)`$", re.DOTALL)


@dataclass(frozen=True)
class Defaults:
    """The server's settings for requests that say nothing; see ``OwnFields``."""

    close_before_budget: bool
    max_whitespace: int | None
    property_order: PropertyOrder


class OwnFields(msgspec.Struct, kw_only=True):
    """Fields of our own, in the bodies of every dialect. A field that is not given has the server's setting.

    Attributes:
        guided_decoding_backend: of the grammar, "auto", "xgrammar" or "llguidance".
        close_before_budget: see ``TextRequest``.
        max_whitespace: characters of white space between two JSON tokens; None = any number.
        property_order, formats: see ``GrammarOptions``.
        resources: JSON schemas that the references of the request's schemas may lead to, by address.
        when_slow: see ``GrammarSpec``.
    """

    guided_decoding_backend: str | None = None
    close_before_budget: bool | None = None
    max_whitespace: int | msgspec.UnsetType | None = msgspec.UNSET
    property_order: PropertyOrder | None = None
    formats: FormatPolicy | None = None
    resources: dict[str, Any] | None = None
    when_slow: WhenSlow | None = None


class CommonFields(OwnFields, kw_only=True):
    """Fields of all of OpenAI's routes; None is the same as not given."""

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    user: Any = None

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    random_seed: int | None = None  # Mistral's
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    typical_p: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None

    ignore_eos: bool | None = None  # from here on: refused, see ``serve.fields.generation.limits_of``
    include_stop_str_in_output: bool | None = None
    allowed_token_ids: list[int] | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    prompt_logprobs: int | None = None

    response_format: Any = None
    structured_outputs: dict[str, Any] | None = None  # vLLM's
    guided_json: Any = None  # vLLM's older names
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None  # SGLang's and llama-server's
    regex: Any = None
    ebnf: Any = None
    grammar: Any = None
    structural_tag: Any = None

    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = None
    max_reasoning_tokens: int | None = None

    @property
    def reasoning_limit(self) -> int | None:
        """Most tokens of the reasoning, in either spelling."""
        return self.max_reasoning_tokens if self.thinking_token_budget is None else self.thinking_token_budget


async def read_body(request: Request, form: type[T], limit_bytes: int, limit_seconds: float) -> T:
    """Reads and checks the body of ``request``.

    Raises:
        RequestError: 413, longer than ``limit_bytes``; 408, not whole after ``limit_seconds``; 400, not JSON or not of
            the type ``form``.
    """
    try:
        raw = await asyncio.wait_for(_read(request, limit_bytes), limit_seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            f"the body was not whole after {limit_seconds:g} s; send all of it", status=408, code="body_timeout"
        ) from None
    try:
        return msgspec.json.decode(raw, type=form)
    except msgspec.ValidationError as error:
        found = _PLACE.match(str(error))
        what, where = (found["what"], found["where"]) if found else (str(error), "")
        raise RequestError(f"{where}: {what}" if where else what, where or None, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {what}", code="invalid_json") from None


async def _read(request: Request, limit_bytes: int) -> bytearray:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit_bytes:
            raise RequestError(f"the body is longer than {limit_bytes} bytes", status=413, code="body_too_large")
    return raw


def usage_of(generations: Sequence[TextGeneration]) -> dict[str, Any]:
    """Returns token counts; the prompt of several outputs counts once."""
    prompt = sum(generation.prompt_tokens for generation in generations)
    completion = sum(generation.completion_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {
            "reasoning_tokens": sum(generation.reasoning_tokens for generation in generations)
        },
    }
