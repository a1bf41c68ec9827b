"""The sequences of one session, and what a step does to them. Pure: no sockets, no shared memory, no clock.

``SequenceTable.step`` is the one implementation of a step, for every transport. It never raises for an item: whatever
goes wrong with one sequence is the status of its result, its state is what it was, and its neighbours are served.
Owns: the token history of every sequence (``rollback`` is checked against it, ``undo`` restores from it).
Knows nothing about: how items and results are encoded, where the rows live.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskd import _shm
from maskd.backends.base import BatchFill, Grammar, Matcher
from maskd.bitmask import row_of
from maskd.errors import BackendError
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Status

__all__ = ["HeldGrammar", "Rows", "SequenceTable"]

_WANT_FORCED = 1
_TERMINATED, _ACCEPTING, _ALL_ALLOWED = 1, 2, 4
_ROW_EMPTY = 1
_ADVANCE = int(Action.ADVANCE)
_NOTHING: tuple[int, ...] = ()


class Rows:
    """The rows of one cell, as the table writes them.

    Args:
        block: (row_capacity, row_stride_words) int32, C-contiguous, writable; the caller's.
    """

    __slots__ = ("address", "block", "row", "stride_words")

    def __init__(self, block: NDArray[np.int32]) -> None:
        self.block = block
        self.address: int = block.ctypes.data
        self.stride_words: int = block.shape[1]
        self.row: list[NDArray[np.int32]] = list(block)


@dataclass(frozen=True)
class HeldGrammar:
    """A grammar that a session holds, with what the step needs of it at hand."""

    grammar_id: int
    grammar: Grammar
    stop_token_ids: frozenset[int]
    stop_bytes: bytes
    batch: BatchFill | None

    @classmethod
    def of(cls, grammar_id: int, grammar: Grammar, batch: BatchFill | None) -> HeldGrammar:
        """Returns ``grammar`` with its stop ids packed; ``batch`` is its backend if that fills in batches."""
        stop = grammar.stop_token_ids
        return cls(grammar_id, grammar, stop, np.array(sorted(stop), dtype=np.int32).tobytes(), batch)


class _Sequence:
    """One sequence: its matcher, and every token that the matcher accepted."""

    __slots__ = ("batch", "history", "mark", "matcher", "seen_in", "stop_bytes", "stop_token_ids", "terminated")

    def __init__(self, matcher: Matcher, like: HeldGrammar | _Sequence, mark: int) -> None:
        self.matcher = matcher
        self.mark = mark
        self.history: list[int] = []
        self.terminated = False
        self.stop_token_ids: frozenset[int] = like.stop_token_ids
        self.stop_bytes: bytes = like.stop_bytes
        self.batch: BatchFill | None = like.batch
        self.seen_in = -1

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

    def __len__(self) -> int:
        return len(self._sequences)

    def step(self, number: int, items: Seq[_shm.ItemTuple], rows: Rows) -> list[_shm.ResultTuple]:
        """Does what ``items`` say, fills ``rows``, and returns one result tuple an item, in order.

        Items with one row and no drafts are filled together at the end, in one native call where the backend has one.
        The row of an item that failed or terminated allows the stop tokens only: an engine that overlooks the status
        ends the sequence instead of going on without a mask.
        """
        results: list[_shm.ResultTuple] = []
        pending: list[tuple[int, int, _Sequence, _Effect | None]] = []  # (index of its result, row, sequence, effect)
        sequences, marker = self._sequences, self._marker
        for at, item in enumerate(items):
            status, sequence_id, action, flags, _, _, rollback, row, accept, drafts, _, _ = item
            sequence = sequences.get(sequence_id)
            if not (
                sequence is None or status or action or flags or rollback or drafts or row < 0 or len(accept) != 1 or sequence.terminated
                or sequence.seen_in == number or accept[0] in sequence.stop_token_ids
            ):  # fmt: skip  # the short way of nearly every item; the long way gives the same answer
                sequence.seen_in = number
                marker[1] = sequence.mark
                try:
                    accepted = sequence.matcher.accept(accept)
                except BackendError:
                    results.append(self._close_broken(item, rows))
                    continue
                if accepted:
                    sequence.history.append(accept[0])
                    pending.append((at, row, sequence, None))
                    results.append((sequence_id, 0, 0, row, 1, 1, len(sequence.history), _NOTHING, -1, 0))
                else:
                    results.append(self._failed(item, _ItemFailed(Status.TOKEN_REJECTED, 0, accept[0]), rows))
                continue
            try:
                result, deferred = self._item(number, item, rows)
            except _ItemFailed as failure:
                result = self._failed(item, failure, rows)
            except _Broken:
                result = self._close_broken(item, rows)
            else:
                if deferred is not None:
                    pending.append((at, row, deferred.sequence, deferred))
            results.append(result)
        if pending:
            self._fill_pending(items, pending, rows, results)
        return results

    # -- one item, in full -----------------------------------------------------------------------------------------

    def _item(self, number: int, item: _shm.ItemTuple, rows: Rows) -> tuple[_shm.ResultTuple, _Effect | None]:
        """Runs one item. Returns its result and, if its one row is still to be filled, what it did."""
        status, sequence_id, action, flags, grammar_id, source_id, rollback, row, accept, drafts, index, value = item
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
                deferred = row >= 0 and not drafts and not flags
                if row >= 0 and not deferred:
                    row_count, flags_out = self._draft_rows(sequence, row, drafts, rows)
                if flags & _WANT_FORCED:
                    forced = self._forced(sequence)
        except _ItemFailed:
            self._take_back(_Effect(sequence_id, sequence, accepted, undone, created))
            raise
        if created:
            self._sequences[sequence_id] = sequence
        row_count += deferred
        result = (sequence_id, 0, flags_out, row if row_count else NO_ROW, row_count, accepted, len(sequence.history), forced, -1, 0)
        return result, _Effect(sequence_id, sequence, accepted, undone, created) if deferred else None

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
                return _Sequence(held.grammar.matcher(), held, mark)
            source = self._sequences.get(source_id)
            if source is None:
                raise _ItemFailed(Status.SEQUENCE_NOT_FOUND, value=source_id)
            fork = _Sequence(source.matcher.fork(), source, source.mark)
        except BackendError:
            raise _ItemFailed(Status.BACKEND_FAILED, value=1) from None
        fork.history = source.history.copy()
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
        position = len(sequence.history) if sequence else 0
        flags = _TERMINATED if sequence and sequence.terminated else 0
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
        """Walks the drafts: fill, accept one, fill, ..., and back: (rows filled, flags of the first).

        Rows behind a refused draft allow the stop tokens only; the engine drops these positions anyway.
        """
        before, flags_out, row_count = len(sequence.history), 0, 0
        try:
            for position in range(len(drafts) + 1):
                flags = self._fill(sequence, rows, row + position)
                if position == 0:
                    flags_out = flags & self._row_flags
                row_count += 1
                if position == len(drafts) or not sequence.accept(drafts[position : position + 1]) or sequence.terminated:
                    break
        finally:
            sequence.rollback(len(sequence.history) - before)
        self._stop_rows(rows, row + row_count, 1 + len(drafts) - row_count)
        return row_count, flags_out

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
        items: Seq[_shm.ItemTuple],
        pending: list[tuple[int, int, _Sequence, _Effect | None]],
        rows: Rows,
        results: list[_shm.ResultTuple],
    ) -> None:
        """Fills the rows that are left, in one native call a backend where there is one, and completes their results."""
        failed: list[tuple[int, _Sequence, _Effect | None, Status]] = []
        numbers = [entry[1] for entry in pending]
        singles = pending
        if len(pending) > 1:
            groups = {entry[2].batch for entry in pending}
            singles = []
            for batch in groups:
                entries = pending if len(groups) == 1 else [entry for entry in pending if entry[2].batch is batch]
                if batch is None or len(entries) == 1:
                    singles += entries
                    continue
                self._marker[1] = self._mark_base  # grammar 0: several
                try:
                    batch.fill_bitmasks([entry[2].matcher for entry in entries], rows.block, [entry[1] for entry in entries])
                except BackendError:  # one of them failed: find out which, and serve the others
                    singles += entries
        row_of_number = rows.row
        for at, row, sequence, effect in singles:
            self._marker[1] = sequence.mark
            try:
                sequence.matcher.fill_bitmask(row_of_number[row])
            except BackendError:
                failed.append((at, sequence, effect, Status.BACKEND_FAILED))
                row_of_number[row][:] = self._stop_row
        flags = _shm.finish_rows(rows.address, rows.stride_words, self._token_count, numbers, [entry[2].stop_bytes for entry in pending])
        for (at, _, sequence, effect), flag in zip(pending, flags, strict=True):
            if not flag:
                continue
            if flag & _ROW_EMPTY:
                failed.append((at, sequence, effect, Status.NO_TOKEN_ALLOWED))
            elif flag & self._row_flags:
                result = results[at]
                results[at] = (*result[:2], flag & self._row_flags, *result[3:])
        for at, sequence, effect, status in failed:
            item = items[at]
            try:
                self._take_back(effect or _Effect(item[1], sequence, 1, _NOTHING, created=False))
                results[at] = self._failed(item, _ItemFailed(status), rows)
            except _Broken:
                results[at] = self._close_broken(item, rows)
