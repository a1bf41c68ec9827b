"""Where a daemon listens, as people write it and as gRPC takes it. Daemon and client read it alike.

Owns: the syntax of addresses. Knows nothing about: sockets, settings.
"""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import quote_from_bytes

from maskd.errors import ConfigError

__all__ = ["grpc_address", "parse_listen"]


def parse_listen(listen: str) -> tuple[Literal["unix"], str] | tuple[Literal["tcp"], str]:
    """Splits ``listen`` into ("unix", path) or ("tcp", "host:port"). Raises ConfigError."""
    scheme, _, rest = listen.partition(":")
    if scheme == "unix":
        path = rest.removeprefix("//")
        if not path.startswith("/"):
            raise ConfigError(f"listen is {listen!r}; a unix socket needs an absolute path", field="listen")
        for character, why in (("\0", "ends a path"), (",", "ends an address for gRPC")):
            if character in path:
                raise ConfigError(
                    f"listen is {listen!r}; a socket path has no {character!r}, which {why}", field="listen"
                )
        if len(_path_bytes(path)) + len(".data") > 107:
            raise ConfigError(
                f"listen is {listen!r}; a socket path has at most 102 bytes (and .data is appended)", field="listen"
            )
        return "unix", path
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen is {listen!r}; give unix:/path/maskd.sock or host:port", field="listen")
    return "tcp", listen


def _path_bytes(path: str) -> bytes:
    """Returns what the kernel sees of ``path``. Raises ConfigError."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        raise ConfigError(f"listen is {'unix:' + path!r}; this cannot be encoded as a path", field="listen") from None


def grpc_address(listen: str) -> str:
    """Returns ``listen`` as gRPC takes it, for listening and for connecting. Raises ConfigError.

    gRPC decodes ``%41`` in the path of a unix socket, and cuts the path at ``?`` and ``#``; so they are quoted.
    """
    scheme, address = parse_listen(listen)
    return "unix:" + quote_from_bytes(_path_bytes(address)) if scheme == "unix" else address
