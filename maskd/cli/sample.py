"""Random outputs of a grammar: a walk over tokens that the masks allow, which leans towards the end.

A walk that draws tokens evenly hardly ever ends, because most tokens prolong a text. So tokens are drawn by what they
do. One that closes something is likelier than one that opens something, the more so the longer the output is. A name
that is required is hardly ever met by chance. So a walk often takes a word of the grammar's source, unused ones first.
Only the likelihood changes: the masks decide what is possible.
Owns: how a token is drawn. Knows nothing about: flags, how outputs are shown.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskd.cli.walk import Alphabet, Walk

__all__ = ["Sample", "RandomWalk"]

Ending = Literal["complete", "cut_off", "dead_end"]

_CLOSING, _QUOTE, _WORD, _OPENING, _OTHER, _BLANK, _BEYOND, _SPECIAL = range(8)
_OUTSIDE = np.array([[2.0, 3.0, 5.0, 1.0, 1.0, 0.1, 0.3, 1.0], [200.0, 50.0, 5.0, 0.1, 0.1, 0.001, 0.001, 1.0]])
_INSIDE = np.array([[0.3, 3.0, 5.0, 0.3, 0.3, 0.5, 0.1, 1.0], [0.1, 200.0, 5.0, 0.1, 0.1, 0.1, 0.001, 1.0]])
"""How likely each group is outside and inside of quotes: at the start of an output, and in its second half."""


@dataclass(frozen=True)
class Sample:
    """One output.

    Attributes:
        text: its bytes, special tokens by their names.
        token_count: without the stop token.
        ending: "complete"; "cut_off" after the most tokens; "dead_end" where no token was allowed, which is a fault.
    """

    text: bytes
    token_count: int
    ending: Ending


class RandomWalk:
    """Draws outputs of one grammar.

    Args:
        alphabet: of the walks.
        words: of the grammar's source, with how often it has each.
        max_tokens: longest output.
    """

    def __init__(self, alphabet: Alphabet, words: Mapping[bytes, int], *, max_tokens: int) -> None:
        self._tokens = alphabet.vocabulary.tokens
        self._stops = np.array(sorted(alphabet.stop_token_ids), dtype=np.int64)
        special = {*alphabet.names, *alphabet.stop_token_ids}
        self._groups = np.array([_SPECIAL if i in special else _group_of(t) for i, t in enumerate(self._tokens)])
        self._words = words
        self._ids = {token: i for i, token in enumerate(self._tokens) if i not in special}
        self._max_tokens = max_tokens

    def sample(self, walk: Walk, rng: random.Random) -> Sample:
        """Draws one output: the same one for the same grammar, vocabulary and state of ``rng``.

        Raises:
            MaskdError: as ``Walk``.
        """
        text, rest, just_ended, quotes = bytearray(), b"", False, _Quotes()
        used = collections.Counter[bytes]()
        allowed, accepting = walk.look()
        for count in range(self._max_tokens):
            pressure = min(1.0, 2 * count / self._max_tokens)
            ids = allowed[~np.isin(allowed, self._stops)]
            if accepting and (not ids.size or rng.random() < (pressure if rest else max(0.3, pressure))):
                return Sample(bytes(text), count, "complete")
            if not ids.size:
                return Sample(bytes(text), count, "dead_end")
            there = set(ids.tolist())
            if not rest and not just_ended and rng.random() < _chance_of_word(text, quotes.are_open, pressure):
                rest = self._word(there, used, rng)
                used[rest] += 1
            token_id = self._longest_start(rest, there) if rest else -1
            if token_id < 0:
                rest, closes = b"", just_ended and rng.random() < 0.9
                weights = _INSIDE if quotes.are_open else _OUTSIDE
                token_id = self._draw(ids, rng, weights, 1.0 if closes else pressure)
                just_ended = False
            else:
                rest = rest[len(self._tokens[token_id]) :]
                just_ended = not rest
            allowed, accepting = walk.go(token_id)
            text += self._tokens[token_id]
            quotes.read(self._tokens[token_id])
        return Sample(bytes(text), self._max_tokens, "complete" if accepting else "cut_off")

    def _word(self, there: set[int], used: Mapping[bytes, int], rng: random.Random) -> bytes:
        """Draws a word that may begin here, or nothing; likelier what the source has often, and the output seldom."""
        found = [word for word in self._words if self._longest_start(word, there) >= 0]
        if not found:
            return b""
        return rng.choices(found, [(self._words[word] / (1 + 3 * used[word])) ** 2 for word in found])[0]

    def _longest_start(self, word: bytes, there: set[int]) -> int:
        """Returns the allowed token that begins ``word`` and is the longest one, or -1."""
        for end in range(len(word), 0, -1):
            token_id = self._ids.get(word[:end], -1)
            if token_id in there:
                return token_id
        return -1

    def _draw(self, ids: NDArray[np.int64], rng: random.Random, weights: NDArray[np.float64], pressure: float) -> int:
        """Draws a group among those of ``ids``, and a token of this group."""
        groups = self._groups[ids]
        present = np.unique(groups)
        likely = weights[0][present] ** (1 - pressure) * weights[1][present] ** pressure
        [group] = rng.choices(present.tolist(), likely.tolist())
        return int(rng.choice(ids[groups == group].tolist()))


def _group_of(token: bytes) -> int:
    """Returns what a text does that ends with ``token``."""
    last = token[-1:]
    if b'"' in token:
        return _QUOTE
    if last in (b"}", b"]", b")", b">"):
        return _CLOSING
    if last.isalnum() or last == b"_":
        return _WORD
    if last in (b"{", b"[", b"(", b"<", b","):
        return _OPENING
    return _BEYOND if last >= b"\x7f" else _BLANK if last <= b" " else _OTHER


def _chance_of_word(text: bytearray, in_quotes: bool, pressure: float) -> float:
    """Returns how likely a word of the source begins here: above all as a name in an object."""
    if text and _group_of(bytes(text[-1:])) in (_WORD, _BEYOND):
        return 0.0
    if not in_quotes:
        return 0.6
    if text[-1:] != b'"':
        return 0.05
    return 0.2 if text[-64:-1].rstrip().endswith(b":") else 0.9 + 0.1 * pressure


class _Quotes:
    """Whether double quotes are open, with backslashes as JSON has them."""

    def __init__(self) -> None:
        self.are_open = False
        self._is_escaped = False

    def read(self, token: bytes) -> None:
        for byte in token:
            if self._is_escaped:
                self._is_escaped = False
            elif byte == ord('"'):
                self.are_open = not self.are_open
            else:
                self._is_escaped = self.are_open and byte == ord("\\")
