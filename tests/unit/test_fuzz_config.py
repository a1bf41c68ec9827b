"""Configuration files, variables and flags with anything in them: a configuration, or one line that says what is
wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.serve.command import load_settings
from maskd.errors import ConfigError
from maskd.front.config import Config, flags, load
from tests.fuzzing import WILD_JSON, WILD_TEXTS, budget

FIELDS = [field.name for field in msgspec.structs.fields(Config)]
SERVE_FIELDS = [
    "model",
    "host",
    "port",
    "guided_decoding_backend",
    "slots",
    "queue_limit",
    "context_length",
    "bounded",
    "body_bytes",
    "log_level",
]
YAML_WORDS = st.sampled_from(
    [
        "a",
        ":",
        " ",
        "\n",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&x",
        "*x",
        "!!python/object:os.system",
        "!!int",
        "<<",
        "|",
        ">",
        "'",
        '"',
        "\t",
        "#",
        "1",
        "~",
        "? ",
    ]
)


def one_line(error: ConfigError) -> None:
    assert error.message
    assert "\n" not in error.message


@st.composite
def files(draw: st.DrawFn, fields: list[str]) -> bytes:
    """Settings with wild values, words of YAML in no order, or bytes."""
    how = draw(st.sampled_from(["settings", "settings", "words", "bytes"]))
    if how == "bytes":
        return draw(st.binary(max_size=40))
    if how == "words":
        return "".join(draw(st.lists(YAML_WORDS, max_size=20))).encode()
    names = st.one_of(st.sampled_from(fields), WILD_TEXTS)
    return json.dumps(draw(st.dictionaries(names, WILD_JSON, max_size=4))).encode("utf-8", "surrogatepass")


@budget(150)
@given(content=files(FIELDS))
def test_config_file_when_it_is_wild_then_a_configuration_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "wild.yaml"
    file.write_bytes(content)
    try:
        assert isinstance(load({}, {}, str(file)), Config)
    except ConfigError as error:
        one_line(error)


@budget(100)
@given(name=st.sampled_from(FIELDS), text=st.one_of(WILD_TEXTS, WILD_JSON.map(json.dumps)))
def test_variable_and_flag_when_they_are_wild_then_a_configuration_or_one_line(name: str, text: str) -> None:
    """A variable and a flag are read alike: what one takes, the other takes."""
    outcomes: list[Any] = []
    try:
        outcomes.append(load({}, {f"MASKD_{name.upper()}": text}, None))
    except ConfigError as error:
        one_line(error)
        outcomes.append(None)
    parser = argparse.ArgumentParser(exit_on_error=False)
    flags(parser)
    if msgspec.structs.fields(Config)[FIELDS.index(name)].type is bool:
        return  # a flag without a value
    try:
        outcomes.append(load(vars(parser.parse_args([f"--{name.replace('_', '-')}={text}"])), {}, None))
    except ConfigError as error:
        one_line(error)
        outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@budget(100)
@given(content=files(SERVE_FIELDS))
def test_serve_file_when_it_is_wild_then_settings_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "serve.yaml"
    file.write_bytes(content)
    try:
        load_settings({}, str(file))
    except ConfigError as error:
        one_line(error)


def test_cores_when_given_as_a_flag_or_a_variable_then_they_are_numbers(tmp_path: Path) -> None:
    """--compile-cpus 0,1 is the list of a file."""
    parser = argparse.ArgumentParser()
    flags(parser)
    (tmp_path / "maskd.yaml").write_text(yaml.safe_dump({"compile_cpus": [0, 1]}))
    assert load(vars(parser.parse_args(["--compile-cpus", "0,1"])), {}, None).compile_cpus == [0, 1]
    assert load({}, {"MASKD_COMPILE_CPUS": "0,1"}, None).compile_cpus == [0, 1]
    assert load({}, {}, str(tmp_path / "maskd.yaml")).compile_cpus == [0, 1]
