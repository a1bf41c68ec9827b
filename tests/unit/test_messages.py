"""The codec: every value that crosses the wire comes back as it was, and no field of either side is forgotten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from maskd.errors import InvalidRequestError, ProtocolError, VocabularyError
from maskd.grammar import KINDS, WHEN_SLOW, GrammarOptions, GrammarReport, GrammarSpec, ReasoningGate, Unenforced
from maskd.rpc import messages
from maskd.rpc.values import Grammar, NewSession, ServerInfo, SessionRequest, VocabularyInfo
from maskd.shm.cells import Reply
from maskd.step import NO_ROW, Action, Item, Result, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import Vocabulary
from tests.fuzzing import budget

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
IDS = st.lists(INT32, max_size=4).map(tuple)
COUNT = st.integers(0, (1 << 31) - 1)
SECONDS = st.integers(0, 1 << 30).map(lambda eighths: eighths / 8)
"""Exact as milliseconds, which is what messages have."""
STRIDE = 2
STOP_ROW = np.array([7, 9], dtype=np.int32)

OPTIONS = st.builds(
    GrammarOptions,
    max_whitespace=st.none() | st.integers(0, 1024),
    item_separator=st.none() | TEXT,
    key_separator=st.none() | TEXT,
    additional_properties=st.sampled_from(["allow", "forbid"]),
    strict=st.booleans(),
    stop_token_ids=IDS,
    property_order=st.sampled_from(["any", "schema"]),
    formats=st.sampled_from(["assert", "annotate"]),
)
REASONING = st.builds(
    ReasoningGate,
    end_token_ids=st.lists(INT32, min_size=1, max_size=4).map(tuple),
    max_tokens=st.none() | COUNT,
)
CHOICES = st.lists(TEXT, max_size=3).map(lambda strings: json.dumps(strings, ensure_ascii=False))
SOURCES = {"json_object": st.just(""), "choice": CHOICES}
SPECS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(
        GrammarSpec,
        kind=st.just(kind),
        source=SOURCES.get(kind, TEXT),
        backend=TEXT.filter(bool),
        options=OPTIONS,
        resources=st.dictionaries(TEXT, TEXT, max_size=3),
        reasoning=st.none() | REASONING,
        when_slow=st.sampled_from(WHEN_SLOW),
    )
)
UNENFORCED = st.builds(Unenforced, pointer=TEXT, keyword=TEXT, effect=TEXT)
REPORTS = st.builds(
    GrammarReport,
    backend=TEXT,
    backend_reason=TEXT,
    unenforced=st.lists(UNENFORCED, max_size=2).map(tuple),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
    memory_bytes=INT64,
)
GRAMMARS = st.builds(
    Grammar,
    grammar_id=INT64,
    report=REPORTS,
    compile_seconds=SECONDS,
    cached=st.booleans(),
    alternate_backend=TEXT,
)
VOCABULARY_INFOS = st.builds(
    VocabularyInfo,
    fingerprint=st.binary(max_size=8),
    name=TEXT,
    vocab_size=INT32,
    token_count=INT32,
    stop_token_ids=IDS,
)
SERVER_INFOS = st.builds(
    ServerInfo,
    version=TEXT,
    layout=st.tuples(INT32, INT32),
    backends=st.lists(TEXT, max_size=2).map(tuple),
    vocabularies=st.lists(VOCABULARY_INFOS, max_size=2).map(tuple),
    worker_count=INT32,
    session_count=INT32,
    draining=st.booleans(),
    shared_memory=st.booleans(),
)
SESSION_REQUESTS = st.builds(
    SessionRequest,
    vocabulary_fingerprint=st.binary(max_size=8),
    vocab_size=INT32,
    row_capacity=INT32,
    item_capacity=INT32,
    token_capacity=INT32,
    sequence_capacity=INT32,
    inline=st.booleans(),
    engine=TEXT,
)
NEW_SESSIONS = st.builds(
    NewSession,
    session_id=INT64,
    data_token=st.binary(max_size=16),
    claim_seconds=INT32,
    lease_seconds=INT32,
    row_stride_words=INT32,
    rows_bytes=INT64,
    steps_bytes=INT64,
    item_capacity=INT32,
    token_capacity=INT32,
)
ITEMS = st.builds(
    Item,
    sequence_id=INT64,
    action=st.sampled_from(Action),
    grammar_id=INT64,
    source_sequence_id=INT64,
    rollback=INT32,
    accept=IDS,
    drafts=IDS,
    row=st.sampled_from([0, NO_ROW]),
    want_forced=st.booleans(),
)
RESULTS = st.builds(
    Result,
    sequence_id=INT64,
    status=st.sampled_from(Status),
    row=st.just(NO_ROW),
    row_count=st.just(0),
    accepted_count=COUNT,
    position=COUNT,
    terminated=st.booleans(),
    accepting=st.booleans(),
    all_allowed=st.booleans(),
    forced=IDS,
    detail_index=INT32,
    detail_value=INT64,
)


def again(message: Message) -> Any:
    """The message as the other side has it."""
    return type(message).FromString(message.SerializeToString())


def rows_of(item: Item) -> int:
    return 0 if item.row == NO_ROW else 1 + len(item.drafts)


@st.composite
def step_items(draw: st.DrawFn) -> list[Item]:
    """Items of a step that want their rows one after the other, as messages have them."""
    items, row = draw(st.lists(ITEMS, max_size=4)), 0
    for item in items:
        item.row = row if item.row != NO_ROW or item.drafts else NO_ROW
        row += rows_of(item)
    return items


@st.composite
def step_replies(draw: st.DrawFn) -> tuple[list[Item], Reply]:
    """A step, and an answer that fills some of its rows, from the first of each item on."""
    items = draw(step_items())
    rows = np.zeros((1 + sum(map(rows_of, items)), STRIDE), dtype=np.int32)
    results = []
    for item in items:
        result = draw(RESULTS)
        if filled := draw(st.integers(0, rows_of(item))):
            result.row, result.row_count = item.row, filled
        rows[item.row : item.row + rows_of(item)] = STOP_ROW
        rows[item.row : item.row + filled] = [draw(INT32), draw(INT32)]
        results.append(result)
    return items, Reply.of(draw(INT64), results, rows=rows, worker_seconds=draw(SECONDS))


PAIRS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = {
    "spec": (SPECS, messages.spec_message, messages.spec_of),
    "grammar": (GRAMMARS, messages.grammar_message, messages.grammar_of),
    "vocabulary_info": (VOCABULARY_INFOS, messages.vocabulary_info_message, messages.vocabulary_info_of),
    "server_info": (SERVER_INFOS, messages.server_info_message, messages.server_info_of),
    "session_request": (SESSION_REQUESTS, messages.session_request_message, messages.session_request_of),
    "session": (NEW_SESSIONS, messages.session_message, messages.session_of),
}


@pytest.mark.parametrize("pair", PAIRS)
@given(data=st.data())
@budget(30)
def test_value_when_it_crosses_the_wire_then_it_is_the_same_value(pair: str, data: st.DataObject) -> None:
    """value -> message -> bytes -> message -> value is the identity."""
    values, message_of, value_of = PAIRS[pair]
    value = data.draw(values)
    assert value_of(again(message_of(value))) == value


@given(items=step_items(), session_id=INT64, step=INT64)
@budget(50)
def test_items_when_they_cross_the_wire_then_they_are_the_same_items(
    items: list[Item], session_id: int, step: int
) -> None:
    """Rows are numbered in the order of the items: the same numbers, where the engine counts so too."""
    message = again(messages.step_message(session_id, step, items))
    assert (message.session_id, message.step) == (session_id, step)
    assert messages.items_of(message.items) == items


@given(answered=step_replies())
@budget(50)
def test_reply_when_it_crosses_the_wire_then_results_and_rows_are_the_same(answered: tuple[list[Item], Reply]) -> None:
    """Results, rows, forced tokens and time; as values and as the records of shared memory."""
    items, reply = answered
    back = messages.reply_of(
        again(messages.reply_message(reply)), items, row_capacity=len(reply.rows), stop_row=STOP_ROW
    )
    assert (back.step, back.ok, back.worker_seconds) == (reply.step, reply.ok, reply.worker_seconds)
    assert back.results == reply.results
    assert back.packed == reply.packed
    assert back.forced.tolist() == reply.forced.tolist()
    assert back.rows.tolist() == reply.rows.tolist()
    assert not back.rows.flags.writeable


@given(answered=step_replies())
@budget(30)
def test_reply_when_read_from_its_records_then_the_results_are_the_same(answered: tuple[list[Item], Reply]) -> None:
    """The records of a reply, which is what shared memory has of it, say the same as its results."""
    _, reply = answered
    read = Reply(reply.step, reply.packed, reply.rows, reply.forced, reply.worker_seconds, reply.ok)
    assert read.results == reply.results


def test_reply_when_the_engine_wants_rows_elsewhere_then_they_are_put_there() -> None:
    """Row numbers do not travel: they are the engine's, in any order and with gaps; all other rows are empty."""
    asked = [Item(1, row=4, drafts=(5,)), Item(2), Item(3, row=1)]
    sent = messages.items_of(again(messages.step_message(1, 1, asked)).items)
    assert [item.row for item in sent] == [0, NO_ROW, 2]
    results = [Result(1, row=0, row_count=2), Result(2), Result(3, Status.NO_TOKEN_ALLOWED)]
    rows = np.array([[10, 11], [20, 21], [0, 0]], dtype=np.int32)
    answer = again(messages.reply_message(Reply.of(1, results, rows=rows, worker_seconds=0.0)))
    reply = messages.reply_of(answer, asked, row_capacity=6, stop_row=STOP_ROW)
    assert reply.rows.tolist() == [[0, 0], STOP_ROW.tolist(), [0, 0], [0, 0], [10, 11], [20, 21]]
    assert [result.row for result in reply.results] == [4, NO_ROW, NO_ROW]


