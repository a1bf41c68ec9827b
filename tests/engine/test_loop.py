"""The decode loop with the bundled model and real daemons: mixed batches, endings, and what nobody may notice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
import torch

from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import EngineFault, Generation, Request
from engine_adapter.masker import Masker
from engine_adapter.model.loading import LoadedModel, load_model
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.sampling.sampler import Sampler
from engine_adapter.steering.closing import ClosingVocabulary, steering_for
from engine_adapter.structured_output.bounded import bounded_spec
from maskd.client import Client
from maskd.errors import GrammarError, UnavailableError
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.endings.open_values import OpenValue
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon

torch.set_num_threads(1)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "work history": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
    },
    "required": ["name", "work history"],
}
JSON = bounded_spec(GrammarSpec("json_schema", json.dumps(SCHEMA)))
CITY = GrammarSpec("regex", "(Paris|London)", backend="xgrammar")
CAPITAL = GrammarSpec(
    "ebnf",
    'root ::= city " is the capital of " country\ncity ::= "Rome" | "Oslo"\ncountry ::= "Italy" | "Norway"',
    backend="llguidance",
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def vocabulary(loaded: LoadedModel) -> Vocabulary:
    return load_vocabulary(loaded.path)


@contextmanager
def looping(
    loaded: LoadedModel, vocabulary: Vocabulary, target: str | Callable[[], Client], slots: int = 4, **masking: float
) -> Iterator[DecodeLoop]:
    model = SlotModel(loaded.network, slot_count=slots, context_length=160)
    with (
        Masker(target, vocabulary, row_capacity=slots, restore_seconds=masking.get("restore_seconds", 30.0)) as masker,
        DecodeLoop(model, masker, vocabulary.stop_token_ids, chunk_tokens=8) as loop,
    ):
        yield loop


def request(
    loaded: LoadedModel, grammar: GrammarSpec | None, seed: int, max_tokens: int = 100, prompt: str = "Tell me:"
) -> Request:
    return Request(
        loaded.tokenizer.encode(prompt).ids, grammar, sampling=SamplingParams(seed=seed), max_tokens=max_tokens
    )


def batch(loaded: LoadedModel) -> list[Request]:
    """More requests than slots, with prompts of several lengths, of every kind."""
    grammars = [JSON, CITY, None, CAPITAL] * 3
    return [
        request(loaded, grammar, seed, prompt="Tell me " * (1 + seed % 4 * 3), max_tokens=100 if grammar else 30)
        for seed, grammar in enumerate(grammars)
    ]


def text(loaded: LoadedModel, generation: Generation) -> str:
    return str(loaded.tokenizer.decode(generation.token_ids))


def check(loaded: LoadedModel, generation: Generation) -> None:
    """A finished output is what its request asked for."""
    grammar = generation.request.grammar
    if grammar is None:
        assert generation.finish_reason == "stop" or len(generation.token_ids) == generation.request.max_tokens
        return
    assert generation.finish_reason == "stop", (generation.finish_reason, generation.error)
    output = text(loaded, generation)
    if grammar is JSON:
        jsonschema.validate(json.loads(output), SCHEMA)
    else:
        assert re.fullmatch("Paris|London|(Rome|Oslo) is the capital of (Italy|Norway)", output)


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon) -> list[list[int]]:
    """What the batch generates when nothing happens."""
    with looping(loaded, vocabulary, daemon.target) as loop:
        generations = [loop.add(each) for each in batch(loaded)]
        loop.run()
    for generation in generations:
        check(loaded, generation)
    reports = [generation.report and generation.report.backend for generation in generations]
    assert reports[1:4] == ["xgrammar", None, "llguidance"]
    assert len(loop.timings) > 30 and all(0 < turn.forward_seconds < turn.turn_seconds for turn in loop.timings)
    assert max(turn.batch_size for turn in loop.timings) == 4
    return [generation.token_ids for generation in generations]


@pytest.mark.parametrize("index", [0, 1, 3])
def test_output_when_alone_then_is_that_of_a_full_batch(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, undisturbed: list[list[int]], index: int
) -> None:
    with looping(loaded, vocabulary, daemon.target, slots=2) as loop:
        generation = loop.add(batch(loaded)[index])
        loop.run()
    assert undisturbed[index] == generation.token_ids


@pytest.mark.parametrize("victim", ["worker", "daemon"])
def test_output_when_killed_in_mid_decode_then_is_that_of_an_undisturbed_run(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    start_daemon: Callable[..., Daemon],
    undisturbed: list[list[int]],
    victim: str,
) -> None:
    daemon = start_daemon()
    with looping(loaded, vocabulary, daemon.target) as loop:
        generations = [loop.add(each) for each in batch(loaded)]
        while len(loop.timings) < 12:
            loop.step()
        assert any(generation.finish_reason is None and generation.token_ids for generation in generations)
        restart = threading.Thread(target=daemon.restart)
        if victim == "worker":
            daemon.kill_worker()
        else:
            daemon.kill()
            restart.start()
        loop.run()
        if victim == "daemon":
            restart.join()
    assert undisturbed == [generation.token_ids for generation in generations]


def test_output_when_the_daemon_stays_away_then_masked_sequences_end_and_others_go_on(
    loaded: LoadedModel, vocabulary: Vocabulary, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon()
    with looping(
        loaded, vocabulary, lambda: Client.connect(daemon.target, timeout_seconds=0.1), restore_seconds=0.2
    ) as loop:
        masked, free = loop.add(request(loaded, JSON, 1)), loop.add(request(loaded, None, 2, max_tokens=40))
        while len(masked.token_ids) < 5:
            loop.step()
        daemon.kill()
        loop.run()
    assert masked.finish_reason == "error" and isinstance(masked.error, UnavailableError)
    check(loaded, free)


def test_output_when_the_daemon_is_away_in_mid_decode_then_free_ones_go_on_and_masked_ones_later(
    loaded: LoadedModel, vocabulary: Vocabulary, start_daemon: Callable[..., Daemon]
) -> None:
    """Others are decoded, one is cancelled and one joins while nobody makes masks; then the masked ones end as if
    nothing had happened."""

    def asked() -> list[Request]:
        return [
            request(loaded, JSON, 1),
            request(loaded, None, 2, max_tokens=40),
            request(loaded, JSON, 3, prompt="Tell me " * 12),
        ]

    daemon = start_daemon()
    with looping(loaded, vocabulary, daemon.target) as loop:
        wanted = [loop.add(each) for each in asked()]
        loop.run()
    with looping(
        loaded, vocabulary, lambda: Client.connect(daemon.target, timeout_seconds=0.2), restore_seconds=120.0
    ) as loop:
        masked, free, late = (loop.add(each) for each in asked())
        cancelled = loop.add(request(loaded, JSON, 4))
        while len(masked.token_ids) < 5 or not cancelled.token_ids:
            loop.step()
        daemon.kill()
        while not loop.is_without_daemon:
            loop.step()
        cancelled.cancel()
        joining = loop.add(request(loaded, None, 5, max_tokens=9))
        while free.finish_reason is None or joining.finish_reason is None:
            loop.step()
        assert masked.finish_reason is late.finish_reason is cancelled.finish_reason is None
        daemon.restart()
        loop.run()
    assert cancelled.finish_reason == "cancelled"
    assert [each.token_ids for each in (masked, free, late)] == [each.token_ids for each in wanted]
    for each in (masked, free, late):
        check(loaded, each)


def test_output_when_a_compile_waits_for_the_daemon_then_free_ones_go_on(
    loaded: LoadedModel, vocabulary: Vocabulary, start_daemon: Callable[..., Daemon]
) -> None:
    """A new grammar holds the way back to the daemon; a masked sequence that is decoded meanwhile is held back before
    its step is sent."""
    daemon = start_daemon()
    with looping(
        loaded, vocabulary, lambda: Client.connect(daemon.target, timeout_seconds=0.2), restore_seconds=120.0
    ) as loop:
        first = loop.add(request(loaded, CITY, 1))
        loop.run()
        daemon.kill()
        waiting = [loop.add(request(loaded, grammar, 2)) for grammar in (CAPITAL, CITY, JSON)]
        for seed in range(3):
            free = loop.add(request(loaded, None, seed, max_tokens=9))
            while free.finish_reason is None:
                loop.step()
        assert all(each.finish_reason is None for each in waiting)
        daemon.restart()
        loop.run()
    for each in (first, *waiting):
        check(loaded, each)


def test_output_when_a_grammar_is_bad_then_only_its_request_fails(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    with looping(loaded, vocabulary, daemon.target) as loop:
        bad, good = loop.add(request(loaded, GrammarSpec("regex", "("), 1)), loop.add(request(loaded, CITY, 2))
        loop.run()
    assert bad.finish_reason == "error" and isinstance(bad.error, GrammarError) and bad.wait(0)
    check(loaded, good)


def test_output_when_a_callback_raises_or_cancels_then_only_its_request_ends(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    seen: list[int] = []

    def raise_at_third(generation: Generation) -> bool:
        seen.append(generation.token_ids[-1])
        if len(seen) == 3:
            raise RuntimeError("the caller is gone")
        return False

    with looping(loaded, vocabulary, daemon.target) as loop:
        asked = request(loaded, None, 1)
        raising = loop.add(dataclasses.replace(asked, max_tokens=50, on_token=raise_at_third))
        cancelled, good = loop.add(request(loaded, None, 2)), loop.add(request(loaded, CITY, 3))
        while len(raising.token_ids) < 2:
            loop.step()
        cancelled.cancel()
        loop.run()
    assert raising.finish_reason == "error" and raising.token_ids == seen and len(seen) == 3
    assert cancelled.finish_reason == "cancelled" and len(cancelled.token_ids) < 5
    check(loaded, good)


def test_output_when_a_part_of_it_fails_then_only_its_request_ends(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling parameters that no tensor takes, a prompt that the model cannot read, banned words, and what hears of
    the end."""

    class Breaking:
        def forbidden(self, token_ids: Sequence[int]) -> list[int]:
            raise OverflowError

    def failing(generation: Generation) -> None:
        raise OSError

    huge = SamplingParams(seed=1)
    object.__setattr__(huge, "temperature", 1e39)
    prefill = SlotModel.prefill

    def reading(model: SlotModel, slot: int, token_ids: Sequence[int]) -> None:
        if set(token_ids) == {9}:
            raise torch.OutOfMemoryError
        prefill(model, slot, token_ids)

    monkeypatch.setattr(SlotModel, "prefill", reading)
    with looping(loaded, vocabulary, daemon.target) as loop:
        good, prompt = request(loaded, CITY, 2), request(loaded, None, 1).prompt
        broken = [
            Request(prompt, CITY, sampling=huge),
            Request([9, 9, 9], JSON),
            Request([9] * 8 + [5] * 20, None),  # in pieces of 8 tokens, of which the first fails
            Request(prompt, CITY, banned_words=Breaking()),  # type: ignore[arg-type]
        ]
        generations = [loop.add(each) for each in [good, *broken, good]]
        unheard = loop.add(Request(good.prompt, CITY, on_finish=failing))
        loop.run()
        again = loop.add(good)
        loop.run()
        assert loop.failed_turns == 0 and loop.running_count == 0
    reasons = [generation.finish_reason for generation in generations]
    assert reasons == ["stop", "error", "error", "error", "error", "stop"], reasons
    errors = [generation.error for generation in generations if generation.error]
    assert len(errors) == 4 and all(isinstance(error, EngineFault) for error in errors)
    for each in (generations[0], generations[-1], unheard, again):
        check(loaded, each)


