"""The fields of our own in every dialect: closing before the budget, and white space between JSON tokens."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest

from engine_adapter.engine.generation import Delta, TextGeneration, TextRequest
from engine_adapter.model.loading import BUNDLED
from engine_adapter.serve.app import create_app
from engine_adapter.serve.command import ServeSettings
from maskd.backends import load
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.tokenizer_files import load_vocabulary
from tests.serve.conftest import Server

HI = [{"role": "user", "content": "hi"}]
JSON = {"type": "json_object"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": HI, "response_format": JSON}),
    "call": ("/v1/chat/completions", {"messages": HI, "tools": [TOOL], "tool_choice": "required"}),
    "named": (
        "/v1/chat/completions",
        {"messages": HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ),
    "guided": ("/v1/chat/completions", {"messages": HI, "guided_json": {"type": "array"}}),
    "completions": ("/v1/completions", {"prompt": "hi", "response_format": JSON}),
    "responses": ("/v1/responses", {"input": "hi", "text": {"format": JSON}}),
    "lorax": ("/generate", {"inputs": "hi", "parameters": {"response_format": JSON}}),
    "lorax list": ("/", {"inputs": "hi", "parameters": {"response_format": JSON}}),
    "ollama chat": ("/api/chat", {"messages": HI, "format": "json"}),
    "ollama generate": ("/api/generate", {"prompt": "hi", "format": "json"}),
}
WHITE = [token_id for token_id, token in enumerate(load_vocabulary(BUNDLED).tokens) if token and not token.strip()]


class Listening:
    """An engine that ends every request at once, and remembers the last."""

    model_name, model_sampling, failure = "m", {}, None  # type: ignore[var-annotated]

    def __init__(self) -> None:
        self.prompts = self.tokenizer = self
        self.heard: TextRequest | None = None

    def stats(self) -> None: ...

    def render(self, *arguments: object, **variables: object) -> tuple[str, bool]:
        return "hi", False

    def submit(self, request: TextRequest) -> TextGeneration:
        self.heard = request
        generation = TextGeneration(request, 1, lambda: None)
        generation.choices[0].finish_reason = "length"
        generation.push(Delta(0, "", (), finish_reason="length"))
        return generation


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("closes", "most"), [(True, 32), (False, None)])
async def test_fields_of_our_own_when_given_then_they_beat_the_servers_settings(
    name: str, closes: bool, most: int | None
) -> None:
    """In each dialect; absent is what the server was told, null is any number."""
    engine = Listening()
    app = create_app(engine, close_before_budget=closes, max_whitespace=most)  # type: ignore[arg-type]
    path, body = BODIES[name]
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        for own, wanted in (
            ({}, (closes, most, None)),
            ({"close_before_budget": not closes, "max_whitespace": 7, "when_slow": "fail"}, (not closes, 7, "fail")),
            ({"close_before_budget": None, "max_whitespace": None, "when_slow": None}, (closes, None, None)),
            ({"max_whitespace": 0}, (closes, 0, None)),
        ):
            mine = {**body, "parameters": body["parameters"] | own} if "parameters" in body else body | own
            answer = await client.post(path, json=mine)
            assert answer.status_code == 200, answer.text
            assert engine.heard and engine.heard.grammar
            assert (
                engine.heard.close_before_budget,
                engine.heard.grammar.options.max_whitespace,
                engine.heard.when_slow,
            ) == wanted
        bad = (
            {**body, "parameters": body["parameters"] | {"max_whitespace": 1025}}
            if "parameters" in body
            else body | {"max_whitespace": -1}
        )
        refused = await client.post(path, json=bad)
        assert refused.status_code == 400 and "max_whitespace is " in refused.text and "give 0 to 1024" in refused.text


async def test_white_space_when_a_constraint_has_a_bound_of_its_own_then_it_is_kept() -> None:
    """vLLM's ``disable_any_whitespace``; a regular expression has no white space between its tokens."""
    engine = Listening()
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=create_app(engine)),  # type: ignore[arg-type]
        base_url="http://test",
    ) as client:
        for constraint, most in (({"json_object": True, "disable_any_whitespace": True}, 0), ({"regex": "a"}, None)):
            body = {"messages": HI, "structured_outputs": constraint, "max_whitespace": 9}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert engine.heard and engine.heard.grammar and engine.heard.grammar.options.max_whitespace == most


@pytest.mark.xdist_group("serve")
@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
@pytest.mark.parametrize("tools", [False, True])
def test_white_space_when_the_model_wants_nothing_else_then_it_ends_where_the_server_says(
    plain_server: Server, backend: str, tools: bool
) -> None:
    """With a bias for white space and no bound it never ends; with the default the answer is whole."""
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    call = {"type": "function", "function": {"name": "f", "parameters": schema}}
    shape: dict[str, Any] = (
        {"tools": [call], "tool_choice": "required"} if tools else {"response_format": {**JSON, "schema": schema}}
    )
    body = {
        "messages": HI,
        "logit_bias": dict.fromkeys(map(str, WHITE), 100),
        "max_tokens": 400,
        "guided_decoding_backend": backend,
        **shape,
    }

    def gaps(**own: Any) -> tuple[str, int]:
        answer = httpx2.post(plain_server.url + "/v1/chat/completions", json=body | own, timeout=100)
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        calls = choice["message"].get("tool_calls")
        text = calls[0]["function"]["arguments"] if calls else choice["message"]["content"]
        return ("stop" if choice["finish_reason"] == "tool_calls" else choice["finish_reason"]), max(
            map(len, re.findall(r"\s*", text))
        )

    assert gaps() == ("stop", 32)
    assert gaps(max_whitespace=5) == ("stop", 5)
    reason, longest = gaps(max_whitespace=None, close_before_budget=False)
    assert reason == "length" and longest > 300


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
@pytest.mark.parametrize(("levels", "indent"), [(7, 4), (15, 2)])
def test_white_space_when_json_is_printed_in_lines_then_the_default_allows_it(
    backend: str, levels: int, indent: int
) -> None:
    """Seven levels of four spaces, fifteen of two; one more is too deep to be indented so."""
    vocabulary = load_vocabulary(BUNDLED)
    tokens = {token: token_id for token_id, token in enumerate(vocabulary.tokens) if len(token) == 1}
    options = GrammarOptions(max_whitespace=ServeSettings().max_whitespace)
    grammar = load(backend)(vocabulary, threads=1).compile(GrammarSpec("json_object", "", backend, options))
    for depth, is_taken in ((levels, True), (levels + 1, False)):
        value: Any = 1
        for _ in range(depth):
            value = {"a": value}
        text = json.dumps(value, indent=indent).encode()
        ids = [tokens[text[at : at + 1]] for at in range(len(text))]
        assert (grammar.matcher().accept(ids) == len(ids)) == is_taken
