"""Workers that crash, hang, are stopped or are slow in a grammar: who is blamed, who is restored, who never notices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evil_backend import evil as evil_spec
from looks import Oracle, can, open_session, raw_stub, until

from engine_adapter.masker import Masker
from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import BackendError, DeadlineError, GrammarPoisonedError, MaskdError, UnavailableError
from maskd.grammar import GrammarSpec
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item, LateIndex, Result, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import Vocabulary

Daemon = Any
CITY = GrammarSpec("regex", "(Paris|London)( is (true|null))*", backend="llguidance")
LETTERS = GrammarSpec("regex", "[ab]{0,60}", backend="xgrammar")
WORD = "[a-z]{0,60}"
A, B = ord("a"), ord("b")


@pytest.fixture(scope="module")
def oracle(vocabulary: Vocabulary) -> Oracle:
    return Oracle(vocabulary)


def blamed(daemon: Daemon) -> list[object]:
    return [event["strikes"] for event in daemon.events() if event["event"] == "grammar held responsible"]


class Batch:
    """Sequences of one masker, each with the history that it must have."""

    def __init__(self, masker: Masker, oracle: Oracle, specs: Sequence[GrammarSpec]) -> None:
        self.masker, self.oracle = masker, oracle
        self.specs = {masker.open(spec): spec for spec in specs}
        self.handles = list(self.specs)
        self.histories: dict[int, list[int]] = {handle: [] for handle in self.handles}
        self.longest = 0.0

    def advance(self, tokens: dict[int, int]) -> dict[int, MaskdError]:
        """One step; every row of a sequence without an error is the oracle's."""
        started = time.monotonic()
        self.masker.advance(tokens, rows=self.handles)
        masks = self.masker.collect()
        self.longest = max(self.longest, time.monotonic() - started)
        for handle, token in tokens.items():
            if handle not in masks.errors:
                self.histories[handle].append(token)
        for position, handle in enumerate(self.handles):
            if handle not in masks.errors:
                row = masks.rows[masks.row_indices[position]]
                assert allowed_token_ids(row).tolist() == self.oracle.allowed(
                    self.specs[handle], self.histories[handle]
                ), handle
        return dict(masks.errors)


# -- crashes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "where"), [("abort", "fill"), ("segv", "accept"), ("segv", "fill")])
def test_matcher_when_it_crashes_its_worker_then_neighbours_are_restored_and_the_second_time_it_is_quarantined(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle, how: str, where: str
) -> None:
    """The masker replays everybody; the guilty grammar ends with GRAMMAR_POISONED, its neighbours get the very rows
    they would have got."""
    daemon = evil_daemon()
    guilty = evil_spec(WORD, do=how, in_=where, at=3)
    with Masker(daemon.target, vocabulary, row_capacity=8) as masker:
        batch = Batch(masker, oracle, [LETTERS, guilty, LETTERS, CITY])
        bad = batch.handles[1]
        city = list(b"Paris is ")
        for step in range(9):
            tokens = {batch.handles[0]: A, batch.handles[2]: B, batch.handles[3]: city[step]}
            errors = batch.advance({**tokens, bad: A} if step < 5 else tokens)
            if step < (2 if where == "fill" else 3):
                assert not errors
            else:
                assert set(errors) <= {bad}
        assert isinstance(errors[bad], GrammarPoisonedError)
        assert blamed(daemon) == [1, 2]
        with pytest.raises(GrammarPoisonedError):
            masker.open(guilty)
        assert len([event for event in daemon.events() if event["event"] == "worker died, restarting"]) == 2
        print(f"longest step over two crashes: {batch.longest:.2f} s")


