"""The ledger: what every sequence of an engine has accepted, and what is asked of the daemon next.

A step is planned in terms that outlive a session (``Step``) and turned into items for the present session. Results are
booked when they arrive. So an unanswered step can be sent again to a new session, where every sequence was opened from
its history. Pure: no session, no clock.
Owns: handles and histories. Knows nothing about: connecting, waiting, rows as memory.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, RollbackError
from maskd.grammar import GrammarSpec
from maskd.step import NO_ROW, Action, Item, LateIndex, Result, Status

__all__ = ["Ledger", "LedgerEntry", "Step"]

_NO_MASK = -1
_INT32_END = 1 << 31


@dataclass(slots=True)
class LedgerEntry:
    """One sequence.

    Attributes:
        spec: its grammar; None = without, and the daemon does not know the sequence.
        history: the accepted tokens that the daemon confirmed.
        rollback: tokens that the next step undoes.
        source: the sequence that it forks in the next step; 0 once that is done.
        error: why it can never advance again.
    """

    spec: GrammarSpec | None
    history: list[int] = field(default_factory=list)
    rollback: int = 0
    source: int = 0
    error: MaskdError | None = None


@dataclass(slots=True)
class Step:
    """A planned step.

    Attributes:
        tokens: handle to the token ids it accepts, for every sequence with a grammar that takes part.
        rollbacks: handle to the tokens it undoes first, for those that do.
        drafts: handle to its draft token ids.
        first_row: handle to the row of its first position, where it has one.
        closes: handles that end.
        row_indices: (positions,) int32: the row of every position of the batch, -1 for those without. Not to be
            changed.
        refused: handle to why this step does not advance it.
        items: what the present session was asked.
        unasked: handles in this step without an item: nothing was sent yet, or the sequence failed, was refused or was
            closed.
    """

    tokens: Mapping[int, Sequence[int]]
    rollbacks: Mapping[int, int]
    drafts: Mapping[int, Sequence[int]]
    first_row: Mapping[int, int]
    closes: Sequence[int]
    row_indices: NDArray[np.int32]
    refused: Mapping[int, MaskdError] = field(default_factory=dict)
    items: list[Item] = field(init=False)
    unasked: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.withdraw()

    def withdraw(self) -> None:
        """Takes the items back: there is no session to answer them."""
        self.items, self.unasked = [], list(self.tokens)

    @property
    def unfilled_rows(self) -> list[int]:
        """The rows of ``unasked``, which the daemon does not fill."""
        firsts = (
            (self.first_row[handle], len(self.drafts.get(handle, ())))
            for handle in self.unasked
            if handle in self.first_row
        )
        return [first + position for first, draft_count in firsts for position in range(1 + draft_count)]


def _token_ids(
    handle: int, given: SupportsIndex | Sequence[int], refused: dict[int, MaskdError], what: str
) -> Sequence[int]:
    """Returns the token ids of ``given``, one or many integers of any library.

    Ids beyond int32 have no place in an item: ``handle`` is ``refused``, as the daemon refuses any id that is not in
    the vocabulary.

    Raises:
        InvalidRequestError: not integers.
    """
    if type(given) is int and 0 <= given < _INT32_END:
        return (given,)
    try:
        try:
            ids = [operator.index(given)]  # type: ignore[arg-type]
        except TypeError:
            ids = list(map(operator.index, given))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidRequestError(
            f"sequence {handle}: {what} are {type(given).__name__}, not token ids", field=what, sequence_id=handle
        ) from None
    for index, token_id in enumerate(ids):
        if not -_INT32_END <= token_id < _INT32_END:
            refused[handle] = InvalidRequestError(
                f"sequence {handle}: index {index} of its {what} is beyond int32, so not in the vocabulary",
                field=what,
                sequence_id=handle,
                index=index,
            )
            return ids[:0] if what == "tokens" else [0] * len(ids)
    return tuple(ids)


class Ledger:
    """The sequences of one engine, by handle. A handle is the sequence id on the wire, and never used twice."""

    def __init__(self) -> None:
        self._entries: dict[int, LedgerEntry] = {}
        self._handles = itertools.count(1)
        self._known: set[int] = set()  # sequences that the daemon holds, closing ones included
        self._closing: list[int] = []
        self._indices: list[int] = []
        self._row_indices = np.array([], dtype=np.int32)
        self._due: set[int] = set()  # sequences to fork or roll back in the next step, even if it does not name them

    # -- sequences -------------------------------------------------------------------------------------------------

    def open(self, spec: GrammarSpec | None) -> int:
        """Adds a sequence and returns its handle."""
        return self._add(LedgerEntry(spec))

    def fork(self, handle: int) -> int:
        """Adds a copy of ``handle`` as it stands before the next step; the copy of a failed sequence has failed."""
        source = self.get(handle)
        fork = self._add(LedgerEntry(source.spec, source=handle, error=source.error))
        self._due.add(fork)
        return fork

    def rollback(self, handle: int, token_count: int, *, is_settled: bool = True) -> None:
        """Lets the next step undo ``token_count`` more tokens of ``handle``.

        Args:
            is_settled: no step is under way, so the history is all that the next step may undo.

        Raises:
            RollbackError: more than there are.
        """
        entry = self.get(handle)
        if is_settled and (error := self._too_far(handle, entry, entry.rollback + token_count)):
            raise error
        entry.rollback += token_count
        self._due.add(handle)

    def close(self, handle: int) -> None:
        """Forgets ``handle``; the next step tells the daemon."""
        self.get(handle)
        for fork, entry in self._entries.items():
            if entry.source == handle:
                entry.history, entry.source = list(self._settled(handle)), 0
                if not entry.rollback:
                    self._due.discard(fork)
        del self._entries[handle]
        self._due.discard(handle)
        self._closing.append(handle)

    def get(self, handle: int) -> LedgerEntry:
        """Returns the entry of ``handle``. Raises NotFoundError."""
        try:
            return self._entries[handle]
        except KeyError:
            raise NotFoundError(
                f"no sequence {handle}; it was never opened, or closed", kind="sequence", sequence_id=handle
            ) from None

    @property
    def is_closing(self) -> bool:
        """Whether there are closed sequences that the daemon does not know of."""
        return bool(self._closing)

    def specs(self) -> set[GrammarSpec]:
        """Returns the grammars that sequences need."""
        return {entry.spec for entry in self._entries.values() if entry.spec is not None and entry.error is None}

    def _add(self, entry: LedgerEntry) -> int:
        handle = next(self._handles)
        self._entries[handle] = entry
        return handle

    def _settled(self, handle: int) -> list[int]:
        """Returns the confirmed tokens of ``handle``; before it is forked, those of its source. Do not change them."""
        entry = self._entries[handle]
        return self._settled(entry.source) if entry.source else entry.history

    def _too_far(self, handle: int, entry: LedgerEntry, token_count: int) -> RollbackError | None:
        """Returns the error of undoing ``token_count`` tokens, if ``handle`` has fewer."""
        if not token_count or entry.spec is None or entry.error is not None:
            return None
        count = len(self._settled(handle))
        if token_count <= count:
            return None
        return RollbackError(
            f"sequence {handle} has {count} tokens; {token_count} were to be undone", sequence_id=handle, tokens=count
        )

    # -- a step ----------------------------------------------------------------------------------------------------

    def plan(
        self,
        tokens: Mapping[int, SupportsIndex | Sequence[int]],
        rows: Sequence[int | None],
        drafts: Mapping[int, Sequence[int]],
        row_capacity: int,
    ) -> Step:
        """Plans the next step; its rollbacks and closes are taken out of the ledger.

        A sequence that is asked for more than it can do, alone, is refused in ``Step.refused``.

        Raises:
            NotFoundError, InvalidRequestError: nothing is taken.
        """
        refused: dict[int, MaskdError] = {}
        drafts = {handle: _token_ids(handle, given, refused, "drafts") for handle, given in drafts.items()}
        indices: list[int] = []
        first_row: dict[int, int] = {}
        for handle in rows:
            width = 1 + len(drafts.get(handle, ())) if drafts and handle is not None else 1
            if handle is None or self.get(handle).spec is None:
                indices += [_NO_MASK] * width
            else:
                if handle in first_row:
                    raise InvalidRequestError(f"sequence {handle} stands twice in rows", field="rows")
                first_row[handle] = len(indices)
                indices += range(len(indices), len(indices) + width)
        if len(indices) > row_capacity:
            raise InvalidRequestError(f"{len(indices)} positions; row_capacity is {row_capacity}", field="rows")
        all_tokens: dict[int, Sequence[int]] = {}
        rollbacks: dict[int, int] = {}
        for handle in dict.fromkeys([*tokens, *first_row, *self._due]):
            entry = self.get(handle)
            if entry.spec is None:
                continue
            all_tokens[handle] = _token_ids(handle, tokens.get(handle, ()), refused, "tokens")
            if entry.rollback:
                if error := self._too_far(handle, entry, entry.rollback):
                    refused[handle] = error
                rollbacks[handle] = entry.rollback
        if indices != self._indices:  # nearly every step has those of the last one
            self._indices, self._row_indices = indices, np.array(indices, dtype=np.int32)
        step = Step(all_tokens, rollbacks, drafts, first_row, self._closing, self._row_indices, refused)
        for handle in self._due:
            self._entries[handle].rollback = 0
        self._due = {handle for handle in self._due if self._entries[handle].source}
        self._closing = []
        return step

    def take_back(self, step: Step) -> None:
        """Puts rollbacks and closes of ``step``, which was not sent, back for the next one."""
        for handle, token_count in step.rollbacks.items():
            if handle in self._entries:
                self._entries[handle].rollback += token_count
                self._due.add(handle)
        self._closing = [*step.closes, *self._closing]

    def write_items(self, step: Step, grammar_id: Callable[[GrammarSpec], int], item_capacity: int) -> None:
        """Sets ``step.items``, for a session that holds the sequences that the ledger says it holds.

        Closes that find no room wait for the next step.
        """
        joining: list[Item] = []
        going: list[Item] = []
        step.unasked = []
        for handle, tokens in step.tokens.items():
            entry = self._entries.get(handle)
            if entry is None or entry.error is not None or handle in step.refused:
                step.unasked.append(handle)
                continue
            item = Item(handle, accept=tokens, row=step.first_row.get(handle, NO_ROW))
            if step.rollbacks:
                item.rollback = step.rollbacks.get(handle, 0)
            if step.drafts:
                item.drafts = step.drafts.get(handle, ())
            if handle in self._known:
                going.append(item)
            else:
                self._let_join(item, entry, grammar_id)
                joining.append(item)
        # Joining sequences first: the worker goes through the items in order, and a fork copies its source as found.
        step.items = joining + going
        closes = [handle for handle in step.closes if handle in self._known]
        room = item_capacity - len(step.items)
        step.items += [Item(handle, Action.CLOSE) for handle in closes[:room]]
        step.closes = closes[:room]
        self._closing += closes[room:]

    def _let_join(self, item: Item, entry: LedgerEntry, grammar_id: Callable[[GrammarSpec], int]) -> None:
        """Makes ``item`` fork its source or, if the daemon does not hold that, open the sequence from its history."""
        if entry.source in self._known:
            item.action, item.source_sequence_id = Action.FORK, entry.source
        elif entry.spec is not None:
            history = self._settled(item.sequence_id)
            item.action, item.grammar_id = Action.OPEN, grammar_id(entry.spec)
            item.accept = (*history[: len(history) - item.rollback], *item.accept)
            item.rollback = 0

    def is_asking(self, step: Step) -> bool:
        """Whether a sequence of ``step`` still waits for its answer."""
        return any(
            handle in self._entries and self._entries[handle].error is None and handle not in step.refused
            for handle in step.tokens
        )

    def book(self, step: Step, results: Sequence[Result]) -> dict[int, MaskdError]:
        """Brings every sequence of ``step`` to where ``results`` say that it stands; returns the errors by handle.

        Args:
            step: what was asked.
            results: one for each of ``step.items``, in their order.
        """
        failed = (item.sequence_id for item, result in zip(step.items, results, strict=True) if result.status)
        self._stay(failed)
        errors = self._errors_of_unasked(step)
        for item, result in zip(step.items, results, strict=True):
            if error := result.error():
                errors[item.sequence_id] = error
                self._book_error(item, result, error)
            else:
                self._book(item)
        return errors

    def book_ok(self, step: Step) -> dict[int, MaskdError]:
        """Does what ``book`` does if every item is OK, without results to read."""
        errors = self._errors_of_unasked(step)
        for item in step.items:
            self._book(item)
        return errors

    def _stay(self, handles: Iterable[int]) -> None:
        """Notes where ``handles`` stand that were not forked: their sources go on without them."""
        for handle in handles:
            entry = self._entries.get(handle)
            if entry is not None and entry.source:
                entry.history, entry.source = list(self._settled(handle)), 0
                self._due.discard(handle)

    def _errors_of_unasked(self, step: Step) -> dict[int, MaskdError]:
        self._stay(step.refused)
        errors: dict[int, MaskdError] = {}
        for handle in step.unasked:
            if handle in self._entries and (error := self._entries[handle].error or step.refused.get(handle)):
                errors[handle] = error
        return errors

    def _book(self, item: Item) -> None:
        handle = item.sequence_id
        entry = self._entries.get(handle)
        if item.action:
            if item.action == Action.CLOSE:
                self._known.discard(handle)
                return
            self._known.add(handle)
            if entry is not None:
                # A sequence that is opened accepts its whole history.
                entry.history = list(self._settled(handle)) if item.action == Action.FORK else []
                entry.source = 0
                self._due.discard(handle)
        if entry is not None:  # else it was closed while the step was on its way
            if item.rollback:
                del entry.history[-item.rollback :]
            entry.history += item.accept

    def _book_error(self, item: Item, result: Result, error: MaskdError) -> None:
        entry = self._entries.get(item.sequence_id)
        if item.action == Action.CLOSE:
            if result.status == Status.STEP_DEADLINE:  # behind a fork that was not begun
                self._closing.append(item.sequence_id)
            else:
                self._known.discard(item.sequence_id)  # it is not there
        elif result.closed:
            self._known.discard(item.sequence_id)
            if entry is not None:
                entry.error = error
        elif result.status == Status.STEP_DEADLINE:
            if result.detail_index == LateIndex.UNDER_WAY:
                self._known.add(item.sequence_id)  # so that its close is sent, even if it is being opened
            if entry is not None:
                entry.error = error  # the daemon goes on with it, so its place is not known

    # -- a new session ---------------------------------------------------------------------------------------------

    def standing(self) -> dict[int, tuple[GrammarSpec, Sequence[int]]]:
        """Returns spec and tokens of every sequence that a new session must be given before the next step."""
        return {
            handle: (entry.spec, entry.history)
            for handle, entry in self._entries.items()
            if handle in self._known and entry.spec is not None and entry.error is None
        }

    def stand_again(self, handles: Sequence[int] | set[int]) -> None:
        """Notes that the present session holds ``handles``, and nothing else."""
        self._known = set(handles)

    def refuse(self, refused: Mapping[GrammarSpec, MaskdError]) -> None:
        """Ends every sequence whose grammar is among ``refused``."""
        self.fail(
            {
                handle: refused[entry.spec]
                for handle, entry in self._entries.items()
                if entry.spec is not None and entry.spec in refused
            }
        )

    def fail(self, errors: Mapping[int, MaskdError]) -> None:
        """Ends the sequences that are keys of ``errors``: each further step answers that error."""
        for handle, error in errors.items():
            self._entries[handle].error = self._entries[handle].error or error

    def fail_all(self, error: MaskdError) -> None:
        """Ends every sequence with a grammar."""
        self.fail({handle: error for handle, entry in self._entries.items() if entry.spec is not None})
