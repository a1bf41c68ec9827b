"""The decode loop: continuous batching over static slots, with masks that are made while the model runs.

A turn reads: forward, mask, sample, deliver, schedule. What one turn leaves for the next is one value, ``Pending``: the
tokens that were just sampled went to the masker at its end, so the daemon makes the rows of the next position while the
next forward pass computes its logits. Requests join and leave between turns; with or without a grammar they are the
same to the loop.
What fails for one request ends that request; what fails for a whole turn ends the requests that were in it. The loop
goes on.
Owns: slots, requests and their endings. Knows nothing about: text, networks, how masks are made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_adapter.decoding.admission import Admission
from engine_adapter.decoding.outage import Outage
from engine_adapter.decoding.request import EngineFault, FinishReason, Generation, Request, TokenLogprobs
from engine_adapter.decoding.turn import Pending, Slot, TurnTiming
from engine_adapter.masker import Masker, Masks
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.sampler import Sampler, token_logprobs
from engine_adapter.steering.base import allows
from maskd.errors import InvalidRequestError, MaskdError

__all__ = ["DecodeLoop"]

logger = logging.getLogger("engine_adapter")

_TIMINGS_KEPT = 100_000
_IDLE_SECONDS = 0.05


class DecodeLoop:
    """Generates for many requests at a time. ``add`` and ``Generation`` are for any thread; the rest belongs to one.

    Attributes:
        timings: of the latest turns, newest last.
        failure: why the latest turn failed; None if it did not.
        failed_turns: since the loop was made.
    """

    def __init__(
        self, model: SlotModel, masker: Masker, stop_token_ids: Sequence[int], *, chunk_tokens: int = 256
    ) -> None:
        """Takes over ``model`` and ``masker``.

        Args:
            model: its slots are the batch.
            masker: with a row for every slot.
            stop_token_ids: end an output, unless its grammar names others.
            chunk_tokens: most tokens of one prompt in one turn, so that a long prompt does not hold up the others.
        """
        self.timings: deque[TurnTiming] = deque(maxlen=_TIMINGS_KEPT)
        self.failure: Exception | None = None
        self.failed_turns = 0
        self._model = model
        self._masker = masker
        self._sampler = Sampler(model.slot_count, model.logits.shape[1], model.device)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._chunk_tokens = chunk_tokens
        self._slots: list[Slot | None] = [None] * model.slot_count
        self._pending: Pending | None = None
        self._outage: Outage | None = None  # while it lasts, slots with a grammar are left as they are
        self._no_tokens = torch.zeros(model.slot_count, dtype=torch.int64, device=model.device)
        self._admission = Admission(masker, self._finish)
        self._open_row = np.full(-(-model.logits.shape[1] // 32), -1, dtype=np.int32)  # of those without a grammar
        self._unfinished: set[Generation] = set()

    @property
    def running_count(self) -> int:
        """Requests that have a slot."""
        return sum(slot is not None for slot in self._slots)

    @property
    def unfinished_count(self) -> int:
        """Requests that were added and are not finished, those that wait for their grammar or for a slot included."""
        return len(self._unfinished)

    def add(self, request: Request) -> Generation:
        """Queues ``request`` and returns its output to be. Its grammar is compiled beside the loop; it joins when that
        is done.

        Raises:
            ValueError: the prompt is empty or too long, a number of tokens is out of range, or a bias is for no token.
        """
        if not 0 < len(request.prompt) < self._model.context_length:
            raise ValueError(f"the prompt has {len(request.prompt)} tokens; give 1 to {self._model.context_length - 1}")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens is {request.max_tokens}; give at least 1")
        if not 0 <= request.min_tokens <= request.max_tokens:
            raise ValueError(f"min_tokens is {request.min_tokens}; give 0 to max_tokens, which is {request.max_tokens}")
        vocab_size = self._model.logits.shape[1]
        if (highest := max(request.sampling.logit_bias, default=0)) >= vocab_size:
            raise ValueError(f"logit_bias has token id {highest}; the vocabulary ends at {vocab_size - 1}")
        generation = Generation(request)
        self._unfinished.add(generation)
        self._admission.add(generation)
        return generation

    def run(self, stop: threading.Event | None = None) -> None:
        """Turns until everything that was added is finished; with ``stop``, until that is set."""
        while not stop.is_set() if stop else self._unfinished:
            if not self.step():
                self._admission.wait(_IDLE_SECONDS)

    def step(self) -> bool:
        """Makes one turn. Returns False if no request was there to make it for, or if it failed; then it has ended its
        requests."""
        try:
            pending = self._pending or self._schedule(self._no_tokens, {})
            self._pending = self._turn(pending) if pending else None
        except Exception as error:
            self._abandon(error)
            return False
        if pending is not None or (self.failure is not None and self._works()):
            self.failure = None
        return pending is not None

    def close(self, error: Exception | None = None) -> None:
        """Ends whatever is unfinished, as cancelled, or with ``error``. Model and masker stay open."""
        self._admission.close()
        for generation in list(self._unfinished):
            self._finish(generation, "error" if error else "cancelled", error)

    def __enter__(self) -> DecodeLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- a turn ----------------------------------------------------------------------------------------------------

    def _turn(self, pending: Pending) -> Pending | None:
        started = time.perf_counter()
        self._forward(pending)
        forwarded = time.perf_counter()
        masks, failed, waited = self._mask(pending)
        if self._outage is not None:
            pending = self._without_masked(pending)
        forbidden = self._forbidden(pending)
        token_ids = self._sample(forbidden)
        host_ids = token_ids.tolist()  # waits for the device
        token_ids.clamp_(min=0)
        self._steer(pending, masks, failed, forbidden, token_ids, host_ids)
        self._sampler.count(token_ids, pending.sampling)
        self._record(pending, token_ids)
        sampled = time.perf_counter()
        accepted = self._deliver(pending, host_ids, failed)
        following = self._schedule(token_ids, accepted)
        ended = time.perf_counter()
        self.timings.append(
            TurnTiming(
                len(pending.sampling), forwarded - started, waited, sampled - forwarded - waited, ended - started
            )
        )
        return following

    def _forward(self, pending: Pending) -> None:
        if pending.decoding:
            self._model.decode(pending.token_ids, pending.decoding)
        for index, token_ids in pending.reading:
            with self._alone(index):
                self._model.prefill(index, token_ids)

    def _mask(self, pending: Pending) -> tuple[Masks | None, Mapping[int, Exception], float]:
        """Masks the logits; returns the rows, who must not be sampled from, and how long the rows were waited for."""
        if not pending.is_masked:
            return None, {}, 0.0
        started = time.perf_counter()
        masks = self._masker.try_apply_(self._model.logits)
        if masks is not None:
            return masks, masks.errors, masks.wait_seconds
        for index in pending.sampling:  # their last token goes through the model once more when there are rows
            slot = self._slots[index]
            if slot is not None and slot.handle is not None:
                self._model.rewind(index)
                slot.unread = slot.generation.token_ids[-1:] or slot.generation.request.prompt[-1:]
        self._outage = Outage(self._masker.collect)
        return None, {}, time.perf_counter() - started

    def _without_masked(self, pending: Pending) -> Pending:
        """Returns ``pending`` without the slots that have a grammar."""
        free = {index for index, slot in enumerate(self._slots) if slot is None or slot.handle is None}
        return Pending(
            pending.token_ids,
            [index for index in pending.decoding if index in free],
            [part for part in pending.reading if part[0] in free],
            [index for index in pending.sampling if index in free],
            is_masked=False,
        )

    def _forbidden(self, pending: Pending) -> dict[int, list[int]]:
        """Returns what slots must not draw now although their grammar may allow it: slot to token ids."""
        forbidden: dict[int, list[int]] = {}
        for index in pending.sampling:
            slot = self._slots[index]
            if slot is None:
                continue
            request, taken = slot.generation.request, slot.generation.token_ids
            token_ids = [*slot.stop_token_ids] if len(taken) < request.min_tokens else []
            if request.banned_words is not None:
                with self._alone(index):
                    token_ids += request.banned_words.forbidden(taken)
            if token_ids:
                forbidden[index] = token_ids
        return forbidden

    def _sample(self, forbidden: Mapping[int, Sequence[int]]) -> Tensor:
        positions = [len(slot.generation.token_ids) if slot else 0 for slot in self._slots]
        return self._sampler.sample(self._model.logits, torch.tensor(positions, device=self._model.device), forbidden)

    def _steer(
        self,
        pending: Pending,
        masks: Masks | None,
        failed: Mapping[int, Exception],
        forbidden: Mapping[int, Sequence[int]],
        token_ids: Tensor,
        host_ids: list[int],
    ) -> None:
        """Overwrites the drawn tokens of those whose steering wants another one that the row allows, here and on the
        device.

        An output that has no token then, or one that its row forbids, ends here.
        """
        for index in pending.sampling:
            slot = self._slots[index]
            if slot is None or slot.handle in failed:
                continue
            row = self._open_row if masks is None or slot.handle is None else masks.rows[masks.row_indices[index]]
            with self._alone(index):
                if host_ids[index] < 0:
                    raise EngineFault("no token can be drawn: what the model says of the allowed ones is not finite")
                with self._steering(slot):
                    chosen = self._steered(index, slot, row, host_ids[index])
                    if chosen is not None and chosen not in forbidden.get(index, ()):
                        if not (0 <= chosen < self._model.logits.shape[1] and allows(row, chosen)):
                            raise EngineFault(f"it wants token {chosen}, which the mask forbids")
                        token_ids[index] = host_ids[index] = chosen
                if not allows(row, host_ids[index]):
                    raise EngineFault("a token was drawn that the mask forbids")

    def _steered(self, index: int, slot: Slot, row: NDArray[np.int32], drawn: int) -> int | None:
        request = slot.generation.request
        if slot.steering is None:
            return None
        taken = len(slot.generation.token_ids)
        # The last token of a full context is never read, so it needs no room.
        remaining = min(request.max_tokens - taken, self._model.context_length - self._model.lengths[index] + 1)
        return slot.steering.choose(row, drawn, remaining)

    def _record(self, pending: Pending, token_ids: Tensor) -> None:
        """Appends the log probabilities of the drawn tokens to the generations that want them."""
        wanting = [
            (index, slot.generation)
            for index in pending.sampling
            if (slot := self._slots[index]) and slot.generation.wants_logprobs
        ]
        if not wanting:
            return
        rows = torch.tensor([index for index, _ in wanting], device=token_ids.device)
        top = max(generation.request.logprobs or 0 for _, generation in wanting)
        drawn = token_ids[rows]
        for (_, generation), token_id, logprob, ids, values in zip(
            wanting, drawn.tolist(), *token_logprobs(self._model.logits[rows], drawn, top), strict=True
        ):
            likeliest = list(zip(ids, values, strict=True))[: generation.request.logprobs]
            generation.logprobs.append(
                TokenLogprobs(token_id, logprob, tuple(pair for pair in likeliest if pair[1] > -torch.inf))
            )

    def _deliver(self, pending: Pending, host_ids: Sequence[int], failed: Mapping[int, Exception]) -> dict[int, int]:
        """Gives every sampled token to its generation, and frees the slots of those that end.

        Returns:
            handle to token id of those that go on.
        """
        accepted: dict[int, int] = {}
        for index in pending.sampling:
            slot = self._slots[index]
            if slot is None:
                continue
            error = None if slot.handle is None else failed.get(slot.handle)
            if ending := self._append(slot, host_ids[index], self._model.lengths[index], error):
                self._leave(index, slot, *ending)
            elif slot.handle is not None:
                accepted[slot.handle] = host_ids[index]
        return accepted

    def _append(
        self, slot: Slot, token_id: int, length: int, error: Exception | None
    ) -> tuple[FinishReason, Exception | None] | None:
        """Appends ``token_id`` to its generation; returns how that ended it, or None."""
        generation = slot.generation
        ending: tuple[FinishReason, Exception | None] | None = None
        if error is not None:
            ending = "error", error
        elif generation.is_cancelled:
            ending = "cancelled", None
        elif token_id in slot.stop_token_ids:
            ending = "stop", None
        if ending is not None:
            del generation.logprobs[len(generation.token_ids) :]  # this token is no part of the output
            return ending
        generation.token_ids.append(token_id)
        if slot.steering is not None:
            with self._steering(slot):
                slot.steering.accept(token_id)
        try:
            if generation.request.on_token is not None and generation.request.on_token(generation):
                return "stop", None
        except Exception as error:  # the caller's mistake is no reason to stop the others
            return "error", _fault_of(error)
        if len(generation.token_ids) == generation.request.max_tokens or length == self._model.context_length:
            return "length", None
        return None

    def _schedule(self, token_ids: Tensor, accepted: Mapping[int, int]) -> Pending | None:
        """Lets requests join, sends the tokens to the masker, and says what goes through the model next; None if
        nothing does."""
        self._end_outage()
        self._drop_cancelled()
        self._join()
        decoding: list[int] = []
        reading: list[tuple[int, Sequence[int]]] = []
        sampling: list[int] = []
        rows: list[int | None] = [None] * len(self._slots)
        for index, slot in enumerate(self._slots):
            if slot is None or (self._outage is not None and slot.handle is not None):
                continue
            if slot.unread:
                reading.append((index, slot.unread[: self._chunk_tokens]))
                slot.unread = slot.unread[self._chunk_tokens :]
            else:
                decoding.append(index)
            if not slot.unread:
                sampling.append(index)
                rows[index] = slot.handle
        pending = Pending(token_ids, decoding, reading, sampling, any(row is not None for row in rows))
        if not pending.is_masked:
            if self._outage is None:  # else the masker has a step that was not collected
                self._masker.flush()
        elif not self._masker.try_advance(accepted, rows):
            self._hold_back(pending, accepted)
            pending = self._without_masked(pending)
        return pending if pending.decoding or pending.reading else None

    def _hold_back(self, pending: Pending, accepted: Mapping[int, int]) -> None:
        """Begins an outage before the forward pass: the masked slots of ``pending`` read again what they would have
        read now."""
        for index, token_ids in pending.reading:
            if (slot := self._slots[index]) is not None and slot.handle is not None:
                slot.unread = [*token_ids, *slot.unread]
        for index in pending.decoding:
            if (slot := self._slots[index]) is not None and slot.handle is not None:
                slot.unread = slot.generation.token_ids[-1:]

        def wait() -> None:
            self._masker.advance(accepted, [])
            self._masker.collect()

        self._outage = Outage(wait)

    def _end_outage(self) -> None:
        """Ends an outage that is over; if the daemon stayed away, that is the end of all that have a grammar."""
        if self._outage is None or not self._outage.is_over:
            return
        error, self._outage = self._outage.error, None
        for index, slot in enumerate(self._slots):
            if error is not None and slot is not None and slot.handle is not None:
                self._leave(index, slot, "error", error)

    # -- joining and leaving ---------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        """Ends those that were cancelled while they wait or while their prompt is read; the others are ended by
        ``_append``."""
        self._admission.drop_cancelled(masked=self._outage is None)
        for index, slot in enumerate(self._slots):
            if (
                slot is not None
                and slot.unread
                and slot.generation.is_cancelled
                and (self._outage is None or slot.handle is None)
            ):
                self._leave(index, slot, "cancelled", None)

    def _join(self) -> None:
        for index, slot in enumerate(self._slots):
            if slot is None and (joining := self._admission.take()):
                generation, handle = joining
                options = generation.request.grammar.options if generation.request.grammar else None
                stop = frozenset(options.stop_token_ids) if options and options.stop_token_ids else self._stop_token_ids
                request = generation.request
                self._slots[index] = Slot(
                    generation, handle, request.prompt, stop | request.stop_token_ids, request.steering
                )
                with self._alone(index):
                    self._sampler.set(index, request.sampling, request.prompt)

    def _leave(self, index: int, slot: Slot, reason: FinishReason, error: Exception | None) -> None:
        self._slots[index] = None
        try:
            if slot.handle is not None:  # first: whatever else fails, the daemon must not keep it
                self._masker.close(slot.handle)
            self._model.free(index)
            self._sampler.release(index)
        finally:
            self._finish(slot.generation, reason, error)

    def _finish(self, generation: Generation, reason: FinishReason, error: Exception | None = None) -> None:
        self._unfinished.discard(generation)
        try:
            generation.finish(reason, error)
        except Exception:  # it is finished; its caller was to be told, and failed
            logger.exception("what hears of the end of an output failed")

    # -- failures --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, index: int) -> Iterator[None]:
        """What fails within ends the request in slot ``index``; the others go on."""
        try:
            yield
        except Exception as error:
            if (slot := self._slots[index]) is not None:
                self._leave(index, slot, "error", _fault_of(error))

    @contextlib.contextmanager
    def _steering(self, slot: Slot) -> Iterator[None]:
        """What fails within ends the steering, not its request: its output is as good as without it, for the mask has
        the last word."""
        try:
            yield
        except Exception as error:
            logger.warning("an output is not steered any more: %r", error, exc_info=not isinstance(error, ValueError))
            slot.steering = None

    def _abandon(self, error: Exception) -> None:
        """Ends the requests of a turn that failed, for nothing says which of them is at fault. Those that wait stay.

        What the masker was asked is collected beside the loop, as after an outage; sequences that are held back by one
        stay too.
        """
        self._fail(error)
        self._pending = None
        self.failed_turns += 1
        for index, slot in enumerate(self._slots):
            if slot is not None and (self._outage is None or slot.handle is None):
                with contextlib.suppress(Exception):  # it is finished all the same
                    self._leave(
                        index,
                        slot,
                        "error",
                        EngineFault("the engine failed at a batch with this output; its log says more"),
                    )
        if self._outage is None:
            self._outage = Outage(self._settle)

    def _fail(self, error: Exception) -> None:
        if repr(error) != repr(self.failure):  # a device that is gone fails every turn
            logger.error("a turn of the decode loop failed; its requests end", exc_info=error)
        self.failure = error

    def _settle(self) -> None:
        with contextlib.suppress(InvalidRequestError):  # nothing was asked
            self._masker.collect()

    def _works(self) -> bool:
        """Reads and draws a token in a free slot, and says whether that went well; False if no slot is free."""
        index = next((index for index, slot in enumerate(self._slots) if slot is None), None)
        if index is None:
            return False
        try:
            try:
                self._model.prefill(index, [0])
            finally:
                self._model.free(index)
            self._sample({}).tolist()  # waits for the device, which may fail late
        except Exception as error:
            self._fail(error)
            return False
        return True


def _fault_of(error: Exception) -> Exception:
    """Returns what the request is told that ``error`` ends; what was not expected stays in the log."""
    if isinstance(error, MaskdError):
        return error
    logger.error("an output failed: %r", error, exc_info=error)
    return (
        error if isinstance(error, EngineFault) else EngineFault("the engine failed at this output; its log says more")
    )
