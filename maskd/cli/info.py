"""``maskd info``: what a running daemon is and holds.

Owns: the table for people, and the exit code. Knows nothing about: gRPC, how the daemon is reached (``daemon``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from maskd.cli import daemon
from maskd.errors import ConfigError, MaskdError
from maskd.front import config

if TYPE_CHECKING:
    from maskd.client import ServerInfo

__all__ = ["add", "run"]


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = subparsers.add_parser("info", help="show what a running daemon is and holds")
    parser.set_defaults(run=run)
    parser.add_argument("--listen", default=config.Config().listen, help="address of the daemon (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with whole fingerprints, for programs")
    daemon.add_credentials(parser)


def run(arguments: dict[str, Any]) -> int:
    """Prints what the daemon says and returns 0, or 1 if it does not answer. Raises ConfigError."""
    try:
        with daemon.connect(arguments) as client:
            found = client.info()
    except ConfigError:
        raise
    except MaskdError as error:
        print(f"maskd: {error.message}", file=sys.stderr)  # noqa: T201
        return 1
    if arguments["json"]:
        print(json.dumps(dataclasses.asdict(found), default=bytes.hex))  # noqa: T201
    else:
        print(_table_of(arguments["listen"], found))  # noqa: T201
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
