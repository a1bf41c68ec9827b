"""Grammars that hang, explode, crash or puzzle the libraries, through a daemon with a real vocabulary and small limits.

Each is answered with a typed result, the daemon stays SERVING, no process is replaced, and a neighbour keeps stepping
with the right rows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from looks import Oracle, memory_kb, open_session

from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import GrammarError, InvalidRequestError, MaskdError
from maskd.grammar import GrammarKind, GrammarSpec
from maskd.step import Action, Item, Status
from maskd.tokenizer_files import load_vocabulary
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

pytestmark = [pytest.mark.xdist_group("hostile"), pytest.mark.slow]

Daemon = Any
ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "hostile" / "hostile_grammars.py"
BACKENDS = ("xgrammar", "llguidance", "auto")
NEIGHBOUR = GrammarSpec(
    "json_schema", '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}', backend="llguidance"
)


def corpus() -> dict[str, tuple[str, str, str, str]]:
    if not CORPUS.exists():
        return {}
    spec = importlib.util.spec_from_file_location("hostile_grammars", CORPUS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: dict[str, tuple[str, str, str, str]] = module.CASES
    return cases


CASES = corpus()


class Neighbour:
    """An engine that decodes all the time and compares every row."""

    def __init__(self, client: Client, vocabulary: Vocabulary, oracle: Oracle) -> None:
        self.steps = 0
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._session = open_session(client, vocabulary, rows=2)
        self._grammar = self._session.create_grammar(NEIGHBOUR)
        by_byte = {token: token_id for token_id, token in enumerate(vocabulary.tokens) if len(token) == 1}
        self._text = [by_byte[bytes([byte])] for byte in b'{"city":"Paris"}']
        self._expected = [oracle.allowed(NEIGHBOUR, self._text[:count]) for count in range(len(self._text) + 1)]
        self._stopping = threading.Event()
        self._session.step([Item(1, Action.OPEN, self._grammar.grammar_id)], timeout_seconds=60)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.002):
                count = self.steps % len(self._expected)
                started = time.monotonic()
                reply = self._session.step([Item(1, rollback=-1, accept=self._text[:count], row=0)], timeout_seconds=60)
                self.longest = max(self.longest, time.monotonic() - started)
                assert reply.ok, reply.results
                assert allowed_token_ids(reply.rows[0]).tolist() == self._expected[count]
                self.steps += 1
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._session.close()


class Setting:
    """A daemon under attack, its neighbour, and its processes as they were."""

    def __init__(self, daemon: Daemon, client: Client, vocabulary: Vocabulary, neighbour: Neighbour) -> None:
        self.daemon, self.client, self.vocabulary, self.neighbour = daemon, client, vocabulary, neighbour
        self._pids = self._processes()

    def _processes(self) -> list[int]:
        return [self.daemon.process.pid, *self.daemon.pids("maskd-nursery"), *self.daemon.worker_pids()]

    def attack(self, kind: GrammarKind, text: str, backend: str) -> str:
        """Compiles and, if that works, walks some tokens: the outcome as one word."""
        try:
            with open_session(self.client, self.vocabulary, rows=1) as session:
                grammar = session.create_grammar(GrammarSpec(kind, text, backend=backend), timeout_seconds=100)
                return self._walk(session, grammar.grammar_id)
        except GrammarError as error:
            assert 0 < len(error.message.encode()) <= 2048
            return error.reason
        except InvalidRequestError as error:  # a text that is no Unicode never leaves the client
            return error.reason

    def _walk(self, session: Session, grammar_id: int) -> str:
        item = Item(1, Action.OPEN, grammar_id, row=0)
        for _ in range(6):
            reply = session.step([item], timeout_seconds=60)
            (result,) = reply.results
            allowed = allowed_token_ids(reply.rows[0]).tolist()
            assert allowed, "never an empty row"
            if result.status == Status.STEP_DEADLINE:
                time.sleep(0.02)
                item = Item(1, row=0)
                continue
            if result.status != Status.OK:
                assert allowed == list(self.vocabulary.stop_token_ids)
                return result.status.name
            if result.terminated:
                break
            item = Item(1, accept=(random.Random(0).choice(allowed),), row=0)
        return "OK"

    def check(self) -> None:
        assert self.neighbour.failure is None, self.neighbour.failure
        assert self._processes() == self._pids, "no process was replaced"
        with grpc.insecure_channel(self.daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def tekken_vocabulary() -> Vocabulary:
    mistral_common = pytest.importorskip("mistral_common")
    return load_vocabulary(str(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"))


@pytest.fixture(scope="module")
def setting(start_daemon_for_session: Callable[..., Daemon], tekken_vocabulary: Vocabulary) -> Iterator[Setting]:
    daemon = start_daemon_for_session("--compile-seconds", "2", "--compile-bytes", str(1 << 30), "--hang-seconds", "20")
    with Client.connect(daemon.target) as client:
        client.upload_vocabulary(tekken_vocabulary)
        neighbour = Neighbour(client, tekken_vocabulary, Oracle(tekken_vocabulary))
        try:
            yield Setting(daemon, client, tekken_vocabulary, neighbour)
        finally:
            neighbour.stop()
    print(f"the neighbour made {neighbour.steps} steps, the longest took {neighbour.longest:.2f} s")


def attack(setting: Setting, kind: Any, text: str, may: set[str] | None = None) -> dict[str, str]:
    """Sends a grammar to every backend at the same time; each outcome must be one of ``may``, and the daemon as well as
    before."""
    steps = setting.neighbour.steps
    with ThreadPoolExecutor(3) as pool:
        outcomes = dict(
            zip(BACKENDS, pool.map(lambda backend: setting.attack(kind, text, backend), BACKENDS), strict=True)
        )
    setting.check()
    assert setting.neighbour.steps >= steps
    print(outcomes)
    if may is not None:
        assert set(outcomes.values()) <= may, outcomes
    return outcomes


BOUNDED = {"GRAMMAR_TOO_LARGE", "GRAMMAR_TIMEOUT"}
REFUSED = {"GRAMMAR_INVALID", "GRAMMAR_UNSUPPORTED", "GRAMMAR_UNSATISFIABLE", "GRAMMAR_TOO_LARGE"}
EITHER = {"OK", *BOUNDED, *REFUSED}


@pytest.mark.skipif(not CASES, reason="the corpus of hostile grammars is not here")
@pytest.mark.parametrize("name", CASES or ["absent"])
def test_hostile_grammar_when_sent_to_every_backend_then_typed_and_nobody_notices(setting: Setting, name: str) -> None:
    """No crash is among the outcomes: what is known to crash a library is refused before it gets there."""
    kind, text, *_ = CASES[name]
    attack(setting, kind, text, {*EITHER, "INVALID_REQUEST", "NO_TOKEN_ALLOWED", "BACKEND_FAILED"})


# -- a test for every advisory
# ------------------------------------------------------------------------------------------


def test_cve_2025_32381_cve_2025_29770_when_schemas_never_repeat_then_memory_is_bounded_and_nothing_is_written(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Caches of compiled grammars without a limit, in memory and on disk."""
    (tmp_path / "home").mkdir()
    home = str(tmp_path / "home")
    daemon = start_daemon(
        "--cache-bytes", str(1 << 20), environment={"HOME": home, "XDG_CACHE_HOME": home, "TMPDIR": home}
    )
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:

        def compile_some(first: int, count: int) -> None:
            for number in range(first, first + count):
                schema = {"type": "object", "properties": {f"k{number}_{i}": {"type": "string"} for i in range(6)}}
                grammar = session.create_grammar(
                    GrammarSpec("json_schema", json.dumps(schema), backend=("xgrammar", "llguidance")[number % 2])
                )
                session.delete_grammar(grammar.grammar_id)

        compile_some(0, 40)
        pids = [*daemon.worker_pids(), *daemon.pids("maskd-nursery"), daemon.process.pid]
        before = [memory_kb(pid) for pid in pids]
        compile_some(40, 160)
        after = [memory_kb(pid) for pid in pids]
        print(f"worker, nursery, front: {before} kB, after 160 more schemas {after} kB")
        assert all(now < 1.5 * then + 16_384 for now, then in zip(after, before, strict=True))
    assert list(Path(home).rglob("*")) == []
    assert sorted(path.name for path in daemon.directory.iterdir()) == ["log", "m.sock", "m.sock.data", "m.sock.lock"]


