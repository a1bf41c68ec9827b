"""Words that an output must not have: the tokens that would complete one.

The search is over the bytes of the output, so it finds words however they are cut into tokens.
Owns: the search. Knows nothing about: masks, sampling; the sampler forbids the tokens unless no others are left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import takewhile

from maskd.vocabulary import Vocabulary

__all__ = ["BannedWords", "TokenPrefixes"]

_FEW_WORDS = 16


class TokenPrefixes:
    """The tokens of a model in the order of their bytes, without special ones. Made once per model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = frozenset(vocabulary.special_token_ids)
        self.texts = {
            token_id: token for token_id, token in enumerate(vocabulary.tokens) if token and token_id not in special
        }
        self._sorted = sorted((token, token_id) for token_id, token in self.texts.items())

    def starting(self, prefix: bytes) -> list[int]:
        """Returns the tokens that begin with ``prefix``."""
        first = bisect_left(self._sorted, (prefix, -1))
        following = (self._sorted[index] for index in range(first, len(self._sorted)))
        return [token_id for _, token_id in takewhile(lambda entry: entry[0].startswith(prefix), following)]


class BannedWords:
    """The words of one request."""

    def __init__(self, words: Sequence[str], prefixes: TokenPrefixes, token_ids: Sequence[int] = ()) -> None:
        """Takes note of ``words``, of which empty ones mean nothing, and of ``token_ids`` that are always banned."""
        self._words = sorted({word.encode() for word in words if word})
        self._prefixes = prefixes
        self._always = [*token_ids]
        if self._words:
            has_word = self._finder()
            self._always += [token_id for token_id, token in prefixes.texts.items() if has_word(token)]
        self._longest = max(map(len, self._words), default=0)

    def forbidden(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the tokens that would complete a word after ``token_ids``, the output so far."""
        tail = b""
        for token_id in reversed(token_ids):
            if len(tail) >= self._longest - 1:
                break
            tail = self._prefixes.texts.get(token_id, b"") + tail
        found = self._always.copy()
        for size in range(1, min(len(tail), self._longest - 1) + 1):
            begun = tail[-size:]
            for index in range(bisect_right(self._words, begun), len(self._words)):
                if not self._words[index].startswith(begun):
                    break
                found += self._prefixes.starting(self._words[index][size:])
        return found

    def _finder(self) -> Callable[[bytes], bool]:
        """Returns what says whether a token has a word in it. Looks up its parts where that beats trying each word."""
        words = self._words
        if len(words) < _FEW_WORDS:
            return lambda token: any(word in token for word in words)
        known, sizes = frozenset(words), sorted(set(map(len, words)))
        return lambda token: any(
            token[start : start + size] in known
            for size in sizes[: bisect_right(sizes, len(token))]
            for start in range(len(token) - size + 1)
        )
