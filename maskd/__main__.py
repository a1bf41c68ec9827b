"""The command line: ``maskd serve``, ``maskd info``, ``maskd include``.

Owns: arguments, signals, exit codes, what people read. Knows nothing about: settings (``front.config``), gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from maskd import __version__
from maskd.errors import ConfigError, MaskdError
from maskd.front import config
from maskd.observability.logs import configure_logging

if TYPE_CHECKING:
    from maskd.client import ServerInfo

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 fine, 1 no good answer, 2 bad configuration.

    Raises:
        SystemExit: of argparse, for bad usage (2), help and version (0).
    """
    parser = argparse.ArgumentParser(prog="maskd", description="Grammar masks as a service.")
    parser.add_argument("--version", action="version", version=f"maskd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon", description="Run the daemon until SIGTERM or SIGINT.")
    info = commands.add_parser("info", help="show what a running daemon is and holds")
    commands.add_parser("include", help="print the directory of maskd_shm.h, for C and C++ engines")
    info.add_argument("--listen", default=config.Config().listen, help="address of the daemon (default: %(default)s)")
    info.add_argument("--json", action="store_true", help="one JSON object, with whole fingerprints, for programs")
    info.add_argument(
        "--token-file", metavar="FILE", default="", help="file with the bearer token that the daemon wants"
    )
    info.add_argument("--tls-ca", metavar="FILE", default="", help="PEM of the authority of the daemon's certificate")
    info.add_argument("--tls-certificate", metavar="FILE", default="", help="PEM chain of this client, for mutual TLS")
    info.add_argument("--tls-key", metavar="FILE", default="", help="PEM key to it")
    try:
        config.flags(serve)
        arguments = vars(parser.parse_args(argv))
        command = arguments.pop("command")
        if command == "serve":
            return _serve(arguments)
        if command == "include":
            print(Path(__file__).with_name("native"))  # noqa: T201
            return 0
        return _info(arguments)
    except ConfigError as error:
        print(f"maskd: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


def _serve(arguments: dict[str, object]) -> int:
    path = arguments.pop("config", None)
    settings = config.load(arguments, os.environ, str(path) if path is not None else None)
    config.check_processors(settings)
    configure_logging(settings.log_level, process="front")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Workers inherit the limit, and a session takes five descriptors.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve_until_signal(settings))
    _forget_unwritable_streams()
    return 0


def _forget_unwritable_streams() -> None:
    """Python exits with 120 if its last flush fails; a log that cannot be written must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


async def _serve_until_signal(settings: config.Config) -> None:
    from maskd.front.server import run  # gRPC is imported once the configuration is known to be good

    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal() -> None:
        if stop.done():
            os._exit(130)  # the second signal: no more waiting for sessions
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    gc.freeze()
    await run(settings, stop)


def _info(arguments: dict[str, str]) -> int:
    from maskd.client import Client
    from maskd.rpc.credentials import channel_credentials, read_token

    listen = arguments["listen"]
    token = read_token(arguments["token_file"]) if arguments["token_file"] else None
    tls = channel_credentials(arguments["tls_ca"], arguments["tls_certificate"], arguments["tls_key"])
    try:
        with Client.connect(listen, timeout_seconds=2.0, token=token, tls=tls) as client:
            found = client.info()
    except ConfigError:
        raise
    except MaskdError as error:
        print(f"maskd: {error.message}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(dataclasses.asdict(found), default=bytes.hex) if arguments["json"] else _table_of(listen, found))  # noqa: T201
    return 0


def _table_of(listen: str, found: ServerInfo) -> str:
    """Returns what ``maskd info`` prints for people."""
    state = "draining, takes no new session" if found.draining else "serving"
    about = {
        "maskd": found.version,
        "address": listen,
        "state": state,
        "transports": "shared memory, inline" if found.shared_memory else "inline",
        "layout": ".".join(map(str, found.layout)),
        "backends": ", ".join(found.backends),
        "workers": str(found.worker_count),
        "sessions": str(found.session_count),
        "vocabularies": str(len(found.vocabularies)),
    }
    lines = _aligned([list(pair) for pair in about.items()])
    if found.vocabularies:
        heads = ["name", "fingerprint", "vocab_size", "tokens", "stop tokens"]
        rows = [
            [
                v.name,
                v.fingerprint.hex()[:16],
                str(v.vocab_size),
                str(v.token_count),
                " ".join(map(str, v.stop_token_ids)),
            ]
            for v in found.vocabularies
        ]
        lines += ["", *_aligned([heads, *rows])]
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table. Characters that would move a terminal's cursor are escaped: clients chose names."""
    cells = [["".join(c if c.isprintable() else ascii(c)[1:-1] for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


if __name__ == "__main__":
    sys.exit(main())
