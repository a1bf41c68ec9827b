"""OpenAI's own client: completions, parsing, streams, tools, the Responses API, errors as its exceptions."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

import httpx2
import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.serve.conftest import TRAINED, Server

pytestmark = pytest.mark.xdist_group("serve")

ASK: Any = [{"role": "user", "content": "Give me the information of the capital of France in JSON."}]
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "population": {"type": "integer", "minimum": 0}},
    "required": ["name", "population"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    """Started without flags if the model is trained: tools and ``.parse()`` work with the defaults."""
    return cast("Server", request.getfixturevalue("plain_server" if TRAINED else "short_server"))


class Character(BaseModel):
    name: str
    armor: Literal["leather", "chainmail", "plate"]
    strength: int


def tool(name: str, parameters: Any = CITY, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def json_schema(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "City", "schema": schema}}


def city(text: str | None) -> Any:
    value = json.loads(text or "")
    jsonschema.validate(value, CITY)
    return value


# -- chat completions --------------------------------------------------------------------------------------------------


def test_models_when_listed_then_the_first_one_can_be_used(client: OpenAI) -> None:
    """The id of the list is the model's, and retrieving it gives the same card."""
    model = client.models.list().data[0]
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("org/other")


@pytest.mark.parametrize(
    ("agent", "is_list"), [("Together/Python 2.36.0", True), ("Together/v1 PythonBindings/1.5.35", True), ("x", False)]
)
def test_models_when_listed_by_an_older_client_of_together_then_they_are_a_bare_list(
    server: Server, agent: str, is_list: bool
) -> None:
    """Both releases read this answer; 3.x does not ask here."""
    answer = httpx2.get(server.url + "/v1/models", headers={"user-agent": agent}).json()
    [card] = answer if is_list else answer["data"]
    assert card["object"] == "model" and ("pricing" in card) == is_list


@pytest.mark.parametrize(
    "response_format",
    [
        json_schema(CITY),
        {"type": "json_schema", "json_schema": CITY},
        {"type": "json_schema", "schema": CITY},
        {"type": "json_object", "schema": CITY},
        {"type": "json", "schema": CITY},
    ],
    ids=["openai", "tensorrt-llm-bare", "together", "lorax", "tensorrt-llm"],
)
def test_create_when_given_a_schema_in_any_spelling_then_the_content_is_valid(
    client: OpenAI, response_format: Any
) -> None:
    """Every spelling gives a document of the schema, ``stop``, and true token counts."""
    answer = client.chat.completions.create(
        model="some/adapter", messages=ASK, response_format=response_format, max_tokens=200
    )
    city(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "some/adapter"
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "regex", "regex": "(Paris|London)"}}, ["Paris", "London"]),
        ({"response_format": {"type": "regex", "pattern": "(Paris|London)"}}, ["Paris", "London"]),
        ({"response_format": {"type": "ebnf", "ebnf": 'root ::= "Paris" | "Rome"'}}, ["Paris", "Rome"]),
        ({"response_format": {"type": "choice", "choice": ["a", "b"]}}, ["a", "b"]),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ["yes", "no"]),
        ({"structured_outputs": {"regex": "[0-9]"}}, list("0123456789")),
        ({"guided_choice": ["yes", "no"]}, ["yes", "no"]),
        ({"regex": "x|y"}, ["x", "y"]),
        ({"guided_decoding_backend": "llguidance", "response_format": {"type": "regex", "regex": "x|y"}}, ["x", "y"]),
        ({"guided_decoding_backend": "xgrammar", "response_format": {"type": "regex", "regex": "x|y"}}, ["x", "y"]),
    ],
    ids=str,
)
def test_create_when_given_a_grammar_in_any_spelling_then_the_content_matches(
    client: OpenAI, fields: Any, wanted: list[str]
) -> None:
    """Fields of other dialects reach the daemon through ``extra_body``; the header tells which backend masked."""
    raw = client.chat.completions.with_raw_response.create(model="", messages=ASK, extra_body=fields, max_tokens=50)
    assert raw.parse().choices[0].message.content in wanted
    backend = fields.get("guided_decoding_backend")
    assert raw.headers["x-guided-decoding-backend"] in ([backend] if backend else ["llguidance", "xgrammar"])


