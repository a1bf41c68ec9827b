"""The published examples of Instructor's and LoRAX's pages; only addresses and calls that clients refuse change."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

SEEDS = Path(os.environ["SERVE_SEEDS"])
pytestmark = pytest.mark.skipif(not SEEDS.exists(), reason="the published pages are not here")


def example(page: str, marker: str) -> str:
    """The one Python block of ``page`` that has ``marker``."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (SEEDS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [found] = [block for block in blocks if marker in block]
    return found


def run(source: str, **environment: str) -> dict[str, Any]:
    """Executes an example; returns its names."""
    os.environ.update(environment)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "example", "exec", dont_inherit=True), names)
    return names


PAGE = "instructor-open-source-clients.md"


@pytest.mark.usefixtures("trained")
def test_ollama_json(url: str) -> None:
    """As printed."""
    user = run(example(PAGE, "localhost:11434").replace("http://localhost:11434", url))["user"]
    assert (user.name, user.age) == ("Jason", 30)


@pytest.mark.usefixtures("trained")
def test_anyscale_json_schema(url: str) -> None:
    """As printed."""
    answer = run(
        example(PAGE, "anyscale.com").replace("https://api.endpoints.anyscale.com", url), ANYSCALE_API_KEY="any"
    )["resp"]
    assert (answer.name, answer.age) == ("Jason", 20)


@pytest.mark.usefixtures("trained")
def test_together_tools(url: str) -> None:
    """As printed."""
    user = run(example(PAGE, "together.xyz").replace("https://api.together.xyz", url), TOGETHER_API_KEY="any")["user"]
    assert (user.name.lower(), user.age) == ("jason", 25)


@pytest.mark.usefixtures("trained")
def test_groq_md_json(url: str) -> None:
    """Three slips are mended: ``qrog``, three quotes too many, and ``from_openai``, which takes no Groq client now."""
    source = (
        example(PAGE, "qrog").replace("qrog", "groq").replace("from_openai", "from_groq").rstrip().removesuffix('"""')
    )
    user = run(source, GROQ_API_KEY="any", GROQ_BASE_URL=url)["user"]
    assert (user.name.lower(), user.age) == ("jason", 25)


@pytest.mark.usefixtures("trained")
def test_mistral_tools(url: str) -> None:
    """``MistralClient`` is gone, and so is ``from_openai(create=...)``."""
    source = example(PAGE, "MistralClient")
    source = source.replace("import MistralClient", "import Mistral").replace(
        "MistralClient()", f"Mistral(api_key='any', server_url={url!r})"
    )
    source = source.replace("from_openai(create=client.chat, mode=", "from_mistral(client, mode=")
    source = source.replace("patched_chat(\n", "patched_chat.chat.completions.create(\n")
    answer = run(source)["resp"]
    assert (answer.name, answer.age) == ("Jason", 20)


def test_lorax_client(url: str) -> None:
    """A stray backslash is removed. The client refuses to send the second part, so the test posts it."""
    source = example("lorax-structured-output.md", "from lorax import Client").replace(
        "generated_text)\\\n", "generated_text)\n"
    )
    first, second = source.split("# Example 2")
    names = run(first.replace("http://127.0.0.1:8080", url))
    names["Character"].model_validate(names["my_character_with_schema"])
    assert '"type": "json_object",  # No schema' in second
    body = {
        "inputs": names["prompt_with_schema"],
        "parameters": {"response_format": {"type": "json_object"}, "max_new_tokens": 200},
    }
    [answer] = httpx.post(url, json=body, timeout=60).json()
    assert isinstance(json.loads(answer["generated_text"]), dict)
