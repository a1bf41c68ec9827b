"""The masker: what any decode loop embeds to get grammar masks.

It has two hooks: tokens after sampling, rows before the next sampling.

    handle = masker.open(spec)                             # or open(None): a sequence without a grammar
    masker.advance({handle: token_id}, rows=[handle])      # after sampling; returns at once
    ...                                                    # the next forward pass runs while the daemon makes the rows
    masks = masker.apply_(logits)                          # waits for the rows and masks (B, V) logits in place

When the session dies, the masker opens a new one and replays the accepted tokens of every sequence. Then it sends the
last step again. The caller gets the rows that it would have got, or an error, but never logits without a mask.
Owns: the order of the threads, and what the caller is told.
Knows nothing about: models, sampling, text; how a session is restored. Importing it does not import torch.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from engine_adapter.masker.connection import SESSION_LOST, Connection
from engine_adapter.masker.exchange import FIRST_DELAY_SECONDS, Exchange
from engine_adapter.masker.late_rows import StepAnswer
from engine_adapter.masker.ledger import Ledger, Step
from engine_adapter.masker.masks import MaskApplier, Masks
from maskd.bitmask import row_of
from maskd.client import Client, Session, Transport, check_transport
from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, UnavailableError
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.vocabulary import Vocabulary

__all__ = ["Masker"]

_CONTENTION_SECONDS = 0.1  # longer than any holder of the lock but a restore


class Masker:
    """Masks for the sequences of one engine.

    All methods belong to the thread of the decode loop, but for ``open`` and ``knows``, which are for any thread.
    Call ``open`` on another thread if a compile of some 100 ms would disturb the loop.
    """

    def __init__(
        self,
        connect: str | Callable[[], Client],
        vocabulary: Vocabulary,
        *,
        row_capacity: int,
        restore_seconds: float = 30.0,
        start_seconds: float = 30.0,
        step_seconds: float = 5.0,
        slow_seconds: float = 5.0,
        transport: Transport = "auto",
        spin_seconds: float = 0.0,
    ) -> None:
        """Opens a session with the daemon, trying for ``start_seconds``.

        Args:
            connect: where the daemon listens ("unix:/run/maskd/maskd.sock", "host:port"), or a function that returns
                a new client.
            vocabulary: of the model; its ``vocab_size`` is the width of the logits.
            row_capacity: positions of the largest batch: sequences times (1 + draft tokens).
            restore_seconds: how long a lost daemon may stay away before ``collect`` raises.
            start_seconds: how long the daemon may take to be there at the start.
            step_seconds: a step that takes longer counts as lost.
            slow_seconds: how long the batch waits for a sequence whose grammar is slow, before that sequence fails;
                0 = not at all. Meanwhile the daemon follows ``GrammarSpec.when_slow`` of each sequence.
            transport: how rows travel.
            spin_seconds: poll for so long before sleeping; costs a core, saves some 5 µs a step.

        Raises:
            InvalidRequestError: a bad argument. UnavailableError: no daemon answered in time. CapacityError:
                ``row_capacity`` is above the daemon's ``rows_per_session``. VocabularyMismatchError and others: it
                refused for good.
        """
        if row_capacity < 1:
            raise InvalidRequestError(f"row_capacity is {row_capacity}; give 1 or more", field="row_capacity")
        check_transport(transport)
        self._connection = Connection(
            (lambda: Client.connect(connect)) if isinstance(connect, str) else connect,
            vocabulary,
            row_capacity=row_capacity,
            transport=transport,
            spin_seconds=spin_seconds,
            slow_seconds=slow_seconds,
            step_seconds=step_seconds,
        )
        self._row_capacity = row_capacity
        self._stop_row = row_of(vocabulary.stop_token_ids, vocabulary.vocab_size)
        self._applier = MaskApplier(vocabulary.vocab_size, row_capacity)
        # held for a whole ``advance`` or ``collect``; guards the connection and everything below
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._exchange = Exchange(
            self._connection,
            self._ledger,
            restore_seconds=restore_seconds,
            row_stride_words=len(self._stop_row),
        )
        self._step: Step | None = None
        self._masks: Masks | None = None
        self._exchange.restore(time.monotonic() + start_seconds)

    def __enter__(self) -> Masker:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Ends the session; the daemon frees all that it holds. Ends every wait for a lost daemon. Safe to repeat."""
        self._exchange.stop()
        with self._lock:
            self._connection.drop()

    # -- sequences -------------------------------------------------------------------------------------------------

    def open(self, spec: GrammarSpec | None) -> int:
        """Compiles ``spec``, or finds it compiled, and returns the handle of a new sequence, never used before.

        With None the sequence has no grammar: every method takes it, and no row masks it.

        Raises:
            GrammarError: the spec is wrong, unsupported, too large or too slow. UnavailableError: the daemon is away.
        """
        deadline = self._exchange.deadline()
        while True:
            with self._lock:
                session = self._connection.session
                if spec is None or self.knows(spec):
                    return self._ledger.open(spec)
            try:
                if session is None:
                    raise UnavailableError("there is no session")
                grammar = session.create_grammar(spec)  # without the lock: the loop goes on
            except (UnavailableError, NotFoundError) as error:
                self._await_session(session, deadline, error)
                continue
            with self._lock:
                if session is self._connection.session:
                    self._connection.hold(spec, grammar, self._ledger.specs())

    def knows(self, spec: GrammarSpec) -> bool:
        """Whether ``open`` finds ``spec`` compiled, as far as is known without waiting."""
        return self._connection.grammar_of(spec) is not None

    def fork(self, handle: int) -> int:
        """Returns the handle of a copy of ``handle``, as it stands before the tokens of the next ``advance``."""
        with self._lock:
            return self._ledger.fork(handle)

    def rollback(self, handle: int, token_count: int) -> None:
        """Lets the next ``advance`` first undo the last ``token_count`` tokens of ``handle``.

        Between ``advance`` and ``collect`` the tokens of that step count as well, if they are accepted. If there are
        fewer in the end, ``Masks.errors`` of the next step has a RollbackError for the sequence, which is unchanged.

        Raises:
            RollbackError: more than was accepted; nothing is undone.
        """
        if token_count < 0:
            raise InvalidRequestError(f"token_count is {token_count}; give 0 or more", field="token_count")
        with self._lock:
            self._ledger.rollback(handle, operator.index(token_count), is_settled=self._step is None)

    def close(self, handle: int) -> None:
        """Ends ``handle``; the daemon hears of it with the next ``advance``."""
        with self._lock:
            self._ledger.close(handle)

    def report(self, handle: int) -> GrammarReport | None:
        """Returns what the daemon said when it compiled the grammar of ``handle``; None without a grammar."""
        with self._lock:
            spec = self._ledger.get(handle).spec
            grammar = None if spec is None else self._connection.grammar_of(spec)
            return None if grammar is None else grammar.report

    # -- the two hooks ---------------------------------------------------------------------------------------------

    def advance(
        self,
        tokens: Mapping[int, SupportsIndex | Sequence[int]],
        rows: Sequence[int | None] | None = None,
        drafts: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Sends the tokens of the whole batch and asks for its next rows. Returns at once.

        Each sequence undoes its ``rollback``, accepts its tokens (all or none), and gets a row for its next position.
        ``collect`` or ``apply_`` must follow.

        Args:
            tokens: handle to the token id(s) it accepts, as integers of any library. A sequence without new tokens may
                be left out.
            rows: the handles of the batch in the order of the logits; None marks a position to leave as it is.
                Default: those of ``tokens``, in their order.
            drafts: handle to draft token ids. The sequence takes 1 + len positions of the batch, one after another,
                the first for its next token.

        Raises:
            NotFoundError: an unknown handle. InvalidRequestError: tokens that are no integers, a handle twice in
                ``rows``, more positions than ``row_capacity``, or the last step was not collected. CapacityError: more
                tokens than the session takes. Nothing is sent, and every sequence stands as before.
        """
        with self._lock:
            if self._step is not None:
                raise InvalidRequestError("the last step was not collected", field="step")
            self._masks = None
            rows = list(tokens) if rows is None else rows
            self._step = self._ledger.plan(tokens, rows, drafts or {}, self._row_capacity)
            try:
                self._exchange.send(self._step)
            except SESSION_LOST:
                pass  # ``collect`` restores it; the forward pass need not wait for that
            except MaskdError:
                self._ledger.take_back(self._step)
                self._step = None
                raise

    def try_advance(self, tokens: Mapping[int, SupportsIndex | Sequence[int]], rows: Sequence[int | None]) -> bool:
        """Does what ``advance`` does; returns False and does nothing if another thread is restoring the session."""
        if not self._lock.acquire(timeout=_CONTENTION_SECONDS):
            return False
        try:
            self.advance(tokens, rows)
        finally:
            self._lock.release()
        return True

    def try_apply_(self, logits: Any) -> Masks | None:
        """Does what ``apply_`` does; returns None and leaves the logits alone if that has to wait for a new session.

        ``collect``, on any thread, waits for the session. After it the rows are those of the same step.
        """
        if not self._lock.acquire(timeout=_CONTENTION_SECONDS):
            return None
        try:
            masks = self._collect(restore=False)
            if masks is not None:
                self._applier.apply_(logits, masks)
            return masks
        finally:
            self._lock.release()

    def collect(self) -> Masks:
        """Waits for the rows of the last ``advance`` and returns them. A repeat returns the same ones.

        Raises:
            UnavailableError: the daemon did not come back within ``restore_seconds``; every sequence with a grammar is
                lost.
            InvalidRequestError: nothing was advanced.
        """
        masks = self._collect(restore=True)
        assert masks is not None
        return masks

    def apply_(self, logits: Any) -> Masks:
        """Waits for the rows and sets what they forbid to -inf, in place.

        Sequences in ``Masks.errors`` must not be sampled from.

        Args:
            logits: (positions, vocab_size), a floating-point numpy array or torch tensor, any device, any strides. On
                CUDA the rows are copied on a stream of their own, and the current stream waits for them.

        Raises:
            ValueError: another shape than the batch has, or not writable. UnavailableError: see ``collect``; the logits
                are untouched.
        """
        masks = self.collect()
        self._applier.apply_(logits, masks)
        return masks

    def flush(self) -> None:
        """Tells the daemon of closed sequences now, for an engine without a step to send.

        Does not wait for a lost daemon.
        """
        # If another thread has the lock to restore the session, the new session lacks the closed sequences anyway.
        if self._ledger.is_closing and self._lock.acquire(blocking=False):
            try:
                self.advance({})
                self.collect()
            finally:
                self._lock.release()

    def _collect(self, *, restore: bool) -> Masks | None:
        """Returns the masks of the step; None if the session is lost and not to be restored: the step waits then."""
        started = time.perf_counter()
        with self._lock:
            if self._masks is not None:
                return self._masks
            if self._step is None:
                raise InvalidRequestError("nothing was advanced", field="step")
            step, self._step = self._step, None
            try:
                answer = self._exchange.answer(step, restore=restore)
            except MaskdError as error:
                self._ledger.fail_all(error)
                raise
            if answer is None:
                self._step = step
                return None
            self._masks = self._conclude(step, answer, started)
            return self._masks

    def _conclude(self, step: Step, answer: StepAnswer, started: float) -> Masks:
        """Books ``answer``. Sequences that were not asked for get rows that end them."""
        errors = self._ledger.book_ok(step) if answer.all_ok else self._ledger.book(step, answer.results)
        rows = answer.rows
        if step.unasked:
            missing = max(0, len(step.row_indices) - len(rows))
            rows = np.vstack([rows, np.tile(self._stop_row, (missing, 1))])
            rows[step.unfilled_rows] = self._stop_row
        return Masks(rows, step.row_indices, errors, time.perf_counter() - started, answer)

    def _await_session(self, broken: Session | None, deadline: float, error: MaskdError) -> None:
        """Returns when there may be another session than ``broken``: makes it, unless ``collect`` is about to."""
        with self._lock:
            if broken is self._connection.session and self._step is None:
                self._exchange.restore(deadline)
                return
        if time.monotonic() > deadline:
            raise UnavailableError(f"no session with maskd: {error}") from error
        time.sleep(FIRST_DELAY_SECONDS)
