"""Wrong bodies for every route: an answer in the words of the dialect, never a 5xx, and the server goes on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import bodies, budget, edged
from tests.serve.conftest import SHORT_FLAGS, Server

pytestmark = pytest.mark.xdist_group("serve")

HI = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
    {"role": "user", "content": "two?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"},
]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x", 2, None]}},
    "required": ["a"],
}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}}
CUSTOM = {
    "type": "custom",
    "custom": {"name": "g", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-c]+"}}},
}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<a"],
        "tags": [
            {"type": "tag", "begin": "<a>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</a>"}
        ],
    },
}
FORMATS = (
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
    {"type": "regex", "regex": "(yes|no)"},
    {"type": "ebnf", "ebnf": 'root ::= "a" | "b"'},
    {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}},
    {"type": "choice", "choice": ["yes", "no"]},
    TAG,
)
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "presence_penalty": 0.1, "frequency_penalty": 0.1}
CHAT = [
    {"model": "m", "messages": HI, "max_tokens": 3, "n": 2, "stop": ["a"], "top_k": 5, "min_p": 0.1, "user": "u",
     **SAMPLING},
    {"messages": TALK, "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2, "stream": True,
     "stream_options": {"include_usage": True}},
    {"messages": HI, "max_tokens": 3, "tools": [FUNCTION, CUSTOM], "tool_choice": "auto", "parallel_tool_calls": False},
    {"messages": HI, "max_tokens": 3, "tools": [FUNCTION],
     "tool_choice": {"type": "function", "function": {"name": "f"}}, "stream": True},
    {"messages": HI, "max_tokens": 3, "tools": [FUNCTION], "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}}},
    *({"messages": HI, "max_tokens": 3, "response_format": one, "close_before_budget": True} for one in FORMATS),
    {"messages": HI, "max_tokens": 3, "structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    {"messages": HI, "max_tokens": 3, "guided_choice": ["a", "b"], "guided_decoding_backend": "llguidance",
     "logit_bias": {}},
    {"messages": HI, "max_tokens": 3, "ebnf": 'root ::= "a"', "stream": True},
]  # fmt: skip
COMPLETIONS = [
    {
        "model": "m",
        "prompt": "a",
        "max_tokens": 3,
        "echo": True,
        "logprobs": 2,
        "n": 2,
        "best_of": 1,
        "suffix": "",
        **SAMPLING,
    },
    {"prompt": ["a", [1, 2]], "max_tokens": 3, "stream": True, "stop": "x", "guided_json": SCHEMA},
    {"prompt": [[1, 2], [3]], "max_tokens": 3, "guided_regex": "[a-z]+", "stream": True, "logprobs": 0},
    {"prompt": [1, 2, 3], "max_tokens": 3, "guided_grammar": 'start: "a"', "repetition_penalty": 1.0},
]
RESPONSES = [
    {"model": "m", "input": "hi", "instructions": "i", "max_output_tokens": 3, "metadata": {"a": "b"},
     "temperature": 0.5},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]},
               {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
               {"type": "function_call_output", "call_id": "1", "output": "2"}, {"type": "reasoning"}],
     "max_output_tokens": 3, "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
     "tool_choice": "required", "stream": True},
    {"input": "hi", "max_output_tokens": 3, "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
     "stream": True},
]  # fmt: skip
PARAMETERS = {
    "max_new_tokens": 3,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "typical_p": 1.0,
    "do_sample": True,
    "seed": 3,
    "stop": ["x"],
    "return_full_text": True,
    "details": True,
    "decoder_input_details": True,
    "response_format": {"type": "json_object", "schema": SCHEMA},
}
LORAX = [
    {"inputs": "hi", "parameters": PARAMETERS, "stream": False},
    {"inputs": "hi", "parameters": {"max_new_tokens": 2}, "stream": True},
]
OPTIONS = {
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "seed": 1,
    "num_predict": 3,
    "stop": ["x"],
    "repeat_penalty": 1.0,
}
OLLAMA_CHAT = [
    {"model": "m", "messages": TALK, "options": OPTIONS, "format": SCHEMA, "stream": False},
    {"model": "m", "messages": HI, "options": {"num_predict": 3}, "tools": [FUNCTION], "stream": True},
]
OLLAMA_GENERATE = [
    {"model": "m", "prompt": "hi", "system": "s", "options": OPTIONS, "format": "json", "raw": True},
    {"prompt": "hi", "options": {"num_predict": 3}, "format": SCHEMA, "stream": False},
]
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/openai/v1/chat/completions": CHAT[:2],
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/": LORAX,
    "/generate": LORAX,
    "/generate_stream": LORAX,
    "/api/chat": OLLAMA_CHAT,
    "/api/generate": OLLAMA_GENERATE,
}
LETTERS = {"type": "regex", "regex": "[ab]{1,3}"}
LETTER_TEXTS = tuple("".join(letters) for letters in itertools.product("ab", repeat=3))
OBJECT = {
    "type": "object",
    "properties": {"a": {"enum": ["b", "ab"]}},
    "required": ["a"],
    "additionalProperties": False,
}
OBJECT_TEXTS = ('{"a":"b"}', '{"a":"ab"}')
_DRAWN = ("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "presence_penalty", "frequency_penalty")
_SHARED = (
    *_DRAWN,
    "repetition_penalty",
    "random_seed",
    "n",
    "max_tokens",
    "min_tokens",
    "thinking_token_budget",
    "max_reasoning_tokens",
    "max_whitespace",
    "length_penalty",
    "no_repeat_ngram_size",
    "prompt_logprobs",
)
_LISTS = (
    ("stop_token_ids", 0),
    ("allowed_token_ids", 0),
    ("logit_bias", "1"),
    ("logit_bias", "2147483648"),
    ("logit_bias", "-1"),
    ("logit_bias", "1" + "0" * 40),
    ("logit_bias", "1" + "0" * 5000),
    ("logit_bias", "65"),
)
_THINKS = (("reasoning", "effort"), ("reasoning", "max_tokens"), ("chat_template_kwargs", "enable_thinking"))
_OLLAMA = tuple(("options", name) for name in (*_DRAWN, "repeat_penalty", "num_predict", "num_ctx"))
_LORAX = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "seed",
    "best_of",
    "repetition_penalty",
    "max_whitespace",
)


def fields(*names: str) -> tuple[tuple[str], ...]:
    return tuple((name,) for name in names)


NUMBERS: dict[str, tuple[dict[str, Any], tuple[tuple[Any, ...], ...]]] = {
    "/v1/chat/completions": (
        {"messages": HI, "response_format": LETTERS, "max_tokens": 5, "temperature": 1},
        (*fields(*_SHARED, "max_completion_tokens", "logprobs", "top_logprobs"), *_LISTS, *_THINKS),
    ),
    "/v1/completions": (
        {"prompt": "a", "response_format": LETTERS, "max_tokens": 5, "temperature": 1},
        (*fields(*_SHARED, "logprobs", "best_of", "echo"), *_LISTS, ("prompt", 0), ("prompt", 0, 0)),
    ),
    "/v1/responses": (
        {"input": "a", "text": {"format": LETTERS}, "max_output_tokens": 5, "temperature": 1},
        (*fields(*_SHARED, "max_output_tokens"), *_LISTS, *_THINKS, ("metadata", "a")),
    ),
    "/generate": (
        {"inputs": "a", "parameters": {"response_format": LETTERS, "max_new_tokens": 5, "do_sample": True}},
        tuple(("parameters", name) for name in _LORAX),
    ),
    "/api/chat": (
        {"messages": HI, "format": OBJECT, "stream": False, "options": {"num_predict": 30, "temperature": 1}},
        (*_OLLAMA, ("max_whitespace",), ("think",)),
    ),
    "/api/generate": (
        {"prompt": "a", "format": OBJECT, "stream": False, "options": {"num_predict": 30, "temperature": 1}},
        (*_OLLAMA, ("max_whitespace",), ("think",)),
    ),
}
"""Good bodies whose output is masked, and every number of each dialect."""
KNOWN: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": ({"temperature": 1e39}, {"repetition_penalty": 1e-46}, {"repetition_penalty": 1e39}),
    "/v1/completions": ({"prompt": [2**40], "echo": True},),
    "/generate": ({"parameters": {"temperature": 1e39}},),
    "/api/chat": ({"options": {"temperature": 1e39}},),
}
"""What once stopped the engine, or was a 500."""
TYPES = (
    "application/json",
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
)


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    """One with a short context: a request that lost its token limit ends soon."""
    return start_server(*SHORT_FLAGS, "--context-length", "400")


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=100) as client:
        yield client


def check_error(path: str, answer: httpx2.Response) -> None:
    """An error object of the dialect that is served at ``path``."""
    body = answer.json()
    if path.startswith("/api/"):
        assert list(body) == ["error"] and isinstance(body["error"], str) and body["error"]
    elif path in ("/", "/generate", "/generate_stream"):
        assert set(body) == {"error", "error_type"} and body["error"] and isinstance(body["error_type"], str)
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["message"]


def assert_answers(http: httpx2.Client) -> None:
    good = http.post("/v1/chat/completions", json={"messages": HI, "regex": "ok"})
    assert good.json()["choices"][0]["message"]["content"] == "ok"


@pytest.mark.parametrize("path", ROUTES)
def test_route_when_the_body_is_wild_then_an_answer_of_its_dialect_and_the_server_goes_on(
    server: Server, http: httpx2.Client, path: str
) -> None:
    @budget(40 if path == "/v1/chat/completions" else 15)
    @given(body=bodies(ROUTES[path]), kind=st.sampled_from(TYPES), chunked=st.booleans())
    def send(body: bytes, kind: str, chunked: bool) -> None:
        content: Any = (body[at : at + 7] for at in range(0, len(body), 7)) if chunked and len(body) < 1000 else body
        answer = http.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text, body)
        if answer.status_code != 200:
            check_error(path, answer)
        elif answer.headers["content-type"] == "application/json":
            answer.json()
        assert "its log says more" not in answer.text, (answer.text, body)

    send()
    assert server.process.poll() is None
    assert_answers(http)
    assert "request failed" not in server.log
    assert "Traceback" not in server.log


def texts_of(answer: Any) -> list[str]:
    """The outputs of an answer in any dialect."""
    if "choices" in answer:
        return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]
    if "output" in answer:
        return [item["content"][0]["text"] for item in answer["output"] if item["type"] == "message"]
    return [
        answer["message"]["content"] if "message" in answer else answer.get("response", answer.get("generated_text"))
    ]


@pytest.mark.parametrize("path", NUMBERS)
def test_route_when_numbers_are_at_their_edges_then_no_5xx_and_the_engine_answers(
    server: Server, http: httpx2.Client, path: str
) -> None:
    """Every answer matches its mask, every refusal is in its dialect, and a good request is served after it."""
    good, numbers = NUMBERS[path]
    wanted = LETTER_TEXTS if LETTERS["regex"] in json.dumps(good) else OBJECT_TEXTS

    def send(body: bytes) -> None:
        answer = http.post(path, content=body)
        assert answer.status_code in (200, 400), (answer.status_code, answer.text, body[:2000])
        if answer.status_code == 400:
            check_error(path, answer)
        else:
            for text in texts_of(answer.json()):
                said = "".join(text.split())
                assert b'"echo"' in body or any(whole.startswith(said) for whole in wanted), (text, body)
        assert_answers(http)

    for known in KNOWN.get(path, ()):
        send(json.dumps(good | known).encode())

    @budget(12)
    @given(body=edged(good, numbers))
    def send_edged(body: bytes) -> None:
        send(body)

    send_edged()
    assert "Traceback" not in server.log and server.metrics()["maskd_engine_failed_turns_total"] == 0
