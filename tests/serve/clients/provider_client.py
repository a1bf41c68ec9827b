"""The providers' own packages: groq, together, mistralai, ollama, lorax-client."""

from __future__ import annotations

import json
from typing import Any

import groq
import ollama
import pytest
import together
from lorax import Client as LoraxClient
from mistralai.client import Mistral
from pydantic import BaseModel

ASK: Any = [{"role": "user", "content": "Jason is 30 years old"}]


class UserDetail(BaseModel):
    name: str
    age: int


SCHEMA = UserDetail.model_json_schema()
TOOL: Any = {"type": "function", "function": {"name": "UserDetail", "description": "a user", "parameters": SCHEMA}}


# -- groq and together -------------------------------------------------------------------------------------------------


def test_groq_when_used_then_schemas_tools_and_streams_work(url: str) -> None:
    """Its client posts to /openai/v1."""
    client = groq.Groq(base_url=url, api_key="any", max_retries=0)
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = client.chat.completions.create(model="m", messages=ASK, response_format=response_format)
    UserDetail.model_validate_json(answer.choices[0].message.content or "")
    stream = client.chat.completions.create(model="m", messages=ASK, response_format=response_format, stream=True)
    UserDetail.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    [call] = (
        client.chat.completions.create(
            model="m", messages=ASK, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "UserDetail"}}
        )
        .choices[0]
        .message.tool_calls
        or []
    )
    UserDetail.model_validate_json(call.function.arguments)
    assert client.models.list().data[0].id
    with pytest.raises(groq.BadRequestError, match="objct"):
        client.chat.completions.create(
            model="m",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objct"}}},
        )


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ],
    ids=["schema at the top", "as OpenAI"],
)
def test_together_when_given_a_schema_then_the_content_is_valid(url: str, response_format: Any) -> None:
    """Both of its spellings, whole and streamed."""
    client = together.Together(base_url=url, api_key="any", max_retries=0)
    answer = client.chat.completions.create(model="m", messages=ASK, response_format=response_format)
    UserDetail.model_validate_json(answer.choices[0].message.content)
    stream = client.chat.completions.create(model="m", messages=ASK, response_format=response_format, stream=True)
    UserDetail.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))


def test_together_when_given_a_pattern_then_the_content_matches(url: str) -> None:
    """Its regex has a pattern."""
    client = together.Together(base_url=url, api_key="any", max_retries=0)
    response_format: Any = {"type": "regex", "pattern": "(Paris|London)"}
    answer = client.chat.completions.create(model="m", messages=ASK, response_format=response_format)
    assert answer.choices[0].message.content in ("Paris", "London")


# -- mistral -----------------------------------------------------------------------------------------------------------


def test_mistral_when_used_then_its_strict_models_accept_every_answer(url: str) -> None:
    """Schemas, any tool, streams of both, the list of models."""
    with Mistral(api_key="any", server_url=url) as client:
        parsed = client.chat.parse(model="m", messages=ASK, response_format=UserDetail)
        assert isinstance(parsed.choices[0].message.parsed, UserDetail)
        answer = client.chat.complete(model="m", messages=ASK, tools=[TOOL], tool_choice="any", random_seed=3)
        arguments = [call.function.arguments for call in answer.choices[0].message.tool_calls]
        assert answer.choices[0].finish_reason == "tool_calls"
        streamed = ""
        for event in client.chat.stream(model="m", messages=ASK, tools=[TOOL], tool_choice="any"):
            for call in event.data.choices[0].delta.tool_calls or []:
                assert call.function.name == "UserDetail"
                arguments.append(call.function.arguments)
        response_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        for event in client.chat.stream(model="m", messages=ASK, response_format=response_format):
            streamed += event.data.choices[0].delta.content or ""
        for text in [*arguments, streamed]:
            UserDetail.model_validate_json(text)
        assert client.models.list().data[0].id


# -- ollama ------------------------------------------------------------------------------------------------------------


def test_ollama_when_given_a_schema_then_the_content_is_valid(url: str) -> None:
    """Chat and generate, whole and streamed; "json" is an object."""
    client = ollama.Client(host=url)
    UserDetail.model_validate_json(client.chat(model="m", messages=ASK, format=SCHEMA).message.content or "")
    stream = client.chat(model="m", messages=ASK, format=SCHEMA, stream=True)
    UserDetail.model_validate_json("".join(part.message.content or "" for part in stream))
    UserDetail.model_validate_json(
        client.generate(model="m", prompt="hi", format=SCHEMA, options={"temperature": 0.5}).response
    )
    answer = client.chat(model="m", messages=ASK, format="json", options={"num_predict": 100, "seed": 1})
    assert answer.done_reason == "length" or isinstance(json.loads(answer.message.content or ""), dict)
    assert client.list().models[0].model
    with pytest.raises(ollama.ResponseError, match="objct"):
        client.chat(model="m", messages=ASK, format={"type": "object", "properties": {"a": {"type": "objct"}}})


def test_ollama_when_given_tools_then_arguments_are_objects(url: str) -> None:
    """It has no forced choice: what the model does is text or a call."""
    answer = ollama.Client(host=url).chat(model="m", messages=ASK, tools=[TOOL], options={"num_predict": 40})
    for call in answer.message.tool_calls or []:
        UserDetail.model_validate(call.function.arguments)


# -- lorax -------------------------------------------------------------------------------------------------------------


def test_lorax_when_given_a_schema_then_the_text_is_valid(url: str) -> None:
    """Whole, streamed, with details; a bad schema is its ValidationError."""
    client = LoraxClient(url)
    response_format: Any = {"type": "json_object", "schema": SCHEMA}
    answer = client.generate("Jason is 30", response_format=response_format, max_new_tokens=200, do_sample=True, seed=1)
    UserDetail.model_validate_json(answer.generated_text)
    assert answer.details and answer.details.generated_tokens == len(answer.details.tokens)
    parts = list(
        client.generate_stream("Jason is 30", response_format=response_format, max_new_tokens=200, do_sample=True)
    )
    UserDetail.model_validate_json(parts[-1].generated_text or "")
    assert "".join(part.token.text for part in parts) == parts[-1].generated_text
    with pytest.raises(Exception, match="objct"):
        client.generate(
            "x",
            response_format={
                "type": "json_object",
                "schema": {"type": "object", "properties": {"a": {"type": "objct"}}},
            },
        )
