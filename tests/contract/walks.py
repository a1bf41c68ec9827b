"""What the contract tests share: vocabularies, and walking text through a matcher."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maskd.backends.base import Grammar, Matcher
from maskd.bitmask import row_stride_words
from maskd.vocabulary import Vocabulary

SHARED = Path(__file__).resolve().parents[3] / "shared"

STOP, TOOL, NAMELESS, STOP_TOO = 256, 258, 259, 260
_WORDS = (
    b"ab",
    b"<tool>",
    b"",
    b"</s2>",
    b'{"',
    b'":',
    b'", "',
    b"true",
    b"Paris",
    b"Lon",
    b"don",
    b" the",
    "é".encode(),
    "€".encode()[:2],
    b"12",
    b"\n\n",
)
SMALL = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b"</s>", *_WORDS[:1], *_WORDS[1:]],
    333,
    (STOP,),
    (TOOL, STOP_TOO),
    "small",
)
"""Every byte, some longer tokens, special ones, one without bytes, and padding: 333 is no multiple of 32."""


def tekken() -> Vocabulary:
    """The vocabulary of 131,072 tokens that Mistral's models have."""
    mistral_common = pytest.importorskip("mistral_common")
    data = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    size, special = data["config"]["default_vocab_size"], data["config"]["default_num_special_tokens"]
    tokens = [f"<SPECIAL_{token_id}>".encode() for token_id in range(special)]
    tokens += [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][: size - special]]
    return Vocabulary(tokens, size, (2,), tuple(range(special)), "tekken")


def new_row(vocabulary: Vocabulary) -> NDArray[np.int32]:
    """A row full of rubbish, so that a word that is not written shows."""
    return np.full(row_stride_words(vocabulary.vocab_size), 0x5A5A5A5A, dtype=np.int32)


def row_of_matcher(matcher: Matcher, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """The row of ``matcher``, with the bits past the tokens cleared, as the worker clears them."""
    row = new_row(vocabulary)
    matcher.fill_bitmask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    bits[len(vocabulary.tokens) :] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> set[int]:
    row = row_of_matcher(matcher, vocabulary)
    return {int(token_id) for token_id in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))}


def accepts(grammar: Grammar, text: str | bytes) -> bool:
    """Whether ``grammar`` takes ``text`` byte by byte (of a vocabulary that starts with the bytes) and may then
    stop."""
    return accepts_ids(grammar, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


def accepts_ids(grammar: Grammar, token_ids: Sequence[int]) -> bool:
    matcher = grammar.matcher()
    ids = list(token_ids)
    return matcher.accept(ids) == len(ids) and matcher.accept([min(grammar.stop_token_ids)]) == 1


class GreedyTokenizer:
    """Longest match first, as far as the vocabulary goes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = set(vocabulary.special_token_ids)
        self._ids = {
            token: token_id
            for token_id, token in reversed(list(enumerate(vocabulary.tokens)))
            if token and token_id not in special
        }
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            for length in range(min(self._longest, len(text) - at), 0, -1):
                token_id = self._ids.get(text[at : at + length])
                if token_id is not None:
                    break
            else:
                raise ValueError(f"no token for {text[at : at + 4]!r}")
            ids.append(token_id)
            at += length
        return ids
