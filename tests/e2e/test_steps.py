"""Steps through a real daemon, over shared memory and inline: the same semantics, the same rows, the same errors."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grpc
import numpy as np
import pytest

from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.client import Client, Session
from maskd.errors import (
    CapacityError,
    DeadlineError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsupportedError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    RollbackError,
    SequenceExistsError,
    StepOrderError,
    TerminatedError,
    TokenRejectedError,
    UnavailableError,
    VocabularyMismatchError,
)
from maskd.grammar import GrammarOptions, GrammarSpec, ReasoningGate
from maskd.rpc.status import from_rpc_error
from maskd.shm import layout as lay
from maskd.shm.cells import Reply
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item, ItemField, Result, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

SPEC = GrammarSpec("regex", "(Paris|London)( is (true|null))*")
PARIS, LONDON, TRUE, NULL, IS, STOP = 256, 257, 260, 261, 262, 263
ROWS, SEQUENCES, TOKENS = 8, 6, 64
TRANSPORTS = ["shm", "inline"]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_session(client: Client, vocabulary: Vocabulary) -> Iterator[Callable[..., Session]]:
    sessions = []

    def open_one(transport: str, **more: object) -> Session:
        arguments = {"row_capacity": ROWS, "sequence_capacity": SEQUENCES, "token_capacity": TOKENS, **more}
        session = client.open_session(
            client.upload_vocabulary(vocabulary),
            vocab_size=vocabulary.vocab_size,
            transport=transport,
            **arguments,  # type: ignore[arg-type]
        )
        sessions.append(session)
        return session

    yield open_one
    for session in sessions:
        session.close()


@pytest.fixture
def session(open_session: Callable[..., Session], transport: str) -> Session:
    return open_session(transport)


@pytest.fixture
def stub(daemon: object) -> Iterator[mask_service_pb2_grpc.MaskServiceStub]:
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:  # type: ignore[attr-defined]
        yield mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]


def row(reply: Reply, number: int) -> set[int]:
    return set(allowed_token_ids(reply.rows[number]).tolist())


def bytes_of(*texts: bytes) -> set[int]:
    return {text[0] for text in texts}


START = {PARIS, LONDON} | bytes_of(b"P", b"L")
AFTER = {STOP, IS} | bytes_of(b" ")
VALUE = {TRUE, NULL} | bytes_of(b"t", b"n")


# -- reasoning before the grammar -------------------------------------------------------------------------------------

END = (PARIS, ord("/"), LONDON)
"""Several tokens, as most models that reason have it."""
REASON = GrammarSpec("regex", "(Paris|London)( is (true|null))*", reasoning=ReasoningGate(END))
ANYTHING = set(range(265)) - {STOP}


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_reasoning_when_it_ends_then_the_grammar_begins_and_every_way_back_is_exact(
    session: Session, backend: str
) -> None:
    """Free but for stop tokens, then the grammar's rows; rollback and fork on either side, and across."""
    grammar_id = session.create_grammar(dataclasses.replace(REASON, backend=backend)).grammar_id
    reply = session.step([Item(s, Action.OPEN, grammar_id, accept=tuple(b"hm"), row=s) for s in (1, 2, 3)])
    assert reply.ok and [row(reply, s) for s in (1, 2, 3)] == [ANYTHING] * 3
    assert not any(result.accepting or result.all_allowed for result in reply.results)
    reply = session.step([Item(1, accept=(PARIS,), row=1), Item(2, accept=END, row=2), Item(3, accept=END, row=3)])
    assert [row(reply, s) for s in (1, 2, 3)] == [ANYTHING, START, START]
    reply = session.step(
        [Item(1, accept=(ord("/"),), row=1), Item(2, accept=(PARIS,), row=2), Item(3, accept=(ord("P"),), row=3)]
    )
    assert [row(reply, s) for s in (1, 2, 3)] == [ANYTHING, AFTER, bytes_of(b"a")]
    reply = session.step([Item(1, accept=(LONDON,), row=1), Item(2, accept=(STOP,)), Item(3, rollback=2, row=3)])
    assert (row(reply, 1), reply.results[1].terminated, row(reply, 3)) == (START, True, ANYTHING)
    reply = session.step(
        [
            Item(4, Action.FORK, source_sequence_id=3, accept=(LONDON,), row=4),
            Item(2, rollback=2, row=2),
            Item(3, accept=(STOP,), row=3),
        ]
    )
    assert (row(reply, 4), row(reply, 2)) == (START, START)
    refused = reply.results[2]
    assert (refused.status, refused.detail_value, refused.position) == (Status.TOKEN_REJECTED, STOP, 4)
    assert row(reply, 3) == {STOP}


