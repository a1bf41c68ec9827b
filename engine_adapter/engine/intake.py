"""From a request in terms of text to requests of the loop: numbers checked, prompt as tokens, grammar, gate, steering.

Owns: how a model and the engine's settings change a request. Knows nothing about: the loop, queues, outputs as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine_adapter.decoding.request import Request
from engine_adapter.engine.generation import TextRequest
from engine_adapter.sampling.banned_words import BannedWords, TokenPrefixes
from engine_adapter.sampling.params import FieldError
from engine_adapter.steering.base import Steering
from engine_adapter.steering.closing import ClosingVocabulary, steering_for
from engine_adapter.steering.reasoning import AfterReasoning, EndReasoning
from engine_adapter.structured_output.bounded import bounded_spec
from engine_adapter.text.reasoning_prompts import ReasoningPrompts
from engine_adapter.text.tokenizer import TextTokenizer
from maskd.grammar import GrammarSpec, ReasoningGate, WhenSlow
from maskd.vocabulary import Vocabulary

__all__ = ["Intake", "Prepared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the outputs of one request have in common.

    Attributes:
        request: as it was asked.
        prompt: token ids.
        grammar: with the engine's settings and the reasoning gate; None = anything.
        max_tokens: of each output.
        banned_words: those of the request; None = none.
    """

    request: TextRequest
    prompt: Sequence[int]
    grammar: GrammarSpec | None
    max_tokens: int
    banned_words: BannedWords | None


class Intake:
    """Prepares the requests of one engine. Thread-safe."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompts: ReasoningPrompts,
        vocabulary: Vocabulary,
        *,
        context_length: int,
        backend: str,
        when_slow: WhenSlow,
        bounded: bool,
    ) -> None:
        """See ``Engine`` for the arguments."""
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._vocab_size = vocabulary.vocab_size
        self._context_length = context_length
        self._backend = backend
        self._when_slow = when_slow
        self._bounded = bounded
        self._closing_vocabulary = ClosingVocabulary(vocabulary)
        self._prefixes = TokenPrefixes(vocabulary)

    def prepare(self, request: TextRequest) -> Prepared:
        """Checks ``request`` and prepares what its outputs have in common.

        Raises:
            ValueError: the prompt is empty or too long for the context. FieldError: a number is out of range.
        """
        prompt = self._tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else list(request.prompt)
        max_tokens = self._checked_budget(request, prompt)
        banned = None
        if any(request.banned_words) or request.banned_token_ids:
            banned = BannedWords(request.banned_words, self._prefixes, request.banned_token_ids)
        return Prepared(
            request=request,
            prompt=prompt,
            grammar=self._grammar(request, max_tokens),
            max_tokens=max_tokens,
            banned_words=banned,
        )

    def output_request(self, prepared: Prepared, index: int) -> Request:
        """Returns the loop's request for output ``index``, without callbacks."""
        request, sampling = prepared.request, prepared.request.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
        return Request(
            prepared.prompt,
            prepared.grammar,
            sampling=sampling,
            max_tokens=prepared.max_tokens,
            min_tokens=request.min_tokens,
            stop_token_ids=frozenset(request.stop_token_ids),
            banned_words=prepared.banned_words,
            logprobs=(request.logprobs or 0) if request.wants_logprobs else None,
            steering=self._steering(request, prepared.grammar),
        )

    def _checked_budget(self, request: TextRequest, prompt: Sequence[int]) -> int:
        room = self._context_length - len(prompt)
        if not prompt or room < 1:
            raise ValueError(f"the prompt has {len(prompt)} tokens; give 1 to {self._context_length - 1}")
        if request.n < 1:
            raise FieldError("n", f"is {request.n}; give at least 1")
        if request.best_of is not None and request.best_of < request.n:
            raise FieldError("best_of", f"is {request.best_of}; give at least n, which is {request.n}")
        if request.reasoning is not None and self._prompts.end is None:
            raise FieldError(
                "reasoning", "is asked for, but nothing says how the model ends it; give the engine a reasoning_end"
            )
        if request.reasoning is not None and (request.reasoning.max_tokens or 0) < 0:
            raise FieldError("reasoning", f"has max_tokens {request.reasoning.max_tokens}; give 0 or more")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise FieldError("max_tokens", f"is {request.max_tokens}; give at least 1")
        budget = min(room, request.max_tokens or room)
        if not 0 <= request.min_tokens <= budget:
            raise FieldError("min_tokens", f"is {request.min_tokens}; give 0 to {budget}, the most that there can be")
        self._check_ids("prompt", prompt)
        self._check_ids("logit_bias", request.sampling.logit_bias)
        self._check_ids("stop_token_ids", request.stop_token_ids)
        self._check_ids("banned_token_ids", request.banned_token_ids)
        if request.logprobs is not None and not 0 <= request.logprobs <= self._vocab_size:
            raise FieldError("logprobs", f"is {request.logprobs}; give 0 to {self._vocab_size}")
        return budget

    def _check_ids(self, field: str, token_ids: Iterable[int]) -> None:
        if bad := [token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size]:
            raise FieldError(field, f"has token id {bad[0]}; the vocabulary ends at {self._vocab_size - 1}")

    def _grammar(self, request: TextRequest, max_tokens: int) -> GrammarSpec | None:
        spec = request.grammar
        if spec is None:
            return None
        if spec.backend == "auto":
            spec = dataclasses.replace(spec, backend=self._backend)
        spec = dataclasses.replace(spec, when_slow=request.when_slow or self._when_slow)
        if self._bounded:
            spec = bounded_spec(spec)
        if request.reasoning is None:
            return spec
        limit = None if request.reasoning.max_tokens is None else min(request.reasoning.max_tokens, max_tokens)
        # The shortest output must fit behind the reasoning; the answer gets at least a quarter of the budget.
        if request.close_before_budget:
            answer = max(max_tokens // 4, steering_for(spec, self._closing_vocabulary).reserve())
            room = max(0, max_tokens - answer - len(self._prompts.end_token_ids))
            limit = room if limit is None else min(limit, room)
        return dataclasses.replace(spec, reasoning=ReasoningGate(self._prompts.end_token_ids, limit))

    def _steering(self, request: TextRequest, grammar: GrammarSpec | None) -> Steering | None:
        reasoning, end = request.reasoning, self._prompts.end_token_ids
        if grammar is None:
            limit = None if reasoning is None else reasoning.max_tokens
            return None if limit is None else EndReasoning(end, limit)
        if not request.close_before_budget:
            return None
        closing = steering_for(grammar, self._closing_vocabulary)
        return closing if reasoning is None else AfterReasoning(closing, end)
