"""The entry of the command line: ``maskd serve``, ``maskd info``, ``maskd include``, ``maskd grammar``.

Owns: which command runs, and the exit code of bad usage. Knows nothing about: what a command does (``maskd.cli``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from maskd import __version__
from maskd.cli import grammar, info, serve
from maskd.errors import ConfigError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 fine, 1 no good answer, 2 bad usage.

    Raises:
        SystemExit: of argparse, for bad usage (2), help and version (0).
    """
    parser = argparse.ArgumentParser(prog="maskd", description="Grammar masks as a service.")
    parser.add_argument("--version", action="version", version=f"maskd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        serve.add(commands)
        info.add(commands)
        grammar.add(commands)
        include = commands.add_parser("include", help="print the directory of maskd_shm.h, for C and C++ engines")
        include.set_defaults(run=_include)
        arguments = vars(parser.parse_args(argv))
        del arguments["command"]
        return int(arguments.pop("run")(arguments))
    except ConfigError as error:
        print(f"maskd: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


def _include(_: dict[str, Any]) -> int:
    print(Path(__file__).with_name("native"))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