def test_cve_2025_57809_when_rules_recurse_without_end_then_bounded(setting: Setting) -> None:
    for source in (
        'root ::= root root | "a" | ""',
        'root ::= ("a" | root)* root',
        'root ::= a\na ::= b | "x"\nb ::= a a | ""',
    ):
        attack(setting, "ebnf", source, EITHER)


def test_cve_2025_58446_when_a_large_enum_is_referred_to_often_then_bounded(setting: Setting) -> None:
    words = ["".join(random.Random(number).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=10)) for number in range(10_000)]
    schema = {
        "$defs": {"c": {"enum": words}},
        "type": "object",
        "properties": {f"p{i}": {"$ref": "#/$defs/c"} for i in range(8)},
    }
    attack(setting, "json_schema", json.dumps(schema), EITHER)


def test_cve_2026_25048_llama_cpp_26600_when_nested_tens_of_thousands_deep_then_refused(setting: Setting) -> None:
    for count in (30_000, 60_000):
        attack(setting, "ebnf", "root ::= " + "(" * count + '"a"' + ")" * count, REFUSED)
        attack(setting, "ebnf", "root ::= " + "(" * count + '"a"', REFUSED)
        attack(setting, "regex", "(" * count + "a" + ")" * count, REFUSED)
        attack(setting, "json_schema", '{"items":' * count + "{}" + "}" * count, REFUSED)


