"""The masker against real daemons: the two hooks, and what they give when workers and daemons die."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from engine_adapter.masker import Masker
from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import (
    BackendError,
    CapacityError,
    GrammarError,
    InvalidRequestError,
    NotFoundError,
    RollbackError,
    TokenRejectedError,
    UnavailableError,
)
from maskd.grammar import GrammarSpec, ReasoningGate
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon, byte_vocabulary

torch.set_num_threads(1)
VOCABULARY = byte_vocabulary()
STOP = VOCABULARY.stop_token_ids[0]
PARIS, LONDON = VOCABULARY.tokens.index(b"Paris"), VOCABULARY.tokens.index(b"London")
CITY = GrammarSpec("regex", "(Paris|London)")
LETTERS = GrammarSpec("regex", "[ab]{0,40}", backend="xgrammar")
NUMBERS = GrammarSpec("regex", "[0-9]{1,9}(,[0-9]{1,9}){0,9}", backend="llguidance")
THOUGHTS = GrammarSpec("regex", "[ab]{0,40}", reasoning=ReasoningGate((PARIS, LONDON), max_tokens=7))


@pytest.fixture
def masker(daemon: Daemon) -> Iterator[Masker]:
    with Masker(daemon.target, VOCABULARY, row_capacity=8) as made:
        yield made


def allowed(masker: Masker, rows: list[int | None]) -> list[list[int] | None]:
    """The tokens allowed at each position, None where there is no mask, by way of logits."""
    logits = np.zeros((len(rows), VOCABULARY.vocab_size), dtype=np.float32)
    masker.apply_(logits)
    ids = [np.flatnonzero(np.isfinite(row)).tolist() for row in logits]
    return [None if len(row) == VOCABULARY.vocab_size else row for row in ids]


def after(masker: Masker, handle: int, *tokens: int) -> list[int] | None:
    """Advances one sequence and returns what is allowed next."""
    masker.advance({handle: tokens}, rows=[handle])
    return allowed(masker, [handle])[0]


def test_advance_when_batch_is_mixed_then_each_position_gets_its_own_row_or_none(masker: Masker) -> None:
    city, free, letters = masker.open(CITY), masker.open(None), masker.open(LETTERS)
    rows = [letters, None, free, city]
    masker.advance({}, rows)
    first = allowed(masker, rows)
    assert first == [[ord("a"), ord("b"), STOP], None, None, sorted([ord("L"), ord("P"), PARIS, LONDON])]
    masker.advance({city: PARIS, free: 7, letters: [ord("a"), ord("b")]}, rows)
    assert [[ord("a"), ord("b"), STOP], None, None, [STOP]] == allowed(masker, rows)
    assert masker.report(city) is not None and masker.report(free) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_apply_when_logits_are_torch_or_numpy_then_the_same_is_masked(masker: Masker, dtype: torch.dtype) -> None:
    rows = [masker.open(CITY), None, masker.open(NUMBERS)]
    masker.advance({}, rows)
    logits = torch.randn(VOCABULARY.vocab_size, 3).to(dtype).T  # strided
    as_numpy = logits.clone().numpy()
    masker.apply_(logits)
    masker.apply_(as_numpy)
    assert as_numpy.dtype == logits.numpy().dtype
    assert np.array_equal(as_numpy, logits.numpy())
    assert logits.isinf().any(dim=1).tolist() == [True, False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_apply_when_logits_are_on_cuda_then_the_same_is_masked_step_after_step(masker: Masker) -> None:
    letters, city = masker.open(LETTERS), masker.open(CITY)
    rows: list[int | None] = [letters, None, city]
    tokens: dict[int, int] = {}
    for _ in range(10):
        masker.advance(tokens, rows)
        on_host = np.zeros((3, VOCABULARY.vocab_size), dtype=np.float32)
        on_device = torch.zeros(3, VOCABULARY.vocab_size, device="cuda")
        masker.apply_(on_device)
        masker.apply_(on_host)
        assert np.array_equal(on_host, on_device.cpu().numpy())
        tokens = {letters: ord("a")}


def test_apply_when_shape_is_not_that_of_the_batch_then_refuses(masker: Masker) -> None:
    masker.advance({}, rows=[masker.open(CITY)])
    with pytest.raises(ValueError, match="the batch is"):
        masker.apply_(np.zeros((2, VOCABULARY.vocab_size), dtype=np.float32))


def test_drafts_when_given_then_a_sequence_takes_one_position_more_for_each(masker: Masker) -> None:
    city, free = masker.open(CITY), masker.open(None)
    rows = [free, city]
    masker.advance({}, rows, drafts={city: [ord("P"), ord("a")], free: [1]})
    assert allowed(masker, [None] * 5)[:2] == [None, None]
    assert allowed(masker, [None] * 5)[3:] == [[ord("a")], [ord("r")]]
    assert masker.collect().results[city].row_count == 3
    assert after(masker, city, LONDON) == [STOP], "drafts are not accepted"


def test_fork_and_rollback_when_mixed_then_each_sequence_stands_where_it_should(masker: Masker) -> None:
    first = masker.open(CITY)
    assert after(masker, first, ord("P"), ord("a")) == [ord("r")]
    second = masker.fork(first)
    third = masker.fork(second)
    masker.rollback(third, 1)
    masker.close(first)
    masker.advance({second: ord("r"), third: [ord("a"), ord("r"), ord("i")]}, rows=[second, third])
    assert allowed(masker, [second, third]) == [[ord("i")], [ord("s")]]
    masker.rollback(second, 3)
    assert after(masker, second) == sorted([ord("L"), ord("P"), PARIS, LONDON])
    late = masker.fork(third)
    assert after(masker, third, ord("s")) == [STOP]
    assert after(masker, late) == [ord("s")], "a fork stands where its source stood before the next step"


def test_rollback_of_more_than_there_is_then_it_fails_alone_and_at_once(masker: Masker) -> None:
    few, good, free = masker.open(LETTERS), masker.open(CITY), masker.open(None)
    assert after(masker, few, ord("a")) is not None
    with pytest.raises(RollbackError) as caught:
        masker.rollback(few, 5)
    assert caught.value.metadata["sequence_id"] == str(few)
    masker.rollback(few, np.int64(1))  # type: ignore[arg-type]
    with pytest.raises(RollbackError):
        masker.rollback(few, 1)
    masker.rollback(free, 5)
    assert after(masker, few) == [ord("a"), ord("b"), STOP]
    masker.advance({few: ord("x"), good: ord("P")}, rows=[few, good])
    masker.rollback(few, 1)  # counts on the token that is refused
    masker.collect()
    masker.advance({few: ord("a"), good: ord("a")}, rows=[few, good])
    masks = masker.collect()
    assert list(masks.errors) == [few] and isinstance(masks.errors[few], RollbackError)
    assert allowed_token_ids(masks.rows[0]).tolist() == [STOP]
    assert allowed(masker, [few, good])[1] == [ord("r")]
    assert after(masker, few, ord("a")) == [ord("a"), ord("b"), STOP]


@pytest.mark.parametrize("bad", [1 << 31, -(1 << 31) - 1, 10**30, [ord("a"), 1 << 40], -1, 100_000])
@pytest.mark.parametrize("as_drafts", [False, True])
def test_token_of_no_vocabulary_then_one_sequence_has_an_error(masker: Masker, bad: Any, as_drafts: bool) -> None:
    wrong, good = masker.open(LETTERS), masker.open(CITY)
    drafts = bad if isinstance(bad, list) else [bad]
    if as_drafts:
        masker.advance({good: ord("P")}, rows=[wrong, good], drafts={wrong: drafts})
    else:
        masker.advance({wrong: bad, good: ord("P")}, rows=[wrong, good])
    masks = masker.collect()
    if not (as_drafts and bad in (-1, 100_000)):  # the daemon fills the rows up to a draft that is refused
        assert isinstance(masks.errors[wrong], InvalidRequestError) and list(masks.errors) == [wrong]
        assert allowed_token_ids(masks.rows[0]).tolist() == [STOP]
    assert allowed_token_ids(masks.rows[masks.row_indices[-1]]).tolist() == [ord("a")]
    assert after(masker, wrong, ord("a")) == [ord("a"), ord("b"), STOP]


@pytest.mark.parametrize("bad", ["a", 1.5, None, [None], [1.0], [[1]]])
def test_tokens_that_are_no_integers_then_nothing_is_sent(masker: Masker, bad: Any) -> None:
    wrong, good = masker.open(LETTERS), masker.open(CITY)
    assert after(masker, good, ord("P"), ord("a")) == [ord("r")]
    masker.rollback(good, 1)
    for tokens, drafts in (({wrong: bad}, {}), ({}, {wrong: bad})):
        with pytest.raises(InvalidRequestError, match=f"sequence {wrong}: "):
            masker.advance(tokens, rows=[wrong, good], drafts=drafts)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="nothing was advanced"):
            masker.collect()
    with pytest.raises(NotFoundError):
        masker.advance({4711: 1, good: ord("a")})
    with pytest.raises(InvalidRequestError, match="twice"):
        masker.advance({}, rows=[good, wrong, good])
    assert after(masker, good) == [ord("a")], "the rollback is done once"


def test_tokens_of_any_library_then_they_are_taken(masker: Masker) -> None:
    city = masker.open(LETTERS)
    a = ord("a")
    for one in (
        np.int64(a),
        np.int32(a),
        np.array(a),
        torch.tensor(a),
        torch.tensor([a]),
        np.array([a, a]),
        [np.int64(a)],
    ):
        masker.advance({city: one}, rows=np.array([city]), drafts={city: np.array([a])})  # type: ignore[dict-item, arg-type]
        masks = masker.collect()
        assert not masks.errors and masks.results[city].row_count == 2
    masker.rollback(city, 8)
    with pytest.raises(RollbackError):
        masker.rollback(city, 1)


def test_step_with_more_tokens_than_the_session_takes_then_nothing_changes(masker: Masker) -> None:
    city, gone = masker.open(CITY), masker.open(CITY)
    assert after(masker, city, ord("P"), ord("a")) == [ord("r")]
    masker.rollback(city, 1)
    masker.close(gone)
    with pytest.raises(CapacityError, match="tokens in a step"):
        masker.advance({city: [ord("a")] * 1_000_000}, rows=[city])
    with pytest.raises(InvalidRequestError, match="nothing was advanced"):
        masker.collect()
    assert after(masker, city) == [ord("a")]


def test_fork_that_fails_then_it_stands_where_its_source_stood(masker: Masker) -> None:
    source = masker.open(CITY)
    assert after(masker, source, ord("P")) == [ord("a")]
    for bad in (ord("x"), 1 << 40):
        fork = masker.fork(source)
        masker.advance({source: ord("a"), fork: bad}, rows=[source, fork])
        assert list(masker.collect().errors) == [fork]
        assert after(masker, fork) == [ord("a")]
        masker.rollback(source, 1)
        assert after(masker, source) == [ord("a")]


@pytest.mark.parametrize(("row_capacity", "transport"), [(0, "auto"), (-1, "auto"), (4, "smh")])
def test_masker_with_a_bad_argument_then_it_is_refused_before_a_daemon_is_asked(
    row_capacity: int, transport: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=r"row_capacity is|unknown transport 'smh'"):
        Masker("unix:/nowhere/maskd.sock", VOCABULARY, row_capacity=row_capacity, transport=transport)


def test_row_capacity_then_its_limit_is_the_daemons(daemon: Daemon) -> None:
    with Masker(daemon.target, VOCABULARY, row_capacity=4096) as masker:
        assert after(masker, masker.open(CITY), PARIS) == [STOP]
    started = time.monotonic()
    with pytest.raises(CapacityError, match="row_capacity is 4097; give 1 to 4096"):
        Masker(daemon.target, VOCABULARY, row_capacity=4097)
    assert time.monotonic() - started < 5


def test_advance_when_a_token_is_refused_then_only_that_sequence_has_an_error(masker: Masker) -> None:
    bad, good = masker.open(CITY), masker.open(CITY)
    masker.advance({bad: ord("x"), good: ord("P")}, rows=[bad, good])
    masks = masker.collect()
    assert isinstance(masks.errors[bad], TokenRejectedError) and list(masks.errors) == [bad]
    assert allowed_token_ids(masks.rows[0]).tolist() == [STOP]
    assert allowed(masker, [bad, good])[1] == [ord("a")]
    assert after(masker, bad, PARIS) == [STOP], "the sequence stood as before"


def test_calls_when_wrong_then_typed_and_nothing_is_sent(masker: Masker) -> None:
    city = masker.open(CITY)
    with pytest.raises(InvalidRequestError, match="nothing was advanced"):
        masker.collect()
    with pytest.raises(NotFoundError):
        masker.advance({99: 1})
    with pytest.raises(InvalidRequestError, match="row_capacity"):
        masker.advance({}, rows=[city], drafts={city: [1] * 8})
    with pytest.raises(InvalidRequestError, match="token_count"):
        masker.rollback(city, -1)
    with pytest.raises(GrammarError):
        masker.open(GrammarSpec("regex", "("))
    masker.advance({}, rows=[city])
    with pytest.raises(InvalidRequestError, match="not collected"):
        masker.advance({}, rows=[city])
    masker.collect()
    masker.close(city)
    with pytest.raises(NotFoundError):
        masker.close(city)


def test_close_when_many_leave_at_once_then_all_reach_the_daemon(masker: Masker) -> None:
    """More closes than items fit into a step wait for the next."""
    for _ in range(8):
        handles = [masker.open(CITY) for _ in range(8)]
        masker.advance({}, rows=handles)
        masker.collect()
        for handle in handles:
            masker.close(handle)
    for _ in range(4):
        masker.flush()
    assert masker._ledger._known == set() and not masker._ledger.is_closing


def test_open_when_called_beside_the_loop_then_neither_waits_for_the_other(masker: Masker) -> None:
    city, opened = masker.open(CITY), list[int]()
    thread = threading.Thread(
        target=lambda: opened.extend(masker.open(GrammarSpec("regex", f"a{{{n}}}")) for n in range(1, 80))
    )
    thread.start()
    while thread.is_alive():
        assert after(masker, city) is not None
    thread.join()
    assert after(masker, opened[4]) == [ord("a")]
    for handle in opened:
        masker.close(handle)
    masker.open(GrammarSpec("regex", "b"))
    known = [masker.knows(GrammarSpec("regex", f"a{{{n}}}")) for n in range(1, 80)]
    assert not all(known) and known[-1], "the oldest grammars without a sequence are forgotten"


# -- what happens when things die ------------------------------------------------------------------------------------


def kill_worker(daemon: Daemon) -> None:
    """kill -9, once there is a worker; returns when it is gone, so that it cannot answer any more."""
    while not daemon.worker_pids():
        time.sleep(0.01)
    pid = daemon.kill_worker()
    while pid in daemon.worker_pids():
        time.sleep(0.001)


def transcript(target: str, disturb: dict[int, Callable[[], None]], where: str) -> list[str]:
    """Decodes 24 steps of a seeded walk with forks, rollbacks and late joins; returns a digest of the rows of every
    step.

    ``disturb`` happens at its step, ``where`` says at which point of it.
    """
    rng = random.Random(3)
    digests = []
    with Masker(target, VOCABULARY, row_capacity=8) as masker:
        live = [masker.open(CITY), masker.open(LETTERS), masker.open(NUMBERS), masker.open(None), masker.open(THOUGHTS)]
        tokens: dict[int, int] = {}
        for step in range(24):
            if where == "between" and step in disturb:
                disturb[step]()
            if step in (5, 15):
                live.append(masker.fork(live[1]))
            if step == 8:
                masker.rollback(live[2], 3)
            if step == 11:
                masker.close(live.pop(0))
                live.append(masker.open(LETTERS))
            masker.advance(tokens, rows=live)
            if where == "unanswered" and step in disturb:
                disturb[step]()
            masks = masker.collect()
            assert not masks.errors
            digests.append(
                hashlib.sha256(b"".join(masks.rows[row].tobytes() for row in masks.row_indices if row >= 0)).hexdigest()
            )
            choices = [allowed_token_ids(masks.rows[row]) if row >= 0 else np.array([1]) for row in masks.row_indices]
            tokens = {handle: int(rng.choice(ids)) for handle, ids in zip(live, choices, strict=True) if ids[0] != STOP}
            tokens = {handle: token_id for handle, token_id in tokens.items() if token_id != STOP}
    return digests


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon) -> list[str]:
    digests = transcript(daemon.target, {}, "between")
    assert len(set(digests)) > 12
    return digests


@pytest.mark.parametrize("where", ["between", "unanswered"])
def test_rows_when_the_worker_is_killed_then_are_those_of_an_undisturbed_run(
    start_daemon: Callable[..., Daemon], undisturbed: list[str], where: str
) -> None:
    daemon = start_daemon()

    assert undisturbed == transcript(daemon.target, dict.fromkeys((5, 12), lambda: kill_worker(daemon)), where)


@pytest.mark.parametrize("where", ["between", "unanswered"])
def test_rows_when_the_daemon_is_killed_and_comes_back_then_are_those_of_an_undisturbed_run(
    start_daemon: Callable[..., Daemon], undisturbed: list[str], where: str
) -> None:
    daemon = start_daemon()
    threads = []

    def kill_and_restart_later() -> None:
        daemon.kill()
        threads.append(threading.Thread(target=daemon.restart))
        threads[-1].start()

    assert undisturbed == transcript(daemon.target, {9: kill_and_restart_later}, where)
    for thread in threads:
        thread.join()


def test_collect_when_the_daemon_stays_away_then_raises_and_later_recovers(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    with Masker(
        lambda: Client.connect(daemon.target, timeout_seconds=0.1), VOCABULARY, row_capacity=4, restore_seconds=0.3
    ) as masker:
        city, free = masker.open(CITY), masker.open(None)
        rows: list[int | None] = [city, free]
        masker.advance({}, rows)
        masker.collect()
        daemon.kill()
        logits = np.zeros((2, VOCABULARY.vocab_size), dtype=np.float32)
        masker.advance({city: PARIS}, rows)
        with pytest.raises(UnavailableError):
            masker.apply_(logits)
        assert np.isfinite(logits).all(), "nothing was masked, and the caller knows"
        with pytest.raises(UnavailableError):
            masker.open(LETTERS)

        masker.advance({free: 3}, rows=[free])
        assert not masker.collect().errors, "a sequence without a grammar needs no daemon"
        masker.advance({free: 3}, rows)
        assert isinstance(masker.collect().errors[city], UnavailableError), "a lost sequence stays lost"
        assert allowed(masker, rows) == [[STOP], None]
        masker.advance({}, rows, drafts={city: [STOP]})
        assert allowed(masker, [None] * 3) == [[STOP], [STOP], None], "and so are its drafts"

        daemon.restart()
        again = masker.open(CITY)
        assert after(masker, again, PARIS) == [STOP]


class RefusingClient:
    """A client whose later sessions refuse one grammar, as a daemon does that has put it in quarantine."""

    sessions = 0

    def __init__(self, target: str, spec: GrammarSpec) -> None:
        self._client = Client.connect(target)
        self._spec = spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def open_session(self, *args: Any, **kwargs: Any) -> Session:
        session = self._client.open_session(*args, **kwargs)
        RefusingClient.sessions += 1
        if RefusingClient.sessions > 1:
            create = session.create_grammar

            def create_grammar(spec: GrammarSpec, **more: Any) -> Any:
                if spec == self._spec:
                    raise BackendError("quarantined: it killed two workers")
                return create(spec, **more)

            session.create_grammar = create_grammar  # type: ignore[method-assign]
        return session


def test_rows_when_a_grammar_is_refused_in_the_new_session_then_only_its_sequences_end(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon()
    RefusingClient.sessions = 0
    with Masker(lambda: RefusingClient(daemon.target, LETTERS), VOCABULARY, row_capacity=4) as masker:  # type: ignore[arg-type, return-value]
        letters, city = masker.open(LETTERS), masker.open(CITY)
        rows: list[int | None] = [letters, city]
        masker.advance({}, rows)
        masker.collect()
        kill_worker(daemon)
        masker.advance({letters: ord("a"), city: ord("P")}, rows)
        assert isinstance(masker.collect().errors[letters], BackendError)
        assert allowed(masker, rows) == [[STOP], [ord("a")]]


def test_replay_when_histories_are_long_then_they_take_several_steps(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    endless = GrammarSpec("regex", "[ab]*c")
    with Masker(daemon.target, VOCABULARY, row_capacity=4) as masker:
        long, short = masker.open(endless), masker.open(CITY)
        masker.advance({long: [ord("a")] * 6000, short: ord("L")}, rows=[long, short])
        masker.advance({long: [ord("b")] * 6000}, rows=[long]) if not masker.collect().errors else pytest.fail(
            "refused"
        )
        masker.collect()
        kill_worker(daemon)
        masker.advance({}, rows=[long, short])
        masks = masker.collect()
        assert not masks.errors and masks.results[long].position == 12000
        assert allowed(masker, [long, short]) == [[ord("a"), ord("b"), ord("c")], [ord("o")]]


def test_vocabulary_when_the_daemon_forgot_it_then_it_is_uploaded_again(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    other = Vocabulary([*VOCABULARY.tokens[:-1], b"<other>"], 300, VOCABULARY.stop_token_ids)
    with Masker(daemon.target, other, row_capacity=4) as masker:
        city = masker.open(CITY)
        assert after(masker, city, ord("P")) == [ord("a")]
        daemon.kill()
        daemon.restart()
        assert after(masker, city, ord("a")) == [ord("r")]
