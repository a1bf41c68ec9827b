"""The tokenizer of a model directory: where chat templates come from, and a beginning-of-text token that stands
once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engine_adapter.text.tokenizer import TextTokenizer

USER = [{"role": "user", "content": "hi"}]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<s>": 0, "hi": 1, "you": 2, "<unk>": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.add_special_tokens(["<s>"])
    return made


def of(directory: Path, **config: Any) -> TextTokenizer:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return TextTokenizer(tokenizer(), directory)


def test_beginning_of_text_when_template_and_tokenizer_put_it_then_stands_once(tmp_path: Path) -> None:
    made = of(tmp_path, bos_token={"content": "<s>"}, chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert made.encode("hi you") == made.encode("<s>hi you") == [0, 1, 2] and made.decode([0, 1]) == "hi"
    assert made.apply_chat_template(USER) == "<s>hi"
    assert made.apply_chat_template(USER, tokenize=True) == [0, 1]


def test_templates_when_named_then_tools_choose_theirs_and_the_file_is_the_default(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools[0].name }}{{ extra }}"},
    ]
    assert of(tmp_path, chat_template=templates).apply_chat_template(USER) == "plain"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    made = of(tmp_path, chat_template=templates)
    assert made.chat_template == "from the file" == made.apply_chat_template(USER)
    assert made.apply_chat_template(USER, tools=[{"name": "f"}], extra="!") == "f!"


def test_templates_when_missing_or_refusing_then_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        of(tmp_path).apply_chat_template(USER)
    with pytest.raises(ValueError, match="roles must alternate"):
        of(tmp_path, chat_template="{{ raise_exception('roles must alternate') }}").apply_chat_template(USER)
    with pytest.raises(ValueError, match="refused"):  # the sandbox
        of(tmp_path, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}").apply_chat_template(USER)
