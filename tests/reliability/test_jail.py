"""Compiles that hang, eat memory or crash: each ends in its child, with a typed answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import runpy
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from evil_backend import evil as evil_spec
from looks import alive, can, cpu_seconds, descriptors, grammar_count, grammar_request, open_session, raw_stub, until

from maskd.client import Client, Session
from maskd.errors import (
    BackendError,
    CapacityError,
    DeadlineError,
    GrammarError,
    GrammarPoisonedError,
    GrammarTimeoutError,
    GrammarTooLargeError,
    MaskdError,
    UnavailableError,
)
from maskd.grammar import GrammarKind, GrammarSpec
from maskd.ipc.messages import CompileLimits, Crashed
from maskd.nursery.forking import FAILED
from maskd.nursery.loop import _Job, _Nursery
from maskd.step import Action, Item, Status
from maskd.vocabulary import Vocabulary
from tests.conftest import SHARED

Daemon = Any
INNER = "(Paris|London)"


@pytest.fixture
def session(evil: Daemon, vocabulary: Vocabulary) -> Iterator[Session]:
    with Client.connect(evil.target) as client, open_session(client, vocabulary) as opened:
        yield opened


def works(session: Session) -> bool:
    """A compile of a new grammar, and a step with it."""
    grammar = session.create_grammar(GrammarSpec("regex", f"a{time.monotonic_ns()}"))
    reply = session.step([Item(time.monotonic_ns(), Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60)
    return reply.results[0].status == Status.OK


def no_child(daemon: Daemon) -> None:
    until(lambda: not daemon.pids("maskd-jail"), "no compile child is left")


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except MaskdError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


# -- hang, eat, crash ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hang", "hold", "spin"])
def test_compile_when_it_never_ends_then_its_child_is_killed_and_the_answer_is_timeout(
    evil: Daemon, session: Session, how: str
) -> None:
    """CVE-2026-55574 class: a thread would go on burning a core. Asleep, asleep with the GIL, or busy: the process is
    gone after it,
    the nursery computes nothing, and the same grammar may be sent again, for it may have been the machine's fault."""
    spec = evil_spec(INNER, do=how, in_="compile")
    pids = [evil.process.pid, *evil.pids("maskd-nursery"), *evil.worker_pids()]
    for _ in range(2 if how == "hang" else 1):
        thread, outcome = in_background(lambda: session.create_grammar(spec))
        until(lambda: evil.pids("maskd-jail"), "it runs in a child")
        thread.join()
        assert isinstance(outcome[0], GrammarTimeoutError), outcome
        assert outcome[0].metadata["limit"] == "compile_seconds"
        no_child(evil)
    nursery = pids[1]
    before = cpu_seconds(nursery)
    time.sleep(0.5)
    assert cpu_seconds(nursery) - before < 0.4, "the nursery is idle"
    assert works(session)
    assert [evil.process.pid, *evil.pids("maskd-nursery"), *evil.worker_pids()] == pids, "no process was replaced"


def test_compile_when_many_threads_of_it_are_busy_then_the_answer_is_timeout_and_not_memory(
    evil: Daemon, session: Session
) -> None:
    """Its processor time passes its deadline long before the clock does, and it is not killed for that."""
    with pytest.raises(GrammarTimeoutError) as caught:
        session.create_grammar(evil_spec(INNER, do="threads", in_="compile"))
    assert caught.value.metadata["limit"] == "compile_seconds"
    no_child(evil)


@pytest.mark.parametrize("how", ["eat", "eat_abort", "gasp"])
def test_compile_when_it_eats_memory_then_too_large_names_the_limit_and_is_not_remembered(
    evil: Daemon, session: Session, how: str
) -> None:
    """Whether the library raises, aborts without a word, or aborts at once and says why: never a crash, however often
    it is tried."""
    spec = evil_spec(INNER, do=how, in_="compile")
    for _ in range(3):
        with pytest.raises(GrammarTooLargeError) as caught:
            session.create_grammar(spec)
        assert (caught.value.metadata["limit"], caught.value.metadata["value"]) == ("compile_bytes", str(256 << 20))
    assert not [event for event in evil.events() if event.get("digest") == spec.digest().hex()[:16]], (
        "no grammar is held responsible"
    )
    no_child(evil)
    assert works(session)