@pytest.mark.parametrize(
    "answer",
    [
        pb.StepSequencesResponse(step=1),
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult(status=999)]),  # type: ignore[arg-type]
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult()], rows=b"12345678" * 2 + b"1234"),
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult()], rows=b"1"),
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult(status=-1)]),  # type: ignore[arg-type]
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult(row_count=-1)]),
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult(accepted_count=-1)]),
        pb.StepSequencesResponse(step=1, results=[pb.ItemResult(position=-1)]),
    ],
    ids=[
        "results missing",
        "unknown status",
        "half a row",
        "half a word",
        "negative status",
        "negative row_count",
        "negative accepted_count",
        "negative position",
    ],
)
def test_reply_when_the_answer_does_not_fit_the_items_then_a_typed_error(answer: pb.StepSequencesResponse) -> None:
    """A daemon of another version, or a broken one."""
    with pytest.raises(ProtocolError, match="step 1"):
        messages.reply_of(answer, [Item(1, row=0)], row_capacity=1, stop_row=STOP_ROW)


@given(tokens=st.lists(st.binary(max_size=6), min_size=1, max_size=8).map(tuple), name=TEXT, more=st.integers(0, 9))
@budget(30)
def test_vocabulary_when_uploaded_then_it_is_the_same(tokens: tuple[bytes, ...], name: str, more: int) -> None:
    """Name, width, tokens, stop and special tokens."""
    vocabulary = Vocabulary(tokens, len(tokens) + more, (0,), (len(tokens) - 1,), name)
    upload = messages.Upload(1 << 20)
    for message in messages.upload_messages(vocabulary):
        upload.add(again(message))
    assert (upload.vocabulary(), upload.vocabulary().name) == (vocabulary, name)


