"""Vocabularies that their backends do not survive, and processes that die around an upload: a typed answer, unnoticed
by others."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from evil_backend import NAME, evil_vocabulary
from evil_backend import evil as evil_spec
from looks import alive, can, open_session, until

from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.errors import CapacityError, UnavailableError, VocabularyError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

Daemon = Any
BYTES = [bytes([byte]) for byte in range(256)]
A = ord("a")


class Neighbour:
    """A session with another vocabulary: its worker, its nursery and its sequence stay as they are."""

    def __init__(self, daemon: Daemon, session: Session) -> None:
        self.daemon, self.session, self.position = daemon, session, 0
        grammar = session.create_grammar(GrammarSpec("regex", "a{0,2000}b"))
        session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60)
        self.pids = self.processes()

    def processes(self) -> dict[str, list[int]]:
        return {name: sorted(self.daemon.pids(name)) for name in ("maskd-zygote", "maskd-nursery", "maskd-worker")}

    def step(self) -> None:
        reply = self.session.step([Item(1, accept=(A,), row=0)], timeout_seconds=60)
        self.position += 1
        assert reply.ok and reply.results[0].position == self.position
        assert allowed_token_ids(reply.rows[0]).tolist() == [A, ord("b")]

    def steps_while(self, calls: list[Any]) -> None:
        assert self.session.create_grammar(GrammarSpec("regex", f"b{time.monotonic_ns()}")).grammar_id
        while not all(call.done() for call in calls):
            self.step()
            time.sleep(0.02)

    def is_alone(self) -> None:
        """Nothing is left of other vocabularies."""
        until(lambda: self.processes() == self.pids, "every other process is gone")
        with Client.connect(self.daemon.target) as client:
            assert len(client.info().vocabularies) == 1
        assert self.session.create_grammar(GrammarSpec("regex", f"a{time.monotonic_ns()}")).grammar_id
        self.step()


@contextlib.contextmanager
def neighbour_of(daemon: Daemon, vocabulary: Vocabulary) -> Iterator[Neighbour]:
    with Client.connect(daemon.target) as client, open_session(client, vocabulary) as session:
        yield Neighbour(daemon, session)


@pytest.fixture(scope="module")
def short(start_daemon_for_session: Callable[..., Daemon], evil: Daemon) -> Daemon:
    return start_daemon_for_session(
        "--backends",
        f"llguidance,xgrammar,{NAME}",
        "--build-seconds",
        "5",
        "--build-bytes",
        str(160 << 20),
        "--vocabularies-limit",
        "2",
        environment={"PYTHONPATH": os.path.dirname(__file__)},  # noqa: PTH120
    )


@pytest.mark.parametrize(
    ("how", "limit"),
    [
        ("hang", "build_seconds"),
        ("hold", "build_seconds"),
        ("spin", "build_seconds"),
        ("eat", "build_bytes"),
        ("eat_abort", "build_bytes"),
        ("abort", None),
        ("segv", None),
        ("raise", None),
    ],
)
def test_vocabulary_when_a_backend_does_not_survive_it_then_the_answer_says_why_and_neighbours_notice_nothing(
    short: Daemon, vocabulary: Vocabulary, how: str, limit: str | None
) -> None:
    """Never "try again": the same bytes would do the same. Twice, for nothing may be left that is in the way of the
    second time."""
    with (
        neighbour_of(short, vocabulary) as neighbour,
        Client.connect(short.target) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        for _ in range(2):
            call = pool.submit(client.upload_vocabulary, evil_vocabulary(do=how))
            neighbour.steps_while([call])
            error = call.exception()
            assert isinstance(error, VocabularyError), error
            assert error.metadata["backend"] == NAME and NAME in error.message
            assert error.metadata.get("limit") == limit
            neighbour.is_alone()


def test_vocabulary_when_its_nursery_is_killed_from_outside_then_memory_is_named_and_the_next_upload_is_served(
    short: Daemon, vocabulary: Vocabulary
) -> None:
    """The kernel does that when a container passes its limit. Stopped from outside, it is late like one that hangs."""
    slow = evil_vocabulary(do="sleep", seconds=1.0, salt="killed")
    with (
        neighbour_of(short, vocabulary) as neighbour,
        Client.connect(short.target) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        for number, error_type, limit in (
            (signal.SIGKILL, CapacityError, "memory"),
            (signal.SIGSTOP, VocabularyError, "build_seconds"),
        ):
            call = pool.submit(client.upload_vocabulary, slow)
            until(lambda: len(short.pids("maskd-nursery")) == 2, "it builds")
            (pid,) = set(short.pids("maskd-nursery")) - set(neighbour.pids["maskd-nursery"])
            os.kill(pid, number)
            error = call.exception()
            assert isinstance(error, error_type) and error.metadata["limit"] == limit
            neighbour.is_alone()


def test_upload_when_its_caller_leaves_then_its_processes_are_gone_and_its_place_is_free(
    short: Daemon, vocabulary: Vocabulary
) -> None:
    """``vocabularies_limit`` is 2: an upload whose caller has left must not take the second place."""
    with neighbour_of(short, vocabulary) as neighbour, grpc.insecure_channel(short.target) as channel:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]
        for salt in range(3):
            given = evil_vocabulary(do="hang", salt=salt)
            header = pb.UploadVocabularyRequest.Header(name="x", vocab_size=300, stop_token_ids=(257,))
            call = stub.UploadVocabulary.future(iter([pb.UploadVocabularyRequest(header=header, tokens=given.tokens)]))
            until(lambda: len(short.pids("maskd-nursery")) == 2, "it builds")
            call.cancel()
            neighbour.is_alone()


def test_uploads_when_many_clients_send_the_same_then_it_is_built_once(evil_daemon: Callable[..., Daemon]) -> None:
    """And two that are different count for the limit while they are built."""
    daemon = evil_daemon("--vocabularies-limit", "2", "--workers", "2")
    same = evil_vocabulary(do="sleep", seconds=1.0)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        clients = [stack.enter_context(Client.connect(daemon.target)) for _ in range(6)]
        calls = [pool.submit(client.upload_vocabulary, same) for client in clients[:4]]
        calls.append(pool.submit(clients[4].upload_vocabulary, evil_vocabulary(do="sleep", seconds=1.0, salt=1)))
        until(lambda: len(daemon.pids("maskd-nursery")) == 2, "both are built")
        with pytest.raises(CapacityError):
            clients[5].upload_vocabulary(evil_vocabulary(do="nothing", salt=2))
        assert {call.result() for call in calls[:4]} == {same.fingerprint}
        assert calls[4].result() != same.fingerprint
        assert len([event for event in daemon.events() if event["event"] == "vocabulary loaded"]) == 2
        assert len(daemon.worker_pids()) == 4, "two workers for each vocabulary"
        for call in calls:  # at once: the workers are up
            clients[0].open_session(call.result(), vocab_size=300, row_capacity=1).close()


def test_upload_when_the_front_is_killed_in_it_then_nothing_is_left(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """A nursery inside of a library hears nothing of the front's end; the kernel ends it at the deadline."""
    daemon = evil_daemon("--build-seconds", "4")
    with Client.connect(daemon.target) as client:
        open_session(client, vocabulary).close()
        thread = threading.Thread(target=lambda: can(lambda: client.upload_vocabulary(evil_vocabulary(do="hold"))))
        thread.start()
        until(lambda: len(daemon.pids("maskd-nursery")) == 2, "it builds")
        pids = [pid for name in ("maskd-zygote", "maskd-nursery", "maskd-worker") for pid in daemon.pids(name)]
        assert len(pids) == 4
        daemon.kill()
        thread.join()
        until(lambda: not any(map(alive, pids)), "no process is left")


