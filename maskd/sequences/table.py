"""The table: every sequence of a session, and the step that runs the items of a batch on them.

Owns: which sequences are open.
Knows nothing about: how one item runs (``item``), how rows are filled together (``deferred``), how a step waits for
slow items (``late``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import structlog

from maskd import _shm
from maskd.errors import BackendError
from maskd.ipc.progress import Progress, mark_of
from maskd.sequences.deferred import DeferredRows, Place
from maskd.sequences.fill import RowMaker
from maskd.sequences.item import Effect, item_of, read_by, run_item
from maskd.sequences.late import Lane, SlowItems
from maskd.sequences.result import Broken, ItemFailed, ItemResult, StepResult
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import HeldGrammar, Sequence
from maskd.step import CLOSE, FORK, OPEN, TERMINATED, LateIndex, Status

__all__ = ["SequenceTable"]

_log = structlog.get_logger()
_NO_SEQUENCES: dict[int, Sequence] = {}


class SequenceTable:
    """The sequences of one session.

    Args:
        token_count: ids of the tokenizer; bits from here on are cleared in every row.
        vocab_size: width of the logits.
        stop_token_ids: of the vocabulary, for the row that failed and terminated items get.
        sequence_capacity: sequences open at a time.
        progress: of the data path, where the front reads what is computed; None = in private memory.
        number: of the session, below 2**32, for marks.
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
        progress: Progress | None = None,
        number: int = 0,
        lane: Lane | None = None,
        row_seconds: float = 0.02,
        forced_limit: int = 16,
    ) -> None:
        self.grammars: dict[int, HeldGrammar] = {}
        self._sequences: dict[int, Sequence] = {}
        self._capacity = sequence_capacity
        self.number = number
        self._progress = progress or Progress()
        self._next_call = self._progress.next_call
        self._maker = RowMaker(token_count, vocab_size, stop_token_ids, forced_limit)
        self._slow = SlowItems(lane, row_seconds, self._maker, self._progress, number)
        self._deferred = DeferredRows(self._maker, self._slow, self._progress, number)
        self._not_begun: set[int] = set()
        """Sequences with an item in this step that must be sent again: their later items must not overtake it."""

    def __len__(self) -> int:
        return len(self._sequences)

    def close(self) -> None:
        """Ends all sequences, and cancels their jobs in the lane. ``step`` must not be called afterwards."""
        for sequence in self._sequences.values():
            if sequence.late is not None:
                sequence.late.work.cancel()
        self._sequences.clear()

    def drop_grammar(self, grammar_id: int) -> None:
        """Drops a grammar and its alternate. Sequences that use them keep them. Safe to repeat."""
        held = self.grammars.pop(grammar_id, None)
        if held is not None and held.alternate is not None:
            self.grammars.pop(held.alternate.grammar_id, None)

    def step(self, number: int, batch: _shm.Batch, rows: Rows) -> list[StepResult]:
        """Runs the items of ``batch`` in order, and fills ``rows``.

        Items with one row and no drafts are filled together at the end, in one native call where the backend has one.
        The row of an item that failed or terminated allows the stop tokens only. An engine that overlooks the status
        then ends the sequence, instead of going on without a mask.

        Args:
            number: of the step; no two steps of a session have the same.

        Returns:
            one ``StepResult`` an item.
        """
        results: list[StepResult] = []
        waiting: list[Place] = []
        filled: list[Place] = []
        effects: dict[int, Effect] = {}
        words, timed = self._progress.words, self._slow.begin_step()
        find = _NO_SEQUENCES.get if timed else self._sequences.get
        # The loop writes the words of its progress itself, with the count at hand: a method would cost as much again.
        row_address, row_bytes, mark, count = rows.row_address, 4 * rows.stride_words, -1, words[0]
        for sequence, token_id, row in zip(map(find, batch.ids), batch.tokens, batch.rows, strict=True):
            if sequence is not None:  # the fast path of nearly every item; the item in full gives the same answer
                words[0] = count = count + 2
                if sequence.mark != mark:
                    words[1] = mark = sequence.mark
                advance = sequence.advance
                try:
                    done = advance(token_id, row_address[row], row_bytes) if advance else sequence.take(token_id)
                except BaseException as error:
                    results.append(self._ended(item_of(batch, len(results)), error, rows))
                    continue
                if done:
                    history = sequence.history
                    history.append(token_id)
                    (filled if done == 2 else waiting).append((len(results), row, sequence))
                    results.append(len(history))
                    continue
            at, mark = len(results), -1
            item = item_of(batch, at)
            if item.action == FORK and self._is_deferred(item.source_sequence_id, waiting, filled):
                # The source stands where its own item leaves it, and that item can still fail.
                self._fill_deferred(waiting, filled, effects, batch, rows, results, timed=timed)
                waiting, filled = [], []
            try:
                result, effect = self._item(number, at, item, rows, timed=timed)
            except BaseException as error:
                result = self._ended(item, error, rows)
            else:
                if effect is not None:
                    waiting.append((at, item.row, effect.sequence))
                    effects[at] = effect
            results.append(result)
            count = words[0]
        if waiting or filled:
            self._fill_deferred(waiting, filled, effects, batch, rows, results, timed=timed)
        self._slow.end_step()
        if self._slow.entries:
            self._collect_slow(batch, rows, results)
        self._not_begun.clear()
        return results

    def _is_deferred(self, sequence_id: int, waiting: list[Place], filled: list[Place]) -> bool:
        """Whether the row of an item of this sequence waits for the end of the step."""
        sequence = self._sequences.get(sequence_id)
        return any(other is sequence for _, _, other in (*waiting, *filled))

    # -- one item, in full -----------------------------------------------------------------------------------------

    def _item(
        self, number: int, at: int, item: _shm.CheckedItem, rows: Rows, *, timed: bool
    ) -> tuple[ItemResult, Effect | None]:
        """Runs one item. Returns its result and, if its one row is still to be filled, what the item did."""
        if item.status:
            raise ItemFailed(Status(item.status), item.detail_index, item.detail_value)
        self._next_call()
        if self._not_begun and not self._not_begun.isdisjoint(read_by(item)):
            raise self._slow.not_begun()
        if item.action in (OPEN, FORK):
            return self._create(at, item, number, rows)
        sequence = self._known(item.sequence_id, number)
        sequence.seen_in = number
        self._progress.set_mark(sequence.mark)
        if item.action == CLOSE:
            return self._close(item, sequence, rows), None
        self._slow.watch(sequence, item)
        if sequence.slow:
            return self._slow.start(at, item, sequence), None
        if not timed:
            return run_item(item, sequence, item.row, rows, self._maker, self._next_call, may_defer=True)
        return self._run_timed(item, sequence, rows)

    def _run_timed(self, item: _shm.CheckedItem, sequence: Sequence, rows: Rows) -> tuple[ItemResult, Effect | None]:
        started = time.thread_time()
        ran = run_item(item, sequence, item.row, rows, self._maker, self._next_call, may_defer=True)
        self._slow.judge(sequence, started, item)
        return ran

    def _close(self, item: _shm.CheckedItem, sequence: Sequence, rows: Rows) -> ItemResult:
        self._maker.close(rows, item.row, 1 + len(item.drafts))
        if sequence.late is not None:
            sequence.late.work.cancel()
        del self._sequences[item.sequence_id]
        return ItemResult(item.sequence_id, position=sequence.position)

    def _known(self, sequence_id: int, number: int) -> Sequence:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=sequence_id)
        if sequence.seen_in == number:
            raise ItemFailed(Status.SEQUENCE_EXISTS, value=sequence_id)
        return sequence

    def _create(self, at: int, item: _shm.CheckedItem, number: int, rows: Rows) -> tuple[ItemResult, Effect | None]:
        """Runs an item that opens or forks; see ``_item``. Always timed: a new matcher may cost more than its rows."""
        if item.sequence_id in self._sequences:
            raise ItemFailed(Status.SEQUENCE_EXISTS, value=item.sequence_id)
        if len(self._sequences) >= self._capacity:
            raise ItemFailed(Status.SEQUENCE_CAPACITY, value=self._capacity)
        source = None if item.action == OPEN else self._source_of(item)
        sequence = self._opened(item) if source is None else self._forked(source)
        self._slow.watch(sequence)
        sequence.seen_in = number
        self._progress.set_mark(sequence.mark)
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
                result, effect = self._run_timed(item, sequence, rows)
        self._sequences[item.sequence_id] = sequence
        return result, effect

    def _opened(self, item: _shm.CheckedItem) -> Sequence:
        held = self.grammars.get(item.grammar_id)
        if held is None:
            raise ItemFailed(Status.GRAMMAR_NOT_FOUND, value=item.grammar_id)
        return Sequence(held, mark_of(self.number, held.grammar_id))

    def _source_of(self, item: _shm.CheckedItem) -> Sequence:
        source = self._sequences.get(item.source_sequence_id)
        if source is None:
            raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=item.source_sequence_id)
        return self._slow.readable(source)

    def _forked(self, source: Sequence) -> Sequence:
        sequence = Sequence(source.held, source.mark)
        if source.slow:
            sequence.set_slow()
        return sequence

    def _collect_slow(self, batch: _shm.Batch, rows: Rows, results: list[StepResult]) -> None:
        """Takes the results of the slow items that are done by the deadline; the engine asks for the others again."""
        for at, sequence, late in self._slow.entries:
            item = item_of(batch, at)
            try:
                results[at] = self._slow.outcome(item, sequence, late, rows)
                self._sequences[item.sequence_id] = late.sequence
            except BaseException as error:
                if sequence.late is None:  # it is done
                    if late.created:
                        self._sequences.pop(item.sequence_id, None)
                    else:
                        self._sequences[item.sequence_id] = late.sequence
                results[at] = self._ended(item, error, rows)
        self._slow.entries.clear()

    def _ended(self, item: _shm.CheckedItem, error: BaseException, rows: Rows) -> ItemResult:
        """Returns the result of an item that raised.

        A library may raise errors of its own, such as a panic of Rust. The state of the matcher is not known then: its
        sequence is closed, and no other sequence is concerned.
        """
        if isinstance(error, ItemFailed):
            return self._failed(item, error, rows)
        if not isinstance(error, Broken | BackendError):
            _log.error("a backend failed in a way of its own", session=self.number, exc_info=error)
        return self._failed(item, ItemFailed(Status.BACKEND_FAILED, value=1, closes=True), rows)

    def _failed(self, item: _shm.CheckedItem, failure: ItemFailed, rows: Rows) -> ItemResult:
        sequence = self._sequences.get(item.sequence_id)
        if failure.status == Status.STEP_DEADLINE and failure.index == LateIndex.NOT_BEGUN:
            self._not_begun.update(read_by(item))
        if item.status in (Status.OK, Status.TOKEN_OUT_OF_RANGE):  # the row numbers of a malformed item mean nothing
            self._maker.close(rows, item.row, 1 + len(item.drafts))
        if failure.closes:
            self._sequences.pop(item.sequence_id, None)
        return ItemResult(
            item.sequence_id,
            status=failure.status.value,
            flags=TERMINATED if sequence and not sequence.late and sequence.terminated else 0,
            accepted_count=failure.accepted,
            position=sequence.position if sequence else 0,
            detail_index=failure.index,
            detail_value=failure.value,
        )

    # -- rows ------------------------------------------------------------------------------------------------------

    def _fill_deferred(
        self,
        waiting: list[Place],
        filled: list[Place],
        effects: Mapping[int, Effect],
        batch: _shm.Batch,
        rows: Rows,
        results: list[StepResult],
        *,
        timed: bool,
    ) -> None:
        """Fills and finishes the rows that are left, and takes the items back whose rows could not be made.

        Args:
            effects: what the items in full did, by index. A plain item accepted one token.
        """
        for failure in self._deferred.fill(waiting, filled, rows, results, timed=timed):
            item = item_of(batch, failure.at)
            try:
                if isinstance(failure.error, ItemFailed):
                    effect = effects.get(failure.at) or Effect(failure.sequence, 1, (), created=False)
                    effect.take_back(self._next_call)
                    if effect.created:
                        self._sequences.pop(item.sequence_id, None)
                results[failure.at] = self._ended(item, failure.error, rows)
            except BaseException as worse:
                results[failure.at] = self._ended(item, worse, rows)