def test_reasoning_when_drafts_cross_its_end_then_each_position_has_its_row(session: Session) -> None:
    grammar_id = session.create_grammar(REASON).grammar_id
    reply = session.step([Item(1, Action.OPEN, grammar_id, accept=END[:1], drafts=(*END[1:], PARIS, TRUE), row=0)])
    assert (reply.results[0].row_count, reply.results[0].position) == (4, 1)
    assert [row(reply, position) for position in range(5)] == [ANYTHING, ANYTHING, START, AFTER, {STOP}]


def test_reasoning_when_its_budget_is_spent_then_its_end_is_forced(session: Session) -> None:
    """The forced tokens are told like any other's."""
    spec = dataclasses.replace(REASON, reasoning=ReasoningGate(END, max_tokens=3))
    grammar_id = session.create_grammar(spec).grammar_id
    reply = session.step([Item(1, Action.OPEN, grammar_id, accept=tuple(b"ab"), row=0, want_forced=True)])
    assert (row(reply, 0), reply.results[0].forced) == (ANYTHING, ())
    reply = session.step([Item(1, accept=tuple(b"c"), row=0, want_forced=True)])
    assert (row(reply, 0), reply.results[0].forced) == ({PARIS}, END)
    for token, following in zip(END, ({ord("/")}, {LONDON}, START), strict=True):
        assert row(session.step([Item(1, accept=(token,), row=0)]), 0) == following


def test_reasoning_when_grammars_differ_in_it_only_then_one_compile_serves_them(session: Session) -> None:
    source = f"(a|b)c*{session.transport}"
    plain = session.create_grammar(dataclasses.replace(REASON, source=source, reasoning=None))
    gated = session.create_grammar(dataclasses.replace(REASON, source=source))
    assert not plain.cached and gated.cached


@pytest.mark.parametrize(
    ("gate", "words"),
    [((STOP,), "stop token"), ((300,), "not in the vocabulary"), ((-1,), "not in the vocabulary"), ((PARIS, 12), "")],
)
def test_reasoning_when_its_end_cannot_be_then_refused(session: Session, gate: tuple[int, ...], words: str) -> None:
    """A stop token as its end would end the output; the grammar's own stop tokens count too."""
    own = GrammarOptions(stop_token_ids=(12,)) if not words else GrammarOptions()
    with pytest.raises(InvalidRequestError, match=words or "stop token") as caught:
        session.create_grammar(dataclasses.replace(REASON, reasoning=ReasoningGate(gate), options=own))
    assert caught.value.metadata["field"] == "reasoning.end_token_ids"


