"""Packed rows, checked against a plain set of token ids.

Owns: the meaning of words and bits, and the padding of rows.
Knows nothing about: grammar libraries and shared memory.
Idea: a row is a set; every function has an obvious model over sets.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskd.bitmask import (
    ROW_ALIGN_WORDS,
    allowed_token_ids,
    mask_array,
    mask_logits,
    row_of,
    row_of_all_but,
    row_stride_words,
    row_words,
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, set[int]]:
    """A vocabulary size and the ids allowed."""
    vocab_size = draw(st.integers(1, 5000) | st.sampled_from([31, 32, 33, 1023, 1024, 1025, 131072]))
    return vocab_size, draw(st.sets(st.integers(0, vocab_size - 1) | st.just(vocab_size - 1), max_size=60))


@pytest.mark.parametrize(
    ("vocab_size", "words", "stride"),
    [(1, 1, 32), (32, 1, 32), (33, 2, 32), (1024, 32, 32), (1025, 33, 64), (131072, 4096, 4096), (151936, 4748, 4768)],
)
def test_row_size_when_given_a_vocab_size_then_is_whole_lines(vocab_size: int, words: int, stride: int) -> None:
    """32 tokens to a word, 32 words to a line of 128 bytes."""
    assert (row_words(vocab_size), row_stride_words(vocab_size)) == (words, stride)


@given(vocab_size=st.integers(1, 1 << 22))
def test_row_stride_when_any_vocab_size_then_is_the_least_that_fits(vocab_size: int) -> None:
    """Every bit has a place, and no whole line is spare."""
    stride = row_stride_words(vocab_size)
    assert stride % ROW_ALIGN_WORDS == 0
    assert (stride - ROW_ALIGN_WORDS) * 32 < vocab_size <= row_words(vocab_size) * 32 <= stride * 32


@given(case=rows())
def test_row_when_made_of_ids_then_holds_exactly_their_bits(case: tuple[int, set[int]]) -> None:
    """Bit j of word w is token 32*w + j; all the others, padding included, are 0."""
    vocab_size, ids = case
    row = row_of(ids, vocab_size)
    assert (row.dtype, row.shape) == (np.dtype(np.int32), (row_stride_words(vocab_size),))
    model = [0] * row_stride_words(vocab_size)
    for token_id in ids:
        model[token_id // 32] |= 1 << (token_id % 32)
    assert [word & 0xFFFFFFFF for word in row.tolist()] == model


@given(case=rows())
def test_allowed_ids_when_read_from_a_row_then_are_those_it_was_made_of(case: tuple[int, set[int]]) -> None:
    """Ascending, without repeats, and the row stays as it was."""
    vocab_size, ids = case
    row = row_of(ids, vocab_size)
    row.flags.writeable = False  # rows in shared memory are read-only to engines
    found = allowed_token_ids(row)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(ids)


@given(case=rows(), padding=st.integers(0, 70))
def test_row_of_all_but_when_ids_are_left_out_then_all_others_of_the_tokenizer_are_allowed(
    case: tuple[int, set[int]], padding: int
) -> None:
    """What the tokenizer does not have is not allowed, to the end of the row."""
    token_count, ids = case
    row = row_of_all_but(ids, token_count, token_count + padding)
    assert (row.dtype, row.shape) == (np.dtype(np.int32), (row_stride_words(token_count + padding),))
    assert allowed_token_ids(row).tolist() == [at for at in range(token_count) if at not in ids]


def test_row_when_ids_are_numpy_integers_then_is_the_same() -> None:
    """Ids from an array need no conversion, the sign bit of a word included."""
    ids = [0, 31, 32, 63, 1000]
    for dtype in (np.int32, np.int64, np.uint32):
        assert np.array_equal(row_of(np.array(ids, dtype=dtype), 1001), row_of(ids, 1001))


def test_allowed_ids_when_the_row_is_a_view_then_reads_the_view() -> None:
    """Every second word of a wider array, as a caller may slice it."""
    wide = np.zeros(64, dtype=np.int32)
    wide[0::2] = row_of([5, 40], 64)
    assert allowed_token_ids(wide[0::2]).tolist() == [5, 40]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(case=rows(), order=st.sampled_from(["C", "F"]))
def test_mask_array_when_rows_are_given_then_all_but_their_tokens_are_minus_infinity(
    dtype: type, case: tuple[int, set[int]], order: Literal["C", "F"]
) -> None:
    """Every width, every format, either order of strides; a position without a row, and memory beside the logits, stay
    as they are."""
    vocab_size, ids = case
    memory = np.ones((3, vocab_size + 1), dtype=dtype, order=order)
    mask_array(memory[:, :vocab_size], np.stack([row_of([], vocab_size), row_of(ids, vocab_size)]), [1, -1, 0])
    expected = np.ones_like(memory)
    expected[2, :vocab_size] = -np.inf
    expected[0, [token_id for token_id in range(vocab_size) if token_id not in ids]] = -np.inf
    assert np.array_equal(expected, memory)


def test_mask_logits_when_they_are_bfloat16_then_the_others_are_minus_infinity() -> None:
    """The upper half of a float32; numpy has no such type."""
    logits = np.full((2, 40), 0x3F80, dtype=np.uint16)
    mask_logits(logits.ctypes.data, "bfloat16", (2, 40), (40, 1), row_of([0, 33], 40)[None], [0, -1])
    values = (logits.astype(np.uint32) << 16).view(np.float32)
    assert np.flatnonzero(values[0] == 1).tolist() == [0, 33] and np.isneginf(values[0]).sum() == 38
    assert (values[1] == 1).all()


def test_mask_array_when_the_rows_are_a_view_then_reads_the_view() -> None:
    """Every second row of a wider block, the words in reverse order."""
    block = np.stack([row_of([at], 2048)[::-1] for at in (1, 5, 40, 1100)])[:, ::-1]
    assert not block[::2].flags.c_contiguous
    logits = np.ones((2, 2048), dtype=np.float32)
    mask_array(logits, block[::2], [1, 0])
    assert [np.flatnonzero(np.isfinite(one)).tolist() for one in logits] == [[40], [1]]


@pytest.mark.parametrize(
    ("logits", "row_indices", "error"),
    [
        (np.ones((1, 32), dtype=np.int64), [0], "logits are int64; give float16"),
        (np.ones((1, 32), dtype=">f4"), [0], "byte order"),
        (np.frombuffer(bytes(128), dtype=np.float32).reshape(1, 32), [0], "writable"),
        (np.ones((1, 32), dtype=[("at", "u1"), ("logit", "f4")])["logit"], [0], "aligned"),
        (np.ones((1, 2000), dtype=np.float32), [0], "1 rows of 1024 bits for 1 x 2000 logits"),
        (np.ones((1, 1025), dtype=np.float32), [0], "1 rows of 1024 bits for 1 x 1025 logits"),
        (np.ones((2, 32), dtype=np.float32), [0], "1 rows of 1024 bits for 2 x 32 logits"),
    ],
)
def test_mask_array_when_logits_do_not_fit_then_refuses_and_changes_none(
    logits: NDArray[np.floating[Any]], row_indices: list[int], error: str
) -> None:
    """Nothing is written that is not certainly a logit of the batch."""
    before = logits.copy()
    with pytest.raises(ValueError, match=error):
        mask_array(logits, row_of([1], 32)[None], row_indices)
    assert np.array_equal(before, logits)


def test_mask_array_when_an_index_is_past_the_rows_then_masks_nothing() -> None:
    """Even the positions before the wrong one stay as they were: the caller sees either all masks or an error."""
    logits = np.ones((2, 32), dtype=np.float32)
    with pytest.raises(IndexError, match="row 1 of 1 rows"):
        mask_array(logits, row_of([1], 32)[None], [0, 1])
    assert logits.all() and np.isfinite(logits).all()