def test_zygote_when_killed_then_everybody_lives_on_and_there_is_another_one(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Sessions, nurseries, compiles and the restart of workers need none; also an upload that is under way ends
    well."""
    daemon = evil_daemon()
    with (
        neighbour_of(daemon, vocabulary) as neighbour,
        Client.connect(daemon.target) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        upload = pool.submit(client.upload_vocabulary, evil_vocabulary(do="sleep", seconds=2.0))
        until(lambda: len(daemon.pids("maskd-nursery")) == 2, "it builds")
        (zygote,) = daemon.pids("maskd-zygote")
        os.kill(zygote, signal.SIGKILL)
        neighbour.step()
        assert neighbour.session.create_grammar(GrammarSpec("regex", "without")).grammar_id
        client.open_session(upload.result(), vocab_size=300, row_capacity=1).close()
        neighbour.step()
        assert set(neighbour.pids["maskd-nursery"]) < set(daemon.pids("maskd-nursery"))
        assert set(neighbour.pids["maskd-worker"]) < set(daemon.worker_pids())
        os.kill(neighbour.pids["maskd-worker"][0], signal.SIGKILL)
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "its nursery forks another worker")
        until(lambda: daemon.pids("maskd-zygote") and daemon.pids("maskd-zygote") != [zygote], "there is another one")
        until(lambda: can(lambda: client.upload_vocabulary(evil_vocabulary(do="nothing"))), "it forks nurseries")


def test_nursery_when_killed_then_it_comes_back_with_its_vocabulary_and_its_workers_are_still_judged(
    evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """The worker of a dead nursery crashes in a grammar: the front hears of the signal all the same, and blames the
    grammar."""
    daemon = evil_daemon()
    with neighbour_of(daemon, vocabulary) as neighbour, Client.connect(daemon.target) as client:
        other = client.upload_vocabulary(evil_vocabulary(do="nothing"))
        nurseries = set(daemon.pids("maskd-nursery"))
        os.kill(neighbour.pids["maskd-nursery"][0], signal.SIGKILL)
        until(lambda: len(set(daemon.pids("maskd-nursery")) - nurseries) == 1, "there is another one")
        assert nurseries - set(daemon.pids("maskd-nursery")) == set(neighbour.pids["maskd-nursery"]), (
            "the other vocabulary's is the same"
        )
        until(lambda: can(lambda: neighbour.session.create_grammar(GrammarSpec("regex", "again"))), "it compiles")
        neighbour.step()
        guilty = evil_spec("[a-z]{0,9}", do="abort", in_="accept", at=0)
        grammar = neighbour.session.create_grammar(guilty)
        with pytest.raises(UnavailableError):
            neighbour.session.step([Item(2, Action.OPEN, grammar.grammar_id, accept=(A,))], timeout_seconds=60)
        until(
            lambda: [event for event in daemon.events() if event.get("digest") == guilty.digest().hex()[:16]],
            "it is blamed",
        )
        until(lambda: can(lambda: open_session(client, vocabulary).close()), "there is another worker")
        client.open_session(other, vocab_size=300, row_capacity=1).close()


# -- what the libraries cannot hold --------------------------------------------------------------------------------


def odd(*tokens: bytes) -> Vocabulary:
    return Vocabulary([*BYTES, *tokens, b"<stop>"], 257 + len(tokens), (256 + len(tokens),), (), "odd")


PICK = random.Random(7)
ODD = {
    "one of equal bytes": (odd(b"a" * 65_536), "token_bytes"),
    "thirty random ones": (odd(*(PICK.randbytes(65_000) for _ in range(30))), "token_bytes"),
    "just too long": (odd(b"a" * 1025), "token_bytes"),
    "too many prefixes": (odd(*(PICK.randbytes(1000) for _ in range(4300))), "trie_nodes"),
}


@pytest.mark.parametrize("case", list(ODD))
def test_vocabulary_when_llguidance_cannot_hold_it_then_the_limit_is_named_and_neighbours_notice_nothing(
    evil: Daemon, vocabulary: Vocabulary, case: str
) -> None:
    """A library's own assertion must not be an UNAVAILABLE that a client tries again for ever."""
    hostile, limit = ODD[case]
    with neighbour_of(evil, vocabulary) as neighbour, Client.connect(evil.target) as client:
        with pytest.raises(VocabularyError) as caught:
            client.upload_vocabulary(hostile)
        assert (caught.value.metadata["backend"], caught.value.metadata["limit"]) == ("llguidance", limit)
        neighbour.is_alone()


def test_vocabulary_when_it_is_at_the_limits_of_the_libraries_then_it_is_served(
    start_daemon: Callable[..., Daemon],
) -> None:
    """1,024 bytes on both libraries, and what llguidance cannot hold on the other one alone."""
    for flags, given in ((), odd(b"a" * 1024)), (("--backends", "xgrammar"), ODD["one of equal bytes"][0]):
        daemon = start_daemon(*flags)
        with Client.connect(daemon.target) as client, open_session(client, given) as session:
            for backend in ("xgrammar", "llguidance") if not flags else ("xgrammar",):
                grammar = session.create_grammar(GrammarSpec("regex", "a+", backend=backend))
                reply = session.step(
                    [Item(hash(backend) & 0xFFFF, Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60
                )
                assert allowed_token_ids(reply.rows[0]).tolist() == [A, 256]


def test_nursery_when_its_vocabulary_is_built_then_no_limit_of_the_build_is_left(
    short: Daemon, vocabulary: Vocabulary
) -> None:
    """Its workers live for weeks, and take what memory they need."""
    with neighbour_of(short, vocabulary) as neighbour:
        for pid in neighbour.pids["maskd-nursery"] + neighbour.pids["maskd-worker"]:
            assert resource.prlimit(pid, resource.RLIMIT_AS) == resource.getrlimit(resource.RLIMIT_AS)
        time.sleep(5.5)  # longer than build_seconds
        neighbour.is_alone()


def test_daemon_when_a_configured_vocabulary_cannot_be_used_then_it_says_so_and_does_not_start(
    start_daemon: Callable[..., Daemon], tmp_path: Any
) -> None:

    words = [*BYTES, b"a" * 3000]
    (tmp_path / "odd.tiktoken").write_bytes(
        b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(words))
    )
    source = f'[{{"path": "{tmp_path}/odd.tiktoken", "vocab_size": 264, "stop_token_ids": [0]}}]'
    with pytest.raises(RuntimeError, match=r"(?s)exited with 2.*odd\.tiktoken: llguidance cannot hold") as caught:
        start_daemon("--vocabularies", source)
    assert "Traceback" not in str(caught.value)
