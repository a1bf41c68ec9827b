"""llguidance over the 256 bytes: the smallest vocabulary in which every text has one spelling."""

from __future__ import annotations

from typing import Any

import pytest

llguidance = pytest.importorskip("llguidance")

STOP = 256


class Tokens:
    """The bytes and a stop token, as llguidance asks for a vocabulary."""

    tokens = (*(bytes([value]) for value in range(STOP)), b"<stop>")
    special_token_ids = (STOP,)
    eos_token_id = STOP
    bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


_TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokens()))


def matcher_of_lark(grammar: str) -> Any:
    """Returns a matcher of ``grammar``, which the library must take."""
    matcher = llguidance.LLMatcher(_TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), (matcher.get_error(), grammar)
    return matcher
