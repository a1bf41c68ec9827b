"""The sampler: each parameter, seeds, and what must never be drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine_adapter.sampling.params import SamplingParams
from engine_adapter.sampling.penalties import Penalties
from engine_adapter.sampling.sampler import Sampler, _uniform

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def draws(params: SamplingParams, logits: torch.Tensor = LOGITS, count: int = 2000) -> list[int]:
    """How often each token is drawn over ``count`` positions."""
    sampler = Sampler(count, len(logits))
    for slot in range(count):
        sampler.set(slot, params)
    ids = sampler.sample(logits.repeat(count, 1), torch.arange(count))
    return torch.bincount(ids, minlength=len(logits)).tolist()


def test_sample_when_plain_then_follows_the_probabilities() -> None:
    counts = draws(SamplingParams(seed=1), count=5000)
    assert torch.tensor(counts) / 5000 == pytest.approx(torch.tensor([0.4, 0.3, 0.2, 0.1]), abs=0.03)


def test_sample_when_temperature_is_zero_then_is_greedy() -> None:
    assert draws(SamplingParams(temperature=0.0, seed=1)) == [2000, 0, 0, 0]


def test_sample_when_temperature_is_low_then_likely_tokens_gain() -> None:
    assert draws(SamplingParams(temperature=0.25, seed=1))[0] > draws(SamplingParams(seed=1))[0]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=2, seed=3), 2),
        (SamplingParams(top_k=100, seed=3), 4),
        (SamplingParams(top_p=0.5, seed=3), 2),
        (SamplingParams(top_p=0.01, seed=3), 1),
        (SamplingParams(min_p=0.6, seed=3), 2),
        (SamplingParams(top_k=3, top_p=0.95, min_p=0.4, seed=3), 3),
    ],
)
def test_sample_when_truncated_then_only_the_most_likely_are_drawn(params: SamplingParams, kept: int) -> None:
    counts = draws(params)
    assert all(counts[:kept]) and not any(counts[kept:])


def test_sample_when_a_token_is_forbidden_then_it_is_never_drawn() -> None:
    """Forbidden first, last and between, under every kind of parameters."""
    logits = torch.full((301,), -torch.inf)
    logits[[100, 200]] = 0.0
    for params in (
        SamplingParams(seed=5),
        SamplingParams(top_p=0.9, seed=5),
        SamplingParams(top_k=50, min_p=0.1, seed=5),
    ):
        counts = draws(params, logits)
        assert counts[100] + counts[200] == 2000


@pytest.mark.parametrize(
    "params", [SamplingParams(top_k=2, seed=1), SamplingParams(temperature=0.0), SamplingParams(typical_p=0.5, seed=1)]
)
def test_sample_when_nothing_finite_is_allowed_then_nothing_is_drawn(params: SamplingParams) -> None:
    """Rows of -inf, of NaN, with NaN or infinity where the rest is forbidden; a good row beside them is drawn from."""
    rows = [
        [-torch.inf] * 5,
        [torch.nan] * 5,
        [torch.nan] + [-torch.inf] * 4,
        [torch.inf] + [-torch.inf] * 4,
        [-torch.inf] * 4 + [1.0],
    ]
    sampler = Sampler(5, 5)
    for slot in range(5):
        sampler.set(slot, params)
    assert sampler.sample(torch.tensor(rows), torch.zeros(5, dtype=torch.int64)).tolist() == [-1, -1, -1, -1, 4]


NUMBERS = {
    "temperature": [0.0, 5e-324, 1e-46, 1e-45, 1e-38, 1e-5, 100.0],
    "top_k": [1, 2**31, 2**63, 10**40],
    "top_p": [5e-324, 1e-46, 1e-45, 1e-8, 1.0],
    "min_p": [0.0, 5e-324, 1e-45, 1.0],
    "typical_p": [5e-324, 1e-46, 1e-45, 1e-8, 1.0],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "repetition_penalty": [0.01, 100.0],
    "seed": [0, -1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**40],
    "logit_bias": [{0: 100.0, 1: -100.0}, dict.fromkeys(range(6), -100.0), {0: 5e-324}],
}


@pytest.mark.parametrize("penalty", [1e-46, 0.01, 100.0, 3e38])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NUMBERS.items() for value in values], ids=str
)
def test_sample_when_numbers_are_at_their_edges_then_a_forbidden_token_is_never_drawn(
    name: str, value: Any, penalty: float
) -> None:
    """Beside each, a repetition penalty, also ones that no request may have: 0 in float32 and -inf would be NaN."""
    params = SamplingParams(**{"seed": 1, name: value})
    object.__setattr__(params, "repetition_penalty", penalty)
    logits = torch.tensor([[80.0, -80.0, 1e-30, -torch.inf, 0.5, -torch.inf]]).repeat(8, 1)
    sampler = Sampler(8, 6)
    for slot in range(8):
        sampler.set(slot, params, [0, 1, 3])
    for position in range(3):
        ids = sampler.sample(logits, torch.arange(8) + position)
        assert set(ids.tolist()) <= {0, 1, 2, 4}
        sampler.count(ids, range(8))


def test_sample_when_seed_is_equal_then_slot_and_neighbours_do_not_matter() -> None:
    logits = torch.randn(3, 50)
    logits[2] = logits[0]
    sampler = Sampler(3, 50)
    for slot, seed in enumerate([7, 8, 7]):
        sampler.set(slot, SamplingParams(seed=seed))
    rows = [sampler.sample(logits, torch.full((3,), position)).tolist() for position in range(20)]
    assert [row[0] for row in rows] == [row[2] for row in rows]
    assert [row[0] for row in rows] != [row[1] for row in rows]
    sampler.set(1, SamplingParams(temperature=0.0))
    assert rows[0][0] == sampler.sample(logits, torch.zeros(3, dtype=torch.int64))[0]


def test_sample_when_slots_differ_then_each_keeps_its_own_parameters() -> None:
    sampler = Sampler(3, 4)
    sampler.set(0, SamplingParams(temperature=0.0))
    sampler.set(1, SamplingParams(top_k=2, seed=1))
    sampler.set(2, SamplingParams(seed=2))
    seen = [set[int](), set[int](), set[int]()]
    for position in range(100):
        for slot, token_id in enumerate(sampler.sample(LOGITS.repeat(3, 1), torch.full((3,), position)).tolist()):
            seen[slot].add(token_id)
    assert seen == [{0}, {0, 1}, {0, 1, 2, 3}]


def test_set_when_seed_is_any_integer_then_it_is_taken() -> None:
    sampler = Sampler(1, 4)
    for seed in (0, -1, 2**63, 2**64 + 5, -(2**80), None):
        sampler.set(0, SamplingParams(seed=seed))


def test_uniform_is_splitmix64() -> None:
    """First outputs for seed 1234567 as published with the algorithm; the top 24 bits are used."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    got = _uniform(torch.full((3,), 1234567), torch.arange(3))
    assert [value >> 40 for value in published] == (got * 2**24).long().tolist()


