"""The inline transport: the steps of a session inside gRPC messages, for engines elsewhere.

The same picture as in shared memory: rows stand where the items wanted them, and failed items have the row that allows
the
stop tokens only. It is also the oracle that the shared-memory path is tested against.
Owns: one stream, and the thread that reads it. Knows nothing about: how sessions and grammars are made.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
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
from maskd.rpc.status import from_refusal, from_rpc_error
from maskd.shm import layout as lay
from maskd.shm.cells import Reply, result_flags
from maskd.step import NO_ROW, Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc

__all__ = ["InlineTransport", "Metadata"]

Metadata = tuple[tuple[str, str], ...] | None
"""What every call carries: the bearer token, if there is one."""


class InlineTransport:
    """Steps through one gRPC stream; the same semantics as shared memory, but for the copies.

    Args:
        stub: of the service; its calls carry ``metadata``.
        opened: the session.
        row_capacity: rows of one step.
        stop_row: what rows of failed and terminated items hold.
        close: called once, to end the session.
    """

    name: Literal["shm", "inline"] = "inline"

    def __init__(
        self,
        stub: mask_service_pb2_grpc.MaskServiceStub,
        metadata: Metadata,
        opened: pb.CreateSessionResponse,
        row_capacity: int,
        stop_row: NDArray[np.int32],
        close: Callable[[], None],
    ) -> None:
        self._close = close
        self._session_id = opened.session_id
        self._item_capacity, self._token_capacity = opened.item_capacity, opened.token_capacity
        self._row_capacity = row_capacity
        self._stop_row = stop_row
        self._requests: queue.SimpleQueue[pb.StreamStepsRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[pb.StreamStepsResponse | MaskdError] = queue.SimpleQueue()
        self._unanswered: list[Sequence[Item]] = []
        self._submitted = 0
        self._ended: MaskdError | None = None
        self._closed = False
        self._call = stub.StreamSteps(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._receive, name="maskd-inline", daemon=True).start()

    def _receive(self) -> None:
        try:
            for answer in self._call:
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
        try:
            messages = [_item_message(item) for item in items]
        except ValueError as error:
            raise InvalidRequestError(f"a number of the step does not fit its field: {error}", field="items") from None
        self._submitted += 1
        request = pb.StepSequencesRequest(session_id=self._session_id, step=self._submitted, items=messages)
        self._requests.put(pb.StreamStepsRequest(step=request))
        self._unanswered.append(items)
        return self._submitted

    def _check(self, items: Sequence[Item]) -> None:
        """Refuses what shared memory refuses before it publishes, and rows that the daemon never sees: it hands out its
        own."""
        token_count = sum(len(item.accept) + len(item.drafts) for item in items)
        for what, count, capacity in (
            ("item", len(items), self._item_capacity),
            ("token", token_count, self._token_capacity),
        ):
            if count > capacity:
                raise CapacityError(
                    f"{count} {what}s in a step; the session takes {capacity}", limit=f"{what}_capacity", value=capacity
                )
        taken: set[int] = set()
        for item in items:
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
        """The same from arrays."""
        flat = tokens.tolist()
        return self.submit(
            [
                Item(
                    s,
                    Action(action),
                    grammar,
                    source,
                    rollback,
                    flat[at : at + n],
                    flat[at + n : at + n + d],
                    row,
                    bool(flags),
                )
                for s, grammar, source, action, flags, rollback, row, at, n, d, _ in items.tolist()
            ]
        )

    def collect(self, timeout_seconds: float) -> Reply:
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
            raise from_refusal(answer.refusal)
        return self._reply(answer.step, items)

    def _reply(self, answer: pb.StepSequencesResponse, items: Sequence[Item]) -> Reply:
        """Puts the rows where the items wanted them: the same picture as in shared memory."""
        stride = len(self._stop_row)
        packed = np.frombuffer(answer.rows, dtype=np.int32).reshape(-1, stride)
        rows = np.zeros((self._row_capacity, stride), dtype=np.int32)
        table = np.zeros(len(answer.results), dtype=lay.RESULT_DTYPE)
        forced: list[int] = []
        at = 0
        for i, (result, item) in enumerate(zip(answer.results, items, strict=True)):
            flags = result_flags(
                terminated=result.terminated, accepting=result.accepting, all_allowed=result.all_allowed
            )
            row = item.row if result.row_count else NO_ROW
            if item.row >= 0:
                rows[item.row : item.row + 1 + len(item.drafts)] = self._stop_row
            table[i] = (
                result.sequence_id,
                result.status,
                flags,
                row,
                result.row_count,
                result.accepted_count,
                result.position,
                len(forced),
                len(result.forced_token_ids),
                result.detail_index,
                result.detail_value,
                b"",
            )
            forced += result.forced_token_ids
            if result.row_count:
                rows[row : row + result.row_count] = packed[at : at + result.row_count]
                at += result.row_count
        rows.flags.writeable = False
        ok = not table["status"].any()
        return Reply(
            answer.step, table.tobytes(), rows, np.array(forced, dtype=np.int32), answer.worker_milliseconds / 1e3, ok
        )

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
            self._close()
        self._call.cancel()


def _item_message(item: Item) -> pb.Item:
    return pb.Item(
        sequence_id=item.sequence_id,
        action=int(item.action) + 1,  # type: ignore[arg-type]
        grammar_id=item.grammar_id,
        source_sequence_id=item.source_sequence_id,
        rollback_count=item.rollback,
        accept_token_ids=item.accept,
        draft_token_ids=item.drafts,
        row_wanted=item.row >= 0,
        forced_wanted=item.want_forced,
    )
