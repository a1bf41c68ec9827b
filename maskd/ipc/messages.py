"""Messages between the front and its other processes, and the stream that carries them, descriptors included.

A frame is ``<II`` (payload bytes, descriptors), then the payload: one msgpack-encoded message. Both ends are our own
processes over a socketpair; nothing is ever pickled.
Owns: the messages and the framing. Knows nothing about: what either end does with a message.
"""

from __future__ import annotations

import array
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from maskd.errors import MaskdError, UnavailableError, make_error
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = [
    "AttachSession", "Building", "CancelCompile", "CloseSession", "Compile", "CompileGrammar", "CompileLimits",
    "Compiled", "Drain", "DropGrammar", "Exited", "Failure", "ForkNursery", "FrameReader", "GrammarCompiled",
    "InlineStep", "LoadVocabulary", "Loaded", "OpenSession", "ReadSession", "Ready", "Reply", "SessionClosed",
    "SessionOpened", "SessionState", "SpawnWorker", "Spawned", "Stepped", "ToFront", "ToNursery", "ToWorker", "encode",
    "error_of", "failure_of", "write_frame",
]  # fmt: skip

_HEAD = struct.Struct("<II")
MAX_FDS = 4


class _Message(msgspec.Struct, tag=True):
    pass


# -- front to worker -----------------------------------------------------------------------------------------------


class OpenSession(_Message):
    """Makes a session, with its segments unless it is ``inline``; answered by Reply(SessionOpened). ``number`` stands
    for it in marks and logs: whoever knows the id may use the session.
    """

    request: int
    session_id: int
    number: int
    item_capacity: int
    row_capacity: int
    token_capacity: int
    sequence_capacity: int
    inline: bool


class AttachSession(_Message):
    """Hands over the engine's data socket (one descriptor): the worker sends the grant and keeps it as the lease."""

    session_id: int


class CloseSession(_Message):
    """Frees a session; answered by SessionClosed."""

    session_id: int


class InlineStep(_Message):
    """One step of an inline session; answered by Reply(Stepped), or by the Failure after which it may be sent again.

    Attributes:
        row_count: rows that the items want.
        cell: a steps cell, as ``Layout.cut`` lays it out for these items, tokens and rows.
    """

    request: int
    session_id: int
    row_count: int
    cell: bytes


class CompileLimits(_Message):
    """What a compile may use.

    Attributes:
        seconds: wall time until it is killed.
        bytes: address space beyond what the libraries have mapped.
        mask_seconds: longest time of one mask in the walk after the compile.
        nice: added to the child's niceness, so that sequences in progress come first.
        cpus: cores that it may use; empty = any.
    """

    seconds: float
    bytes: int
    mask_seconds: float
    nice: int
    cpus: tuple[int, ...]


class Compiled(_Message):
    """The verdict of a compile child: the grammar is good.

    Attributes:
        report: what the backend said.
        seconds: the compile took.
        slowest_mask_seconds: in the walk.
        artefact: the compiled grammar as bytes, where the library can serialise; else empty.
    """

    report: GrammarReport
    seconds: float
    slowest_mask_seconds: float
    artefact: bytes


class CompileGrammar(_Message):
    """Makes a grammar for a session, from its verdict if it has one; answered by Reply(GrammarCompiled).

    Grammar id 0 = report only. Without a verdict the source is trusted and compiled in the worker. ``solo``: never fill
    it
    together with others, nor beside others in the slow lane, so that a crash has one suspect. ``alternate_of``: the
    grammar
    whose slow sequences move to this one.
    """

    request: int
    session_id: int
    grammar_id: int
    spec: GrammarSpec
    verdict: Compiled | None
    solo: bool
    alternate_of: int


class DropGrammar(_Message):
    """Lets go of a grammar."""

    session_id: int
    grammar_id: int


class ReadSession(_Message):
    """Asks for the state of a session; answered by Reply(SessionState)."""

    request: int
    session_id: int


class Drain(_Message):
    """Tells every session that the daemon is going away."""


# -- front to zygote and nursery -----------------------------------------------------------------------------------


class ForkNursery(_Message):
    """Forks a nursery (one descriptor: its control channel); answered by Reply(Spawned)."""

    request: int
    number: int


class LoadVocabulary(_Message):
    """The first message to a nursery (one descriptor: the vocabulary, as ``Vocabulary.to_bytes`` writes it, from its
    start). Builds the backends; answered by Reply(Loaded). If it is a failure the nursery is gone.

    Attributes:
        seconds: wall time until it is killed.
        bytes: address space beyond what the libraries have mapped.
    """

    request: int
    name: str
    seconds: float
    bytes: int


class SpawnWorker(_Message):
    """Forks a worker (two descriptors: its control channel, its marker); answered by Reply(Spawned)."""

    request: int
    number: int
    log_level: str
    compile_threads: int
    cache_bytes: int
    grammars_per_session: int
    spin_seconds: float
    row_seconds: float


