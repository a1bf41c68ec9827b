"""Which clients may call, and how often.

A unix socket in a directory of mode 0700 needs nothing more. TCP needs mutual TLS or a bearer token, unless the
operator says ``--insecure``. Every peer has a budget of requests per second, so that no peer starves the others'
control calls.
Owns: credentials, the token check, the budgets. Knows nothing about: what the calls do.
"""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from typing import Any

import grpc

from maskd.errors import ConfigError, PermissionDeniedError, RateLimitedError
from maskd.front.config import Config
from maskd.front.handlers import Context, Continue, Handler, checked
from maskd.rpc.credentials import read_credential, read_token
from maskd.rpc.status import abort

__all__ = ["check_tcp", "interceptors", "server_credentials"]

_PEERS = 1024
_OPEN_METHODS = ("/grpc.health.v1.Health/",)
"""Health probes have no token and no budget."""


def check_tcp(config: Config) -> None:
    """Raises ConfigError if a TCP listener would let in every client that reaches it, and nothing says that it may."""
    if not (config.insecure or config.token_file or config.tls_client_ca):
        raise ConfigError(
            f"listen is {config.listen}: every client that reaches it may use the daemon; "
            "give tls_certificate, tls_key and tls_client_ca, or a token_file, or say --insecure",
            field="listen",
        )


def server_credentials(config: Config) -> grpc.ServerCredentials | None:
    """Returns TLS credentials, mutual if a client CA is configured; None without a certificate. Raises ConfigError."""
    if not config.tls_certificate and not config.tls_key:
        if config.tls_client_ca:
            raise ConfigError("tls_client_ca needs tls_certificate and tls_key", field="tls_client_ca")
        return None
    if not (config.tls_certificate and config.tls_key):
        raise ConfigError("tls_certificate and tls_key go together", field="tls_certificate")
    certificate, key = (
        read_credential(config.tls_certificate, "tls_certificate"),
        read_credential(config.tls_key, "tls_key"),
    )
    ca = read_credential(config.tls_client_ca, "tls_client_ca") if config.tls_client_ca else None
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=ca is not None)


def interceptors(config: Config) -> list[grpc.aio.ServerInterceptor]:
    """Returns the checks before every call: the bearer token, if configured, then the budget. Raises ConfigError."""
    chain: list[grpc.aio.ServerInterceptor] = []
    if config.token_file:
        token = read_token(config.token_file).encode()
        if len(token) < 16:
            raise ConfigError(
                f"the token in {config.token_file} has {len(token)} bytes; give at least 16", field="token_file"
            )
        if os.stat(config.token_file).st_mode & 0o077:  # noqa: PTH116
            raise ConfigError(f"{config.token_file} can be read by other users; chmod 600 it", field="token_file")
        chain.append(_TokenCheck(token))
    if config.requests_per_second:
        chain.append(_Budget(config.requests_per_second))
    return chain


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Lets through calls with the bearer token, and probes."""

    def __init__(self, token: bytes) -> None:
        self._expected = b"Bearer " + token

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler:
        handler = await continuation(details)
        given = next((value for key, value in details.invocation_metadata or () if key == "authorization"), "")
        raw = given if isinstance(given, bytes) else given.encode()
        if details.method.startswith(_OPEN_METHODS) or hmac.compare_digest(raw, self._expected):
            return handler
        return checked(handler, self._refuse)

    async def _refuse(self, _: Any, context: Context) -> None:
        await abort(context, PermissionDeniedError("this daemon wants the bearer token of its token_file"))


class _Budget(grpc.aio.ServerInterceptor):
    """A token bucket for each peer: ``rate`` requests a second, one second's worth at once.

    All steps on one stream count as one request.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # peer: (tokens left, when)

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler:
        handler = await continuation(details)
        return handler if details.method.startswith(_OPEN_METHODS) else checked(handler, self._spend)

    async def _spend(self, request: Any, context: Context) -> Any:
        peer = _peer_host(context.peer())
        now = time.monotonic()
        left, when = self._buckets.pop(peer, (self._rate, now))
        left = min(self._rate, left + (now - when) * self._rate)
        refused = left < 1
        self._buckets[peer] = (left if refused else left - 1, now)
        if len(self._buckets) > _PEERS:
            self._buckets.popitem(last=False)
        if refused:
            error = RateLimitedError(
                f"more than requests_per_second = {self._rate:g} calls from this peer; slow down",
                limit="requests_per_second",
                value=self._rate,
            )
            await abort(context, error)
        return request


def _peer_host(peer: str) -> str:
    """Returns the peer without its port: "ipv4:10.0.0.1:5000" has the budget of "ipv4:10.0.0.1"."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
