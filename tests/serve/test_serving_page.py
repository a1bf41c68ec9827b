"""docs/serving.md says what is so: its examples run, its tables are compared with the code."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from engine_adapter.serve.command import ServeSettings, add_flags, load_settings
from tests.serve.conftest import ROOT, Server
from tests.test_docs import hold

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(info: str) -> list[str]:
    return [match[1] for match in re.finditer(rf"^```{info}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.mark.xdist_group("serve")
@pytest.mark.parametrize("source", blocks("python client"))
def test_example_when_run_then_it_works(source: str, server: Server) -> None:
    """As printed; only the address is another."""
    source = source.replace("http://localhost:8000", server.url)
    exec(compile(source, "docs/serving.md", "exec", dont_inherit=True), {"__name__": "example"})


def test_commands_and_files_when_read_then_they_are_settings(tmp_path: Path) -> None:
    """The YAML file and the flags are good together."""
    [text], [console] = blocks("yaml serve"), blocks("console serve")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    words = shlex.split(console.removeprefix("$ "))
    assert words[:2] == ["engine-adapter", "serve"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    flags = vars(parser.parse_args(words[2:]))
    settings = load_settings(flags, str(path))
    assert dataclasses.asdict(settings).items() >= yaml.safe_load(text).items()
    assert settings.port == int(words[-1])


def test_settings_table_when_compared_with_the_code_then_it_is_the_same() -> None:
    """One row for each setting."""
    rows = []
    for field in dataclasses.fields(ServeSettings):
        default = {None: "none", False: "false", True: "true"}.get(field.default, field.default)
        rows.append(f"| `{field.name}` | {default} | {field.metadata['help']} |\n")
    hold("docs/serving.md", "<!-- settings -->\n| setting | default | meaning |\n|---|---|---|\n", "".join(rows), "\n")


def test_routes_table_when_compared_with_the_code_then_it_is_the_same() -> None:
    """Every route is in the table, once; those of Groq are said in words."""
    from engine_adapter.serve.app import create_app

    class NoEngine:
        def stats(self) -> None: ...

    routes = create_app(NoEngine()).routes  # type: ignore[arg-type]
    served = {
        f"{method} {route.path}"
        for route in routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith("/openai/v1")
    }
    listed = re.findall(r"`((?:GET|POST) /[^`]*)`", PAGE)
    assert sorted(listed) == sorted(served)
