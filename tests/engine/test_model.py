"""The bundled model: joins and leaves between steps must not show in anybody's logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine_adapter.model.loading import BUNDLED, LoadedModel, load_model
from engine_adapter.model.slots import SlotModel, slots_that_fit

torch.set_num_threads(1)
PROMPTS = [[3, 40, 500, 77], [9, 8, 7, 1000, 2000, 3, 4], [1500]]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(device="cpu")


def undisturbed(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    """Logits after the last token, computed by the network alone without any cache: (V,)."""
    with torch.inference_mode():
        logits: torch.Tensor = loaded.network(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    return logits


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model directory without weights."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(BUNDLED / name, tmp_path)
    return tmp_path


def test_load_when_there_are_no_weights_then_they_are_random_and_the_same_each_time(bare: Path) -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    first, second = load_model(bare, device="cpu"), load_model(bare, device="cpu")
    assert torch.equal(want, torch.rand(1)), "the global seed is untouched"
    assert not first.trained
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True))


def test_load_when_bundled_then_tokenizer_and_logits_agree(loaded: LoadedModel) -> None:
    assert loaded.vocab_size == loaded.tokenizer.get_vocab_size()
    assert [loaded.tokenizer.id_to_token(token_id) for token_id in loaded.stop_token_ids] == [
        "<|endoftext|>",
        "<|im_end|>",
    ]
    text = '{"work history": ["naïve 日本 \U0001f600"]}\n'
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text).ids) == text


def test_load_when_directory_has_weights_then_they_are_used(bare: Path) -> None:
    network = load_model(bare, device="cpu").network
    with torch.no_grad():
        network.lm_head.weight.mul_(2)
    network.save_pretrained(bare)
    trained = load_model(bare, device="cpu")
    assert trained.trained
    assert torch.equal(trained.network.lm_head.weight, network.lm_head.weight)
    assert trained.stop_token_ids == (0, 2)


def test_load_when_attention_has_windows_then_refused(tmp_path: Path) -> None:
    config = json.loads((BUNDLED / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mistral", "sliding_window": 16}))
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="full attention"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 2},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        ),
        (
            {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.05},
            {"temperature": 0.0, "repetition_penalty": 1.05},
        ),
        ({"do_sample": True, "top_p": None}, {}),
    ],
)
def test_load_when_the_model_says_how_to_sample_then_it_is_read(
    bare: Path, config: dict[str, object], sampling: dict[str, float]
) -> None:
    (bare / "generation_config.json").write_text(json.dumps(config))
    assert load_model(bare, "cpu").sampling == sampling


def test_slots_when_sequences_join_and_leave_then_logits_equal_the_network_alone(loaded: LoadedModel) -> None:
    model = SlotModel(loaded.network, slot_count=3, context_length=32)
    texts = [list(prompt) for prompt in PROMPTS]

    def check(slot: int) -> None:
        torch.testing.assert_close(model.logits[slot], undisturbed(loaded, texts[slot]), rtol=1e-4, atol=1e-4)

    def decode(slots: list[int]) -> None:
        chosen = [int(model.logits[slot].argmax()) for slot in range(3)]
        model.decode(torch.tensor(chosen), slots)
        for slot in slots:
            texts[slot].append(chosen[slot])
            check(slot)

    model.prefill(0, texts[0])
    decode([0])
    model.prefill(1, texts[1][:3])  # a chunk
    decode([0])  # must not disturb the half-filled neighbour
    model.prefill(1, texts[1][3:])
    check(1)
    decode([0, 1])
    model.prefill(2, texts[2])
    decode([0, 1, 2])
    model.free(0)
    texts[0] = [11, 12]
    model.prefill(0, texts[0])
    check(0)
    decode([0, 1, 2])
    assert model.lengths == [len(text) for text in texts]


def test_prefill_when_slot_has_no_room_then_refused(loaded: LoadedModel) -> None:
    model = SlotModel(loaded.network, slot_count=1, context_length=4)
    model.prefill(0, [1, 2, 3])
    with pytest.raises(ValueError, match="room for 1 more"):
        model.prefill(0, [4, 5])
    with pytest.raises(ValueError, match="room"):
        model.prefill(0, [])


def test_decode_when_repeated_then_buffers_stay_where_they_are(loaded: LoadedModel) -> None:
    """What a CUDA graph relies on."""
    model = SlotModel(loaded.network, slot_count=2, context_length=8)
    model.prefill(0, [1, 2])
    before = [model.logits.data_ptr(), *(layer.keys.data_ptr() for layer in model._cache.slot_layers)]
    for _ in range(3):
        model.decode(torch.tensor([5, 6]), [0])
    assert before == [model.logits.data_ptr(), *(layer.keys.data_ptr() for layer in model._cache.slot_layers)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_decode_on_cuda_then_the_graphs_compute_what_the_network_does() -> None:
    """Steps of several shapes, replayed and captured in turns, against the same steps launched one by one."""
    loaded = load_model(device="cuda")
    graphed, plain = (SlotModel(loaded.network, 6, 600) for _ in range(2))
    plain._graphs = None
    for length, slots in (
        (5, [0]),
        (5, [0]),
        (250, [0, 1, 2]),
        (3, [0, 1, 2, 3, 4]),
        (3, [0]),
        (5, [0, 1, 2, 3, 4, 5]),
    ):
        for model in (graphed, plain):
            for slot in slots:
                model.free(slot)
                model.prefill(slot, [(7 * slot + i) % 500 for i in range(length)])
        for step in range(10):
            token_ids = torch.arange(6, device="cuda") + step
            for model in (graphed, plain):
                model.decode(token_ids, slots)
            torch.testing.assert_close(graphed.logits[slots].float(), plain.logits[slots].float(), rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_slots_on_cuda_then_as_many_as_memory_has_room_for() -> None:
    loaded = load_model(device="cuda")
    assert slots_that_fit(loaded, 256, 4) == 4 and 1 <= slots_that_fit(loaded, 256) <= 256
    with pytest.raises(ValueError, match="MiB are free"):
        slots_that_fit(loaded, 1 << 40, 1)


def test_slots_on_the_cpu_then_as_many_as_wanted() -> None:
    loaded = load_model(device="cpu")
    assert slots_that_fit(loaded, 256) == 16 and slots_that_fit(loaded, 256, 3) == 3
    with pytest.raises(ValueError, match="slots is 0"):
        slots_that_fit(loaded, 256, 0)
