"""The ledger: what every sequence of an engine has accepted, and what is asked of the daemon next. Pure; no session, no clock.

A step is planned in terms that outlive a session (``Step``) and turned into items for the session that happens to be there; results are
booked when they arrive. So an unanswered step can be sent again to a new session, in which every sequence was opened from its history.
Knows nothing about: connecting, waiting, rows as memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, RollbackError
from maskd.grammar import GrammarSpec
from maskd.step import NO_ROW, Action, Item, Result, Status

__all__ = ["Ledger", "LedgerEntry", "Step"]

_NO_MASK = -1


@dataclass(slots=True)
class LedgerEntry:
    """One sequence.

    Attributes:
        spec: its grammar; None = without: nobody asks the daemon about it.
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
        rollbacks: handle to the tokens it undoes first, for the same sequences.
        drafts: handle to its draft token ids.
        first_row: handle to the row of its first position, where it has one.
        closes: handles that end.
        row_indices: (positions,) int32: the row of every position of the batch, -1 for those without.
        items: what the present session was asked.
    """

    tokens: Mapping[int, Sequence[int]]
    rollbacks: Mapping[int, int]
    drafts: Mapping[int, Sequence[int]]
    first_row: Mapping[int, int]
    closes: Sequence[int]
    row_indices: NDArray[np.int32]
    items: list[Item] = field(default_factory=list)


class Ledger:
    """The sequences of one engine, by handle. A handle is the sequence id on the wire, and never used twice."""

    def __init__(self) -> None:
        self._entries: dict[int, LedgerEntry] = {}
        self._handles = itertools.count(1)
        self._known: set[int] = set()  # those that the daemon holds, closing ones included
        self._closing: list[int] = []

    # -- sequences -------------------------------------------------------------------------------------------------

    def open(self, spec: GrammarSpec | None) -> int:
        """Adds a sequence and returns its handle."""
        return self._add(LedgerEntry(spec))

    def fork(self, handle: int) -> int:
        """Adds a sequence that stands where ``handle`` stands before the tokens of the next step."""
        return self._add(LedgerEntry(self.get(handle).spec, source=handle))

    def close(self, handle: int) -> None:
        """Forgets ``handle``; the next step tells the daemon."""
        self.get(handle)
        for entry in self._entries.values():
            if entry.source == handle:
                entry.history, entry.source = list(self._settled(handle)), 0
        del self._entries[handle]
        self._closing.append(handle)

    def get(self, handle: int) -> LedgerEntry:
        """Returns the entry of ``handle``. Raises NotFoundError."""
        try:
            return self._entries[handle]
        except KeyError:
            raise NotFoundError(f"no sequence {handle}; it was never opened, or closed", kind="sequence", sequence_id=handle) from None

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
        """Returns the confirmed tokens of ``handle``, those of its source if it was not forked yet. Not to be changed."""
        entry = self._entries[handle]
        return self._settled(entry.source) if entry.source else entry.history

    # -- a step ----------------------------------------------------------------------------------------------------

    def plan(
        self, tokens: Mapping[int, int | Sequence[int]], rows: Sequence[int | None], drafts: Mapping[int, Sequence[int]], row_capacity: int
    ) -> Step:
        """Plans the next step; its rollbacks and closes are taken out of the ledger.

        Raises:
            NotFoundError, RollbackError, InvalidRequestError: nothing is taken.
        """
        indices: list[int] = []
        first_row: dict[int, int] = {}
        for handle in rows:
            positions = range(len(indices), len(indices) + 1 + len(drafts.get(handle, ()) if handle else ()))
            if handle is None or self.get(handle).spec is None:
                indices += [_NO_MASK] * len(positions)
            else:
                first_row[handle] = positions.start
                indices += positions
        if len(indices) > row_capacity:
            raise InvalidRequestError(f"{len(indices)} positions; row_capacity is {row_capacity}", field="rows")
        due = (handle for handle, entry in self._entries.items() if entry.source or entry.rollback)
        entries = {handle: self.get(handle) for handle in sorted({*tokens, *first_row, *due})}
        constrained = {handle: entry for handle, entry in entries.items() if entry.spec is not None}
        for handle, entry in constrained.items():
            if entry.rollback > len(self._settled(handle)):
                raise RollbackError(f"sequence {handle} has {len(self._settled(handle))} tokens; {entry.rollback} were to be undone")
        step = Step(
            tokens={handle: _as_tuple(tokens.get(handle, ())) for handle in constrained},
            rollbacks={handle: entry.rollback for handle, entry in constrained.items()},
            drafts=drafts,
            first_row=first_row,
            closes=self._closing,
            row_indices=np.array(indices, dtype=np.int32),
        )
        for entry in entries.values():
            entry.rollback = 0
        self._closing = []
        return step

    def write_items(self, step: Step, grammar_ids: Mapping[GrammarSpec, int], item_capacity: int) -> None:
        """Sets ``step.items`` to what a session must be asked that holds what the ledger thinks it holds.

        Closes that find no room wait for the next step.
        """
        # New sequences first: the worker goes through the items in order, and a fork copies its source as found.
        step.items = [
            self._item(handle, step, grammar_ids) for handle in sorted(step.tokens, key=self._known.__contains__) if self._is_live(handle)
        ]
        closes = [handle for handle in step.closes if handle in self._known]
        room = item_capacity - len(step.items)
        step.items += [Item(handle, Action.CLOSE) for handle in closes[:room]]
        step.closes = closes[:room]
        self._closing += closes[room:]

    def is_asking(self, step: Step) -> bool:
        """Whether somebody waits for the answer to ``step``."""
        return any(map(self._is_live, step.tokens))

    def _is_live(self, handle: int) -> bool:
        return handle in self._entries and self._entries[handle].error is None

    def _item(self, handle: int, step: Step, grammar_ids: Mapping[GrammarSpec, int]) -> Item:
        entry = self._entries[handle]
        item = Item(
            handle,
            rollback=step.rollbacks[handle],
            accept=step.tokens[handle],
            drafts=step.drafts.get(handle, ()),
            row=step.first_row.get(handle, NO_ROW),
        )
        if entry.source in self._known:
            item.action, item.source_sequence_id = Action.FORK, entry.source
        elif handle not in self._known and entry.spec is not None:
            history = self._settled(handle)
            item.action, item.grammar_id = Action.OPEN, grammar_ids[entry.spec]
            item.accept = (*history[: len(history) - item.rollback], *item.accept)
            item.rollback = 0
        return item

    def book(self, step: Step, results: Sequence[Result]) -> dict[int, MaskdError]:
        """Brings every sequence of ``step`` to where ``results`` say that it stands; returns the errors."""
        errors = {handle: error for handle in step.tokens if handle in self._entries and (error := self._entries[handle].error)}
        for item, result in zip(step.items, results, strict=True):
            if error := self._book(item, result):
                errors[item.sequence_id] = error
        return errors

    def _book(self, item: Item, result: Result) -> MaskdError | None:
        handle, error = item.sequence_id, result.error()
        entry = self._entries.get(handle)
        if error is not None:
            if error.metadata.get("closed") == "True":
                self._known.discard(handle)
                if entry is not None:
                    entry.error = error
            elif result.status == Status.STEP_DEADLINE and entry is not None:
                entry.error = error  # the daemon goes on with it, so nobody knows where it stands
            return error
        if item.action == Action.CLOSE:
            self._known.discard(handle)
            return None
        self._known.add(handle)
        if entry is None:  # closed while the step was on its way
            return None
        if item.action == Action.FORK:
            entry.history = list(self._settled(handle))
        elif item.action == Action.OPEN:
            entry.history = []  # ``accept`` holds all of it
        entry.source = 0
        if item.rollback:
            del entry.history[-item.rollback :]
        entry.history += item.accept
        return None

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
            {handle: refused[entry.spec] for handle, entry in self._entries.items() if entry.spec is not None and entry.spec in refused}
        )

    def fail(self, errors: Mapping[int, MaskdError]) -> None:
        """Ends the sequences that are keys of ``errors``: each further step answers that error."""
        for handle, error in errors.items():
            self._entries[handle].error = self._entries[handle].error or error

    def fail_all(self, error: MaskdError) -> None:
        """Ends every sequence with a grammar."""
        self.fail({handle: error for handle, entry in self._entries.items() if entry.spec is not None})


def _as_tuple(token_ids: int | Sequence[int]) -> tuple[int, ...]:
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)