def test_upload_when_it_is_large_then_it_comes_in_parts_that_the_limit_holds_for_together() -> None:
    """No message is large enough to keep the front; the sum is bounded."""
    vocabulary = Vocabulary([b"%06d" % number for number in range(50_000)], 50_000, (0,))
    parts = list(messages.upload_messages(vocabulary))
    assert len(parts) > 3
    assert max(part.ByteSize() for part in parts) < 1 << 18
    size = sum(part.ByteSize() for part in parts)
    for limit, fits in ((size, True), (size - 1, False)):
        upload = messages.Upload(limit)
        for part in parts[:-1]:
            upload.add(part)
        if fits:
            upload.add(parts[-1])
            assert upload.vocabulary() == vocabulary
        else:
            with pytest.raises(VocabularyError, match="passes"):
                upload.add(parts[-1])


def test_upload_when_its_header_is_missing_or_repeated_then_refused() -> None:
    """Exactly the first message has it."""
    header = pb.UploadVocabularyRequest(header=pb.UploadVocabularyRequest.Header(vocab_size=1, stop_token_ids=[0]))
    with pytest.raises(InvalidRequestError, match="empty"):
        messages.Upload(100).vocabulary()
    with pytest.raises(InvalidRequestError, match="first message"):
        messages.Upload(100).add(pb.UploadVocabularyRequest(tokens=[b"a"]))
    upload = messages.Upload(100)
    upload.add(header)
    with pytest.raises(InvalidRequestError, match="only the first"):
        upload.add(header)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GrammarSpec(), "grammar"),
        (pb.GrammarSpec(json_object=False), "json_object"),
        (pb.GrammarSpec(regex="a", when_slow=9), "when_slow"),  # type: ignore[arg-type]
        (pb.GrammarSpec(regex="a", reasoning=pb.ReasoningGate()), "reasoning.end_token_ids"),
        (pb.GrammarSpec(regex="a", options=pb.GrammarOptions(max_whitespace=-1)), "max_whitespace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spec_when_the_message_makes_no_sense_then_the_field_is_named(message: pb.GrammarSpec, field: str) -> None:
    """What the proto cannot rule out is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        messages.spec_of(again(message))
    assert caught.value.metadata["field"] == field


CHOICES_OF_NO_STRINGS = ["[1]", "[", '"Paris"', '{"a": 1}', "5", "null", '["a", ["b"]]', "[" * 100_000]


@pytest.mark.parametrize(
    "spec",
    [GrammarSpec("regex", "\ud800"), *(GrammarSpec("choice", source) for source in CHOICES_OF_NO_STRINGS)],
    ids=lambda spec: spec.source[:20],
)
def test_spec_when_its_source_cannot_be_sent_then_a_typed_error(spec: GrammarSpec) -> None:
    """Lone surrogates, and choices that are no list of strings, have no message."""
    with pytest.raises(InvalidRequestError, match="cannot be sent"):
        messages.spec_message(spec)


def test_unset_fields_when_read_then_they_have_the_documented_defaults() -> None:
    """What a client of another language leaves out: auto, wait, ADVANCE, shared memory; drafts want a row."""
    assert messages.spec_of(pb.GrammarSpec(regex="a")) == GrammarSpec("regex", "a")
    assert not messages.session_request_of(pb.CreateSessionRequest()).inline
    assert messages.items_of([pb.Item(sequence_id=1), pb.Item(sequence_id=2, draft_token_ids=[3])]) == [
        Item(1),
        Item(2, drafts=(3,), row=0),
    ]
    with pytest.raises(InvalidRequestError, match="action"):
        messages.items_of([pb.Item(action=9)])  # type: ignore[arg-type]


# -- nothing is forgotten ------------------------------------------------------------------------------------------


def test_kinds_and_words_when_compared_with_the_proto_then_they_are_the_same() -> None:
    """A kind is called as its field; WAIT, FAIL, SWITCH and ALLOW, FORBID are called as in Python."""
    assert tuple(field.name for field in pb.GrammarSpec.DESCRIPTOR.oneofs_by_name["grammar"].fields) == KINDS
    assert tuple(name.removeprefix("WHEN_SLOW_").lower() for name, number in pb.WhenSlow.items() if number) == WHEN_SLOW
    numbers = pb.GrammarOptions.AdditionalProperties.items()
    assert [name.removeprefix("ADDITIONAL_PROPERTIES_").lower() for name, number in numbers if number] == [
        "allow",
        "forbid",
    ]


RENAMED = {
    "GrammarSpec": {"grammar": {"kind", "source"}},
    "CreateGrammarResponse": {"compile_milliseconds": {"compile_seconds"}},
    "GetServerInfoResponse": {"layout_major": {"layout"}, "layout_minor": {"layout"}},
    "CreateSessionRequest": {"transport": {"inline"}},
    "Item": {
        "rollback_count": {"rollback"},
        "accept_token_ids": {"accept"},
        "draft_token_ids": {"drafts"},
        "row_wanted": {"row"},
        "forced_wanted": {"want_forced"},
    },
    "ItemResult": {"forced_token_ids": {"forced"}, "row_count": {"row_count", "row"}},
}
"""Fields that are called otherwise in Python. A oneof counts as one field."""
SAME = {
    pb.GrammarSpec: (GrammarSpec,),
    pb.GrammarOptions: (GrammarOptions,),
    pb.ReasoningGate: (ReasoningGate,),
    pb.CreateGrammarResponse: (Grammar, GrammarReport),
    pb.CreateGrammarResponse.Unenforced: (Unenforced,),
    pb.GetServerInfoResponse: (ServerInfo,),
    pb.VocabularyInfo: (VocabularyInfo,),
    pb.UploadVocabularyRequest.Header: (Vocabulary,),
    pb.CreateSessionRequest: (SessionRequest,),
    pb.CreateSessionResponse: (NewSession,),
    pb.Item: (Item,),
    pb.ItemResult: (Result,),
}
ELSEWHERE = {"Grammar": {"report"}, "Vocabulary": {"tokens"}}
"""Attributes that have a message, or messages, of their own."""


def field_names(descriptor: Any) -> set[str]:
    """The fields of a message; an ``optional`` one has a oneof of its own, which is no field."""
    named = {oneof.name: {field.name for field in oneof.fields} for oneof in descriptor.oneofs}
    groups = {name: fields for name, fields in named.items() if len(fields) > 1}
    return {field.name for field in descriptor.fields} - set().union(*groups.values()) | set(groups)


def given_names(cls: type) -> set[str]:
    """The attributes of a value that its maker gives."""
    return {field.name for field in dataclasses.fields(cls) if field.init}


@pytest.mark.parametrize("message", SAME, ids=lambda message: message.DESCRIPTOR.name)
def test_fields_when_listed_then_message_and_value_have_the_same(message: type[Message]) -> None:
    """A field that is added to one side only is found here; one that is not carried, by the tests above."""
    renamed = RENAMED.get(message.DESCRIPTOR.name, {})
    on_the_wire = set().union(*(renamed.get(name, {name}) for name in field_names(message.DESCRIPTOR)))
    in_python = set[str]()
    for cls in SAME[message]:
        in_python |= given_names(cls) - ELSEWHERE.get(cls.__name__, set())
    assert on_the_wire == in_python


DRAWN = {
    "options": OPTIONS,
    "reasoning": REASONING,
    "report": REPORTS,
    "unenforced": UNENFORCED,
    "items": ITEMS,
    "results": RESULTS,
    **{name: values for name, (values, _, _) in PAIRS.items()},
}


@pytest.mark.parametrize("values", DRAWN)
def test_values_when_drawn_then_every_field_varies(values: str) -> None:
    """The round trips above are worth what they draw: none of the fields always has its default."""
    drawn: dict[str, set[str]] = {}

    @given(value=DRAWN[values])
    @budget(30)
    def collect(value: Any) -> None:
        for name in given_names(type(value)):
            drawn.setdefault(name, set()).add(repr(getattr(value, name)))

    collect()
    fixed = {name for name, seen in drawn.items() if len(seen) == 1}
    assert fixed == ({"row", "row_count"} if values == "results" else set())  # ``step_replies`` sets these two