def test_llama_cpp_26602_when_rules_form_a_long_chain_then_bounded(setting: Setting) -> None:
    chain = "\n".join(f"r{i} ::= r{i + 1}" for i in range(5000))
    attack(setting, "ebnf", f'root ::= r0\n{chain}\nr5000 ::= "a"', EITHER)
    defs = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)} | {"d5000": {"type": "null"}}
    attack(setting, "json_schema", json.dumps({"$defs": defs, "$ref": "#/$defs/d0"}), EITHER)


@pytest.mark.parametrize("limit", [1999, 2000, 2001])
def test_llama_cpp_27177_when_a_length_is_at_the_limit_then_no_abort(setting: Setting, limit: int) -> None:
    attack(setting, "json_schema", json.dumps({"type": "string", "maxLength": limit}), {"OK", *BOUNDED})
    attack(
        setting,
        "json_schema",
        json.dumps({"type": "array", "items": {"type": "null"}, "maxItems": limit}),
        {"OK", *BOUNDED},
    )
    attack(setting, "regex", f"a{{0,{limit}}}", {"OK", *REFUSED, *BOUNDED})


def test_cve_2026_2069_when_stars_are_nested_then_bounded(setting: Setting) -> None:
    for depth in (2, 20, 100):
        attack(setting, "ebnf", "root ::= " + "(" * depth + '"a"' + "*)" * depth + "*", EITHER)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", '{"properties":{"reason":{"type":"stsring"}}}'),
        ("regex", "(?P<"),
        ("regex", "a{5,2}"),
        ("regex", "a**b("),
        ("json_schema", '{"type":"object","properties":{"a":{"type":"something","pattern":"{{"}}}'),
        ("json_schema", '{"type":"string","pattern":"("}'),
    ],
)
def test_cve_2025_48942_cve_2025_48943_cve_2025_48944_when_malformed_then_refused_and_the_next_request_is_served(
    setting: Setting, kind: str, source: str
) -> None:
    outcomes = attack(setting, kind, source)
    assert (outcomes["auto"] in {*REFUSED, "OK"} and outcomes["auto"] != "OK") or "**" in source, outcomes
    attack(setting, "regex", "(Paris|London)", {"OK"})


@pytest.mark.parametrize(
    "source", ["(a+)+b", "(a|a)*b", "(.*.*)*x", "([a-z]+)*0", "(x+x+)+y", ".*x" * 60, "(a|b)*a(a|b){300}"]
)
def test_cve_2026_55574_cve_2026_73556_when_a_regex_backtracks_or_blows_up_then_bounded_on_every_backend(
    setting: Setting, source: str
) -> None:
    attack(setting, "regex", source, EITHER)


def test_vllm_54003_when_one_of_is_deep_then_bounded(setting: Setting) -> None:
    def nested(depth: int) -> dict[str, object]:
        return (
            {"type": "string", "maxLength": 3}
            if not depth
            else {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {f"k{depth}_{i}": nested(depth - 1)},
                        "required": [f"k{depth}_{i}"],
                    }
                    for i in range(4)
                ]
            }
        )

    attack(setting, "json_schema", json.dumps(nested(6)), EITHER)


def test_vllm_43920_when_valid_and_malformed_grammars_alternate_then_their_order_does_not_matter(
    setting: Setting,
) -> None:
    """Nobody is locked to the backend that came first."""
    for backend in BACKENDS:
        seen = []
        for kind, source in (
            ("regex", "(a|b)"),
            ("regex", "("),
            ("json_schema", '{"type":"nul"}'),
            ("regex", "(a|b)"),
            ("json_schema", '{"type":"null"}'),
            ("regex", "("),
        ):
            seen.append(setting.attack(kind, source, backend))  # type: ignore[arg-type]
        assert seen == ["OK", "GRAMMAR_INVALID", "GRAMMAR_INVALID", "OK", "OK", "GRAMMAR_INVALID"], backend
    setting.check()


