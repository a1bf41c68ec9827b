"""Credentials as files have them: bearer tokens, and PEM files for TLS.

Owns: how they are read and checked. Knows nothing about: channels, servers, who may call.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from maskd.errors import ConfigError

__all__ = ["channel_credentials", "checked_token", "read_credential", "read_token"]


def read_token(path: str) -> str:
    """Returns the bearer token in the file at ``path``, without white space around it. Raises ConfigError."""
    text = read_credential(path, "token_file").decode("utf-8", "replace")
    try:
        return checked_token(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", field="token_file") from None


def checked_token(token: str) -> str:
    """Returns ``token`` without white space around it. Raises ConfigError if a header of a call cannot hold it."""
    token = token.strip()
    bad = next((index for index, one in enumerate(token) if not "!" <= one <= "~"), None)
    if bad is not None:
        raise ConfigError(
            f"the token has a control character, a space or one beyond ASCII at position {bad}", field="token"
        )
    return token


def channel_credentials(ca: str, certificate: str, key: str) -> grpc.ChannelCredentials | None:
    """Returns the credentials of a TLS client from PEM files; None if no file is named.

    Args:
        ca: the authority that signed the daemon's certificate; "" = those of the system.
        certificate: the client's own, for mutual TLS; or "".
        key: the key to it.
    Raises:
        ConfigError: a file cannot be read, or only one of ``certificate`` and ``key`` is named.
    """
    if not (ca or certificate or key):
        return None
    if bool(certificate) != bool(key):
        raise ConfigError("tls_certificate and tls_key go together", field="tls_certificate")
    read = {"tls_ca": ca, "tls_key": key, "tls_certificate": certificate}
    found = [read_credential(path, field) if path else None for field, path in read.items()]
    return grpc.ssl_channel_credentials(*found)


def read_credential(path: str, field: str) -> bytes:
    """Returns the bytes of the file at ``path``. Raises ConfigError, about ``field``."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", field=field) from None