def hungry(kind: GrammarKind, source: str) -> list[GrammarSpec]:
    return [GrammarSpec(kind, source, backend=backend) for backend in ("llguidance", "xgrammar")]


def test_compile_when_a_real_library_runs_out_of_memory_then_it_is_never_taken_for_a_crash(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Under a limit that is far too small both libraries fail in every way they have: exceptions, SIGABRT, exit code
    127."""
    words = [f"{number:032x}" for number in range(20_000)]
    specs = hungry("json_schema", json.dumps({"enum": words})) + hungry(
        "regex", ".*".join("abcdefghijklmnop") + ".{0,300}"
    )
    hostile = SHARED / "data/hostile/hostile_grammars.py"
    if hostile.exists():
        cases = runpy.run_path(str(hostile))["CASES"]
        for name in (
            "ebnf-repeat-nested",
            "schema-one-of-6x4",
            "schema-enum-10k",
            "schema-props-5k",
            "schema-ref-chain-500",
        ):
            specs += hungry(*cases[name][:2])
    daemon = start_daemon("--compile-bytes", str(4 << 20))
    reasons = Counter[str]()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        for spec in specs:
            for _ in range(2):
                try:
                    session.create_grammar(spec)
                except MaskdError as error:
                    reasons[error.metadata.get("limit", error.reason)] += 1
        assert works(session)
    print(dict(reasons))
    assert reasons["compile_bytes"] >= 4
    assert not [event for event in daemon.events() if event["event"] == "grammar held responsible"]


def test_compile_when_its_child_is_killed_from_outside_then_memory_is_named_and_nobody_is_condemned(
    evil: Daemon, session: Session
) -> None:
    """The kernel does that when a container passes its limit; the grammar compiles as soon as there is room."""
    spec = evil_spec("(out|side)", do="sleep", in_="compile", seconds=1)
    for _ in range(3):
        thread, outcome = in_background(lambda: session.create_grammar(spec))
        until(lambda: evil.pids("maskd-jail"), "it runs in a child")
        os.kill(evil.pids("maskd-jail")[0], signal.SIGKILL)
        thread.join()
        assert isinstance(outcome[0], CapacityError), outcome
        assert outcome[0].metadata["limit"] == "memory"
    assert session.create_grammar(spec).grammar_id


@pytest.mark.parametrize("how", ["abort", "segv"])
def test_compile_when_it_crashes_twice_then_it_is_quarantined_and_no_third_child_is_made(
    evil: Daemon, session: Session, vocabulary: Vocabulary, how: str
) -> None:
    """The first crash is tried again at once, the second one condemns: for every session, on every transport, also to
    validate."""
    spec = evil_spec(INNER, do=how, in_="compile")
    workers = evil.worker_pids()
    with pytest.raises(GrammarPoisonedError) as caught:
        session.create_grammar(spec)
    assert caught.value.metadata["digest"] == spec.digest().hex()[:16]
    events = [event for event in evil.events() if event.get("digest") == spec.digest().hex()[:16]]
    assert [event["strikes"] for event in events] == [1, 2]
    with Client.connect(evil.target) as client, open_session(client, vocabulary, transport="inline") as other:
        for validate_only in (False, True):
            with pytest.raises(GrammarPoisonedError):
                other.create_grammar(spec, validate_only=validate_only)
    assert len([event for event in evil.events() if event.get("digest") == spec.digest().hex()[:16]]) == 2, (
        "it was not tried again"
    )
    assert works(session)
    assert evil.worker_pids() == workers


def test_compile_when_it_crashes_once_then_the_second_try_is_served(session: Session, tmp_path: Path) -> None:
    """One crash proves nothing."""
    grammar = session.create_grammar(evil_spec(INNER, do="abort", in_="compile", once=str(tmp_path / "crashed")))
    assert (tmp_path / "crashed").exists()
    assert session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)]).ok


def test_compile_when_the_library_raises_something_unknown_then_a_typed_error_without_the_grammar(
    session: Session,
) -> None:
    with pytest.raises(MaskdError) as caught:
        session.create_grammar(evil_spec(INNER, do="raise", in_="compile"))
    assert caught.value.reason == "BACKEND_FAILED"
    assert "Paris" not in caught.value.message and "surprise" not in caught.value.message


@pytest.mark.parametrize(
    ("how", "error"), [("hang", GrammarTimeoutError), ("burn", GrammarTooLargeError), ("abort", GrammarPoisonedError)]
)
def test_grammar_when_its_first_masks_are_bad_then_the_walk_finds_out(
    evil: Daemon, session: Session, how: str, error: type[GrammarError]
) -> None:
    """It compiles well, and hangs, is slow or crashes some tokens on: all that happens in the child too."""
    workers = evil.worker_pids()
    with pytest.raises(error) as caught:
        session.create_grammar(evil_spec("[a-z]{60}", do=how, in_="fill", at=5, jail=True, seconds=0.4))
    if how == "burn":
        assert (caught.value.metadata["limit"], caught.value.metadata["position"]) == ("mask_seconds", "5")
    no_child(evil)
    assert evil.worker_pids() == workers


@pytest.mark.parametrize(("where", "what"), [("open", "opening"), ("fork", "forking")])
def test_grammar_when_it_is_slow_to_open_or_to_fork_then_the_walk_finds_out(
    evil: Daemon, session: Session, where: str, what: str
) -> None:
    """Engines open and fork as often as they like: what costs too much is refused, and what costs much is for the slow
    lane."""
    with pytest.raises(GrammarTooLargeError) as caught:
        session.create_grammar(evil_spec("[a-z]{60}", do="burn", in_=where, jail=True, seconds=0.4))
    assert caught.value.metadata["limit"] == "mask_seconds" and what in caught.value.message


# -- verdicts ------------------------------------------------------------------------------------------------------


def test_verdicts_when_good_or_the_grammars_own_error_then_remembered(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Asked again, no child is made: the nursery is stopped and the answer comes all the same."""
    daemon = evil_daemon()
    good, bad = GrammarSpec("regex", INNER), GrammarSpec("regex", "(")
    empty = GrammarSpec("ebnf", 'root ::= root "a"', backend="llguidance")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        assert not session.create_grammar(good).cached
        with pytest.raises(GrammarError) as first:
            session.create_grammar(bad)
        with pytest.raises(GrammarError) as first_empty:
            session.create_grammar(empty)
        nursery = daemon.pids("maskd-nursery")[0]
        os.kill(nursery, signal.SIGSTOP)
        try:
            assert session.create_grammar(good).cached
            assert session.create_grammar(good, validate_only=True).grammar_id == 0
            for spec, error in ((bad, first), (empty, first_empty)):
                with pytest.raises(type(error.value)) as again:
                    session.create_grammar(spec)
                assert again.value.message == error.value.message
        finally:
            os.kill(nursery, signal.SIGCONT)


def test_validate_only_when_asked_then_a_child_judges_and_no_worker_holds_anything(
    evil: Daemon, session: Session
) -> None:
    thread, outcome = in_background(
        lambda: session.create_grammar(
            evil_spec("(Rome|Oslo)", do="sleep", in_="compile", seconds=0.5), validate_only=True
        )
    )
    until(lambda: evil.pids("maskd-jail") or outcome, "it runs in a child")
    thread.join()
    assert getattr(outcome[0], "grammar_id", None) == 0, outcome
    with pytest.raises(GrammarError):
        session.create_grammar(GrammarSpec("regex", "(validate"), validate_only=True)
    assert grammar_count(evil, session) == 0


# -- single flight and cancelling ----------------------------------------------------------------------------------


def test_compile_when_many_clients_ask_for_the_same_then_one_child_does_it(
    evil: Daemon, vocabulary: Vocabulary
) -> None:
    """Ten clients, one slow grammar: never more than one child, and all are served."""
    spec = evil_spec("(one|flight)", do="sleep", in_="compile", seconds=1)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client.connect(evil.target))
        sessions = [stack.enter_context(open_session(client, vocabulary)) for _ in range(10)]
        seen: set[int] = set()
        with ThreadPoolExecutor(10) as pool:
            calls = [pool.submit(session.create_grammar, spec) for session in sessions]
            while not all(call.done() for call in calls):
                seen.update(evil.pids("maskd-jail"))
        assert all(call.result().grammar_id for call in calls)
        assert len(seen) == 1, seen