@pytest.mark.parametrize("wanted", ["choose fails", "accept fails", 7, 10**6, 2**70, -1])
@pytest.mark.parametrize("grammar", [CITY, None])
def test_output_when_its_steering_fails_then_it_goes_on_without(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, wanted: int | str, grammar: GrammarSpec | None
) -> None:
    """It raises, or wants a token that the mask forbids, or one beyond the vocabulary."""
    calls: list[str] = []

    class Failing:
        def choose(self, row: object, drawn: int, remaining: int) -> int:
            calls.append("choose")
            if wanted == "choose fails":
                raise ValueError("lost")
            return drawn if isinstance(wanted, str) else wanted

        def accept(self, token_id: int) -> None:
            calls.append("accept")
            if wanted == "accept fails":
                raise RecursionError

    with looping(loaded, vocabulary, daemon.target) as loop:
        asked = request(loaded, grammar, 2, max_tokens=9)
        plain, neighbour = loop.add(asked), loop.add(request(loaded, JSON, 3))
        steered = loop.add(dataclasses.replace(asked, steering=Failing()))
        loop.run()
        assert loop.failed_turns == 0
    check(loaded, neighbour)
    assert (steered.finish_reason, steered.error) == (plain.finish_reason, None)
    if grammar is None and wanted == 7:  # nothing forbids it
        assert steered.token_ids == [7] * 9
    else:
        assert steered.token_ids == plain.token_ids
        assert calls == (["choose", "accept"] if wanted == "accept fails" else ["choose"]), "it is not asked again"


