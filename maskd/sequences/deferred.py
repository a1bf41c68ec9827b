"""Rows that are filled at the end of a step, together where their backend can.

Owns: the order in which they are filled, and which of them failed.
Knows nothing about: which sequences are open, or what a failed row means for its sequence.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from maskd import _shm
from maskd.errors import BackendError
from maskd.ipc.progress import Progress, mark_of
from maskd.sequences.fill import RowMaker
from maskd.sequences.late import SlowItems
from maskd.sequences.result import ItemFailed, StepResult
from maskd.sequences.rows import EMPTY, Rows
from maskd.sequences.sequence import Sequence
from maskd.step import Status

__all__ = ["DeferredRows", "Place", "RowFailed"]

Place = tuple[int, int, Sequence]
"""Where a row belongs: index of its result, number of the row, sequence. Nearly every item of every step makes one, so
it is a plain tuple; unpack it by name."""


class RowFailed(NamedTuple):
    """A row that could not be made: index of its result, sequence, reason."""

    at: int
    sequence: Sequence
    error: BaseException


class DeferredRows:
    """The rows of a session that are filled at the end of a step.

    Args:
        session: its number, for marks.
    """

    def __init__(self, maker: RowMaker, slow: SlowItems, progress: Progress, session: int) -> None:
        self._maker = maker
        self._slow = slow
        self._progress = progress
        self._batch_mark = mark_of(session)

    def fill(
        self,
        waiting: list[Place],
        filled: list[Place],
        rows: Rows,
        results: list[StepResult],
        *,
        timed: bool,
    ) -> list[RowFailed]:
        """Fills the rows of ``waiting``, finishes those of both lists, and adds their flags to ``results``.

        Args:
            waiting: rows that are still to be filled.
            filled: rows that a matcher has filled; the rows of ``waiting`` are added.
            timed: fill and time rows one by one.

        Returns:
            the rows that could not be made. Their items are not taken back.
        """
        alone = waiting if timed or len(waiting) < 2 else self._fill_together(waiting, rows)
        failed = self._fill_alone(alone, rows, timed=timed) if alone else []
        filled += waiting
        numbers, stops = [row for _, row, _ in filled], [sequence.stop_bytes for _, _, sequence in filled]
        flags = _shm.finish_rows(rows.address, rows.stride_words, self._maker.token_count, numbers, stops)
        if flags.count(0) < len(flags):
            failed += self._put_flags(filled, flags, results)
        return failed

    def _fill_together(self, waiting: list[Place], rows: Rows) -> list[Place]:
        """Fills the rows of each backend in one native call; returns those that are still to be filled one by one."""
        alone: list[Place] = []
        backends = {sequence.batch for _, _, sequence in waiting}
        for backend in backends:
            places = waiting
            if len(backends) > 1:
                places = [(at, row, sequence) for at, row, sequence in waiting if sequence.batch is backend]
            if backend is None or len(places) == 1:
                alone += places
                continue
            self._progress.next_call()
            self._progress.set_mark(self._batch_mark)
            try:
                backend.fill_bitmasks(
                    [sequence.matcher for _, _, sequence in places], rows.block, [row for _, row, _ in places]
                )
            except BaseException:  # a matcher failed: find it, and serve the others
                alone += places
        return alone

    def _fill_alone(self, places: list[Place], rows: Rows, *, timed: bool) -> list[RowFailed]:
        """Fills rows one by one; a row that cannot be made allows the stop tokens only."""
        failed: list[RowFailed] = []
        words = self._progress.words  # written here, as in ``SequenceTable.step``: this is the hot path of a batch of 1
        for at, row, sequence in places:
            words[0] += 2
            words[1] = sequence.mark
            started = time.thread_time() if timed else 0.0
            try:
                sequence.matcher.fill_bitmask(rows.row[row])
                if timed:
                    self._slow.judge(sequence, started)
            except BackendError:
                failed.append(RowFailed(at, sequence, ItemFailed(Status.BACKEND_FAILED)))
            except BaseException as error:
                failed.append(RowFailed(at, sequence, error))
            else:
                continue
            self._maker.close(rows, row, 1)
        return failed

    def _put_flags(self, places: list[Place], flags: bytes, results: list[StepResult]) -> list[RowFailed]:
        """Pairs results with the flags of their rows; returns the empty rows."""
        failed: list[RowFailed] = []
        passed_on = self._maker.flags
        for (at, _, sequence), found in zip(places, flags, strict=True):
            if found & EMPTY:
                failed.append(RowFailed(at, sequence, ItemFailed(Status.NO_TOKEN_ALLOWED)))
            elif flag := found & passed_on:
                results[at] = results[at], flag  # type: ignore[assignment]  # it is no pair yet: it has one row
        return failed