def test_reasoning_when_its_message_is_malformed_then_refused(
    stub: mask_service_pb2_grpc.MaskServiceStub, session: Session
) -> None:
    for gate in (
        pb.ReasoningGate(),
        pb.ReasoningGate(end_token_ids=[1], max_tokens=-1),
        pb.ReasoningGate(end_token_ids=[1] * 65),
    ):
        request = pb.CreateGrammarRequest(
            session_id=session.session_id, grammar=pb.GrammarSpec(regex="a", reasoning=gate)
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateGrammar(request)
        assert isinstance(from_rpc_error(caught.value), InvalidRequestError)
    for number in (4, -1):
        grammar = pb.GrammarSpec(regex="a", when_slow=number)  # type: ignore[arg-type]
        request = pb.CreateGrammarRequest(session_id=session.session_id, grammar=grammar)
        with pytest.raises(grpc.RpcError, match="when_slow"):
            stub.CreateGrammar(request)


def test_switch_when_no_other_backend_takes_the_grammar_then_refused(session: Session) -> None:
    """Said when the grammar is made, not when it is slow; nothing of it is held."""
    schema = '{"type": "array", "items": {"type": "integer"}, "uniqueItems": true}'
    spec = GrammarSpec(
        "json_schema", schema, backend="llguidance", options=GrammarOptions(strict=True), when_slow="switch"
    )
    for validate_only in (False, True):
        with pytest.raises(GrammarUnsupportedError, match="'switch', and no backend but llguidance"):
            session.create_grammar(spec, validate_only=validate_only)
    assert session.create_grammar(dataclasses.replace(spec, when_slow="wait")).alternate_backend == ""


# -- what a sequence can do -------------------------------------------------------------------------------------------


def test_step_when_a_sequence_lives_then_rows_and_results_are_right(session: Session) -> None:
    """Open, accept, terminate, roll back, reset, fork, close: one story, on either transport."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    reply = session.step([Item(1, Action.OPEN, grammar_id, row=3)])
    assert (reply.step, reply.ok, reply.results) == (1, True, [Result(1, row=3, row_count=1)])
    assert row(reply, 3) == START
    reply = session.step([Item(1, accept=(PARIS,), row=0)])
    assert reply.results == [Result(1, row=0, row_count=1, accepted_count=1, position=1, accepting=True)]
    assert row(reply, 0) == AFTER
    reply = session.step(
        [Item(2, Action.FORK, source_sequence_id=1, accept=(IS,), row=1), Item(1, accept=(STOP,), row=0)]
    )
    assert reply.results == [
        Result(2, row=1, row_count=1, accepted_count=1, position=2),
        Result(1, accepted_count=1, position=2, terminated=True),
    ]
    assert (row(reply, 1), row(reply, 0)) == (VALUE, {STOP})
    reply = session.step([Item(1, rollback=1, accept=(IS, TRUE), row=0), Item(2, rollback=ROLLBACK_ALL, row=1)])
    assert [(r.position, r.terminated) for r in reply.results] == [(3, False), (0, False)]
    assert (row(reply, 0), row(reply, 1)) == (AFTER, START)
    reply = session.step(
        [Item(1, Action.CLOSE), Item(2, Action.CLOSE), Item(3, Action.OPEN, grammar_id, accept=tuple(b"Pa"), row=0)]
    )
    assert [r.status for r in reply.results] == [Status.OK] * 3
    assert row(reply, 0) == bytes_of(b"r")
    assert isinstance(session.step([Item(1)]).results[0].error(), NotFoundError)


def test_step_when_drafts_are_given_then_a_row_for_each_position(session: Session) -> None:
    """Rows over the accepted drafts; behind a refused one the stop token only; the sequence stays where it was."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    reply = session.step(
        [Item(1, Action.OPEN, grammar_id, drafts=(PARIS, IS, PARIS), row=2), Item(2, Action.OPEN, grammar_id, row=0)]
    )
    assert [(r.row, r.row_count, r.position) for r in reply.results] == [(2, 3, 0), (0, 1, 0)]
    assert [row(reply, number) for number in (2, 3, 4, 5, 0)] == [START, AFTER, VALUE, {STOP}, START]


def test_step_when_forced_tokens_are_wanted_then_they_come_with_the_result(session: Session) -> None:
    """Two items with different forced tokens, and one that did not ask."""
    grammar_id = session.create_grammar(GrammarSpec("regex", "abc[0-9]x")).grammar_id
    reply = session.step(
        [
            Item(1, Action.OPEN, grammar_id, want_forced=True, row=0),
            Item(2, Action.OPEN, grammar_id, row=1),
            Item(3, Action.OPEN, grammar_id, accept=tuple(b"abc7"), want_forced=True),
        ]
    )
    assert [r.forced for r in reply.results] == [tuple(b"abc"), (), (*b"x", STOP)]


def test_step_when_submitted_as_arrays_then_as_when_submitted_as_items(
    open_session: Callable[..., Session], transport: str
) -> None:
    """submit_arrays is submit."""
    one, other = open_session(transport), open_session(transport)
    for session in (one, other):
        session.create_grammar(SPEC)
    items = [
        Item(1, Action.OPEN, 1, accept=(PARIS,), drafts=(IS, TRUE), row=1),
        Item(2, Action.OPEN, 1, want_forced=True, row=0),
    ]
    records = np.zeros(2, dtype=lay.ITEM_DTYPE)
    for record, item, at in zip(records, items, (0, 3), strict=True):
        for name in ("sequence_id", "action", "grammar_id", "row"):
            record[name] = getattr(item, name)
        record["flags"], record["accept_offset"] = item.want_forced, at
        record["accept_count"], record["draft_count"] = len(item.accept), len(item.drafts)
    one.submit_arrays(records, np.array([PARIS, IS, TRUE], dtype=np.int32))
    same(one.collect(), other.step(items))


