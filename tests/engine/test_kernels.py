"""Rows on logits: the torch reference against bits counted one by one, the Triton kernel against the reference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from engine_adapter.kernels import apply_bitmask_
from engine_adapter.kernels.apply import rows_to_tensor
from maskd.bitmask import row_of, row_stride_words

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_rows(count: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """(count, row_stride_words) int32 of random bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count, row_stride_words(vocab_size)), dtype=torch.int32, generator=generator)


def expected(logits: torch.Tensor, rows: torch.Tensor, row_indices: list[int]) -> torch.Tensor:
    """The definition, token by token."""
    result = logits.clone()
    for i, row in enumerate(row_indices):
        if row < 0:
            continue
        for token_id in range(logits.shape[1]):
            if not (int(rows[row, token_id // 32]) >> (token_id % 32)) & 1:
                result[i, token_id] = -torch.inf
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 500])
def test_apply_when_rows_are_random_then_each_bit_decides_its_token(dtype: torch.dtype, vocab_size: int) -> None:
    logits = torch.randn(3, vocab_size).to(dtype)
    rows = random_rows(3, vocab_size)
    want = expected(logits, rows, [0, 1, 2])
    apply_bitmask_(logits, rows)
    assert torch.equal(want, logits)


@pytest.mark.parametrize("indices", [[1, -1, 0, 1], [0, 0, 0, 0], [-1, -1, -1, -1]])
def test_apply_when_indices_are_given_then_each_position_gets_its_row_or_none(indices: list[int]) -> None:
    logits = torch.randn(4, 70)
    rows = random_rows(2, 70)
    want = expected(logits, rows, indices)
    apply_bitmask_(logits, rows, row_indices=torch.tensor(indices, dtype=torch.int32))
    assert torch.equal(want, logits)


def test_apply_when_logits_are_strided_then_only_they_change() -> None:
    """llama.cpp hands out strided scores; xgrammar's own applier gets those silently wrong."""
    memory = torch.randn(70, 3, 4)
    logits = memory[:, :, 1].T  # (3, 70), stride 12 between columns
    before, rows = memory.clone(), random_rows(3, 70)
    want = expected(logits, rows, [0, 1, 2])
    apply_bitmask_(logits, rows)
    assert torch.equal(want, logits)
    assert torch.equal(before[:, :, [0, 2, 3]], memory[:, :, [0, 2, 3]])


def test_apply_when_rows_are_narrower_than_logits_then_refuses() -> None:
    """A padded vocabulary never leaves its tail open."""
    logits = torch.zeros(1, 33)
    with pytest.raises(ValueError, match="32 bits for 33 logits"):
        apply_bitmask_(logits, torch.zeros(1, 1, dtype=torch.int32))
    assert torch.equal(torch.zeros(1, 33), logits)


@pytest.mark.parametrize(
    ("logits", "rows", "indices"),
    [
        (torch.zeros(2, 32), torch.zeros(1, 1, dtype=torch.int32), None),
        (torch.zeros(2, 32), torch.zeros(2, 1, dtype=torch.int64), None),
        (torch.zeros(32), torch.zeros(1, 1, dtype=torch.int32), None),
        (torch.zeros(2, 32, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32), None),
        (torch.zeros(2, 32), torch.zeros(2, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)),
        (torch.zeros(2, 32), torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2)),
        (torch.zeros(2, 32), torch.zeros(2, 1, dtype=torch.int32, device="meta"), None),
    ],
)
def test_apply_when_arguments_do_not_fit_then_refuses(
    logits: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor | None
) -> None:
    with pytest.raises(ValueError, match=r"give|must be"):
        apply_bitmask_(logits, rows, row_indices=indices)


def test_apply_when_an_index_is_past_the_rows_then_raises_on_cpu() -> None:
    with pytest.raises(IndexError):
        apply_bitmask_(torch.zeros(1, 32), torch.zeros(1, 1, dtype=torch.int32), row_indices=torch.tensor([1]))


def test_rows_to_tensor_when_array_is_read_only_then_shares_memory_in_silence() -> None:
    memory = np.stack([row_of([0, 31, 40], 64), row_of([], 64)])
    rows = memory.view()
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = rows_to_tensor(rows[:1])
    logits = torch.zeros(1, 64)
    apply_bitmask_(logits, tensor)
    assert logits[0].isfinite().nonzero().flatten().tolist() == [0, 31, 40]
    memory[0, 0] = 0
    assert tensor[0, 0] == 0


def check_triton(device: str) -> None:
    """Compares the kernel with the reference on every shape that matters; also run by the interpreter test below."""
    from engine_adapter.kernels.triton_bitmask import apply_bitmask_triton_

    for dtype in DTYPES:
        for vocab_size in (1, 33, 4096, 4097, 9000):
            for indices in (None, [1, -1, 0], [2, 2, 2]):
                rows = random_rows(3, vocab_size)
                logits = torch.randn(vocab_size, 6).to(dtype)[:, ::2].T  # (3, V), strided both ways
                want = logits.clone()
                apply_bitmask_(want, rows, row_indices=None if indices is None else torch.tensor(indices))
                got = logits.to(device)
                index_tensor = None if indices is None else torch.tensor(indices, device=device)
                apply_bitmask_triton_(got, rows.to(device), index_tensor)
                assert torch.equal(want, got.cpu()), (dtype, vocab_size, indices)
    past = torch.zeros(1, 40, device=device)
    apply_bitmask_triton_(
        past, torch.full((1, 2), -1, dtype=torch.int32, device=device), torch.tensor([1], device=device)
    )
    assert past.isinf().all(), "an index past the rows allows nothing"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernel_when_interpreted_then_equals_the_reference() -> None:
    """The interpreter must be chosen before Triton is imported, hence the process."""
    code = "from tests.engine.test_kernels import check_triton; check_triton('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_triton_kernel_when_compiled_then_equals_the_reference() -> None:
    check_triton("cuda")
