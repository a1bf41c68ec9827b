"""Every limit of a session and of the daemon: at the limit it is served, above it the answer is typed and names the
limit and its value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from evil_backend import evil
from looks import grammar_count, memory_kb, open_session, raw_stub

from maskd.client import Client, Session
from maskd.errors import CapacityError, GrammarError, GrammarTooLargeError, MaskdError, VocabularyError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import Vocabulary

Daemon = Any
SMALL = {
    "grammar_bytes": 2000,
    "grammars_per_session": 3,
    "sequences_per_session": 4,
    "rows_per_session": 6,
    "sessions": 5,
    "vocabularies_limit": 2,
    "message_bytes": 100_000,
    "cache_bytes": 1 << 20,
}


@pytest.fixture(scope="module")
def small(start_daemon_for_session: Callable[..., Daemon]) -> Daemon:
    flags = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return start_daemon_for_session(*flags, "--claim-seconds", "1")


@pytest.fixture(params=["shm", "inline"])
def session(small: Daemon, vocabulary: Vocabulary, request: pytest.FixtureRequest) -> Iterator[Session]:
    with (
        Client.connect(small.target) as client,
        open_session(client, vocabulary, rows=6, transport=request.param) as opened,
    ):
        yield opened


def assert_names(error: MaskdError, limit: str, value: object) -> None:
    assert (error.metadata.get("limit"), error.metadata.get("value")) == (limit, str(value)), error.metadata
    assert limit in error.message or str(value) in error.message, error.message


def test_grammar_bytes_when_passed_then_too_large_names_it(session: Session) -> None:
    inner = SMALL["grammar_bytes"] - 2
    assert session.create_grammar(GrammarSpec("regex", f"({'a' * inner})")).grammar_id
    with pytest.raises(GrammarTooLargeError) as caught:
        session.create_grammar(GrammarSpec("regex", f"({'a' * inner}b)"))
    assert_names(caught.value, "grammar_bytes", SMALL["grammar_bytes"])


def test_nesting_when_it_is_too_deep_then_too_large_names_it(session: Session) -> None:
    """Of JSON; what regexes and grammars may nest is the libraries' to say: test_cve_2026_25048."""
    with pytest.raises(GrammarTooLargeError) as caught:
        session.create_grammar(GrammarSpec("json_schema", '{"items":' * 180 + "{}" + "}" * 180))
    assert_names(caught.value, "depth", caught.value.metadata["value"])
    depth = int(caught.value.metadata["value"])
    assert session.create_grammar(
        GrammarSpec("json_schema", '{"items":' * 20 + "{}" + "}" * 20), timeout_seconds=60
    ).grammar_id
    assert 20 < depth < 180


def test_grammars_per_session_when_passed_then_capacity_names_it_and_deleting_one_makes_room(session: Session) -> None:
    held = [
        session.create_grammar(GrammarSpec("regex", f"a{{{n}}}")).grammar_id
        for n in range(1, SMALL["grammars_per_session"] + 1)
    ]
    with pytest.raises(CapacityError) as caught:
        session.create_grammar(GrammarSpec("regex", "one more"))
    assert_names(caught.value, "grammars_per_session", SMALL["grammars_per_session"])
    session.delete_grammar(held[0])
    assert session.create_grammar(GrammarSpec("regex", "one more")).grammar_id