def test_matchers_when_one_of_a_batch_crashes_then_each_is_filled_alone_until_the_guilty_one_is_found(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Several matchers are filled in one native call, so any of them may have crashed it.

    The next session fills each alone, and only the guilty grammar gets a strike.
    """
    daemon = evil_daemon()
    with Masker(daemon.target, vocabulary, row_capacity=8) as masker:
        innocent, guilty = evil_spec(WORD, in_="nowhere"), evil_spec(WORD, do="abort", in_="fill", at=2)
        batch = Batch(masker, oracle, [innocent, guilty, innocent])
        errors: dict[int, MaskdError] = {}
        for step in range(6):
            errors = batch.advance({handle: A for handle in batch.handles if handle != batch.handles[1] or step < 2})
        assert set(errors) == {batch.handles[1]}
        assert isinstance(errors[batch.handles[1]], GrammarPoisonedError)
        assert blamed(daemon) == [1, 2]
        assert masker.open(innocent)


def test_lane_when_one_of_two_calls_crashes_then_both_are_suspects_and_only_the_guilty_one_is_struck(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Two slow calls are under way when the worker dies, so either may have crashed it.

    From then on each has the lane to itself: the guilty grammar is found, and its neighbour gets every row.
    """
    daemon = evil_daemon("--hang-seconds", "5")
    innocent, guilty = evil_spec(WORD, in_="fill", slow=0.2), evil_spec(WORD, do="abort", in_="fill", slow=0.1, at=2)
    with Masker(daemon.target, vocabulary, row_capacity=8) as masker:
        batch = Batch(masker, oracle, [innocent, guilty])
        errors: dict[int, MaskdError] = {}
        for step in range(4):
            errors = batch.advance({handle: A for handle in batch.handles if handle != batch.handles[1] or step < 2})
        assert set(errors) == {batch.handles[1]} and isinstance(errors[batch.handles[1]], GrammarPoisonedError)
    suspected = [event["digests"] for event in daemon.events() if event["event"] == "grammars suspected"]
    assert suspected == [sorted(spec.digest().hex()[:16] for spec in (innocent, guilty))]
    struck = [event["digest"] for event in daemon.events() if event["event"] == "grammar held responsible"]
    assert struck == [guilty.digest().hex()[:16]] * 2


def test_worker_when_killed_from_outside_then_no_grammar_is_blamed(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """The OOM killer, an operator: four times in the middle of a mask, and the grammar is as good as before."""
    daemon = evil_daemon()
    spec = evil_spec(WORD, do="sleep", in_="fill", seconds=0.5)
    with Client.connect(daemon.target) as client:
        for _ in range(4):
            until(lambda: can(lambda: open_session(client, vocabulary).close()), "a worker is up")
            with open_session(client, vocabulary) as session:
                grammar = session.create_grammar(spec)
                session.submit([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
                time.sleep(0.1)
                daemon.kill_worker()
                with pytest.raises(UnavailableError):
                    session.collect(timeout_seconds=60)
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "a worker is up")
        with open_session(client, vocabulary) as session:
            assert session.create_grammar(spec).grammar_id
    assert blamed(daemon) == []


def test_worker_when_it_keeps_dying_then_the_pauses_grow_to_their_limit_and_the_front_serves(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    daemon = evil_daemon("--restart-seconds", "0.1")
    with Client.connect(daemon.target) as client:
        for number in range(6):
            until(lambda: can(lambda: open_session(client, vocabulary).close()), "a worker is up")
            pid = daemon.kill_worker()
            until(lambda pid=pid: pid not in daemon.worker_pids(), "it is gone")
            until(lambda number=number: len(pauses(daemon)) == number + 1, "its death was seen")
            assert client.info().worker_count == 1
    assert pauses(daemon) == sorted(pauses(daemon))
    assert pauses(daemon)[0] < 0.02 and pauses(daemon)[-1] == 0.1


def pauses(daemon: Daemon) -> list[Any]:
    return [event["pause_seconds"] for event in daemon.events() if event["event"] == "worker died, restarting"]


@pytest.mark.parametrize("transport", ["shm", "inline"])
def test_library_when_it_raises_something_unknown_then_one_sequence_ends_and_the_worker_lives(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, transport: str
) -> None:
    """A surprise is no crash and no hang: neighbours in the same batch go on, and the worker is not taken for busy for
    ever."""
    daemon = evil_daemon("--hang-seconds", "0.3")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary, transport=transport) as session:
        grammar = session.create_grammar(LETTERS)
        surprising = session.create_grammar(evil_spec(WORD, do="raise", in_="fill", at=0))
        assert session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)]).ok
        workers = daemon.worker_pids()
        results = session.step(
            [Item(2, Action.OPEN, surprising.grammar_id, row=1), Item(1, accept=(A,), row=0)]
        ).results
        assert [r.status for r in results] == [Status.BACKEND_FAILED, Status.OK]
        assert session.step([Item(2)]).results[0].status == Status.SEQUENCE_NOT_FOUND
        time.sleep(1.0)
        assert session.step([Item(1, accept=(A,), row=0)]).ok
        assert daemon.worker_pids() == workers
    assert blamed(daemon) == []


