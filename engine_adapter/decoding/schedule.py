"""What goes through the model next: which outputs leave, join or are held back, and what the masker is asked.

Owns: the work between two turns. Knows nothing about: forward passes, logits, how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from engine_adapter.decoding.admission import Admission
from engine_adapter.decoding.batch import Batch, Ending, Slot
from engine_adapter.decoding.outage import Outage
from engine_adapter.decoding.turn import Pending
from engine_adapter.masker import Masker

__all__ = ["Schedule"]


class Schedule:
    """Makes the ``Pending`` of every turn. For the loop's thread."""

    def __init__(
        self, batch: Batch, admission: Admission, outage: Outage, masker: Masker, *, chunk_tokens: int
    ) -> None:
        """``chunk_tokens``: most tokens of one prompt in one turn."""
        self._batch = batch
        self._admission = admission
        self._outage = outage
        self._masker = masker
        self._chunk_tokens = chunk_tokens

    def next(self, last_tokens: Tensor, tokens: Mapping[int, int]) -> Pending | None:
        """Lets outputs leave and join, and sends ``tokens`` to the masker.

        Args:
            last_tokens: (S,) int64, on the model's device: what was sampled in the turn before.
            tokens: handle to sampled token, for the sequences that go on.

        Returns:
            What goes through the model next; None if nothing does.
        """
        self._end_outage()
        self._drop_cancelled()
        self._batch.join(self._admission.take)
        pending = self._plan(last_tokens)
        if not pending.is_masked:
            if not self._outage.is_on:  # else the masker has a step that was not collected
                self._masker.flush()
        elif not self._masker.try_advance(tokens, pending.rows):
            pending = self._hold_back(pending, tokens)
        return pending if pending.decoding or pending.reading else None

    def _plan(self, last_tokens: Tensor) -> Pending:
        decoding, reading, sampling = list[Slot](), list[tuple[Slot, Sequence[int]]](), list[Slot]()
        for slot in self._batch.running:
            if self._outage.holds(slot):
                continue
            if slot.unread:
                reading.append((slot, slot.unread[: self._chunk_tokens]))
                slot.unread = slot.unread[self._chunk_tokens :]
            else:
                decoding.append(slot)
            if not slot.unread:
                sampling.append(slot)
        return Pending(last_tokens, decoding, reading, sampling)

    def _drop_cancelled(self) -> None:
        """Ends cancelled outputs that wait or whose prompt is being read. ``Slot.append`` ends the others."""
        self._admission.drop_cancelled(masked=not self._outage.is_on)
        for slot in self._batch.running:
            if slot.unread and slot.generation.is_cancelled and not self._outage.holds(slot):
                self._batch.leave(slot, Ending("cancelled"))

    def _end_outage(self) -> None:
        """Ends an outage that is over. If the daemon stayed away, every output with a grammar ends."""
        if (error := self._outage.end()) is None:
            return
        for slot in self._batch.running:
            if slot.handle is not None:
                self._batch.leave(slot, Ending("error", error))

    def _hold_back(self, pending: Pending, tokens: Mapping[int, int]) -> Pending:
        """Begins an outage before the forward pass; returns the part of ``pending`` that goes on.

        After the outage the model reads what it would have read now.
        """
        for slot, token_ids in pending.reading:
            if slot.handle is not None:
                slot.reread(token_ids)
        for slot in pending.decoding:
            if slot.handle is not None:
                slot.reread(slot.generation.token_ids[-1:])

        def wait() -> None:
            self._masker.advance(tokens, [])
            self._masker.collect()

        self._outage.begin(wait)
        return pending.without_grammars()
