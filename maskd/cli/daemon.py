"""Which daemon a command talks to: one that runs, or one of its own that ends with the command.

Owns: the flags of an address and its credentials, and the way to a client.
Knows nothing about: what the command asks the daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from maskd.cli.interrupt import Interrupt

if TYPE_CHECKING:
    from maskd.client import Client

__all__ = ["add_credentials", "connect", "reach"]

_ANSWER_SECONDS = 2.0
_START_SECONDS = 60.0


def add_credentials(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that a daemon with a token or TLS wants."""
    parser.add_argument(
        "--token-file", metavar="FILE", default="", help="file with the bearer token that the daemon wants"
    )
    parser.add_argument("--tls-ca", metavar="FILE", default="", help="PEM of the authority of the daemon's certificate")
    parser.add_argument(
        "--tls-certificate", metavar="FILE", default="", help="PEM chain of this client, for mutual TLS"
    )
    parser.add_argument("--tls-key", metavar="FILE", default="", help="PEM key to it")


def connect(arguments: Mapping[str, Any]) -> Client:
    """Returns a client of the daemon at ``listen``.

    Raises:
        ConfigError: a malformed address, or credentials that cannot be read. UnavailableError: no daemon answers there.
    """
    from maskd.client import Client  # gRPC takes a moment, which `--help` and `serve` do not need
    from maskd.rpc.credentials import channel_credentials, read_token

    token = read_token(arguments["token_file"]) if arguments["token_file"] else None
    tls = channel_credentials(arguments["tls_ca"], arguments["tls_certificate"], arguments["tls_key"])
    return Client.connect(arguments["listen"], timeout_seconds=_ANSWER_SECONDS, token=token, tls=tls)


@contextlib.contextmanager
def reach(arguments: Mapping[str, Any]) -> Iterator[Client]:
    """Yields a client of the daemon at ``listen``; without an address, of a daemon that ends with this context.

    That daemon has the default settings. Variables of the environment that change them are not passed on.

    Raises:
        MaskdError: as ``connect`` and ``Sidecar.connect``. SystemExit: a signal came, and the daemon has ended.
    """
    from maskd.sidecar import Sidecar

    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        if arguments["listen"]:
            yield stack.enter_context(connect(arguments))
            return
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKD_")}
        with interrupt.held():
            sidecar = stack.enter_context(Sidecar(environment=environment))
        yield stack.enter_context(sidecar.connect(wait_seconds=_START_SECONDS))