def test_step_when_two_are_under_way_then_answers_come_in_order_and_a_third_waits(session: Session) -> None:
    """Two cells, two steps; the rows of both stay readable until they are collected."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    with pytest.raises(StepOrderError):
        session.collect()
    assert session.submit([Item(1, Action.OPEN, grammar_id, row=0)]) == 1
    assert session.submit([Item(1, accept=(PARIS,), row=0)]) == 2
    with pytest.raises(StepOrderError):
        session.submit([])
    first, second = session.collect(), session.collect()
    assert (first.step, second.step, row(first, 0), row(second, 0)) == (1, 2, START, AFTER)
    assert session.step([]).results == []


def test_session_when_closed_then_every_call_says_so_and_rows_stay_readable(session: Session) -> None:
    """An engine that holds on to a closed session gets an error, not a segmentation fault."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    reply = session.step([Item(1, Action.OPEN, grammar_id, row=0)])
    session.submit([Item(1, accept=(PARIS,), row=0)])
    session.close()
    session.close()
    del grammar_id
    for call in (session.collect, lambda: session.submit([]), lambda: session.step([])):
        with pytest.raises(UnavailableError):
            call()
    assert not session.is_alive()
    assert row(reply, 0) == START
    with pytest.raises(NotFoundError):
        session.create_grammar(SPEC)


def test_grammar_when_deleted_then_sequences_keep_it_and_new_ones_are_refused(session: Session) -> None:
    """Deleting is safe to repeat and takes nothing from a running sequence."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    session.step([Item(1, Action.OPEN, grammar_id)])
    session.delete_grammar(grammar_id)
    session.delete_grammar(grammar_id)
    reply = session.step([Item(1, accept=(PARIS,), row=0), Item(2, Action.OPEN, grammar_id, row=1)])
    assert [r.status for r in reply.results] == [Status.OK, Status.GRAMMAR_NOT_FOUND]
    assert row(reply, 0) == AFTER


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_grammar_when_a_backend_is_named_then_it_holds_it_and_both_serve_one_batch(
    session: Session, backend: str
) -> None:
    """Backend per sequence: the named one and auto's choice in the same step, with the same rows."""
    named = session.create_grammar(GrammarSpec("regex", SPEC.source, backend=backend))
    assert named.report.backend == backend
    other = session.create_grammar(SPEC)
    reply = session.step(
        [
            Item(i, Action.OPEN, g.grammar_id, accept=(LONDON,), row=i)
            for i, g in enumerate((named, other, named, other), 1)
        ]
    )
    assert [row(reply, number) for number in (1, 2, 3, 4)] == [AFTER] * 4
    assert session.create_grammar(GrammarSpec("regex", SPEC.source, backend=backend)).cached


def test_grammar_when_only_validated_then_nothing_is_held(
    session: Session, stub: mask_service_pb2_grpc.MaskServiceStub
) -> None:
    """validate_only answers the report and leaves the session as it was."""
    assert session.create_grammar(SPEC, validate_only=True).grammar_id == 0
    assert stub.GetSession(pb.GetSessionRequest(session_id=session.session_id)).grammar_count == 0


# -- what goes wrong
# ----------------------------------------------------------------------------------------------------


BAD_GRAMMARS = [
    (GrammarSpec("json_schema", "{"), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("json_schema", '{"type": "stsring"}'), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("json_schema", "[1]"), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("json_schema", '{"$ref": "#/$defs/absent"}'), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("regex", "("), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("ebnf", ""), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("lark", "start: absent"), GrammarError, "INVALID_ARGUMENT", "GRAMMAR_INVALID"),
    (GrammarSpec("choice", "[]"), GrammarError, "INVALID_ARGUMENT", None),
    (GrammarSpec("regex", "a", backend="nope"), GrammarUnsupportedError, "UNIMPLEMENTED", "GRAMMAR_UNSUPPORTED"),
    (GrammarSpec("regex", "a" * ((1 << 20) + 1)), GrammarTooLargeError, "RESOURCE_EXHAUSTED", "GRAMMAR_TOO_LARGE"),
    (
        GrammarSpec("regex", "a", options=GrammarOptions(stop_token_ids=(299,))),
        InvalidRequestError,
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
    ),
]


