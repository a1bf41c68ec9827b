"""The batch: which output is in which slot, how outputs join and leave, and which failure ends which output.

Owns: slots, and how an output ends in one. Knows nothing about: turns, rows, how tokens are drawn.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine_adapter.decoding.admission import Admitted
from engine_adapter.decoding.request import EngineFault, FinishReason, Generation, TokenLogprobs
from engine_adapter.masker import Masker
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.sampler import Sampler
from engine_adapter.steering.base import Steering
from maskd.errors import MaskdError

__all__ = ["Batch", "Ending", "Slot"]

logger = logging.getLogger("engine_adapter")


class Ending(NamedTuple):
    """How an output ends."""

    reason: FinishReason
    error: Exception | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Slot:
    """An output in its slot.

    Attributes:
        index: of the slot in the model.
        generation: the output.
        handle: its sequence at the masker; None without a grammar.
        unread: tokens that the model's cache lacks before the next one is drawn, for instance the end of the prompt.
        stop_token_ids: end the output.
        steering: None if there is none, or once it failed.
        has_left: whether the output has ended and the slot is free.
    """

    index: int
    generation: Generation
    handle: int | None
    unread: Sequence[int]
    stop_token_ids: frozenset[int]
    steering: Steering | None
    has_left: bool = False

    def reread(self, token_ids: Sequence[int]) -> None:
        """Lets the model read ``token_ids`` before everything else that is unread."""
        self.unread = [*token_ids, *self.unread]

    def append(self, token_id: int, logprobs: TokenLogprobs | None, *, is_full: bool) -> Ending | None:
        """Appends a sampled token, unless it ends the output; returns how the output ended, None if it goes on.

        Args:
            token_id: what was sampled.
            logprobs: of the token, if the request asks for them.
            is_full: the context has no room for another token.
        """
        generation, request = self.generation, self.generation.request
        if generation.is_cancelled:
            return Ending("cancelled")
        if token_id in self.stop_token_ids:
            return Ending("stop")
        generation.token_ids.append(token_id)
        if logprobs is not None:
            generation.logprobs.append(logprobs)
        with self.steering_alone():
            if self.steering is not None:
                self.steering.accept(token_id)
        try:
            if request.on_token is not None and request.on_token(generation):
                return Ending("stop")
        except Exception as error:  # the caller's mistake is no reason to stop the others
            return Ending("error", _fault_of(error))
        return Ending("length") if is_full or len(generation.token_ids) == request.max_tokens else None

    @contextlib.contextmanager
    def steering_alone(self) -> Iterator[None]:
        """A failure within ends the steering, not the output: the mask alone makes a valid output."""
        try:
            yield
        except Exception as error:
            logger.warning("an output is not steered any more: %r", error, exc_info=not isinstance(error, ValueError))
            self.steering = None


class Batch:
    """The slots of one model. For the loop's thread."""

    def __init__(
        self,
        model: SlotModel,
        masker: Masker,
        sampler: Sampler,
        stop_token_ids: frozenset[int],
        finish: Callable[[Generation, FinishReason, Exception | None], None],
    ) -> None:
        """``stop_token_ids`` end the outputs whose grammars name no others. ``finish`` is told of every ending."""
        self._model = model
        self._masker = masker
        self._sampler = sampler
        self._stop_token_ids = stop_token_ids
        self._finish = finish
        self._slots: list[Slot | None] = [None] * model.slot_count

    @property
    def running(self) -> list[Slot]:
        """The slots with an output, ascending."""
        return [slot for slot in self._slots if slot is not None]

    @property
    def free_indices(self) -> list[int]:
        """The slots without an output, ascending."""
        return [index for index, slot in enumerate(self._slots) if slot is None]

    def join(self, take: Callable[[], Admitted | None]) -> None:
        """Fills the free slots with what ``take`` returns, until that is None."""
        for index in self.free_indices:
            if (ready := take()) is None:
                return
            request = ready.generation.request
            options = request.grammar.options if request.grammar else None
            stop = frozenset(options.stop_token_ids) if options and options.stop_token_ids else self._stop_token_ids
            slot = self._slots[index] = Slot(
                index=index,
                generation=ready.generation,
                handle=ready.handle,
                unread=request.prompt,
                stop_token_ids=stop | request.stop_token_ids,
                steering=request.steering,
            )
            with self.alone(slot):
                self._sampler.set(index, request.sampling, request.prompt)

    def leave(self, slot: Slot, ending: Ending) -> None:
        """Ends the output of ``slot`` and frees the slot."""
        self._slots[slot.index] = None
        slot.has_left = True
        try:
            if slot.handle is not None:  # first: whatever else fails, the daemon must not keep it
                self._masker.close(slot.handle)
            self._model.free(slot.index)
            self._sampler.release(slot.index)
        finally:
            self._finish(slot.generation, ending.reason, ending.error)

    @contextlib.contextmanager
    def alone(self, slot: Slot) -> Iterator[None]:
        """A failure within ends the output of ``slot``; the others go on."""
        try:
            yield
        except Exception as error:
            if not slot.has_left:
                self.leave(slot, Ending("error", _fault_of(error)))


def _fault_of(error: Exception) -> Exception:
    """Returns what the request is told that ``error`` ends. Unexpected errors are only told to the log."""
    if isinstance(error, MaskdError):
        return error
    logger.error("an output failed: %r", error, exc_info=error)
    fault = EngineFault("the engine failed at this output; its log says more")
    return error if isinstance(error, EngineFault) else fault
