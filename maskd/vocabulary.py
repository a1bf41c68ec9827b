"""The vocabulary: what every token id of an engine means, as bytes.

Owns: ``Vocabulary``, its checks, its fingerprint and its compact byte form (used between processes).
Knows nothing about: tokenizer files (``tokenizer_files``), grammar libraries, gRPC.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from maskd.errors import VocabularyError

__all__ = ["Vocabulary"]

MAX_VOCAB_SIZE = 1 << 22
MAX_TOKEN_BYTES = 1 << 16
_CHUNK = 1 << 13
"""Tokens that are packed in one native call, which holds the interpreter: millions at once would stop the front."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one model.

    Attributes:
        tokens: ``tokens[i]`` is the byte string of token id i. Empty for ids that never stand for text (padding).
            For a special token, its name (``<|im_end|>``): it never matches text, but a grammar may name it.
        vocab_size: width of the logits; at least ``len(tokens)``. Bits from ``len(tokens)`` on are always 0.
        stop_token_ids: ids that end a sequence; sorted, at least one.
        special_token_ids: ids that never match text; sorted; includes the stop tokens.
        name: for people and logs; not part of the fingerprint.

    Raises:
        VocabularyError: an id out of range, no token, no stop token, or a token or width beyond the limits.
    """

    tokens: Sequence[bytes]
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    special_token_ids: tuple[int, ...] = ()
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        stop = _sorted_ids("stop_token_ids", self.stop_token_ids, len(self.tokens))
        if not stop:
            raise VocabularyError(
                "the vocabulary has no stop token; give at least one id in stop_token_ids", field="stop_token_ids"
            )
        special = _sorted_ids("special_token_ids", (*self.special_token_ids, *stop), len(self.tokens))
        object.__setattr__(self, "stop_token_ids", stop)
        object.__setattr__(self, "special_token_ids", special)
        if not self.tokens:
            raise VocabularyError("the vocabulary has no tokens", field="tokens")
        if not len(self.tokens) <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise VocabularyError(
                f"vocab_size is {self.vocab_size} for {len(self.tokens)} tokens; give the width of the logits, "
                f"at least the number of tokens and at most {MAX_VOCAB_SIZE}",
                field="vocab_size",
            )
        for token_id, token in enumerate(self.tokens):
            if not isinstance(token, bytes):
                raise VocabularyError(
                    f"token {token_id} is {type(token).__name__}, not bytes", field="tokens", token_id=token_id
                )
            if len(token) > MAX_TOKEN_BYTES:
                raise VocabularyError(
                    f"token {token_id} has {len(token)} bytes; at most {MAX_TOKEN_BYTES} are taken",
                    field="tokens",
                    token_id=token_id,
                )

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """sha256 (32 bytes) of everything but the name; equal fingerprints give equal masks."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Returns the compact form, of which the fingerprint is the sha256.

        First ``<4I``: vocab_size and the counts of tokens, stop ids and special ids. Then stop ids, special ids and
        token lengths, each ``<I``. Then the bytes of all tokens, one after the other.
        """
        head = struct.pack(
            "<4I", self.vocab_size, len(self.tokens), len(self.stop_token_ids), len(self.special_token_ids)
        )
        ids = (*self.stop_token_ids, *self.special_token_ids)
        chunks = [self.tokens[at : at + _CHUNK] for at in range(0, len(self.tokens), _CHUNK)]
        lengths = [struct.pack(f"<{len(chunk)}I", *map(len, chunk)) for chunk in chunks]
        return b"".join((head, struct.pack(f"<{len(ids)}I", *ids), *lengths, *[b"".join(chunk) for chunk in chunks]))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> Vocabulary:
        """Reads what ``to_bytes`` wrote. Raises VocabularyError: malformed."""
        try:
            vocab_size, token_count, stop_count, special_count = struct.unpack_from("<4I", data)
            if token_count > MAX_VOCAB_SIZE or max(stop_count, special_count) > token_count:
                raise VocabularyError(
                    f"implausible counts: {token_count} tokens, {stop_count} stop, {special_count} special"
                )
            numbers = struct.unpack_from(f"<{stop_count + special_count + token_count}I", data, 16)
        except struct.error as error:
            raise VocabularyError(f"the vocabulary ends in its header: {error}") from None
        at = 16 + 4 * len(numbers)
        lengths = numbers[stop_count + special_count :]
        if at + sum(lengths) != len(data):
            raise VocabularyError(f"the vocabulary has {len(data)} bytes, its lengths say {at + sum(lengths)}")
        tokens = []
        for length in lengths:
            tokens.append(data[at : at + length])
            at += length
        return cls(tokens, vocab_size, numbers[:stop_count], numbers[stop_count : stop_count + special_count], name)


def _sorted_ids(name: str, ids: Iterable[int], token_count: int) -> tuple[int, ...]:
    unique = tuple(sorted({int(token_id) for token_id in ids}))
    if unique and not (unique[0] >= 0 and unique[-1] < token_count):
        bad = unique[0] if unique[0] < 0 else unique[-1]
        raise VocabularyError(f"{name} holds {bad}, outside of the {token_count} tokens", field=name, token_id=bad)
    return unique