def test_parse_when_given_a_pydantic_class_then_an_instance_comes_back(client: OpenAI) -> None:
    """``.parse`` sends a strict schema with a reference."""
    answer = client.chat.completions.parse(model="m", messages=ASK, response_format=Character, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Character)


def test_create_when_the_limit_is_small_then_the_reason_is_length(client: OpenAI) -> None:
    """``length`` is said, and ``close_before_budget`` closes the document instead."""
    fields: Any = {
        "model": "m",
        "messages": ASK,
        "response_format": json_schema({"type": "array", "items": CITY, "minItems": 3}),
    }
    cut = client.chat.completions.create(**fields, max_completion_tokens=5, extra_body={"close_before_budget": False})
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 5)
    closed = client.chat.completions.create(
        model="m",
        messages=ASK,
        response_format={"type": "json_object"},
        max_tokens=20,
        extra_body={"close_before_budget": True},
    )
    assert closed.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(closed.choices[0].message.content or ""), dict)


def test_create_when_asked_for_several_then_there_are_several(client: OpenAI) -> None:
    """``n`` outputs, the same again with the same seed, with log probabilities of every token."""

    def ask() -> Any:
        return client.chat.completions.create(
            model="m",
            messages=ASK,
            n=3,
            seed=7,
            logprobs=True,
            top_logprobs=2,
            response_format=json_schema(CITY),
            temperature=0.9,
            top_p=0.9,
            frequency_penalty=0.1,
            presence_penalty=0.1,
            max_tokens=200,
        )

    first, second = ask(), ask()
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert [choice.message.content for choice in first.choices] == [choice.message.content for choice in second.choices]
    for choice in first.choices:
        city(choice.message.content)
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert all(token.logprob <= 0 and len(token.top_logprobs) <= 2 for token in choice.logprobs.content)


def test_create_when_nothing_is_said_about_sampling_then_the_model_says_it(client: OpenAI) -> None:
    """The bundled model asks for the likeliest token; several outputs, or a field of sampling, are drawn anyway."""
    fields: Any = {"model": "m", "messages": ASK, "extra_body": {"regex": "[a-z0-9]{40}"}, "max_tokens": 60}

    def answers(**more: Any) -> set[str | None]:
        tries = [client.chat.completions.create(**fields, **more) for _ in range(6)]
        return {choice.message.content for one in tries for choice in one.choices}

    assert len(answers()) == len(answers(temperature=0)) == 1
    assert len(answers(n=3)) > 1 and len(answers(top_p=0.99)) > 1 and len(answers(temperature=1.5)) > 1
    assert client.responses.create(model="m", input="hi", max_output_tokens=2).temperature == 0


def test_create_when_tokens_are_biased_then_they_are_chosen_as_far_as_the_mask_lets_them(
    client: OpenAI, server: Server
) -> None:
    """OpenAI's logit_bias, by the ids of log probabilities; no bias brings what the grammar forbids."""
    fields: Any = {"model": "m", "messages": ASK, "max_tokens": 5, "temperature": 0}
    seen = {}
    for letter in "ab":
        generated = httpx2.post(
            server.url + "/generate",
            json={
                "inputs": "x",
                "parameters": {"response_format": {"type": "regex", "regex": letter}, "details": True},
            },
        ).json()
        [seen[letter]] = [token["id"] for token in generated["details"]["tokens"]]
    for letter, other in ("ab", "ba"):
        bias = {str(seen[letter]): 100, str(seen[other]): -100}
        answer = client.chat.completions.create(**fields, logit_bias=bias, extra_body={"regex": "[ab]"})
        assert answer.choices[0].message.content == letter
        forced = client.chat.completions.create(**fields, logit_bias=bias, extra_body={"regex": f"{other}+z"})
        assert set(forced.choices[0].message.content or "") <= {other, "z"}


