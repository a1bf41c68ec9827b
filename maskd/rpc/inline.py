"""The inline transport: the steps of a session inside gRPC messages, for engines elsewhere.

An engine sees the same as in shared memory: rows stand where the items wanted them. Failed items have the row that
allows the stop tokens only. The tests use this transport as the oracle of the shared-memory path.
Owns: one stream, and the thread that reads it. Knows nothing about: how sessions and grammars are made.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import Literal

import grpc
import numpy as np
from numpy.typing import NDArray

from maskd.errors import (
    CapacityError,
    DeadlineError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    StepOrderError,
    UnavailableError,
)
from maskd.rpc.calls import Calls
from maskd.rpc.messages import reply_of, step_message
from maskd.rpc.status import from_refusal, from_rpc_error
from maskd.rpc.values import NewSession
from maskd.shm import layout as lay
from maskd.shm.cells import Reply
from maskd.step import NO_ROW, Action, Item
from maskd.v1 import mask_service_pb2 as pb

__all__ = ["InlineTransport"]

_ACTIONS = frozenset(Action)
_NOT_BEGUN = (InvalidRequestError, CapacityError, StepOrderError)
"""Refusals of steps that do not count."""


class InlineTransport:
    """Steps through one gRPC stream; the same semantics as shared memory, but for the copies.

    Args:
        calls: to the daemon.
        session: as the daemon opened it.
        row_capacity: rows of one step.
        stop_row: (row_stride_words,) int32, the row of failed and terminated items.
    """

    name: Literal["shm", "inline"] = "inline"

    def __init__(self, calls: Calls, session: NewSession, *, row_capacity: int, stop_row: NDArray[np.int32]) -> None:
        self._calls = calls
        self._session = session
        self._row_capacity = row_capacity
        self._stop_row = stop_row
        self._requests: queue.SimpleQueue[pb.StreamStepsRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[pb.StreamStepsResponse | MaskdError] = queue.SimpleQueue()
        self._unanswered: list[Sequence[Item]] = []
        self._submitted = 0
        self._ended: MaskdError | None = None
        self._closed = False
        self._stream = calls.stream_steps(iter(self._requests.get, None))
        threading.Thread(target=self._receive, name="maskd-inline", daemon=True).start()

    def _receive(self) -> None:
        try:
            for answer in self._stream:
                self._replies.put(answer)
            self._replies.put(UnavailableError("the daemon ended the stream"))
        except grpc.RpcError as error:
            typed = from_rpc_error(error)
            if isinstance(typed, NotFoundError):  # it ended between two steps, with its worker or its daemon
                typed = UnavailableError(typed.message)
            self._replies.put(typed)

    def submit(self, items: Sequence[Item]) -> int:
        """Sends one step and returns its number, at once. See ``Session.submit``."""
        if self._ended is not None:
            raise self._ended
        if len(self._unanswered) >= lay.CELL_COUNT:
            raise StepOrderError("two steps are unanswered; collect one before the next submit")
        self._check(items)
        request = step_message(self._session.session_id, self._submitted + 1, items)
        self._submitted += 1
        self._requests.put(pb.StreamStepsRequest(step=request))
        self._unanswered.append(items)
        return self._submitted

    def _check(self, items: Sequence[Item]) -> None:
        """Refuses what shared memory refuses before it publishes, and wrong rows, which messages do not have."""
        token_count = sum(len(item.accept) + len(item.drafts) for item in items)
        for what, count, capacity in (
            ("item", len(items), self._session.item_capacity),
            ("token", token_count, self._session.token_capacity),
        ):
            if count > capacity:
                raise CapacityError(
                    f"{count} {what}s in a step; the session takes {capacity}", limit=f"{what}_capacity", value=capacity
                )
        taken: set[int] = set()
        for item in items:
            if item.action not in _ACTIONS:
                raise InvalidRequestError(
                    f"sequence {item.sequence_id}: unknown action {item.action}; give ADVANCE, OPEN, FORK or CLOSE",
                    field="action",
                    sequence_id=item.sequence_id,
                )
            rows = range(item.row, item.row + 1 + len(item.drafts)) if item.row >= 0 or len(item.drafts) else range(0)
            if (
                item.row < NO_ROW
                or (rows and not 0 <= rows[0] <= rows[-1] < self._row_capacity)
                or not taken.isdisjoint(rows)
            ):
                raise InvalidRequestError(
                    f"sequence {item.sequence_id}: row {item.row} with {len(item.drafts)} drafts lies outside of the "
                    f"{self._row_capacity} rows of the session, or is another item's",
                    field="row",
                    sequence_id=item.sequence_id,
                )
            taken.update(rows)

    def submit_arrays(self, items: NDArray[np.void], tokens: NDArray[np.int32]) -> int:
        """Sends one step from arrays. See ``Session.submit_arrays``."""
        flat = tokens.tolist()
        return self.submit(
            [
                Item(
                    sequence_id=sequence_id,
                    action=action,  # ``submit`` looks at it
                    grammar_id=grammar_id,
                    source_sequence_id=source_sequence_id,
                    rollback=rollback,
                    accept=flat[at : at + accepts],
                    drafts=flat[at + accepts : at + accepts + drafts],
                    row=row,
                    want_forced=bool(flags),
                )
                for (
                    sequence_id, grammar_id, source_sequence_id, action, flags, rollback, row, at, accepts, drafts, _,
                ) in items.tolist()
            ]
        )  # fmt: skip

    def collect(self, *, timeout_seconds: float) -> Reply:
        """Waits for the oldest unanswered step. See ``Session.collect``."""
        if self._ended is not None:
            raise self._ended
        if not self._unanswered:
            raise StepOrderError("there is no unanswered step to collect")
        try:
            answer = self._replies.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DeadlineError(f"the step was not answered within {timeout_seconds} s") from None
        if isinstance(answer, MaskdError):
            self._ended = answer
            raise answer
        items = self._unanswered.pop(0)
        if answer.HasField("refusal"):
            refusal = from_refusal(answer.refusal)
            if isinstance(refusal, _NOT_BEGUN):
                self._submitted -= 1  # the daemon takes another step under this number
            raise refusal
        return reply_of(answer.step, items, row_capacity=self._row_capacity, stop_row=self._stop_row)

    def is_alive(self) -> bool:
        """Whether the stream has not ended. Does not wait."""
        return self._ended is None

    def close(self) -> None:
        """Ends the stream and the session. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        self._requests.put(None)
        if not isinstance(self._ended, UnavailableError):
            self._ended = UnavailableError("the session is closed")
            with contextlib.suppress(MaskdError):  # the daemon is gone, and the session with it
                self._calls.delete_session(self._session.session_id)
        self._stream.cancel()
