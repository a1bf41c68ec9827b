"""``engine-adapter serve``: settings from flags and file, wrong ones refused, a daemon that goes away."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from engine_adapter.decoding.request import EngineFault
from engine_adapter.engine.generation import Delta, TextGeneration, TextRequest
from engine_adapter.serve.app import create_app
from engine_adapter.serve.command import ServeSettings, add_flags, load_settings
from maskd.errors import ConfigError
from tests.conftest import Daemon
from tests.serve.conftest import ROOT, SHORT_FLAGS, Server


def parsed(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(flags))


def test_settings_when_read_from_a_file_then_flags_beat_it(tmp_path: Path) -> None:
    """The file of trtllm-serve works, and has all our settings."""
    path = tmp_path / "config.yaml"
    path.write_text("guided_decoding_backend: xgrammar\nport: 1234\nbounded: true\n")
    settings = load_settings(parsed("--port", "99"), str(path))
    assert (settings.guided_decoding_backend, settings.port, settings.bounded, settings.host) == (
        "xgrammar",
        99,
        True,
        "127.0.0.1",
    )
    assert load_settings(parsed()) == ServeSettings()
    assert not load_settings(parsed("--no-close-before-budget")).close_before_budget
    assert load_settings(parsed("--max-whitespace", "any")).max_whitespace is None
    assert load_settings(parsed("--max-whitespace", "7")).max_whitespace == 7
    path.write_text("max_whitespace: null\nbounded: true\n")
    settings = load_settings(parsed("--no-bounded"), str(path))
    assert (settings.max_whitespace, settings.bounded) == (None, False)
    assert load_settings(parsed("org/model", "--slots", "4")).model == "org/model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: high", "port is 'high'"),
        ("port: 70000", "give 0 to 65535"),
        ("port: true", "port is True"),
        ("bounded: 1", "bounded is 1"),
        ("guided_decoding_backed: xgrammar", "guided_decoding_backed"),
        ("- a", "not a mapping"),
        ("max_whitespace: -1", "give 0 to 1024"),
        ("max_whitespace: some", "max_whitespace is 'some'"),
        ("body_seconds: 0", "give 1 to 86400"),
        ("a: [", "config.yaml"),
        ("log_level: loud", "log_level"),
    ],
)
def test_settings_when_wrong_then_the_message_names_them(tmp_path: Path, text: str, message: str) -> None:
    """A slip in a file is never ignored."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings({}, str(path))


def test_command_when_the_settings_are_wrong_then_it_exits_with_two(tmp_path: Path) -> None:
    """One line on stderr."""
    command = [sys.executable, "-m", "engine_adapter", "serve", "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("engine_adapter: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--device", "foo"), "no device 'foo'"),
        (("--device", "meta"), "the device is meta"),
        (("--device", "cuda:99"), "cuda:99"),
        (("/nowhere/model",), "/nowhere/model has no config.json"),
    ],
)
def test_command_when_model_or_device_is_not_there_then_one_line(flags: tuple[str, ...], part: str) -> None:
    command = [sys.executable, "-m", "engine_adapter", "serve", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and part in done.stderr
    assert done.stderr.startswith("engine_adapter: ") and len(done.stderr.splitlines()) == 1


async def test_server_when_its_loop_fails_then_its_health_and_each_request_say_so() -> None:
    """Health is 503, so that a supervisor can start the process again. A request is tried, and told that it failed."""

    class FailingEngine:
        model_name = "m"
        failure = RuntimeError("CUDA error")
        model_sampling: ClassVar[dict[str, float]] = {}

        def stats(self) -> None: ...

        def submit(self, request: TextRequest) -> TextGeneration:
            generation = TextGeneration(request, 1, lambda: None)
            generation.choices[0].error = EngineFault("the engine failed at a batch")
            generation.push(Delta(0, "", (), finish_reason="error"))
            return generation

    app = create_app(FailingEngine())  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failing", "reason": "CUDA error"})
        answer = await client.post("/v1/completions", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("serve")
def test_server_when_the_daemon_is_away_then_it_is_503_and_then_works_again(
    start_server: Callable[..., Server], start_daemon: Callable[..., Daemon]
) -> None:
    """A guided request without a daemon waits or is refused, and is never unmasked. Free text goes on meanwhile."""
    daemon = start_daemon()
    server = start_server(*SHORT_FLAGS, "--target", daemon.target, "--slots", "2", "--restore-seconds", "8")
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    with httpx2.Client(base_url=server.url, timeout=90) as client, ThreadPoolExecutor() as threads:
        assert client.post("/v1/chat/completions", json=body | {"regex": "ok"}).status_code == 200
        daemon.kill()
        waiting = [
            threads.submit(client.post, "/v1/chat/completions", json=body | {"regex": regex})
            for regex in ("other", "another")
        ]
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert not any(one.done() for one in waiting)
        refused = waiting[0].result()
        assert refused.status_code == 503, refused.text
        assert refused.headers["retry-after"] and refused.json()["error"]["code"] == "unavailable"
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        daemon.restart()
        deadline = time.monotonic() + 60
        while (answer := client.post("/v1/chat/completions", json=body | {"regex": "again"})).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert answer.json()["choices"][0]["message"]["content"] == "again"
    assert server.stop() == 0