def test_create_when_a_stop_string_comes_then_the_content_ends_before_it(client: OpenAI) -> None:
    """The stop string is no part of the content."""
    answer = client.chat.completions.create(
        model="m", messages=ASK, stop=[" is", "never"], extra_body={"regex": "Paris is the capital"}, max_tokens=50
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Paris", "stop")


def test_create_when_text_is_asked_for_then_nothing_is_masked(client: OpenAI) -> None:
    """``text`` and no format at all are the same."""
    for response_format in ({"type": "text"}, None):
        raw = client.chat.completions.with_raw_response.create(
            model="", messages=ASK, max_tokens=5, extra_body={"response_format": response_format}
        )
        assert "x-guided-decoding-backend" not in raw.headers
        assert raw.parse().choices[0].message.content is not None


def test_create_when_the_schema_has_what_no_mask_enforces_then_the_header_names_it(client: OpenAI) -> None:
    """What the masks do not enforce is never silent."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "idn-email", "maxLength": 2}},
    }
    raw = client.chat.completions.with_raw_response.create(
        model="", messages=ASK, response_format=json_schema(schema), max_tokens=100
    )
    assert "/properties/a/format" in raw.headers["x-guided-decoding-unenforced"]


# -- streams -----------------------------------------------------------------------------------------------------------


def test_stream_when_read_raw_then_it_has_role_content_reason_and_usage(client: OpenAI) -> None:
    """Chunks add up to a valid document; the last one has the counts."""
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=ASK,
            response_format=json_schema(CITY),
            max_tokens=200,
            stream=True,
            n=2,
            logprobs=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        city("".join(choice.delta.content or "" for choice in mine))
        assert (mine[0].delta.role, mine[-1].finish_reason) == ("assistant", "stop")
        assert sum(len(choice.logprobs.content or []) for choice in mine if choice.logprobs) > 3
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.completion_tokens > 6


def test_stream_when_read_with_the_helper_then_it_parses(client: OpenAI) -> None:
    """``.stream()`` gives events and a parsed message."""
    with client.chat.completions.stream(model="m", messages=ASK, response_format=Character, max_tokens=200) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(answer.choices[0].message.parsed, Character)


# -- tools -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "look_up"}}, "required", "any"], ids=str)
def test_tools_when_a_call_is_forced_then_its_arguments_match_the_schema(client: OpenAI, choice: Any) -> None:
    """Named, required and Mistral's any."""
    answer = client.chat.completions.create(
        model="m", messages=ASK, tools=[tool("look_up")], tool_choice=choice, max_tokens=300
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None and message.tool_calls
    for call in message.tool_calls:
        assert call.type == "function" and call.function.name == "look_up"
        city(call.function.arguments)


def test_tools_when_one_of_several_is_required_then_it_is_one_of_them(client: OpenAI) -> None:
    """The arguments match the schema of the function that was called."""
    number = {
        "type": "object",
        "properties": {"value": {"type": "integer"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="m",
        messages=ASK,
        tools=[tool("look_up"), tool("add", number)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), {"look_up": CITY, "add": number}[call.function.name])


def test_tools_when_streamed_with_the_helper_then_the_call_is_parsed(client: OpenAI) -> None:
    """The name comes once, the arguments in pieces."""
    tools = [openai.pydantic_function_tool(Character)]
    forced: Any = {"type": "function", "function": {"name": "Character"}}
    with client.chat.completions.stream(
        model="m", messages=ASK, tools=tools, tool_choice=forced, max_tokens=300
    ) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        [call] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert len(pieces) > 3
    assert isinstance(call.function.parsed_arguments, Character)


def test_tools_when_the_choice_is_auto_then_there_is_text_or_a_call(client: OpenAI) -> None:
    """Text stays possible; ``none`` makes it certain."""
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="m",
            messages=ASK,
            tools=[tool("look_up")],
            tool_choice=choice,
            max_tokens=20,  # type: ignore[arg-type]
        )
        message = answer.choices[0].message
        assert message.content is not None or message.tool_calls
        assert choice == "auto" or not message.tool_calls


def test_tools_when_content_has_a_schema_too_then_the_answer_is_a_call_or_matches_it(client: OpenAI) -> None:
    """``auto`` with a response format: never free text."""
    answer = client.chat.completions.create(
        model="m", messages=ASK, tools=[tool("look_up")], response_format=json_schema(CITY), max_tokens=300
    )
    message = answer.choices[0].message
    for text in [call.function.arguments for call in message.tool_calls or [] if call.type == "function"] or [
        message.content
    ]:
        city(text)


def test_tools_when_allowed_tools_are_listed_then_only_those_are_called(client: OpenAI) -> None:
    """OpenAI's allowed_tools."""
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]},
    }
    answer = client.chat.completions.create(
        model="m", messages=ASK, tools=[tool("a"), tool("b"), tool("c")], tool_choice=allowed, max_tokens=300
    )
    assert {call.function.name for call in answer.choices[0].message.tool_calls or [] if call.type == "function"} == {
        "b"
    }


