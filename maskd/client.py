"""The client: an engine's way in, from Python. Control over gRPC, steps over shared memory or, elsewhere, inline.

    with Client.connect("unix:/run/maskd/maskd.sock") as client:
        fingerprint = client.upload_vocabulary(vocabulary)
        with client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=64) as session:
            grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
            reply = session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
            reply.rows[0]                                  # the tokens allowed first

When the daemon or the session's worker dies, the next call says so (UnavailableError), at once. Restoring sequences is
up
to who holds their tokens; ``engine_adapter.masker`` does it.
Owns: the channel, and the session's transport. Knows nothing about: torch, histories, restoring.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from maskd import __version__
from maskd.bitmask import row_of, row_stride_words
from maskd.errors import CapacityError, DeadlineError, InvalidRequestError, MaskdError, UnavailableError
from maskd.grammar import WHEN_SLOW, GrammarReport, GrammarSpec, Unenforced
from maskd.rpc.address import grpc_address, parse_listen
from maskd.rpc.inline import InlineTransport
from maskd.rpc.status import from_rpc_error
from maskd.shm.arena import Arena
from maskd.shm.cells import Reply
from maskd.step import Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

__all__ = ["Client", "Grammar", "ServerInfo", "Session", "VocabularyInfo"]

_UPLOAD_BYTES = 1 << 17
"""Of one message: the front stands still while it is read, 36 ms for 1 MiB of short tokens."""
_CALL_SECONDS = 30.0
_MAX_REPLY_BYTES = 1 << 30
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class VocabularyInfo:
    """A vocabulary that the daemon holds."""

    fingerprint: bytes
    name: str
    vocab_size: int
    token_count: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ServerInfo:
    """What the daemon is and holds."""

    version: str
    layout: tuple[int, int]
    backends: tuple[str, ...]
    vocabularies: tuple[VocabularyInfo, ...]
    worker_count: int
    session_count: int
    draining: bool
    shared_memory: bool


@dataclass(frozen=True)
class Grammar:
    """A grammar that a session holds.

    Attributes:
        grammar_id: for ``Item.grammar_id``; 0 if it was only validated.
        report: backend and why, warnings, keywords that are not enforced, bytes.
        compile_seconds: 0 when cached.
        cached: whether somebody had compiled it before.
        alternate_backend: where its sequences go when they are slow; empty if they stay.
    """

    grammar_id: int
    report: GrammarReport
    compile_seconds: float
    cached: bool
    alternate_backend: str = ""


class Client:
    """A connection to one daemon. Thread-safe; sessions are not."""

    def __init__(self, channel: grpc.Channel, data_socket: str | None, token: str | None = None) -> None:
        self._channel = channel
        self._stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        self._data_socket = data_socket
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None

    @classmethod
    def connect(
        cls,
        target: str,
        *,
        timeout_seconds: float = 10.0,
        token: str | None = None,
        tls: grpc.ChannelCredentials | None = None,
    ) -> Client:
        """Connects to "unix:/path/maskd.sock" or "host:port" and waits until the daemon answers.

        Args:
            target: where it listens.
            timeout_seconds: how long to wait.
            token: bearer token of the daemon's ``token_file``.
            tls: ``grpc.ssl_channel_credentials(...)``, for TCP with TLS.
        Raises:
            UnavailableError: it does not within ``timeout_seconds``. ConfigError: malformed target.
        """
        scheme, address = parse_listen(target)
        options = [
            ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.min_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        where = grpc_address(target)
        channel = grpc.secure_channel(where, tls, options) if tls is not None else grpc.insecure_channel(where, options)
        client = cls(channel, address + ".data" if scheme == "unix" else None, token)
        deadline = time.monotonic() + timeout_seconds
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_seconds)
            client._call(client._stub.GetServerInfo, pb.GetServerInfoRequest(), max(0.1, deadline - time.monotonic()))
        except (grpc.FutureTimeoutError, UnavailableError, DeadlineError):
            client.close()
            raise UnavailableError(
                f"no daemon answers at {target} within {timeout_seconds} s; start one with 'maskd serve'", target=target
            ) from None
        except MaskdError:  # it answers, and refuses
            client.close()
            raise
        return client

    def info(self) -> ServerInfo:
        """Returns what the daemon is and holds."""
        answer = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        return ServerInfo(
            answer.version,
            (answer.layout_major, answer.layout_minor),
            tuple(answer.backends),
            tuple(
                VocabularyInfo(v.fingerprint, v.name, v.vocab_size, v.token_count, tuple(v.stop_token_ids))
                for v in answer.vocabularies
            ),
            answer.worker_count,
            answer.session_count,
            answer.draining,
            answer.shared_memory,
        )

    def upload_vocabulary(self, vocabulary: Vocabulary) -> bytes:
        """Gives the daemon a vocabulary and returns its fingerprint (32 bytes). Cheap if the daemon has it already.

        Raises:
            VocabularyError, CapacityError.
        """
        if any(known.fingerprint == vocabulary.fingerprint for known in self.info().vocabularies):
            return vocabulary.fingerprint

        def parts() -> Iterator[pb.UploadVocabularyRequest]:
            header = pb.UploadVocabularyRequest.Header(
                name=vocabulary.name,
                vocab_size=vocabulary.vocab_size,
                stop_token_ids=vocabulary.stop_token_ids,
                special_token_ids=vocabulary.special_token_ids,
            )
            yield pb.UploadVocabularyRequest(header=header)
            part, size = list[bytes](), 0
            for token in vocabulary.tokens:
                part.append(token)
                size += len(token) + 4
                if size > _UPLOAD_BYTES:
                    yield pb.UploadVocabularyRequest(tokens=part)
                    part, size = [], 0
            yield pb.UploadVocabularyRequest(tokens=part)

        answer = self._call(self._stub.UploadVocabulary, parts(), 120.0)
        return bytes(answer.vocabulary.fingerprint)

    def open_session(
        self,
        fingerprint: bytes,
        *,
        vocab_size: int,
        row_capacity: int,
        sequence_capacity: int = 0,
        item_capacity: int = 0,
        token_capacity: int = 0,
        transport: Literal["auto", "shm", "inline"] = "auto",
        spin_seconds: float = 0.0,
        engine: str = "",
    ) -> Session:
        """Opens a session.

        Args:
            fingerprint: of the vocabulary.
            vocab_size: width of the engine's logits.
            row_capacity: rows of one step: batch size times (1 + drafts).
            sequence_capacity: sequences open at a time; 0 = the daemon's limit.
            item_capacity: items of one step; 0 = as many as rows, at least 16.
            token_capacity: accepted and draft tokens of one step; 0 = enough for a batch and one long replay.
            transport: "shm", "inline", or "auto": shared memory where there is a data socket and memory for it.
            spin_seconds: how long ``collect`` looks before it sleeps; for an engine with a core to spare.
            engine: name for the daemon's log.
        Raises:
            NotFoundError: no such vocabulary. VocabularyMismatchError, CapacityError, DrainingError, UnavailableError.
        """
        if transport == "shm" and self._data_socket is None:
            raise InvalidRequestError(
                "shared memory needs a unix socket; this client is connected over TCP", field="transport"
            )
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=fingerprint,
            vocab_size=vocab_size,
            row_capacity=row_capacity,
            sequence_capacity=sequence_capacity,
            item_capacity=item_capacity,
            token_capacity=token_capacity,
            engine=engine or f"python maskd {__version__}",
        )
        if transport != "inline" and self._data_socket is not None:
            request.transport = pb.TRANSPORT_SHARED_MEMORY
            try:
                answer = self._call(self._stub.CreateSession, request)
                arena = Arena.attach(self._data_socket, answer.data_token)
                return Session(self, answer.session_id, vocab_size, row_capacity, _SharedMemory(arena, spin_seconds))
            except CapacityError as error:
                if transport == "shm" or error.metadata.get("limit") not in ("memory", "descriptors"):
                    raise
        request.transport = pb.TRANSPORT_INLINE
        answer = self._call(self._stub.CreateSession, request)
        stops = next((v.stop_token_ids for v in self.info().vocabularies if v.fingerprint == fingerprint), ())
        inline = InlineTransport(
            self._stub,
            self._metadata,
            answer,
            row_capacity,
            row_of(stops, vocab_size),
            lambda: self._delete_session(answer.session_id),
        )
        return Session(self, answer.session_id, vocab_size, row_capacity, inline)

    def _delete_session(self, session_id: int) -> None:
        with contextlib.suppress(MaskdError):  # the daemon is gone, and the session with it
            self._call(self._stub.DeleteSession, pb.DeleteSessionRequest(session_id=session_id), 2.0)

    def _call(self, method: Callable[..., _Answer], request: object, timeout_seconds: float = _CALL_SECONDS) -> _Answer:
        try:
            return method(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError as error:  # the channel is closed
            raise UnavailableError(f"the client is closed: {error}") from None

    def close(self) -> None:
        """Closes the channel. Shared-memory sessions live on until they are closed themselves."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """An engine's lease. One thread at a time."""

    def __init__(
        self, client: Client, session_id: int, vocab_size: int, row_capacity: int, transport: _Transport
    ) -> None:
        self.session_id = session_id
        self.vocab_size = vocab_size
        self.row_capacity = row_capacity
        self.row_stride_words = row_stride_words(vocab_size)
        self._client = client
        self._transport = transport

    @property
    def transport(self) -> Literal["shm", "inline"]:
        """How rows travel."""
        return self._transport.name

    def create_grammar(
        self, spec: GrammarSpec, *, timeout_seconds: float = _CALL_SECONDS, validate_only: bool = False
    ) -> Grammar:
        """Compiles a grammar, or finds it compiled, and holds it for this session (not with ``validate_only``).

        Raises:
            GrammarError: or one of its children, with ``pointer`` or position in the metadata where there is one.
        """
        request = pb.CreateGrammarRequest(
            session_id=self.session_id, grammar=_spec_message(spec), validate_only=validate_only
        )
        answer = self._client._call(self._client._stub.CreateGrammar, request, timeout_seconds)
        report = GrammarReport(
            answer.backend,
            answer.backend_reason,
            tuple(Unenforced(u.pointer, u.keyword, u.effect) for u in answer.unenforced),
            tuple(answer.warnings),
            answer.memory_bytes,
        )
        return Grammar(
            answer.grammar_id, report, answer.compile_milliseconds / 1e3, answer.cached, answer.alternate_backend
        )

    def delete_grammar(self, grammar_id: int) -> None:
        """Lets go of a grammar; sequences that use it keep it."""
        request = pb.DeleteGrammarRequest(session_id=self.session_id, grammar_id=grammar_id)
        self._client._call(self._client._stub.DeleteGrammar, request)

    def submit(self, items: Sequence[Item]) -> int:
        """Publishes one step for the whole batch and returns its number, at once. At most two steps may be unanswered.

        Raises:
            CapacityError, StepOrderError, InvalidRequestError: nothing was published. UnavailableError.
        """
        return self._transport.submit(items)

    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int:
        """The same from arrays of ``layout.ITEM_DTYPE`` and int32, for engines that keep their batch as arrays."""
        return self._transport.submit_arrays(items, tokens)

    def collect(self, *, timeout_seconds: float = 5.0) -> Reply:
        """Waits for the oldest unanswered step and returns its reply.

        Raises:
            UnavailableError: daemon or worker is gone. DeadlineError: collect again, or close.
        """
        return self._transport.collect(timeout_seconds)

    def step(self, items: Sequence[Item], *, timeout_seconds: float = 5.0) -> Reply:
        """``submit`` and ``collect``."""
        self.submit(items)
        return self.collect(timeout_seconds=timeout_seconds)

    def is_alive(self) -> bool:
        """Whether the daemon still holds its end. Does not wait; an inline session always says yes."""
        return self._transport.is_alive()

    def close(self) -> None:
        """Gives the session back. Safe to repeat; never raises because the daemon is gone."""
        self._transport.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Transport(Protocol):
    name: Literal["shm", "inline"]

    def submit(self, items: Sequence[Item]) -> int: ...
    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int: ...
    def collect(self, timeout_seconds: float) -> Reply: ...
    def is_alive(self) -> bool: ...
    def close(self) -> None: ...


