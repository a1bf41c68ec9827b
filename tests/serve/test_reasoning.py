"""Reasoning over HTTP in every dialect: on, off and short, split from the answer, before calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.reasoning_model import UNLESS_TOLD, make_directory
from tests.serve.conftest import SHORT_FLAGS, TRAINED, Server

pytestmark = pytest.mark.xdist_group("serve")

ASK: Any = [{"role": "user", "content": "Which city?"}]
CHAT = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {"name": {"enum": ["Paris", "Rome"]}},
    "required": ["name"],
    "additionalProperties": False,
}
LIMIT = 6
SHORT = {"thinking_token_budget": LIMIT}


@pytest.fixture(scope="module")
def reasoning_server(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Its model begins with reasoning unless it is told not to."""
    return start_server(
        *SHORT_FLAGS, "--slots", "4", str(make_directory(tmp_path_factory.mktemp("model"), UNLESS_TOLD))
    )


@pytest.fixture
def reasoner(reasoning_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=reasoning_server.url + "/v1", api_key="any", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
def post(reasoning_server: Server) -> Callable[..., Any]:
    return lambda path, **body: httpx2.post(reasoning_server.url + path, json=body, timeout=60)


def city(text: str | None) -> None:
    jsonschema.validate(json.loads(text or ""), CITY)


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": CITY}}


# -- on, off, short ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, True),
        ({"reasoning_effort": "low"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
    ids=str,
)
def test_chat_when_reasoning_is_turned_on_or_off_then_the_message_has_it_or_not(
    post: Any, fields: Any, thinks: bool
) -> None:
    """In every spelling; the content is what the grammar says either way."""
    answer = post(CHAT, messages=ASK, regex="(Paris|London)", max_tokens=60, **SHORT, **fields).json()
    message = answer["choices"][0]["message"]
    assert message["content"] in ("Paris", "London") and answer["choices"][0]["finish_reason"] == "stop"
    assert ("reasoning_content" in message, "reasoning" in message) == (thinks, thinks)
    thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert (0 < thought < answer["usage"]["completion_tokens"]) if thinks else thought == 0


@pytest.mark.parametrize("spelling", ["thinking_token_budget", "max_reasoning_tokens"])
def test_chat_when_the_reasoning_has_a_limit_then_it_is_kept(post: Any, spelling: str) -> None:
    """With a grammar by the daemon, without one by the engine; the end counts as well."""
    used = {}
    for limit in (0, 9):
        for fields in ({"regex": "ok"}, {}):
            body = post(CHAT, messages=ASK, max_tokens=40, seed=1, temperature=1, **{spelling: limit}, **fields).json()
            used[limit, bool(fields)] = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert used[0, True] == used[0, False] > 0  # the tokens of the end alone
    assert used[9, True] <= 9 + used[0, True] and used[9, False] <= 9 + used[0, True]


def test_chat_when_json_is_closed_before_the_budget_then_the_reasoning_is_too(post: Any) -> None:
    """No limit is given: the server keeps room for the answer."""
    answer = post(
        CHAT, messages=ASK, max_tokens=60, response_format={"type": "json_object"}, temperature=1.2, seed=4
    ).json()
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "telepathic"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ],
    ids=str,
)
def test_chat_when_a_field_of_reasoning_is_wrong_then_it_is_named(post: Any, fields: Any, param: str) -> None:
    answer = post(CHAT, messages=ASK, max_tokens=5, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# -- OpenAI's client ---------------------------------------------------------------------------------------------------


def test_client_when_it_reads_the_answer_then_reasoning_and_content_are_apart(reasoner: OpenAI) -> None:
    """``reasoning_content`` as DeepSeek's own examples read it; log probabilities are those of the content."""
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    answer = reasoner.chat.completions.create(
        model="m", messages=ASK, max_tokens=60, logprobs=True, response_format=schema, extra_body=SHORT
    )
    choice = answer.choices[0]
    city(choice.message.content)
    assert choice.message.reasoning_content == choice.message.reasoning  # type: ignore[attr-defined]
    assert choice.logprobs and "".join(token.token for token in choice.logprobs.content or []) == choice.message.content
    assert (
        answer.usage
        and answer.usage.completion_tokens_details
        and answer.usage.completion_tokens_details.reasoning_tokens
    )


def test_client_when_it_streams_then_reasoning_comes_before_content(reasoner: OpenAI) -> None:
    chunks = list(
        reasoner.chat.completions.create(
            model="m",
            messages=ASK,
            max_tokens=60,
            stream=True,
            seed=2,
            logprobs=True,
            stream_options={"include_usage": True},
            extra_body={**SHORT, "regex": "(Paris|London)"},
        )
    )
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    kinds = [
        "thought" if delta.get("reasoning_content") else "content"
        for delta in deltas
        if delta.get("reasoning_content") or delta["content"]
    ]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"thought", "content"}
    assert "".join(delta["content"] or "" for delta in deltas) in ("Paris", "London")
    assert "</think>" not in "".join(delta.get("reasoning_content") or "" for delta in deltas)
    shown = [
        token
        for chunk in chunks
        if chunk.choices and (logged := chunk.choices[0].logprobs)
        for token in logged.content or []
    ]
    assert "".join(token.token for token in shown) in ("Paris", "London")
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens_details