@pytest.mark.parametrize(
    ("syntax", "definition"),
    [("lark", 'start: "add(" /[0-9]{1,3}/ ")"'), ("regex", r"add\([0-9]{1,3}\)")],
    ids=["lark", "regex"],
)
def test_tools_when_custom_then_the_input_matches_its_grammar(client: OpenAI, syntax: str, definition: str) -> None:
    """Custom tools with a grammar, whole and streamed."""
    custom: Any = {
        "type": "custom",
        "custom": {
            "name": "calc",
            "format": {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}},
        },
    }
    forced: Any = {"type": "custom", "custom": {"name": "calc"}}
    fields: Any = {"model": "m", "messages": ASK, "tools": [custom], "tool_choice": forced, "max_tokens": 50}
    [call] = client.chat.completions.create(**fields).choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert call.custom.name == "calc" and call.custom.input.startswith("add(")
    assert len(list(client.chat.completions.create(**fields, stream=True))) > 3


def test_tools_when_a_conversation_has_results_then_it_goes_on(client: OpenAI) -> None:
    """Assistant turns with calls, tool results with names, empty content and content parts are read."""
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}],
            "name": "Ada",
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "Validation Error found: age"},
    ]
    answer = client.chat.completions.create(model="m", messages=messages, tools=[tool("f")], max_tokens=5)
    assert answer.usage and answer.usage.prompt_tokens > 30


# -- completions and responses -----------------------------------------------------------------------------------------


def test_completions_when_given_prompts_then_each_is_answered(client: OpenAI) -> None:
    """Texts and ids, echoed, with log probabilities, whole and streamed."""
    fields: Any = {"model": "m", "max_tokens": 20, "extra_body": {"regex": "Paris|Rome"}}
    answer = client.completions.create(prompt=["a", "b"], n=2, logprobs=1, echo=True, **fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[0] for choice in answer.choices] == ["a", "a", "b", "b"]
    assert all(choice.text[1:] in ("Paris", "Rome") and choice.logprobs for choice in answer.choices)
    chunks = list(
        client.completions.create(prompt=[[1, 2], [3]], stream=True, stream_options={"include_usage": True}, **fields)
    )
    texts = [
        "".join(c.choices[0].text for c in chunks if c.choices and c.choices[0].index == index) for index in (0, 1)
    ]
    assert set(texts) <= {"Paris", "Rome"}
    assert chunks[-1].usage


