"""TensorRT-LLM's ``LLM`` over the bundled engine.

Owns: inputs in their several forms, and outputs that can be waited for, awaited and iterated.
Knows nothing about: how text is made.

A script for TensorRT-LLM runs with this import and the name of a local model. Source of the interface: TensorRT-LLM,
"Guided decoding" and ``tensorrt_llm.llmapi``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_adapter.engine.generation import Choice, Reasoning, TextGeneration
from engine_adapter.offline import Offline, finished, reasoning_end_of
from engine_adapter.tensorrt_llm.sampling_params import GuidedDecodingParams, SamplingParams
from engine_adapter.text.tokenizer import TextTokenizer

__all__ = ["LLM", "GuidedDecodingParams", "RequestOutput", "SamplingParams"]


class RequestOutput:
    """The output of one input, growing until ``finished``.

    ``await`` and ``result`` wait for the end; ``async for`` yields it as it grows.

    Attributes:
        request_id: counts from 0.
        prompt: the text; None if token ids were given.
        prompt_token_ids: None if a text was given.
        outputs: one for each of ``n``, with ``index``, ``text``, ``token_ids``, ``logprobs``, ``finish_reason``,
            ``stop_string``, ``reasoning``.
    """

    def __init__(self, request_id: int, prompt: str | Sequence[int], generation: TextGeneration) -> None:
        self.request_id = request_id
        self.prompt = prompt if isinstance(prompt, str) else None
        self.prompt_token_ids = None if isinstance(prompt, str) else list(prompt)
        self._generation = generation

    @property
    def outputs(self) -> list[Choice]:
        """The outputs so far; with ``best_of``, the best of them once all have ended."""
        return self._generation.best if self.finished else self._generation.choices

    @property
    def finished(self) -> bool:
        """Whether all outputs have ended."""
        return self._generation.is_finished

    def result(self) -> RequestOutput:
        """Waits for the end. Raises the error of an output, a ``GrammarError`` for instance."""
        finished(self._generation)
        return self

    async def aresult(self) -> RequestOutput:
        """Waits for the end, as ``await`` does. Raises the error of an output."""
        async for _ in self._generation:
            pass
        return self.result()

    def abort(self) -> None:
        """Ends it within a step of the engine."""
        self._generation.cancel()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        async for _ in self._generation:
            yield self
        self.result()


class LLM(Offline):
    """Completes prompts."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        guided_decoding_backend: str | None = None,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        reasoning_parser: str | None = None,
        target: str | None = None,
    ) -> None:
        """Loads the model; takes seconds.

        Args:
            model: a local Hugging Face directory, or "bundled".
            guided_decoding_backend: "xgrammar", "llguidance" or "auto"; None = "auto".
            max_batch_size: outputs at a time; None = what fits.
            max_seq_len: tokens of prompt and output together; None = what the model was made for.
            reasoning_parser: "deepseek-r1" or "qwen3": behind a prompt that leaves the model within its reasoning,
                ``guided_decoding`` begins at its end, and outputs have ``reasoning`` beside ``text``; None = reasoning
                is text like any other.
            target: a running daemon; None = that of ``MASKD_TARGET``, or one of its own.

        Raises:
            FileNotFoundError: no such directory. ValueError: an unknown parser. MaskdError: no daemon.
        """
        super().__init__(
            model,
            target,
            backend=guided_decoding_backend or "auto",
            slots=max_batch_size,
            queue_limit=1 << 20,  # a list of any length is a batch
            context_length=max_seq_len,
            reasoning_end=reasoning_end_of(reasoning_parser),
        )
        self._ids = itertools.count()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, with ``apply_chat_template``."""
        return self.engine.tokenizer

    def generate(self, inputs: Any, sampling_params: Any = None, use_tqdm: bool = False) -> Any:
        """Returns a finished ``RequestOutput`` for one input, a list of them for a list.

        Args:
            inputs: a text, a list of token ids, a mapping with ``prompt`` or ``prompt_token_ids``, or a list of these.
            sampling_params: a ``SamplingParams`` for all, or one for each.
            use_tqdm: accepted, without effect.

        Raises:
            ValueError: the guided decoding or a number is wrong, or a prompt is too long. GrammarError: the grammar was
                refused.
        """
        is_one = isinstance(inputs, str | Mapping) or (bool(inputs) and isinstance(inputs[0], int))
        batch = [inputs] if is_one else list(inputs)
        params = list(sampling_params) if isinstance(sampling_params, Sequence) else [sampling_params] * len(batch)
        if len(params) != len(batch):
            raise ValueError(f"{len(batch)} inputs have {len(params)} sampling_params; give one, or one for each")
        outputs = [self.generate_async(each, param) for each, param in zip(batch, params, strict=True)]
        try:
            for output in outputs:
                output.result()
        finally:
            for output in outputs:  # if one failed, the others are not wanted
                output.abort()
        return outputs[0] if is_one else outputs

    def generate_async(
        self, inputs: Any, sampling_params: SamplingParams | None = None, streaming: bool = False
    ) -> RequestOutput:
        """Returns the output of one input at once; it grows. See ``generate``.

        ``streaming`` is accepted, without effect: every output can be iterated.
        """
        if isinstance(inputs, Mapping):
            inputs = inputs.get("prompt") or inputs.get("prompt_token_ids") or ""
        request = (sampling_params or SamplingParams()).request(inputs)
        prompt = inputs if isinstance(inputs, str) else self.tokenizer.decode(inputs)
        if self.engine.prompts.follows(prompt):
            request = dataclasses.replace(request, reasoning=Reasoning())
        return RequestOutput(next(self._ids), inputs, self.engine.submit(request))

    def shutdown(self) -> None:
        """Ends the engine, as ``close`` does."""
        self.close()