def test_inline_session_when_it_ended_between_two_steps_then_that_is_unavailable_and_the_masker_restores(
    slow_daemon: Daemon, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Its worker or its daemon died while the engine computed: not "not found", which no engine would take for a lost
    session."""
    with (
        Client.connect(slow_daemon.target) as client,
        Masker(slow_daemon.target, vocabulary, row_capacity=4, transport="inline") as masker,
        raw_stub(slow_daemon) as stub,
    ):
        batch = Batch(masker, oracle, [LETTERS, CITY])
        for step, token in enumerate(b"Paris"):
            if step == 2 and (held := masker._connection.session) is not None:
                stub.DeleteSession(pb.DeleteSessionRequest(session_id=held.session_id))
            assert not batch.advance({batch.handles[0]: A, batch.handles[1]: token})
        session = open_session(client, vocabulary, transport="inline")
        stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.session_id))
        with pytest.raises(UnavailableError):
            session.step([Item(1)], timeout_seconds=60)
        session.close()


# -- hangs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "where"), [("hang", "fill"), ("hold", "accept")])
def test_matcher_when_it_hangs_then_its_worker_is_killed_it_is_blamed_and_neighbours_are_restored(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle, how: str, where: str
) -> None:
    """Also with the GIL held, when no Python of that process runs any more."""
    daemon = evil_daemon("--hang-seconds", "0.5")
    with Masker(daemon.target, vocabulary, row_capacity=8) as masker:
        batch = Batch(masker, oracle, [LETTERS, evil_spec(WORD, do=how, in_=where, at=2), CITY])
        letters, bad, city = batch.handles
        errors: dict[int, MaskdError] = {}
        for step, token in enumerate(b"Paris "):
            errors = batch.advance({letters: A, city: token, **({bad: A} if step < 3 else {})})
        assert set(errors) == {bad} and isinstance(errors[bad], GrammarPoisonedError), errors
        assert blamed(daemon) == [1, 2]
        print(f"longest step over two hangs: {batch.longest:.2f} s, hang_seconds 0.5")


def test_worker_when_stopped_then_it_is_replaced_and_no_grammar_is_blamed(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """SIGSTOP in the middle of a mask is not the grammar's doing."""
    daemon = evil_daemon("--hang-seconds", "0.6")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        grammar = session.create_grammar(evil_spec(WORD, do="sleep", in_="fill", seconds=0.3))
        session.submit([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
        time.sleep(0.1)
        os.kill(daemon.worker_pids()[0], signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            session.collect(timeout_seconds=60)
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "there is another one")
    assert blamed(daemon) == []


@contextlib.contextmanager
def busy_machine(workers: Sequence[int]) -> Iterator[None]:
    """Every core has two more processes to run, and the threads of ``workers`` get what these leave. It ends by
    itself."""
    command = [sys.executable, "-c", "import time\nuntil = time.monotonic() + 40\nwhile time.monotonic() < until: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(2 * len(os.sched_getaffinity(0))):
            stack.callback(subprocess.Popen.wait, process := subprocess.Popen(command))
            stack.callback(process.kill)
        for task in (task for pid in workers for task in Path(f"/proc/{pid}/task").iterdir()):
            os.setpriority(os.PRIO_PROCESS, int(task.name), 10)
        yield


@pytest.mark.parametrize("transport", ["shm", "inline"])
def test_call_when_it_waits_for_a_core_then_it_is_not_taken_for_a_hang(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle, transport: str
) -> None:
    """It computes for 0.6 × ``hang_seconds`` and waits for several times that: a busy machine is not its fault."""
    daemon = evil_daemon("--hang-seconds", "0.4", "--workers", "2")
    spec = evil_spec(WORD, do="burn", in_="fill", seconds=0.24, at=1)
    with Client.connect(daemon.target) as client, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(open_session(client, vocabulary, transport=transport)) for _ in range(2)]
        workers = daemon.worker_pids()
        for session in sessions:
            session.step([Item(1, Action.OPEN, session.create_grammar(spec).grammar_id, row=0)])
        with busy_machine(workers), ThreadPoolExecutor(2) as pool:
            started = time.monotonic()
            steps = [
                pool.submit(session.step, [Item(1, accept=(A,), row=0)], timeout_seconds=60) for session in sessions
            ]
            replies = [step.result() for step in steps]
            print(f"0.24 s of processor time took {time.monotonic() - started:.2f} s")
        for reply in replies:
            assert allowed_token_ids(reply.rows[0]).tolist() == oracle.allowed(spec, [A])
        assert daemon.worker_pids() == workers
    assert blamed(daemon) == []


def test_daemon_when_frozen_and_thawed_as_a_whole_then_nobody_is_taken_for_hung(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """A paused container wakes up as it was."""
    daemon = evil_daemon("--hang-seconds", "1")
    spec = evil_spec(WORD, do="sleep", in_="fill", seconds=0.4)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        grammar = session.create_grammar(spec)
        pids = [daemon.process.pid, *daemon.pids("maskd-nursery"), *daemon.worker_pids()]
        session.submit([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
        time.sleep(0.1)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        reply = session.collect(timeout_seconds=60)
        assert allowed_token_ids(reply.rows[0]).tolist() == oracle.allowed(spec, [])
        assert [daemon.process.pid, *daemon.pids("maskd-nursery"), *daemon.worker_pids()] == pids


# -- slow ----------------------------------------------------------------------------------------------------------

SLOW = evil_spec(WORD, do="burn", in_="fill", seconds=0.06, jail=True)
"""Seen to be slow in its jail: three times ``row_seconds`` a mask."""
SLOW_ACCEPT = evil_spec(WORD, do="burn", in_="accept", seconds=0.06, jail=True)


@pytest.fixture(scope="module")
def slow_daemon(start_daemon_for_session: Callable[..., Daemon], evil: Daemon) -> Daemon:
    return evil


@pytest.fixture(params=["shm", "inline"])
def session(slow_daemon: Daemon, vocabulary: Vocabulary, request: pytest.FixtureRequest) -> Iterator[Session]:
    with (
        Client.connect(slow_daemon.target) as client,
        open_session(client, vocabulary, transport=request.param) as opened,
    ):
        yield opened


def one(session: Session, item: Item) -> tuple[Result, list[int]]:
    """The result of one item and the tokens allowed in its row; for an item that failed, those of the row behind its
    back."""
    reply = session.step([item], timeout_seconds=60)
    return reply.results[0], allowed_token_ids(reply.rows[item.row]).tolist() if item.row >= 0 else []


def ask(session: Session, sequence_id: int, drafts: Sequence[int] = ()) -> tuple[Result, list[int]]:
    """Asks for what a late item came to, until that is there."""
    while True:
        result, allowed = one(session, Item(sequence_id, row=0, drafts=drafts))
        if result.status != Status.STEP_DEADLINE:
            return result, allowed
        time.sleep(0.01)


def test_slow_item_when_others_are_in_the_batch_then_they_are_served_and_the_late_row_comes_when_asked_for(
    session: Session, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """STEP_DEADLINE for the slow one, with a row that allows the stop token only; rows for the others; then the same
    row as in process."""
    slow, city = session.create_grammar(SLOW).grammar_id, session.create_grammar(CITY).grammar_id
    reply = session.step(
        [Item(1, Action.OPEN, slow, accept=(A,), row=0), Item(2, Action.OPEN, city, accept=(ord("P"),), row=1)],
        timeout_seconds=60,
    )
    late, other = reply.results
    assert (late.status, late.row_count, late.row) == (Status.STEP_DEADLINE, 0, NO_ROW)
    assert allowed_token_ids(reply.rows[0]).tolist() == list(vocabulary.stop_token_ids)
    assert other.status == Status.OK and allowed_token_ids(reply.rows[1]).tolist() == oracle.allowed(CITY, [ord("P")])
    result, allowed = ask(session, 1)
    assert (result.status, result.position, result.row_count) == (Status.OK, 1, 1)
    assert allowed == oracle.allowed(SLOW, [A])
    history = [A]
    for token in (B, A, A):
        result, _ = one(session, Item(1, accept=(token,), row=0))
        assert result.status == Status.STEP_DEADLINE and result.position == len(history)
        history.append(token)
        result, allowed = ask(session, 1)
        assert (result.status, result.position, allowed) == (Status.OK, len(history), oracle.allowed(SLOW, history))


def test_slow_item_when_its_token_is_refused_then_the_rejection_comes_late_and_nothing_has_changed(
    session: Session, oracle: Oracle
) -> None:
    slow = session.create_grammar(SLOW_ACCEPT).grammar_id
    one(session, Item(1, Action.OPEN, slow, accept=(A,), row=0))
    assert ask(session, 1)[0].position == 1
    result, _ = one(session, Item(1, accept=(ord("7"),), row=0))
    assert result.status == Status.STEP_DEADLINE
    result, _ = ask(session, 1)
    assert (result.status, result.position, result.detail_value) == (Status.TOKEN_REJECTED, 1, ord("7"))
    one(session, Item(1, row=0))
    assert ask(session, 1)[1] == oracle.allowed(SLOW, [A])


def test_slow_open_when_its_tokens_are_refused_then_there_is_no_sequence(session: Session) -> None:
    slow = session.create_grammar(SLOW_ACCEPT).grammar_id
    assert one(session, Item(1, Action.OPEN, slow, accept=(ord("7"),), row=0))[0].status == Status.STEP_DEADLINE
    assert ask(session, 1)[0].status == Status.TOKEN_REJECTED
    assert one(session, Item(1, row=0))[0].status == Status.SEQUENCE_NOT_FOUND
    assert one(session, Item(1, Action.OPEN, slow, accept=(A,), row=0))[0].status in (Status.STEP_DEADLINE, Status.OK)
    assert ask(session, 1)[0].position == 1


def test_slow_item_when_rolled_back_forked_drafted_and_closed_while_late_then_each_stands_where_it_should(
    session: Session, oracle: Oracle
) -> None:
    slow = session.create_grammar(SLOW).grammar_id
    assert one(session, Item(1, Action.OPEN, slow, accept=(A, B), row=0))[0].status == Status.STEP_DEADLINE

    while one(session, Item(1, rollback=1, accept=(A, A), row=0))[0].status == Status.STEP_DEADLINE:
        result, allowed = ask(session, 1)  # whichever of the two questions this answers, the last one is asked for
        if result.position == 3:
            break
    assert (result.position, allowed) == (3, oracle.allowed(SLOW, [A, A, A]))

    assert one(session, Item(1, accept=(B,), row=0))[0].status == Status.STEP_DEADLINE
    while (
        forked := one(session, Item(7, Action.FORK, source_sequence_id=1, row=0))[0]
    ).status == Status.STEP_DEADLINE and (one(session, Item(7, row=0))[0].status == Status.SEQUENCE_NOT_FOUND):
        pass  # the source was late; once it is not, the fork is there, and late itself
    assert forked.status in (Status.STEP_DEADLINE, Status.OK)
    assert ask(session, 7)[1] == oracle.allowed(SLOW, [A, A, A, B])
    assert ask(session, 1)[0].position == 4

    drafts = (A, ord("7"), B)
    result, _ = one(session, Item(7, row=0, drafts=drafts))
    assert result.status == Status.STEP_DEADLINE
    result, allowed = ask(session, 7, drafts)
    assert (result.status, result.row_count, result.position) == (Status.OK, 2, 4)
    assert allowed == oracle.allowed(SLOW, [A, A, A, B])

    assert one(session, Item(7, accept=(A,), row=0))[0].status == Status.STEP_DEADLINE
    assert one(session, Item(7, Action.CLOSE))[0].status == Status.OK
    assert one(session, Item(7, row=0))[0].status == Status.SEQUENCE_NOT_FOUND
    assert one(session, Item(1, rollback=ROLLBACK_ALL, row=0))[0].status == Status.STEP_DEADLINE
    assert ask(session, 1)[1] == oracle.allowed(SLOW, [])


def test_grammar_when_it_turns_slow_later_then_it_moves_to_the_lane_and_the_masker_waits_for_it(
    slow_daemon: Daemon, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Fast in its jail, slow in the worker from its third token on: found out, taken off the data path, and every row
    is right."""
    spec = evil_spec(WORD, do="burn", in_="fill", seconds=0.06, at=3)
    with Masker(slow_daemon.target, vocabulary, row_capacity=8) as masker:
        batch = Batch(masker, oracle, [spec, LETTERS, spec, CITY])
        for token in b"Paris is":
            assert not batch.advance(
                {batch.handles[0]: A, batch.handles[1]: B, batch.handles[2]: B, batch.handles[3]: token}
            )
        print(f"longest step with slow masks: {batch.longest:.2f} s")


def test_step_when_it_waits_for_a_core_then_no_grammar_is_taken_for_slow(
    slow_daemon: Daemon, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Time without a core, in the jail and in the worker, sends no sequence to the lane: the next row is in time."""
    spec = evil_spec(WORD, do="sleep", in_="fill", seconds=0.06, at=2, jail=True)
    with Client.connect(slow_daemon.target) as client, open_session(client, vocabulary) as session:
        grammar = session.create_grammar(spec).grammar_id
        for count in range(6):
            item = Item(1, accept=(A,), row=0) if count else Item(1, Action.OPEN, grammar, row=0)
            result, allowed = one(session, item)
            assert result.status == Status.OK and allowed == oracle.allowed(spec, [A] * count)


# -- slow, and what the grammar says about it --------------------------------------------------------------------------


def test_slow_item_when_its_grammar_fails_then_it_is_closed_and_its_neighbours_are_served(
    session: Session, oracle: Oracle
) -> None:
    """``when_slow="fail"``: the answer is final, and says so."""
    slow = session.create_grammar(dataclasses.replace(SLOW, when_slow="fail")).grammar_id
    city = session.create_grammar(CITY).grammar_id
    reply = session.step([Item(1, Action.OPEN, slow, row=0), Item(2, Action.OPEN, city, row=1)], timeout_seconds=60)
    assert (reply.results[0].status, reply.results[0].detail_index) == (Status.STEP_DEADLINE, LateIndex.CLOSED)
    error = reply.results[0].error()
    assert isinstance(error, DeadlineError) and "closed" in error.message
    assert allowed_token_ids(reply.rows[1]).tolist() == oracle.allowed(CITY, [])
    assert one(session, Item(1, row=0))[0].status == Status.SEQUENCE_NOT_FOUND


def test_slow_item_when_its_grammar_switches_then_the_other_backend_goes_on_with_it(
    session: Session, oracle: Oracle
) -> None:
    """The late item is answered by the other backend, in the state that its tokens lead to; from then on nothing is
    late."""
    made = session.create_grammar(dataclasses.replace(SLOW, when_slow="switch"))
    assert made.report.backend == SLOW.backend and made.alternate_backend == "llguidance"
    slow = made.grammar_id
    assert one(session, Item(1, Action.OPEN, slow, accept=(A, B), row=0))[0].status == Status.STEP_DEADLINE
    result, allowed = ask(session, 1)
    assert (result.status, result.position, allowed) == (Status.OK, 2, oracle.allowed(SLOW, [A, B]))
    for count in range(3, 9):
        result, allowed = one(session, Item(1, accept=(A,), row=0))
        assert (result.status, result.position) == (Status.OK, count), "it is fast now"
        assert allowed == oracle.allowed(SLOW, [A, B] + [A] * (count - 2))
    result, allowed = one(session, Item(1, rollback=7, row=0))
    assert (result.position, allowed) == (1, oracle.allowed(SLOW, [A])), "back beyond the move"
    result, _ = one(session, Item(1, accept=(ord("7"),), row=0))
    assert (result.status, result.position) == (Status.TOKEN_REJECTED, 1)


def test_slow_item_when_it_moves_in_mid_sequence_then_rollback_drafts_and_fork_stand_where_they_should(
    slow_daemon: Daemon, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Fast until its third token, so there is a history to replay; the item that is late rolls back and has drafts."""
    spec = dataclasses.replace(evil_spec(WORD, do="burn", in_="fill", seconds=0.3, at=3), when_slow="switch")
    with Client.connect(slow_daemon.target) as client, open_session(client, vocabulary) as session:
        grammar = session.create_grammar(spec).grammar_id
        assert one(session, Item(1, Action.OPEN, grammar, accept=(A, B, A), row=NO_ROW))[0].status == Status.OK
        one(session, Item(2, Action.OPEN, grammar, accept=(B, B, B), row=0))  # this one shows that the grammar is slow
        one(session, Item(2, row=0))
        result, _ = one(
            session, Item(3, Action.FORK, source_sequence_id=1, rollback=1, accept=(B,), drafts=(A, ord("7")), row=0)
        )
        while result.status == Status.STEP_DEADLINE:
            again = Item(3, Action.FORK, source_sequence_id=1, rollback=1, accept=(B,), drafts=(A, ord("7")), row=0)
            begun = result.detail_index != LateIndex.NOT_BEGUN
            result, allowed = one(session, Item(3, drafts=(A, ord("7")), row=0) if begun else again)
        assert (result.status, result.position, result.row_count) == (Status.OK, 3, 2)
        assert allowed == oracle.allowed(spec, [A, B, B])
        result, allowed = one(session, Item(3, accept=(A,), row=0))
        assert (result.status, result.position, allowed) == (Status.OK, 4, oracle.allowed(spec, [A, B, B, A]))


def test_slow_item_when_the_other_backend_disagrees_then_it_is_closed_and_says_where(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """One of the two is wrong about ``7``; which one is not known, so nothing more is sampled."""
    # only the mask is late, on the busiest of machines
    daemon = evil_daemon("--row-seconds", "0.5", "--hang-seconds", "30")
    spec = evil_spec(WORD, do="burn", in_="fill", seconds=1.5, means="[a-z0-9]{0,60}")
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        grammar = session.create_grammar(dataclasses.replace(spec, when_slow="switch")).grammar_id
        one(session, Item(1, Action.OPEN, grammar, row=0))
        one(session, Item(1, row=0))  # run alone, and so found to be slow
        assert one(session, Item(2, Action.OPEN, grammar, accept=(A, ord("7")), row=NO_ROW))[0].status == Status.OK
        one(session, Item(1, Action.CLOSE))
        assert one(session, Item(2, row=0))[0].status == Status.STEP_DEADLINE
        result, allowed = ask(session, 2)
        assert (result.status, result.detail_index, result.detail_value, result.position) == (
            Status.BACKENDS_DISAGREE,
            1,
            ord("7"),
            1,
        )
        assert allowed == list(vocabulary.stop_token_ids)
        error = result.error()
        assert isinstance(error, BackendError) and "closed" in error.message and error.metadata["closed"] == "True"
        assert one(session, Item(2, row=0))[0].status == Status.SEQUENCE_NOT_FOUND


def test_masker_when_grammars_say_what_to_do_then_it_waits_fails_or_goes_on(
    slow_daemon: Daemon, vocabulary: Vocabulary, oracle: Oracle
) -> None:
    """Per sequence, in one batch."""
    specs = [dataclasses.replace(SLOW, when_slow=when) for when in ("wait", "fail", "switch")]
    with Masker(slow_daemon.target, vocabulary, row_capacity=8) as masker:
        batch = Batch(masker, oracle, [*specs, CITY])
        wait, fail, switch, city = batch.handles
        errors: dict[int, MaskdError] = {}
        for token in b"Paris":
            errors |= batch.advance({wait: A, switch: B, city: token, **({} if fail in errors else {fail: A})})
        assert set(errors) == {fail} and isinstance(errors[fail], DeadlineError)
        assert batch.histories[wait] == [A] * 5 and batch.histories[switch] == [B] * 5


def test_lane_when_a_slow_item_never_ends_then_the_worker_is_killed_and_the_grammar_blamed(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Known to be slow, then hanging for ever in the lane: neighbours are served until the watch loses its patience."""
    daemon = evil_daemon("--hang-seconds", "0.3")
    spec = evil_spec(WORD, do="sleep", in_="fill", seconds=1000)
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        grammar, city = session.create_grammar(spec).grammar_id, session.create_grammar(CITY).grammar_id
        session.submit([Item(1, Action.OPEN, grammar, row=0), Item(2, Action.OPEN, city, row=1)])
        with contextlib.suppress(UnavailableError):
            session.collect(timeout_seconds=60)
        until(lambda: blamed(daemon) == [1], "it is blamed")


def test_rows_when_late_then_they_are_never_all_ones_or_zeros(session: Session, vocabulary: Vocabulary) -> None:
    """An engine that overlooks the status ends its sequence, and never samples without a mask."""
    slow = session.create_grammar(SLOW).grammar_id
    reply = session.step(
        [Item(number, Action.OPEN, slow, row=number - 1) for number in range(1, 9)], timeout_seconds=60
    )
    for result in reply.results:
        row = reply.rows[result.sequence_id - 1]
        if result.status == Status.STEP_DEADLINE:
            assert allowed_token_ids(row).tolist() == list(vocabulary.stop_token_ids)
        assert 0 < int(np.unpackbits(row.view(np.uint8)).sum()) < vocabulary.vocab_size
