"""The client: an engine's way in, from Python. Control over gRPC, steps over shared memory or, elsewhere, inline.

    with Client.connect("unix:/run/maskd/maskd.sock") as client:
        fingerprint = client.upload_vocabulary(vocabulary)
        with client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=64) as session:
            grammar = session.create_grammar(GrammarSpec("regex", "(Paris|London)"))
            reply = session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
            reply.rows[0]                                  # the tokens allowed first

When the daemon or the session's worker dies, the next call raises UnavailableError, at once. The engine then opens a
new session and restores its sequences from its own tokens; ``engine_adapter.masker`` does this.
Owns: what an engine's author calls, and the choice of a transport.
Knows nothing about: protobuf (``maskd.rpc``), torch, histories, restoring.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal, get_args

import grpc
import numpy as np
from numpy.typing import NDArray

from maskd import __version__
from maskd.bitmask import row_of, row_stride_words
from maskd.errors import CapacityError, DeadlineError, InvalidRequestError, MaskdError, UnavailableError
from maskd.grammar import GrammarSpec
from maskd.rpc.address import parse_listen
from maskd.rpc.calls import CALL_SECONDS, Calls
from maskd.rpc.inline import InlineTransport
from maskd.rpc.values import Grammar, ServerInfo, SessionRequest, VocabularyInfo
from maskd.shm.arena import Arena
from maskd.shm.cells import Reply
from maskd.step import Item
from maskd.vocabulary import Vocabulary

__all__ = ["Client", "Grammar", "Reply", "ServerInfo", "Session", "Transport", "VocabularyInfo", "check_transport"]

Transport = Literal["auto", "shm", "inline"]


def check_transport(transport: str) -> None:
    """Raises InvalidRequestError if there is no such transport."""
    known = get_args(Transport)
    if transport not in known:
        raise InvalidRequestError(f"unknown transport {transport!r}; give one of {', '.join(known)}", field="transport")


class Client:
    """A connection to one daemon. Thread-safe; sessions are not."""

    def __init__(self, calls: Calls, *, data_socket: str | None) -> None:
        self._calls = calls
        self._data_socket = data_socket

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
            token: bearer token of the daemon's ``token_file``; white space around it means nothing.
            tls: ``grpc.ssl_channel_credentials(...)``, for TCP with TLS.
        Raises:
            UnavailableError: no answer within ``timeout_seconds``. ConfigError: malformed target or token.
        """
        scheme, address = parse_listen(target)
        client = cls(Calls(target, token=token, tls=tls), data_socket=address + ".data" if scheme == "unix" else None)
        deadline = time.monotonic() + timeout_seconds
        try:
            client._calls.wait_until_ready(timeout_seconds)
            client._calls.info(timeout_seconds=max(0.1, deadline - time.monotonic()))
        except (UnavailableError, DeadlineError):
            client.close()
            raise UnavailableError(
                f"no daemon answers at {target} within {timeout_seconds} s; start one with 'maskd serve'", target=target
            ) from None
        except MaskdError:  # the daemon answers, and refuses
            client.close()
            raise
        return client

    def info(self) -> ServerInfo:
        """Returns what the daemon is and holds."""
        return self._calls.info()

    def upload_vocabulary(self, vocabulary: Vocabulary) -> bytes:
        """Gives the daemon a vocabulary and returns its fingerprint (32 bytes). Cheap if the daemon has it already.

        Raises:
            VocabularyError, CapacityError.
        """
        if any(known.fingerprint == vocabulary.fingerprint for known in self.info().vocabularies):
            return vocabulary.fingerprint
        return self._calls.upload_vocabulary(vocabulary)

    def open_session(
        self,
        fingerprint: bytes,
        *,
        vocab_size: int,
        row_capacity: int,
        sequence_capacity: int = 0,
        item_capacity: int = 0,
        token_capacity: int = 0,
        transport: Transport = "auto",
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
            spin_seconds: how long ``collect`` spins before it sleeps; for an engine with a core to spare.
            engine: name for the daemon's log.
        Raises:
            InvalidRequestError: a bad argument. NotFoundError: no such vocabulary. VocabularyMismatchError,
                CapacityError, DrainingError, UnavailableError.
        """
        check_transport(transport)
        if transport == "shm" and self._data_socket is None:
            raise InvalidRequestError(
                "shared memory needs a unix socket; this client is connected over TCP", field="transport"
            )
        request = SessionRequest(
            vocabulary_fingerprint=fingerprint,
            vocab_size=vocab_size,
            row_capacity=row_capacity,
            item_capacity=item_capacity,
            token_capacity=token_capacity,
            sequence_capacity=sequence_capacity,
            engine=engine or f"python maskd {__version__}",
        )
        if transport != "inline" and self._data_socket is not None:
            try:
                created = self._calls.create_session(request)
                arena = Arena.attach(self._data_socket, created.data_token, spin_seconds=spin_seconds)
                return Session(self._calls, arena, session_id=created.session_id, request=request)
            except CapacityError as error:
                if transport == "shm" or error.metadata.get("limit") not in ("memory", "descriptors"):
                    raise
        created = self._calls.create_session(dataclasses.replace(request, inline=True))
        stops = next((v.stop_token_ids for v in self.info().vocabularies if v.fingerprint == fingerprint), ())
        inline = InlineTransport(self._calls, created, row_capacity=row_capacity, stop_row=row_of(stops, vocab_size))
        return Session(self._calls, inline, session_id=created.session_id, request=request)

    def close(self) -> None:
        """Closes the channel. Shared-memory sessions live on until they are closed themselves."""
        self._calls.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """An engine's lease, made by ``Client.open_session``. One thread at a time.

    Attributes:
        session_id: random; a client that knows it may use the session.
        vocab_size: width of the engine's logits.
        row_capacity: rows of one step.
        row_stride_words: int32 words from one row to the next.
    """

    def __init__(
        self, calls: Calls, transport: Arena | InlineTransport, *, session_id: int, request: SessionRequest
    ) -> None:
        self.session_id = session_id
        self.vocab_size = request.vocab_size
        self.row_capacity = request.row_capacity
        self.row_stride_words = row_stride_words(request.vocab_size)
        self._calls = calls
        self._transport = transport

    @property
    def transport(self) -> Literal["shm", "inline"]:
        """How rows travel."""
        return self._transport.name

    def create_grammar(
        self, spec: GrammarSpec, *, timeout_seconds: float = CALL_SECONDS, validate_only: bool = False
    ) -> Grammar:
        """Compiles a grammar, or finds it compiled, and holds it for this session (not with ``validate_only``).

        Raises:
            GrammarError: or one of its children, with ``pointer`` or position in the metadata where there is one.
        """
        return self._calls.create_grammar(
            self.session_id, spec, validate_only=validate_only, timeout_seconds=timeout_seconds
        )

    def delete_grammar(self, grammar_id: int) -> None:
        """Lets go of a grammar; sequences that use it keep it."""
        self._calls.delete_grammar(self.session_id, grammar_id)

    def submit(self, items: Sequence[Item]) -> int:
        """Publishes one step for the whole batch and returns its number, at once. At most two steps may be unanswered.

        Raises:
            CapacityError, StepOrderError, InvalidRequestError: nothing was published. UnavailableError.
        """
        return self._transport.submit(items)

    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int:
        """Publishes one step from arrays, for engines that keep their batch as arrays. See ``submit``.

        Args:
            items: (n,) of ``layout.ITEM_DTYPE``.
            tokens: (m,) int32, the accepted and draft tokens of all items.
        """
        return self._transport.submit_arrays(items, tokens)

    def collect(self, *, timeout_seconds: float = 5.0) -> Reply:
        """Waits for the oldest unanswered step and returns its reply.

        Raises:
            UnavailableError: daemon or worker is gone. DeadlineError: collect again, or close.
        """
        return self._transport.collect(timeout_seconds=timeout_seconds)

    def step(self, items: Sequence[Item], *, timeout_seconds: float = 5.0) -> Reply:
        """Submits one step and collects its reply. See ``submit`` and ``collect``."""
        self.submit(items)
        return self.collect(timeout_seconds=timeout_seconds)

    def is_alive(self) -> bool:
        """Whether the daemon still holds its end. Does not wait. For an inline session, what the last call showed."""
        return self._transport.is_alive()

    def close(self) -> None:
        """Gives the session back. Safe to repeat; never raises because the daemon is gone."""
        self._transport.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
