"""The engine: streams, stop strings, several outputs, limits and cancelling, with the bundled model and a real
daemon."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from engine_adapter.decoding.request import EngineFault
from engine_adapter.engine import Engine, QueueFullError
from engine_adapter.engine.generation import Delta, TextRequest
from engine_adapter.sampling.params import SamplingParams
from maskd.errors import GrammarError, GrammarUnsupportedError
from maskd.grammar import GrammarSpec
from tests.conftest import Daemon

torch.set_num_threads(1)
WORD = GrammarSpec("regex", "[a-z]{40,60}")
LETTERS = GrammarSpec("regex", "[a-z]+")
DIGITS = GrammarSpec("regex", "[0-9]{600}")  # a long output, which does not end by itself
PROMPT = "Tell me:"


@pytest.fixture(scope="module")
def engine(daemon: Daemon) -> Iterator[Engine]:
    with Engine(target=daemon.target, slots=4, queue_limit=6, device="cpu", context_length=1024) as made:
        yield made


def sampled(seed: int, **options: float) -> SamplingParams:
    return SamplingParams(seed=seed, **options)  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_readers_on_threads_and_on_event_loops_then_all_get_every_delta(engine: Engine) -> None:
    generation = engine.submit(TextRequest(PROMPT, WORD, sampled(1), n=2))
    threads: list[list[Delta]] = [[], []]
    readers = [threading.Thread(target=lambda seen=seen: seen.extend(generation)) for seen in threads]
    for reader in readers:
        reader.start()

    async def read() -> list[Delta]:
        return [delta async for delta in generation]

    async def read_both() -> list[list[Delta]]:
        return await asyncio.gather(read(), read())

    seen = [*asyncio.run(read_both()), list(generation)]
    for reader in readers:
        reader.join(60)
    choices = generation.result(60)
    assert all(deltas == seen[0] for deltas in [*seen, *threads])
    for choice in choices:
        mine = [delta for delta in seen[0] if delta.index == choice.index]
        assert "".join(delta.text for delta in mine) == choice.text and re.fullmatch(WORD.source, choice.text)
        assert [token_id for delta in mine for token_id in delta.token_ids] == choice.token_ids
        assert [delta.finish_reason for delta in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert choices[0].text != choices[1].text
    assert generation.report is not None and generation.prompt_tokens == len(engine.tokenizer.encode(PROMPT))


def test_same_seed_then_same_output_and_output_i_is_that_of_seed_plus_i(engine: Engine) -> None:
    both = engine.submit(TextRequest(PROMPT, WORD, sampled(5), n=2)).result(60)
    alone = [
        engine.submit(TextRequest(engine.tokenizer.encode(PROMPT), WORD, sampled(seed))).result(60)[0]
        for seed in (5, 6)
    ]
    assert [choice.token_ids for choice in both] == [choice.token_ids for choice in alone]


def test_stop_string_across_tokens_then_cut_exactly(engine: Engine) -> None:
    (whole,) = engine.submit(TextRequest(PROMPT, WORD, sampled(2))).result(60)
    stop = whole.text[10:20]
    generation = engine.submit(TextRequest(PROMPT, WORD, sampled(2), stop=("never", stop)))
    text = "".join(delta.text for delta in generation)
    (cut,) = generation.choices
    assert text == cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_string) == ("stop", stop) and cut.token_ids == whole.token_ids[
        : len(cut.token_ids)
    ]
    assert len(cut.token_ids) < len(whole.token_ids)


def test_logprobs_then_of_the_distribution_after_the_mask(engine: Engine) -> None:
    spec = GrammarSpec("regex", "[ab]{8}")
    generation = engine.submit(
        TextRequest(PROMPT, spec, sampled(3, temperature=2.0, presence_penalty=1.0), logprobs=2000)
    )
    (choice,) = generation.result(60)
    assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
    for entry, token_id in zip(choice.logprobs, choice.token_ids, strict=True):
        assert entry.token_id == token_id and (token_id, entry.logprob) in entry.top
        assert list(entry.top) == sorted(entry.top, key=lambda pair: -pair[1])
        assert math.isclose(sum(math.exp(logprob) for _, logprob in entry.top), 1.0, abs_tol=1e-3)
        assert all(set(engine.tokenizer.decode([other])) <= {"a", "b"} for other, _ in entry.top)
    streamed = [entry for delta in generation if delta.logprobs for entry in delta.logprobs]
    assert streamed == choice.logprobs
    (few,) = engine.submit(TextRequest(PROMPT, spec, sampled(3), logprobs=0)).result(60)
    assert few.logprobs is not None and all(entry.top == () for entry in few.logprobs)


def test_penalties_then_tokens_repeat_less(engine: Engine) -> None:
    def distinct(**options: float) -> int:
        sampling = SamplingParams(temperature=1.0, seed=0, **options)  # type: ignore[arg-type]
        choices = engine.submit(TextRequest(PROMPT, LETTERS, sampling, 40, n=4)).result(60)
        return sum(len(set(choice.token_ids)) for choice in choices)

    assert distinct() < distinct(frequency_penalty=2.0) and distinct() < distinct(presence_penalty=2.0)
    with pytest.raises(ValueError, match="presence_penalty is 3"):
        SamplingParams(presence_penalty=3.0)


def test_cancelled_outputs_then_slots_and_queue_are_free(engine: Engine) -> None:
    generations = [engine.submit(TextRequest(PROMPT, DIGITS, sampled(seed), n=2)) for seed in range(5)]
    until(lambda: engine.stats().running == 4)
    with pytest.raises(QueueFullError) as full:
        engine.submit(TextRequest(PROMPT))
    assert 1 <= full.value.retry_after_seconds <= 60
    assert engine.stats().waiting == 6 == engine.stats().queue_limit
    generations[-1].cancel()  # waits for a slot: nobody has to leave for it to end
    assert {choice.finish_reason for choice in generations[-1].result(60)} == {"cancelled"}
    with pytest.raises(TimeoutError):
        generations[0].result(0.01)
    for generation in generations:
        generation.cancel()
    assert {choice.finish_reason for generation in generations for choice in generation.result(60)} == {"cancelled"}
    until(lambda: engine.stats().running == engine.stats().waiting == 0)
    assert engine.submit(TextRequest(PROMPT, WORD, sampled(1))).result(60)[0].finish_reason == "stop"


def test_budget_then_length_and_no_budget_fits_the_context(engine: Engine) -> None:
    (short,) = engine.submit(TextRequest(PROMPT, DIGITS, sampled(1), 5)).result(60)
    assert short.finish_reason == "length" and len(short.token_ids) == 5
    (full,) = engine.submit(TextRequest([300] * 1014, DIGITS, sampled(1))).result(60)
    assert full.finish_reason == "length" and len(full.token_ids) == 10


def test_refused_requests_then_errors_where_they_are_due(engine: Engine) -> None:
    for request, message in (
        (TextRequest(""), "0 tokens"),
        (TextRequest([1] * 1024), "1024 tokens; give 1 to 1023"),
        (TextRequest([1 << 30]), "token id"),
        (TextRequest(PROMPT, n=0), "n is 0"),
        (TextRequest(PROMPT, max_tokens=0), "max_tokens is 0"),
        (TextRequest(PROMPT, logprobs=-1), "logprobs is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(request)
    generation = engine.submit(TextRequest(PROMPT, GrammarSpec("regex", "("), n=2))
    assert [delta.finish_reason for delta in generation] == ["error", "error"]
    assert isinstance(generation.choices[1].error, GrammarError)
    with pytest.raises(GrammarError):
        generation.result(60)


def test_slow_masks_when_the_request_says_what_they_mean_then_the_daemon_is_told(engine: Engine) -> None:
    """Switching needs a second backend that takes the grammar: the daemon says so when the grammar is made, so it was
    told."""
    only_xgrammar = GrammarSpec("structural_tag", '{"format": {"type": "exclude_token", "token": "<|im_start|>"}}')
    for when_slow in ("wait", "fail"):
        assert engine.submit(TextRequest(PROMPT, only_xgrammar, sampled(1), 8, when_slow=when_slow)).result(60)  # type: ignore[arg-type]
    with pytest.raises(GrammarUnsupportedError, match="'switch', and no backend but xgrammar"):
        engine.submit(TextRequest(PROMPT, only_xgrammar, sampled(1), 8, when_slow="switch")).result(60)
    switching = engine.submit(TextRequest(PROMPT, WORD, sampled(1), 8, when_slow="switch")).result(60)
    assert switching[0].text == engine.submit(TextRequest(PROMPT, WORD, sampled(1), 8)).result(60)[0].text


def test_chat_template_then_a_prompt(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "Hi" in text and len(text) > len(engine.tokenizer.apply_chat_template(messages, add_generation_prompt=False))
    assert engine.tokenizer.apply_chat_template(messages, tokenize=True) == engine.tokenizer.encode(text)
    assert engine.tokenizer.decode(engine.tokenizer.encode("Grüße, 🙂")) == "Grüße, 🙂"


def test_bounded_engine_when_closed_then_nothing_is_left_running(daemon: Daemon) -> None:
    schema = GrammarSpec("json_schema", json.dumps({"type": "array", "items": {"type": "string"}}))
    with Engine(
        target=daemon.target, slots=2, device="cpu", bounded=True, backend="llguidance", context_length=128
    ) as engine:
        generation = engine.submit(TextRequest(PROMPT, schema, sampled(1)))
        assert len(json.loads(generation.result(60)[0].text)) <= 4
        assert generation.report is not None and generation.report.backend == "llguidance"
        stats = engine.stats()
        assert stats.finished == {"stop": 1} and stats.turns > 1 and stats.generated_tokens > 0
        assert 0 < stats.turn_p50_seconds <= stats.turn_p99_seconds
        endless = engine.submit(TextRequest(PROMPT, DIGITS, sampled(1)))
    assert endless.result(60)[0].finish_reason == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(TextRequest(PROMPT))


@pytest.mark.parametrize("place", ["_forward", "_abandon"])
def test_engine_when_its_loop_fails_then_those_in_it_hear_of_it_and_it_goes_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Also if what keeps a failure within its turn fails itself."""
    with Engine(target=daemon.target, slots=2, device="cpu", context_length=128) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine._loop, "_forward", lambda pending: 1 / 0)
            if place == "_abandon":
                patch.setattr(engine._loop, "_abandon", lambda error: patch.undo() or 1 / 0)
                engine.submit(TextRequest(PROMPT, max_tokens=5)).result(60)  # the same turn, made again
            else:
                with pytest.raises(EngineFault):
                    engine.submit(TextRequest(PROMPT, max_tokens=5)).result(60)
                assert isinstance(engine.failure, ZeroDivisionError) and engine.stats().failed_turns == 1
        until(lambda: engine.failure is None)
        assert len(engine.submit(TextRequest(PROMPT, max_tokens=5)).result(60)[0].token_ids) <= 5
