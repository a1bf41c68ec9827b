"""The grammars of a session: numbers, limits, alternates, and the contents that are at fault when a worker dies."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from maskd.errors import (
    BackendError,
    CapacityError,
    DeadlineError,
    GrammarError,
    GrammarTimeoutError,
    GrammarTooLargeError,
    GrammarUnsupportedError,
    InvalidRequestError,
    MaskdError,
    UnavailableError,
)
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.quarantine import Key
from maskd.front.session_grammars import SessionGrammars
from maskd.front.worker_process import Worker
from maskd.grammar import GrammarOptions, GrammarReport, GrammarSpec, ReasoningGate
from maskd.ipc import messages
from tests.conftest import byte_vocabulary

SESSION = 77
VOCABULARY = byte_vocabulary()
(STOP,) = VOCABULARY.stop_token_ids
TOKEN_COUNT = len(VOCABULARY.tokens)


def spec(source: str = "a", **more: Any) -> GrammarSpec:
    return GrammarSpec("regex", source, **more)


def key(of: GrammarSpec) -> Key:
    return VOCABULARY.fingerprint, of.digest()


class Setting:
    """A session whose nursery and worker do what a test says; everything that the worker was sent is in ``sent``."""

    def __init__(self, **config: Any) -> None:
        self.refusals: dict[str, MaskdError] = {}  # by backend: of the nursery
        self.answer: MaskdError | None = None  # of the worker, instead of a grammar
        self.cached = False
        self.go = asyncio.Event()
        self.go.set()
        self.sent: list[object] = []
        settings = Config(**{"backends": ["one", "two", "three"], "compile_seconds": 0.5, **config})
        self.desk = CompileDesk(settings, self.compile)
        self.grammars = SessionGrammars(SESSION, VOCABULARY, cast("Worker", self), self.desk, settings)

    async def compile(self, fingerprint: bytes, spec: GrammarSpec) -> messages.Compiled:
        backend = "one" if spec.backend == "auto" else spec.backend
        if backend in self.refusals:
            raise self.refusals[backend]
        return messages.Compiled(GrammarReport(backend, "asked for"), 0.25, 0.001, b"artefact")

    async def request(self, message: messages.CompileGrammar, seconds: float) -> messages.GrammarCompiled:
        self.sent.append(message)
        await self.go.wait()
        if self.answer is not None:
            raise self.answer
        return messages.GrammarCompiled(GrammarReport("worker", "its own"), 0.01, self.cached)

    def send(self, message: object) -> None:
        self.sent.append(message)

    @property
    def compiles(self) -> list[messages.CompileGrammar]:
        return [message for message in self.sent if isinstance(message, messages.CompileGrammar)]

    @property
    def dropped(self) -> list[int]:
        return [message.grammar_id for message in self.sent if isinstance(message, messages.DropGrammar)]

    async def refused(self, what: GrammarSpec) -> MaskdError:
        with pytest.raises(MaskdError) as caught:
            await self.grammars.create(what, validate_only=False)
        return caught.value


async def test_create_when_asked_several_times_then_numbers_rise_and_the_worker_gets_the_verdict() -> None:
    """The report and the time are those of the compile child: the worker only loads what it made."""
    setting = Setting()
    for number in (1, 2, 3):
        grammar_id, compiled = await setting.grammars.create(spec("a" * number), validate_only=False)
        assert (grammar_id, compiled.report.backend, compiled.compile_seconds) == (number, "one", 0.25)
    assert [(m.session_id, m.grammar_id, m.spec, m.alternate_of) for m in setting.compiles] == [
        (SESSION, number, spec("a" * number), 0) for number in (1, 2, 3)
    ]
    assert all(message.verdict and message.verdict.artefact == b"artefact" for message in setting.compiles)
    setting.cached = True
    _, compiled = await setting.grammars.create(spec(), validate_only=False)
    assert (compiled.cached, compiled.compile_seconds) == (True, 0.0)


async def test_create_when_it_only_validates_then_the_worker_is_not_asked_and_no_number_is_used() -> None:
    setting = Setting()
    grammar_id, compiled = await setting.grammars.create(spec(), validate_only=True)
    assert (grammar_id, compiled.report.backend, compiled.compile_seconds, setting.sent) == (0, "one", 0.25, [])
    assert (await setting.grammars.create(spec(), validate_only=False))[0] == 1


async def test_create_when_the_jail_is_off_then_the_worker_compiles_and_reports() -> None:
    setting = Setting(jail=False)
    for validate_only, expected in ((True, 0), (False, 1)):
        grammar_id, compiled = await setting.grammars.create(spec(), validate_only=validate_only)
        assert (grammar_id, compiled.report.backend, compiled.compile_seconds) == (expected, "worker", 0.01)
    assert [(message.grammar_id, message.verdict) for message in setting.compiles] == [(0, None), (1, None)]


@pytest.mark.parametrize("source", ["a" * 11, "ä" * 6, "\ud800" * 4])
async def test_create_when_the_source_has_too_many_bytes_then_the_limit_is_named(source: str) -> None:
    error = await Setting(grammar_bytes=10).refused(spec(source))
    assert isinstance(error, GrammarTooLargeError)
    assert (error.metadata["limit"], error.metadata["value"]) == ("grammar_bytes", "10")


async def test_create_when_the_source_has_as_many_bytes_as_the_limit_then_it_is_taken() -> None:
    assert (await Setting(grammar_bytes=10).grammars.create(spec("a" * 10), validate_only=False))[0] == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"options": GrammarOptions(stop_token_ids=(TOKEN_COUNT,))}, "stop_token_ids"),
        ({"options": GrammarOptions(stop_token_ids=(-1,))}, "stop_token_ids"),
        ({"reasoning": ReasoningGate((TOKEN_COUNT,), None)}, "reasoning.end_token_ids"),
        ({"reasoning": ReasoningGate((65, STOP), None)}, "reasoning.end_token_ids"),
        (
            {"reasoning": ReasoningGate((65,), None), "options": GrammarOptions(stop_token_ids=(65,))},
            "reasoning.end_token_ids",
        ),
    ],
)
async def test_create_when_a_token_does_not_fit_the_vocabulary_then_the_field_is_named(
    wrong: dict[str, Any], field: str
) -> None:
    setting = Setting()
    error = await setting.refused(spec(**wrong))
    assert isinstance(error, InvalidRequestError) and error.metadata["field"] == field
    assert setting.sent == []


@pytest.mark.parametrize("token_id", [0, TOKEN_COUNT - 1])
async def test_create_when_tokens_are_the_first_or_last_of_the_vocabulary_then_they_are_taken(token_id: int) -> None:
    for fits in (
        spec(options=GrammarOptions(stop_token_ids=(token_id,))),
        spec(reasoning=ReasoningGate((token_id,), None)),
    ):
        assert (await Setting().grammars.create(fits, validate_only=False))[0] == 1


async def test_create_when_the_worker_has_no_room_then_its_error_comes_and_the_grammar_is_dropped() -> None:
    setting = Setting()
    setting.answer = CapacityError("full", limit="grammars_per_session")
    assert await setting.refused(spec()) is setting.answer
    assert setting.dropped == [1] and setting.grammars.suspects(1) == {None}


async def test_create_when_the_worker_takes_too_long_then_it_is_a_timeout_and_the_grammar_is_dropped() -> None:
    setting = Setting()
    setting.answer = DeadlineError("no answer")
    error = await setting.refused(spec())
    assert isinstance(error, GrammarTimeoutError) and error.metadata["limit"] == "compile_seconds"
    assert setting.dropped == [1]


async def test_create_when_the_worker_dies_then_the_grammar_can_still_be_blamed() -> None:
    setting = Setting()
    setting.answer = UnavailableError("the worker died")
    assert await setting.refused(spec()) is setting.answer
    assert setting.grammars.suspects(1) == {key(spec())} and setting.dropped == []


async def test_create_when_the_caller_leaves_then_the_grammar_is_dropped() -> None:
    setting = Setting()
    setting.go.clear()
    caller = asyncio.create_task(setting.grammars.create(spec(), validate_only=False))
    while not setting.compiles:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert setting.dropped == [1]


async def test_create_when_the_grammar_is_a_suspect_then_it_runs_alone() -> None:
    setting = Setting()
    setting.desk.blame({key(spec("a")), key(spec("b"))}, "its worker crashed")
    for source in "abc":
        await setting.grammars.create(spec(source), validate_only=False)
    assert [message.solo for message in setting.compiles] == [True, True, False]


async def test_suspects_when_grammars_come_and_go_then_a_batch_may_be_any_and_a_deleted_one_is_none() -> None:
    setting = Setting()
    for source in "ab":
        await setting.grammars.create(spec(source), validate_only=False)
    assert setting.grammars.suspects(2) == {key(spec("b"))}
    assert setting.grammars.suspects(0) == {key(spec("a")), key(spec("b")), None}
    setting.grammars.delete(2)
    setting.grammars.delete(2)
    assert setting.dropped == [2, 2]
    assert (setting.grammars.suspects(2), setting.grammars.suspects(0)) == ({None}, {key(spec("a")), None})


async def test_create_when_slow_sequences_switch_then_the_next_backend_compiles_it_too() -> None:
    setting = Setting()
    grammar_id, compiled = await setting.grammars.create(spec(when_slow="switch"), validate_only=False)
    assert (grammar_id, compiled.report.backend, compiled.alternate_backend) == (1, "one", "two")
    assert [(m.grammar_id, m.spec.backend, m.alternate_of) for m in setting.compiles] == [(1, "auto", 0), (2, "two", 1)]
    assert setting.grammars.suspects(2) == {key(spec(when_slow="switch", backend="two"))}
    setting.grammars.delete(1)
    assert setting.grammars.suspects(2) == {None} and setting.grammars.suspects(0) == {None}


async def test_create_when_an_alternate_is_only_validated_then_the_worker_is_not_asked() -> None:
    setting = Setting()
    grammar_id, compiled = await setting.grammars.create(spec(when_slow="switch"), validate_only=True)
    assert (grammar_id, compiled.alternate_backend, setting.sent) == (0, "two", [])


async def test_create_when_the_first_alternate_refuses_then_the_next_backend_is_tried() -> None:
    setting = Setting()
    setting.refusals["two"] = GrammarUnsupportedError("cannot")
    _, compiled = await setting.grammars.create(spec(when_slow="switch"), validate_only=False)
    assert compiled.alternate_backend == "three"


async def test_create_when_no_backend_can_be_the_alternate_then_it_says_why_and_nothing_is_held() -> None:
    setting = Setting()
    setting.refusals = {"two": GrammarUnsupportedError("not this"), "three": GrammarError("nor that")}
    error = await setting.refused(spec(when_slow="switch"))
    assert isinstance(error, GrammarUnsupportedError) and error.metadata["backends"] == "one"
    assert "two: not this; three: nor that" in error.message
    assert setting.dropped == [1] and setting.grammars.suspects(0) == {None}


async def test_create_when_the_alternate_fails_for_another_reason_then_that_comes_and_nothing_is_held() -> None:
    setting = Setting()
    setting.refusals["two"] = BackendError("the library failed")
    assert await setting.refused(spec(when_slow="switch")) is setting.refusals["two"]
    assert setting.dropped == [1] and setting.grammars.suspects(0) == {None}
