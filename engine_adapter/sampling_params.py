"""How one request is sampled. Knows nothing about: tensors, slots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SamplingParams"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled.

    Attributes:
        temperature: 0 = greedy.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 = all.
        min_p: drop tokens less likely than this times the most likely one; 0 = none.
        typical_p: keep the smallest set of tokens whose probability reaches this, those first whose surprise is nearest to the
            expected one (Meister et al., "Locally typical sampling", 2022); 1 = all.
        seed: same seed, same tokens; None = drawn from the system.
        presence_penalty: taken off the logit of every token that the output has already; negative = added.
        frequency_penalty: the same, once for each time that the output has it.
        repetition_penalty: of tokens that prompt or output have, logits above 0 are divided by it and others multiplied; 1 = none.
        logit_bias: token id to what is added to its logit, -100 to 100. No bias allows what a grammar forbids.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; give 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; give 0 to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= (penalty := getattr(self, name)) <= 2:
                raise ValueError(f"{name} is {penalty}; give -2 to 2")
        if not 0 < self.typical_p <= 1:
            raise ValueError(f"typical_p is {self.typical_p}; give more than 0 and at most 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; give more than 0, 1 for none")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or not -100 <= bias <= 100:
                raise ValueError(f"logit_bias has {token_id}: {bias}; give token ids, each with -100 to 100")