def test_compile_when_its_call_is_cancelled_then_the_child_is_killed(evil: Daemon, session: Session) -> None:
    """The core is free again long before the deadline, and the next caller gets a child of its own."""
    spec = evil_spec("(can|cel)", do="sleep", in_="compile", seconds=2.5)
    with raw_stub(evil) as stub:
        for _ in range(2):
            call = stub.CreateGrammar.future(grammar_request(session, spec))
            until(lambda: evil.pids("maskd-jail"), "it runs")
            call.cancel()
            no_child(evil)
    assert session.create_grammar(spec).grammar_id, "a cancelled compile condemns nothing"


def test_compile_when_one_of_two_callers_leaves_then_the_other_is_served(
    evil: Daemon, session: Session, vocabulary: Vocabulary
) -> None:
    spec = evil_spec("(two|callers)", do="sleep", in_="compile", seconds=1)
    with (
        raw_stub(evil) as stub,
        Client.connect(evil.target) as client,
        open_session(client, vocabulary) as other,
    ):
        leaver = stub.CreateGrammar.future(grammar_request(session, spec))
        until(lambda: evil.pids("maskd-jail"), "it runs")
        child = evil.pids("maskd-jail")
        thread, outcome = in_background(lambda: other.create_grammar(spec))
        time.sleep(0.2)
        leaver.cancel()
        assert evil.pids("maskd-jail") in (child, [])
        thread.join()
    assert getattr(outcome[0], "grammar_id", 0), outcome


