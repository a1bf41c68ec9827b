"""Items that take too long: they run in a lane, and are answered when they are done.

A sequence is slow when its grammar is, or when a mask of its grammar just took longer than ``row_seconds``. Its items
run in the lane. The step waits for them until its deadline and then goes on without them. ``GrammarSpec.when_slow``
says what a late sequence does next. It waits until the engine asks again, ends, or moves to another backend. The other
backend must agree with every token so far.
Owns: the clock of a step, and which grammars are slow.
Knows nothing about: threads (``worker/slow_lane.py``), other sequences.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

from maskd import _shm
from maskd.ipc.progress import Progress, mark_of
from maskd.sequences.fill import RowMaker
from maskd.sequences.item import run_item
from maskd.sequences.result import ItemFailed, ItemResult
from maskd.sequences.rows import Rows
from maskd.sequences.sequence import Copying, Late, LateWork, NextCall, Sequence
from maskd.step import NO_ROW, LateIndex, Status

__all__ = ["Lane", "LaneEntry", "SlowItems"]

_STEPS_TIMED = 16
"""After a slow step, items are run and timed one by one for so many steps."""
_TOKEN_SECONDS = 1e-5
"""Time allowed for a token. An ordinary token takes 1 to 2 µs, so long items make no grammar slow."""
_MANY_TOKENS = 256
"""An item with more tokens, as a restore has, runs in the lane, whatever its grammar. Its neighbours need not wait."""


class Lane(Protocol):
    """Where slow items run, off the data path."""

    def start(self, job: Callable[[NextCall], ItemResult], mark: int) -> LateWork:
        """Runs ``job`` some time; ``mark`` says which grammar the job computes."""


class LaneEntry(NamedTuple):
    """An item of this step in the lane: index of its result, sequence, work."""

    at: int
    sequence: Sequence
    late: Late


class SlowItems:
    """The slow items of a session.

    Args:
        lane: where they run; None = no item is ever slow.
        row_seconds: a step waits so long for them; sequences whose masks take longer become slow.
        maker: of the rows.
        progress: of the data path.
        session: number of the session, for marks.

    Attributes:
        entries: the items of this step that run in the lane.
    """

    def __init__(
        self, lane: Lane | None, row_seconds: float, maker: RowMaker, progress: Progress, session: int
    ) -> None:
        self._lane = lane
        self._row_seconds = row_seconds
        self._maker = maker
        self._progress = progress
        self._session = session
        self._deadline = 0.0
        self._steps_to_time = 0
        self._slow_marks: set[int] = set()
        self.entries: list[LaneEntry] = []

    def begin_step(self) -> bool:
        """Starts the clock; returns whether items are to be run and timed one by one."""
        timed = self._steps_to_time > 0
        self._steps_to_time -= timed
        self._deadline = time.perf_counter() + self._row_seconds
        return timed

    def end_step(self) -> None:
        """Notes whether the step was slow. The steps to come are then timed, to find the sequence."""
        if self._lane is not None and not self._steps_to_time and time.perf_counter() > self._deadline:
            self._steps_to_time = _STEPS_TIMED

    def judge(self, sequence: Sequence, started: float, item: _shm.CheckedItem | None = None) -> None:
        """Sends ``sequence``, and all others of its grammar, to the lane if ``item``, or one row, took too long.

        Args:
            started: ``time.thread_time()`` before it. On a busy machine a thread waits for a core; that time says
                nothing about the grammar.
        """
        allowed = self._row_seconds
        if item is not None:
            allowed = allowed * (1 + len(item.drafts)) + _TOKEN_SECONDS * len(item.accept)
        if self._lane is not None and time.thread_time() - started > allowed:
            sequence.set_slow()
            self._slow_marks.add(sequence.mark)

    def watch(self, sequence: Sequence, item: _shm.CheckedItem | None = None) -> None:
        """Sends ``sequence`` to the lane if its grammar is slow; if ``item`` has many tokens, for that item."""
        if self._is_slow(sequence) or (item is not None and self._lane is not None and len(item.accept) > _MANY_TOKENS):
            sequence.set_slow()

    def _is_slow(self, sequence: Sequence) -> bool:
        return self._lane is not None and (sequence.held.slow or sequence.mark in self._slow_marks)

    def start(self, at: int, item: _shm.CheckedItem, sequence: Sequence) -> ItemResult:
        """Runs ``item`` in the lane; ``outcome`` has the result that takes the place of the one returned here.

        An item without tokens that follows a late item asks for the result of that late item.

        Raises:
            ItemFailed: STEP_DEADLINE: the late item, or a copy, is still under way. An ``item`` that does more than ask
                is not begun.
        """
        late = sequence.late
        if late is not None:
            self._settle(late.work, LateIndex.UNDER_WAY if late.answers(item) else LateIndex.NOT_BEGUN)
        if late is None or not (late.answers(item) or late.work.error is not None):
            advanced = late.sequence if late else sequence
            self._settle_copy(advanced)
            late = self._run(item, advanced, len(advanced.history), advanced.history)
        return self._enter(at, item, sequence, late)

    def create(self, at: int, item: _shm.CheckedItem, sequence: Sequence, source: Sequence | None) -> ItemResult:
        """Runs ``item`` in the lane, as ``start`` does. ``sequence`` is new and begins there, as a copy of ``source``.

        The lane has ``source`` until the copy is made. From then on the items of ``source`` run in the lane, too.

        Args:
            source: None = ``sequence`` begins at the start of its grammar.
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
            ItemFailed: STEP_DEADLINE: the lane still has it, and the item that reads it is not begun.
                SEQUENCE_NOT_FOUND: a late item closed it.
        """
        if (late := source.late) is not None:
            self._settle(late.work)
            if late.closes:
                raise ItemFailed(Status.SEQUENCE_NOT_FOUND, value=late.item.sequence_id)
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

    def outcome(self, item: _shm.CheckedItem, sequence: Sequence, late: Late, rows: Rows) -> ItemResult:
        """Returns the result of ``late``, with its rows copied to where ``item`` wants them.

        Raises:
            ItemFailed: STEP_DEADLINE if ``late`` is not done. Else the error of ``late``, which may be anything.
        """
        if not self._wait_for(late.work):
            raise self._give_up_waiting(sequence, late)
        advanced = late.sequence
        sequence.late = advanced.late = None
        if (
            not self._is_slow(advanced)
            and not late.closes
            and (advanced.copied_by is None or advanced.copied_by.wait(0))
        ):
            advanced.set_quick()
        if late.work.error is not None:
            raise late.work.error
        result: ItemResult = late.work.outcome
        if item.row < 0:
            return result._replace(row=NO_ROW, row_count=0)
        wanted = 1 + len(item.drafts)
        row_count = min(result.row_count, wanted)
        rows.block[item.row : item.row + row_count] = late.rows.block[:row_count]
        self._maker.close(rows, item.row + row_count, wanted - row_count)
        return result._replace(row=item.row if row_count else NO_ROW, row_count=row_count)

    def _enter(self, at: int, item: _shm.CheckedItem, sequence: Sequence, late: Late) -> ItemResult:
        sequence.late = late
        self.entries.append(LaneEntry(at, sequence, late))
        return ItemResult(item.sequence_id, position=late.position)

    def _run(
        self,
        item: _shm.CheckedItem,
        sequence: Sequence,
        position: int,
        history: Seq[int],
        begin: Callable[[], None] | None = None,
    ) -> Late:
        """Starts ``item``. ``history``: the tokens before it. ``begin``: makes the matcher of a new sequence."""
        may_move = (
            sequence.held.when_slow == "switch" and sequence.held.alternate is not None and self._is_slow(sequence)
        )
        return self._late(item, sequence, position, tuple(history) if may_move else None, begin)

    def _move(self, late: Late) -> Late:
        """Starts ``late`` once more, on the other backend and from the first token."""
        late.work.cancel()
        assert late.before is not None and late.sequence.held.alternate is not None
        held = late.sequence.held.alternate
        twin = Sequence(held, mark_of(self._session, held.grammar_id))
        self.watch(twin)
        return self._late(late.item, twin, late.position, None, twin.begin, replay=late.before)

    def _late(
        self,
        item: _shm.CheckedItem,
        sequence: Sequence,
        position: int,
        before: tuple[int, ...] | None,
        begin: Callable[[], None] | None,
        replay: tuple[int, ...] = (),
    ) -> Late:
        assert self._lane is not None
        rows, row = self._maker.new_rows(1 + len(item.drafts)), 0 if item.row >= 0 else NO_ROW
        is_slow = self._is_slow(sequence)

        def job(next_call: NextCall) -> ItemResult:
            if begin is not None:
                begin()
            if is_slow:
                sequence.detach()  # a slow call must not hold up those on the data path
            if replay:
                _agree(sequence, replay, next_call)
            next_call()
            result, _ = run_item(item, sequence, row, rows, self._maker, next_call, may_defer=False)
            return result

        return Late(
            work=self._lane.start(job, sequence.mark),
            sequence=sequence,
            rows=rows,
            item=item,
            position=position,
            before=before,
        )

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
        """Returns the answer to an item that the engine must send again."""
        return self._deadline_passed(LateIndex.NOT_BEGUN)

    def _deadline_passed(self, index: LateIndex) -> ItemFailed:
        return ItemFailed(Status.STEP_DEADLINE, index, int(self._row_seconds * 1e6), closes=index == LateIndex.CLOSED)

    def _wait_for(self, work: LateWork | Copying) -> bool:
        """Waits for ``work`` until the deadline. Meanwhile the data path is not busy: a hang in the lane is not its."""
        self._progress.end()
        try:
            return work.wait(self._deadline - time.perf_counter())
        finally:
            self._progress.begin()


def _agree(sequence: Sequence, history: tuple[int, ...], next_call: NextCall) -> None:
    """Lets ``sequence``, which is new, accept the tokens that its twin on another backend accepted.

    Raises:
        ItemFailed: BACKENDS_DISAGREE: it is not known which of the two is wrong.
    """
    accepted = sequence.accept(history, next_call)
    if accepted < len(history):
        raise ItemFailed(Status.BACKENDS_DISAGREE, accepted, history[accepted], closes=True)
