"""How one request is sampled.

Owns: ``SamplingParams`` and its ranges, and ``FieldError``, which names a wrong field.
Knows nothing about: tensors, slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FieldError", "SamplingParams", "shown"]

_LEAST = 5e-324  # above 0
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 100, "0 (greedy) to 100"),
    "top_p": (_LEAST, 1, "more than 0 and at most 1"),
    "min_p": (0, 1, "0 to 1"),
    "typical_p": (_LEAST, 1, "more than 0 and at most 1"),
    "presence_penalty": (-2, 2, "-2 to 2"),
    "frequency_penalty": (-2, 2, "-2 to 2"),
    "repetition_penalty": (0.01, 100, "0.01 to 100, 1 for none"),
}
"""Bounds within which nothing becomes 0, infinite or NaN in float32, and what messages say about them."""


class FieldError(ValueError):
    """A field of a request has a value that the engine cannot serve.

    Attributes:
        field: its name in ``SamplingParams`` or ``TextRequest``.
        complaint: what is wrong and what to give instead; the message is the field and the complaint.
    """

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"{field} {complaint}")
        self.field, self.complaint = field, complaint


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled.

    Attributes:
        temperature: 0 = greedy; 100 at most, where every allowed token is about equally likely.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 = all.
        min_p: drop tokens less likely than this times the most likely one; 0 = none.
        typical_p: keep the smallest set of tokens whose probability reaches this; 1 = all. Tokens whose surprise is
            nearest to the expected one come first (Meister et al., "Locally typical sampling", 2022).
        seed: same seed, same tokens; None = drawn from the system.
        presence_penalty: taken off the logit of every token that the output has already; negative = added.
        frequency_penalty: the same, once for each time that the output has the token.
        repetition_penalty: for tokens of prompt and output: logits above 0 are divided by it, others multiplied by it.
            0.01 to 100; 1 = none.
        logit_bias: token id to what is added to its logit, -100 to 100. No bias allows what a grammar forbids.

    Raises:
        FieldError: a value out of range.
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
        for name, (lowest, highest, words) in _RANGES.items():
            if not lowest <= (value := getattr(self, name)) <= highest:  # NaN is in no range
                raise FieldError(name, f"is {shown(value)}; give {words}")
        if not self.top_k >= 0:
            raise FieldError("top_k", f"is {shown(self.top_k)}; give 0 (all) or more")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or not -100 <= bias <= 100:
                raise FieldError(
                    "logit_bias", f"has {shown(token_id)}: {shown(bias)}; give token ids, each with -100 to 100"
                )


def shown(value: float) -> str:
    """Returns ``value`` for a message; an integer of many digits is not written out."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
