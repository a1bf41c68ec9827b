"""The engine: text in, text out, over the decode loop on a thread of its own. Servers and offline interfaces use it.

Owns: the model, the daemon if it started one, the masker, the loop's thread, and the limit of the queue.
Knows nothing about: HTTP, dialects, how masks are made, how tokens are drawn.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import Generation
from engine_adapter.engine.generation import Choice, TextGeneration, TextRequest
from engine_adapter.engine.intake import Intake
from engine_adapter.engine.output import Output
from engine_adapter.masker import Masker
from engine_adapter.model.loading import load_model
from engine_adapter.model.slots import SlotModel, slots_that_fit
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.text.reasoning_prompts import ReasoningPrompts
from engine_adapter.text.tokenizer import TextTokenizer
from maskd.client import Client
from maskd.grammar import WhenSlow
from maskd.sidecar import Sidecar
from maskd.tokenizer_files import load_vocabulary

__all__ = ["Engine", "EngineStats", "QueueFullError"]

logger = logging.getLogger("engine_adapter")

_CONTEXT_LENGTH = 4096
_RERUN_SECONDS = 1.0
_TURNS_IN_STATS = 1000
_FINISHED_KEPT = 64
_LONGEST_RETRY_SECONDS = 60


class QueueFullError(RuntimeError):
    """The queue has no room for this request.

    Attributes:
        retry_after_seconds: whole seconds until a slot is likely to be free.
    """

    def __init__(self, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What the engine is doing and has done. A request counts as many times as it has outputs.

    Attributes:
        slots: outputs that can run at a time.
        running: outputs that have a slot.
        waiting: outputs that wait for their grammar or for a slot.
        queue_limit: most that may wait.
        finished: by finish reason.
        prompt_tokens: of all requests.
        generated_tokens: of all outputs.
        turns: of the loop, as far as it remembers.
        mask_wait_p50_seconds: how long a turn waited for masks after its forward pass; median of the latest turns.
        mask_wait_p99_seconds: the same, 99th percentile.
        turn_p50_seconds: length of a turn, median.
        turn_p99_seconds: 99th percentile.
        failed_turns: turns that failed, and ended every output in them.
    """

    slots: int
    running: int
    waiting: int
    queue_limit: int
    finished: dict[str, int]
    prompt_tokens: int
    generated_tokens: int
    turns: int
    mask_wait_p50_seconds: float
    mask_wait_p99_seconds: float
    turn_p50_seconds: float
    turn_p99_seconds: float
    failed_turns: int


