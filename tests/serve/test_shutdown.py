"""SIGTERM while requests are under way: each ends in the words of its dialect, also one whose body never comes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.serve.conftest import SHORT_FLAGS, Server

pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.timeout(120)]

HI = [{"role": "user", "content": "hi"}]
ENDLESS = {"type": "regex", "regex": "[a-z ]{100000,}"}
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "response_format": ENDLESS},
    "/v1/completions": {"prompt": "hi", "response_format": ENDLESS, "max_tokens": 4000},
    "/v1/responses": {"input": "hi", "text": {"format": ENDLESS}},
    "/generate": {"inputs": "hi", "parameters": {"response_format": ENDLESS}},
    "/": {"inputs": "hi", "parameters": {"response_format": ENDLESS}},
    "/api/chat": {"messages": HI, "format": SCHEMA},
    "/api/generate": {"prompt": "hi", "format": SCHEMA},
}
STREAM = "/generate_stream"  # of LoRAX has a route of its own


def check_error(path: str, body: Any) -> None:
    if path.startswith("/v1"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert (body["error"]["type"], body["error"]["code"]) == ("service_unavailable", "shutting_down")
    elif path.startswith("/api"):
        assert list(body) == ["error"] and "shutting down" in body["error"]
    else:
        assert set(body) == {"error", "error_type"} and body["error_type"] == "overloaded"


def check_stream(path: str, text: str) -> None:
    """The last words of a stream that was cut."""
    if path.startswith("/api"):
        check_error(path, json.loads(text.splitlines()[-1]))
        return
    events = text.strip().split("\n\n")
    if path in ("/v1/chat/completions", "/v1/completions"):
        assert events.pop() == "data: [DONE]"
    name, _, data = events[-1].rpartition("data: ")
    if path == "/v1/responses":
        failed = json.loads(data)
        assert name == "event: response.failed\n" and failed["type"] == "response.failed"
        assert failed["sequence_number"] == len(events) - 1
        assert failed["response"]["status"] == "failed" and "shutting down" in failed["response"]["error"]["message"]
    else:
        check_error(path, json.loads(data))


def test_server_when_told_to_stop_then_every_request_ends_in_the_words_of_its_dialect(
    start_server: Callable[..., Server],
) -> None:
    """Streams have slots; of the whole answers, half wait for a slot and half for a body. All outlast the server."""
    streamed = [STREAM if path == "/" else path for path in ROUTES if path != "/generate"]
    server = start_server(
        *SHORT_FLAGS, "--slots", str(len(streamed)), "--drain-seconds", "1", "--no-close-before-budget"
    )
    port = int(server.url.rpartition(":")[2])
    with httpx2.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(2 * len(ROUTES)) as threads:
        streams = {path: threads.submit(_streamed, client, path, ROUTES.get(path, ROUTES["/"])) for path in streamed}
        server.wait_for("maskd_engine_running", len(streamed))
        waiting = {
            path: threads.submit(client.post, path, json=body | {"stream": False}) for path, body in ROUTES.items()
        }
        server.wait_for("maskd_engine_waiting", len(waiting))
        bodiless = [socket.create_connection(("127.0.0.1", port)) for _ in ROUTES]
        for path, connection in zip(ROUTES, bodiless, strict=True):
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        time.sleep(0.2)
        assert server.stop() == 0
        for path, answer in waiting.items():
            assert answer.result().status_code == 503, answer.result().text
            check_error(path, answer.result().json())
        for path, text in streams.items():
            check_stream(path, text.result())
        for path, connection in zip(ROUTES, bodiless, strict=True):
            head, _, body = _read_all(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            check_error(path, json.loads(body))
    assert "Traceback" not in server.log


def _streamed(client: httpx2.Client, path: str, body: dict[str, Any]) -> str:
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        return answer.read().decode()


def _read_all(connection: socket.socket) -> bytes:
    with connection:
        connection.settimeout(30)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_stream_when_the_server_stops_then_openais_client_raises_its_error(start_server: Callable[..., Server]) -> None:
    """Of chat completions; the Responses API has an event for it."""
    server = start_server(*SHORT_FLAGS, "--drain-seconds", "0", "--no-close-before-budget")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=60) as client:
        body = {"response_format": ENDLESS}
        chat = client.chat.completions.create(model="m", messages=HI, stream=True, extra_body=body)  # type: ignore[call-overload]
        answer = client.responses.create(model="m", input="hi", stream=True, extra_body={"text": {"format": ENDLESS}})
        next(iter(chat)), next(iter(answer))
        server.process.terminate()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(chat)
        assert list(answer)[-1].type == "response.failed"
    assert server.process.wait(60) == 0  # a second signal would meet an interpreter that is ending


def test_body_when_it_never_arrives_then_408_and_the_connection_ends(start_server: Callable[..., Server]) -> None:
    """Announced and not sent, or sent in drops; the error is the dialect's."""
    server = start_server(*SHORT_FLAGS, "--body-seconds", "1")
    port = int(server.url.rpartition(":")[2])
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in ROUTES]
    for path, connection in zip(ROUTES, connections, strict=True):
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
    for _ in range(2):
        time.sleep(0.1)
        for connection in connections:
            connection.sendall(b" ")
    for path, connection in zip(ROUTES, connections, strict=True):
        head, _, body = _read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head.lower()
        error = json.loads(body)["error"]
        assert "the body was not whole after 1 s" in (error["message"] if path.startswith("/v1") else error)
        if path.startswith("/v1"):
            assert (error["type"], error["code"]) == ("timeout", "body_timeout")
    assert (
        httpx2.post(server.url + "/v1/completions", json={"prompt": "hi", "regex": "ok"}).json()["choices"][0]["text"]
        == "ok"
    )
    assert "Traceback" not in server.log