@pytest.mark.parametrize("like", ["likely", "typical"])
def test_sample_when_typical_then_the_surprising_are_left_out_on_both_sides(like: str) -> None:
    """Of one likely token and many rare ones the rare are typical: their surprise is the expected one."""
    logits = torch.tensor([0.3] + [0.1] * 7).log() if like == "typical" else torch.tensor([0.9, 0.05, 0.05]).log()
    counts = draws(SamplingParams(typical_p=0.5, seed=3), logits)
    assert (counts[0] == 0 and all(counts[1:6])) if like == "typical" else counts[1:] == [0, 0]


def test_sample_when_biased_then_tokens_gain_but_never_against_the_mask() -> None:
    masked = LOGITS.clone()
    masked[3] = -torch.inf
    assert draws(SamplingParams(seed=1, logit_bias={3: 100.0})) == [0, 0, 0, 2000]
    assert draws(SamplingParams(seed=1, logit_bias={3: 100.0, 0: -100.0}), masked)[3] == 0
    assert draws(SamplingParams(temperature=0.0, logit_bias={0: -5.0, 1: -5.0})) == [0, 0, 2000, 0]


def test_penalties_when_tokens_repeat_then_prompt_and_output_count_once() -> None:
    """Above 0 divided, below 0 multiplied, whether a token stands in the prompt, in the output, or in both; neighbours
    are untouched."""
    logits = torch.tensor([[4.0, 3.0, -1.0, -3.0]] * 2)
    penalties = Penalties(2, 4)
    penalties.set(0, SamplingParams(repetition_penalty=2.0), [0, 0])
    penalties.set(1, SamplingParams(), [])
    assert penalties.apply(logits).tolist() == [[2.0, 3.0, -1.0, -3.0], [4.0, 3.0, -1.0, -3.0]]
    penalties.count(torch.tensor([2, 0]), [0, 1])
    penalties.count(torch.tensor([0, 0]), [0, 1])
    assert penalties.apply(logits)[0].tolist() == [2.0, 3.0, -2.0, -3.0]
    several = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={1: 3.0})
    penalties.set(0, several, [1])
    penalties.count(torch.tensor([2, 0]), [0])
    penalties.count(torch.tensor([2, 0]), [0])
    # (3 + 3) / 2, -1 * 2 - 0.5 - 2 * 0.25
    assert penalties.apply(logits)[0].tolist() == [4.0, 3.0, -3.0, -3.0]
    penalties.release(0)
    assert penalties.apply(logits) is logits


def test_sample_when_repetition_is_penalised_then_another_token_wins() -> None:
    logits = torch.tensor([[4.0, 3.0, -1.0, -3.0]] * 2)
    sampler, positions = Sampler(2, 4), torch.zeros(2, dtype=torch.int64)
    sampler.set(0, SamplingParams(temperature=0.0, repetition_penalty=2.0))
    sampler.set(1, SamplingParams(temperature=0.0))
    assert sampler.sample(logits, positions).tolist() == [0, 0]
    sampler.count(torch.tensor([0, 0]), [0, 1])
    assert sampler.sample(logits, positions).tolist() == [1, 0]
    sampler.release(0)
    assert sampler.sample(logits, positions).tolist() == [0, 0]


def test_sample_when_tokens_are_forbidden_then_not_drawn_unless_nothing_else_is_left() -> None:
    only = torch.full((4,), -torch.inf)
    only[2] = 1.0
    sampler = Sampler(2, 4)
    for position in range(50):
        ids = sampler.sample(torch.stack([LOGITS, only]), torch.full((2,), position), {0: [0, 1], 1: [2, 3]}).tolist()
        assert ids[0] in (2, 3) and ids[1] == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 100.1},
        {"temperature": 1e39},
        {"temperature": 10**400},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": float("nan")},
        {"top_p": float("nan")},
        {"frequency_penalty": 1e39},
        {"presence_penalty": float("-inf")},
        {"repetition_penalty": 1e-46},
        {"repetition_penalty": 1e39},
        {"repetition_penalty": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: 101.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
    ],
)
def test_params_when_out_of_range_then_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        SamplingParams(**bad)
