"""The daemon's configuration: one frozen object from defaults, a YAML file, the environment and flags, in this order.

Every setting is a field of ``Config``, with its unit in its name and its meaning in the docstring. Flag and environment
variable follow from the field (``drain_seconds``: ``--drain-seconds``, ``MASKD_DRAIN_SECONDS``).
Owns: the settings and how they are read. Knows nothing about: what they do.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import threading
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from maskd.errors import ConfigError
from maskd.rpc.address import parse_listen

__all__ = ["Config", "VocabularySource", "check_processors", "field_help", "flags", "load"]

_COUNTS = (
    "workers", "compile_threads", "sessions", "vocabularies_limit", "sequences_per_session", "rows_per_session",
    "grammars_per_session", "message_bytes", "grammar_bytes", "cache_bytes", "compile_bytes", "build_bytes", "verdicts",
)  # fmt: skip
_NOT_NEGATIVE = ("native_threads", "requests_per_second", "spin_seconds", "drain_seconds", "restart_seconds")
_POSITIVE = (
    "compile_seconds", "build_seconds", "mask_seconds", "row_seconds", "hang_seconds", "claim_seconds", "lease_seconds",
    "step_seconds",
)  # fmt: skip

_LONGEST = 10**9
"""Of seconds and threads: what clocks and timers of the kernel take with room to spare."""


class VocabularySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vocabulary to load before listening.

    Attributes:
        path: Hugging Face tokenizer directory, tokenizer.json, tekken or tiktoken file.
        name: how clients may ask for it; default: the file's name.
        vocab_size: width of the logits, where the files do not say.
        stop_token_ids: where the files do not say.
    """

    path: str
    name: str | None = None
    vocab_size: int | None = None
    stop_token_ids: list[int] | None = None


