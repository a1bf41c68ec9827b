"""Words that an output must not have: the tokens that would complete one.

The search is over the bytes of the output, so it finds words however they are cut into tokens.
Owns: the search. Knows nothing about: masks, sampling; the sampler forbids the tokens unless no others are left.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from maskd.vocabulary import Vocabulary

__all__ = ["BannedWords", "TokenPrefixes"]


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
        found = []
        for token, token_id in self._sorted[bisect_left(self._sorted, (prefix, -1)) :]:
            if not token.startswith(prefix):
                break
            found.append(token_id)
        return found


class BannedWords:
    """The words of one request."""

    def __init__(self, words: Sequence[str], prefixes: TokenPrefixes, token_ids: Sequence[int] = ()) -> None:
        """Takes note of ``words``, of which empty ones mean nothing, and of ``token_ids`` that are always banned."""
        self._words = [word.encode() for word in words if word]
        self._prefixes = prefixes
        self._always = [*token_ids]
        if self._words:
            self._always += [
                token_id for token_id, token in prefixes.texts.items() if any(word in token for word in self._words)
            ]
        self._longest = max(map(len, self._words), default=0)

    def forbidden(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the tokens that would complete a word after ``token_ids``, the output so far."""
        tail = b""
        for token_id in reversed(token_ids):
            if len(tail) >= self._longest - 1:
                break
            tail = self._prefixes.texts.get(token_id, b"") + tail
        found = self._always.copy()
        for word in self._words:
            for size in range(1, len(word)):
                if tail.endswith(word[:size]):
                    found += self._prefixes.starting(word[size:])
        return found