class _SharedMemory:
    """Steps through the arena."""

    name: Literal["shm", "inline"] = "shm"

    def __init__(self, arena: Arena, spin_seconds: float) -> None:
        self._arena = arena
        self._spin_seconds = spin_seconds
        self.submit = arena.submit
        self.submit_arrays = arena.submit_arrays
        self.is_alive = arena.is_alive
        self.close = arena.close

    def collect(self, timeout_seconds: float) -> Reply:
        return self._arena.collect(timeout_seconds=timeout_seconds, spin_seconds=self._spin_seconds)


def _spec_message(spec: GrammarSpec) -> pb.GrammarSpec:
    options = spec.options
    message = pb.GrammarSpec(
        backend="" if spec.backend == "auto" else spec.backend,
        options=pb.GrammarOptions(
            max_whitespace=options.max_whitespace,
            item_separator=options.item_separator,
            key_separator=options.key_separator,
            additional_properties=pb.GrammarOptions.ADDITIONAL_PROPERTIES_FORBID
            if options.additional_properties == "forbid"
            else pb.GrammarOptions.ADDITIONAL_PROPERTIES_ALLOW,
            strict=options.strict,
            stop_token_ids=options.stop_token_ids,
        ),
        when_slow=1 + WHEN_SLOW.index(spec.when_slow),  # type: ignore[arg-type]  # 0 is unspecified
    )
    if spec.reasoning is not None:
        message.reasoning.end_token_ids.extend(spec.reasoning.end_token_ids)
        if spec.reasoning.max_tokens is not None:
            message.reasoning.max_tokens = spec.reasoning.max_tokens
    try:
        if spec.kind == "json_object":
            message.json_object = True
        elif spec.kind == "choice":
            message.choice.options.extend(json.loads(spec.source))
        else:
            setattr(message, spec.kind, spec.source)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"the {spec.kind} source cannot be sent: {error}", field=spec.kind) from None
    return message
