"""Configuration: which source wins, and what a wrong one looks like to the person who made it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskd import __version__
from maskd.client import Client
from maskd.errors import ConfigError
from maskd.front.config import Config, VocabularySource, load
from maskd.rpc.address import parse_listen
from maskd.shm import layout
from maskd.vocabulary import Vocabulary


def test_load_when_every_source_says_something_then_flags_beat_environment_beat_file_beat_default(
    tmp_path: Path,
) -> None:
    """default < YAML < environment < flags, field by field."""
    file = tmp_path / "maskd.yaml"
    file.write_text("workers: 2\nsessions: 3\ncompile_threads: 4\n")
    environment = {
        "MASKD_SESSIONS": "30",
        "MASKD_COMPILE_THREADS": "40",
        "MASKD_BACKENDS": "xgrammar, llguidance",
        "OTHER": "x",
    }
    config = load({"compile_threads": 400}, environment, str(file))
    assert (config.workers, config.sessions, config.compile_threads) == (2, 30, 400)
    assert config.backends == ["xgrammar", "llguidance"]
    assert config.claim_seconds == Config().claim_seconds


def test_load_when_the_file_is_empty_then_defaults() -> None:
    """An empty file says nothing."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        assert load({}, {}, file.name) == load({}, {}, None)


@pytest.mark.parametrize("text", ["/a/tokenizer.json,/b", '[{"path": "/a/tokenizer.json"}, {"path": "/b"}]'])
def test_load_when_vocabularies_come_from_the_environment_then_as_from_a_flag(text: str) -> None:
    """Paths with commas between them, or JSON."""
    config = load({}, {"MASKD_VOCABULARIES": text}, None)
    assert config.vocabularies == [VocabularySource("/a/tokenizer.json"), VocabularySource("/b")]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("worker: 2", "worker"),
        ("workers: two", "workers"),
        ("workers: true", "workers"),
        ("workers: 0", "workers is 0"),
        ("drain_seconds: -1", "drain_seconds"),
        ("drain_seconds: .nan", "drain_seconds"),
        ("step_seconds: 0", "step_seconds"),
        ("spin_seconds: 0.1", "spin_seconds"),
        ("backends: []", "backends"),
        ("backends: [xgrammar, xgrammar]", "backends"),
        ("row_seconds: .inf", "row_seconds"),
        ("hang_seconds: 1.0e+300", "hang_seconds"),
        ("drain_seconds: .inf", "drain_seconds"),
        ("requests_per_second: -1", "requests_per_second"),
        ("compile_nice: 100", "0 to 19"),
        ("compile_nice: -1", "0 to 19"),
        ("log_level: loud", "log_level"),
        ("listen: unix:relative.sock", "absolute"),
        ("listen: unix:/" + "x" * 200, "102 bytes"),
        ("listen: unix:/" + "ü" * 60, "102 bytes"),
        ("listen: unix:/a,b.sock", "','"),
        ('listen: "unix:/nul\\0.sock"', "'\\x00'"),
        ("listen: localhost", "host:port"),
        ("listen: localhost:99999", "host:port"),
        ("vocabularies: [{path: /x, colour: red}]", "colour"),
        ("- a\n- b", "holds a list"),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_load_when_a_setting_is_wrong_then_one_line_names_it(content: str, part: str, tmp_path: Path) -> None:
    """Every mistake in a file is one line with the name of the setting."""
    file = tmp_path / "maskd.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, str(file))
    assert part in caught.value.message
    assert "\n" not in caught.value.message


def test_load_when_the_file_is_not_there_then_the_error_names_it() -> None:
    """A missing file is no traceback."""
    with pytest.raises(ConfigError, match=r"/nowhere/maskd.yaml"):
        load({}, {}, "/nowhere/maskd.yaml")


@pytest.mark.parametrize(
    ("variable", "value"), [("MASKD_WORKERS", "many"), ("MASKD_INSECURE", "perhaps"), ("MASKD_VOCABULARIES", "[{")]
)
def test_load_when_the_environment_is_wrong_then_the_variable_is_named(variable: str, value: str) -> None:
    """The source of the mistake is in the line."""
    with pytest.raises(ConfigError, match=variable):
        load({}, {variable: value}, None)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("unix:/run/m.sock", ("unix", "/run/m.sock")),
        ("unix:///run/m.sock", ("unix", "/run/m.sock")),
        ("127.0.0.1:50051", ("tcp", "127.0.0.1:50051")),
        ("[::1]:50051", ("tcp", "[::1]:50051")),
    ],
)
def test_parse_listen_when_well_formed_then_scheme_and_address(listen: str, expected: tuple[str, str]) -> None:
    """Unix paths with or without slashes, hosts and bracketed addresses."""
    assert parse_listen(listen) == expected


# -- the real command line --------------------------------------------------------------------------------------------


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mk") as name:
        yield Path(name)


