"""The bundled model under a chat template that knows reasoning: what it thinks means nothing, so tests end it by a
limit."""

from __future__ import annotations

import json
from pathlib import Path

from engine_adapter.model.loading import BUNDLED

ALWAYS = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}"
"""The end of a template whose model always reasons."""
IF_ASKED = (
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\n' + ('<think>\n' if enable_thinking else '') }}{%- endif -%}"
)
"""The end of a template whose model reasons if it is asked to."""
UNLESS_TOLD = (
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
"""The end of a template whose model begins with reasoning by itself, and can be told not to."""
PLAIN = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
"""The end of a template whose model does not reason."""
MESSAGES = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}{%- endfor -%}"
)


def make_directory(directory: Path, end_of_template: str) -> Path:
    """Returns ``directory`` as a model directory: links to the bundled model's files, and a template of its own."""
    for file in BUNDLED.iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "tokenizer_config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((BUNDLED / "tokenizer_config.json").read_text(encoding="utf-8"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": MESSAGES + end_of_template}), encoding="utf-8"
    )
    return directory