class Engine:
    """Generates text for many requests at a time. Thread-safe; a context manager.

    Attributes:
        model_name: of the model's directory.
        tokenizer: text to ids and back, and the chat template.
        prompts: renders conversations, reasoning included.
        context_length: most tokens of a prompt and its output together.
        trained: False if the weights are random numbers.
        model_sampling: what the model's files say about sampling, as fields of ``SamplingParams``; for callers that
            have no defaults of their own.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        target: str | None = None,
        backend: str = "auto",
        slots: int | None = None,
        queue_limit: int = 256,
        device: str | None = None,
        bounded: bool = False,
        context_length: int | None = None,
        restore_seconds: float = 30.0,
        reasoning_end: str | None = None,
        when_slow: WhenSlow = "wait",
    ) -> None:
        """Loads the model, finds or starts a daemon, and starts the loop. Takes seconds.

        Args:
            model: a local Hugging Face directory; None = the bundled model.
            target: a running daemon, "unix:/path" or "host:port"; None = start one, which ends with the engine.
            backend: of every grammar that does not name one.
            slots: outputs that run at a time; None = 16 on the CPU, 256 on CUDA. On CUDA the engine makes fewer if
                the memory has no room for them.
            queue_limit: outputs that may wait; more are refused.
            device: "cpu", "cuda", "cuda:1"; None = CUDA if there is any.
            context_length: None = the model's own, 4096 at most.
            bounded: narrow every JSON schema so that its documents are short, for untrained models: see
                ``structured_output.bounded``.
            restore_seconds: how long outputs with a grammar wait for a daemon that went away, before they fail. The
                others go on.
            reasoning_end: text that ends the reasoning of a model that always begins with it; None = the text that
                its chat template shows, "" = the model does not reason.
            when_slow: what happens to outputs whose masks are late, unless a request says otherwise: see
                ``GrammarSpec``.

        Raises:
            ValueError: the loop cannot run this model, or its files have wrong values. MaskdError: no daemon.
        """
        with ExitStack() as stack:
            sidecar = None if target is not None else stack.enter_context(Sidecar())
            loaded = load_model(model, device)
            most = int(getattr(loaded.network.config, "max_position_embeddings", _CONTEXT_LENGTH))
            self.context_length = min(context_length or _CONTEXT_LENGTH, most)
            self.model_name = loaded.path.resolve().name
            self.trained = loaded.trained
            self.model_sampling = loaded.sampling
            try:
                SamplingParams(**self.model_sampling)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{loaded.path}/generation_config.json: {error}") from error
            self.tokenizer = TextTokenizer(loaded.tokenizer, loaded.path)
            self.prompts = ReasoningPrompts(self.tokenizer, reasoning_end)
            self._vocabulary = load_vocabulary(loaded.path, vocab_size=loaded.vocab_size)
            self._slot_count = slots_that_fit(loaded, self.context_length, slots)
            # The engine must notice that the daemon is away sooner than outputs give up waiting for it.
            reach_seconds = min(10.0, max(1.0, restore_seconds))
            connect = (
                sidecar.connect if sidecar else partial(Client.connect, str(target), timeout_seconds=reach_seconds)
            )
            masker = stack.enter_context(
                Masker(connect, self._vocabulary, row_capacity=self._slot_count, restore_seconds=restore_seconds)
            )
            slot_model = SlotModel(loaded.network, self._slot_count, self.context_length)
            self._loop = DecodeLoop(slot_model, masker, self._vocabulary.stop_token_ids)
            self._resources = stack.pop_all()
        self._intake = Intake(
            self.tokenizer,
            self.prompts,
            self._vocabulary,
            context_length=self.context_length,
            backend=backend,
            when_slow=when_slow,
            bounded=bounded,
        )
        self._queue_limit = queue_limit
        self._lock = threading.Lock()  # guards the admission and the counters below
        self._finished: Counter[str] = Counter()
        self._durations: deque[float] = deque(maxlen=_FINISHED_KEPT)
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decode loop", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """Why the latest turn of the loop failed, with every output in it; None if it did not. The loop tries again."""
        return self._loop.failure

    def submit(self, request: TextRequest) -> TextGeneration:
        """Queues ``request`` and returns its outputs to be. Errors of its grammar appear there, not here.

        Raises:
            QueueFullError: too many wait; nothing was queued.
            ValueError: the prompt is empty or too long for the context, or a number is out of range.
            RuntimeError: the engine is closed.
        """
        prepared = self._intake.prepare(request)
        generations: list[Generation] = []

        def cancel() -> None:
            for generation in generations:
                generation.cancel()

        outputs = TextGeneration(request, len(prepared.prompt), cancel)
        with self._lock:
            self._admit(request.output_count)
            for choice in outputs.choices:
                output = Output(
                    outputs,
                    choice,
                    self._vocabulary,
                    end_token_ids=self.prompts.end_token_ids,
                    when_finished=self._count_finished,
                )
                asked = self._intake.output_request(prepared, choice.index)
                asked = dataclasses.replace(asked, on_token=output.on_token, on_finish=output.on_finish)
                generations.append(self._loop.add(asked))
            self._prompt_tokens += len(prepared.prompt)
        return outputs

    def stats(self) -> EngineStats:
        """Returns what the engine is doing and has done."""
        timings = list(self._loop.timings)[-_TURNS_IN_STATS:]
        waits = np.quantile([timing.mask_wait_seconds for timing in timings] or [0.0], (0.5, 0.99))
        turns = np.quantile([timing.turn_seconds for timing in timings] or [0.0], (0.5, 0.99))
        running = self._loop.running_count
        return EngineStats(
            slots=self._slot_count,
            running=running,
            waiting=max(0, self._loop.unfinished_count - running),
            queue_limit=self._queue_limit,
            finished=dict(self._finished),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            turns=len(self._loop.timings),
            mask_wait_p50_seconds=float(waits[0]),
            mask_wait_p99_seconds=float(waits[1]),
            turn_p50_seconds=float(turns[0]),
            turn_p99_seconds=float(turns[1]),
            failed_turns=self._loop.failed_turns,
        )

    def close(self) -> None:
        """Cancels unfinished outputs, stops the loop, and the daemon if the engine started it. Safe to repeat."""
        self._stopping.set()
        self._thread.join()
        self._loop.close()
        self._resources.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- admission -------------------------------------------------------------------------------------------------

    def _admit(self, count: int) -> None:
        if self._stopping.is_set():
            raise RuntimeError("the engine is closed")
        unfinished = self._loop.unfinished_count
        if unfinished + count > self._slot_count + self._queue_limit:
            typical = sum(self._durations) / len(self._durations) if self._durations else 1.0
            waiting = max(0, unfinished - self._slot_count)
            seconds = typical * (waiting + count) / self._slot_count
            raise QueueFullError(waiting, round(min(max(1.0, seconds), _LONGEST_RETRY_SECONDS)))

    def _count_finished(self, choice: Choice, duration_seconds: float) -> None:
        self._finished[str(choice.finish_reason)] += 1
        self._generated_tokens += len(choice.token_ids)
        self._durations.append(duration_seconds)

    # -- the loop's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._loop.run(self._stopping)
            except Exception:  # between turns: the loop itself deals with the failure of a turn
                logger.exception("the decode loop failed between turns; it is run again")
                self._stopping.wait(_RERUN_SECONDS)
