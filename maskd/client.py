"""The client: an engine's way in, from Python. Control over gRPC, steps over shared memory or, elsewhere, inline.

    with Client.connect("unix:/run/maskd/maskd.sock") as client:
        fingerprint = client.upload_vocabulary(vocabulary)
        with client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=64) as session:
            grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
            reply = session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
            reply.rows[0]                                  # the tokens allowed first

When the daemon or the session's worker dies, the next call says so (UnavailableError), at once. Restoring sequences is up
to who holds their tokens; ``engine_adapter.masker`` does it.
Owns: the channel, and the session's transport. Knows nothing about: torch, histories, restoring.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from maskd import __version__
from maskd import layout as lay
from maskd.arena import Arena, Reply
from maskd.bitmask import row_of, row_stride_words
from maskd.config import parse_listen
from maskd.errors import CapacityError, DeadlineError, InvalidRequestError, MaskdError, StepOrderError, UnavailableError
from maskd.grammar import GrammarReport, GrammarSpec, Unenforced
from maskd.status import from_rpc_error
from maskd.step import NO_ROW, Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

__all__ = ["Client", "Grammar", "ServerInfo", "Session", "VocabularyInfo"]

_UPLOAD_TOKENS = 16384
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
    """

    grammar_id: int
    report: GrammarReport
    compile_seconds: float
    cached: bool


