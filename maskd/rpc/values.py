"""What the calls of the service take and return, as plain values.

Grammar specs, items and results have modules of their own (``maskd.grammar``, ``maskd.step``).
Owns: values of whole calls. Knows nothing about: protobuf (``messages``), gRPC, how either side gets or uses them.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskd.grammar import GrammarReport

__all__ = ["Grammar", "NewSession", "ServerInfo", "SessionRequest", "VocabularyInfo"]


@dataclass(frozen=True)
class VocabularyInfo:
    """A vocabulary that the daemon holds.

    Attributes:
        fingerprint: sha256 of the content, 32 bytes.
        name: for people.
        vocab_size: width of the logits.
        token_count: number of tokens, at most ``vocab_size``.
        stop_token_ids: ids that end a sequence.
    """

    fingerprint: bytes
    name: str
    vocab_size: int
    token_count: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ServerInfo:
    """What the daemon is and holds.

    Attributes:
        version: of the daemon.
        layout: (major, minor) of the shared-memory layout.
        backends: names that ``GrammarSpec.backend`` takes, besides "auto".
        vocabularies: those that are loaded.
        worker_count: workers of each vocabulary.
        session_count: sessions that are open.
        draining: whether the daemon is shutting down and takes no new session.
        shared_memory: whether the daemon offers shared memory at this address.
    """

    version: str
    layout: tuple[int, int]
    backends: tuple[str, ...]
    vocabularies: tuple[VocabularyInfo, ...]
    worker_count: int
    session_count: int
    draining: bool
    shared_memory: bool


@dataclass(frozen=True)
class SessionRequest:
    """What an engine asks of a new session; the numbers are those of ``Client.open_session``.

    Attributes:
        inline: rows travel inside messages, not through shared memory.
        engine: name and version of the engine, for the daemon's log.
    """

    vocabulary_fingerprint: bytes
    vocab_size: int
    row_capacity: int
    item_capacity: int = 0
    token_capacity: int = 0
    sequence_capacity: int = 0
    inline: bool = False
    engine: str = ""


@dataclass(frozen=True)
class NewSession:
    """A session that waits for its engine.

    Attributes:
        session_id: random; a client that knows it may use the session.
        data_token: 16 bytes, for one connection to the data socket. Empty for an inline session.
        claim_seconds: the engine must connect to the data socket within this time. 0 for an inline session.
        lease_seconds: an inline session ends after this time without a call. 0 for shared memory.
        row_stride_words: int32 words from one row to the next.
        rows_bytes, steps_bytes: sizes of the segments. 0 for an inline session, which has none.
        item_capacity, token_capacity: as asked for, or the default.
    """

    session_id: int
    data_token: bytes
    claim_seconds: int
    lease_seconds: int
    row_stride_words: int
    rows_bytes: int
    steps_bytes: int
    item_capacity: int
    token_capacity: int


@dataclass(frozen=True)
class Grammar:
    """A grammar that was compiled for a session.

    Attributes:
        grammar_id: for ``Item.grammar_id``; 0 if the grammar was only validated.
        report: backend and why, warnings, keywords that are not enforced, bytes.
        compile_seconds: 0 when cached.
        cached: whether the daemon had compiled it before.
        alternate_backend: where its sequences move when they are slow; empty if they stay.
    """

    grammar_id: int
    report: GrammarReport
    compile_seconds: float
    cached: bool
    alternate_backend: str = ""
