"""xgrammar over the 256 bytes: the smallest vocabulary in which every text has one spelling."""

from __future__ import annotations

from typing import Any

import pytest

xgrammar = pytest.importorskip("xgrammar")

STOP = 256

_COMPILER = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo(
        [*(bytes([value]) for value in range(STOP)), b""],
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=STOP + 1,
        stop_token_ids=[STOP],
    ),
    max_threads=1,
    cache_enabled=False,
)


def grammar_of_ebnf(grammar: str) -> Any:
    """Returns the compiled ``grammar``, which the library must take."""
    return _COMPILER.compile_grammar(grammar)


def takes(compiled: Any, text: bytes) -> bool:
    """Whether ``text`` is all of what the grammar says."""
    matcher = xgrammar.GrammarMatcher(compiled)
    return all(map(matcher.accept_token, text)) and bool(matcher.accept_token(STOP))