class Compile(_Message):
    """Compiles in a child of its own; answered by Reply(Compiled)."""

    request: int
    spec: GrammarSpec
    limits: CompileLimits


class CancelCompile(_Message):
    """Kills a compile that nobody waits for; it is answered all the same."""

    compile: int


# -- worker to front -----------------------------------------------------------------------------------------------


class Ready(_Message):
    """The zygote has imported its backends; the worker can take sessions."""

    pid: int


class Failure(_Message):
    """A MaskdError on its way."""

    reason: str
    message: str
    metadata: dict[str, str]


class SessionOpened(_Message):
    """Sizes of the new segments; 0 for an inline session, which has none."""

    rows_bytes: int
    steps_bytes: int


class GrammarCompiled(_Message):
    """A grammar that the session holds."""

    report: GrammarReport
    compile_seconds: float
    cached: bool
    alternate_backend: str = ""


class Spawned(_Message):
    """A process was forked."""

    pid: int


class SessionState(_Message):
    """Counts of a session."""

    attached: bool
    sequence_count: int
    grammar_count: int
    last_step: int


class Stepped(_Message):
    """What came of an ``InlineStep``.

    Attributes:
        head: a rows cell up to its rows: results and forced tokens, as ``Layout.cut`` lays it out.
        rows: (row_count, row_stride_words) int32.
    """

    head: bytes
    rows: bytes


class Reply(_Message):
    """The answer to a request."""

    request: int
    result: Failure | SessionOpened | GrammarCompiled | SessionState | Stepped | Spawned | Loaded | Compiled | None = (
        None
    )


class Building(_Message):
    """A nursery begins to build this backend: the one to name if the process does not survive it.

    Attributes:
        resident_bytes: memory that it has by now.
    """

    backend: str
    resident_bytes: int


class Loaded(_Message):
    """The vocabulary is built.

    Attributes:
        warnings: what looks unusual in it, for people.
    """

    warnings: tuple[str, ...]


class Exited(_Message):
    """A process that was forked for the front is dead.

    Attributes:
        signal: that ended it, or 0.
        peak_bytes: most resident memory that it had.
    """

    pid: int
    signal: int
    peak_bytes: int


class SessionClosed(_Message):
    """A session ended: its engine went away, broke the contract, or was told to."""

    session_id: int
    why: str


ToWorker = OpenSession | AttachSession | CloseSession | InlineStep | CompileGrammar | DropGrammar | ReadSession | Drain
ToNursery = LoadVocabulary | SpawnWorker | Compile | CancelCompile
ToFront = Ready | Reply | Building | Exited | SessionClosed

_encoder = msgspec.msgpack.Encoder()


def failure_of(error: MaskdError) -> Failure:
    """Returns ``error`` as a message."""
    return Failure(error.reason, error.message, dict(error.metadata))


def error_of(failure: Failure) -> MaskdError:
    """Returns the error that ``failure_of`` packed."""
    return make_error(failure.reason, failure.message, failure.metadata)


def encode(message: ToWorker | ToNursery | ForkNursery | ToFront, fd_count: int = 0) -> bytes:
    """Returns the frame of ``message``."""
    payload = _encoder.encode(message)
    return _HEAD.pack(len(payload), fd_count) + payload


def write_frame(sock: socket.socket, frame: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Sends as much of ``frame`` as goes, descriptors with its first byte, and returns the number of bytes sent."""
    if not fds:
        return sock.send(frame)
    return sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


class FrameReader:
    """Turns what comes in on a socket into messages with their descriptors.

    A descriptor that this process had no room for (EMFILE) comes as -1: its message must fail, the channel must not.
    """

    def __init__(self, sock: socket.socket, kind: object) -> None:
        self._sock = sock
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._truncated = False

    def read(self) -> Iterator[tuple[Any, list[int]]]:
        """Reads what is there (blocks once if the socket blocks) and yields the complete messages.

        Raises:
            UnavailableError: the other end is closed.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 1 << 18, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            raise UnavailableError(f"the control channel broke: {error.strerror}") from None
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            self._truncated = True
        if not data:
            raise UnavailableError("the control channel is closed")
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, fd_count = _HEAD.unpack_from(self._buffer, at)
            if len(self._buffer) - at - _HEAD.size < length:
                break
            if len(self._fds) < fd_count:
                if not self._truncated:
                    break
                self._fds.extend([-1] * (fd_count - len(self._fds)))
                self._truncated = False
            start = at + _HEAD.size
            payload = bytes(memoryview(self._buffer)[start : start + length])
            at = start + length
            yield self._decoder.decode(payload), [self._fds.popleft() for _ in range(fd_count)]
        del self._buffer[:at]