def test_completions_when_asked_for_the_best_then_they_come_likeliest_first(client: OpenAI) -> None:
    """``best_of`` are generated and counted, ``n`` are returned; a stream cannot wait for them."""
    fields: Any = {
        "model": "m",
        "prompt": "a",
        "max_tokens": 8,
        "seed": 3,
        "temperature": 1.5,
        "extra_body": {"regex": "[a-z]{5,8}"},
    }
    everything = client.completions.create(**fields, n=5, logprobs=0)
    means = []
    for choice in everything.choices:
        logprobs = choice.logprobs and choice.logprobs.token_logprobs
        assert logprobs
        means.append((sum(logprobs) / len(logprobs), choice.text))
    best = client.completions.create(**fields, n=2, best_of=5)
    assert [choice.text for choice in best.choices] == [text for _, text in sorted(means, reverse=True)[:2]]
    assert [choice.index for choice in best.choices] == [0, 1] and best.choices[0].logprobs is None
    assert best.usage and everything.usage and best.usage.completion_tokens == everything.usage.completion_tokens
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError, match="best_of"):
            client.completions.create(**fields, **wrong)  # type: ignore[call-overload]


def test_responses_when_parsed_then_an_instance_comes_back(client: OpenAI) -> None:
    """Strict schemas in ``text.format``; counts in the words of this API."""
    answer = client.responses.parse(
        model="m", input="hi", instructions="Answer.", text_format=Character, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Character)
    assert answer.status == "completed" and answer.usage and answer.usage.output_tokens > 3


def test_responses_when_streamed_then_all_events_come_in_order(client: OpenAI) -> None:
    """The helper needs created, added, deltas and completed."""
    with client.responses.stream(
        model="m", input=[{"role": "user", "content": "hi"}], text_format=Character, max_output_tokens=200
    ) as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_response()
    assert events[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1] == "response.completed"
    assert isinstance(answer.output_parsed, Character)


def test_responses_when_a_tool_is_forced_then_its_call_is_an_item(client: OpenAI) -> None:
    """Flat tools; the call's arguments match; a conversation with its result is read again."""
    flat: Any = {"type": "function", "name": "look_up", "strict": True, "parameters": CITY}
    fields: Any = {
        "model": "m",
        "tools": [flat],
        "tool_choice": {"type": "function", "name": "look_up"},
        "max_output_tokens": 200,
    }
    answer = client.responses.create(input="hi", **fields)
    [call] = answer.output
    assert call.type == "function_call"
    city(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "fine"}
    turn: Any = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    with client.responses.stream(input=[{"role": "user", "content": "hi"}, turn, result], **fields) as stream:
        kinds = {event.type for event in stream}
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds


def test_responses_when_a_cut_is_made_then_the_status_is_incomplete(client: OpenAI) -> None:
    """Status and reason."""
    answer = client.responses.create(model="m", input="hi", max_output_tokens=2)
    assert (
        answer.status == "incomplete"
        and answer.incomplete_details
        and answer.incomplete_details.reason == "max_output_tokens"
    )
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="m", input="hi", previous_response_id="resp_1")


# -- errors as exceptions ----------------------------------------------------------------------------------------------


def test_error_when_a_schema_is_bad_then_it_is_a_bad_request_that_names_the_pointer(
    client: OpenAI, server: Server
) -> None:
    """Whole and streamed, in the format and in a tool; the client raises, and does not try again."""
    bad = {"type": "object", "properties": {"a": {"type": "objct"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="objct") as caught:
            client.chat.completions.create(model="m", messages=ASK, response_format=json_schema(bad), stream=stream)
        assert caught.value.param == "response_format#/properties/a/type"
        assert caught.value.code == "grammar_invalid"
    for choice in ("auto", {"type": "function", "function": {"name": "bad"}}):
        with pytest.raises(openai.BadRequestError, match="objct") as caught:
            tools = [tool("good"), tool("bad", bad)]
            client.chat.completions.create(model="m", messages=ASK, tools=tools, tool_choice=choice)  # type: ignore[arg-type]
        assert caught.value.param == "tools[1].function.parameters#/properties/a/type"
    with pytest.raises(openai.BadRequestError, match="objct") as caught:
        client.responses.create(
            model="m", input="hi", text={"format": {"type": "json_schema", "name": "x", "schema": bad}}
        )
    assert caught.value.param == "text.format#/properties/a/type"
