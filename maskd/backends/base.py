"""The backend interface: three nouns, and what each must do.

Words. A **backend** holds one grammar library for one vocabulary. It compiles a grammar spec into a **grammar**, which
is
immutable and shared by many sequences. A **matcher** is the state of one sequence in one grammar: it **fills** a
bitmask
row with the tokens allowed next, **accepts** token ids, **rolls back** and **forks**. A matcher **terminates** when it
accepts a stop token; a stop token is allowed exactly where the text so far is a complete match.

Life of a matcher, with a grammar for ``(Paris|London)``, one token a word::

    matcher = backend.compile(GrammarSpec("regex", "(Paris|London)")).matcher()
    matcher.fill_bitmask(row)             # Paris and London are allowed, nothing else
    matcher.accept([PARIS])               # 1
    matcher.fill_bitmask(row)             # only the stop tokens
    matcher.accept([STOP])                # 1; matcher.is_terminated
    matcher.rollback(2)                   # as new

A refused token::

    # 1: Paris was taken, London was not; the matcher is good and stands after Paris
    matcher.accept([PARIS, LONDON])

A draft, one row per position::

    for token_id in draft:                # fill, accept, fill, accept, ...
        matcher.fill_bitmask(rows[i])
        if not matcher.accept([token_id]): break
    matcher.rollback(accepted)            # or walked on matcher.look_ahead(), where the matcher has that

The two libraries differ in all of this (refusals that are fatal, rows after a stop token, stop tokens that do not count
for rollback, bad grammars that only show at the first step, canonical tokens only); the adapters hide the differences
and ``tests/contract`` is the definition, run on every backend and on a brute-force reference.

Optional powers are protocols of one method. The worker looks for them once per backend, or once per matcher.

Knows nothing about: configuration, torch, sequence ids, shared memory. Rows belong to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "Serializer",
]


class Matcher(Protocol):
    """The state of one sequence. One caller at a time; every native call releases the GIL."""

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Writes the tokens allowed next into ``row``. Does not change the matcher.

        Args:
            row: (row_stride_words,) int32, C-contiguous, CPU, the caller's; every word is overwritten. Bits from
                ``len(vocabulary.tokens)`` on may be left set: the caller clears them.
        Raises:
            BackendError: the library gave up in this state (limits reached); the matcher stands where it stood.

        Must not be called on a terminated matcher.
        """

    def accept(self, token_ids: Sequence[int]) -> int:
        """Accepts the longest allowed prefix of ``token_ids`` and returns its length; the state moves by that many.

        Ids are within [0, vocab_size). A terminated matcher accepts nothing and returns 0.

        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """

    def rollback(self, token_count: int) -> None:
        """Undoes the last ``token_count`` accepted tokens, a stop token included: the exact inverse of ``accept``.

        0 <= ``token_count`` <= number of accepted tokens; the caller keeps the count.
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
        """What the compile did."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The ids that terminate a matcher of this grammar."""

    def matcher(self) -> Matcher:
        """Returns a new matcher at the start of the grammar. Microseconds."""


class Backend(Protocol):
    """One grammar library for one vocabulary. Thread-safe."""

    name: str

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Compiles ``spec``; releases the GIL for most of the time.

        A grammar that nothing can match, or that fails at its first mask, is an error here and not at the first step.

        Raises:
            GrammarError: or one of its children: malformed, unsupported, unsatisfiable, too large.
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
            BackendError: a matcher failed; which rows were written is not known. The caller then fills one by one.
        """


@runtime_checkable
class Advance(Protocol):
    """Optional, of a matcher: the usual step with as few calls as the library allows."""

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """Accepts ``token_id`` if that is simple, and fills the row at ``row_address`` if that is best done at once.

        Returns:
            0: nothing changed, because the token is refused, terminates, or anything else is out of the ordinary. The
            caller
            goes on with ``accept``, which has the answer. 1: accepted, ``fill_bitmask`` is still to be called. 2:
            accepted, and
            the row is as ``fill_bitmask`` writes it.
        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """


@runtime_checkable
class LookAhead(Protocol):
    """Optional, of a matcher: drafts are walked on a copy, because that is cheaper here than ``rollback``, or safer."""

    def look_ahead(self) -> Matcher:
        """Returns a copy in the same state. The caller accepts and fills on it, and drops it; it is never rolled
        back."""


@runtime_checkable
class Detach(Protocol):
    """Optional, of a matcher whose calls may wait for those of another matcher of its grammar."""

    def detach(self) -> None:
        """Leaves what is shared, where that is quickly done; the state stays. For matchers that are slow: it may take a
        while.

        Raises:
            BackendError: the library gave up; the matcher must be dropped.
        """


@runtime_checkable
class Serializer(Protocol):
    """Optional: grammars travel between processes as bytes, so that what one compiled another need not."""

    def serialize(self, grammar: Grammar) -> bytes:
        """Returns ``grammar``, of this backend, as bytes; empty if this one cannot be serialised."""

    def deserialize(self, data: bytes, spec: GrammarSpec, report: GrammarReport) -> Grammar:
        """Returns the grammar that ``serialize`` packed, compiled from ``spec`` for the same vocabulary.

        Raises:
            GrammarError: not bytes of this library version.
        """


class BackendFactory(Protocol):
    """What a backend module exports: ``create``, named on the command line as ``module:attribute``."""

    def __call__(self, vocabulary: Vocabulary, *, threads: int) -> Backend:
        """Returns the backend for ``vocabulary``; ``threads`` bounds its native threads. May take a second."""