def serve(
    *flags: str, environment: dict[str, str] | None = None, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, "-m", "maskd", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **(environment or {})},
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line for people, but for logs: ours are JSON, gRPC's own start with a level and a date."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\{|[EWI]\d{4} ", line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("maskd: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--workers", "0"), "workers is 0"),
        (("--workers", "many"), "--workers"),
        (("--listen", "0.0.0.0:50999"), "--insecure"),
        (("--listen", "unix:/tmp/" + "x" * 120), "102 bytes"),
        (("--config", "/nowhere.yaml"), "/nowhere.yaml"),
        (("--compile-cpus", "99999"), "compile_cpus has 99999; this process runs on "),
        (("--compile-cpus=-1,4294967296",), "compile_cpus has -1, 4294967296"),
        (("--listen", "unix:/proc/maskd/m.sock"), "/proc/maskd"),
    ],
)
def test_serve_when_misconfigured_then_exit_2_and_one_line(flags: tuple[str, ...], part: str) -> None:
    """Nothing was started, and the line says what to change."""
    assert part in one_line(serve(*flags))


def test_serve_when_a_flag_is_unknown_then_exit_2_with_usage() -> None:
    """argparse's own answer."""
    done = serve("--wrokers", "2")
    assert (done.returncode, "unrecognized arguments" in done.stderr) == (2, True)


def test_serve_when_the_vocabulary_cannot_be_read_then_exit_2_and_nothing_is_left(directory: Path) -> None:
    """The path is in the line, and no socket stays behind."""
    (directory / "tokenizer.json").write_text("{}")
    line = one_line(serve("--listen", f"unix:{directory}/m.sock", "--vocabularies", str(directory / "tokenizer.json")))
    assert "tokenizer.json" in line
    assert "absent.json" in one_line(
        serve("--listen", f"unix:{directory}/m.sock", "--vocabularies", str(directory / "absent.json"))
    )
    assert sorted(path.name for path in directory.iterdir()) == ["tokenizer.json"]


@pytest.mark.parametrize("backend", ["nope", "maskd.front.config:absent"])
def test_serve_when_a_backend_is_unknown_then_exit_2_and_the_line_names_it(backend: str, directory: Path) -> None:
    """The worker that cannot import it tells the front why."""
    assert repr(backend) in one_line(serve("--listen", f"unix:{directory}/m.sock", "--backends", backend))


def everything_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize(
    ("there", "name", "part"),
    [
        ("file", "passwd", "is no socket"),
        ("file.data", "passwd", "is no socket"),
        ("link", "passwd", "is no socket"),
        ("directory", "passwd", "is no socket"),
        ("file.lock", "passwd", "no lock of maskd"),
        ("link.lock", "passwd", "cannot use"),
        ("listener", "passwd", "another program serves"),
        ("listener.data", "passwd", "another program serves"),
        ("", "new/newer/newest/m.sock", "vocabulary"),
        ("", "new/" + 50 * "x" + "/../m.sock", "vocabulary"),
        ("file", "passwd/under/m.sock", "Not a directory"),
        ("unreadable", "closed/m.sock", "cannot use"),
        ("foreign", "foreign/m.sock", "another user"),
    ],
)
def test_serve_when_its_path_is_refused_then_nothing_is_left_or_changed(
    there: str, name: str, part: str, directory: Path
) -> None:
    """Every refusal: the file of another program is whole, and no lock, socket or directory stays."""
    kind, _, suffix = there.partition(".")
    taken = directory / ("passwd" + (f".{suffix}" if suffix else ""))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM)
    user: tuple[str, ...] = ()
    with listener:
        if kind == "file":
            taken.write_text("precious")
        elif kind == "link":
            taken.symlink_to(directory / "nowhere")
        elif kind == "directory":
            taken.mkdir()
        elif kind == "listener":
            listener.bind(str(taken))
            listener.listen(0)
        elif kind == "unreadable":
            (directory / "closed").mkdir(mode=0)
            user = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.getuid() == 0 else ()
        elif kind == "foreign":
            if os.getuid() != 0:
                pytest.skip("only root can give a directory away")
            (directory / "foreign").mkdir()
            os.chown(directory / "foreign", 65534, 65534)
        before = everything_under(directory)
        line = one_line(
            serve("--listen", f"unix:{directory}/{name}", "--vocabularies", str(directory / "absent.json"), under=user)
        )
        assert part in line
        assert everything_under(directory) == before
        assert kind != "file" or taken.read_text() == "precious"