@pytest.mark.parametrize(
    ("spec", "error", "code", "reason"),
    BAD_GRAMMARS,
    ids=lambda value: str(value)[:50] if isinstance(value, GrammarSpec) else "",
)
def test_create_grammar_when_the_grammar_is_bad_then_typed_and_neighbours_go_on(
    open_session: Callable[..., Session], spec: GrammarSpec, error: type[MaskdError], code: str, reason: str | None
) -> None:
    """Code and reason of the table; a sequence in the same session does not notice."""
    session = open_session("shm")
    session.step([Item(1, Action.OPEN, session.create_grammar(SPEC).grammar_id)])
    with pytest.raises(error) as caught:
        session.create_grammar(spec)
    assert caught.value.code == code
    assert reason in (None, caught.value.reason)
    assert len(caught.value.message.encode()) <= 2048
    assert row(session.step([Item(1, accept=(PARIS,), row=0)]), 0) == AFTER


def test_create_grammar_when_the_message_names_no_grammar_then_invalid_request(
    session: Session, stub: mask_service_pb2_grpc.MaskServiceStub
) -> None:
    """An unknown kind, as an older daemon sees a newer one's, is a typed refusal."""
    for grammar in (pb.GrammarSpec(), pb.GrammarSpec(json_object=False), pb.GrammarSpec(backend="xgrammar")):
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateGrammar(pb.CreateGrammarRequest(session_id=session.session_id, grammar=grammar))
        assert isinstance(from_rpc_error(caught.value), InvalidRequestError)
    with pytest.raises(InvalidRequestError):
        GrammarSpec("yaml", "a: b")  # type: ignore[arg-type]


BAD_ITEMS: list[tuple[Item, Status, type[MaskdError], int, int]] = [
    (Item(2, accept=(LONDON,), row=1), Status.TOKEN_REJECTED, TokenRejectedError, 0, LONDON),
    (Item(2, accept=(IS, LONDON), row=1), Status.TOKEN_REJECTED, TokenRejectedError, 1, LONDON),
    (Item(2, accept=(300,), row=1), Status.TOKEN_OUT_OF_RANGE, InvalidRequestError, 0, 300),
    (Item(2, accept=(-1,), row=1), Status.TOKEN_OUT_OF_RANGE, InvalidRequestError, 0, -1),
    (Item(2, accept=((1 << 31) - 1,), row=1), Status.TOKEN_OUT_OF_RANGE, InvalidRequestError, 0, (1 << 31) - 1),
    (Item(2, drafts=(IS, 300), row=1), Status.TOKEN_OUT_OF_RANGE, InvalidRequestError, 1, 300),
    (Item(2, accept=(299,), row=1), Status.TOKEN_REJECTED, TokenRejectedError, 0, 299),
    (Item(2, accept=(STOP, IS), row=1), Status.SEQUENCE_TERMINATED, TerminatedError, 1, 2),
    (Item(2, rollback=2, row=1), Status.ROLLBACK_TOO_FAR, RollbackError, -1, 1),
    (Item(2, rollback=-2, row=1), Status.INVALID_ITEM, InvalidRequestError, ItemField.ROLLBACK, 0),
    (Item(0, row=1), Status.INVALID_ITEM, InvalidRequestError, ItemField.SEQUENCE_ID, 0),
    (Item(-7, row=1), Status.INVALID_ITEM, InvalidRequestError, ItemField.SEQUENCE_ID, 0),
    (Item(77, row=1), Status.SEQUENCE_NOT_FOUND, NotFoundError, -1, 77),
    (Item(9, Action.OPEN, 44, row=1), Status.GRAMMAR_NOT_FOUND, NotFoundError, -1, 44),
    (Item(9, Action.FORK, source_sequence_id=55, row=1), Status.SEQUENCE_NOT_FOUND, NotFoundError, -1, 55),
    (Item(1, accept=(IS,), row=1), Status.SEQUENCE_EXISTS, SequenceExistsError, -1, 1),
    (Item(2, Action.OPEN, 1, row=1), Status.SEQUENCE_EXISTS, SequenceExistsError, -1, 2),
    (Item(9, Action.OPEN, 1, accept=(STOP,), row=1), Status.TOKEN_REJECTED, TokenRejectedError, 0, STOP),
]