def _default_listen() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/maskd-{os.getuid()}"  # noqa: S108  (made 0700 and checked by the server)
    return f"unix:{runtime}/maskd/maskd.sock" if "XDG_RUNTIME_DIR" in os.environ else f"unix:{runtime}/maskd.sock"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the daemon can be told.

    Attributes:
        listen: "unix:/path/maskd.sock" (shared memory and inline) or "host:port" (inline only). The data socket of a
            unix listener is the same path with ".data" appended.
        insecure: accept every client that reaches a TCP listener, without TLS and token.
        tls_certificate: PEM chain of the daemon, for TCP.
        tls_key: PEM key to it.
        tls_client_ca: PEM of the authority that signs clients' certificates: mutual TLS.
        token_file: file (mode 0600) with a bearer token that every call must carry.
        vocabularies: loaded before listening; others may be uploaded.
        backends: what "auto" tries, in this order.
        workers: worker processes for each vocabulary; a session lives on one of them.
        native_threads: threads that a library may use in one worker for a batch; 0 = half the cores / workers, at most
            8.
        compile_threads: compiles at a time; also threads for grammars in one worker, and vocabularies loaded at a time.
        jail: compile grammars in killable children first. Switch it off only if every grammar's source is trusted.
        compile_seconds: a compile that takes longer is killed and answered GRAMMAR_TIMEOUT.
        compile_bytes: memory that a compile may use beyond the libraries' own.
        compile_nice: added to the niceness of compile children, so that sequences in progress come first.
        compile_cpus: cores that compile children may use; empty = any.
        mask_seconds: longest time of one token in a short walk after the compile; a slower grammar is refused.
        row_seconds: how long a step waits for slow rows; items that need longer are answered STEP_DEADLINE.
        hang_seconds: a worker that is longer than this in one native call is killed; its sessions restore by replay.
        verdicts: outcomes of compiles that are remembered, by content; and, apart from these, grammars that crashed.
        cache_bytes: compiled grammars kept by one worker, approximate.
        grammar_bytes: longest grammar source.
        grammars_per_session: grammars that a session may hold, including those that are being compiled for it. A
            grammar with an alternate (when_slow "switch") counts twice.
        sequences_per_session: sequences open at a time in one session.
        rows_per_session: rows of one step; the segments hold twice as many.
        sessions: sessions open at a time.
        vocabularies_limit: vocabularies loaded at a time; the backends of one take about 100 MB, which its processes
            share.
        build_seconds: a vocabulary whose backends are not built after this is refused.
        build_bytes: memory that building them may use beyond the libraries' own.
        message_bytes: longest gRPC message.
        requests_per_second: gRPC calls of one peer; steps through shared memory or on a stream do not count. 0 = no
            limit.
        concurrent_calls: gRPC calls under way at a time.
        claim_seconds: how long a new session waits for its engine on the data socket.
        lease_seconds: an inline session that is not used for this time ends.
        step_seconds: longest wait for one inline step.
        spin_seconds: how long a worker looks for the next step before it sleeps. More than 0 costs a core while engines
            decode, and saves about 5 µs a step.
        drain_seconds: on SIGTERM, how long engines may go on before the daemon exits.
        restart_seconds: longest pause before a worker that keeps dying is started again.
        log_level: debug, info, warning or error.
    """

    listen: str = msgspec.field(default_factory=_default_listen)
    insecure: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    token_file: str = ""
    vocabularies: list[VocabularySource] = msgspec.field(default_factory=list)
    backends: list[str] = msgspec.field(default_factory=lambda: ["llguidance", "xgrammar"])
    workers: int = 1
    native_threads: int = 0
    compile_threads: int = 2
    jail: bool = True
    compile_seconds: float = 10.0
    compile_bytes: int = 1 << 30
    compile_nice: int = 10
    compile_cpus: list[int] = msgspec.field(default_factory=list)
    mask_seconds: float = 0.25
    row_seconds: float = 0.02
    hang_seconds: float = 2.0
    verdicts: int = 16384
    cache_bytes: int = 512 << 20
    grammar_bytes: int = 1 << 20
    grammars_per_session: int = 4096
    sequences_per_session: int = 4096
    rows_per_session: int = 4096
    sessions: int = 256
    vocabularies_limit: int = 8
    build_seconds: float = 60.0
    build_bytes: int = 4 << 30
    message_bytes: int = 4 << 20
    requests_per_second: float = 0.0
    concurrent_calls: int = 4096
    claim_seconds: float = 5.0
    lease_seconds: float = 600.0
    step_seconds: float = 30.0
    spin_seconds: float = 0.0
    drain_seconds: float = 10.0
    restart_seconds: float = 5.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1", field=name)
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more", field=name)
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0", field=name)
        if self.spin_seconds > 0.002:
            raise ConfigError(
                f"spin_seconds is {self.spin_seconds}; spinning longer than 0.002 starves the neighbours",
                field="spin_seconds",
            )
        for name in (*_NOT_NEGATIVE, *_POSITIVE):
            if not getattr(self, name) <= _LONGEST:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at most {_LONGEST}", field=name)
        if not self.backends:
            raise ConfigError("backends is empty; name at least one", field="backends")
        if len(set(self.backends)) < len(self.backends):
            raise ConfigError(f"backends names one twice: {', '.join(self.backends)}", field="backends")
        if not 0 <= self.compile_nice <= 19:
            raise ConfigError(f"compile_nice is {self.compile_nice}; give 0 to 19", field="compile_nice")
        parse_listen(self.listen)


def load(arguments: Mapping[str, Any], environment: Mapping[str, str], path: str | None) -> Config:
    """Returns the configuration. ``arguments`` are the flags that were given, by field name.

    Raises:
        ConfigError: one line that says which source and which field is wrong.
    """
    merged: dict[str, Any] = {}
    if path:
        merged.update(_read_yaml(path))
    fields = {field.name: field for field in msgspec.structs.fields(Config)}
    for name, field in fields.items():
        variable = f"MASKD_{name.upper()}"
        if variable in environment:
            merged[name] = _from_text(environment[variable], field.type, variable)
    merged.update(arguments)
    try:
        return msgspec.convert(merged, Config)
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as error:
        cause = error.__cause__
        raise (
            cause
            if isinstance(cause, ConfigError)
            else ConfigError(f"bad configuration: {' '.join(str(error).split())}")
        ) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", field="config") from None
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:  # PyYAML lets out what its constructors raise
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}", field="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not settings", field="config")
    return {str(key): value for key, value in content.items()}


def _from_text(text: str, kind: Any, source: str) -> Any:
    """Reads one value from a flag or an environment variable; lists are comma-separated, or JSON."""
    try:
        if typing.get_origin(kind) is list:
            if text.lstrip().startswith("["):
                return json.loads(text)
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return (
                [{"path": part} for part in parts]
                if kind == list[VocabularySource]
                else msgspec.convert(parts, kind, strict=False)
            )
        return msgspec.convert(text, kind, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{source} is {text!r}: {error}", field=source) from None


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config`` and a flag for every field of ``Config`` to ``parser``. Its result has only the given flags."""
    help_of = dict(field_help(Config))
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file with any of the settings below"
    )
    for field in msgspec.structs.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        text = help_of[field.name].replace("%", "%%")
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag,
                type=functools.partial(_from_text, kind=field.type, source=flag),
                metavar=_metavar(field),
                default=argparse.SUPPRESS,
                help=text,
            )


def _metavar(field: msgspec.structs.FieldInfo) -> str:
    default = field.default if field.default is not msgspec.NODEFAULT else "…"
    return "PATH,…" if field.name == "vocabularies" else "NAME,…" if field.name == "backends" else str(default)


def field_help(described: object) -> typing.Iterator[tuple[str, str]]:
    """Yields (field, text) from the Attributes section of the docstring of a class: the help is written once."""
    name, lines = "", list[str]()
    for line in (described.__doc__ or "").split("Attributes:", 1)[1].splitlines():
        head, colon, rest = line.strip().partition(": ")
        if line.startswith(" " * 8) and not line.startswith(" " * 9) and colon:
            if name:
                yield name, " ".join(lines)
            name, lines = head, [rest]
        elif line.strip():
            lines.append(line.strip())
    yield name, " ".join(lines)


def check_processors(config: Config) -> None:
    """Raises ConfigError if compile children cannot run on one of ``compile_cpus``."""
    refused: list[int] = []

    def probe() -> None:  # on a thread of its own, for the affinity is a thread's
        for number in config.compile_cpus:
            try:
                os.sched_setaffinity(0, {number})
            except (OSError, ValueError, OverflowError):
                refused.append(number)

    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    if refused:
        there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigError(
            f"compile_cpus has {', '.join(map(str, refused))}; this process runs on {there}", field="compile_cpus"
        )


def resolve_threads(config: Config) -> int:
    """Returns the native threads of one worker."""
    return config.native_threads or max(1, min(8, len(os.sched_getaffinity(0)) // (2 * config.workers)))
