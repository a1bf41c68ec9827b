"""The compile desk with a nursery that answers as it is told to: single flight, verdicts, blame, quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from maskd.errors import (
    BackendError,
    CapacityError,
    GrammarError,
    GrammarPoisonedError,
    GrammarTimeoutError,
    GrammarTooLargeError,
    GrammarUnsupportedError,
    MaskdError,
    UnavailableError,
)
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.quarantine import Key
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.ipc.messages import Compiled, Crashed

VOCABULARY, OTHER = b"fingerprint", b"another fingerprint"
CRASH = Crashed("the compiler died of signal 11")


def spec(text: str = "a") -> GrammarSpec:
    return GrammarSpec("regex", text)


def key(text: str = "a") -> Key:
    return VOCABULARY, spec(text).digest()


def good(artefact: bytes = b"bytes") -> Compiled:
    return Compiled(GrammarReport("fake", "asked for"), 0.5, 0.001, artefact)


class Nursery:
    """Gives the ``outcomes`` one after the other, then good verdicts; waits for ``go`` before each."""

    def __init__(self, *outcomes: Compiled | Crashed | MaskdError) -> None:
        self.outcomes = list(outcomes)
        self.begun: list[tuple[bytes, str]] = []
        self.running = self.most_running = self.cancelled = 0
        self.go = asyncio.Event()
        self.go.set()

    async def compile(self, fingerprint: bytes, spec: GrammarSpec) -> Compiled | Crashed:
        self.begun.append((fingerprint, spec.source))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        outcome = self.outcomes.pop(0) if self.outcomes else good()
        if isinstance(outcome, MaskdError):
            raise outcome
        return outcome


def desk_of(nursery: Nursery, *, verdicts: int = 100, compile_threads: int = 2, jail: bool = True) -> CompileDesk:
    return CompileDesk(Config(verdicts=verdicts, compile_threads=compile_threads, jail=jail), nursery.compile)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the other tasks run until ``condition`` holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to this")


async def refusal(call: Awaitable[object]) -> MaskdError:
    """Returns the error that ``call`` raises."""
    with pytest.raises(MaskdError) as caught:
        await call
    return caught.value


async def test_admit_when_many_ask_at_once_then_one_compile_serves_all_and_later_ones_get_no_artefact() -> None:
    nursery = Nursery()
    desk = desk_of(nursery)
    nursery.go.clear()
    callers = [asyncio.create_task(desk.admit(VOCABULARY, spec())) for _ in range(20)]
    await until(lambda: nursery.running == 1)
    nursery.go.set()
    assert await asyncio.gather(*callers) == [good()] * 20
    assert await desk.admit(VOCABULARY, spec()) == good(artefact=b"")
    assert nursery.begun == [(VOCABULARY, "a")]


async def test_admit_when_grammar_or_vocabulary_differ_then_each_is_compiled() -> None:
    nursery = Nursery()
    desk = desk_of(nursery)
    for fingerprint, text in ((VOCABULARY, "a"), (VOCABULARY, "b"), (OTHER, "a"), (VOCABULARY, "a")):
        assert await desk.admit(fingerprint, spec(text)) is not None
    assert nursery.begun == [(VOCABULARY, "a"), (VOCABULARY, "b"), (OTHER, "a")]


@pytest.mark.parametrize("cls", [GrammarError, GrammarUnsupportedError])
async def test_admit_when_the_grammar_is_wrong_then_the_error_is_remembered(cls: type[MaskdError]) -> None:
    wrong = cls("wrong", pointer="/a")
    nursery = Nursery(wrong)
    desk = desk_of(nursery)
    assert [await refusal(desk.admit(VOCABULARY, spec())) for _ in range(3)] == [wrong] * 3
    assert len(nursery.begun) == 1


@pytest.mark.parametrize(
    "cls", [GrammarTimeoutError, GrammarTooLargeError, CapacityError, BackendError, UnavailableError]
)
async def test_admit_when_the_machine_may_be_at_fault_then_the_next_caller_compiles_again(
    cls: type[MaskdError],
) -> None:
    nursery = Nursery(cls("try again"))
    desk = desk_of(nursery)
    assert type(await refusal(desk.admit(VOCABULARY, spec()))) is cls
    assert await desk.admit(VOCABULARY, spec()) == good()


async def test_admit_when_the_compiler_crashes_once_then_it_is_tried_again_and_one_strike_stays() -> None:
    nursery = Nursery(CRASH)
    desk = desk_of(nursery)
    with capture_logs() as logs:
        assert await desk.admit(VOCABULARY, spec()) == good()
    assert len(nursery.begun) == 2
    assert [(log["strikes"], log["why"]) for log in logs] == [(1, CRASH.how)]
    desk.check(key())
    desk.blame({key()}, "its worker crashed")
    with pytest.raises(GrammarPoisonedError):
        desk.check(key())


async def test_admit_when_the_compiler_crashes_twice_then_the_grammar_is_quarantined_and_others_are_not() -> None:
    nursery = Nursery(CRASH, CRASH)
    desk = desk_of(nursery)
    for _ in range(3):
        error = await refusal(desk.admit(VOCABULARY, spec()))
        assert isinstance(error, GrammarPoisonedError) and error.metadata["digest"] == spec().digest().hex()[:16]
    assert len(nursery.begun) == 2, "it is not compiled again"
    assert await desk.admit(VOCABULARY, spec("b")) == good()
    assert await desk.admit(OTHER, spec()) == good(), "with another vocabulary it is another grammar"


async def test_admit_when_the_compiler_crashes_twice_then_every_waiting_caller_is_refused() -> None:
    nursery = Nursery(CRASH, CRASH)
    desk = desk_of(nursery)
    refused = await asyncio.gather(*(refusal(desk.admit(VOCABULARY, spec())) for _ in range(5)))
    assert {type(error) for error in refused} == {GrammarPoisonedError} and len(nursery.begun) == 2


async def test_blame_when_there_is_one_candidate_then_it_gets_a_strike_and_loses_its_verdict() -> None:
    nursery = Nursery()
    desk = desk_of(nursery)
    await desk.admit(VOCABULARY, spec())
    desk.blame({key()}, "it hung")
    assert not desk.is_suspect(key())
    assert await desk.admit(VOCABULARY, spec()) == good() and len(nursery.begun) == 2, "the verdict was wrong"
    desk.blame({key()}, "it hung")
    assert isinstance(await refusal(desk.admit(VOCABULARY, spec())), GrammarPoisonedError)


@pytest.mark.parametrize("candidates", [{key("a"), key("b")}, {key("a"), None}], ids=["two", "one or a deleted one"])
async def test_blame_when_there_are_several_candidates_then_they_run_alone_and_get_no_strike(
    candidates: set[Key | None],
) -> None:
    nursery = Nursery()
    desk = desk_of(nursery)
    await desk.admit(VOCABULARY, spec())
    for _ in range(5):
        desk.blame(candidates, "its worker crashed")
    assert {desk.is_suspect(candidate) for candidate in candidates if candidate} == {True}
    assert not desk.is_suspect(key("c"))
    assert await desk.admit(VOCABULARY, spec()) is not None and len(nursery.begun) == 1


async def test_blame_when_only_a_deleted_grammar_can_be_at_fault_then_nothing_happens() -> None:
    desk = desk_of(Nursery())
    for _ in range(3):
        desk.blame({None}, "its worker crashed")
    assert await desk.admit(VOCABULARY, spec()) == good()


async def test_admit_when_the_jail_is_off_then_nothing_is_compiled_and_quarantine_holds_all_the_same() -> None:
    nursery = Nursery()
    desk = desk_of(nursery, jail=False)
    assert await desk.admit(VOCABULARY, spec()) is None and nursery.begun == []
    for _ in range(2):
        desk.blame({key()}, "its worker crashed")
    assert isinstance(await refusal(desk.admit(VOCABULARY, spec())), GrammarPoisonedError)


async def test_admit_when_all_callers_leave_then_the_compile_is_cancelled_and_the_next_caller_begins_another() -> None:
    nursery = Nursery()
    desk = desk_of(nursery)
    nursery.go.clear()
    first, second = [asyncio.create_task(desk.admit(VOCABULARY, spec())) for _ in range(2)]
    await until(lambda: nursery.running == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert nursery.cancelled == 0, "the second caller still waits"
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await until(lambda: nursery.cancelled == 1)
    nursery.go.set()
    assert await desk.admit(VOCABULARY, spec()) == good() and len(nursery.begun) == 2


async def test_admit_when_many_grammars_come_then_compile_threads_bounds_what_is_under_way() -> None:
    nursery = Nursery()
    desk = desk_of(nursery, compile_threads=3)
    nursery.go.clear()
    callers = [asyncio.create_task(desk.admit(VOCABULARY, spec(str(number)))) for number in range(9)]
    await until(lambda: nursery.running == 3)
    nursery.go.set()
    await asyncio.gather(*callers)
    assert nursery.most_running == 3 and len(nursery.begun) == 9


async def test_admit_when_there_are_more_verdicts_than_are_kept_then_the_longest_unused_is_forgotten() -> None:
    nursery = Nursery()
    desk = desk_of(nursery, verdicts=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await desk.admit(VOCABULARY, spec(text))
    assert [source for _, source in nursery.begun] == ["a", "b", "c", "b"]