@pytest.mark.parametrize(("bad", "status", "error", "index", "value"), BAD_ITEMS)
def test_step_when_one_item_is_bad_then_its_neighbours_have_their_rows(
    session: Session, bad: Item, status: Status, error: type[MaskdError], index: int, value: int
) -> None:
    """The bad item has its status, its error and nobody's row; the state of all is as if it had not been there."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    session.step([Item(i, Action.OPEN, grammar_id, accept=(PARIS,)) for i in (1, 2, 3)])
    reply = session.step([Item(1, accept=(IS,), row=0), bad, Item(3, row=5)])
    assert not reply.ok
    result = reply.results[1]
    assert (result.status, result.detail_index, result.detail_value, result.row_count) == (status, index, value, 0)
    assert type(result.error()) is error
    assert [r.status for r in reply.results[::2]] == [Status.OK] * 2
    assert (row(reply, 0), row(reply, 5)) == (VALUE, AFTER)
    if status != Status.INVALID_ITEM:
        assert row(reply, 1) == {STOP}
    assert [r.position for r in session.step([Item(i) for i in (1, 2, 3)]).results] == [2, 1, 1]


def test_step_when_more_sequences_than_asked_for_then_capacity_and_the_others_live(session: Session) -> None:
    """sequence_capacity is the session's own limit."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    reply = session.step([Item(i, Action.OPEN, grammar_id, row=i - 1) for i in range(1, SEQUENCES + 2)])
    assert [r.status for r in reply.results] == [Status.OK] * SEQUENCES + [Status.SEQUENCE_CAPACITY]
    assert isinstance(reply.results[-1].error(), CapacityError)


@pytest.mark.parametrize(
    ("items", "limit"),
    [([Item(i) for i in range(1, 18)], "item_capacity"), ([Item(1, accept=(PARIS,) * (TOKENS + 1))], "token_capacity")],
)
def test_submit_when_the_step_is_too_large_then_nothing_is_published_and_the_session_goes_on(
    session: Session, items: Sequence[Item], limit: str
) -> None:
    """The limit is named; the next step has the next number."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    with pytest.raises(CapacityError) as caught:
        session.submit(items)
    assert caught.value.metadata["limit"] == limit
    assert session.submit([Item(1, Action.OPEN, grammar_id, row=0)]) == 1
    assert row(session.collect(), 0) == START


@pytest.mark.parametrize("item", [Item(1, accept=(1 << 31,)), Item(1 << 63), Item(1, rollback=1 << 40)])
def test_submit_when_a_number_does_not_fit_then_invalid_request_and_the_session_goes_on(
    session: Session, item: Item
) -> None:
    """No number is wrapped around."""
    with pytest.raises(InvalidRequestError):
        session.submit([item])
    assert session.step([Item(1)]).step == 1


@pytest.mark.parametrize(
    "item",
    [Item(2, row=ROWS), Item(2, row=-2), Item(2, drafts=(IS,), row=ROWS - 1), Item(2, drafts=(IS,)), Item(2, row=0)],
)
def test_step_when_a_row_is_wrong_then_it_is_refused_and_never_somebody_elses(session: Session, item: Item) -> None:
    """Shared memory answers the item; inline, where the daemon hands out the rows, the client refuses the step."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    session.step([Item(i, Action.OPEN, grammar_id, accept=(PARIS,)) for i in (1, 2)])
    if session.transport == "inline":
        with pytest.raises(InvalidRequestError):
            session.submit([Item(1, row=0), item])
        return
    reply = session.step([Item(1, row=0), item])
    assert [r.status for r in reply.results] == [Status.OK, Status.INVALID_ITEM]
    assert reply.results[1].detail_index in (ItemField.ROW, ItemField.ROW_TAKEN)
    assert row(reply, 0) == AFTER


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"fingerprint": bytes(32)}, NotFoundError),
        ({"fingerprint": b""}, NotFoundError),
        ({"vocab_size": 301}, VocabularyMismatchError),
        ({"row_capacity": 0}, CapacityError),
        ({"row_capacity": 1 << 20}, CapacityError),
        ({"sequence_capacity": 1 << 20}, CapacityError),
        ({"sequence_capacity": -1}, InvalidRequestError),
        ({"token_capacity": 1 << 30}, CapacityError),
    ],
)
def test_open_session_when_it_asks_for_the_wrong_thing_then_typed_and_nothing_is_open(
    client: Client, vocabulary: Vocabulary, transport: str, change: dict[str, object], error: type[MaskdError]
) -> None:
    """Another vocabulary, another width, another size than the daemon allows."""
    good = {"fingerprint": client.upload_vocabulary(vocabulary), "vocab_size": vocabulary.vocab_size, "row_capacity": 4}
    with pytest.raises(error):
        client.open_session(transport=transport, **{**good, **change})  # type: ignore[arg-type]


