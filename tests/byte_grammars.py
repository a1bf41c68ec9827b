"""Grammars over the 256 bytes and a stop token: texts are walked through their rows, and random texts made from them.

It is the smallest vocabulary in which every text has one spelling.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from maskd.backends.base import Grammar, Matcher
from maskd.bitmask import row_stride_words
from maskd.vocabulary import Vocabulary

STOP = 256
ENDING = frozenset(b'"}],:')
VOCABULARY = Vocabulary((*(bytes([value]) for value in range(STOP)), b"<stop>"), STOP + 1, (STOP,), (STOP,), "bytes")


def row_of(matcher: Matcher) -> NDArray[np.int32]:
    """Returns the row of ``matcher``, which stays as it is."""
    row = np.zeros(row_stride_words(VOCABULARY.vocab_size), dtype=np.int32)
    matcher.fill_bitmask(row)
    return row


def allows(row: NDArray[np.int32], token: int) -> bool:
    """Whether ``row`` allows ``token``."""
    return bool(int(row[token >> 5]) >> (token & 31) & 1)


def takes(grammar: Grammar, text: str) -> bool:
    """Whether ``grammar`` takes ``text`` and may stop there, without a look at the rows in between."""
    matcher, tokens = grammar.matcher(), list(text.encode())
    return matcher.accept(tokens) == len(tokens) and allows(row_of(matcher), STOP)


def walked(grammar: Grammar, text: str) -> bool:
    """The same, by its rows: each must allow the next byte, which the matcher then must take."""
    matcher = grammar.matcher()
    for token in text.encode():
        if not allows(row_of(matcher), token):
            return False
        assert matcher.accept((token,)) == 1, (text, token)
    return allows(row_of(matcher), STOP)


def walk(grammar: Grammar, rng: random.Random, most: int = 200) -> str | None:
    """Returns what random allowed bytes make, mostly such that end something; None if it is not at its end by then.

    A row that allows nothing is a dead end, and fails.
    """
    matcher, taken = grammar.matcher(), list[int]()
    while len(taken) < most:
        allowed = np.flatnonzero(np.unpackbits(row_of(matcher).view(np.uint8), bitorder="little")).tolist()
        assert allowed, f"nothing is allowed behind {bytes(taken)!r}"
        if STOP in allowed and (len(allowed) == 1 or rng.random() < 0.5):
            return bytes(taken).decode()
        ending = [token for token in allowed if token in ENDING] if rng.random() < 0.3 + len(taken) / 300 else []
        plain = [token for token in allowed if 32 < token < 127]
        token = rng.choice(ending or plain or [token for token in allowed if token != STOP])
        assert matcher.accept((token,)) == 1, (bytes(taken), token)
        taken.append(token)
    return None
