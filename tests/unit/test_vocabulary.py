"""Vocabulary: its checks, its fingerprint and its compact form.

Owns: what must hold for any tokens, and for any bytes taken as a vocabulary.
Knows nothing about: tokenizer files.
Idea: round trips and byte-flips over generated vocabularies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskd.errors import VocabularyError
from maskd.vocabulary import MAX_TOKEN_BYTES, MAX_VOCAB_SIZE, Vocabulary

SMALL = Vocabulary([b"</s>", b"a", b"b", b"", b"<x>"], 32, (0,), (4,), name="small")


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    tokens = draw(st.lists(st.binary(max_size=8), min_size=1, max_size=40))
    ids = st.integers(0, len(tokens) - 1)
    return Vocabulary(
        tokens=tokens,
        vocab_size=len(tokens) + draw(st.integers(0, 100)),
        stop_token_ids=tuple(draw(st.lists(ids, min_size=1, max_size=4))),
        special_token_ids=tuple(draw(st.lists(ids, max_size=4))),
        name=draw(st.text(max_size=4)),
    )


def test_ids_when_unsorted_or_repeated_then_are_sorted_and_stops_are_special() -> None:
    """Equal vocabularies look equal, however their ids were listed."""
    vocabulary = Vocabulary([b"a"] * 5, 5, (3, 1, 3), (4, 1))
    assert vocabulary.stop_token_ids == (1, 3)
    assert vocabulary.special_token_ids == (1, 3, 4)
    assert vocabulary.tokens == (b"a",) * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_token_ids": ()}, "no stop token"),
        ({"stop_token_ids": (5,)}, "stop_token_ids holds 5"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids holds -1"),
        ({"special_token_ids": (99,)}, "special_token_ids holds 99"),
        ({"vocab_size": 4}, "vocab_size is 4 for 5 tokens"),
        ({"vocab_size": MAX_VOCAB_SIZE + 1}, "vocab_size is"),
        ({"tokens": []}, "outside of the 0 tokens"),
        ({"tokens": [b"a", "b", b"", b"", b""]}, "token 1 is str"),
        ({"tokens": [b"a", b"x" * (MAX_TOKEN_BYTES + 1), b"", b"", b""]}, "token 1 has 65537 bytes"),
    ],
)
def test_vocabulary_when_malformed_then_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each refusal names the field and the value."""
    with pytest.raises(VocabularyError) as caught:
        dataclasses.replace(SMALL, **changes)
    assert message in caught.value.message
    assert "field" in caught.value.metadata


@given(vocabulary=vocabularies())
def test_compact_form_when_read_back_then_is_the_same_vocabulary(vocabulary: Vocabulary) -> None:
    """to_bytes and from_bytes are inverse, name aside; the fingerprint is the hash of the bytes."""
    data = vocabulary.to_bytes()
    again = Vocabulary.from_bytes(data, name="other")
    assert again == vocabulary
    assert (again.to_bytes(), again.fingerprint, again.name) == (data, vocabulary.fingerprint, "other")
    assert vocabulary.fingerprint == hashlib.sha256(data).digest()


def test_fingerprint_when_computed_anywhere_then_is_this() -> None:
    """Fingerprints are compared between processes and releases: the compact form must not change."""
    head = struct.pack("<4I", 32, 5, 1, 2) + struct.pack("<3I", 0, 0, 4) + struct.pack("<5I", 4, 1, 1, 0, 3)
    assert SMALL.to_bytes() == head + b"</s>ab<x>"
    assert SMALL.fingerprint.hex() == hashlib.sha256(head + b"</s>ab<x>").hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 33},
        {"stop_token_ids": (4,)},
        {"special_token_ids": (1, 4)},
        {"tokens": [b"</s>", b"b", b"a", b"", b"<x>"]},
        {"tokens": [b"</s>", b"ab", b"", b"", b"<x>"]},
        {"tokens": [b"</s>", b"a", b"b", b"", b"<x>", b""]},
    ],
)
def test_fingerprint_when_anything_but_the_name_changes_then_changes(changes: dict[str, Any]) -> None:
    """Also when only the border between two tokens moves."""
    assert dataclasses.replace(SMALL, **changes).fingerprint != SMALL.fingerprint
    assert dataclasses.replace(SMALL, name="other").fingerprint == SMALL.fingerprint


@given(data=st.binary(max_size=200))
def test_from_bytes_when_any_bytes_then_only_vocabulary_errors_leave(data: bytes) -> None:
    """Bytes from the wire never raise anything else."""
    with contextlib.suppress(VocabularyError):
        Vocabulary.from_bytes(data)


@given(vocabulary=vocabularies(), data=st.data())
def test_from_bytes_when_damaged_then_only_vocabulary_errors_leave(vocabulary: Vocabulary, data: st.DataObject) -> None:
    """Nor does a vocabulary that was cut, extended or changed in one number; a cut or extended one is always
    refused."""
    raw = vocabulary.to_bytes()
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + b"\0"):
        with pytest.raises(VocabularyError):
            Vocabulary.from_bytes(wrong)
    place = 4 * data.draw(st.integers(0, 3 + len(vocabulary.tokens)))
    number = data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 50))
    changed = raw[:place] + struct.pack("<I", number) + raw[place + 4 :]
    with contextlib.suppress(VocabularyError):
        Vocabulary.from_bytes(changed)