class Client:
    """A connection to one daemon. Thread-safe; sessions are not."""

    def __init__(self, channel: grpc.Channel, data_socket: str | None, token: str | None = None) -> None:
        self._channel = channel
        self._stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        self._data_socket = data_socket
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None

    @classmethod
    def connect(
        cls, target: str, *, timeout_seconds: float = 10.0, token: str | None = None, tls: grpc.ChannelCredentials | None = None
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
        where = f"unix:{address}" if scheme == "unix" else address
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
            tuple(VocabularyInfo(v.fingerprint, v.name, v.vocab_size, v.token_count, tuple(v.stop_token_ids)) for v in answer.vocabularies),
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
            for start in range(0, len(vocabulary.tokens), _UPLOAD_TOKENS):
                yield pb.UploadVocabularyRequest(tokens=vocabulary.tokens[start : start + _UPLOAD_TOKENS])

        answer = self._call(self._stub.UploadVocabulary, parts(), 120.0)
        return bytes(answer.vocabulary.fingerprint)

    def open_session(
        self, fingerprint: bytes, *, vocab_size: int, row_capacity: int, sequence_capacity: int = 0, token_capacity: int = 0,
        transport: Literal["auto", "shm", "inline"] = "auto", spin_seconds: float = 0.0, engine: str = "",
    ) -> Session:  # fmt: skip
        """Opens a session.

        Args:
            fingerprint: of the vocabulary.
            vocab_size: width of the engine's logits.
            row_capacity: rows of one step: batch size times (1 + drafts).
            sequence_capacity: sequences open at a time; 0 = the daemon's limit.
            token_capacity: accepted and draft tokens of one step; 0 = enough for a batch and one long replay.
            transport: "shm", "inline", or "auto": shared memory where there is a data socket and memory for it.
            spin_seconds: how long ``collect`` looks before it sleeps; for an engine with a core to spare.
            engine: name for the daemon's log.
        Raises:
            NotFoundError: no such vocabulary. VocabularyMismatchError, CapacityError, DrainingError, UnavailableError.
        """
        if transport == "shm" and self._data_socket is None:
            raise InvalidRequestError("shared memory needs a unix socket; this client is connected over TCP", field="transport")
        request = pb.CreateSessionRequest(
            vocabulary_fingerprint=fingerprint, vocab_size=vocab_size, row_capacity=row_capacity, sequence_capacity=sequence_capacity,
            token_capacity=token_capacity, engine=engine or f"python maskd {__version__}",
        )  # fmt: skip
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
        return Session(self, answer.session_id, vocab_size, row_capacity, _Inline(self, answer, row_capacity, row_of(stops, vocab_size)))

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

    def __init__(self, client: Client, session_id: int, vocab_size: int, row_capacity: int, transport: _Transport) -> None:
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

    def create_grammar(self, spec: GrammarSpec, *, timeout_seconds: float = _CALL_SECONDS, validate_only: bool = False) -> Grammar:
        """Compiles a grammar, or finds it compiled, and holds it for this session (not with ``validate_only``).

        Raises:
            GrammarError: or one of its children, with ``pointer`` or position in the metadata where there is one.
        """
        request = pb.CreateGrammarRequest(session_id=self.session_id, grammar=_spec_message(spec), validate_only=validate_only)
        answer = self._client._call(self._client._stub.CreateGrammar, request, timeout_seconds)
        report = GrammarReport(
            answer.backend,
            answer.backend_reason,
            tuple(Unenforced(u.pointer, u.keyword, u.effect) for u in answer.unenforced),
            tuple(answer.warnings),
            answer.memory_bytes,
        )
        return Grammar(answer.grammar_id, report, answer.compile_milliseconds / 1e3, answer.cached)

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


class _Inline:
    """Steps through one gRPC stream; the same semantics."""

    name: Literal["shm", "inline"] = "inline"

    def __init__(self, client: Client, opened: pb.CreateSessionResponse, row_capacity: int, stop_row: NDArray[np.int32]) -> None:
        self._client = client
        self._session_id = opened.session_id
        self._item_capacity, self._token_capacity = opened.item_capacity, opened.token_capacity
        self._row_capacity = row_capacity
        self._stop_row = stop_row
        self._requests: queue.SimpleQueue[pb.StreamStepsRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[pb.StepSequencesResponse | MaskdError] = queue.SimpleQueue()
        self._unanswered: list[Sequence[Item]] = []
        self._submitted = 0
        self._ended: MaskdError | None = None
        self._closed = False
        self._call = client._stub.StreamSteps(iter(self._requests.get, None), metadata=client._metadata)
        threading.Thread(target=self._receive, name="maskd-inline", daemon=True).start()

    def _receive(self) -> None:
        try:
            for answer in self._call:
                self._replies.put(answer.step)
            self._replies.put(UnavailableError("the daemon ended the stream"))
        except grpc.RpcError as error:
            self._replies.put(from_rpc_error(error))

    def submit(self, items: Sequence[Item]) -> int:
        if self._ended is not None:
            raise self._ended
        if len(self._unanswered) >= lay.CELL_COUNT:
            raise StepOrderError("two steps are unanswered; collect one before the next submit")
        self._check(items)
        try:
            messages = [_item_message(item) for item in items]
        except ValueError as error:
            raise InvalidRequestError(f"a number of the step does not fit its field: {error}", field="items") from None
        self._submitted += 1
        request = pb.StepSequencesRequest(session_id=self._session_id, step=self._submitted, items=messages)
        self._requests.put(pb.StreamStepsRequest(step=request))
        self._unanswered.append(items)
        return self._submitted

    def _check(self, items: Sequence[Item]) -> None:
        """Refuses here what would end the stream there, and rows that the daemon never sees: it hands out its own."""
        token_count = sum(len(item.accept) + len(item.drafts) for item in items)
        for what, count, capacity in (("item", len(items), self._item_capacity), ("token", token_count, self._token_capacity)):
            if count > capacity:
                raise CapacityError(f"{count} {what}s in a step; the session takes {capacity}", limit=f"{what}_capacity", value=capacity)
        taken: set[int] = set()
        for item in items:
            rows = range(item.row, item.row + 1 + len(item.drafts)) if item.row >= 0 or len(item.drafts) else range(0)
            if item.row < NO_ROW or (rows and not 0 <= rows[0] <= rows[-1] < self._row_capacity) or not taken.isdisjoint(rows):
                raise InvalidRequestError(
                    f"sequence {item.sequence_id}: row {item.row} with {len(item.drafts)} drafts lies outside of the {self._row_capacity} "
                    "rows of the session, or is another item's",
                    field="row", sequence_id=item.sequence_id,
                )  # fmt: skip
            taken.update(rows)

    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int:
        flat = tokens.tolist()
        return self.submit(
            [
                Item(s, Action(action), grammar, source, rollback, flat[at : at + n], flat[at + n : at + n + d], row, bool(flags))
                for s, grammar, source, action, flags, rollback, row, at, n, d, _ in items.tolist()
            ]
        )

    def collect(self, timeout_seconds: float) -> Reply:
        if self._ended is not None:
            raise self._ended
        if not self._unanswered:
            raise StepOrderError("there is no unanswered step to collect")
        try:
            answer = self._replies.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DeadlineError(f"the step was not answered within {timeout_seconds} s") from None
        if isinstance(answer, MaskdError):
            self._ended = answer
            raise answer
        return self._reply(answer, self._unanswered.pop(0))

    def _reply(self, answer: pb.StepSequencesResponse, items: Sequence[Item]) -> Reply:
        """Puts the rows where the items wanted them: the same picture as in shared memory."""
        stride = len(self._stop_row)
        packed = np.frombuffer(answer.rows, dtype=np.int32).reshape(-1, stride)
        rows = np.zeros((self._row_capacity, stride), dtype=np.int32)
        table = np.zeros(len(answer.results), dtype=lay.RESULT_DTYPE)
        forced: list[int] = []
        at = 0
        for i, (result, item) in enumerate(zip(answer.results, items, strict=True)):
            flags = result.terminated | result.accepting << 1 | result.all_allowed << 2
            row = item.row if result.row_count else NO_ROW
            if item.row >= 0:
                rows[item.row : item.row + 1 + len(item.drafts)] = self._stop_row
            table[i] = (
                result.sequence_id, result.status, flags, row, result.row_count, result.accepted_count, result.position,
                len(forced), len(result.forced_token_ids), result.detail_index, result.detail_value, b"",
            )  # fmt: skip
            forced += result.forced_token_ids
            if result.row_count:
                rows[row : row + result.row_count] = packed[at : at + result.row_count]
                at += result.row_count
        rows.flags.writeable = False
        return Reply(answer.step, table, rows, np.array(forced, dtype=np.int32), answer.worker_milliseconds / 1e3)

    def is_alive(self) -> bool:
        return self._ended is None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._requests.put(None)
        if not isinstance(self._ended, UnavailableError):
            self._ended = UnavailableError("the session is closed")
            with contextlib.suppress(MaskdError):  # the daemon is gone, and the session with it
                self._client._call(self._client._stub.DeleteSession, pb.DeleteSessionRequest(session_id=self._session_id), 2.0)
        self._call.cancel()


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
    )
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


def _item_message(item: Item) -> pb.Item:
    return pb.Item(
        sequence_id=item.sequence_id,
        action=int(item.action) + 1,  # type: ignore[arg-type]
        grammar_id=item.grammar_id,
        source_sequence_id=item.source_sequence_id,
        rollback_count=item.rollback,
        accept_token_ids=item.accept,
        draft_token_ids=item.drafts,
        row_wanted=item.row >= 0,
        forced_wanted=item.want_forced,
    )
