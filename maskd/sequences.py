"""The sequences of one session, and what a step does to them. Pure: no sockets, no shared memory, no clock.

``SequenceTable.step`` is the one implementation of a step, for every transport. It never raises for an item: whatever
goes wrong with one sequence is the status of its result, its state is what it was, and its neighbours are served.
Owns: the token history of every sequence (``rollback`` is checked against it, ``undo`` restores from it).
Knows nothing about: how items and results are encoded, where the rows live.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskd import _shm
from maskd.backends.base import Advance, BatchFill, Grammar, Matcher
from maskd.bitmask import row_of
from maskd.errors import BackendError
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Status

__all__ = ["HeldGrammar", "Rows", "SequenceTable", "item_of"]

_WANT_FORCED = 1
_TERMINATED, _ACCEPTING, _ALL_ALLOWED = 1, 2, 4
_ROW_EMPTY = 1
_ADVANCE = int(Action.ADVANCE)
_NOTHING: tuple[int, ...] = ()
_NO_SEQUENCES: dict[int, _Sequence] = {}
_STEPS_TIMED = 16
"""After a slow step, items are run and timed one by one for so many steps."""


def item_of(batch: _shm.Batch, at: int) -> _shm.ItemTuple:
    """Returns item ``at`` of ``batch`` in full."""
    ids, tokens, rows, others = batch
    return others.get(at) or (0, ids[at], _ADVANCE, 0, 0, 0, 0, rows[at], (tokens[at],), _NOTHING, -1, 0)


def _out_of_the_ordinary(token_id: int, row_address: int, row_bytes: int) -> int:
    """Stands in for ``Advance.advance`` where that must not be called."""
    return 0


class Rows:
    """The rows of one cell, as the table writes them.

    Args:
        block: (row_capacity, row_stride_words) int32, C-contiguous, writable; the caller's.
    """

    __slots__ = ("address", "block", "row", "row_address", "stride_words")

    def __init__(self, block: NDArray[np.int32]) -> None:
        self.block = block
        self.address: int = block.ctypes.data
        self.stride_words: int = block.shape[1]
        self.row: list[NDArray[np.int32]] = list(block)
        self.row_address = [self.address + at * block.strides[0] for at in range(len(block))]


@dataclass(frozen=True)
class HeldGrammar:
    """A grammar that a session holds, with what the step needs of it at hand."""

    grammar_id: int
    grammar: Grammar
    stop_token_ids: frozenset[int]
    stop_bytes: bytes
    batch: BatchFill | None
    slow: bool

    @classmethod
    def of(cls, grammar_id: int, grammar: Grammar, batch: BatchFill | None, *, slow: bool = False) -> HeldGrammar:
        """Returns ``grammar`` with its stop ids packed; ``batch`` is its backend if that fills in batches; the rows of a
        ``slow`` one are made in the slow lane."""
        stop = grammar.stop_token_ids
        return cls(grammar_id, grammar, stop, np.array(sorted(stop), dtype=np.int32).tobytes(), batch, slow)


class _Sequence:
    """One sequence: its matcher, and every token that the matcher accepted."""

    __slots__ = ("advance", "batch", "history", "late", "mark", "matcher", "seen_in", "slow", "stop_bytes", "stop_token_ids", "terminated")

    def __init__(self, matcher: Matcher, like: HeldGrammar | _Sequence, mark: int) -> None:
        self.matcher = matcher
        self.mark = mark
        self.history: list[int] = []
        self.terminated = False
        self.stop_token_ids: frozenset[int] = like.stop_token_ids
        self.stop_bytes: bytes = like.stop_bytes
        self.batch: BatchFill | None = like.batch
        self.slow = False
        self.late: _Late | None = None
        self.seen_in = -1
        self.advance = matcher.advance if isinstance(matcher, Advance) else None

    def set_slow(self) -> None:
        """From now on its items run in the lane."""
        self.slow, self.advance = True, _out_of_the_ordinary

    def take(self, token_id: int) -> int:
        """``Advance.advance`` of a matcher that has none: accepts a token that does not terminate."""
        return 0 if self.terminated or token_id in self.stop_token_ids else self.matcher.accept((token_id,))

    def rollback(self, token_count: int) -> list[int]:
        """Undoes the last tokens and returns them."""
        if not token_count:
            return []
        try:
            self.matcher.rollback(token_count)
        except BackendError:
            raise _Broken from None
        undone = self.history[-token_count:]
        del self.history[-token_count:]
        self.terminated = False
        return undone

    def accept(self, token_ids: Seq[int]) -> int:
        """Accepts the longest allowed prefix and returns its length."""
        try:
            accepted = self.matcher.accept(token_ids)
        except BackendError:
            raise _Broken from None
        self.history.extend(token_ids[:accepted])
        if accepted and token_ids[accepted - 1] in self.stop_token_ids:
            self.terminated = self.matcher.is_terminated
        return accepted


@dataclass(frozen=True, slots=True)
class _Effect:
    """What an item did to its sequence, so that it can be taken back when the row cannot be made."""

    sequence_id: int
    sequence: _Sequence
    accepted: int
    undone: Seq[int]
    created: bool


class LateWork(Protocol):
    """What a slow lane is doing; ``outcome`` and ``error`` are good once ``wait`` said so."""

    outcome: Any
    error: BaseException | None

    def wait(self, seconds: float) -> bool: ...


class Lane(Protocol):
    """Where slow items run, off the data path."""

    def start(self, job: Callable[[], Any], mark: int) -> LateWork: ...


@dataclass(frozen=True, slots=True)
class _Late:
    """A slow item under way, or done: its work and its rows, the drafts and whether it has rows at all, the position before
    it, and whether it opened its sequence."""

    work: LateWork
    rows: Rows
    drafts: tuple[int, ...]
    has_row: bool
    position: int
    created: bool


class _ItemFailed(Exception):
    """Ends an item: status and details of its result."""

    def __init__(self, status: Status, index: int = -1, value: int = 0, accepted: int = 0) -> None:
        super().__init__(status)
        self.status, self.index, self.value, self.accepted = status, index, value, accepted


class _Broken(Exception):
    """The matcher cannot be trusted any more: the sequence is closed."""


class SequenceTable:
    """The sequences of one session.

    Args:
        token_count: ids of the tokenizer; bits from here on are cleared in every row.
        vocab_size: width of the logits.
        stop_token_ids: of the vocabulary, for the row that failed and terminated items get.
        sequence_capacity: sequences open at a time.
        marker: two words: the second gets what is computed, for ``maskd.marker``.
        session_id: for the marker.
        lane: where slow items run; None = on the caller's thread like all others.
        row_seconds: a step waits so long for its slow items; sequences whose masks take longer become slow.
        forced_limit: forced tokens looked for per item.
    """

    def __init__(
        self,
        token_count: int,
        vocab_size: int,
        stop_token_ids: Seq[int],
        sequence_capacity: int,
        marker: memoryview | None = None,
        session_id: int = 0,
        lane: Lane | None = None,
        row_seconds: float = 0.02,
        forced_limit: int = 16,
    ) -> None:
        self.grammars: dict[int, HeldGrammar] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._token_count = token_count
        self._stop_row = row_of(stop_token_ids, vocab_size)
        self._row_flags = _ACCEPTING | (_ALL_ALLOWED if token_count == vocab_size else 0)  # padding is never allowed
        self._scratch = Rows(np.zeros((1, len(self._stop_row)), dtype=np.int32))
        self._capacity = sequence_capacity
        self._forced_limit = forced_limit
        self._marker = marker if marker is not None else memoryview(bytearray(16)).cast("Q")
        self._mark_base = session_id << 32
        self._lane = lane
        self._row_seconds = row_seconds
        self._deadline = 0.0
        self._slow_entries: list[tuple[int, _Sequence, _Late]] = []  # (index of its result, ...)
        self._steps_to_time = 0
        self._slow_marks: set[int] = set()

    def __len__(self) -> int:
        return len(self._sequences)

    def step(self, number: int, batch: _shm.Batch, rows: Rows) -> list[int | _shm.ResultTuple]:
        """Does what the items of ``batch`` say, fills ``rows``, and returns one result an item, in order: its position if it is
        plain and went well without flags, else a tuple.

        Items with one row and no drafts are filled together at the end, in one native call where the backend has one.
        The row of an item that failed or terminated allows the stop tokens only: an engine that overlooks the status
        ends the sequence instead of going on without a mask.
        """
        results: list[int | _shm.ResultTuple] = []
        pending: list[tuple[int, int, _Sequence, _Effect | None]] = []  # (index of its result, row, sequence, effect)
        filled: list[tuple[int, int, _Sequence, _Effect | None]] = []
        ids, tokens, row_numbers, _ = batch
        marker, timed = self._marker, self._steps_to_time > 0
        find = _NO_SEQUENCES.get if timed else self._sequences.get
        row_address, row_bytes, mark = rows.row_address, 4 * rows.stride_words, -1
        self._steps_to_time -= timed
        self._deadline = time.perf_counter() + self._row_seconds
        for sequence, token_id, row in zip(map(find, ids), tokens, row_numbers, strict=True):
            if sequence is not None:  # the short way of nearly every item; the long way gives the same answer
                if sequence.mark != mark:
                    marker[1] = mark = sequence.mark
                advance = sequence.advance
                try:
                    done = advance(token_id, row_address[row], row_bytes) if advance else sequence.take(token_id)
                except BackendError:
                    results.append(self._close_broken(item_of(batch, len(results)), rows))
                    continue
                if done:
                    history = sequence.history
                    history.append(token_id)
                    (filled if done == 2 else pending).append((len(results), row, sequence, None))
                    results.append(len(history))
                    continue
            at, mark = len(results), -1
            item = item_of(batch, at)
            try:
                result, deferred = self._item(number, at, item, rows)
            except _ItemFailed as failure:
                result = self._failed(item, failure, rows)
            except _Broken:
                result = self._close_broken(item, rows)
            else:
                if deferred is not None:
                    pending.append((at, item[7], deferred.sequence, deferred))
            results.append(result)
        if pending or filled:
            self._fill_pending(batch, pending, filled, rows, results, timed=timed)
        if self._lane is not None and not self._steps_to_time and time.perf_counter() > self._deadline:
            self._steps_to_time = _STEPS_TIMED  # somebody was slow: find out who
        if self._slow_entries:
            self._collect_slow(batch, rows, results)
        return results

    # -- one item, in full -----------------------------------------------------------------------------------------

    def _item(self, number: int, at: int, item: _shm.ItemTuple, rows: Rows) -> tuple[_shm.ResultTuple, _Effect | None]:
        """Runs one item. Returns its result and, if its one row is still to be filled, what it did."""
        status, sequence_id, action, _, grammar_id, source_id, _, row, _, drafts, index, value = item
        if status:
            raise _ItemFailed(Status(status), index, value)
        created = action in (Action.OPEN, Action.FORK)
        sequence = self._create(sequence_id, action, grammar_id, source_id) if created else self._known(sequence_id, number)
        sequence.seen_in = number
        self._marker[1] = sequence.mark
        if action == Action.CLOSE:
            self._stop_rows(rows, row, 1 + len(drafts))
            del self._sequences[sequence_id]
            return (sequence_id, 0, 0, NO_ROW, 0, 0, len(sequence.history), _NOTHING, -1, 0), None
        if sequence.slow:
            return self._slow_item(at, item, sequence, created), None
        started = time.thread_time() if self._steps_to_time else -1.0
        result, effect = self._run(item, sequence, created, row, rows, may_defer=True)
        if started >= 0:
            self._judge(sequence, started)
        if created:
            self._sequences[sequence_id] = sequence
        return result, effect

    def _run(
        self, item: _shm.ItemTuple, sequence: _Sequence, created: bool, row: int, rows: Rows, *, may_defer: bool
    ) -> tuple[_shm.ResultTuple, _Effect | None]:
        """Rolls back, accepts, fills. All or nothing. Touches this sequence only, so the slow lane may run it."""
        _, sequence_id, _, flags, _, _, rollback, _, accept, drafts, _, _ = item
        count = len(sequence.history) if rollback == ROLLBACK_ALL else rollback
        if count > len(sequence.history):
            raise _ItemFailed(Status.ROLLBACK_TOO_FAR, value=len(sequence.history))
        undone, accepted = sequence.rollback(count), 0
        row_count, flags_out, forced, deferred = 0, 0, _NOTHING, False
        try:
            self._accept(sequence, accept)
            accepted = len(accept)
            if sequence.terminated:
                self._stop_rows(rows, row, 1 + len(drafts))
                flags_out = _TERMINATED
            else:
                deferred = may_defer and row >= 0 and not drafts and not flags
                if row >= 0 and not deferred:
                    row_count, flags_out = self._draft_rows(sequence, row, drafts, rows)
                if flags & _WANT_FORCED and may_defer:
                    forced = self._forced(sequence)
        except _ItemFailed:
            if not created:
                self._take_back(_Effect(sequence_id, sequence, accepted, undone, created))
            raise
        row_count += deferred
        result = (sequence_id, 0, flags_out, row if row_count else NO_ROW, row_count, accepted, len(sequence.history), forced, -1, 0)
        return result, _Effect(sequence_id, sequence, accepted, undone, created) if deferred else None

    # -- slow items ------------------------------------------------------------------------------------------------

    def _slow_item(self, at: int, item: _shm.ItemTuple, sequence: _Sequence, created: bool) -> _shm.ResultTuple:
        """Has an item run in the lane, into rows of its own: they may come after their cell is used again. ``_collect_slow``
        puts the result in place of the one returned here.

        An item without tokens, after a late one, asks for what the late one came to.
        """
        assert self._lane is not None
        _, sequence_id, _, _, _, _, rollback, row, accept, drafts, _, _ = item
        late = sequence.late
        if late is not None:
            if not self._wait_for(late):
                raise _ItemFailed(Status.STEP_DEADLINE, value=int(self._row_seconds * 1e6))
            sequence.late = None
        asks_again = late is not None and not rollback and not accept and drafts in (_NOTHING, late.drafts) and (row < 0 or late.has_row)
        if late is None or not (asks_again or late.work.error is not None):
            rows = Rows(np.zeros((1 + len(drafts), len(self._stop_row)), dtype=np.int32))
            position = len(sequence.history)
            own_row = 0 if row >= 0 else NO_ROW
            work = self._lane.start(lambda: self._run(item, sequence, created, own_row, rows, may_defer=False), sequence.mark)
            late = _Late(work, rows, drafts, row >= 0, position, created)
        if created:
            self._sequences[sequence_id] = sequence
        self._slow_entries.append((at, sequence, late))
        return (sequence_id, 0, 0, NO_ROW, 0, 0, late.position, _NOTHING, -1, 0)

    def _wait_for(self, late: _Late) -> bool:
        """Waits for late work until the deadline. Whoever waits is not busy: a hang in the lane is the lane's."""
        self._marker[0] += 1
        try:
            return late.work.wait(self._deadline - time.perf_counter())
        finally:
            self._marker[0] += 1

    def _judge(self, sequence: _Sequence, started: float) -> None:
        """Sends a sequence, and all others of its grammar, to the lane if it was too slow just now.

        By the processor's time: on a busy machine, a thread that had to wait for a core says nothing about the grammar.
        """
        if self._lane is not None and time.thread_time() - started > self._row_seconds:
            sequence.set_slow()
            self._slow_marks.add(sequence.mark)

    def _collect_slow(self, batch: _shm.Batch, rows: Rows, results: list[int | _shm.ResultTuple]) -> None:
        """Takes the slow items that are done by the deadline; the others go on, and are asked for again."""
        for at, sequence, late in self._slow_entries:
            item = item_of(batch, at)
            sequence_id, row, wanted = item[1], item[7], 1 + len(item[9])
            if not self._wait_for(late):
                sequence.late = late
                results[at] = self._failed(item, _ItemFailed(Status.STEP_DEADLINE, value=int(self._row_seconds * 1e6)), rows)
                continue
            try:
                if late.work.error is not None:
                    raise late.work.error
                (_, _, flags, _, row_count, *tail), _ = late.work.outcome
                row_count = min(row_count, wanted) if row >= 0 else 0
                if row >= 0:
                    rows.block[row : row + row_count] = late.rows.block[:row_count]
                    self._stop_rows(rows, row + row_count, wanted - row_count)
                results[at] = (sequence_id, 0, flags, row if row_count else NO_ROW, row_count, *tail)
            except _ItemFailed as failure:
                if late.created:
                    self._sequences.pop(sequence_id, None)
                results[at] = self._failed(item, failure, rows)
            except _Broken:
                results[at] = self._close_broken(item, rows)
        self._slow_entries.clear()

    def _known(self, sequence_id: int, number: int) -> _Sequence:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            raise _ItemFailed(Status.SEQUENCE_NOT_FOUND, value=sequence_id)
        if sequence.seen_in == number:
            raise _ItemFailed(Status.SEQUENCE_EXISTS, value=sequence_id)
        return sequence

    def _create(self, sequence_id: int, action: int, grammar_id: int, source_id: int) -> _Sequence:
        if sequence_id in self._sequences:
            raise _ItemFailed(Status.SEQUENCE_EXISTS, value=sequence_id)
        if len(self._sequences) >= self._capacity:
            raise _ItemFailed(Status.SEQUENCE_CAPACITY, value=self._capacity)
        try:
            if action == Action.OPEN:
                held = self.grammars.get(grammar_id)
                if held is None:
                    raise _ItemFailed(Status.GRAMMAR_NOT_FOUND, value=grammar_id)
                self._marker[1] = mark = self._mark_base | held.grammar_id
                sequence = _Sequence(held.grammar.matcher(), held, mark)
                if self._lane is not None and (held.slow or mark in self._slow_marks):
                    sequence.set_slow()
                return sequence
            source = self._sequences.get(source_id)
            if source is None:
                raise _ItemFailed(Status.SEQUENCE_NOT_FOUND, value=source_id)
            if source.late is not None and not self._wait_for(source.late):
                raise _ItemFailed(Status.STEP_DEADLINE, value=int(self._row_seconds * 1e6))
            fork = _Sequence(source.matcher.fork(), source, source.mark)
        except BackendError:
            raise _ItemFailed(Status.BACKEND_FAILED, value=1) from None
        fork.history = source.history.copy()
        if source.slow:
            fork.set_slow()
        fork.terminated = source.terminated
        return fork

    @staticmethod
    def _accept(sequence: _Sequence, accept: tuple[int, ...]) -> None:
        """Accepts all or none."""
        if not accept:
            return
        if sequence.terminated:
            raise _ItemFailed(Status.SEQUENCE_TERMINATED, value=len(sequence.history))
        accepted = sequence.accept(accept)
        if accepted < len(accept):
            status = Status.SEQUENCE_TERMINATED if sequence.terminated else Status.TOKEN_REJECTED
            value = len(sequence.history) if sequence.terminated else accept[accepted]
            sequence.rollback(accepted)
            raise _ItemFailed(status, accepted, value, accepted)

    def _take_back(self, effect: _Effect) -> None:
        """Puts a sequence to where it stood before its item; a sequence that the item created is dropped."""
        if effect.created:
            self._sequences.pop(effect.sequence_id, None)
            return
        effect.sequence.rollback(effect.accepted)
        if effect.undone and effect.sequence.accept(effect.undone) != len(effect.undone):
            raise _Broken

    def _failed(self, item: _shm.ItemTuple, failure: _ItemFailed, rows: Rows) -> _shm.ResultTuple:
        sequence_id, sequence = item[1], self._sequences.get(item[1])
        if item[0] in (0, Status.TOKEN_OUT_OF_RANGE):  # the row numbers of a malformed item mean nothing
            self._stop_rows(rows, item[7], 1 + len(item[9]))
        late = sequence.late if sequence else None  # the lane is at work on the history
        position = late.position if late else len(sequence.history) if sequence else 0
        flags = _TERMINATED if sequence and not late and sequence.terminated else 0
        return (sequence_id, int(failure.status), flags, NO_ROW, 0, failure.accepted, position, _NOTHING, failure.index, failure.value)

    def _close_broken(self, item: _shm.ItemTuple, rows: Rows) -> _shm.ResultTuple:
        """Closes a sequence whose matcher failed in a way that leaves no known state."""
        result = self._failed(item, _ItemFailed(Status.BACKEND_FAILED, value=1), rows)
        self._sequences.pop(item[1], None)
        return result

    # -- rows ------------------------------------------------------------------------------------------------------

    def _stop_rows(self, rows: Rows, row: int, count: int) -> None:
        if row >= 0:
            rows.block[row : row + count] = self._stop_row

    def _draft_rows(self, sequence: _Sequence, row: int, drafts: tuple[int, ...], rows: Rows) -> tuple[int, int]:
        """Walks the drafts: fill, accept one, fill, ..., and back: (rows filled, flags of the first). Touches the matcher only.

        Rows behind a refused draft allow the stop tokens only; the engine drops these positions anyway.
        """
        matcher, walked, flags_out, row_count = sequence.matcher, 0, 0, 0
        try:
            for position in range(len(drafts) + 1):
                flags = self._fill(sequence, rows, row + position)
                if position == 0:
                    flags_out = flags & self._row_flags
                row_count += 1
                if position == len(drafts) or not matcher.accept(drafts[position : position + 1]):
                    break
                walked += 1
                if matcher.is_terminated:
                    break
            if walked:
                matcher.rollback(walked)
        except _ItemFailed:
            self._walk_back(matcher, walked)
            raise
        except BackendError:
            raise _Broken from None
        self._stop_rows(rows, row + row_count, 1 + len(drafts) - row_count)
        return row_count, flags_out

    @staticmethod
    def _walk_back(matcher: Matcher, walked: int) -> None:
        try:
            if walked:
                matcher.rollback(walked)
        except BackendError:
            raise _Broken from None

    def _fill(self, sequence: _Sequence, rows: Rows, row: int) -> int:
        """Fills one row and returns its flags. An empty row is a failed item: there is nothing to sample from."""
        try:
            sequence.matcher.fill_bitmask(rows.row[row])
        except BackendError:
            raise _ItemFailed(Status.BACKEND_FAILED) from None
        flags = _shm.finish_rows(rows.address, rows.stride_words, self._token_count, [row], [sequence.stop_bytes])[0]
        if flags & _ROW_EMPTY:
            raise _ItemFailed(Status.NO_TOKEN_ALLOWED)
        return flags

    def _forced(self, sequence: _Sequence) -> tuple[int, ...]:
        """Returns the tokens that are the only ones allowed, one after the other. Works on every backend."""
        before = len(sequence.history)
        try:
            while len(sequence.history) - before < self._forced_limit and not sequence.terminated:
                self._fill(sequence, self._scratch, 0)
                token_id = _shm.only_token(self._scratch.address, self._scratch.stride_words)
                if token_id < 0 or not sequence.accept((token_id,)):
                    break
        except _ItemFailed:  # forced into a dead end: the step that gets there will say so, this is a hint
            pass
        finally:
            forced = sequence.rollback(len(sequence.history) - before)
        return tuple(forced)

    def _fill_pending(
        self,
        batch: _shm.Batch,
        pending: list[tuple[int, int, _Sequence, _Effect | None]],
        filled: list[tuple[int, int, _Sequence, _Effect | None]],
        rows: Rows,
        results: list[int | _shm.ResultTuple],
        *,
        timed: bool,
    ) -> None:
        """Fills the rows that are left, in one native call a backend where there is one, and completes the results of all."""
        failed: list[tuple[int, _Sequence, _Effect | None, Status]] = []
        singles = pending
        if len(pending) > 1 and not timed:
            groups = {entry[2].batch for entry in pending}
            singles = []
            for by in groups:
                entries = pending if len(groups) == 1 else [entry for entry in pending if entry[2].batch is by]
                if by is None or len(entries) == 1:
                    singles += entries
                    continue
                self._marker[1] = self._mark_base  # grammar 0: several
                try:
                    by.fill_bitmasks([entry[2].matcher for entry in entries], rows.block, [entry[1] for entry in entries])
                except BackendError:  # one of them failed: find out which, and serve the others
                    singles += entries
        row_of_number = rows.row
        for at, row, sequence, effect in singles:
            self._marker[1] = sequence.mark
            started = time.thread_time() if timed else 0.0
            try:
                sequence.matcher.fill_bitmask(row_of_number[row])
                if timed:
                    self._judge(sequence, started)
            except BackendError:
                failed.append((at, sequence, effect, Status.BACKEND_FAILED))
                row_of_number[row][:] = self._stop_row
        filled += pending
        flags = _shm.finish_rows(
            rows.address, rows.stride_words, self._token_count, [entry[1] for entry in filled], [entry[2].stop_bytes for entry in filled]
        )
        if flags.count(0) < len(flags):
            for (at, row, sequence, effect), flag in zip(filled, flags, strict=True):
                if flag & _ROW_EMPTY:
                    failed.append((at, sequence, effect, Status.NO_TOKEN_ALLOWED))
                elif flag := flag & self._row_flags:
                    result = results[at]
                    results[at] = (
                        (batch[0][at], 0, flag, row, 1, 1, result, _NOTHING, -1, 0)
                        if isinstance(result, int)
                        else (*result[:2], flag, *result[3:])
                    )
        for at, sequence, effect, status in failed:
            item = item_of(batch, at)
            try:
                self._take_back(effect or _Effect(item[1], sequence, 1, _NOTHING, created=False))
                results[at] = self._failed(item, _ItemFailed(status), rows)
            except _Broken:
                results[at] = self._close_broken(item, rows)