@pytest.mark.parametrize("flags", [("--no-jail",), ()])
def test_grammars_per_session_when_many_are_created_at_a_time_then_those_under_way_count(
    flags: tuple[str, ...], evil_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """Slow compiles, eight at a time: three are held, five refused. One that fails, or was only to be reported, takes
    no place."""
    daemon = evil_daemon("--grammars-per-session", "3", "--compile-threads", "8", *flags)
    with (
        Client.connect(daemon.target) as client,
        open_session(client, vocabulary) as session,
        ThreadPoolExecutor(9) as threads,
    ):

        def create(number: int, *, validate_only: bool = False) -> int | str:
            spec = evil(f"a{{{number}}}", do="sleep", in_="compile", seconds=0.5)
            try:
                return session.create_grammar(spec, timeout_seconds=60, validate_only=validate_only).grammar_id
            except CapacityError as error:
                assert_names(error, "grammars_per_session", 3)
                return "refused"

        reported = threads.submit(create, 99, validate_only=True)
        made = list(threads.map(create, range(1, 9)))
        assert (made.count("refused"), reported.result(), grammar_count(daemon, session)) == (5, 0, 3), made
        for grammar_id in made:
            if isinstance(grammar_id, int):
                session.delete_grammar(grammar_id)
        for _ in range(4):
            with pytest.raises(GrammarError):
                session.create_grammar(GrammarSpec("regex", "(a"))
        assert [create(number) for number in range(1, 5)][3] == "refused"


@pytest.mark.parametrize("session", ["shm"], indirect=True)
def test_grammars_per_session_when_a_grammar_has_an_alternate_then_it_counts_twice(
    small: Daemon, session: Session
) -> None:
    """Both are held. Where the alternate has no place, the grammar is not held either."""
    session.create_grammar(GrammarSpec("regex", "x+", when_slow="switch"))
    assert grammar_count(small, session) == 2
    with pytest.raises(CapacityError) as caught:
        session.create_grammar(GrammarSpec("regex", "y+", when_slow="switch"))
    assert_names(caught.value, "grammars_per_session", 3)
    assert grammar_count(small, session) == 2
    third = session.create_grammar(GrammarSpec("regex", "z+")).grammar_id
    session.delete_grammar(third)
    session.delete_grammar(1)
    assert grammar_count(small, session) == 0


def test_sequences_when_there_are_too_many_then_that_item_says_how_many_and_closing_one_makes_room(
    session: Session,
) -> None:
    grammar_id, most = session.create_grammar(GrammarSpec("regex", "[ab]*")).grammar_id, SMALL["sequences_per_session"]
    results = session.step([Item(n + 1, Action.OPEN, grammar_id) for n in range(most + 1)], timeout_seconds=60).results
    assert [result.status for result in results] == [Status.OK] * most + [Status.SEQUENCE_CAPACITY]
    assert results[-1].detail_value == most
    error = results[-1].error()
    assert isinstance(error, CapacityError) and str(most) in error.message
    assert session.step([Item(1, Action.CLOSE), Item(9, Action.OPEN, grammar_id)], timeout_seconds=60).ok


@pytest.mark.parametrize(
    ("asked", "limit", "value"),
    [
        ({"row_capacity": SMALL["rows_per_session"] + 1}, "rows_per_session", SMALL["rows_per_session"]),
        (
            {"row_capacity": 1, "sequence_capacity": SMALL["sequences_per_session"] + 1},
            "sequences_per_session",
            SMALL["sequences_per_session"],
        ),
        ({"row_capacity": 1, "item_capacity": (1 << 16) + 1}, "item_capacity", (1 << 16) + 1),
        ({"row_capacity": 1, "token_capacity": (1 << 22) + 1}, "token_capacity", (1 << 22) + 1),
    ],
)
def test_session_when_it_asks_for_more_than_there_is_then_capacity_names_it(
    small: Daemon, vocabulary: Vocabulary, asked: dict[str, int], limit: str, value: int
) -> None:
    with Client.connect(small.target) as client:
        fingerprint = client.upload_vocabulary(vocabulary)
        with pytest.raises(CapacityError) as caught:
            client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, **asked)
        assert_names(caught.value, limit, value)


