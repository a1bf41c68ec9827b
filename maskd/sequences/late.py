"""Items that take too long: they run in a lane of their own, and are answered when they are done.

A sequence is slow when its grammar is, or when a mask of its grammar took longer than ``row_seconds`` just now. Its
items run in the
lane; the step waits for them until its deadline and then goes on. What a late sequence does next is said by its grammar
(``GrammarSpec.when_slow``): wait until it is asked again, end, or go on with another backend, which must agree with
every
token so far.
Owns: the clock of a step, and which grammars are slow.
Knows nothing about: threads (``worker/slow_lane.py``), other sequences.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, Protocol

from maskd import _shm
from maskd.sequences.fill import RowMaker
from maskd.sequences.item import run_item
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import NOTHING, Copying, ItemFailed, Late, LateWork, NextCall, Sequence
from maskd.step import NO_ROW, Action, LateIndex, Status

__all__ = ["Lane", "SlowItems"]

_STEPS_TIMED = 16
"""After a slow step, items are run and timed one by one for so many steps."""
_TOKEN_SECONDS = 1e-5
"""A token is given so long: an ordinary one takes 1 to 2 µs, and long items make no grammar slow."""
_MANY_TOKENS = 256
"""An item with more tokens, as a restore has, runs in the lane, whatever its grammar: its neighbours do not wait for
all of them."""


class Lane(Protocol):
    """Where slow items run, off the data path."""

    def start(self, job: Callable[[NextCall], Any], mark: int) -> LateWork:
        """Runs ``job`` some time; ``mark`` says which grammar it computes."""


class SlowItems:
    """The slow items of a session.

    Args:
        lane: where they run; None = nothing is ever slow.
        row_seconds: a step waits so long for them; sequences whose masks take longer become slow.
        maker: of the rows.
        marker: its first word is odd while the data path computes.
        mark_base: session part of the marks.
    """

    def __init__(
        self, lane: Lane | None, row_seconds: float, maker: RowMaker, marker: memoryview, mark_base: int
    ) -> None:
        self._lane = lane
        self._row_seconds = row_seconds
        self._maker = maker
        self._marker = marker
        self._mark_base = mark_base
        self._deadline = 0.0
        self._steps_to_time = 0
        self._slow_marks: set[int] = set()
        self.entries: list[tuple[int, Sequence, Late]] = []
        """Those of this step: index of the result, sequence, work."""

    def begin_step(self) -> bool:
        """Starts the clock; returns whether items are to be run and timed one by one."""
        timed = self._steps_to_time > 0
        self._steps_to_time -= timed
        self._deadline = time.perf_counter() + self._row_seconds
        return timed

    def end_step(self) -> None:
        """Notes whether the step was slow, to find the sequence in the steps to come."""
        if self._lane is not None and not self._steps_to_time and time.perf_counter() > self._deadline:
            self._steps_to_time = _STEPS_TIMED

    def judge(self, sequence: Sequence, started: float, item: _shm.ItemTuple | None = None) -> None:
        """Sends a sequence, and all others of its grammar, to the lane if it was too slow since ``started``, for one
        row or for ``item``.

        By the processor's time (``time.thread_time``): on a busy machine, a thread that had to wait for a core says
        nothing about
        the grammar.
        """
        allowed = self._row_seconds * (1 + len(item[9])) + _TOKEN_SECONDS * len(item[8]) if item else self._row_seconds
        if self._lane is not None and time.thread_time() - started > allowed:
            sequence.set_slow()
            self._slow_marks.add(sequence.mark)

    def watch(self, sequence: Sequence, item: _shm.ItemTuple | None = None) -> None:
        """Sends ``sequence`` to the lane if its grammar is known to be slow; for the time of ``item`` also if that has
        many tokens."""
        if self._is_slow(sequence) or (item is not None and self._lane is not None and len(item[8]) > _MANY_TOKENS):
            sequence.set_slow()

    def _is_slow(self, sequence: Sequence) -> bool:
        return self._lane is not None and (sequence.held.slow or sequence.mark in self._slow_marks)

    def start(self, at: int, item: _shm.ItemTuple, sequence: Sequence) -> _shm.ResultTuple:
        """Has ``item`` run in the lane. ``outcome`` has the result that takes the place of the one returned here.

        An item without tokens, after a late one, asks for what the late one came to.

        Raises:
            ItemFailed: STEP_DEADLINE: the late one is still under way, or a copy; ``item``, unless it only asks, is not
                begun.
        """
        late = sequence.late
        if late is not None:
            self._settle(late.work, LateIndex.UNDER_WAY if late.answers(item) else LateIndex.NOT_BEGUN)
        if late is None or not (late.answers(item) or late.work.error is not None):
            worked_on = late.sequence if late else sequence
            self._settle_copy(worked_on)
            late = self._run(item, worked_on, len(worked_on.history), worked_on.history)
        return self._enter(at, item, sequence, late)

    def create(self, at: int, item: _shm.ItemTuple, sequence: Sequence, source: Sequence | None) -> _shm.ResultTuple:
        """Has ``item`` run in the lane, as ``start`` does; ``sequence`` is new, and begins there, as a copy of
        ``source`` if that is given.

        ``source`` is the lane's until it is copied; from then on its items run there, too.
        """
        if source is None:
            return self._enter(at, item, sequence, self._run(item, sequence, 0, (), sequence.begin))
        copied = threading.Event()

        def begin() -> None:
            try:
                sequence.begin_as_copy(source)
            finally:
                copied.set()

        late = self._run(item, sequence, len(source.history), source.history, begin)
        source.set_slow()
        source.copied_by = Copying(copied, late.work)
        return self._enter(at, item, sequence, late)

    def readable(self, source: Sequence) -> Sequence:
        """Returns ``source``, or what took its place, once the lane has let go of its matcher.

        Raises:
            ItemFailed: STEP_DEADLINE: it has not, and the item that reads it is not begun. SEQUENCE_NOT_FOUND: a late
                item was its end.
        """
        if (late := source.late) is not None:
            self._settle(late.work)
            if late.closes:
                raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=late.item[1])
            source = late.sequence
        self._settle_copy(source)
        return source

    def _settle_copy(self, source: Sequence) -> None:
        if source.copied_by is not None:
            self._settle(source.copied_by)
            source.copied_by = None

    def _settle(self, work: LateWork | Copying, index: LateIndex = LateIndex.NOT_BEGUN) -> None:
        """Waits for ``work`` until the deadline. Raises ItemFailed (STEP_DEADLINE, ``index``) if it takes longer."""
        if not self._wait_for(work):
            raise self._deadline_passed(index)

    def outcome(self, item: _shm.ItemTuple, sequence: Sequence, late: Late, rows: Rows) -> _shm.ResultTuple:
        """Returns what ``late`` came to, its rows copied to where ``item`` wants them.

        Raises:
            ItemFailed: STEP_DEADLINE if it is not done. Else what it failed with, which may be anything.
        """
        if not self._wait_for(late.work):
            raise self._give_up_waiting(sequence, late)
        worked_on = late.sequence
        sequence.late = worked_on.late = None
        if (
            not self._is_slow(worked_on)
            and not late.closes
            and (worked_on.copied_by is None or worked_on.copied_by.wait(0))
        ):
            worked_on.set_quick()
        if late.work.error is not None:
            raise late.work.error
        sequence_id, row, wanted = item[1], item[7], 1 + len(item[9])
        (_, _, flags, _, row_count, *tail), _ = late.work.outcome
        row_count = min(row_count, wanted) if row >= 0 else 0
        if row >= 0:
            rows.block[row : row + row_count] = late.rows.block[:row_count]
            self._maker.close(rows, row + row_count, wanted - row_count)
        return (sequence_id, 0, flags, row if row_count else NO_ROW, row_count, *tail)

    def _enter(self, at: int, item: _shm.ItemTuple, sequence: Sequence, late: Late) -> _shm.ResultTuple:
        sequence.late = late
        self.entries.append((at, sequence, late))
        return (item[1], 0, 0, NO_ROW, 0, 0, late.position, NOTHING, -1, 0)

    def _run(
        self,
        item: _shm.ItemTuple,
        sequence: Sequence,
        position: int,
        history: Seq[int],
        begin: Callable[[], None] | None = None,
    ) -> Late:
        """Starts ``item``. ``history``: what stands before it. ``begin``: makes the matcher of a new sequence."""
        may_move = (
            sequence.held.when_slow == "switch" and sequence.held.alternate is not None and self._is_slow(sequence)
        )
        return self._late(item, sequence, position, tuple(history) if may_move else None, begin, NOTHING)

    def _move(self, late: Late) -> Late:
        """Starts ``late`` once more, on the other backend and from the first token."""
        late.work.cancel()
        assert late.before is not None and late.sequence.held.alternate is not None
        held = late.sequence.held.alternate
        twin = Sequence(held, self._mark_base | held.grammar_id)
        self.watch(twin)
        return self._late(late.item, twin, late.position, None, twin.begin, late.before)

    def _late(
        self,
        item: _shm.ItemTuple,
        sequence: Sequence,
        position: int,
        before: tuple[int, ...] | None,
        begin: Callable[[], None] | None,
        replay: tuple[int, ...],
    ) -> Late:
        assert self._lane is not None
        rows, row = self._maker.new_rows(1 + len(item[9])), 0 if item[7] >= 0 else NO_ROW
        created, is_slow = item[2] != Action.ADVANCE, self._is_slow(sequence)

        def job(next_call: NextCall) -> Any:
            if begin is not None:
                begin()
            if is_slow:
                sequence.detach()  # a slow call must not hold up those on the data path
            if replay:
                _agree(sequence, replay, next_call)
            next_call()
            return run_item(item, sequence, created, row, rows, self._maker, next_call, may_defer=False)

        return Late(self._lane.start(job, sequence.mark), sequence, rows, item, position, created, before)

    def _give_up_waiting(self, sequence: Sequence, late: Late) -> ItemFailed:
        """Leaves ``late`` to be asked for again, or does what its grammar says instead."""
        sequence.late = late
        if sequence.held.when_slow == "fail" and self._is_slow(sequence):
            late.work.cancel()
            return self._deadline_passed(LateIndex.CLOSED)
        if late.before is not None:
            sequence.late = self._move(late)
        return self._deadline_passed(LateIndex.UNDER_WAY)

    def not_begun(self) -> ItemFailed:
        """Returns the answer to an item that is to be sent again."""
        return self._deadline_passed(LateIndex.NOT_BEGUN)

    def _deadline_passed(self, index: LateIndex) -> ItemFailed:
        return ItemFailed(Status.STEP_DEADLINE, index, int(self._row_seconds * 1e6), closes=index == LateIndex.CLOSED)

    def _wait_for(self, work: LateWork | Copying) -> bool:
        """Waits for ``work`` until the deadline. The data path is not busy meanwhile: a hang in the lane is the
        lane's."""
        self._marker[0] += 1
        try:
            return work.wait(self._deadline - time.perf_counter())
        finally:
            self._marker[0] += 1


def _agree(sequence: Sequence, history: tuple[int, ...], next_call: NextCall) -> None:
    """Lets ``sequence``, which is new, accept what its twin on another backend accepted.

    Raises:
        ItemFailed: BACKENDS_DISAGREE: which of the two is wrong is not known.
    """
    accepted = sequence.accept(history, next_call)
    if accepted < len(history):
        raise ItemFailed(Status.BACKENDS_DISAGREE, accepted, history[accepted], closes=True)
