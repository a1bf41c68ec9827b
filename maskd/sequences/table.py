"""The table: every sequence of a session, and the step that runs the items of a batch on them.

Owns: which sequences are open, and the rows that are filled together. Knows nothing about: how one item runs
    (``item``), how slow
items are waited for (``late``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import structlog

from maskd import _shm
from maskd.errors import BackendError
from maskd.sequences.fill import RowMaker
from maskd.sequences.item import Effect, run_item
from maskd.sequences.late import Lane, SlowItems
from maskd.sequences.rows import ROW_EMPTY, TERMINATED, Rows
from maskd.sequences.sequence import NOTHING, Broken, HeldGrammar, ItemFailed, Sequence
from maskd.step import NO_ROW, Action, LateIndex, Status

__all__ = ["SequenceTable", "item_of"]

_ADVANCE, _FORK = int(Action.ADVANCE), int(Action.FORK)
_log = structlog.get_logger()
_NO_SEQUENCES: dict[int, Sequence] = {}


def item_of(batch: _shm.Batch, at: int) -> _shm.ItemTuple:
    """Returns item ``at`` of ``batch`` in full."""
    ids, tokens, rows, others = batch
    return others.get(at) or (0, ids[at], _ADVANCE, 0, 0, 0, 0, rows[at], (tokens[at],), NOTHING, -1, 0)


class SequenceTable:
    """The sequences of one session.

    Args:
        token_count: ids of the tokenizer; bits from here on are cleared in every row.
        vocab_size: width of the logits.
        stop_token_ids: of the vocabulary, for the row that failed and terminated items get.
        sequence_capacity: sequences open at a time.
        marker: two words: the second gets what is computed, for ``maskd.ipc.marker``.
        number: of the session, below 2**32, for the marker.
        lane: where slow items run; None = on the caller's thread like all others.
        row_seconds: a step waits so long for its slow items; sequences whose masks take longer become slow.
        forced_limit: forced tokens looked for per item.

    Attributes:
        number: as given.
        grammars: those that sequences may be opened with, by id; the caller's to change.
    """

    def __init__(
        self,
        token_count: int,
        vocab_size: int,
        stop_token_ids: Seq[int],
        sequence_capacity: int,
        marker: memoryview | None = None,
        number: int = 0,
        lane: Lane | None = None,
        row_seconds: float = 0.02,
        forced_limit: int = 16,
    ) -> None:
        self.grammars: dict[int, HeldGrammar] = {}
        self._sequences: dict[int, Sequence] = {}
        self._capacity = sequence_capacity
        self._marker = marker if marker is not None else memoryview(bytearray(16)).cast("Q")
        self.number = number
        self._mark_base = number << 32
        self._maker = RowMaker(token_count, vocab_size, stop_token_ids, forced_limit)
        self._slow = SlowItems(lane, row_seconds, self._maker, self._marker, self._mark_base)
        self._not_begun: set[int] = set()
        """Sequences with an item in this step that is to be sent again: what comes behind it must not overtake it."""

    def __len__(self) -> int:
        return len(self._sequences)

    def close(self) -> None:
        """Ends all sequences; what the lane has not begun for them is left out. Nothing may be stepped afterwards."""
        for sequence in self._sequences.values():
            if sequence.late is not None:
                sequence.late.work.cancel()
        self._sequences.clear()

    def drop_grammar(self, grammar_id: int) -> None:
        """Lets go of a grammar, and of its alternate. Sequences that use them keep them. Safe to repeat."""
        held = self.grammars.pop(grammar_id, None)
        if held is not None and held.alternate is not None:
            self.grammars.pop(held.alternate.grammar_id, None)

    def step(self, number: int, batch: _shm.Batch, rows: Rows) -> list[int | _shm.ResultTuple]:
        """Does what the items of ``batch`` say, fills ``rows``, and returns one result an item, in order: its position
        if it is
        plain and went well without flags, else a tuple.

        Items with one row and no drafts are filled together at the end, in one native call where the backend has one.
        The row of an item that failed or terminated allows the stop tokens only: an engine that overlooks the status
        ends the sequence instead of going on without a mask.
        """
        results: list[int | _shm.ResultTuple] = []
        pending: list[tuple[int, int, Sequence, Effect | None]] = []  # (index of its result, row, sequence, effect)
        filled: list[tuple[int, int, Sequence, Effect | None]] = []
        ids, tokens, row_numbers, _ = batch
        marker, timed = self._marker, self._slow.begin_step()
        find = _NO_SEQUENCES.get if timed else self._sequences.get
        row_address, row_bytes, mark, count = rows.row_address, 4 * rows.stride_words, -1, marker[0]
        for sequence, token_id, row in zip(map(find, ids), tokens, row_numbers, strict=True):
            if sequence is not None:  # the short way of nearly every item; the long way gives the same answer
                marker[0] = count = count + 2
                if sequence.mark != mark:
                    marker[1] = mark = sequence.mark
                advance = sequence.advance
                try:
                    done = advance(token_id, row_address[row], row_bytes) if advance else sequence.take(token_id)
                except BaseException as error:
                    results.append(self._ended(item_of(batch, len(results)), error, rows))
                    continue
                if done:
                    history = sequence.history
                    history.append(token_id)
                    (filled if done == 2 else pending).append((len(results), row, sequence, None))
                    results.append(len(history))
                    continue
            at, mark = len(results), -1
            item = item_of(batch, at)
            if item[2] == _FORK and any(entry[2] is self._sequences.get(item[5]) for entry in (*pending, *filled)):
                # The source stands where its own item leaves it, and that can still fail.
                self._fill_pending(batch, pending, filled, rows, results, timed=timed)
                pending, filled = [], []
            try:
                result, deferred = self._item(number, at, item, rows, timed=timed)
            except BaseException as error:
                result = self._ended(item, error, rows)
            else:
                if deferred is not None:
                    pending.append((at, item[7], deferred.sequence, deferred))
            results.append(result)
            count = marker[0]
        if pending or filled:
            self._fill_pending(batch, pending, filled, rows, results, timed=timed)
        self._slow.end_step()
        if self._slow.entries:
            self._collect_slow(batch, rows, results)
        self._not_begun.clear()
        return results

    # -- one item, in full -----------------------------------------------------------------------------------------

    def _item(
        self, number: int, at: int, item: _shm.ItemTuple, rows: Rows, *, timed: bool
    ) -> tuple[_shm.ResultTuple, Effect | None]:
        """Runs one item. Returns its result and, if its one row is still to be filled, what it did."""
        status, sequence_id, action, *_, row, _, drafts, index, value = item
        if status:
            raise ItemFailed(Status(status), index, value)
        self._next_call()
        if self._not_begun and not self._not_begun.isdisjoint(_read_by(item)):
            raise self._slow.not_begun()
        if action in (Action.OPEN, Action.FORK):
            return self._create(at, item, number, rows)
        sequence = self._known(sequence_id, number)
        sequence.seen_in = number
        self._marker[1] = sequence.mark
        if action == Action.CLOSE:
            self._maker.close(rows, row, 1 + len(drafts))
            if sequence.late is not None:
                sequence.late.work.cancel()
            del self._sequences[sequence_id]
            return (sequence_id, 0, 0, NO_ROW, 0, 0, sequence.position, NOTHING, -1, 0), None
        self._slow.watch(sequence, item)
        if sequence.slow:
            return self._slow.start(at, item, sequence), None
        started = time.thread_time() if timed else 0.0
        result, effect = run_item(item, sequence, False, row, rows, self._maker, self._next_call, may_defer=True)
        if timed:
            self._slow.judge(sequence, started, item)
        return result, effect

    def _known(self, sequence_id: int, number: int) -> Sequence:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=sequence_id)
        if sequence.seen_in == number:
            raise ItemFailed(Status.SEQUENCE_EXISTS, value=sequence_id)
        return sequence

    def _create(self, at: int, item: _shm.ItemTuple, number: int, rows: Rows) -> tuple[_shm.ResultTuple, Effect | None]:
        """Runs an item that opens or forks; see ``_item``. Always timed: a matcher or its copy may cost more than its
        rows."""
        _, sequence_id, action, _, grammar_id, source_id, _, row, *_ = item
        if sequence_id in self._sequences:
            raise ItemFailed(Status.SEQUENCE_EXISTS, value=sequence_id)
        if len(self._sequences) >= self._capacity:
            raise ItemFailed(Status.SEQUENCE_CAPACITY, value=self._capacity)
        source = None
        if action == Action.OPEN:
            held = self.grammars.get(grammar_id)
            if held is None:
                raise ItemFailed(Status.GRAMMAR_NOT_FOUND, value=grammar_id)
            sequence = Sequence(held, self._mark_base | held.grammar_id)
        else:
            source = self._sequences.get(source_id)
            if source is None:
                raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=source_id)
            source = self._slow.readable(source)
            sequence = Sequence(source.held, source.mark)
            if source.slow:
                sequence.set_slow()
        self._slow.watch(sequence)
        sequence.seen_in = number
        self._marker[1] = sequence.mark
        effect = None
        if sequence.slow:
            result = self._slow.create(at, item, sequence, source)
        else:
            started = time.thread_time()
            if source is None:
                sequence.begin()
            else:
                sequence.begin_as_copy(source)
            self._slow.judge(sequence, started)
            self._slow.watch(sequence, item)
            if sequence.slow:
                result = self._slow.start(at, item, sequence)
            else:
                self._next_call()
                started = time.thread_time()
                result, effect = run_item(item, sequence, True, row, rows, self._maker, self._next_call, may_defer=True)
                self._slow.judge(sequence, started, item)
        self._sequences[sequence_id] = sequence
        return result, effect

    def _next_call(self) -> None:
        """Says that the next native call begins: the front counts the time of each for itself."""
        self._marker[0] += 2

    def _collect_slow(self, batch: _shm.Batch, rows: Rows, results: list[int | _shm.ResultTuple]) -> None:
        """Takes the slow items that are done by the deadline; the others go on, and are asked for again."""
        for at, sequence, late in self._slow.entries:
            item = item_of(batch, at)
            try:
                results[at] = self._slow.outcome(item, sequence, late, rows)
                self._sequences[item[1]] = late.sequence
            except BaseException as error:
                if sequence.late is None:  # it is done
                    if late.created:
                        self._sequences.pop(item[1], None)
                    else:
                        self._sequences[item[1]] = late.sequence
                results[at] = self._ended(item, error, rows)
        self._slow.entries.clear()

    def _ended(self, item: _shm.ItemTuple, error: BaseException, rows: Rows) -> _shm.ResultTuple:
        """Returns the result of an item that raised. What a library raises of its own, a panic of Rust among it, is no
        exception that
        a step could know: the state of the matcher is unknown, so its sequence is closed, and no other is concerned."""
        if isinstance(error, ItemFailed):
            return self._failed(item, error, rows)
        if not isinstance(error, Broken | BackendError):
            _log.error("a backend failed in a way of its own", session=self.number, exc_info=error)
        return self._failed(item, ItemFailed(Status.BACKEND_FAILED, value=1, closes=True), rows)

    def _failed(self, item: _shm.ItemTuple, failure: ItemFailed, rows: Rows) -> _shm.ResultTuple:
        sequence_id, sequence = item[1], self._sequences.get(item[1])
        if failure.status == Status.STEP_DEADLINE and failure.index == LateIndex.NOT_BEGUN:
            self._not_begun.update(_read_by(item))
        if item[0] in (0, Status.TOKEN_OUT_OF_RANGE):  # the row numbers of a malformed item mean nothing
            self._maker.close(rows, item[7], 1 + len(item[9]))
        position = sequence.position if sequence else 0
        flags = TERMINATED if sequence and not sequence.late and sequence.terminated else 0
        if failure.closes:
            self._sequences.pop(sequence_id, None)
        return (
            sequence_id,
            int(failure.status),
            flags,
            NO_ROW,
            0,
            failure.accepted,
            position,
            NOTHING,
            failure.index,
            failure.value,
        )

    # -- rows ------------------------------------------------------------------------------------------------------

    def _fill_pending(
        self,
        batch: _shm.Batch,
        pending: list[tuple[int, int, Sequence, Effect | None]],
        filled: list[tuple[int, int, Sequence, Effect | None]],
        rows: Rows,
        results: list[int | _shm.ResultTuple],
        *,
        timed: bool,
    ) -> None:
        """Fills the rows that are left, in one native call a backend where there is one, and completes the results of
        all."""
        failed: list[tuple[int, Sequence, Effect | None, BaseException]] = []
        singles = pending
        if len(pending) > 1 and not timed:
            groups = {entry[2].batch for entry in pending}
            singles = []
            for by in groups:
                entries = pending if len(groups) == 1 else [entry for entry in pending if entry[2].batch is by]
                if by is None or len(entries) == 1:
                    singles += entries
                    continue
                self._next_call()
                self._marker[1] = self._mark_base  # grammar 0: several
                try:
                    by.fill_bitmasks(
                        [entry[2].matcher for entry in entries], rows.block, [entry[1] for entry in entries]
                    )
                except BaseException:  # one of them failed: find out which, and serve the others
                    singles += entries
        row_of_number = rows.row
        for at, row, sequence, effect in singles:
            self._next_call()
            self._marker[1] = sequence.mark
            started = time.thread_time() if timed else 0.0
            try:
                sequence.matcher.fill_bitmask(row_of_number[row])
                if timed:
                    self._slow.judge(sequence, started)
            except BaseException as error:
                failed.append(
                    (
                        at,
                        sequence,
                        effect,
                        ItemFailed(Status.BACKEND_FAILED) if isinstance(error, BackendError) else error,
                    )
                )
                row_of_number[row][:] = self._maker.stop_row
        filled += pending
        indices, stops = [entry[1] for entry in filled], [entry[2].stop_bytes for entry in filled]
        flags = _shm.finish_rows(rows.address, rows.stride_words, self._maker.token_count, indices, stops)
        if flags.count(0) < len(flags):
            for (at, row, sequence, effect), flag in zip(filled, flags, strict=True):
                if flag & ROW_EMPTY:
                    failed.append((at, sequence, effect, ItemFailed(Status.NO_TOKEN_ALLOWED)))
                elif flag := flag & self._maker.flags:
                    result = results[at]
                    results[at] = (
                        (batch[0][at], 0, flag, row, 1, 1, result, NOTHING, -1, 0)
                        if isinstance(result, int)
                        else (*result[:2], flag, *result[3:])
                    )
        for at, sequence, effect, why in failed:
            item = item_of(batch, at)
            try:
                if isinstance(why, ItemFailed):
                    (effect or Effect(sequence, 1, NOTHING, created=False)).take_back(self._next_call)
                    if effect is not None and effect.created:
                        self._sequences.pop(item[1], None)
                results[at] = self._ended(item, why, rows)
            except BaseException as worse:
                results[at] = self._ended(item, worse, rows)


def _read_by(item: _shm.ItemTuple) -> tuple[int, ...]:
    """Returns the sequences whose other items ``item`` may not overtake: none for a question for a row, a fork's source
    as well."""
    _, sequence_id, action, _, _, source_id, rollback, _, accept, _, _, _ = item
    if action == Action.FORK:
        return sequence_id, source_id
    return (sequence_id,) if action or rollback or accept else ()
