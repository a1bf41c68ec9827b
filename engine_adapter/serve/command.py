"""``engine-adapter serve``: flags and a YAML file to an engine and a listening server.

A flag beats the file. The file's ``guided_decoding_backend`` is spelled as TensorRT-LLM's ``trtllm-serve`` reads it.
Owns: settings, logging, the life of the process. Knows nothing about: routes.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import math
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskd.errors import ConfigError
from maskd.grammar import WHEN_SLOW, WhenSlow

__all__ = ["ServeSettings", "add_flags", "load_settings", "run_server"]

logger = logging.getLogger("engine_adapter.serve")


@dataclass(frozen=True)
class ServeSettings:
    """What ``engine-adapter serve`` can be told. Metadata of a field: what it means."""

    model: str | None = dataclasses.field(
        default=None, metadata={"help": "a local Hugging Face directory (default: the bundled model)"}
    )
    host: str = dataclasses.field(
        default="127.0.0.1", metadata={"help": "address to listen on; anybody who reaches it may use it"}
    )
    port: int = dataclasses.field(default=8000, metadata={"help": "port to listen on"})
    guided_decoding_backend: str = dataclasses.field(
        default="auto", metadata={"help": "xgrammar, llguidance, or auto, which picks one for each grammar"}
    )
    target: str | None = dataclasses.field(
        default=None, metadata={"help": "a running daemon, unix:/path or host:port (default: start one)"}
    )
    slots: int | None = dataclasses.field(
        default=None,
        metadata={"help": "outputs that run at a time (default: 16 on a CPU, what memory has room for on CUDA)"},
    )
    queue_limit: int = dataclasses.field(
        default=256, metadata={"help": "outputs that may wait; more are answered with 429"}
    )
    context_length: int | None = dataclasses.field(
        default=None, metadata={"help": "most tokens of a prompt and its output (default: the model's, 4096 at most)"}
    )
    device: str | None = dataclasses.field(
        default=None, metadata={"help": "cpu, cuda, cuda:1 (default: CUDA if there is any)"}
    )
    bounded: bool = dataclasses.field(
        default=False,
        metadata={"help": "narrow every JSON schema so that its documents are short; for models that were not trained"},
    )
    close_before_budget: bool = dataclasses.field(
        default=True,
        metadata={
            "help": "end JSON, calls and regexes before the token limit would cut them, unless a request says otherwise"
        },
    )
    max_whitespace: int | None = dataclasses.field(
        default=32,
        metadata={
            "help": (
                "characters of white space between two JSON tokens, or any (null in the file); "
                "unless a request says otherwise"
            )
        },
    )
    when_slow: WhenSlow = dataclasses.field(
        default="wait",
        metadata={
            "help": (
                "when a grammar's masks are late: wait, fail, or switch to the other backend; "
                "unless a request says otherwise"
            )
        },
    )
    body_bytes: int = dataclasses.field(
        default=4 << 20, metadata={"help": "longest body of a request; more is answered with 413"}
    )
    body_seconds: float = dataclasses.field(
        default=60.0, metadata={"help": "how long the body of a request may take to arrive; more is answered with 408"}
    )
    reasoning_end: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": (
                "text that ends the reasoning of a model that always begins with it (default: "
                "what its chat template shows)"
            )
        },
    )
    restore_seconds: float = dataclasses.field(
        default=5.0, metadata={"help": "how long guided requests wait for a daemon that is away, before their 503"}
    )
    drain_seconds: float = dataclasses.field(
        default=10.0,
        metadata={"help": "on SIGTERM, how long answers may take to end, before they are ended with an error"},
    )
    log_level: str = dataclasses.field(default="info", metadata={"help": "debug, info, warning or error"})


_TYPES: dict[str, type] = {
    "port": int,
    "slots": int,
    "queue_limit": int,
    "context_length": int,
    "max_whitespace": int,
    "body_bytes": int,
    "body_seconds": float,
    "restore_seconds": float,
    "drain_seconds": float,
}
_LIMITS: dict[str, tuple[int, int]] = {
    "port": (0, 65535),
    "slots": (1, 4096),
    "queue_limit": (0, 10**6),
    "context_length": (2, 10**7),
    "body_bytes": (1024, 1 << 30),
    "max_whitespace": (0, 1024),
    "body_seconds": (1, 86400),
    "restore_seconds": (0, 3600),
    "drain_seconds": (0, 86400),
}
_ANY = "any"
_MAY_BE_ANY = ("max_whitespace",)
"""Numbers that ``any`` takes the bound away from; in a file null does as well."""
_LAST_WORDS_SECONDS = 5  # for errors on their way to clients that read slowly
_LEVELS = ("debug", "info", "warning", "error")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML with any of these settings; dashes are underscores there"
    )
    for field in dataclasses.fields(ServeSettings):
        default = "" if field.default is None or field.default is False else f" (default: {field.default})"
        text = field.metadata["help"] + default
        if field.name == "model":
            parser.add_argument("model", nargs="?", default=None, help=text)
        elif isinstance(field.default, bool):
            parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            kind = _number_or_any if field.name in _MAY_BE_ANY else _TYPES.get(field.name, str)
            parser.add_argument(_flag(field.name), type=kind, default=None, metavar="X", help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number_or_any(text: str) -> int | str:
    return text if text == _ANY else int(text)


def load_settings(flags: Mapping[str, Any], path: str | None = None) -> ServeSettings:
    """Returns the settings of a file under those of flags.

    Args:
        flags: by name; None = not given.
        path: a YAML file.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a value that makes no sense.
    """
    known = {field.name: field for field in dataclasses.fields(ServeSettings)}
    values: dict[str, Any] = {}
    if path is not None:
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        # PyYAML's
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: is not a mapping")
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"{path}: {name!r} is unknown; give some of {', '.join(known)}")
            values[name] = value
    values |= {name: value for name, value in flags.items() if name in known and value is not None}
    values |= {name: None for name in _MAY_BE_ANY if values.get(name) == _ANY}
    for name, value in values.items():
        _check(name, value, known[name].default)
    return ServeSettings(**values)


def _check(name: str, value: Any, default: Any) -> None:
    """Raises ConfigError if ``value`` is none for the setting ``name``."""
    if value is None and (default is None or name in _MAY_BE_ANY):
        return
    wanted = _TYPES.get(name, bool if isinstance(default, bool) else str)
    is_right: bool = isinstance(value, (int, float) if wanted is float else wanted)
    if not is_right or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} is {value!r}; its type is {wanted.__name__}")
    lowest, highest = _LIMITS.get(name, (0, 0))
    if name in _LIMITS and not lowest <= value <= highest:
        raise ConfigError(f"{name} is {value}; give {lowest} to {highest}")
    if name == "log_level" and value not in _LEVELS:
        raise ConfigError(f"log_level is {value!r}; give one of {', '.join(_LEVELS)}")
    if name == "when_slow" and value not in WHEN_SLOW:
        raise ConfigError(f"when_slow is {value!r}; give one of {', '.join(WHEN_SLOW)}")


def run_server(settings: ServeSettings) -> int:
    """Loads the model, serves until SIGTERM or SIGINT, and returns the exit code."""
    import uvicorn

    from engine_adapter.engine import Engine
    from engine_adapter.serve.app import create_app

    # While it serves, uvicorn takes the signal, and raises it again when the last answer has ended; either way the
    # engine is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with Engine(
        settings.model,
        target=settings.target,
        backend=settings.guided_decoding_backend,
        slots=settings.slots,
        queue_limit=settings.queue_limit,
        device=settings.device,
        bounded=settings.bounded,
        context_length=settings.context_length,
        restore_seconds=settings.restore_seconds,
        reasoning_end=settings.reasoning_end,
        when_slow=settings.when_slow,
    ) as engine:
        logger.info("Guided decoder initialized with backend: %s", settings.guided_decoding_backend)
        if not engine.trained:
            logger.warning(
                "the model %s has random weights; its answers match their grammars, and mean nothing", engine.model_name
            )
        app = create_app(
            engine,
            bounded=settings.bounded,
            close_before_budget=settings.close_before_budget,
            max_whitespace=settings.max_whitespace,
            body_bytes=settings.body_bytes,
            body_seconds=settings.body_seconds,
        )
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + _LAST_WORDS_SECONDS,
        )

        class Server(uvicorn.Server):
            """Ends what is under way in its own words, where uvicorn would cut it."""

            async def shutdown(self, sockets: Any = None) -> None:
                timer = asyncio.get_running_loop().call_later(settings.drain_seconds, app.state.core.end)
                await super().shutdown(sockets)
                timer.cancel()

        server = Server(config)
        server.run()
        return 0 if server.started else 2
