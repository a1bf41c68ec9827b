"""Messages between the front and a worker, and the stream that carries them, descriptors included.

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

import msgspec

from maskd.errors import MaskdError, UnavailableError, error_classes
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = [
    "AttachSession", "CloseSession", "CompileGrammar", "Drain", "DropGrammar", "Failure", "FrameReader", "GrammarCompiled",
    "LoadVocabulary", "OpenSession", "ReadSession", "Ready", "Reply", "SessionClosed", "SessionOpened", "SessionState", "ToFront",
    "ToWorker", "encode", "error_of", "failure_of", "write_frame",
]  # fmt: skip

_HEAD = struct.Struct("<II")
MAX_FDS = 4


class _Message(msgspec.Struct, tag=True):
    pass


# -- front to worker -----------------------------------------------------------------------------------------------


class LoadVocabulary(_Message):
    """Builds the backends of a vocabulary; answered by Reply."""

    request: int
    name: str
    data: bytes


class OpenSession(_Message):
    """Makes the segments of a session; answered by Reply(SessionOpened)."""

    request: int
    session_id: int
    fingerprint: bytes
    item_capacity: int
    row_capacity: int
    token_capacity: int
    sequence_capacity: int


class AttachSession(_Message):
    """Hands over the engine's data socket (one descriptor): the worker sends the grant and keeps it as the lease."""

    session_id: int


class CloseSession(_Message):
    """Frees a session; answered by SessionClosed."""

    session_id: int


class CompileGrammar(_Message):
    """Compiles a grammar for a session; answered by Reply(GrammarCompiled). Grammar id 0 = report only."""

    request: int
    session_id: int
    grammar_id: int
    spec: GrammarSpec


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


# -- worker to front -----------------------------------------------------------------------------------------------


class Ready(_Message):
    """The worker has imported its backends."""

    pid: int
    backends: tuple[str, ...]


class Failure(_Message):
    """A MaskdError on its way."""

    reason: str
    message: str
    metadata: dict[str, str]


class SessionOpened(_Message):
    """Sizes of the new segments."""

    rows_bytes: int
    steps_bytes: int


class GrammarCompiled(_Message):
    """A grammar that the session holds."""

    report: GrammarReport
    compile_seconds: float
    cached: bool


class SessionState(_Message):
    """Counts of a session."""

    attached: bool
    sequence_count: int
    grammar_count: int
    last_step: int


class Reply(_Message):
    """The answer to a request."""

    request: int
    result: Failure | SessionOpened | GrammarCompiled | SessionState | None = None


class SessionClosed(_Message):
    """A session ended: its engine went away, broke the contract, or was told to."""

    session_id: int
    why: str


ToWorker = LoadVocabulary | OpenSession | AttachSession | CloseSession | CompileGrammar | DropGrammar | ReadSession | Drain
ToFront = Ready | Reply | SessionClosed

_ERRORS = {cls.reason: cls for cls in error_classes()}
_encoder = msgspec.msgpack.Encoder()


def failure_of(error: MaskdError) -> Failure:
    """Returns ``error`` as a message."""
    return Failure(error.reason, error.message, dict(error.metadata))


def error_of(failure: Failure) -> MaskdError:
    """Returns the error that ``failure_of`` packed."""
    return _ERRORS.get(failure.reason, MaskdError)(failure.message, **failure.metadata)


def encode(message: ToWorker | ToFront, fd_count: int = 0) -> bytes:
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

    def read(self) -> Iterator[tuple[ToWorker | ToFront, list[int]]]:
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
            self._fds.append(-1)  # every frame brings one at most
        if not data:
            raise UnavailableError("the control channel is closed")
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, fd_count = _HEAD.unpack_from(self._buffer, at)
            if len(self._buffer) - at - _HEAD.size < length or len(self._fds) < fd_count:
                break
            start = at + _HEAD.size
            payload = bytes(memoryview(self._buffer)[start : start + length])
            at = start + length
            yield self._decoder.decode(payload), [self._fds.popleft() for _ in range(fd_count)]
        del self._buffer[:at]