def test_cve_2026_54234_when_tokens_come_after_an_abort_or_lie_outside_of_the_vocabulary_then_typed(
    setting: Setting,
) -> None:
    """Overlapping generate and abort led to a token beyond the vocabulary, and that to an assertion on the device."""
    size = setting.vocabulary.vocab_size
    with open_session(setting.client, setting.vocabulary) as session:
        grammar_id = session.create_grammar(GrammarSpec("regex", "[ab]{0,20}")).grammar_id
        assert session.step([Item(1, Action.OPEN, grammar_id, row=0)]).ok
        assert session.step([Item(1, Action.CLOSE)]).ok
        assert session.step([Item(1, accept=(97,), row=0)]).results[0].status == Status.SEQUENCE_NOT_FOUND
        assert session.step([Item(2, Action.OPEN, grammar_id, row=0)]).ok
        for token in (-1, size, 2**31 - 1, -(2**31)):
            assert session.step([Item(2, accept=(token,), row=0)]).results[0].status == Status.TOKEN_OUT_OF_RANGE
            assert session.step([Item(2, row=0, drafts=(token,))]).results[0].status == Status.TOKEN_OUT_OF_RANGE
        reply = session.step([Item(2, row=0)])
        assert reply.ok and max(allowed_token_ids(reply.rows[0])) < size
    setting.check()


def test_cve_2025_23320_when_a_request_fails_then_no_internal_name_is_in_the_answer(setting: Setting) -> None:
    """Triton told the name of its segment in an error; there is no name here to tell."""
    answers = []
    with open_session(setting.client, setting.vocabulary) as session:
        for call in (
            lambda: setting.client.open_session(bytes(32), vocab_size=1, row_capacity=1),
            lambda: open_session(setting.client, setting.vocabulary, rows=1 << 30),
            lambda: session.create_grammar(GrammarSpec("regex", "x" * 2_000_000)),
        ):
            with pytest.raises(MaskdError) as caught:
                call()
            answers.append(caught.value.message)
    for text in answers:
        assert not any(word in text for word in ("/dev/shm", "memfd", "maskd-rows", "/proc", "/tmp")), text


def test_cve_2025_23319_cve_2025_23334_when_the_contract_is_read_then_no_request_names_memory() -> None:
    """No request has a key, path, offset or size of memory in it."""
    requests = [message for name, message in pb.DESCRIPTOR.message_types_by_name.items() if name.endswith("Request")]
    assert requests
    for message in requests:
        for field in message.fields:
            assert not any(
                word in field.name for word in ("key", "path", "offset", "shm", "fd", "pointer", "address")
            ), field.full_name


def test_cve_2025_33201_when_a_message_is_larger_than_allowed_then_a_clean_status(setting: Setting) -> None:
    with grpc.insecure_channel(setting.daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        for size in (5 << 20, 40 << 20):
            with pytest.raises(grpc.RpcError) as caught:
                stub.CreateGrammar(
                    pb.CreateGrammarRequest(session_id=1, grammar=pb.GrammarSpec(regex="a" * size)), timeout=60
                )
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60, metadata=[("x-long", "a" * 100_000)])
        assert caught.value.code() in (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.INTERNAL,
        )
    setting.check()


def test_cve_2025_4565_cve_2026_0994_when_protobuf_is_looked_at_then_not_pure_python_and_no_json_of_strangers(
    setting: Setting,
) -> None:
    """Deeply nested messages end in an error; the JSON parser of protobuf is not used at all."""
    code = "from google.protobuf.internal import api_implementation as a; print(a.Type())"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "upb"
    )
    sources = [path for path in (ROOT / "maskd").rglob("*.py") if "/v1/" not in str(path)]
    assert not any("json_format" in path.read_text() for path in sources)
    with grpc.insecure_channel(setting.daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        raw = channel.unary_unary("/maskd.v1.MaskService/CreateGrammar")  # type: ignore[call-arg]
        for body in (b"\x13" * 100_000, b"\x0b" * 1_000_000, b"\xff" * 1000, b"\x12" + b"\xff\xff\xff\xff\x0f"):
            with pytest.raises(grpc.RpcError) as caught:
                raw(body, timeout=60)
            assert caught.value.code() in (
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNKNOWN,
            )
    setting.check()


def test_cve_2023_1428_cve_2023_4785_when_garbage_or_a_flood_of_connections_comes_then_served_as_before(
    setting: Setting,
) -> None:
    """grpcio is far newer than the fixes; bytes that are no HTTP/2, and 300 connections at once, are nobody's
    problem."""
    assert tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 80)
    path, pick = str(setting.daemon.directory / "m.sock"), random.Random(3)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    connections = []
    try:
        for number in range(300):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connections.append(connection)
            connection.settimeout(60)
            connection.connect(path)
            noise = pick.randbytes(pick.choice([1, 9, 200, 5000]))
            with contextlib.suppress(OSError):  # it hung up already
                connection.send(
                    (preface if number % 2 else b"") + (b"\x00\x00\x04\x08" + noise if number % 3 else noise)
                )
        setting.check()
    finally:
        for connection in connections:
            connection.close()
    setting.check()