def test_sessions_when_there_are_too_many_then_capacity_names_it_and_closing_one_makes_room(
    small: Daemon, vocabulary: Vocabulary
) -> None:
    with Client.connect(small.target) as client:
        opened = [open_session(client, vocabulary, rows=1) for _ in range(SMALL["sessions"])]
        try:
            with pytest.raises(CapacityError) as caught:
                open_session(client, vocabulary, rows=1)
            assert_names(caught.value, "sessions", SMALL["sessions"])
            opened.pop().close()
            opened.append(open_session(client, vocabulary, rows=1))
        finally:
            for one in opened:
                one.close()


def test_draft_tokens_when_there_are_too_many_for_a_step_then_capacity_names_what_is_full(
    small: Daemon, vocabulary: Vocabulary
) -> None:
    """Drafts take rows and tokens of their step; both were asked for by the engine itself."""
    for transport in ("shm", "inline"):
        with Client.connect(small.target) as client:
            fingerprint = client.upload_vocabulary(vocabulary)
            with client.open_session(
                fingerprint,
                vocab_size=vocabulary.vocab_size,
                row_capacity=6,
                token_capacity=8,
                transport=transport,  # type: ignore[arg-type]
            ) as session:
                grammar_id = session.create_grammar(GrammarSpec("regex", "a*")).grammar_id
                assert (
                    session.step([Item(1, Action.OPEN, grammar_id, drafts=(97,) * 5, row=0)], timeout_seconds=60)
                    .results[0]
                    .row_count
                    == 6
                )
                with pytest.raises(CapacityError) as caught:
                    session.step([Item(1, accept=(97,) * 9)], timeout_seconds=60)
                assert_names(caught.value, "token_capacity", 8)
                try:  # a row beyond those of the session is refused by the item (shm) or before it is sent (inline)
                    results = session.step([Item(1, drafts=(97,) * 6, row=0)], timeout_seconds=60).results
                    assert results[0].status == Status.INVALID_ITEM
                except MaskdError as error:
                    assert error.reason == "INVALID_REQUEST" and "6" in error.message


def test_vocabularies_when_too_many_or_too_large_then_typed(small: Daemon, vocabulary: Vocabulary) -> None:
    with Client.connect(small.target) as client:
        client.upload_vocabulary(vocabulary)
        client.upload_vocabulary(Vocabulary([*vocabulary.tokens[:-1], b"<two>"], 300, vocabulary.stop_token_ids))
        with pytest.raises(CapacityError) as caught:
            client.upload_vocabulary(Vocabulary([*vocabulary.tokens[:-1], b"<three>"], 300, vocabulary.stop_token_ids))
        assert_names(caught.value, "vocabularies_limit", SMALL["vocabularies_limit"])
        with pytest.raises(VocabularyError):
            Vocabulary([b"a"], 1 << 23, (0,))


def test_message_bytes_when_passed_then_resource_exhausted_and_the_next_call_is_served(
    small: Daemon, client: Client
) -> None:
    with raw_stub(small) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateGrammar(
                pb.CreateGrammarRequest(session_id=1, grammar=pb.GrammarSpec(regex="a" * SMALL["message_bytes"])),
                timeout=60,
            )
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(SMALL["message_bytes"]) in caught.value.details()
        assert stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60).version


def test_cache_bytes_when_passed_then_the_oldest_is_compiled_again_and_memory_stays(
    small: Daemon, session: Session
) -> None:
    """Nobody is refused: what the cache lets go of is made again when it is asked for."""

    def memory() -> int:
        return sum(map(memory_kb, small.worker_pids()))

    def make(number: int) -> bool:
        properties = {f"k{session.session_id}_{number}_{i}": {"type": "string", "maxLength": 30} for i in range(8)}
        grammar = session.create_grammar(
            GrammarSpec("json_schema", json.dumps({"properties": properties}), backend="xgrammar")
        )
        session.delete_grammar(grammar.grammar_id)
        return grammar.cached

    assert [make(0), make(0)] == [False, True]
    for number in range(1, 60):
        make(number)
    before = memory()
    for number in range(60, 120):
        make(number)
    assert memory() < 1.5 * before + 16_384
    assert make(0) is False, "the cache let go of it"
