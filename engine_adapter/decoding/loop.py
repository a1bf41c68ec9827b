"""The decode loop: continuous batching over static slots, with masks that are made while the model runs.

A turn reads: forward, mask, draw, deliver, schedule. What one turn leaves for the next is one value, ``Pending``.
At the end of a turn the sampled tokens go to the masker. The daemon makes the next rows during the next forward pass.
Requests join and leave between turns; with or without a grammar they are the same to the loop.
A failure for one request ends that request. A failure of a whole turn ends the requests in it. The loop goes on.
Owns: the turn, and what follows from its failure. Knows nothing about: text, networks, how masks are made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from engine_adapter.decoding.admission import Admission
from engine_adapter.decoding.batch import Batch, Ending
from engine_adapter.decoding.drawing import Drawing
from engine_adapter.decoding.outage import Outage
from engine_adapter.decoding.request import EngineFault, FinishReason, Generation, Request
from engine_adapter.decoding.schedule import Schedule
from engine_adapter.decoding.turn import Pending, Sampled, TurnTiming
from engine_adapter.masker import Masker, Masks
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.sampler import Sampler
from maskd.errors import InvalidRequestError

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
        sampler = Sampler(model.slot_count, model.logits.shape[1], model.device)
        self._batch = Batch(model, masker, sampler, frozenset(stop_token_ids), self._finish)
        self._drawing = Drawing(model, sampler, self._batch)
        self._outage = Outage()
        self._admission = Admission(masker, self._finish)
        self._schedule = Schedule(self._batch, self._admission, self._outage, masker, chunk_tokens=chunk_tokens)
        self._pending: Pending | None = None
        self._no_tokens = torch.zeros(model.slot_count, dtype=torch.int64, device=model.device)
        self._unfinished: set[Generation] = set()

    @property
    def running_count(self) -> int:
        """Requests that have a slot."""
        return len(self._batch.running)

    @property
    def unfinished_count(self) -> int:
        """Requests that were added and are not finished, those that wait for their grammar or for a slot included."""
        return len(self._unfinished)

    @property
    def is_without_daemon(self) -> bool:
        """Whether outputs with a grammar are held back until the daemon answers again."""
        return self._outage.is_on

    def add(self, request: Request) -> Generation:
        """Queues ``request`` and returns its output to be. The request joins when its grammar is compiled.

        Raises:
            ValueError: the prompt is empty or too long, a number is out of range, or a bias is for no token.
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
        """Makes turns until all that was added is finished; with ``stop``, until that is set."""
        while not stop.is_set() if stop else self._unfinished:
            if not self.step():
                self._admission.wait(_IDLE_SECONDS)

    def step(self) -> bool:
        """Makes one turn.

        Returns:
            False if there was no request to make it for, or if it failed; then it has ended its requests.
        """
        try:
            pending = self._pending or self._schedule.next(self._no_tokens, {})
            self._pending = self._turn(pending) if pending else None
        except Exception as error:
            self._abandon(error)
            return False
        if pending is not None or (self.failure is not None and self._works()):
            self.failure = None
        return pending is not None

    def close(self, error: Exception | None = None) -> None:
        """Ends unfinished outputs as cancelled, or with ``error``. Model and masker stay open."""
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
        masks, wait_seconds = self._mask(pending)
        slots = [slot for slot in pending.sampling if not slot.has_left and not self._outage.holds(slot)]
        sampled = self._drawing.draw(slots, masks)
        drawn = time.perf_counter()
        tokens = self._deliver(sampled, masks)
        following = self._schedule.next(sampled.on_device, tokens)
        ended = time.perf_counter()
        timing = TurnTiming(
            batch_size=len(sampled.slots),
            forward_seconds=forwarded - started,
            mask_wait_seconds=wait_seconds,
            sample_seconds=drawn - forwarded - wait_seconds,
            turn_seconds=ended - started,
        )
        self.timings.append(timing)
        return following

    def _forward(self, pending: Pending) -> None:
        if pending.decoding:
            self._model.decode(pending.last_tokens, [slot.index for slot in pending.decoding])
        for slot, token_ids in pending.reading:
            with self._batch.alone(slot):
                self._model.prefill(slot.index, token_ids)

    def _mask(self, pending: Pending) -> tuple[Masks | None, float]:
        """Masks the logits; returns the masks, if there are any, and the seconds that their rows were waited for.

        If the session is lost, an outage begins: after it the model reads the last token of these slots once more.
        """
        if not pending.is_masked:
            return None, 0.0
        started = time.perf_counter()
        masks = self._masker.try_apply_(self._model.logits)
        if masks is not None:
            return masks, masks.wait_seconds
        for slot in pending.sampling:
            if slot.handle is not None and not slot.has_left:
                self._model.rewind(slot.index)
                slot.reread(slot.generation.token_ids[-1:] or slot.generation.request.prompt[-1:])
        self._outage.begin(self._masker.collect)
        return None, time.perf_counter() - started

    def _deliver(self, sampled: Sampled, masks: Masks | None) -> dict[int, int]:
        """Gives every sampled token to its output, and frees the slots of outputs that end.

        Returns:
            Handle to sampled token, for the sequences that go on.
        """
        tokens: dict[int, int] = {}
        for slot in sampled.slots:
            token_id = sampled.token_ids[slot.index]
            if masks is not None and slot.handle is not None and slot.handle in masks.errors:
                ending: Ending | None = Ending("error", masks.errors[slot.handle])
            else:
                is_full = self._model.lengths[slot.index] == self._model.context_length
                ending = slot.append(token_id, sampled.logprobs.get(slot.index), is_full=is_full)
            if ending is not None:
                self._batch.leave(slot, ending)
            elif slot.handle is not None:
                tokens[slot.handle] = token_id
        return tokens

    def _finish(self, generation: Generation, reason: FinishReason, error: Exception | None = None) -> None:
        self._unfinished.discard(generation)
        try:
            generation.finish(reason, error)
        except Exception:  # the output is finished; telling its caller failed
            logger.exception("what hears of the end of an output failed")

    # -- turns that fail -------------------------------------------------------------------------------------------

    def _abandon(self, error: Exception) -> None:
        """Ends the outputs of a turn that failed, for nothing says which of them is at fault. Those that wait stay.

        A thread collects what the masker was asked, as in an outage. Slots that an outage holds back stay too.
        """
        self._fail(error)
        self._pending = None
        self.failed_turns += 1
        for slot in self._batch.running:
            if not self._outage.holds(slot):
                fault = EngineFault("the engine failed at a batch with this output; its log says more")
                with contextlib.suppress(Exception):  # the output is finished all the same
                    self._batch.leave(slot, Ending("error", fault))
        if not self._outage.is_on:
            self._outage.begin(self._settle)

    def _fail(self, error: Exception) -> None:
        if repr(error) != repr(self.failure):  # a device that is gone fails every turn
            logger.error("a turn of the decode loop failed; its requests end", exc_info=error)
        self.failure = error

    def _settle(self) -> None:
        with contextlib.suppress(InvalidRequestError):  # nothing was asked
            self._masker.collect()

    def _works(self) -> bool:
        """Reads and draws a token in a free slot; returns whether that went well, False if no slot is free."""
        index = next(iter(self._batch.free_indices), None)
        if index is None:
            return False
        try:
            try:
                self._model.prefill(index, [0])
            finally:
                self._model.free(index)
            self._drawing.sample([], {}).tolist()  # waits for the device, which may fail late
        except Exception as error:
            self._fail(error)
            return False
        return True
