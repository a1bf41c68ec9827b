"""The calls of the service, as a client makes them: values in, values out, typed errors.

Owns: the channel, the bearer token, deadlines. Knows nothing about: sessions beyond their ids, shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from maskd.errors import UnavailableError
from maskd.grammar import GrammarSpec
from maskd.rpc import messages
from maskd.rpc.address import grpc_address
from maskd.rpc.credentials import checked_token
from maskd.rpc.status import from_rpc_error
from maskd.rpc.values import Grammar, NewSession, ServerInfo, SessionRequest
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

__all__ = ["CALL_SECONDS", "Calls"]

CALL_SECONDS = 30.0
_UPLOAD_SECONDS = 120.0
_DELETE_SECONDS = 2.0
_MAX_REPLY_BYTES = 1 << 30
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)
_Answer = TypeVar("_Answer")


class Calls:
    """The calls of one daemon, over one channel. Thread-safe. Calls raise the daemon's error, or UnavailableError.

    Args:
        target: where the daemon listens: "unix:/path/maskd.sock" or "host:port".
        token: bearer token of the daemon's ``token_file``.
        tls: ``grpc.ssl_channel_credentials(...)``, for TCP with TLS.

    Attributes:
        stub: the generated stub, for calls that have no method here.
    """

    def __init__(self, target: str, *, token: str | None = None, tls: grpc.ChannelCredentials | None = None) -> None:
        self._metadata = (("authorization", f"Bearer {checked_token(token)}"),) if token else None
        where = grpc_address(target)
        self._channel = (
            grpc.insecure_channel(where, _OPTIONS) if tls is None else grpc.secure_channel(where, tls, _OPTIONS)
        )
        self.stub = mask_service_pb2_grpc.MaskServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Waits until the daemon takes connections. Raises UnavailableError."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_seconds)
        except grpc.FutureTimeoutError:
            raise UnavailableError(f"no connection within {timeout_seconds} s") from None

    def info(self, *, timeout_seconds: float = CALL_SECONDS) -> ServerInfo:
        """Returns what the daemon is and holds."""
        answer = self._call(self.stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_seconds)
        return messages.server_info_of(answer)

    def upload_vocabulary(self, vocabulary: Vocabulary) -> bytes:
        """Gives the daemon a vocabulary and returns its fingerprint."""
        answer = self._call(self.stub.UploadVocabulary, messages.upload_messages(vocabulary), _UPLOAD_SECONDS)
        return messages.vocabulary_info_of(answer.vocabulary).fingerprint

    def create_session(self, request: SessionRequest) -> NewSession:
        """Opens a session."""
        return messages.session_of(self._call(self.stub.CreateSession, messages.session_request_message(request)))

    def delete_session(self, session_id: int) -> None:
        """Ends a session. Safe to repeat."""
        self._call(self.stub.DeleteSession, pb.DeleteSessionRequest(session_id=session_id), _DELETE_SECONDS)

    def create_grammar(
        self, session_id: int, spec: GrammarSpec, *, validate_only: bool, timeout_seconds: float
    ) -> Grammar:
        """Compiles a grammar, and holds it for the session unless ``validate_only``."""
        request = pb.CreateGrammarRequest(
            session_id=session_id, grammar=messages.spec_message(spec), validate_only=validate_only
        )
        return messages.grammar_of(self._call(self.stub.CreateGrammar, request, timeout_seconds))

    def delete_grammar(self, session_id: int, grammar_id: int) -> None:
        """Lets go of a grammar. Safe to repeat."""
        self._call(self.stub.DeleteGrammar, pb.DeleteGrammarRequest(session_id=session_id, grammar_id=grammar_id))

    def stream_steps(self, requests: Iterator[pb.StreamStepsRequest]) -> Any:
        """Returns the call of a stream of steps: an iterator of answers, which raises ``grpc.RpcError``."""
        return self.stub.StreamSteps(requests, metadata=self._metadata)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., _Answer], request: object, timeout_seconds: float = CALL_SECONDS) -> _Answer:
        try:
            return method(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError as error:  # the channel is closed
            raise UnavailableError(f"the client is closed: {error}") from None
