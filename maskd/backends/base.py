"""The backend interface: three nouns, and what each must do.

Owns: the protocols that every backend, grammar and matcher implements, and the optional ones.
Knows nothing about: configuration, torch, sequence ids, shared memory. Rows belong to the caller.

Words. A **backend** holds one grammar library for one vocabulary. It compiles a grammar spec into a **grammar**, which
is immutable and shared by many sequences. A **matcher** is the state of one sequence in one grammar. It **fills** a
bitmask row with the tokens allowed next, **accepts** token ids, **rolls back** and **forks**. A matcher **terminates**
when it accepts a stop token. A stop token is allowed exactly where the text so far is a complete match.

Life of a matcher, with a grammar for ``(Paris|London)``, one token a word::

    matcher = backend.compile(GrammarSpec("regex", "(Paris|London)")).matcher()
    matcher.fill_bitmask(row)             # Paris and London are allowed, nothing else
    matcher.accept([PARIS])               # 1
    matcher.fill_bitmask(row)             # only the stop tokens
    matcher.accept([STOP])                # 1; matcher.is_terminated
    matcher.rollback(2)                   # as new

A refused token::

    # 1: Paris was accepted, London was refused; the matcher stands after Paris and works on
    matcher.accept([PARIS, LONDON])

A draft, one row per position::

    for token_id in draft:                # fill, accept, fill, accept, ...
        matcher.fill_bitmask(rows[i])
        if not matcher.accept([token_id]): break
    matcher.rollback(accepted)            # or walk the draft on matcher.look_ahead(), if the matcher has it

The libraries differ: in fatal refusals, rows after a stop token, and stop tokens that do not count for
rollback. Bad grammars may fail only at the first step, and tokens may have to be canonical. The adapters hide it all.
``tests/contract`` is the definition; it runs on every backend and on a brute-force reference.

Optional powers are protocols of one method. The worker looks for them once for each backend or matcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from maskd.grammar import GrammarReport, GrammarSpec
from maskd.vocabulary import Vocabulary

__all__ = [
    "Advance",
    "Backend",
    "BackendFactory",
    "BatchFill",
    "Detach",
    "Grammar",
    "LookAhead",
    "Matcher",
    "PIECE_TOKENS",
    "Serializer",
    "in_pieces",
]


class Matcher(Protocol):
    """The state of one sequence. One caller at a time; every native call releases the GIL."""

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Writes the tokens allowed next into ``row``. Does not change the matcher.

        Args:
            row: (row_stride_words,) int32, C-contiguous, in CPU memory, the caller's. Every word is overwritten. Bits
                from ``len(vocabulary.tokens)`` on may be left set: the caller clears them.
        Raises:
            BackendError: the library gave up in this state (limits reached). The matcher keeps its state.

        Must not be called on a terminated matcher.
        """

    def accept(self, token_ids: Sequence[int]) -> int:
        """Accepts the longest allowed prefix of ``token_ids`` and returns its length.

        The state moves by that many tokens. Ids are within [0, vocab_size). A terminated matcher accepts nothing and
        returns 0.

        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """

    def rollback(self, token_count: int) -> None:
        """Undoes the last ``token_count`` accepted tokens, a stop token included: the exact inverse of ``accept``.

        0 <= ``token_count`` <= number of accepted tokens. The caller counts the accepted tokens.
        """

    def fork(self) -> Matcher:
        """Returns an independent copy in the same state, history included."""

    @property
    def is_terminated(self) -> bool:
        """Whether a stop token was accepted."""


class Grammar(Protocol):
    """A compiled grammar. Immutable, shared by many sequences, safe to use from any thread."""

    @property
    def report(self) -> GrammarReport:
        """The report of the compile."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The ids that terminate a matcher of this grammar."""

    def matcher(self) -> Matcher:
        """Returns a new matcher at the start of the grammar. Takes microseconds."""


class Backend(Protocol):
    """One grammar library for one vocabulary. Thread-safe."""

    name: str

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Compiles ``spec``; releases the GIL for most of the time.

        A grammar that nothing can match, or whose first row cannot be filled, is refused here.

        Raises:
            GrammarError: malformed. Its subclasses: unsupported, unsatisfiable, too large.
        """


@runtime_checkable
class BatchFill(Protocol):
    """Optional: fills rows of many matchers in one native call, on native threads."""

    def fill_bitmasks(self, matchers: Sequence[Matcher], rows: NDArray[np.int32], indices: Sequence[int]) -> None:
        """Writes ``rows[indices[i]]`` for ``matchers[i]``, as ``Matcher.fill_bitmask`` would.

        Args:
            matchers: of this backend, none terminated.
            rows: (row_count, row_stride_words) int32, C-contiguous.
            indices: as long as ``matchers``, no two equal.
        Raises:
            BackendError: a matcher failed. Any of the rows may have been written. The caller then fills one by one.
        """


@runtime_checkable
class Advance(Protocol):
    """Optional, of a matcher: the usual step with as few native calls as the library allows."""

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """Accepts ``token_id`` if that is simple, and fills the row at once where that is cheaper than later.

        Args:
            token_id: within [0, vocab_size).
            row_address: of a row as ``fill_bitmask`` takes it.
            row_bytes: size of that row.
        Returns:
            0: nothing changed. The token is refused or terminates, or the case is unusual; the caller calls ``accept``.
            1: accepted; the caller calls ``fill_bitmask``.
            2: accepted, and the row is as ``fill_bitmask`` writes it.
        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """


@runtime_checkable
class LookAhead(Protocol):
    """Optional, of a matcher: drafts are walked on a copy, which is cheaper or safer here than ``rollback``."""

    def look_ahead(self) -> Matcher:
        """Returns a copy in the same state. The caller accepts and fills on it, never rolls it back, and drops it."""


@runtime_checkable
class Detach(Protocol):
    """Optional, of a matcher whose calls may wait for calls of another matcher of its grammar."""

    def detach(self) -> None:
        """Stops sharing with other matchers, where that is quick enough; the state stays.

        The worker calls it for slow sequences only, because it may take a while.

        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """


@runtime_checkable
class Serializer(Protocol):
    """Optional: grammars travel between processes as bytes, so that each is compiled once."""

    def serialize(self, grammar: Grammar) -> bytes:
        """Returns ``grammar``, of this backend, as bytes; empty if this grammar cannot be serialised."""

    def deserialize(self, data: bytes, spec: GrammarSpec, report: GrammarReport) -> Grammar:
        """Returns the grammar that ``serialize`` packed, compiled from ``spec`` for the same vocabulary.

        Raises:
            GrammarError: the bytes are not from this version of the library.
        """


class BackendFactory(Protocol):
    """What a backend module exports: ``create``, named on the command line as ``module:attribute``."""

    def __call__(self, vocabulary: Vocabulary, *, threads: int) -> Backend:
        """Returns the backend for ``vocabulary``; ``threads`` bounds its native threads. May take a second."""


PIECE_TOKENS = 16
"""Tokens of one native call. llguidance holds the interpreter while it takes tokens. A history of thousands in one call
would stop the data path, which needs the interpreter, and look like a hang to the front."""


def in_pieces(token_ids: Sequence[int], size: int = PIECE_TOKENS) -> Iterator[Sequence[int]]:
    """Yields ``token_ids`` in pieces of ``size``, each for one native call."""
    for at in range(0, len(token_ids), size):
        yield token_ids[at : at + size]