# -- raw gRPC
# -----------------------------------------------------------------------------------------------------------


def raw_error(call: Callable[[], object]) -> MaskdError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def raw_session(stub: mask_service_pb2_grpc.MaskServiceStub, client: Client, vocabulary: Vocabulary) -> int:
    request = pb.CreateSessionRequest(
        vocabulary_fingerprint=client.upload_vocabulary(vocabulary),
        vocab_size=vocabulary.vocab_size,
        transport=pb.TRANSPORT_INLINE,
        row_capacity=4,
    )
    session_id = stub.CreateSession(request).session_id
    grammar = pb.GrammarSpec(regex=SPEC.source)
    assert stub.CreateGrammar(pb.CreateGrammarRequest(session_id=session_id, grammar=grammar)).grammar_id == 1
    return int(session_id)


def test_unary_step_when_sent_again_then_the_same_answer_and_a_stale_one_is_refused(
    stub: mask_service_pb2_grpc.MaskServiceStub, client: Client, vocabulary: Vocabulary
) -> None:
    """A step is idempotent: a lost answer is asked for again, and nothing is accepted twice."""
    session_id = raw_session(stub, client, vocabulary)

    def request(step: int, *items: pb.Item) -> pb.StepSequencesRequest:
        return pb.StepSequencesRequest(session_id=session_id, step=step, items=items)

    opening = request(
        1, pb.Item(sequence_id=1, action=pb.ACTION_OPEN, grammar_id=1, accept_token_ids=[PARIS], row_wanted=True)
    )
    first = stub.StepSequences(opening)
    assert stub.StepSequences(opening) == first
    second = stub.StepSequences(request(2, pb.Item(sequence_id=1, accept_token_ids=[IS], row_wanted=True)))
    assert (first.results[0].position, second.results[0].position) == (1, 2)
    for step in (0, 1, 4, -1, 1 << 40):
        error = raw_error(lambda step=step: stub.StepSequences(request(step)))
        assert isinstance(error, StepOrderError)
        assert error.metadata["expected"] == "3"
    assert stub.StepSequences(request(3, pb.Item(sequence_id=1))).results[0].position == 2
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id))
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id))
    assert isinstance(raw_error(lambda: stub.StepSequences(request(4))), NotFoundError)


def test_unary_step_when_too_large_in_any_way_then_typed_and_the_session_goes_on(
    stub: mask_service_pb2_grpc.MaskServiceStub, client: Client, vocabulary: Vocabulary
) -> None:
    """More items, tokens, rows or bytes than there is room for; the number of the step was not used up."""
    session_id = raw_session(stub, client, vocabulary)

    def step(*items: pb.Item) -> pb.StepSequencesResponse:
        return stub.StepSequences(pb.StepSequencesRequest(session_id=session_id, step=1, items=items))  # type: ignore[no-any-return]

    for items in (
        [pb.Item(sequence_id=i + 1) for i in range(17)],
        [pb.Item(sequence_id=1, accept_token_ids=[1] * 20000)],
        [pb.Item(sequence_id=1, accept_token_ids=[1 << 30] * 1_000_000)],
    ):
        assert isinstance(raw_error(lambda items=items: step(*items)), CapacityError)
    assert isinstance(raw_error(lambda: step(pb.Item(sequence_id=1, action=99))), InvalidRequestError)  # type: ignore[arg-type]
    answer = step(*(pb.Item(sequence_id=i, action=pb.ACTION_OPEN, grammar_id=1, row_wanted=True) for i in range(1, 6)))
    assert [result.status for result in answer.results] == [Status.OK] * 4 + [Status.INVALID_ITEM]
    assert len(answer.rows) == 4 * 4 * row_stride_words(vocabulary.vocab_size)


