"""Loads a model: the bundled tiny network, or any local Hugging Face directory. Opens no connection.

Owns: ``LoadedModel``. Knows nothing about: slots, requests, grammars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

__all__ = ["BUNDLED", "LoadedModel", "load_model"]

BUNDLED = Path(__file__).parents[1] / "bundled"
WEIGHT_SEED = 0
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model directory, loaded.

    Attributes:
        network: the ``transformers`` causal language model, in evaluation mode on its device.
        tokenizer: text to token ids and back.
        path: the directory; it holds ``tokenizer.json``.
        stop_token_ids: ids that end a text.
        trained: False if the weights are random numbers.
        sampling: fields of ``SamplingParams`` that the model's ``generation_config.json`` sets.
    """

    network: Any
    tokenizer: Tokenizer
    path: Path
    stop_token_ids: tuple[int, ...]
    trained: bool
    sampling: Mapping[str, float]

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.network.config.vocab_size)


def load_model(path: Path | str | None = None, device: torch.device | str | None = None) -> LoadedModel:
    """Loads a model from a local directory; opens no connection.

    A directory without weights gets random ones, the same on every machine: enough to exercise a decode loop.

    Args:
        path: with ``config.json``, ``tokenizer.json`` and, if trained, ``*.safetensors``; None = the bundled model.
        device: None = the first CUDA device, or else the CPU. The weights are bfloat16 on CUDA, float32 on the CPU.

    Raises:
        ValueError: no such directory or device, or the network has attention windows, which the static slots cannot
            hold.
    """
    directory = BUNDLED if path is None else Path(path)
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ValueError(f"{directory} has no {name}; give a local Hugging Face directory")
    target = _device_of(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"} or getattr(
        config, "sliding_window", None
    ):
        raise ValueError(f"{directory}: the network has layers other than full attention")
    trained = any(directory.glob("*.safetensors"))
    transformers_logging.disable_progress_bar()  # stderr belongs to the caller
    if trained:
        network = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(WEIGHT_SEED)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").to(
                dtype
            )
    stop = network.generation_config.eos_token_id
    if stop is None:
        stop = config.eos_token_id
    return LoadedModel(
        network=network.to(target).eval(),
        tokenizer=Tokenizer.from_file(str(directory / "tokenizer.json")),
        path=directory,
        stop_token_ids=tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,),
        trained=trained,
        sampling=_sampling_defaults(directory / "generation_config.json"),
    )


def _device_of(name: torch.device | str | None) -> torch.device:
    """Returns the device ``name``; None = the first CUDA device, or else the CPU. Raises ValueError: it is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"there is no device {str(name)!r}; give cpu, cuda, cuda:1, …") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"the device is {device}; torch sees {count} CUDA devices here")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device is {device}; give cpu, cuda, cuda:1, …")
    return device


def _sampling_defaults(path: Path) -> dict[str, float]:
    """Returns the fields that a generation config sets, as vLLM reads it; ``do_sample: false`` is temperature 0."""
    if not path.exists():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    given = {name: config[name] for name in _SAMPLING_FIELDS if config.get(name) is not None}
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    return given
