"""A walk through a grammar: one sequence of a session. Its rows are waited for, and every byte has a token.

Owns: the alphabet, and asking again where a row is late.
Knows nothing about: verdicts, random choices.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskd.bitmask import allowed_token_ids
from maskd.client import Session
from maskd.step import Action, Item, LateIndex, Result, Status
from maskd.vocabulary import Vocabulary

__all__ = ["BYTES", "ROW_CAPACITY", "TOKEN_CAPACITY", "Alphabet", "Walk"]

BYTES = Vocabulary([bytes([byte]) for byte in range(256)] + [b"<stop>"], 257, (256,), (256,), "bytes")
"""The vocabulary of single bytes, and a stop token."""
TOKEN_CAPACITY = 1024
"""Tokens of one step."""
ROW_CAPACITY = 8
"""Rows of one step: a character of UTF-8 has at most four bytes."""

_LATE_SECONDS = 60.0
_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class Alphabet:
    """A vocabulary in which every byte has a token, as one grammar sees it.

    What a grammar accepts is a matter of bytes. So a text can be walked byte by byte in any vocabulary.

    Attributes:
        vocabulary: with a token more for every byte that was none.
        stop_token_ids: of the grammar; they stand for no text.
        byte_ids: the token id of each of the 256 bytes.
        names: token id → name, of the special tokens that are no stop tokens; a grammar may name them.
    """

    vocabulary: Vocabulary
    stop_token_ids: frozenset[int]
    byte_ids: tuple[int, ...]
    names: Mapping[int, bytes]

    @classmethod
    def of(cls, vocabulary: Vocabulary, stop_token_ids: Sequence[int] = ()) -> Alphabet:
        """Returns the alphabet of a grammar whose own ``stop_token_ids``, if any, replace the vocabulary's."""
        stops = frozenset(stop_token_ids or vocabulary.stop_token_ids)
        special = {*vocabulary.special_token_ids, *stops}
        found: dict[int, int] = {}
        for token_id, token in enumerate(vocabulary.tokens):
            if len(token) == 1 and token_id not in special:
                found.setdefault(token[0], token_id)
        missing = [byte for byte in range(256) if byte not in found]
        if missing:
            found |= {byte: len(vocabulary.tokens) + index for index, byte in enumerate(missing)}
            tokens = [*vocabulary.tokens, *(bytes([byte]) for byte in missing)]
            size, name = max(vocabulary.vocab_size, len(tokens)), f"{vocabulary.name} with every byte"
            vocabulary = dataclasses.replace(vocabulary, tokens=tokens, vocab_size=size, name=name)
        names = {i: vocabulary.tokens[i] for i in vocabulary.special_token_ids if i not in stops}
        return cls(vocabulary, stops, tuple(found[byte] for byte in range(256)), names)


class Walk:
    """One sequence in a grammar.

    Args:
        session: with at least ``ROW_CAPACITY`` rows and ``TOKEN_CAPACITY`` tokens.
        grammar_id: of the session.
        sequence_id: never used before in this session.
    Raises:
        MaskdError: of any method: the daemon is gone, or the grammar library failed.
    """

    def __init__(self, session: Session, grammar_id: int, sequence_id: int) -> None:
        self._session = session
        self._id = sequence_id
        self._ask(Item(sequence_id, Action.OPEN, grammar_id))

    def accept(self, token_ids: Sequence[int]) -> int:
        """Accepts the longest allowed prefix of ``token_ids`` and returns its length."""
        for at in range(0, len(token_ids), TOKEN_CAPACITY):
            piece = token_ids[at : at + TOKEN_CAPACITY]
            result, _ = self._ask(Item(self._id, accept=piece), expect=Status.TOKEN_REJECTED)
            if result.status:
                self._ask(Item(self._id, accept=piece[: result.accepted_count]))
                return at + result.accepted_count
        return len(token_ids)

    def rollback(self, token_count: int) -> None:
        """Undoes the last ``token_count`` accepted tokens."""
        if token_count:
            self._ask(Item(self._id, rollback=token_count))

    def look(self, ahead: Sequence[int] = ()) -> tuple[NDArray[np.int64], bool]:
        """Returns what may follow ``ahead``, at most ``ROW_CAPACITY`` - 1 tokens, without accepting it.

        Returns:
            The allowed token ids, ascending, (n,) int64, none where ``ahead`` itself is refused. And whether the text
            so far, without ``ahead``, is a complete match.
        """
        return self._look(Item(self._id, drafts=ahead, row=0))

    def go(self, token_id: int) -> tuple[NDArray[np.int64], bool]:
        """Accepts an allowed token and looks, in one step. Where nothing is allowed behind it, it stays unaccepted."""
        return self._look(Item(self._id, accept=[token_id], row=0))

    def _look(self, item: Item) -> tuple[NDArray[np.int64], bool]:
        result, rows = self._ask(item, expect=Status.NO_TOKEN_ALLOWED)
        if result.status or result.row_count <= len(item.drafts):
            return np.empty(0, dtype=np.int64), False
        return allowed_token_ids(rows[len(item.drafts)]), result.accepting

    def _ask(self, item: Item, *, expect: Status = Status.OK) -> tuple[Result, NDArray[np.int32]]:
        """Sends ``item``, waits for its result, however late, and returns it with the rows of the step.

        Raises:
            MaskdError: of any status but OK and ``expect``.
        """
        deadline = time.monotonic() + _LATE_SECONDS
        question = item
        while True:
            reply = self._session.step([question], timeout_seconds=_STEP_SECONDS)
            [result] = reply.results
            if result.status not in (Status.OK, expect):
                error = result.error()
                is_late = result.status == Status.STEP_DEADLINE and result.detail_index != LateIndex.CLOSED
                if error and not (is_late and time.monotonic() < deadline):
                    raise error
                not_begun = result.detail_index == LateIndex.NOT_BEGUN
                question = item if not_begun else Item(item.sequence_id, drafts=item.drafts, row=item.row)
                continue
            return result, reply.rows

    def close(self) -> None:
        """Ends the sequence."""
        self._ask(Item(self._id, Action.CLOSE))