def test_compile_when_a_caller_comes_while_it_is_being_cancelled_then_that_caller_is_served(
    evil: Daemon, session: Session
) -> None:
    """One caller leaves and another comes at the same moment: the second never gets CANCELLED."""
    with raw_stub(evil) as stub:
        for number in range(20):
            spec = evil_spec(f"(race|{number})", do="sleep", in_="compile", seconds=0.05)
            leaver = stub.CreateGrammar.future(grammar_request(session, spec))
            time.sleep(0.03)
            leaver.cancel()
            assert stub.CreateGrammar(grammar_request(session, spec), timeout=60).grammar_id


def test_compile_when_the_caller_has_a_deadline_then_the_child_does_not_outlive_it(
    evil: Daemon, session: Session
) -> None:
    with pytest.raises(DeadlineError):
        session.create_grammar(evil_spec("(dead|line)", do="hang", in_="compile"), timeout_seconds=0.5)
    no_child(evil)
    assert works(session)


# -- the child itself ----------------------------------------------------------------------------------------------


def test_child_when_it_runs_then_it_is_confined(evil: Daemon, session: Session) -> None:
    """One pipe and the standard streams, no socket, limits on everything, nice, and no way to new privileges."""
    thread, _ = in_background(lambda: session.create_grammar(evil_spec("(con|fined)", do="hang", in_="compile")))
    until(lambda: evil.pids("maskd-jail"), "it runs")
    (pid,) = evil.pids("maskd-jail")
    until(lambda: re.search(r"Max core file size +0 +0", Path(f"/proc/{pid}/limits").read_text()), "limits are set")
    until(lambda: os.getpriority(os.PRIO_PROCESS, pid) >= 5 + os.getpriority(os.PRIO_PROCESS, evil.process.pid), "nice")
    held = descriptors(pid)
    assert len(held) == 4 and {0, 1, 2} < set(held), held
    assert next(target for number, target in held.items() if number > 2).startswith("pipe:"), held
    assert not any("socket" in target or "memfd" in target for target in held.values())
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "maskd-rows" not in mapped and "maskd-steps" not in mapped and "maskd-marker" not in mapped
    size, cpu, core, files = (
        resource.prlimit(pid, kind)[0]
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)
    )
    assert 256 << 20 < size < 64 << 30
    assert (cpu, core, files) == (4 * len(os.sched_getaffinity(pid)), 0, 0), (
        "the deadline is sooner, on every processor"
    )
    assert resource.prlimit(pid, resource.RLIMIT_CPU)[1] > cpu, "SIGXCPU comes before SIGKILL"
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    thread.join()


