"""LMDeploy's parameter classes, with the parameters that the bundled engine can serve.

Owns: their names and defaults, and their translation into a ``TextRequest``.
Knows nothing about: the engine.

An unknown parameter is a TypeError, never ignored. Source: LMDeploy 0.16, ``lmdeploy.messages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_adapter.engine.generation import Reasoning, TextRequest
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.structured_output.response_format import grammar_of

__all__ = ["GenerationConfig", "PytorchEngineConfig", "Response", "TurbomindEngineConfig"]


@dataclass
class PytorchEngineConfig:
    """How the engine is set up.

    Attributes:
        session_len: tokens of prompt and answer together; None = what the model was made for.
        max_batch_size: answers at a time; None = what fits.
        device_type: "auto", "cpu" or "cuda".
        tp: number of devices; only 1 is there.

    Raises:
        ValueError: ``tp`` is not 1.
    """

    session_len: int | None = None
    max_batch_size: int | None = None
    device_type: str = "auto"
    tp: int = 1

    def __post_init__(self) -> None:
        if self.tp != 1:
            raise ValueError(f"tp is {self.tp}; the bundled engine runs on one device")


class TurbomindEngineConfig(PytorchEngineConfig):
    """The same as ``PytorchEngineConfig``; there is one engine here."""


@dataclass
class GenerationConfig:
    """How answers are generated.

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: False = the likeliest token each time; ``temperature``, ``top_p``, ``top_k`` and ``min_p`` mean
            nothing.
        temperature, top_p, top_k, min_p, random_seed, repetition_penalty: as in ``SamplingParams``.
        n: must be 1, as in LMDeploy.
        min_new_tokens: an answer has at least so many tokens, unless its response format leaves nothing else to say.
        stop_words: an answer ends before the first of these.
        stop_token_ids: end an answer as well.
        bad_words: an answer has none of these, unless its response format leaves nothing else to say.
        bad_token_ids: the same for tokens.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: report so many most likely tokens each.
        response_format: what the answer must be: ``dict(type="json_schema", json_schema=dict(name=…, schema=…))``,
            ``json_object``, ``regex_schema``, or any other that ``response_format.grammar_of`` reads, a Pydantic model
            too.
        close_before_budget: end a constrained answer whole before ``max_new_tokens`` cuts it.
    """

    n: int = 1
    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    random_seed: int | None = None
    stop_words: Sequence[str] | None = None
    bad_words: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] | None = None
    min_new_tokens: int | None = None
    skip_special_tokens: bool = True
    logprobs: int | None = None
    response_format: Any = None
    close_before_budget: bool = True

    def request(self, prompt: str, reasons: bool = False) -> TextRequest:
        """Returns the engine's request for ``prompt``, behind which the model ``reasons`` first.

        Raises:
            ValueError: a response format or a number is wrong.
        """
        if self.n != 1:
            raise ValueError(f"n is {self.n}; a prompt has one answer: give it as often as it is to be answered")
        sampling = SamplingParams(
            temperature=self.temperature if self.do_sample else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.random_seed,
            repetition_penalty=self.repetition_penalty,
        )
        return TextRequest(
            prompt=prompt,
            grammar=grammar_of(self.response_format),
            sampling=sampling,
            max_tokens=self.max_new_tokens,
            stop=tuple(self.stop_words or ()),
            logprobs=self.logprobs,
            close_before_budget=self.close_before_budget,
            ignore_special=self.skip_special_tokens,
            min_tokens=self.min_new_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            banned_words=tuple(self.bad_words or ()),
            banned_token_ids=tuple(self.bad_token_ids or ()),
            reasoning=Reasoning() if reasons else None,
        )


@dataclass
class Response:
    """An answer.

    Attributes:
        text: of the answer, without its reasoning.
        generate_token_len: its tokens.
        input_token_len: tokens of the prompt.
        finish_reason: "stop": it is complete; "length": the tokens are used up.
        token_ids: of the answer.
        logprobs: for each token, log probability by token id; None unless asked for.
        index: of the prompt in its batch.
        reasoning_content: what the model said before its answer; None if it was not to reason.
    """

    text: str
    generate_token_len: int
    input_token_len: int
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    index: int = 0
    reasoning_content: str | None = None