def test_output_when_its_schema_multiplies_then_the_loop_goes_on(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    """Eight alternatives in each of seven levels, all with the same schema below: 2,097,152 ways to the last one."""
    k, depth = 8, 7
    defs: dict[str, Any] = {f"d{depth}": {"type": "integer", "minimum": 0, "maximum": 9}}
    for level in range(depth):
        below = {"$ref": f"#/$defs/d{level + 1}"}
        ways = [
            {"type": "object", "properties": {"a": below, f"b{way}": {"type": "null"}}, "required": ["a"]}
            for way in range(k)
        ]
        defs[f"d{level}"] = {"anyOf": [{**way, "additionalProperties": False} for way in ways]}
    spec = GrammarSpec(
        "json_schema", json.dumps({"$ref": "#/$defs/d0", "$defs": defs}), options=GrammarOptions(max_whitespace=0)
    )
    steering = steering_for(spec, ClosingVocabulary(vocabulary))
    sizes: list[int] = []
    begin = OpenValue.begin

    def counting(value: OpenValue, *arguments: Any) -> Any:
        sizes.append(len(value._readings))
        assert sizes[-1] <= 128, "else it would take minutes"
        return begin(value, *arguments)

    with pytest.MonkeyPatch.context() as patch, looping(loaded, vocabulary, daemon.target) as loop:
        patch.setattr(OpenValue, "begin", counting)
        hostile = loop.add(dataclasses.replace(request(loaded, spec, 1), steering=steering))
        neighbour = loop.add(request(loaded, CITY, 2))
        loop.run()
        check(loaded, neighbour)
    assert hostile.finish_reason == "stop" and json.loads(text(loaded, hostile)) and max(sizes) == k


@pytest.mark.parametrize("place", ["decode", "sample", "try_apply_", "try_advance"])
def test_output_when_a_turn_fails_then_its_batch_ends_and_the_loop_goes_on(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever the place: all of the batch is told so, those that waited and those that come later get what they would
    have got."""
    owner: Any = {"decode": SlotModel, "sample": Sampler, "try_apply_": Masker, "try_advance": Masker}[place]
    real, calls = getattr(owner, place), itertools.count()

    def failing(*arguments: Any) -> Any:
        if loop.running_count == 2 and next(calls) == 5:
            raise RuntimeError("a bug")
        return real(*arguments)

    monkeypatch.setattr(owner, place, failing)
    with looping(loaded, vocabulary, daemon.target, slots=2) as loop:
        running = [loop.add(request(loaded, JSON, 1)), loop.add(request(loaded, None, 2))]
        while loop.running_count < 2:
            loop.step()
        waiting = [loop.add(request(loaded, CITY, 3)), loop.add(request(loaded, None, 4, max_tokens=9))]
        while loop.failure is None:
            loop.step()
        assert str(loop.failure) == "a bug" and loop.failed_turns == 1
        loop.run()
        later = loop.add(request(loaded, JSON, 5))
        loop.run()
        assert loop.failure is None and loop.failed_turns == 1
    assert all(each.finish_reason == "error" and isinstance(each.error, EngineFault) for each in running)
    for each in (*waiting, later):
        check(loaded, each)


def test_loop_when_every_turn_fails_then_it_says_so_until_the_model_works_again(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries by itself while nothing is asked."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("no device")

    with looping(loaded, vocabulary, daemon.target) as loop:
        with monkeypatch.context() as patch:
            patch.setattr(Sampler, "sample", broken)
            lost = loop.add(request(loaded, None, 1))
            loop.run()
            for _ in range(3):
                loop.step()
                assert str(loop.failure) == "no device" and loop.failed_turns == 1, "what it tries by itself is no turn"
        loop.step()
        assert loop.failure is None and lost.finish_reason == "error"


def test_loop_when_it_has_no_slot_to_try_in_then_it_does_not_say_that_it_works(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only slot is held back by an outage."""
    is_back, collect = threading.Event(), Masker.collect
    monkeypatch.setattr(Masker, "collect", lambda masker: (is_back.wait(60), collect(masker))[1])
    with looping(loaded, vocabulary, daemon.target, slots=1) as loop:
        held = loop.add(request(loaded, JSON, 1))
        while not held.token_ids:
            loop.step()
        with monkeypatch.context() as patch:
            patch.setattr(Masker, "try_apply_", lambda *_: None)
            loop.step()
        assert loop.is_without_daemon
        loop.failure = RuntimeError("no device")
        assert not loop.step() and loop.failure is not None
        is_back.set()
        loop.run()
        assert loop.failure is None
    check(loaded, held)


def test_output_when_the_failed_turn_is_not_collected_yet_then_free_ones_go_on(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_collect, collect = threading.Event(), Masker.collect
    monkeypatch.setattr(Masker, "collect", lambda masker: (may_collect.wait(60), collect(masker))[1])
    with looping(loaded, vocabulary, daemon.target) as loop:
        masked = loop.add(request(loaded, JSON, 1))
        while not masked.token_ids:
            loop.step()
        with monkeypatch.context() as patch:
            patch.setattr(SlotModel, "decode", lambda *_: 1 / 0)
            loop.step()
        free = loop.add(request(loaded, None, 2, max_tokens=9))
        while free.finish_reason is None:
            loop.step()
        may_collect.set()
        again = loop.add(request(loaded, CITY, 3))
        loop.run()
        assert loop.failed_turns == 1 and masked.finish_reason == "error"
    for each in (free, again):
        check(loaded, each)


def test_output_when_its_slot_cannot_be_freed_then_its_sequence_is_closed_all_the_same(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, close = list[int](), Masker.close
    monkeypatch.setattr(Masker, "close", lambda masker, handle: (close(masker, handle), closed.append(handle))[0])
    with looping(loaded, vocabulary, daemon.target) as loop:
        with monkeypatch.context() as patch:
            patch.setattr(Sampler, "release", lambda *_: 1 / 0)
            loop.add(request(loaded, CITY, 1))
            loop.run()
        good = loop.add(request(loaded, CITY, 2))
        loop.run()
        loop.step()
        check(loaded, good)
    assert len(closed) == 2


def test_output_when_the_context_is_full_then_ends_by_length(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    with looping(loaded, vocabulary, daemon.target) as loop:
        generation = loop.add(Request([5] * 155, sampling=SamplingParams(seed=1), max_tokens=100))
        loop.run()
        with pytest.raises(ValueError, match="160 tokens; give 1 to 159"):
            loop.add(Request([5] * 160))
        with pytest.raises(ValueError, match="prompt"):
            loop.add(Request([]))
        with pytest.raises(ValueError, match="max_tokens"):
            loop.add(Request([5], max_tokens=0))
    assert (generation.finish_reason, len(generation.token_ids)) == ("length", 6)


def test_output_when_the_grammar_names_its_stop_token_then_that_one_ends_it(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    end = loaded.tokenizer.token_to_id("<|im_start|>")
    spec = GrammarSpec("regex", "(Paris|London)", options=GrammarOptions(stop_token_ids=(end,)))
    with looping(loaded, vocabulary, daemon.target) as loop:
        generation = loop.add(request(loaded, spec, 1))
        loop.run()
    check(loaded, generation)


def test_run_when_given_a_stop_event_then_serves_other_threads_until_it_is_set(
    loaded: LoadedModel, vocabulary: Vocabulary, daemon: Daemon
) -> None:
    stop = threading.Event()
    with looping(loaded, vocabulary, daemon.target) as loop:
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        for _ in range(2):
            generations = [loop.add(request(loaded, grammar, 5)) for grammar in (CITY, JSON)]
            assert all(generation.wait(60) for generation in generations)
            for generation in generations:
                check(loaded, generation)
        stop.set()
        thread.join()
        unfinished = loop.add(request(loaded, None, 1))
    assert unfinished.finish_reason == "cancelled"
