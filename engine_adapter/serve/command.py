"""``engine-adapter serve``: flags and a YAML file to an engine and a listening server.

Owns: settings, logging, the life of the process.
Knows nothing about: routes.

A flag beats the file. The file's ``guided_decoding_backend`` is spelled as TensorRT-LLM's ``trtllm-serve`` reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from maskd.errors import ConfigError
from maskd.grammar import WHEN_SLOW, PropertyOrder, WhenSlow

__all__ = ["ServeSettings", "add_flags", "load_settings", "run_server"]

logger = logging.getLogger("engine_adapter.serve")


def _setting(
    default: Any,
    text: str,
    kind: type = str,
    *,
    limits: tuple[int, int] | None = None,
    among: Sequence[str] = (),
    or_any: bool = False,
) -> Any:
    """Returns a field of ``ServeSettings``.

    Args:
        default: also says that the setting may be None, if it is.
        text: for the help.
        kind: of the values.
        limits: least and greatest number.
        among: the values there are.
        or_any: ``any`` (in a file null as well) takes the bound away; the setting is None then.
    """
    metadata = {"help": text, "kind": kind, "limits": limits, "among": among, "or_any": or_any}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ServeSettings:
    """What ``engine-adapter serve`` can be told; the help of each field is its meaning."""

    model: str | None = _setting(None, "a local Hugging Face directory (default: the bundled model)")
    host: str = _setting("127.0.0.1", "address to listen on; every client that reaches it may use it")
    port: int = _setting(8000, "port to listen on", int, limits=(0, 65535))
    guided_decoding_backend: str = _setting("auto", "xgrammar, llguidance, or auto, which picks one for each grammar")
    target: str | None = _setting(None, "a running daemon, unix:/path or host:port (default: start one)")
    slots: int | None = _setting(
        None,
        "outputs that run at a time (default: 16 on a CPU, what memory has room for on CUDA)",
        int,
        limits=(1, 4096),
    )
    queue_limit: int = _setting(256, "outputs that may wait; more are answered with 429", int, limits=(0, 10**6))
    context_length: int | None = _setting(
        None, "most tokens of a prompt and its output (default: the model's, 4096 at most)", int, limits=(2, 10**7)
    )
    device: str | None = _setting(None, "cpu, cuda, cuda:1 (default: CUDA if there is any)")
    bounded: bool = _setting(
        False, "narrow every JSON schema so that its documents are short; for models that were not trained", bool
    )
    close_before_budget: bool = _setting(
        True, "end JSON, calls and regexes before the token limit would cut them, unless a request says otherwise", bool
    )
    max_whitespace: int | None = _setting(
        32,
        "characters of white space between two JSON tokens, or any (null in the file); unless a request says otherwise",
        int,
        limits=(0, 1024),
        or_any=True,
    )
    property_order: PropertyOrder = _setting(  # noqa: RUF009 - as below
        "schema",
        "properties of JSON come in the order of the schema, or in any; unless a request says otherwise",
        among=get_args(PropertyOrder),
    )
    when_slow: WhenSlow = _setting(  # noqa: RUF009 - the call makes a dataclass field; ruff takes it for a default
        "wait",
        "when a grammar's masks are late: wait, fail, or switch to the other backend; unless a request says otherwise",
        among=WHEN_SLOW,
    )
    body_bytes: int = _setting(
        4 << 20, "longest body of a request; more is answered with 413", int, limits=(1024, 1 << 30)
    )
    body_seconds: float = _setting(
        60.0, "how long the body of a request may take to arrive; more is answered with 408", float, limits=(1, 86400)
    )
    reasoning_end: str | None = _setting(
        None,
        "text that ends the reasoning of a model that always begins with it (default: what its chat template shows)",
    )
    restore_seconds: float = _setting(
        5.0, "how long guided requests wait for a daemon that is away, before their 503", float, limits=(0, 3600)
    )
    drain_seconds: float = _setting(
        10.0,
        "on SIGTERM, how long answers may take to end, before they are ended with an error",
        float,
        limits=(0, 86400),
    )
    log_level: str = _setting("info", "debug, info, warning or error", among=("debug", "info", "warning", "error"))


_ANY = "any"
_LAST_WORDS_SECONDS = 5  # for errors on their way to clients that read slowly


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
            kind = _number_or_any if field.metadata["or_any"] else field.metadata["kind"]
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
        # what PyYAML raises for malformed files
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: is not a mapping")
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"{path}: {name!r} is unknown; give some of {', '.join(known)}")
            values[name] = value
    values |= {name: value for name, value in flags.items() if name in known and value is not None}
    values |= {name: None for name, value in values.items() if known[name].metadata["or_any"] and value == _ANY}
    for name, value in values.items():
        _check(known[name], value)
    return ServeSettings(**values)


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError if the setting ``field`` cannot have ``value``."""
    name, about = field.name, field.metadata
    if value is None and (field.default is None or about["or_any"]):
        return
    wanted = about["kind"]
    is_right = isinstance(value, (int, float) if wanted is float else wanted)
    if not is_right or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} is {value!r}; its type is {wanted.__name__}")
    if about["limits"] and not about["limits"][0] <= value <= about["limits"][1]:
        raise ConfigError(f"{name} is {value}; give {about['limits'][0]} to {about['limits'][1]}")
    if about["among"] and value not in about["among"]:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(about['among'])}")


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
            property_order=settings.property_order,
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
