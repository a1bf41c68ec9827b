"""Who gets in: TLS, tokens, budgets, the modes of files; and what the log never holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from looks import open_session, until

from maskd.client import Client
from maskd.errors import (
    ConfigError,
    GrammarError,
    MaskdError,
    PermissionDeniedError,
    RateLimitedError,
    UnavailableError,
)
from maskd.grammar import GrammarSpec
from maskd.rpc.status import from_rpc_error
from maskd.step import Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

Daemon = Any
TOKEN = "a-token-of-more-than-16-bytes"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class TcpDaemon:
    """``maskd serve`` on a port; ``ready`` when the port answers."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.target = f"localhost:{self.port}"
        with log.open("ab") as stream:
            listen = ("--listen", f"127.0.0.1:{self.port}", "--drain-seconds", "0.2")
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "maskd", "serve", *listen, *flags],
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        until(lambda: self._listens() or self.process.poll() is not None, "it listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[Callable[..., TcpDaemon]]:
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> TcpDaemon:
            daemon = TcpDaemon(tmp_path / "log", *flags)
            stack.callback(daemon.stop)
            assert daemon.process.poll() is None, (tmp_path / "log").read_text()
            return daemon

        yield start


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def refusal_to_start(*flags: str) -> str:
    """Runs ``maskd serve``, which must refuse, and returns its one line."""
    run = subprocess.run([sys.executable, "-m", "maskd", "serve", *flags], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2, run.stderr
    lines = [line for line in run.stderr.splitlines() if line and not line.startswith("{")]
    assert len(lines) == 1, run.stderr
    return lines[0]


# -- TCP
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_tcp_when_nothing_protects_it_then_the_daemon_does_not_start(host: str) -> None:
    """Not even on the loopback device, where every user of the machine is."""
    assert "--insecure" in refusal_to_start("--listen", f"{host}:{free_port()}")


def test_tcp_when_a_token_or_certificate_is_no_good_then_the_daemon_does_not_start(
    tmp_path: Path, token_file: Path
) -> None:
    """Missing, too short, readable by others; half of a key pair, a CA without a certificate, files that are not
    there."""
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    assert "cannot read" in refusal_to_start(*listen, "--token-file", str(tmp_path / "nobody"))
    token_file.chmod(0o644)
    assert "chmod 600" in refusal_to_start(*listen, "--token-file", str(token_file))
    token_file.chmod(0o600)
    token_file.write_text("short")
    assert "at least 16" in refusal_to_start(*listen, "--token-file", str(token_file))
    for flags in (("--tls-certificate", "x"), ("--tls-key", "x")):
        assert "go together" in refusal_to_start(*listen, "--insecure", *flags)
    assert "needs tls_certificate" in refusal_to_start(*listen, "--tls-client-ca", "x")
    assert "cannot read" in refusal_to_start(
        *listen, "--insecure", "--tls-certificate", "/nobody", "--tls-key", "/nobody"
    )
    assert "short" not in refusal_to_start(*listen, "--token-file", str(token_file)).replace(str(token_file), "")


def test_token_when_configured_then_only_who_carries_it_gets_in(
    tcp: Callable[..., TcpDaemon], token_file: Path, vocabulary: Vocabulary
) -> None:
    """Every kind of call wants it, streams included; a probe does not."""
    daemon = tcp("--token-file", str(token_file))
    with (
        Client.connect(daemon.target, token=TOKEN) as client,
        open_session(client, vocabulary, transport="inline") as session,
    ):
        grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
        assert session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)]).ok
    for wrong in (None, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "x"):
        with pytest.raises(PermissionDeniedError) as caught:
            Client.connect(daemon.target, token=wrong)
        assert TOKEN not in caught.value.message
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        )
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        for metadata in (
            (),
            (("authorization", "Basic " + TOKEN),),
            (("authorization", TOKEN),),
            (("authorization-bin", TOKEN.encode()),),
        ):
            calls: list[Callable[[], object]] = [
                lambda metadata=metadata: stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60, metadata=metadata),
                lambda metadata=metadata: stub.UploadVocabulary(
                    iter([pb.UploadVocabularyRequest()]), timeout=60, metadata=metadata
                ),
                lambda metadata=metadata: list(
                    stub.StreamSteps(iter([pb.StreamStepsRequest()]), timeout=60, metadata=metadata)
                ),
                lambda metadata=metadata: stub.StepSequences(
                    pb.StepSequencesRequest(session_id=1), timeout=60, metadata=metadata
                ),
            ]
            for call in calls:
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def certificates(directory: Path) -> None:
    """An authority, a server and a client signed by it, and a stranger with an authority of its own."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    for authority, names in (("ca", ("server", "client")), ("other", ("stranger",))):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}")  # fmt: skip
        for name in names:
            openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
            (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                    "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_mutual_tls_when_configured_then_only_who_has_a_certificate_of_the_authority_gets_in(
    tcp: Callable[..., TcpDaemon], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    certificates(tmp_path)
    files = {
        name: (tmp_path / name).read_bytes()
        for name in ("ca.pem", "client.key", "client.pem", "stranger.key", "stranger.pem", "other.pem")
    }
    daemon = tcp(
        "--tls-certificate",
        str(tmp_path / "server.pem"),
        "--tls-key",
        str(tmp_path / "server.key"),
        "--tls-client-ca",
        str(tmp_path / "ca.pem"),
    )
    good = grpc.ssl_channel_credentials(files["ca.pem"], files["client.key"], files["client.pem"])
    with (
        Client.connect(daemon.target, tls=good) as client,
        open_session(client, vocabulary, transport="inline") as session,
    ):
        grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
        assert session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)]).ok
    for tls in (
        grpc.ssl_channel_credentials(files["ca.pem"]),
        grpc.ssl_channel_credentials(files["ca.pem"], files["stranger.key"], files["stranger.pem"]),
        grpc.ssl_channel_credentials(files["other.pem"], files["client.key"], files["client.pem"]),
        None,
    ):
        with pytest.raises(UnavailableError):
            Client.connect(daemon.target, tls=tls, timeout_seconds=1)
    with Client.connect(daemon.target, tls=good) as client:
        assert client.info().worker_count == 1
    given = [f"--{flag}={tmp_path}/{name}" for flag, name in (
        ("tls-ca", "ca.pem"), ("tls-certificate", "client.pem"), ("tls-key", "client.key")
    )]  # fmt: skip
    assert [info("--listen", daemon.target, *given[:count]).returncode for count in (1, 2, 3)] == [1, 2, 0]


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_budget_when_spent_then_rate_limited_with_retry_info_and_streams_and_probes_go_on(
    start_daemon: Callable[..., Daemon], tcp: Callable[..., TcpDaemon], vocabulary: Vocabulary, transport: str
) -> None:
    """Typed, and says when to come back; steps on a stream that is open cost nothing."""
    flags = ("--requests-per-second", "8")
    daemon = start_daemon(*flags) if transport == "unix" else tcp("--insecure", *flags)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary, transport="inline") as session:
        grammar = session.create_grammar(GrammarSpec("regex", "[ab]*"))
        session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
        with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
            health = health_pb2_grpc.HealthStub(channel)
            refused = None
            for _ in range(500):
                try:
                    stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
                except grpc.RpcError as error:
                    refused = error
                    break
            assert refused is not None
            error = from_rpc_error(refused)
            assert isinstance(error, RateLimitedError) and error.metadata["limit"] == "requests_per_second"
            assert any(
                detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in rpc_status.from_call(refused).details
            )
            for _ in range(50):
                assert session.step([Item(1, row=0)]).ok
                assert (
                    health.Check(health_pb2.HealthCheckRequest(), timeout=60).status
                    == health_pb2.HealthCheckResponse.SERVING
                )

            def served() -> bool:
                with contextlib.suppress(grpc.RpcError):
                    stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
                    return True
                return False

            until(served, "the budget is filled again")


# -- files
# --------------------------------------------------------------------------------------------------------------

INTRUDER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
outcomes = []
for path, kind in ((sys.argv[1], socket.SOCK_STREAM), (sys.argv[1] + ".data", socket.SOCK_SEQPACKET)):
    with socket.socket(socket.AF_UNIX, kind) as connection:
        try:
            connection.connect(path)
            outcomes.append("connected")
        except PermissionError:
            outcomes.append("refused")
print(*outcomes)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("directory_mode", [0o700, 0o755])
def test_sockets_when_another_user_connects_then_refused(
    start_daemon: Callable[..., Daemon], directory_mode: int
) -> None:
    """By the directory, and by the sockets' own mode where the operator opened the directory."""
    daemon = start_daemon()
    daemon.directory.chmod(directory_mode)
    code = subprocess.run(
        [sys.executable, "-I", "-c", INTRUDER, str(daemon.directory / "m.sock")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert code.stdout.split() == ["refused", "refused"], code.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_data_socket_when_its_mode_is_opened_then_the_peers_user_is_still_looked_at(
    start_daemon: Callable[..., Daemon],
) -> None:
    """SO_PEERCRED: whoever is neither the daemon's user nor root is told so, and gets no descriptor."""
    daemon = start_daemon()
    daemon.directory.chmod(0o755)
    (daemon.directory / "m.sock.data").chmod(0o666)
    code = (
        "import os, socket, struct, sys; os.setgid(65534); os.setuid(65534); "
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); s.send(bytes(48)); "
        "print(s.recv(256)[8:12].hex())"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, str(daemon.directory / "m.sock.data")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert '"refusal": 4' in daemon.log


def test_session_when_somebody_else_guesses_its_id_then_it_is_not_found(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Ids are random; small numbers, and those near an own one, belong to nobody. Whoever has the id, and he alone,
    ends the session."""
    daemon = start_daemon()
    with Client.connect(daemon.target) as client, Client.connect(daemon.target) as stranger:
        with open_session(client, vocabulary) as session, open_session(stranger, vocabulary, transport="inline") as own:
            guesses = {*range(1, 100), *(own.session_id + step for step in range(-50, 50))} - {own.session_id}
            for guess in guesses:
                stranger._calls.stub.DeleteSession(pb.DeleteSessionRequest(session_id=guess))
                with pytest.raises(grpc.RpcError) as caught:
                    stranger._calls.stub.GetSession(pb.GetSessionRequest(session_id=guess))
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert session.step([Item(1)], timeout_seconds=60).results
        assert session.session_id not in guesses
    opened = [event["session"] for event in daemon.events() if event["event"] == "session opened"]
    assert opened == [1, 2], "the log has numbers: an id in it could be used"


def test_session_id_when_it_was_read_as_a_double_then_it_is_the_same(
    daemon: Daemon, client: Client, vocabulary: Vocabulary
) -> None:
    """JavaScript reads JSON numbers as doubles. Ids are spread over all that a double can say."""
    with contextlib.ExitStack() as stack:
        ids = [
            stack.enter_context(open_session(client, vocabulary, rows=1, transport="inline")).session_id
            for _ in range(40)
        ]
    assert all(0 < one < 1 << 53 and int(float(one)) == one for one in ids)
    assert max(ids) > 1 << 50, "by chance once in 8 to the 40th"


def test_directory_when_made_then_it_and_the_sockets_are_for_their_user_only(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "maskd", "serve", "--listen", f"unix:{directory}/m.sock", "--drain-seconds", "0"],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: (directory / "m.sock").exists() and (directory / "m.sock.data").exists(), "it listens")
        Client.connect(f"unix:{directory}/m.sock", timeout_seconds=60).close()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for name in ("m.sock", "m.sock.data", "m.sock.lock"):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    "name",
    ["x%41.sock", "nul%00.sock", "a b?ü€#.sock", "\udcff\nnew line", "%:@[x];&=+$!*'()~.sock", "x" * 60],
)
def test_sockets_when_their_path_is_odd_then_daemon_and_client_mean_the_same_and_nobody_else_may_connect(
    name: str, vocabulary: Vocabulary
) -> None:
    """gRPC decodes and cuts the paths of unix sockets; ours are paths. What others may do with them is looked at all
    the time."""
    base = tempfile.mkdtemp(prefix="mk")
    directory = Path(base) / "%41 dir"
    directory.mkdir(mode=0o755)
    target, seen = f"unix:{directory}/{name}", set()
    process = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            'umask 0 && exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "maskd",
            "serve",
            "--listen",
            target,
            "--drain-seconds",
            "0",
        ],
        stderr=subprocess.PIPE,
    )
    try:
        paths = [directory / (name + suffix) for suffix in ("", ".data", ".lock")]
        deadline, found = time.monotonic() + 60, dict[Path, int]()
        while len(found) < 3 and process.poll() is None and time.monotonic() < deadline:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    found[path] = stat.S_IMODE(path.stat().st_mode)
                    seen.add(found[path])
        with Client.connect(target, timeout_seconds=60) as client, open_session(client, vocabulary, rows=1) as session:
            assert session.transport == "shm"
            assert session.step([Item(1)], timeout_seconds=60).results
        assert seen | {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
        assert sorted(directory.iterdir()) == sorted(paths)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
        left = list(directory.iterdir())
        shutil.rmtree(base)
    assert (process.returncode, left) == (0, []), log


@pytest.mark.parametrize(
    ("path", "part"),
    [("/" + "x" * 102, "102 bytes"), ("/a,b", "','"), ("/a\0b", "x00"), ("/\ud800", "encoded"), ("a", "absolute")],
)
def test_client_when_the_path_cannot_be_a_socket_then_the_error_says_why(path: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Client.connect(f"unix:{path}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_directory_when_it_belongs_to_somebody_else_then_the_daemon_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir(mode=0o777)
    os.chown(tmp_path / "foreign", 65534, 65534)
    assert "another user" in refusal_to_start("--listen", f"unix:{tmp_path}/foreign/m.sock")


# -- the log
# ------------------------------------------------------------------------------------------------------------

MARK = "xyzzyMARKxyzzy"


def test_log_when_sessions_good_and_bad_have_passed_then_no_grammar_token_or_secret_is_in_it(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary, token_file: Path
) -> None:
    """Every kind of grammar, good, malformed and too slow, and refused tokens: the marker is nowhere in the log."""
    daemon = start_daemon("--log-level", "debug", "--compile-seconds", "1")
    sources: list[tuple[Any, str]] = [
        ("regex", f"({MARK}|b)"),
        ("regex", f"({MARK}"),
        ("regex", f"(?={MARK})a"),
        ("json_schema", f'{{"const":"{MARK}"}}'),
        ("json_schema", f'{{"type":"{MARK}"}}'),
        ("json_schema", f'{{"$ref":"#/{MARK}"}}'),
        ("json_schema", f'{{"{MARK}":'),
        ("ebnf", f'root ::= "{MARK}"'),
        ("ebnf", f"root ::= {MARK}"),
        ("ebnf", f'"{MARK}'),
        ("lark", f'start: "{MARK}"'),
        ("lark", f"start: {MARK.lower()}"),
        ("structural_tag", f'{{"type":"{MARK}"}}'),
        ("choice", f'["{MARK}"]'),
        ("ebnf", "root ::= " + f'("{MARK}"' * 200 + ")*" * 200),
        ("json_schema", "[" * 5000 + f'"{MARK}"'),
    ]
    with Client.connect(daemon.target) as client:
        for transport in ("shm", "inline"):
            with open_session(client, vocabulary, transport=transport) as session:
                for kind, source in sources:
                    for backend in ("xgrammar", "llguidance", "auto"):
                        with contextlib.suppress(MaskdError):
                            grammar = session.create_grammar(GrammarSpec(kind, source, backend=backend))
                            session.step([Item(1, Action.OPEN, grammar.grammar_id, accept=tuple(MARK.encode()), row=0)])
                            session.step([Item(1, Action.CLOSE)])
                with pytest.raises(GrammarError):
                    session.create_grammar(GrammarSpec("regex", f"({MARK}"))
    log = daemon.log
    assert "session opened" in log
    assert MARK.lower() not in log.lower(), [line for line in log.splitlines() if MARK.lower() in line.lower()][:3]


def test_log_when_tokens_are_presented_then_they_are_not_in_it(
    tcp: Callable[..., TcpDaemon], token_file: Path, tmp_path: Path
) -> None:
    daemon = tcp("--token-file", str(token_file), "--log-level", "debug")
    Client.connect(daemon.target, token=TOKEN).close()
    with pytest.raises(PermissionDeniedError):
        Client.connect(daemon.target, token="another-" + MARK)
    log = (tmp_path / "log").read_text()
    assert log and TOKEN not in log and MARK not in log


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_token_file_then_daemon_info_and_client_read_it_alike(
    end: str, tcp: Callable[..., TcpDaemon], token_file: Path
) -> None:
    token_file.write_text(TOKEN + end, newline="")
    daemon = tcp("--token-file", str(token_file))
    Client.connect(daemon.target, token=token_file.read_text()).close()
    assert info("--listen", daemon.target, "--token-file", str(token_file)).returncode == 0
    without = info("--listen", daemon.target)
    assert (without.returncode, without.stderr.count("\n")) == (1, 1) and "bearer token" in without.stderr


@pytest.mark.parametrize(
    "bad", ["a-token-with\nanother-line", "a-token-with\x00nul", "a-token-with-ü-in-it", "two words here, and more"]
)
def test_token_that_no_header_can_hold_then_it_is_refused_by_name(bad: str, token_file: Path) -> None:
    token_file.write_text(bad)
    for line in (
        refusal_to_start("--listen", f"127.0.0.1:{free_port()}", "--token-file", str(token_file)),
        info("--listen", "127.0.0.1:1", "--token-file", str(token_file)).stderr,
    ):
        assert str(token_file) in line and "position" in line and line.count("\n") <= 1 and bad not in line
    with pytest.raises(ConfigError, match="position"):
        Client.connect("127.0.0.1:1", token=bad)


def info(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskd", "info", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