def test_unary_step_when_the_session_is_a_shared_memory_one_then_invalid_request(
    open_session: Callable[..., Session], stub: mask_service_pb2_grpc.MaskServiceStub
) -> None:
    """A session has one transport."""
    session_id = open_session("shm").session_id
    assert isinstance(
        raw_error(lambda: stub.StepSequences(pb.StepSequencesRequest(session_id=session_id, step=1))),
        InvalidRequestError,
    )


def test_collect_when_nothing_comes_in_time_then_deadline_and_the_step_can_be_collected_later(session: Session) -> None:
    """DeadlineError takes nothing away."""
    grammar_id = session.create_grammar(SPEC).grammar_id
    session.submit([Item(1, Action.OPEN, grammar_id, row=0)])
    try:
        reply = session.collect(timeout_seconds=0)
    except DeadlineError:
        reply = session.collect()
    assert row(reply, 0) == START


# -- differential
# -------------------------------------------------------------------------------------------------------


def same(one: Reply, other: Reply) -> None:
    assert one.results == other.results
    assert one.rows.shape == other.rows.shape
    asked = {r.row + i for r in one.results if r.row != NO_ROW for i in range(r.row_count)}
    for number in sorted(asked):
        np.testing.assert_array_equal(one.rows[number], other.rows[number])


def program(seed: int) -> Iterator[list[Item]]:
    """Random steps: good, bad and mixed items, never the same row twice."""
    pick = random.Random(seed)
    tokens = [PARIS, LONDON, IS, TRUE, NULL, STOP, STOP, *b"Ptr ", 299, 300]
    for _ in range(40):
        items, free = [], 0
        for _ in range(pick.randint(0, 4)):
            drafts = tuple(pick.choices(tokens, k=pick.choice([0, 0, 0, 1, 2])))
            wanted = (bool(drafts) or pick.random() < 0.8) and free + len(drafts) < ROWS
            items.append(
                Item(
                    pick.randint(0, 7),
                    pick.choice([Action.ADVANCE] * 4 + [Action.OPEN, Action.OPEN, Action.FORK, Action.CLOSE]),
                    pick.randint(1, 3),
                    pick.randint(1, 7),
                    pick.choice([0, 0, 0, 0, 1, 2, ROLLBACK_ALL, -2]),
                    tuple(pick.choices(tokens, k=pick.choice([0, 1, 1, 1, 2, 3]))),
                    drafts if wanted else (),
                    free if wanted else NO_ROW,
                    pick.random() < 0.2,
                )
            )
            free += 1 + len(drafts) if wanted else 0
        yield items


@pytest.mark.parametrize("seed", range(6))
def test_step_when_any_program_runs_on_both_transports_then_results_and_rows_are_equal(
    open_session: Callable[..., Session], seed: int
) -> None:
    """Inline is the oracle of shared memory, and the other way round; rows of failed items included."""
    shm, inline = open_session("shm"), open_session("inline")
    for session in (shm, inline):
        session.create_grammar(SPEC)
        session.create_grammar(GrammarSpec("regex", SPEC.source, backend="xgrammar"))
    for items in program(seed):
        one, other = shm.step(items), inline.step(items)
        same(one, other)
        for item, result in zip(items, one.results, strict=True):
            if item.row != NO_ROW and result.status not in (Status.OK, Status.INVALID_ITEM):
                assert row(one, item.row) == row(other, item.row) == {STOP}


def test_step_with_an_unknown_action_then_it_does_not_count(open_session: Callable[..., Session]) -> None:
    """Inline, the client names the number that it was given; a refusal by the daemon does not count either."""
    session = open_session("inline")
    with pytest.raises(InvalidRequestError, match="unknown action 9;"):
        session.step([Item(1, cast("Action", 9))])
    assert session.step([]).step == 1
    items = np.zeros(1, dtype=lay.ITEM_DTYPE)
    items["sequence_id"], items["action"], items["row"] = 1, 9, -1
    with pytest.raises(InvalidRequestError, match="unknown action 9;"):
        session.submit_arrays(items, np.zeros(0, dtype=np.int32))
    unchecked = cast("Any", session._transport)
    unchecked._check = lambda items: None
    session.submit([Item(1, cast("Action", 9))])
    session.submit([])
    with pytest.raises(InvalidRequestError, match="unknown action 10;"):
        session.collect()
    with pytest.raises(StepOrderError):
        session.collect()
    assert session.step([]).step == 2
