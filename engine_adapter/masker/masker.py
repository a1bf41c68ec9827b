"""The masker: what any decode loop embeds to get grammar masks. Two hooks: tokens after sampling, rows before the next
sampling.

    handle = masker.open(spec)                             # or open(None): a sequence without a grammar
    masker.advance({handle: token_id}, rows=[handle])      # after sampling; returns at once
    ...                                                    # the next forward pass runs while the daemon makes the rows
    masks = masker.apply_(logits)                          # waits for the rows and masks (B, V) logits in place

When the session dies, the masker gets a new one, replays the accepted tokens of every sequence and sends the unanswered
step again: the caller gets the rows that it would have got, or an error, but never logits without a mask.
Owns: the threads' order, waiting and restoring. Knows nothing about: models, sampling, text; ``ledger.py`` knows the
    sequences and
``lease.py`` the session. Importing it does not import torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_adapter.masker.connection import MAY_COME_BACK, SESSION_LOST, Lease, Transport
from engine_adapter.masker.late_rows import await_late
from engine_adapter.masker.ledger import Ledger, Step
from maskd.bitmask import mask_array, row_of
from maskd.client import Client, Session
from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, UnavailableError
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.shm.cells import Reply
from maskd.step import Result
from maskd.vocabulary import Vocabulary

if TYPE_CHECKING:
    from engine_adapter.kernels.staging import RowStaging

__all__ = ["Masker", "Masks"]

_FIRST_DELAY_SECONDS, _LAST_DELAY_SECONDS = 0.02, 1.0
_CONTENTION_SECONDS = 0.1  # longer than anybody but a restore holds the lock


@dataclass(slots=True)
class Masks:
    """The rows of one step.

    Attributes:
        rows: (rows, row_stride_words) int32, read-only; a view of shared memory, valid until the second next
            ``advance``.
        row_indices: (positions,) int32: position i of the batch is masked by ``rows[row_indices[i]]``; -1 = by none.
        errors: the sequences that must not be sampled from, and why; their rows allow only stop tokens. Empty in a good
            step.
        wait_seconds: how long the caller stood still for the rows: what the forward pass did not hide.
    """

    rows: NDArray[np.int32]
    row_indices: NDArray[np.int32]
    errors: Mapping[int, MaskdError]
    wait_seconds: float
    _results: Reply | Sequence[Result] = field(repr=False)

    @property
    def results(self) -> dict[int, Result]:
        """What the daemon said about each sequence with a grammar: terminated, accepting, rows over its drafts, ..."""
        results = self._results.results if isinstance(self._results, Reply) else self._results
        return {result.sequence_id: result for result in results}


class Masker:
    """Masks for the sequences of one engine.

    All methods belong to the thread of the decode loop, but for ``open``, which any thread may call, and which should
    be called elsewhere if a compile of some 100 ms would disturb the loop.
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
            connect: where the daemon is ("unix:/run/maskd/maskd.sock", "host:port"), or a function that returns a new
                client.
            vocabulary: of the model; its ``vocab_size`` is the width of the logits.
            row_capacity: positions of the largest batch: sequences times (1 + draft tokens).
            restore_seconds: how long a lost daemon may stay away before ``collect`` raises.
            start_seconds: how long the daemon may take to be there at first.
            step_seconds: a step that takes longer counts as lost.
            slow_seconds: how long the batch waits for a sequence whose grammar is slow, before that sequence fails; 0 =
                not at all. What the daemon does meanwhile, each sequence's ``GrammarSpec.when_slow`` says.
            transport: how rows travel.
            spin_seconds: poll for so long before sleeping; costs a core, saves some 5 µs a step.

        Raises:
            UnavailableError: nobody answered in time. VocabularyMismatchError and others: it answered, and refused.
        """
        self._lease = Lease(
            (lambda: Client.connect(connect)) if isinstance(connect, str) else connect,
            vocabulary,
            row_capacity=row_capacity,
            transport=transport,
            spin_seconds=spin_seconds,
            slow_seconds=slow_seconds,
            step_seconds=step_seconds,
        )
        self._vocab_size = vocabulary.vocab_size
        self._row_capacity = row_capacity
        self._restore_seconds = restore_seconds
        self._step_seconds = step_seconds
        self._slow_seconds = slow_seconds
        self._stop_row = row_of(vocabulary.stop_token_ids, vocabulary.vocab_size)
        self._no_rows = np.empty((0, len(self._stop_row)), dtype=np.int32)
        self._staging: RowStaging | None = None

        # held for a whole ``advance`` or ``collect``; guards the lease and everything below
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._ledger = Ledger()
        self._step: Step | None = None
        self._sent_to: Session | None = None  # the session that was asked ``_step``
        self._masks: Masks | None = None
        self._restore(time.monotonic() + start_seconds)

    def __enter__(self) -> Masker:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Ends the session; the daemon frees all that it holds. Whoever waits for a lost one waits no longer. Safe to
        repeat."""
        self._ending.set()
        with self._lock:
            self._lease.drop()

    # -- sequences -------------------------------------------------------------------------------------------------

    def open(self, spec: GrammarSpec | None) -> int:
        """Compiles ``spec``, or finds it compiled, and returns the handle of a new sequence, never used before.

        With None the sequence has no grammar: every method takes it, and no row masks it.

        Raises:
            GrammarError: the spec is wrong, unsupported, too large or too slow. UnavailableError: the daemon stays
                away.
        """
        deadline = self._deadline()
        while True:
            with self._lock:
                session = self._lease.session
                if spec is None or spec in self._lease.grammars:
                    return self._ledger.open(spec)
            try:
                if session is None:
                    raise UnavailableError("there is no session")
                grammar = session.create_grammar(spec)  # without the lock: the loop goes on
            except (UnavailableError, NotFoundError) as error:
                self._await_session(session, deadline, error)
                continue
            with self._lock:
                if session is self._lease.session:
                    self._lease.grammars[spec] = grammar
                    self._lease.forget_idle({spec, *self._ledger.specs()})

    def knows(self, spec: GrammarSpec) -> bool:
        """Whether ``open`` finds ``spec`` compiled, as far as is known without waiting."""
        return spec in self._lease.grammars

    def fork(self, handle: int) -> int:
        """Returns the handle of a new sequence that stands where ``handle`` stands before the tokens of the next
        ``advance``."""
        with self._lock:
            return self._ledger.fork(handle)

    def rollback(self, handle: int, token_count: int) -> None:
        """Lets the next ``advance`` first undo the last ``token_count`` tokens of ``handle``."""
        if token_count < 0:
            raise InvalidRequestError(f"token_count is {token_count}; give 0 or more", field="token_count")
        with self._lock:
            self._ledger.rollback(handle, token_count)

    def close(self, handle: int) -> None:
        """Ends ``handle``; the daemon hears of it with the next ``advance``."""
        with self._lock:
            self._ledger.close(handle)

    def report(self, handle: int) -> GrammarReport | None:
        """Returns what was said when its grammar was compiled; None without a grammar."""
        with self._lock:
            spec = self._ledger.get(handle).spec
            grammar = None if spec is None else self._lease.grammars.get(spec)
            return None if grammar is None else grammar.report

    # -- the two hooks ---------------------------------------------------------------------------------------------

    def advance(
        self,
        tokens: Mapping[int, int | Sequence[int]],
        rows: Sequence[int | None] | None = None,
        drafts: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Sends the tokens of the whole batch and asks for its next rows. Returns at once; ``collect`` or ``apply_``
        must follow.

        Each sequence undoes its ``rollback``, accepts its tokens (all or none), and gets a row for its next position.

        Args:
            tokens: handle to the token id(s) it accepts; a sequence without new tokens may be left out.
            rows: the batch in the order of the logits; None marks a position to leave as it is. Default: ``tokens``, in
                its order.
            drafts: handle to draft token ids: it takes 1 + len positions of the batch, one after another, the first for
                its next token.

        Raises:
            NotFoundError: an unknown handle. RollbackError: more than was accepted. InvalidRequestError: more positions
                than
            ``row_capacity``, or the last step was not collected. Nothing is sent.
        """
        with self._lock:
            if self._step is not None:
                raise InvalidRequestError("the last step was not collected", field="step")
            self._step = self._ledger.plan(
                tokens, list(tokens) if rows is None else rows, drafts or {}, self._row_capacity
            )
            self._masks = self._sent_to = None
            try:
                self._send(self._step)
            except SESSION_LOST:
                pass  # ``collect`` restores it; the forward pass need not wait for that
            except MaskdError:
                self._step = None
                raise

    def try_advance(self, tokens: Mapping[int, int | Sequence[int]], rows: Sequence[int | None]) -> bool:
        """Does what ``advance`` does, unless another thread is getting the session back: then nothing is done, and it
        returns False."""
        if not self._lock.acquire(timeout=_CONTENTION_SECONDS):
            return False
        try:
            self.advance(tokens, rows)
        finally:
            self._lock.release()
        return True

    def try_apply_(self, logits: Any) -> Masks | None:
        """Does what ``apply_`` does, unless that has to wait for a new session: then the logits are untouched, and it
        returns None.

        ``collect``, on whatever thread, waits for the session. After it the rows are those of the same step.
        """
        if not self._lock.acquire(timeout=_CONTENTION_SECONDS):
            return None
        try:
            masks = self._collect(restore=False)
            return None if masks is None else self._mask(logits, masks)
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
        """Waits for the rows and sets what they forbid to -inf, in place. Whoever stands in ``errors`` must not be
        sampled from.

        Args:
            logits: (positions, vocab_size), a floating-point numpy array or torch tensor, any device, any strides. On
                CUDA the rows are copied on a stream of their own, and the current stream waits for them.

        Raises:
            ValueError: another shape than the batch has, or not writable. UnavailableError: see ``collect``; the logits
                are untouched.
        """
        return self._mask(logits, self.collect())

    def _mask(self, logits: Any, masks: Masks) -> Masks:
        if tuple(logits.shape) != (len(masks.row_indices), self._vocab_size):
            raise ValueError(
                f"logits are {tuple(logits.shape)}; the batch is ({len(masks.row_indices)}, {self._vocab_size})"
            )
        if isinstance(logits, np.ndarray):
            mask_array(logits, masks.rows, masks.row_indices.tolist())
            return masks
        if self._staging is None or self._staging.device != logits.device:
            from engine_adapter.kernels.staging import RowStaging

            self._staging = RowStaging(logits.device, self._row_capacity, len(self._stop_row))
        self._staging.apply_(logits, masks.rows, masks.row_indices)
        return masks

    def flush(self) -> None:
        """Tells the daemon of closed sequences now, for an engine that has nothing else to say. Does not wait for a
        lost daemon."""
        # else somebody restores the session, without those
        if self._ledger.is_closing and self._lock.acquire(blocking=False):
            try:
                self.advance({})
                self.collect()
            finally:
                self._lock.release()

    # -- one step: send, answer, conclude --------------------------------------------------------------------------

    def _collect(self, *, restore: bool) -> Masks | None:
        """Returns the masks of the step; None if the session is lost and is not to be restored: the step waits then."""
        started = time.perf_counter()
        with self._lock:
            if self._masks is not None:
                return self._masks
            if self._step is None:
                raise InvalidRequestError("nothing was advanced", field="step")
            step, self._step = self._step, None
            try:
                answer = self._answer(step, restore=restore)
            except MaskdError as error:
                self._ledger.fail_all(error)
                raise
            if answer is None:
                self._step = step
                return None
            self._masks = self._conclude(step, *answer, started)
            return self._masks

    def _send(self, step: Step) -> None:
        session = self._lease.session
        if session is None:
            raise UnavailableError("there is no session")
        self._ledger.write_items(step, self._lease.grammar_id, session.row_capacity)
        if step.items:
            session.submit(step.items)
        self._sent_to = session

    def _answer(self, step: Step, *, restore: bool) -> tuple[NDArray[np.int32], Reply | Sequence[Result]] | None:
        """Waits for the rows and results of ``step``, through as many sessions as that takes. The results of a good
        step are left in
        their reply until somebody asks for them. Without ``restore``, None if the session is lost."""
        deadline = 0.0
        while True:
            try:
                if self._sent_to is None or self._sent_to is not self._lease.session:
                    self._send(step)
                if self._sent_to is None or not step.items:
                    return self._no_rows, []
                reply = self._sent_to.collect(timeout_seconds=self._step_seconds)
                if reply.ok:
                    return reply.rows, reply
                return await_late(
                    self._sent_to, step.items, reply, slow_seconds=self._slow_seconds, step_seconds=self._step_seconds
                )
            except SESSION_LOST as error:
                if not self._ledger.is_asking(step):  # only closes, and those are done
                    step.withdraw()
                    return self._no_rows, []
                if not restore:
                    return None
                deadline = deadline or self._deadline()
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"no session lived through this step for {self._restore_seconds} s: {error}"
                    ) from error
                self._restore(deadline)

    def _conclude(
        self, step: Step, rows: NDArray[np.int32], results: Reply | Sequence[Result], started: float
    ) -> Masks:
        """Books the results, and makes sure that whoever could not be asked for has rows that end the sequence."""
        errors = self._ledger.book(step, None if isinstance(results, Reply) else results)
        if step.unasked:
            missing = max(0, len(step.row_indices) - len(rows))
            rows = np.vstack([rows, np.tile(self._stop_row, (missing, 1))])
            rows[step.unfilled_rows] = self._stop_row
        return Masks(rows, step.row_indices, errors, time.perf_counter() - started, results)

    # -- sessions --------------------------------------------------------------------------------------------------

    def _restore(self, deadline: float) -> None:
        """Replaces the session by a new one in which every sequence stands where it stood.

        Raises:
            UnavailableError: ``deadline`` passed. Others: the daemon answered, and refused for good.
        """
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                self._ledger.refuse(self._lease.renew(self._ledger.specs()))
                standing = self._ledger.standing()
                failed = self._lease.replay(standing)
                self._ledger.fail(failed)
                self._ledger.stand_again(standing.keys() - failed.keys())
                return
            except MAY_COME_BACK as error:
                if time.monotonic() + delay > deadline or self._ending.wait(delay):
                    self._lease.drop()
                    raise UnavailableError(f"no session with maskd: {error}") from error
            delay = min(2 * delay, _LAST_DELAY_SECONDS)

    def _await_session(self, broken: Session | None, deadline: float, error: MaskdError) -> None:
        """Returns when there may be another session than ``broken``: makes it, unless ``collect`` is about to."""
        with self._lock:
            if broken is self._lease.session and self._step is None:
                self._restore(deadline)
                return
        if time.monotonic() > deadline:
            raise UnavailableError(f"no session with maskd: {error}") from error
        time.sleep(_FIRST_DELAY_SECONDS)

    def _deadline(self) -> float:
        return time.monotonic() + self._restore_seconds
