"""The server without a client library: bad bodies, clients that go away, full queues, many streams at once, metrics."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Callable
from typing import Any

import httpx2
import jsonschema
import pytest

from tests.serve.conftest import SHORT_FLAGS, Server

pytestmark = pytest.mark.xdist_group("serve")

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
ENDLESS = {"type": "regex", "regex": "[a-z ]{4000,}"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HI, "max_tokens": 20, **fields}


def assert_alive(http: httpx2.Client) -> None:
    answer = http.post(CHAT, json=chat(regex="ok"))
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


# -- bad bodies --------------------------------------------------------------------------------------------------------

BAD = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[]", 400, None),
    (b'"x"', 400, None),
    (b"\xff\xfe", 400, None),
    (b"[" * 100_000, 400, None),
    (b'{"messages":' + b'{"a":' * 50_000, 400, None),
    (json.dumps(chat(messages=[])), 400, "messages"),
    (json.dumps(chat(messages="hi")), 400, "messages"),
    (json.dumps(chat(messages=[3])), 400, "messages[0]"),
    (json.dumps(chat(messages=[{"role": "wizard", "content": "hi"}])), 400, "messages[0].role"),
    (json.dumps(chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])), 400, "messages[0].content[0]"),
    (json.dumps(chat(max_tokens=0)), 400, None),
    (json.dumps(chat(max_tokens="many")), 400, "max_tokens"),
    (json.dumps(chat(n=0)), 400, "n"),
    (json.dumps(chat(n=10**9)), 400, "n"),
    (json.dumps(chat(temperature=-1)), 400, "temperature"),
    (json.dumps(chat(top_p=0)), 400, "top_p"),
    (json.dumps(chat(frequency_penalty=9)), 400, "frequency_penalty"),
    (json.dumps(chat(logit_bias={"1": 101})), 400, "logit_bias"),
    (json.dumps(chat(logit_bias={"a": 1})), 400, "logit_bias"),
    (json.dumps(chat(logit_bias={"999999": 1})), 400, "logit_bias"),
    (json.dumps(chat(logit_bias={"1": "much"})), 400, "logit_bias[...]"),
    (json.dumps(chat(repetition_penalty=0)), 400, "repetition_penalty"),
    (json.dumps(chat(typical_p=2)), 400, "typical_p"),
    (json.dumps(chat(min_tokens=21)), 400, "min_tokens"),
    (json.dumps(chat(stop_token_ids=[-1])), 400, "stop_token_ids"),
    (json.dumps(chat(ignore_eos=True)), 400, "ignore_eos"),
    (json.dumps(chat(use_beam_search=True)), 400, "use_beam_search"),
    (json.dumps(chat(top_logprobs=3)), 400, "top_logprobs"),
    (json.dumps(chat(logprobs=True, top_logprobs=21)), 400, "top_logprobs"),
    (json.dumps(chat(stop=["a"] * 17)), 400, "stop"),
    (json.dumps(chat(when_slow="later")), 400, "when_slow"),
    (json.dumps(chat(response_format={"type": "telepathy"})), 400, "response_format.type"),
    (json.dumps(chat(response_format={"type": "json_schema"})), 400, "response_format.json_schema"),
    (json.dumps(chat(response_format=7)), 400, "response_format"),
    (json.dumps(chat(response_format={"type": "regex", "regex": "("})), 400, "response_format"),
    (json.dumps(chat(response_format={"type": "ebnf", "ebnf": "root ::= undefined"})), 400, "response_format"),
    (json.dumps(chat(response_format={"type": "json_object"}, guided_regex="a")), 400, "guided_regex"),
    (json.dumps(chat(structured_outputs={"regex": "a", "json": {}})), 400, "structured_outputs"),
    (json.dumps(chat(guided_decoding_backend="os:system")), 400, "guided_decoding_backend"),
    (json.dumps(chat(guided_decoding_backend="outlines", regex="a")), 400, None),
    (json.dumps(chat(tools=[{"type": "web_search"}])), 400, "tools[0].type"),
    (json.dumps(chat(tools=[{"type": "function", "function": {"name": "a b"}}])), 400, "tools[0].function.name"),
    (json.dumps(chat(tools=[{"type": "function", "function": {"name": "a"}}] * 2)), 400, "tools[0]"),
    (
        json.dumps(chat(tools=[{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}])),
        400,
        None,
    ),
    (json.dumps(chat(tool_choice="required")), 400, "tools"),
    (json.dumps(chat(tool_choice={"type": "function", "function": {"name": "f"}})), 400, "tool_choice"),
    (json.dumps(chat(messages=[{"role": "user", "content": "word " * 50_000}])), 400, None),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[str(case[0])[:60] for case in BAD])
def test_chat_when_the_body_is_bad_then_the_error_says_where(
    http: httpx2.Client, body: Any, status: int, param: str | None
) -> None:
    """Always an OpenAI error object with the right status, never a 5xx, and the server goes on."""
    answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert_alive(http)


def test_chat_when_the_body_is_too_long_then_it_is_413(http: httpx2.Client) -> None:
    """The limit holds while the body is read."""
    answer = http.post(CHAT, content=b'{"messages": "' + b"x" * (5 << 20) + b'"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/generate", {"inputs": "x", "parameters": {"response_format": {"type": "nonsense"}}}, "error_type"),
        ("/", {"inputs": "x", "parameters": {"max_new_tokens": 0}}, "error_type"),
        ("/generate", {"inputs": "x", "parameters": {"best_of": 2}}, "error_type"),
        ("/generate_stream", {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}}, "error_type"),
        ("/generate_stream", {"inputs": 3}, "error_type"),
        ("/api/chat", {"messages": [], "model": "m"}, "error"),
        ("/api/generate", {"prompt": "x", "format": {"type": "objct"}}, "error"),
    ],
)
def test_other_dialects_when_the_body_is_bad_then_the_error_is_theirs(
    http: httpx2.Client, path: str, body: Any, key: str
) -> None:
    """LoRAX has error and error_type, Ollama has error; both are strings."""
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()[key], str)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 0}, "max_completion_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 2, "best_of": 1000}, "best_of"),
        ("/v1/completions", {"prompt": "x", "n": 1000}, "n"),
        ("/v1/completions", {"prompt": [10**6]}, "prompt"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ("/v1/responses", {"input": "x", "top_p": 2}, "top_p"),
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 0}}, "max_new_tokens"),
        ("/generate", {"inputs": "x", "parameters": {"guided_decoding_backend": "a:b"}}, "guided_decoding_backend"),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": 0}}, "num_predict"),
        ("/api/generate", {"prompt": "x", "options": {"repeat_penalty": 0}}, "repeat_penalty"),
    ],
)
def test_any_dialect_when_a_field_is_out_of_range_then_it_is_named_as_the_client_spells_it(
    http: httpx2.Client, path: str, body: Any, field: str
) -> None:
    """The message begins with the field; OpenAI's clients also find it in ``param``."""
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["message"]).split()[0] == field
    assert isinstance(error, str) or error["param"] == field


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 5, "best_of": 200}, "best_of is 200; give 5 to 128"),
        ({"n": 5, "best_of": 4}, "best_of is 4; give at least n, which is 5"),
        ({"n": 200, "best_of": 300}, "n is 200; give 1 to 128"),
        ({"n": 129}, "n is 129; give 1 to 128"),
    ],
)
def test_completions_when_too_many_are_asked_for_then_the_bounds_are_those_of_the_request(
    http: httpx2.Client, fields: dict[str, int], message: str
) -> None:
    """``best_of`` lies between ``n`` and 128, and ``n`` is looked at first."""
    answer = http.post("/v1/completions", json={"prompt": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "code", "inside"),
    [
        ({"type": "telepathy"}, "response_format_invalid", ".type"),
        ({"type": "regex", "regex": "("}, "grammar_invalid", ""),
        ({"type": "ebnf", "ebnf": "root ::= undefined"}, "grammar_invalid", ""),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "objct"}}}, "grammar_invalid", "#/type"),
    ],
    ids=["unknown type", "regex", "ebnf", "schema"],
)
@pytest.mark.parametrize(
    ("path", "field", "body_of"),
    [
        (CHAT, "response_format", lambda wrong: chat(response_format=wrong)),
        ("/v1/completions", "response_format", lambda wrong: {"prompt": "x", "response_format": wrong}),
        ("/v1/responses", "text.format", lambda wrong: {"input": "x", "text": {"format": wrong}}),
    ],
    ids=["chat", "completions", "responses"],
)
def test_openai_when_the_format_is_wrong_then_param_names_it(
    http: httpx2.Client,
    path: str,
    field: str,
    body_of: Callable[[Any], dict[str, Any]],
    wrong: dict[str, Any],
    code: str,
    inside: str,
    stream: bool,
) -> None:
    """A format that cannot be read, and a grammar that does not compile, are both errors of the client's field."""
    answer = http.post(path, json={**body_of(wrong), "model": "m", "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, field + inside, code)


def test_route_when_unknown_then_the_error_is_an_object(http: httpx2.Client) -> None:
    """404 and 405 are error objects too."""
    assert http.get("/v1/nothing").json()["error"]["code"] == "unknown_route"
    assert isinstance(http.get("/api/nothing").json()["error"], str)
    assert http.get("/generate").json()["error_type"] == "validation"
    wrong = http.get(CHAT)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


# -- clients that go away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_client_when_it_goes_away_then_its_slot_is_free(server: Server, stream: bool) -> None:
    """The output is cancelled, whether it was streamed or not; nothing is left running."""
    before = server.metrics().get('maskd_engine_finished_total{reason="cancelled"}', 0)
    body = chat(response_format=ENDLESS, max_tokens=None, stream=stream)
    with httpx2.Client(base_url=server.url, timeout=2) as client:
        if stream:
            with client.stream("POST", CHAT, json=body) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()  # kept: dropping it closes the connection
                next(lines)
                assert server.metrics()["maskd_engine_running"] >= 1
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post(CHAT, json=body, timeout=1)
    server.wait_for("maskd_engine_running", 0)
    server.wait_for('maskd_engine_finished_total{reason="cancelled"}', before + 1)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_server(start_server: Callable[..., Server]) -> Server:
    """One slot, no queue."""
    return start_server(*SHORT_FLAGS, "--slots", "1", "--queue-limit", "0", "--guided-decoding-backend", "llguidance")


def test_queue_when_full_then_it_is_429_with_a_time(small_server: Server) -> None:
    """The client learns when to come again; the one that runs is not touched."""
    with httpx2.Client(base_url=small_server.url, timeout=30) as client:
        with client.stream("POST", CHAT, json=chat(response_format=ENDLESS, max_tokens=None, stream=True)) as running:
            lines = running.iter_lines()
            next(lines)
            refused = client.post(CHAT, json=chat())
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.post("/generate", json={"inputs": "x"}).json()["error_type"] == "overloaded"
        small_server.wait_for("maskd_engine_running", 0)
        assert client.post(CHAT, json=chat(regex="a")).headers["x-guided-decoding-backend"] == "llguidance"


def test_server_when_told_to_stop_then_it_exits_with_zero(small_server: Server) -> None:
    """SIGTERM ends the server and its daemon."""
    assert small_server.stop() == 0
    assert "Guided decoder initialized with backend: llguidance" in small_server.log
    assert "Traceback" not in small_server.log


# -- many at once ------------------------------------------------------------------------------------------------------


def _schema(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    names = [f"{rng.choice(string.ascii_lowercase)}{number}_{index}" for index in range(rng.randint(1, 4))]
    kinds: list[dict[str, Any]] = [
        {"type": "string", "pattern": "^[a-z]{1,6}$"},
        {"type": "integer", "minimum": number, "maximum": number + 9},
        {"type": "boolean"},
        {"enum": [f"only{number}", f"also{number}"]},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
    ]
    properties = {name: rng.choice(kinds) for name in names} | {"id": {"const": number}}
    return {"type": "object", "properties": properties, "required": [*names, "id"], "additionalProperties": False}


async def test_streams_when_64_run_at_once_then_each_matches_its_own_schema(server: Server) -> None:
    """Different schemas and backends in one batch: every output is valid, of its own schema only, and whole."""

    async def one(client: httpx2.AsyncClient, number: int) -> Any:
        body = chat(
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": _schema(number)}},
            guided_decoding_backend=("xgrammar", "llguidance", "auto")[number % 3],
            stream=True,
            max_tokens=300,
        )
        text, reason = "", None
        async with client.stream("POST", CHAT, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
        assert reason == "stop", text
        return json.loads(text)

    limits = httpx2.Limits(max_connections=64)
    async with httpx2.AsyncClient(base_url=server.url, timeout=100, limits=limits) as client:
        values = await asyncio.gather(*(one(client, number) for number in range(64)))
    for number, value in enumerate(values):
        jsonschema.validate(value, _schema(number))
        assert value["id"] == number
    server.wait_for("maskd_engine_running", 0)


# -- what is said about itself -----------------------------------------------------------------------------------------


def test_metrics_when_read_then_they_count_requests_and_tokens(http: httpx2.Client, server: Server) -> None:
    """Routes by name, unknown ones as one, tokens, backends, times."""
    assert_alive(http)
    http.get("/somewhere/else")
    metrics = server.metrics()
    assert metrics[f'maskd_http_requests_total{{route="{CHAT}",status="200"}}'] >= 1
    assert metrics['maskd_http_requests_total{route="other",status="404"}'] >= 1
    assert metrics["maskd_engine_generated_tokens_total"] > 0
    assert metrics["maskd_first_token_seconds_count"] > 0
    assert any(name.startswith("maskd_guided_requests_total") for name in metrics)


def test_lorax_when_used_by_hand_then_all_three_routes_answer(http: httpx2.Client) -> None:
    """/generate is an object, / a list, streams end without [DONE]; no schema means an object without arrays."""
    body: dict[str, Any] = {
        "inputs": "x",
        "parameters": {"max_new_tokens": 40, "response_format": {"type": "json_object"}, "details": True},
    }
    one = http.post("/generate", json=body).json()
    [listed] = http.post("/", json=body).json()
    assert set(one) == set(listed) == {"generated_text", "details"}
    assert one["details"]["finish_reason"] in ("eos_token", "length")
    assert one["details"]["generated_tokens"] == len(one["details"]["tokens"])
    streamed = http.post("/generate_stream", json=body).text.strip().split("\n\n")
    last = json.loads(streamed[-1].removeprefix("data:"))
    assert last["generated_text"] is not None and last["details"]["prompt_tokens"] == 1
    sampled = {
        "max_new_tokens": 5,
        "do_sample": True,
        "best_of": 3,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "details": True,
    }
    best = http.post("/generate", json={"inputs": "x", "parameters": sampled}).json()
    assert 0 < best["details"]["generated_tokens"] <= 5
    counts = [
        http.post(
            "/generate",
            json={"inputs": "x", "parameters": {"details": True, "max_new_tokens": 1, "apply_chat_template": wrapped}},
        )
        for wrapped in (False, True)
    ]
    as_text, as_turn = (answer.json()["details"]["prompt_tokens"] for answer in counts)
    assert as_text == 1 < as_turn  # the text as it is, or a user's turn
    assert (
        "".join(json.loads(event.removeprefix("data:"))["token"]["text"] for event in streamed)
        == last["generated_text"]
    )


def test_sampling_fields_when_given_with_their_neutral_values_then_they_are_taken(http: httpx2.Client) -> None:
    """What some clients always send; the last one is a token that would end the text."""
    neutral = {
        "ignore_eos": False,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "allowed_token_ids": [],
    }
    answer = http.post(
        CHAT, json=chat(**neutral, include_stop_str_in_output=False, min_tokens=0, stop_token_ids=[], regex="ok")
    )
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


def test_banned_words_when_given_then_the_text_has_none(http: httpx2.Client) -> None:
    """vLLM's bad_words."""
    for many in (["a"] * 10_001, ["a" * 1_001]):
        refused = http.post(CHAT, json=chat(bad_words=many))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "bad_words"
    answer = http.post(CHAT, json=chat(bad_words=["a", "bc"], regex="[a-c]{9}", temperature=1.5))
    text = answer.json()["choices"][0]["message"]["content"]
    assert len(text) == 9 and "a" not in text and "bc" not in text


def test_ollama_when_used_by_hand_then_streams_are_lines(http: httpx2.Client) -> None:
    """Streaming is the default there; the last line is done and has counts."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for path, body in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi", "system": "Be brief."})):
        answer = http.post(path, json={"model": "m", "format": schema, "options": {"num_predict": 60}, **body})
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        text = "".join(line["message"]["content"] if "message" in line else line["response"] for line in lines)
        jsonschema.validate(json.loads(text), schema)
        assert (lines[-1]["done_reason"], lines[-1]["eval_count"] > 2) == ("stop", True)
