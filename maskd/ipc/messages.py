"""The messages between the front and its other processes, as msgpack-encoded structs.

Both ends are our own processes. Nothing is pickled: a message has the types that are declared here, or is refused.
Owns: the messages. Knows nothing about: how they travel (``frames.py``), what either end does with them.
"""

from __future__ import annotations

import msgspec

from maskd.errors import MaskdError, make_error
from maskd.grammar import GrammarReport, GrammarSpec

__all__ = [
    "Answered", "AnyResult", "AttachSession", "Building", "CancelCompile", "CloseSession", "Compile",
    "CompileGrammar", "CompileLimits", "Compiled", "Crashed", "Drain", "DropGrammar", "Exited", "Failure",
    "ForkNursery", "GrammarCompiled", "InlineStep", "LoadVocabulary", "Loaded", "Numbered", "OpenSession",
    "ReadSession", "Ready", "SessionClosed", "SessionOpened", "SessionState", "SpawnWorker", "Spawned", "Stepped",
    "ToFront", "ToNursery", "ToWorker", "ToZygote", "error_of", "failure_of",
]  # fmt: skip


class _Message(msgspec.Struct, tag=True):
    pass


class Numbered(_Message, kw_only=True):
    """A message that is answered: the ``Answered`` has the same number.

    Attributes:
        request: the number. ``Peer.request`` chooses it.
    """

    request: int = 0


# -- front to worker -----------------------------------------------------------------------------------------------


class OpenSession(Numbered, kw_only=True):
    """Makes a session, with segments unless it is inline; answered by SessionOpened.

    Attributes:
        session_id: a secret: a client that knows the id may use the session.
        number: stands for the session in marks and logs.
    """

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
    """Frees a session; SessionClosed follows."""

    session_id: int


class InlineStep(Numbered, kw_only=True):
    """One step of an inline session; answered by Stepped. After a failure the step may be sent again.

    Attributes:
        row_count: rows that the items want.
        cell: a steps cell, as ``Layout.cut`` lays it out for these items, tokens and rows.
    """

    session_id: int
    row_count: int
    cell: bytes


class CompileLimits(_Message, kw_only=True):
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
        report: of the backend.
        seconds: that the compile took.
        slowest_mask_seconds: longest time of one mask in the walk.
        artefact: the compiled grammar as bytes, where the library can serialise; else empty.
    """

    report: GrammarReport
    seconds: float
    slowest_mask_seconds: float
    artefact: bytes


class CompileGrammar(Numbered, kw_only=True):
    """Makes a grammar for a session; answered by GrammarCompiled.

    Attributes:
        grammar_id: 0 = report only.
        verdict: of the compile child. None: the source is trusted, and is compiled in the worker.
        solo: never fill it with other grammars, nor beside them in the slow lane: a crash then has one suspect.
        alternate_of: the grammar whose slow sequences move to this one; 0 = none.
    """

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


class ReadSession(Numbered):
    """Asks for the state of a session; answered by SessionState."""

    session_id: int


class Drain(_Message):
    """Tells every session that the daemon is going away."""


# -- front to zygote and nursery -----------------------------------------------------------------------------------


class ForkNursery(Numbered):
    """Forks a nursery (one descriptor: its control channel); answered by Spawned."""

    number: int


class LoadVocabulary(Numbered, kw_only=True):
    """The first message to a nursery; answered by Loaded when the backends are built. After a failure the nursery ends.

    One descriptor comes with it: the vocabulary, as ``Vocabulary.to_bytes`` writes it, from its start.

    Attributes:
        name: of the vocabulary.
        seconds: wall time until the nursery is killed.
        bytes: address space beyond what the libraries have mapped.
    """

    name: str
    seconds: float
    bytes: int


class SpawnWorker(Numbered, kw_only=True):
    """Forks a worker (two descriptors: its control channel, its marker); answered by Spawned."""

    number: int
    log_level: str
    compile_threads: int
    cache_bytes: int
    grammars_per_session: int
    spin_seconds: float
    row_seconds: float


class Compile(Numbered):
    """Compiles in a child of its own; answered by Compiled or Crashed."""

    spec: GrammarSpec
    limits: CompileLimits


class CancelCompile(_Message):
    """Kills the child of a Compile whose callers have left. The Compile is answered all the same.

    Attributes:
        compile: number of the request.
    """

    compile: int


# -- to the front --------------------------------------------------------------------------------------------------


class Ready(_Message):
    """The zygote has loaded the backends, or the worker can take sessions."""

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
    """The answer to an InlineStep.

    Attributes:
        head: a rows cell up to its rows: results and forced tokens, as ``Layout.cut`` lays it out.
        rows: (row_count, row_stride_words) int32.
    """

    head: bytes
    rows: bytes


class Crashed(_Message):
    """A compile child died of its grammar.

    Attributes:
        how: for logs.
    """

    how: str


class Loaded(_Message):
    """The vocabulary is built.

    Attributes:
        warnings: what looks unusual in it, for people.
    """

    warnings: tuple[str, ...]


AnyResult = Failure | SessionOpened | GrammarCompiled | SessionState | Stepped | Spawned | Loaded | Compiled | Crashed


class Answered(_Message):
    """The answer to a request.

    Attributes:
        request: its number; 0 = a failure of the process itself, not of a request.
        result: None = done, with nothing to tell.
    """

    request: int
    result: AnyResult | None = None


class Building(_Message):
    """A nursery begins to build a backend. If the process does not survive it, the front names this backend.

    Attributes:
        backend: its name.
        resident_bytes: memory that the nursery has before.
    """

    backend: str
    resident_bytes: int


class Exited(_Message):
    """A process that was forked for the front has ended.

    Attributes:
        signal: that ended it, or 0.
        peak_bytes: most resident memory that it had.
    """

    pid: int
    signal: int
    peak_bytes: int


class SessionClosed(_Message):
    """A session ended: its engine went away, broke the contract, or closed it."""

    session_id: int
    why: str


ToWorker = OpenSession | AttachSession | CloseSession | InlineStep | CompileGrammar | DropGrammar | ReadSession | Drain
ToZygote = ForkNursery
ToNursery = LoadVocabulary | SpawnWorker | Compile | CancelCompile
ToFront = Ready | Answered | Building | Exited | SessionClosed


def failure_of(error: MaskdError) -> Failure:
    """Returns ``error`` as a message."""
    return Failure(error.reason, error.message, dict(error.metadata))


def error_of(failure: Failure) -> MaskdError:
    """Returns the error that ``failure_of`` packed."""
    return make_error(failure.reason, failure.message, failure.metadata)
