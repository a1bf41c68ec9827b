"""LMDeploy's ``pipeline`` over the bundled engine.

Owns: prompts in their several forms, and answers in their order.
Knows nothing about: how text is made.

A script for LMDeploy runs with this import and the name of a local model. Source of the interface: LMDeploy 0.16,
"Structured output" and ``lmdeploy.pipeline``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_adapter.engine.generation import TextGeneration
from engine_adapter.lmdeploy.messages import GenerationConfig, PytorchEngineConfig, Response, TurbomindEngineConfig
from engine_adapter.offline import Offline, finished, reasoning_end_of

__all__ = ["GenerationConfig", "Pipeline", "PytorchEngineConfig", "Response", "TurbomindEngineConfig", "pipeline"]


def pipeline(
    model_path: str | Path | None = None,
    backend_config: PytorchEngineConfig | TurbomindEngineConfig | None = None,
    log_level: str = "WARNING",
    *,
    target: str | None = None,
    grammar_backend: str = "auto",
    reasoning_parser: str | None = None,
) -> Pipeline:
    """Returns a pipeline; loading takes seconds.

    Args:
        model_path: a local Hugging Face directory, or "bundled".
        backend_config: both kinds mean the same engine here.
        log_level: of the logger ``engine_adapter``.
        target: a running daemon; None = that of ``MASKD_TARGET``, or one of its own.
        grammar_backend: "auto", "xgrammar" or "llguidance".
        reasoning_parser: of LMDeploy's server, "deepseek-r1", "qwen-qwq" or "intern-s1". Where the model reasons first,
            the response format begins behind that, and answers have ``reasoning_content``. None = reasoning is text.

    Raises:
        FileNotFoundError: no such directory. ValueError: an unknown parser. MaskdError: no daemon.
    """
    logging.getLogger("engine_adapter").setLevel(log_level)
    return Pipeline(
        model_path,
        backend_config or PytorchEngineConfig(),
        target=target,
        grammar_backend=grammar_backend,
        reasoning_parser=reasoning_parser,
    )


class Pipeline(Offline):
    """Answers prompts: a text becomes a user's turn, a list of mappings with role and content is a conversation."""

    def __init__(
        self,
        model: str | Path | None,
        config: PytorchEngineConfig | TurbomindEngineConfig,
        *,
        target: str | None,
        grammar_backend: str,
        reasoning_parser: str | None,
    ) -> None:
        super().__init__(
            model,
            target,
            backend=grammar_backend,
            slots=config.max_batch_size,
            queue_limit=1 << 20,  # a list of any length is a batch
            device=None if config.device_type == "auto" else config.device_type,
            context_length=config.session_len,
            reasoning_end=reasoning_end_of(reasoning_parser),
        )

    def __call__(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        do_preprocess: bool = True,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
    ) -> Any:
        """Returns one ``Response`` for one prompt, a list of them for a list of prompts.

        Args:
            prompts: one prompt, or a list of them.
            gen_config: for all, or one for each.
            do_preprocess: apply the chat template; without, prompts are texts for the model as they are.
            chat_template_kwargs: variables of the template.
            enable_thinking: one of them.

        Raises:
            ValueError: a response format or a number is wrong, or a prompt is too long. GrammarError: the grammar was
                refused.
        """
        batch, is_one = _as_batch(prompts)
        generations = self._submit(batch, gen_config, do_preprocess, _variables(chat_template_kwargs, enable_thinking))
        try:
            responses = [_response(index, generation) for index, generation in enumerate(generations)]
        finally:
            for generation in generations:  # if one failed, the others are not wanted
                generation.cancel()
        return responses[0] if is_one else responses

    def stream_infer(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        do_preprocess: bool = True,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
    ) -> Iterator[Response]:
        """Yields a ``Response`` for every new piece of text, one prompt after the other; see ``__call__``."""
        variables = _variables(chat_template_kwargs, enable_thinking)
        for index, generation in enumerate(self._submit(_as_batch(prompts)[0], gen_config, do_preprocess, variables)):
            count = 0
            for delta in generation:
                count += len(delta.token_ids)
                if delta.finish_reason == "error":
                    generation.result()
                yield Response(
                    text=delta.text,
                    generate_token_len=count,
                    input_token_len=generation.prompt_tokens,
                    finish_reason=delta.finish_reason,
                    token_ids=list(delta.token_ids),
                    index=index,
                    reasoning_content=None if generation.request.reasoning is None else delta.reasoning,
                )

    def _submit(
        self, batch: Sequence[Any], gen_config: Any, do_preprocess: bool, variables: Mapping[str, Any]
    ) -> list[TextGeneration]:
        configs = gen_config if isinstance(gen_config, Sequence) else [gen_config or GenerationConfig()] * len(batch)
        if len(configs) != len(batch):
            raise ValueError(f"{len(batch)} prompts have {len(configs)} gen_configs; give one, or one for each")
        requests = [
            config.request(*self._prompt(prompt, do_preprocess, variables))
            for prompt, config in zip(batch, configs, strict=True)
        ]
        return [self.engine.submit(request) for request in requests]

    def _prompt(self, prompt: Any, do_preprocess: bool, variables: Mapping[str, Any]) -> tuple[str, bool]:
        """Returns the text for the model, and whether it begins with reasoning."""
        if isinstance(prompt, str):
            if not do_preprocess or self.engine.tokenizer.chat_template is None:
                return prompt, self.engine.prompts.follows(prompt)
            prompt = [{"role": "user", "content": prompt}]
        return self.engine.prompts.render(prompt, **variables)


def _variables(given: Mapping[str, Any] | None, enable_thinking: bool | None) -> dict[str, Any]:
    return {**(given or {}), **({} if enable_thinking is None else {"enable_thinking": enable_thinking})}


def _as_batch(prompts: Any) -> tuple[list[Any], bool]:
    """Returns the prompts, and whether it was only one."""
    is_one = isinstance(prompts, str) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], Mapping)
    )
    return ([prompts] if is_one else list(prompts)), is_one


def _response(index: int, generation: TextGeneration) -> Response:
    choice = finished(generation)[0]
    logprobs = None
    if choice.logprobs is not None:
        logprobs = [dict(each.top) | {each.token_id: each.logprob} for each in choice.logprobs]
    return Response(
        text=choice.text,
        generate_token_len=len(choice.token_ids),
        input_token_len=generation.prompt_tokens,
        finish_reason=choice.finish_reason,
        token_ids=choice.token_ids,
        logprobs=logprobs,
        index=index,
        reasoning_content=choice.reasoning,
    )