def test_client_when_it_wants_no_reasoning_shown_then_it_is_made_and_left_out(reasoner: OpenAI) -> None:
    answer = reasoner.chat.completions.create(
        model="m", messages=ASK, max_tokens=60, extra_body={**SHORT, "regex": "ok", "include_reasoning": False}
    )
    assert "reasoning_content" not in answer.choices[0].message.model_dump()
    assert (
        answer.usage
        and answer.usage.completion_tokens_details
        and answer.usage.completion_tokens_details.reasoning_tokens
    )


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "look"}}, "required"], ids=["named", "required"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tools_when_a_call_is_forced_then_it_comes_behind_the_reasoning(
    reasoner: OpenAI, choice: Any, stream: bool
) -> None:
    """Named calls too: their beginning cannot stand in the prompt then."""
    fields: Any = {
        "model": "m",
        "messages": ASK,
        "tools": [tool("look"), tool("see")],
        "tool_choice": choice,
        "max_tokens": 120,
    }
    if stream:
        with reasoner.chat.completions.stream(**fields, extra_body=SHORT) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = reasoner.chat.completions.create(**fields, extra_body=SHORT)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.reasoning_content
    assert message.tool_calls and {call.function.name for call in message.tool_calls} <= (
        {"look"} if choice != "required" else {"look", "see"}
    )
    for call in message.tool_calls:
        city(call.function.arguments)


def test_tools_when_custom_with_a_lark_grammar_then_reasoning_must_be_off(reasoner: OpenAI) -> None:
    """Said, not ignored."""
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}}
    fields: Any = {
        "model": "m",
        "messages": ASK,
        "max_tokens": 30,
        "tools": [{"type": "custom", "custom": {"name": "c", "format": grammar}}],
        "tool_choice": {"type": "custom", "custom": {"name": "c"}},
    }
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        reasoner.chat.completions.create(**fields)
    [call] = reasoner.chat.completions.create(**fields, reasoning_effort="none").choices[0].message.tool_calls or []
    assert call.type == "custom" and call.custom.input == "a"


def test_responses_when_the_model_reasons_then_an_item_comes_before_the_message(reasoner: OpenAI) -> None:
    """Whole and in events, as the client's own types read them; ``reasoning.effort`` turns it off."""
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": CITY}}
    fields: Any = {"model": "m", "input": "Which city?", "text": text, "max_output_tokens": 60, "extra_body": SHORT}
    answer = reasoner.responses.create(**fields)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    [thought] = [item for item in answer.output if item.type == "reasoning"]
    assert thought.content and thought.content[0].text and thought.summary == []
    city(answer.output_text)
    assert answer.usage and answer.usage.output_tokens_details.reasoning_tokens > 0
    with reasoner.responses.stream(**fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert (
        kinds.index("response.reasoning_text.delta")
        < kinds.index("response.reasoning_text.done")
        < kinds.index("response.output_text.delta")
    )
    said = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert said == next(item.content[0].text for item in final.output if item.type == "reasoning" and item.content)
    city(final.output_text)
    silent = reasoner.responses.create(**fields, reasoning={"effort": "none"})
    assert [item.type for item in silent.output] == ["message"]
    again = reasoner.responses.create(
        **fields | {"input": [{"role": "user", "content": "hi"}, *final.output, {"role": "user", "content": "?"}]}
    )
    city(again.output_text)


# -- Ollama ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_ollama_when_asked_to_think_then_thinking_is_a_field_of_its_own(post: Any, path: str) -> None:
    """``think`` as it has it; a word is an effort."""
    body: Any = {"model": "m", "format": CITY, "options": {"num_predict": 80}, "messages": ASK, "prompt": "Which city?"}
    for think in (True, "low", False):
        whole = post(path, **body, think=think, stream=False).json()
        lines = [json.loads(line) for line in post(path, **body, think=think).text.splitlines()]
        part, parts = whole.get("message", whole), [line.get("message", line) for line in lines]
        city(part.get("content") or part.get("response"))
        city("".join(each.get("content") or each.get("response") or "" for each in parts))
        assert bool(part.get("thinking")) == any(each.get("thinking") for each in parts) == bool(think)


# -- the bundled model -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not TRAINED, reason="the bundled model has random weights")
def test_bundled_model_when_asked_to_think_then_it_says_what_it_read_and_ends_by_itself(client: OpenAI) -> None:
    """Its own template and marks, which are plain text to its tokenizer; with a schema, and without."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    ask: Any = [{"role": "user", "content": "Extract `Jason is 30 years old`"}]
    fields: Any = {"model": "m", "messages": ask, "reasoning_effort": "low", "max_tokens": 200}
    masked = client.chat.completions.create(
        **fields, response_format={"type": "json_schema", "json_schema": {"name": "UserDetail", "schema": schema}}
    )
    free = client.chat.completions.create(**fields)
    for answer in (masked, free):
        thought = answer.choices[0].message.reasoning_content  # type: ignore[attr-defined]
        assert answer.choices[0].finish_reason == "stop" and "30" in thought and "think>" not in thought
    assert json.loads(masked.choices[0].message.content or "") == {"name": "Jason", "age": 30}
    silent = client.chat.completions.create(**fields | {"reasoning_effort": "none"})
    assert "reasoning_content" not in silent.choices[0].message.model_dump()