def test_serve_when_its_path_is_a_full_listener_of_another_program_then_that_is_kept(directory: Path) -> None:
    """A listener with no room for one more connection is no stale socket either."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(f"{directory}/m.sock")
        listener.listen(0)
        waiting.connect(f"{directory}/m.sock")
        assert "another program serves" in one_line(serve("--listen", f"unix:{directory}/m.sock"))
        assert everything_under(directory) == ["m.sock"]


def test_serve_when_its_path_is_the_data_socket_of_a_daemon_then_that_goes_on(daemon: object, client: object) -> None:
    """The names of one daemon's sockets are not free for another's."""
    before = everything_under(daemon.directory)  # type: ignore[attr-defined]
    assert "another program serves" in one_line(serve("--listen", f"{daemon.target}.data"))  # type: ignore[attr-defined]
    assert everything_under(daemon.directory) == before  # type: ignore[attr-defined]


def test_serve_when_the_path_is_taken_by_a_file_then_exit_2_and_the_file_is_kept(directory: Path) -> None:
    """A stale socket is replaced; the file of another program is not."""
    (directory / "m.sock").write_text("precious")
    assert "is no socket" in one_line(serve("--listen", f"unix:{directory}/m.sock"))
    assert (directory / "m.sock").read_text() == "precious"


def test_serve_when_another_daemon_has_the_path_then_exit_2_and_the_first_goes_on(
    daemon: object, client: object
) -> None:
    """One daemon a path: the second leaves without touching the first one's sockets."""
    assert "another maskd serves" in one_line(serve("--listen", daemon.target))  # type: ignore[attr-defined]
    assert client.info().worker_count == 1  # type: ignore[attr-defined]


def test_serve_when_the_port_is_taken_then_exit_2_and_one_line() -> None:
    """A port in use is a configuration error too."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in one_line(serve("--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--insecure"))


def test_serve_when_a_socket_is_left_from_a_kill_then_it_is_replaced(start_daemon: Callable[..., object]) -> None:
    """kill -9 leaves sockets behind; the next daemon takes over."""
    daemon = start_daemon()
    daemon.kill()  # type: ignore[attr-defined]
    assert (daemon.directory / "m.sock").is_socket()  # type: ignore[attr-defined]
    daemon.restart()  # type: ignore[attr-defined]


def test_info_when_nothing_listens_then_exit_1_and_one_line(directory: Path) -> None:
    """maskd info says what to do."""
    done = subprocess.run(
        [sys.executable, "-m", "maskd", "info", "--listen", f"unix:{directory}/m.sock"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "maskd serve" in done.stderr


def test_info_when_a_daemon_runs_then_people_get_a_table_and_programs_json(
    start_daemon: Callable[..., object], vocabulary: Vocabulary
) -> None:
    """Both say the same; a name that a client chose cannot move the cursor of a terminal."""
    daemon = start_daemon()
    hostile = Vocabulary([*vocabulary.tokens, b"more"], 300, vocabulary.stop_token_ids, name="a\x1b[2J\nserving ü")
    with Client.connect(daemon.target) as client:  # type: ignore[attr-defined]
        for one in (vocabulary, hostile):
            client.upload_vocabulary(one)
        with client.open_session(vocabulary.fingerprint, vocab_size=300, row_capacity=1):
            table, found = info(daemon), json.loads(info(daemon, "--json"))
    lines = [re.split(r"  +", line) for line in table.splitlines()]
    assert dict(line for line in lines if len(line) == 2) == {
        "maskd": __version__,
        "address": daemon.target,  # type: ignore[attr-defined]
        "state": "serving",
        "transports": "shared memory, inline",
        "layout": f"{layout.MAJOR}.{layout.MINOR}",
        "backends": "llguidance, xgrammar",
        "workers": "1",
        "sessions": "1",
        "vocabularies": "2",
    }
    assert lines[-2:] == [
        ["bytes", vocabulary.fingerprint.hex()[:16], "300", str(len(vocabulary.tokens)), "263"],
        ["a\\x1b[2J\\nserving ü", hostile.fingerprint.hex()[:16], "300", str(len(hostile.tokens)), "263"],
    ]
    assert "(" not in table and "\x1b" not in table
    assert found.pop("vocabularies")[1] == {
        "fingerprint": hostile.fingerprint.hex(),
        "name": hostile.name,
        "vocab_size": 300,
        "token_count": len(hostile.tokens),
        "stop_token_ids": [263],
    }
    assert found == {
        "version": __version__,
        "layout": [layout.MAJOR, layout.MINOR],
        "backends": ["llguidance", "xgrammar"],
        "worker_count": 1,
        "session_count": 1,
        "draining": False,
        "shared_memory": True,
    }


def info(daemon: object, *flags: str) -> str:
    command = [sys.executable, "-m", "maskd", "info", "--listen", daemon.target, *flags]  # type: ignore[attr-defined]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_include_when_asked_then_the_header_is_there() -> None:
    """maskd include prints the directory of maskd_shm.h."""
    done = subprocess.run(
        [sys.executable, "-m", "maskd", "include"], capture_output=True, text=True, timeout=60, check=True
    )
    assert (Path(done.stdout.strip()) / "maskd_shm.h").is_file()
