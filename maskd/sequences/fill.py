"""How rows are written: filled by a matcher, walked over drafts, or closed to all but the stop tokens.

Knows nothing about: items, steps, other sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from maskd import _shm
from maskd.backends.base import Matcher
from maskd.bitmask import row_of
from maskd.errors import BackendError
from maskd.sequences.result import Broken, ItemFailed
from maskd.sequences.rows import EMPTY, RowFlag, Rows
from maskd.sequences.sequence import NextCall, Sequence
from maskd.step import Status

__all__ = ["RowMaker"]


class RowMaker:
    """Makes rows of one width.

    Args:
        token_count: ids of the tokenizer; bits from here on are cleared in every row.
        vocab_size: width of the logits.
        stop_token_ids: of the vocabulary, for the row that failed and terminated items get.
        forced_limit: forced tokens looked for at most.

    Attributes:
        stop_row: the row that allows the stop tokens only.
        flags: those flags of a row that its result passes on.
    """

    def __init__(self, token_count: int, vocab_size: int, stop_token_ids: Seq[int], forced_limit: int) -> None:
        self.stop_row = row_of(stop_token_ids, vocab_size)
        every = token_count == vocab_size  # else there is padding, which no row allows
        self.flags = (RowFlag.ACCEPTING | RowFlag.ALL_ALLOWED if every else RowFlag.ACCEPTING).value
        self.token_count = token_count
        self._scratch = self.new_rows(1)
        self._forced_limit = forced_limit

    def new_rows(self, count: int) -> Rows:
        """Returns new rows in private memory, all zero."""
        return Rows(np.zeros((count, len(self.stop_row)), dtype=np.int32))

    def close(self, rows: Rows, row: int, count: int) -> None:
        """Lets ``count`` rows from ``row`` on allow the stop tokens only; none if ``row`` is negative."""
        if row >= 0:
            rows.block[row : row + count] = self.stop_row

    def fill(self, sequence: Sequence, matcher: Matcher, rows: Rows, row: int) -> int:
        """Fills one row of ``sequence`` from ``matcher`` and returns its flags.

        Raises:
            ItemFailed: BACKEND_FAILED, or NO_TOKEN_ALLOWED: the row is empty, and nothing can be sampled from it.
        """
        try:
            matcher.fill_bitmask(rows.row[row])
        except BackendError:
            raise ItemFailed(Status.BACKEND_FAILED) from None
        flags = _shm.finish_rows(rows.address, rows.stride_words, self.token_count, [row], [sequence.stop_bytes])[0]
        if flags & EMPTY:
            raise ItemFailed(Status.NO_TOKEN_ALLOWED)
        return flags

    def fill_drafts(
        self, sequence: Sequence, row: int, drafts: tuple[int, ...], rows: Rows, next_call: NextCall
    ) -> tuple[int, int]:
        """Walks the drafts and back: fill, accept one, fill, … The history is not touched.

        A draft into a dead end counts as refused. Rows behind a refused draft allow the stop tokens only; the engine
        drops these positions anyway.

        Returns:
            how many rows were filled, and the flags of the first.
        """
        row_count = 1
        flags = self.fill(sequence, sequence.matcher, rows, row) & self.flags
        if drafts:
            try:
                with _Walk(sequence) as walk:
                    for draft in drafts:
                        next_call()
                        if (
                            not walk(draft)
                            or walk.matcher.is_terminated
                            or not self._can_go_on(sequence, walk.matcher, rows, row + row_count)
                        ):
                            break
                        row_count += 1
            except BackendError:
                raise Broken from None
        self.close(rows, row + row_count, 1 + len(drafts) - row_count)
        return row_count, flags

    def forced(self, sequence: Sequence, next_call: NextCall) -> tuple[int, ...]:
        """Returns the tokens that the grammar forces next: at each position the only one allowed."""
        forced: list[int] = []
        try:
            with _Walk(sequence) as walk:
                while len(forced) < self._forced_limit and not walk.matcher.is_terminated:
                    next_call()
                    self.fill(sequence, walk.matcher, self._scratch, 0)
                    token_id = _shm.only_token(self._scratch.address, self._scratch.stride_words)
                    if token_id < 0 or not walk(token_id):
                        break
                    forced.append(token_id)
        except ItemFailed:  # a dead end: forced tokens are a hint, and the step that gets there fails
            pass
        except BackendError:
            raise Broken from None
        return tuple(forced)

    def _can_go_on(self, sequence: Sequence, matcher: Matcher, rows: Rows, row: int) -> bool:
        try:
            self.fill(sequence, matcher, rows, row)
        except ItemFailed:
            return False
        return True


class _Walk:
    """A look ahead from where ``sequence`` stands: on a copy of its matcher, or on the matcher itself and back.

    Attributes:
        matcher: the matcher that walks.
    """

    __slots__ = ("_is_copy", "_walked", "matcher")

    def __init__(self, sequence: Sequence) -> None:
        self._is_copy = sequence.look_ahead is not None
        self.matcher = sequence.look_ahead() if sequence.look_ahead is not None else sequence.matcher
        self._walked = 0

    def __enter__(self) -> _Walk:
        return self

    def __call__(self, token_id: int) -> bool:
        """Accepts one token, if the grammar allows it."""
        accepted = bool(self.matcher.accept((token_id,)))
        self._walked += accepted
        return accepted

    def __exit__(self, *_: object) -> None:
        if self._walked and not self._is_copy:
            self.matcher.rollback(self._walked)