def test_nursery_when_killed_then_its_children_die_with_it_and_compiles_can_be_tried_again(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Workers and sessions live on; who waited is told at once that it may try again; nothing is condemned."""
    daemon = evil_daemon()
    spec = evil_spec(INNER, do="sleep", in_="compile", seconds=1)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        city = session.create_grammar(GrammarSpec("regex", INNER))
        session.step([Item(1, Action.OPEN, city.grammar_id, accept=(ord("P"),), row=0)])
        workers, sessions = daemon.worker_pids(), client.info().session_count
        for _ in range(2):
            thread, outcome = in_background(lambda: session.create_grammar(spec))
            until(lambda: daemon.pids("maskd-jail"), "it compiles")
            children = daemon.pids("maskd-jail")
            os.kill(daemon.pids("maskd-nursery")[0], signal.SIGKILL)
            thread.join()
            assert isinstance(outcome[0], UnavailableError), outcome
            until(lambda children=children: not any(map(alive, children)), "the children are gone")
            assert session.step([Item(1, row=0)]).results[0].position == 1
            until(lambda: len(daemon.pids("maskd-nursery")) == 1, "there is a new one")
        until(lambda: can(lambda: session.create_grammar(spec)), "compiles work again")
        assert session.step([Item(2, Action.FORK, source_sequence_id=1, accept=(ord("a"),), row=0)]).ok
        assert daemon.worker_pids() == workers
        assert client.info().session_count == sessions


def test_no_jail_when_sources_are_trusted_then_no_child_is_made(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    daemon = evil_daemon("--no-jail", "--compile-seconds", "1")
    seen: set[int] = set()
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        thread, outcome = in_background(
            lambda: session.create_grammar(evil_spec(INNER, do="sleep", in_="compile", seconds=0.5))
        )
        while thread.is_alive():
            seen.update(daemon.pids("maskd-jail"))
        assert getattr(outcome[0], "grammar_id", 0), outcome
        assert session.create_grammar(GrammarSpec("regex", INNER), validate_only=True).grammar_id == 0
        with pytest.raises(GrammarTimeoutError):
            session.create_grammar(evil_spec(INNER, do="sleep", in_="compile", seconds=3))
        assert seen == set()


@pytest.mark.parametrize("transport", ["shm", "inline"])
def test_neighbour_when_others_compile_hostile_grammars_then_its_steps_go_on(
    evil: Daemon, vocabulary: Vocabulary, transport: str
) -> None:
    """Steps are answered, with the right rows, while children hang, eat and crash."""
    with Client.connect(evil.target) as client, open_session(client, vocabulary, transport=transport) as session:
        grammar = session.create_grammar(GrammarSpec("regex", "[ab]{0,40}"))
        session.step([Item(1, Action.OPEN, grammar.grammar_id)])
        with open_session(client, vocabulary) as hostile, ThreadPoolExecutor(3) as pool:
            specs = [evil_spec(f"{transport}", do=how, in_="compile") for how in ("eat", "abort", "spin")]
            calls = [pool.submit(hostile.create_grammar, spec) for spec in specs]
            steps = 0
            while not all(call.done() for call in calls):
                reply = session.step(
                    [Item(1, rollback=-1, accept=(ord("a"),) * (steps % 40), row=0)], timeout_seconds=60
                )
                assert reply.ok and reply.results[0].position == steps % 40
                steps += 1
                time.sleep(0.005)
        errors = [type(call.exception()) for call in calls]
    assert errors == [GrammarTooLargeError, GrammarPoisonedError, GrammarTimeoutError]
    assert steps > 10


def test_grpc_status_when_a_compile_fails_then_codes_and_reasons_are_those_of_the_contract(
    evil: Daemon, session: Session
) -> None:
    """What a client in another language sees."""
    expected = {
        "hang": grpc.StatusCode.DEADLINE_EXCEEDED,
        "eat": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "abort": grpc.StatusCode.FAILED_PRECONDITION,
    }
    for how, code in expected.items():
        spec = evil_spec("(co|des)", do=how, in_="compile")
        with raw_stub(evil) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.CreateGrammar(grammar_request(session, spec), timeout=60)
        assert caught.value.code() == code
        assert len(caught.value.details().encode()) <= 2048


def test_child_that_fails_in_our_own_code_then_no_grammar_is_blamed() -> None:
    """A child that cannot even set its affinity is a failure of the daemon, each time, and not of the grammar."""
    limits = CompileLimits(seconds=1, bytes=1 << 30, mask_seconds=1, nice=0, cpus=[])
    usage = resource.struct_rusage([0.0, 0.0, *[0] * 14])
    job = _Job(1, 2, 3.0, limits, 4, 5, verdict=bytearray(8))
    with pytest.raises(BackendError, match="before its verdict"):
        _Nursery._verdict(job, FAILED << 8, usage)
    assert isinstance(_Nursery._verdict(job, 71 << 8, usage), Crashed)
