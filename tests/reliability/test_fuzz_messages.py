"""Every call with wild messages, and with bytes that are none: a typed status, the daemon lives, the neighbour notices
nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from looks import open_session

from maskd.bitmask import allowed_token_ids
from maskd.client import Client, Session
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary
from tests.fuzzing import WILD_TEXTS, budget, schemas

pytestmark = [pytest.mark.xdist_group("fuzz"), pytest.mark.slow]

Daemon = Any
SERVICE = pb.DESCRIPTOR.services_by_name["MaskService"]
PARIS = GrammarSpec("regex", "(Paris|London)")
_INT32 = st.one_of(st.integers(-3, 300), st.sampled_from([2**31 - 1, -(2**31), 2**30, 65536, 4096]))
_INT64 = st.one_of(_INT32, st.sampled_from([2**63 - 1, -(2**63), 2**53, 2**32]))
SOURCES = (
    "(Paris|London)", "[a-z]*", "(", 'root ::= "a"', "root ::= root", 'start: "a"', "start: /a/", "%json {}",
    '{"type":"object"}', "{}", '{"type":"string","pattern":"("}', '{"$ref":"#"}', '["a"]', "[]",
    '{"type":"structural_tag","format":{"type":"any_text"}}', "true",
)  # fmt: skip
BACKENDS = ("", "auto", "xgrammar", "llguidance", "os:system", "evil_backend:create", "x" * 300)
CODES = {code.value[0]: code for code in grpc.StatusCode}
UNTYPED = {grpc.StatusCode.RESOURCE_EXHAUSTED}
"""What gRPC refuses by itself: a message that is too large."""


class Target:
    """A daemon, a channel to it, sessions to name in messages, and a neighbour that steps."""

    def __init__(self, daemon: Daemon, client: Client, vocabulary: Vocabulary, channel: grpc.Channel) -> None:
        self.daemon, self.channel, self.vocabulary, self.client = daemon, channel, vocabulary, client
        self.neighbour = open_session(client, vocabulary)
        self.neighbour.step([Item(1, Action.OPEN, self.neighbour.create_grammar(PARIS).grammar_id)], timeout_seconds=60)
        self.processes = self._processes()
        self.renew()

    def renew(self) -> None:
        """Makes the sessions that messages name, if they are gone."""
        self.session_ids = [create(self, pb.TRANSPORT_INLINE), create(self, pb.TRANSPORT_SHARED_MEMORY)]
        for session_id in self.session_ids:
            request = pb.CreateGrammarRequest(session_id=session_id, grammar=pb.GrammarSpec(regex=PARIS.source))
            mask_service_pb2_grpc.MaskServiceStub(self.channel).CreateGrammar(request, timeout=60)  # type: ignore[no-untyped-call]

    def _processes(self) -> list[int]:
        return [
            self.daemon.process.pid,
            *(pid for name in ("zygote", "nursery", "worker") for pid in self.daemon.pids(f"maskd-{name}")),
        ]

    def check(self) -> None:
        """The neighbour's row is right, and every process is there that was; a vocabulary that got through has its
        own."""
        reply = self.neighbour.step([Item(1, rollback=-1, accept=(ord("P"),), row=0)], timeout_seconds=60)
        assert reply.ok and allowed_token_ids(reply.rows[0]).tolist() == [ord("a")]
        assert set(self.processes) <= set(self._processes())


def create(target: Target, transport: int) -> int:
    request = pb.CreateSessionRequest(
        vocabulary_fingerprint=target.vocabulary.fingerprint,
        vocab_size=target.vocabulary.vocab_size,
        row_capacity=4,
        transport=transport,  # type: ignore[arg-type]
    )
    stub = mask_service_pb2_grpc.MaskServiceStub(target.channel)  # type: ignore[no-untyped-call]
    return int(stub.CreateSession(request, timeout=60).session_id)


@pytest.fixture(scope="module")
def target(start_daemon_for_session: Callable[..., Daemon], vocabulary: Vocabulary) -> Iterator[Target]:
    daemon = start_daemon_for_session(
        "--claim-seconds", "1000", "--sessions", "4000", "--step-seconds", "5", "--compile-seconds", "2"
    )
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    with Client.connect(daemon.target) as client, grpc.insecure_channel(daemon.target, options=options) as channel:
        made = Target(daemon, client, vocabulary, channel)
        yield made
        made.neighbour.close()
        print(
            *[event for event in daemon.events() if event.get("event") not in ("session opened", "session closed")][
                -20:
            ],
            sep="\n",
        )


def scalars(field: FieldDescriptor, target: Target) -> st.SearchStrategy[Any]:
    """Values for one field: mostly those that mean something, then wild ones."""
    if field.name == "session_id":
        others = _INT64.filter(lambda number: number != target.neighbour.session_id)  # whoever knows an id may use it
        return st.one_of(st.sampled_from([0, 0, 0, 1, 1]).map(lambda i: target.session_ids[i]), others)
    if field.name == "vocabulary_fingerprint":
        return st.one_of(
            st.just(target.vocabulary.fingerprint), st.just(target.vocabulary.fingerprint), st.binary(max_size=40)
        )
    if field.name == "vocab_size":
        return st.one_of(st.just(target.vocabulary.vocab_size), _INT32)
    if field.name == "backend":
        return st.sampled_from(BACKENDS)
    if field.name == "step":
        return st.one_of(st.integers(1, 4), _INT64)
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return st.one_of(
                st.sampled_from(SOURCES), WILD_TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
            )
        case FieldDescriptor.TYPE_BYTES:
            return st.one_of(st.binary(max_size=4), st.sampled_from([b"\0", b"\xff\xfe", b"x" * 70_000]))
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_ENUM:
            return st.one_of(st.integers(0, 5), st.sampled_from([-1, 77, 2**31 - 1]))
        case FieldDescriptor.TYPE_INT32:
            return _INT32
        case FieldDescriptor.TYPE_INT64:
            return _INT64
    raise AssertionError(field.full_name)


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, target: Target) -> Any:
    """A message of the type ``descriptor``; each field is there more often than not."""
    message = descriptor._concrete_class()
    oneof = (
        draw(st.sampled_from([field.name for field in descriptor.fields if field.containing_oneof]))
        if descriptor.oneofs
        else ""
    )
    for field in descriptor.fields:
        if (field.containing_oneof and len(field.containing_oneof.fields) > 1 and field.name != oneof) or draw(
            st.integers(0, 4)
        ) == 0:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            entries = st.dictionaries(*(scalars(part, target) for part in field.message_type.fields), max_size=3)
            getattr(message, field.name).update(draw(entries))
            continue
        one = messages(field.message_type, target) if field.message_type else scalars(field, target)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(one, max_size=3)))
        elif field.message_type:
            getattr(message, field.name).CopyFrom(draw(one))
        else:
            setattr(message, field.name, draw(one))
    return message


@st.composite
def mangled(draw: st.DrawFn, descriptor: Any, target: Target) -> bytes:
    """A message as bytes, most often with something wrong in the bytes."""
    raw: bytes = draw(messages(descriptor, target)).SerializeToString()
    how = draw(st.sampled_from(["whole", "cut", "noise", "twice", "random", "nested"]))
    at = draw(st.integers(0, 1000)) * len(raw) // 1000  # ids in it differ between runs, and its length with them
    if how == "cut":
        return raw[:at]
    if how == "noise":
        return raw[:at] + draw(st.binary(min_size=1, max_size=6)) + raw[at + draw(st.integers(0, 3)) :]
    if how == "twice":
        return raw + raw
    if how == "random":
        return draw(st.binary(max_size=48))
    return (
        draw(st.sampled_from([b"\x13" * 5000, b"\x0b" * 300, b"\x12\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xff"]))
        if how == "nested"
        else raw
    )


def call(target: Target, name: str, parts: list[bytes]) -> None:
    """Sends ``parts``; what comes back is an answer, or a status of ours with a reason, and never INTERNAL or
    UNKNOWN."""
    method = SERVICE.methods_by_name[name]
    path = f"/{SERVICE.full_name}/{name}"
    try:
        if method.server_streaming:
            answers = [bytes(raw) for raw in target.channel.stream_stream(path)(iter(parts), timeout=60)]  # type: ignore[call-arg]
            for raw in answers:
                answer = pb.StreamStepsResponse.FromString(raw)
                if answer.HasField("refusal"):
                    assert CODES[answer.refusal.code] not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (
                        answer.refusal
                    )
                    assert answer.refusal.reason and answer.refusal.message
        elif method.client_streaming:
            target.channel.stream_unary(path)(iter(parts), timeout=60)  # type: ignore[call-arg]
        else:
            target.channel.unary_unary(path)(parts[0], timeout=60)  # type: ignore[call-arg]
    except grpc.RpcError as error:
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), error
        status = rpc_status.from_call(error)
        if status is None:
            assert error.code() in UNTYPED, error
            return
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info) and info.domain == "maskd" and info.reason
        assert 0 < len(status.message.encode()) <= 4096


def alive(target: Target, session_id: int) -> bool:
    try:
        stub = mask_service_pb2_grpc.MaskServiceStub(target.channel)  # type: ignore[no-untyped-call]
        stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=60)
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("name", [method.name for method in SERVICE.methods])
def test_call_when_its_messages_are_wild_then_typed_and_the_neighbour_notices_nothing(
    target: Target, name: str
) -> None:
    """Fields drawn by the contract itself, so that a new one is fuzzed as it is added; and their bytes mangled."""
    method = SERVICE.methods_by_name[name]
    one = st.one_of(
        messages(method.input_type, target).map(lambda message: message.SerializeToString()),
        mangled(method.input_type, target),
    )

    @budget(40)
    @given(parts=st.lists(one, min_size=1, max_size=4 if method.client_streaming else 1))
    def send(parts: list[bytes]) -> None:
        if not all(alive(target, session_id) for session_id in target.session_ids):
            target.renew()
        call(target, name, parts)

    send()
    target.check()
    assert "call failed" not in target.daemon.log
    assert "Traceback" not in target.daemon.log


@st.composite
def uploads(draw: st.DrawFn) -> list[bytes]:
    """Uploads that are nearly right: all bytes as tokens, cut into messages, with wild ids, sizes, empty, long and
    repeated tokens."""
    tokens = [bytes([byte]) for byte in range(draw(st.sampled_from([0, 3, 256, 256])))]
    tokens += draw(
        st.lists(
            st.one_of(st.binary(max_size=5), st.sampled_from([b"", b"a", b"x" * 300, b"<stop>", b"\xf0\x9f"])),
            max_size=8,
        )
    )
    ids = st.lists(st.one_of(st.integers(0, max(0, len(tokens) - 1)), _INT32), max_size=3)
    header = pb.UploadVocabularyRequest.Header(
        name=draw(st.text(max_size=4)).encode("utf-8", "replace").decode(),
        vocab_size=draw(st.one_of(st.just(len(tokens)), st.just(len(tokens) + 40), _INT32)),
        stop_token_ids=draw(ids),
        special_token_ids=draw(ids),
    )
    cut = draw(st.integers(0, len(tokens)))
    first, second = (
        pb.UploadVocabularyRequest(header=header, tokens=tokens[:cut]),
        pb.UploadVocabularyRequest(tokens=tokens[cut:]),
    )
    return [first.SerializeToString(), second.SerializeToString()]


def test_upload_when_it_is_nearly_right_then_typed_or_usable(
    start_daemon: Callable[..., Daemon], vocabulary: Vocabulary
) -> None:
    """A vocabulary that is taken can be used: a session opens and a grammar compiles, or says why not."""
    daemon = start_daemon("--vocabularies-limit", "3000")
    with (
        Client.connect(daemon.target) as client,
        grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        target = Target(daemon, client, vocabulary, channel)

        @budget(12)
        @given(parts=uploads(), kind=st.sampled_from(["regex", "ebnf"]))
        def send(parts: list[bytes], kind: str) -> None:
            known = {info.fingerprint for info in client.info().vocabularies}
            call(target, "UploadVocabulary", parts)
            for info in client.info().vocabularies:
                if info.fingerprint not in known:
                    use(target, info.fingerprint, info.vocab_size)

        try:
            send()
            target.check()
        finally:
            target.neighbour.close()
        assert "Traceback" not in daemon.log


def use(target: Target, fingerprint: bytes, vocab_size: int) -> None:
    request = pb.CreateSessionRequest(
        vocabulary_fingerprint=fingerprint, vocab_size=vocab_size, row_capacity=1, transport=pb.TRANSPORT_INLINE
    )
    stub = mask_service_pb2_grpc.MaskServiceStub(target.channel)  # type: ignore[no-untyped-call]
    session_id = stub.CreateSession(request, timeout=60).session_id
    for backend in ("xgrammar", "llguidance"):
        grammar = pb.CreateGrammarRequest(session_id=session_id, grammar=pb.GrammarSpec(regex="a*", backend=backend))
        call(target, "CreateGrammar", [grammar.SerializeToString()])
    item = pb.Item(sequence_id=1, action=pb.ACTION_OPEN, grammar_id=1, row_wanted=True)
    call(
        target,
        "StepSequences",
        [pb.StepSequencesRequest(session_id=session_id, step=1, items=[item]).SerializeToString()],
    )
    call(target, "DeleteSession", [pb.DeleteSessionRequest(session_id=session_id).SerializeToString()])


KINDS = ("json_schema", "regex", "ebnf", "lark", "structural_tag", "choice")
ALPHABETS = {
    "regex": "ab01.*+?{},()[]|\\^$-dwspPxu<>=!:&~#\n ",
    "ebnf": 'root::="ab"[]^-()|*+?{}\\n\n #',
    "lark": 'start: "a" /b/ | ()[]*+?~%import json{}\n@<>&!',
}
TAG_KEYS = (
    "type",
    "format",
    "elements",
    "tags",
    "triggers",
    "begin",
    "content",
    "end",
    "separator",
    "json_schema",
    "pattern",
    "value",
    "grammar",
)
TYPES = (
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "tag",
    "triggered_tags",
    "sequence",
    "or",
    "regex",
    "const_string",
    "any_text",
)


def json_sources(keys: tuple[str, ...]) -> st.SearchStrategy[str]:
    leaf = st.one_of(
        st.sampled_from(TYPES),
        st.integers(-3, 20),
        st.booleans(),
        st.none(),
        st.text(max_size=3),
        st.floats(allow_nan=False),
        st.sampled_from(["#", "#/$defs/a", "#/properties/a", "http://x/y", "[a-z]{3}", "date-time", 10**30, 65537]),
    )
    value = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from((*keys, "a", "b")), inner, max_size=4)
        ),
        max_leaves=12,
    )
    return st.dictionaries(st.sampled_from(keys), value, max_size=5).map(json.dumps)


@st.composite
def grammars(draw: st.DrawFn) -> tuple[str, str, str]:
    """(kind, source, backend): words of the language in an order that makes little sense."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "choice":
        source = json.dumps(draw(st.lists(st.text(max_size=6), max_size=4)))
    elif kind in ALPHABETS:
        source = draw(st.text(st.sampled_from(ALPHABETS[kind]), max_size=40))
        source = {"ebnf": "root ::= ", "lark": "start: "}.get(kind, "") * draw(st.integers(0, 1)) + source
    elif kind == "json_schema":
        source = json.dumps(draw(schemas()))
    else:
        source = json.dumps({"type": "structural_tag", "format": json.loads(draw(json_sources((*TAG_KEYS, "type"))))})
    return kind, source, draw(st.sampled_from(["auto", "xgrammar", "llguidance"]))


