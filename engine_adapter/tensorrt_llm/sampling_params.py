"""TensorRT-LLM's parameter classes, with the parameters that the bundled engine can serve.

Owns: their names and defaults, and their translation into a ``TextRequest``.
Knows nothing about: the engine.

An unknown parameter is a TypeError, never ignored. Source: TensorRT-LLM, ``tensorrt_llm.sampling_params``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine_adapter.engine.generation import TextRequest
from engine_adapter.sampling import params as sampling_params
from engine_adapter.structured_output.response_format import grammar_of_structured_outputs
from maskd.grammar import GrammarSpec

__all__ = ["GuidedDecodingParams", "SamplingParams"]


@dataclass(kw_only=True)
class GuidedDecodingParams:
    """What an output must be; at most one is given.

    Attributes:
        json: a JSON schema: a mapping, JSON text, or a Pydantic model, class or instance.
        regex: a regular expression.
        grammar: GBNF (with ``::=``) or Lark, on either backend.
        json_object: any JSON object.
        structural_tag: a structural tag, as JSON text or a mapping.

    Raises:
        ValueError: more than one is given, or one is malformed.
    """

    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: Any = None

    def __post_init__(self) -> None:
        self.spec()

    def spec(self) -> GrammarSpec | None:
        """Returns the grammar; None if nothing is given."""
        given = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        if self.json_object is False:
            del given["json_object"]
        return grammar_of_structured_outputs(given, field="guided_decoding")


@dataclass(kw_only=True)
class SamplingParams:
    """How outputs are generated.

    Attributes:
        max_tokens: most tokens of an output.
        temperature, top_p, top_k, min_p: as in ``engine_adapter.sampling.params``; if none of them is given, the
            likeliest token each time.
        seed, presence_penalty, frequency_penalty, repetition_penalty: as there.
        n: outputs for each input.
        best_of: generate so many, and return the ``n`` likeliest; None = ``n``.
        min_tokens: an output has at least so many tokens, unless ``guided_decoding`` leaves nothing else to say.
        stop: an output ends before the first of these.
        stop_token_ids: end an output as well.
        bad: an output has none of these, unless ``guided_decoding`` leaves nothing else to say.
        bad_token_ids: the same for tokens.
        embedding_bias: one number for each token, which is added to its logit, -100 to 100.
        logprobs: report so many most likely tokens each.
        skip_special_tokens: leave special tokens out of the text.
        guided_decoding: what each output must be.
        close_before_budget: end a constrained output whole before ``max_tokens`` cuts it.
    """

    max_tokens: int | None = 32
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    best_of: int | None = None
    min_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad: str | Sequence[str] | None = None
    bad_token_ids: Sequence[int] | None = None
    embedding_bias: Any = None
    logprobs: int | None = None
    skip_special_tokens: bool = True
    guided_decoding: GuidedDecodingParams | None = None
    close_before_budget: bool = True

    def request(self, prompt: str | Sequence[int]) -> TextRequest:
        """Returns the engine's request for ``prompt``.

        Raises:
            ValueError: the guided decoding or a number is wrong.
        """
        is_greedy = self.temperature is None and self.top_p is None and self.top_k is None and self.min_p is None
        biases = () if self.embedding_bias is None else self.embedding_bias
        sampling = sampling_params.SamplingParams(
            temperature=0.0 if is_greedy else 1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias={index: float(bias) for index, bias in enumerate(biases) if bias},
        )
        return TextRequest(
            prompt=prompt,
            grammar=None if self.guided_decoding is None else self.guided_decoding.spec(),
            sampling=sampling,
            max_tokens=self.max_tokens,
            stop=_texts(self.stop),
            logprobs=self.logprobs,
            n=self.n,
            close_before_budget=self.close_before_budget,
            ignore_special=self.skip_special_tokens,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            banned_words=_texts(self.bad),
            banned_token_ids=tuple(self.bad_token_ids or ()),
            best_of=self.best_of,
        )


def _texts(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
