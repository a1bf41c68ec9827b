"""One decode step of a batch, as plain values: items in, results out.

Owns: ``Item``, ``Result``, ``Status``, the sentence for every status, and the error an engine gets from it.
Knows nothing about: the bytes in shared memory (``maskd.shm.layout``), the wire, the worker.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maskd.errors import (
    BackendError,
    CapacityError,
    DeadlineError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    RollbackError,
    SequenceExistsError,
    TerminatedError,
    TokenRejectedError,
)

__all__ = [
    "NO_ROW",
    "ROLLBACK_ALL",
    "Action",
    "Item",
    "ItemField",
    "ItemFlag",
    "LateIndex",
    "Result",
    "ResultFlag",
    "Status",
]

ROLLBACK_ALL = -1
"""``Item.rollback``: undo every token; the sequence stands as newly opened."""
NO_ROW = -1
"""``Item.row``: no row is wanted."""


class Action(enum.IntEnum):
    """What an item does before its tokens are looked at."""

    ADVANCE = 0
    OPEN = 1
    FORK = 2
    CLOSE = 3


class ItemFlag(enum.IntFlag):
    """Flags of an item."""

    WANT_FORCED = 1


class ResultFlag(enum.IntFlag):
    """Flags of a result; ``Result`` has them as fields of the same names."""

    TERMINATED = 1
    ACCEPTING = 2
    ALL_ALLOWED = 4


# The members as plain ints, for code that runs once an item: operations on enums are slow.
ADVANCE, OPEN, FORK, CLOSE = (action.value for action in Action)
WANT_FORCED = ItemFlag.WANT_FORCED.value
TERMINATED, ACCEPTING, ALL_ALLOWED = (flag.value for flag in ResultFlag)


class Status(enum.IntEnum):
    """How one item ended. Anything but OK leaves the sequence as it was, and its row must not be sampled from.

    STEP_DEADLINE is different in one point: the item goes on in the daemon, unless ``detail_index`` says otherwise
    (``LateIndex``). An item without tokens then asks for its result: that answer, OK or not, is the late item's.
    """

    OK = 0
    INVALID_ITEM = 1
    GRAMMAR_NOT_FOUND = 2
    SEQUENCE_NOT_FOUND = 3
    SEQUENCE_EXISTS = 4
    SEQUENCE_CAPACITY = 5
    TOKEN_OUT_OF_RANGE = 6
    TOKEN_REJECTED = 7
    SEQUENCE_TERMINATED = 8
    ROLLBACK_TOO_FAR = 9
    NO_TOKEN_ALLOWED = 10
    BACKEND_FAILED = 11
    STEP_DEADLINE = 12
    BACKENDS_DISAGREE = 13


STATUSES = {status.value: status for status in Status}
"""By number: a look-up is faster than ``Status(number)``."""


class LateIndex(enum.IntEnum):
    """``Result.detail_index`` of STEP_DEADLINE: where the item stands."""

    UNDER_WAY = -1
    NOT_BEGUN = 0
    CLOSED = 1


class ItemField(enum.IntEnum):
    """``Result.detail_index`` of INVALID_ITEM: the field that is wrong."""

    SEQUENCE_ID = 0
    ACTION = 1
    FLAGS = 2
    ROLLBACK = 3
    ROW = 4
    TOKENS = 5
    ZERO = 6
    ROW_TAKEN = 7


_FIELD_HELP = {
    ItemField.SEQUENCE_ID: "sequence_id must be positive",
    ItemField.ACTION: "action must be ADVANCE, OPEN, FORK or CLOSE",
    ItemField.FLAGS: "unknown flag",
    ItemField.ROLLBACK: "rollback must be a count, or -1 for all",
    ItemField.ROW: "row .. row + draft count must lie within the rows of the session, and drafts need a row",
    ItemField.TOKENS: "the tokens of the item must lie within the tokens of the step",
    ItemField.ZERO: "reserved bytes must be zero",
    ItemField.ROW_TAKEN: "another item of this step has the same row",
}


_LATE_HELP = {
    LateIndex.UNDER_WAY: "its row takes longer than {limit_us} µs and is still being made; "
    "ask again, with an item without tokens, or close it",
    LateIndex.NOT_BEGUN: "an earlier item that has its sequence, or the one that it forks, is still under way "
    "after {limit_us} µs; this one was not begun, send it again",
    LateIndex.CLOSED: "its row takes longer than {limit_us} µs; the sequence is closed, as its grammar asks for",
}


@dataclass(slots=True)
class Item:
    """What a step asks of one sequence, done in this order: open or fork, rollback, accept, rows over the drafts.

    CLOSE ends the sequence, whatever else the item says.

    Attributes:
        sequence_id: the engine chooses it: positive, never reused within a session, at most once in a step.
        action: what happens to the sequence itself.
        grammar_id: for OPEN.
        source_sequence_id: for FORK: the sequence to copy, as it stands when the item is reached.
        rollback: tokens undone before anything is accepted; ``ROLLBACK_ALL`` for every one.
        accept: token ids accepted, all or none.
        drafts: token ids walked for their rows and then undone.
        row: index of the row for the first position, draft i gets ``row + 1 + i``; ``NO_ROW`` if none is wanted.
        want_forced: also ask for the tokens that the grammar forces from here on.
    """

    sequence_id: int
    action: Action = Action.ADVANCE
    grammar_id: int = 0
    source_sequence_id: int = 0
    rollback: int = 0
    accept: Sequence[int] = ()
    drafts: Sequence[int] = ()
    row: int = NO_ROW
    want_forced: bool = False


@dataclass(slots=True)
class Result:
    """What became of one item.

    Attributes:
        sequence_id: of the item.
        status: ``Status.OK`` or why not.
        row: first row that was filled, or ``NO_ROW``.
        row_count: rows filled: 1 + accepted drafts; 0 if none was wanted, the sequence terminated, or the item failed.
        accepted_count: tokens accepted; with TOKEN_REJECTED, how many would have been.
        position: tokens accepted since the sequence was opened.
        terminated: a stop token was accepted.
        accepting: the text so far is a complete match: a stop token is allowed in the first row.
        all_allowed: the first row allows every token; applying it may be skipped.
        forced: token ids that the grammar forces next, as far as asked for.
        detail_index: which token, which field (``ItemField``), or where a late item stands (``LateIndex``).
        detail_value: the token id, sequence id, count or limit in question.
    """

    sequence_id: int
    status: Status = Status.OK
    row: int = NO_ROW
    row_count: int = 0
    accepted_count: int = 0
    position: int = 0
    terminated: bool = False
    accepting: bool = False
    all_allowed: bool = False
    forced: tuple[int, ...] = ()
    detail_index: int = -1
    detail_value: int = 0

    @property
    def closed(self) -> bool:
        """Whether the daemon closed the sequence in this step, because its item failed."""
        if self.status == Status.BACKEND_FAILED:
            return bool(self.detail_value)
        if self.status == Status.STEP_DEADLINE:
            return self.detail_index == LateIndex.CLOSED
        return self.status == Status.BACKENDS_DISAGREE

    def error(self) -> MaskdError | None:
        """Returns the typed error of this result, None if it is OK."""
        return _ERRORS[self.status](self) if self.status else None


def _invalid(r: Result) -> MaskdError:
    field = ItemField(r.detail_index)
    return InvalidRequestError(
        f"sequence {r.sequence_id}: {_FIELD_HELP[field]}", field=field.name.lower(), sequence_id=r.sequence_id
    )


def _rejected(r: Result) -> MaskdError:
    return TokenRejectedError(
        f"sequence {r.sequence_id}: the grammar does not allow token {r.detail_value} (index {r.detail_index} of the "
        f"step's tokens) at position {r.position}; the sequence is unchanged",
        sequence_id=r.sequence_id, token_id=r.detail_value, index=r.detail_index, position=r.position,
    )  # fmt: skip


_ERRORS: dict[Status, Callable[[Result], MaskdError]] = {
    Status.INVALID_ITEM: _invalid,
    Status.GRAMMAR_NOT_FOUND: lambda r: NotFoundError(
        f"sequence {r.sequence_id}: no grammar {r.detail_value} in this session; create it first",
        kind="grammar", grammar_id=r.detail_value,
    ),
    Status.SEQUENCE_NOT_FOUND: lambda r: NotFoundError(
        f"no sequence {r.detail_value} in this session; it was never opened, or closed",
        kind="sequence", sequence_id=r.detail_value,
    ),
    Status.SEQUENCE_EXISTS: lambda r: SequenceExistsError(
        f"sequence {r.detail_value} is open already, or stands twice in this step", sequence_id=r.detail_value
    ),
    Status.SEQUENCE_CAPACITY: lambda r: CapacityError(
        f"sequence {r.sequence_id}: the session holds its {r.detail_value} sequences; close one first",
        limit="sequence_capacity", value=r.detail_value,
    ),
    Status.TOKEN_OUT_OF_RANGE: lambda r: InvalidRequestError(
        f"sequence {r.sequence_id}: token {r.detail_value} (index {r.detail_index}) is not in the vocabulary",
        field="tokens", token_id=r.detail_value, index=r.detail_index,
    ),
    Status.TOKEN_REJECTED: _rejected,
    Status.SEQUENCE_TERMINATED: lambda r: TerminatedError(
        f"sequence {r.sequence_id} accepted a stop token at position {r.detail_value}; roll back or close it",
        sequence_id=r.sequence_id,
    ),
    Status.ROLLBACK_TOO_FAR: lambda r: RollbackError(
        f"sequence {r.sequence_id} has {r.detail_value} tokens; no more can be rolled back",
        sequence_id=r.sequence_id, tokens=r.detail_value,
    ),
    Status.NO_TOKEN_ALLOWED: lambda r: BackendError(
        f"sequence {r.sequence_id}: the grammar allows no token at position {r.position}; stop the sequence",
        sequence_id=r.sequence_id, position=r.position,
    ),
    Status.BACKEND_FAILED: lambda r: BackendError(
        f"sequence {r.sequence_id}: the grammar library failed at position {r.position}; "
        + ("the sequence is closed" if r.closed else "the sequence is unchanged"),
        sequence_id=r.sequence_id, position=r.position, closed=r.closed,
    ),
    Status.STEP_DEADLINE: lambda r: DeadlineError(
        f"sequence {r.sequence_id}: " + _LATE_HELP[LateIndex(r.detail_index)].format(limit_us=r.detail_value),
        sequence_id=r.sequence_id, limit_us=r.detail_value, closed=r.closed,
    ),
    Status.BACKENDS_DISAGREE: lambda r: BackendError(
        f"sequence {r.sequence_id} was moved to another backend because its row was late, and the other backend "
        f"does not allow token {r.detail_value} at position {r.position}; "
        "one of the two is wrong, so the sequence is closed",
        sequence_id=r.sequence_id, token_id=r.detail_value, position=r.position, closed=r.closed,
    ),
}  # fmt: skip