def test_grammar_when_its_source_makes_little_sense_then_typed_or_its_rows_have_a_token(target: Target) -> None:
    """Compiled in a child, then opened and stepped: every row that is called OK allows something, and no process is
    replaced."""
    with open_session(target.client, target.vocabulary) as session:
        try_grammars(target, session)
    target.check()


def try_grammars(target: Target, session: Session) -> None:
    number = 0

    @budget(60)
    @given(grammars())
    def send(spec: tuple[str, str, str]) -> None:
        nonlocal number
        number += 1
        kind, source, backend = spec
        request = pb.CreateGrammarRequest(session_id=session.session_id, grammar=pb.GrammarSpec(backend=backend))
        if kind == "choice":
            request.grammar.choice.options.extend(json.loads(source))
        else:
            setattr(request.grammar, kind, source.encode("utf-8", "replace").decode())
        call(target, "CreateGrammar", [request.SerializeToString()])
        try:
            grammar = mask_service_pb2_grpc.MaskServiceStub(target.channel).CreateGrammar(request, timeout=60)  # type: ignore[no-untyped-call]
        except grpc.RpcError:
            return
        item = Item(number, Action.OPEN, grammar.grammar_id, row=0)
        for _ in range(4):
            reply = session.step([item], timeout_seconds=60)
            allowed = allowed_token_ids(reply.rows[0]).tolist()
            assert allowed, "never an empty row"
            if not reply.ok or reply.results[0].terminated:
                break
            item = Item(number, accept=(allowed[len(allowed) // 2],), row=0)
        session.step([Item(number, Action.CLOSE)], timeout_seconds=60)
        session.delete_grammar(grammar.grammar_id)

    send()
