"""``maskd serve``: the daemon, until a signal.

Owns: signals, limits of the process, exit codes. Knows nothing about: settings (``front.config``), gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from typing import Any

from maskd.front import config
from maskd.observability.logs import configure_logging

__all__ = ["add", "run"]


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and a flag for every setting. Raises ConfigError: later, when a flag is read."""
    parser = subparsers.add_parser(
        "serve", help="run the daemon", description="Run the daemon until SIGTERM or SIGINT."
    )
    parser.set_defaults(run=run)
    config.flags(parser)


def run(arguments: dict[str, Any]) -> int:
    """Runs the daemon and returns 0 after SIGTERM or SIGINT. Raises ConfigError."""
    path = arguments.pop("config", None)
    settings = config.load(arguments, os.environ, path)
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
    from maskd.front.server import run as run_daemon  # gRPC is imported once the configuration is known to be good

    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal() -> None:
        if stop.done():
            os._exit(130)  # the second signal: no more waiting for sessions
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    gc.freeze()
    await run_daemon(settings, stop)
