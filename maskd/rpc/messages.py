"""Protobuf and values: messages with more than ids, both directions side by side. Engine and front both use it.

``rpc.calls`` and ``front.service`` put ids, flags and counts into messages themselves.
``x_message`` makes a message of a value, and ``x_of`` reads it back. Where both sides have a field under one name it
is carried without a line here. Items and results, which every step has many of, name their fields.
Owns: the one codec. Knows nothing about: calls, streams, what either side does with a value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from maskd.errors import InvalidRequestError, ProtocolError, VocabularyError
from maskd.grammar import (
    KINDS,
    WHEN_SLOW,
    GrammarKind,
    GrammarOptions,
    GrammarReport,
    GrammarSpec,
    ReasoningGate,
    Unenforced,
    WhenSlow,
)
from maskd.rpc.values import Grammar, NewSession, ServerInfo, SessionRequest, VocabularyInfo
from maskd.shm.cells import Reply
from maskd.step import NO_ROW, STATUSES, Action, Item, Result
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import MAX_VOCAB_SIZE, Vocabulary

__all__ = [
    "spec_message", "spec_of", "grammar_message", "grammar_of", "server_info_message", "server_info_of",
    "vocabulary_info_message", "vocabulary_info_of", "upload_messages", "Upload", "session_request_message",
    "session_request_of", "session_message", "session_of", "step_message", "items_of", "reply_message", "reply_of",
]  # fmt: skip

_UPLOAD_BYTES = 1 << 17
"""Of one message of an upload. The front does nothing else while it reads one: 36 ms for 1 MiB of short tokens."""
_NAME_CHARACTERS = 256
"""Of a name that a client chose, for logs and people; the rest is cut off."""


def _fields(message: Message) -> dict[str, Any]:
    """Returns the fields of ``message`` by name: repeated ones as tuples, absent ones that may be absent as None."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            value = tuple(value)
        elif field.has_presence and not message.HasField(field.name):
            value = None
        fields[field.name] = value
    return fields


# -- grammar specs -------------------------------------------------------------------------------------------------


def spec_message(spec: GrammarSpec) -> pb.GrammarSpec:
    """Returns ``spec`` as a message. Raises InvalidRequestError: no text, or no list of strings for ``choice``."""
    message = pb.GrammarSpec(
        backend="" if spec.backend == "auto" else spec.backend,
        options=_options_message(spec.options),
        reasoning=None if spec.reasoning is None else pb.ReasoningGate(**asdict(spec.reasoning)),
        when_slow=1 + WHEN_SLOW.index(spec.when_slow),  # type: ignore[arg-type]  # 0 is unspecified
    )
    try:
        message.resources.update(spec.resources)
        if spec.kind == "json_object":
            message.json_object = True
        elif spec.kind == "choice":
            message.choice.options.extend(_choices_of(spec.source))
        else:
            setattr(message, spec.kind, spec.source)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"the {spec.kind} source cannot be sent: {error}", field=spec.kind) from None
    return message


def _choices_of(source: str) -> list[str]:
    """Returns the strings of a ``choice`` spec. Raises ValueError, TypeError, RecursionError: not a list of strings."""
    choices = json.loads(source)
    if not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise TypeError("a choice is a JSON list of strings")
    return choices


def spec_of(message: pb.GrammarSpec) -> GrammarSpec:
    """Reads a spec. Equal lists of choices give equal sources. Raises InvalidRequestError."""
    kind: GrammarKind | None = message.WhichOneof("grammar")
    if kind is None:
        raise InvalidRequestError(f"the grammar is missing; set one of {', '.join(KINDS)}", field="grammar")
    if kind == "json_object":
        if not message.json_object:
            raise InvalidRequestError("json_object is false; leave it out instead", field="json_object")
        source = ""
    elif kind == "choice":
        source = json.dumps(list(message.choice.options), ensure_ascii=False)
    else:
        source = getattr(message, kind)
    return GrammarSpec(
        kind,
        source,
        backend=message.backend or "auto",
        options=_options_of(message.options),
        resources=dict(message.resources),
        reasoning=ReasoningGate(**_fields(message.reasoning)) if message.HasField("reasoning") else None,
        when_slow=_when_slow_of(message.when_slow),
    )


_WORDS = {
    name: tuple(value.name.removeprefix(f"{name}_".upper()).lower() for value in field.enum_type.values)
    for name, field in pb.GrammarOptions.DESCRIPTOR.fields_by_name.items()
    if field.enum_type is not None
}
"""The options that are one of some words: the words by number; the first, unspecified, means the second."""


def _options_message(options: GrammarOptions) -> pb.GrammarOptions:
    fields = asdict(options)
    return pb.GrammarOptions(**fields | {name: words.index(fields[name]) for name, words in _WORDS.items()})


def _options_of(message: pb.GrammarOptions) -> GrammarOptions:
    fields = _fields(message)
    for name, words in _WORDS.items():
        if not 0 <= fields[name] < len(words):
            raise InvalidRequestError(f"unknown {name} {fields[name]}; give {' or '.join(words[1:])}", field=name)
        fields[name] = words[max(1, fields[name])]
    return GrammarOptions(**fields)


def _when_slow_of(number: int) -> WhenSlow:
    if not 0 <= number <= len(WHEN_SLOW):
        raise InvalidRequestError(f"unknown when_slow {number}; give WAIT, FAIL or SWITCH", field="when_slow")
    return WHEN_SLOW[max(0, number - 1)]  # unspecified is WAIT


# -- grammars ------------------------------------------------------------------------------------------------------


def grammar_message(grammar: Grammar) -> pb.CreateGrammarResponse:
    """Returns the answer to CreateGrammar."""
    report = grammar.report
    return pb.CreateGrammarResponse(
        grammar_id=grammar.grammar_id,
        backend=report.backend,
        backend_reason=report.backend_reason,
        warnings=report.warnings,
        unenforced=[pb.CreateGrammarResponse.Unenforced(**asdict(each)) for each in report.unenforced],
        compile_milliseconds=grammar.compile_seconds * 1e3,
        memory_bytes=report.memory_bytes,
        cached=grammar.cached,
        alternate_backend=grammar.alternate_backend,
    )


def grammar_of(message: pb.CreateGrammarResponse) -> Grammar:
    """Reads the answer to CreateGrammar."""
    report = GrammarReport(
        backend=message.backend,
        backend_reason=message.backend_reason,
        unenforced=tuple(Unenforced(**_fields(each)) for each in message.unenforced),
        warnings=tuple(message.warnings),
        memory_bytes=message.memory_bytes,
    )
    return Grammar(
        grammar_id=message.grammar_id,
        report=report,
        compile_seconds=message.compile_milliseconds / 1e3,
        cached=message.cached,
        alternate_backend=message.alternate_backend,
    )


# -- the daemon and its vocabularies -------------------------------------------------------------------------------


def server_info_message(info: ServerInfo) -> pb.GetServerInfoResponse:
    """Returns the answer to GetServerInfo."""
    fields = vars(info) | {"vocabularies": [vocabulary_info_message(each) for each in info.vocabularies]}
    major, minor = fields.pop("layout")
    return pb.GetServerInfoResponse(**fields, layout_major=major, layout_minor=minor)


def server_info_of(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Reads the answer to GetServerInfo."""
    fields = _fields(message) | {"vocabularies": tuple(map(vocabulary_info_of, message.vocabularies))}
    layout = fields.pop("layout_major"), fields.pop("layout_minor")
    return ServerInfo(**fields, layout=layout)


def vocabulary_info_message(info: VocabularyInfo) -> pb.VocabularyInfo:
    """Returns what clients are told of a vocabulary."""
    return pb.VocabularyInfo(**asdict(info))


def vocabulary_info_of(message: pb.VocabularyInfo) -> VocabularyInfo:
    """Reads what the daemon tells of a vocabulary."""
    return VocabularyInfo(**_fields(message))


def upload_messages(vocabulary: Vocabulary) -> Iterator[pb.UploadVocabularyRequest]:
    """Yields ``vocabulary`` as the messages of an upload: the header first, then tokens in id order."""
    header = pb.UploadVocabularyRequest.Header(
        name=vocabulary.name,
        vocab_size=vocabulary.vocab_size,
        stop_token_ids=vocabulary.stop_token_ids,
        special_token_ids=vocabulary.special_token_ids,
    )
    yield pb.UploadVocabularyRequest(header=header)
    part, size = list[bytes](), 0
    for token in vocabulary.tokens:
        part.append(token)
        size += len(token) + 4
        if size > _UPLOAD_BYTES:
            yield pb.UploadVocabularyRequest(tokens=part)
            part, size = [], 0
    yield pb.UploadVocabularyRequest(tokens=part)


class Upload:
    """Reads an upload, message by message.

    Args:
        limit_bytes: of all messages together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._header: pb.UploadVocabularyRequest.Header | None = None
        self._tokens: list[bytes] = []
        self._bytes = 0

    def add(self, message: pb.UploadVocabularyRequest) -> None:
        """Takes the next message. Raises InvalidRequestError: header missing or repeated. VocabularyError: too long."""
        if self._header is None:
            if not message.HasField("header"):
                raise InvalidRequestError("the first message of an upload must have the header", field="header")
            self._header = message.header
        elif message.HasField("header"):
            raise InvalidRequestError("only the first message of an upload may have the header", field="header")
        self._tokens += message.tokens
        self._bytes += message.ByteSize()
        if len(self._tokens) > MAX_VOCAB_SIZE or self._bytes > self._limit_bytes:
            raise VocabularyError(
                f"the upload passes {MAX_VOCAB_SIZE} tokens or {self._limit_bytes} bytes", limit="vocabulary_bytes"
            )

    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary; checks every token. Raises InvalidRequestError, VocabularyError."""
        if self._header is None:
            raise InvalidRequestError("the upload is empty; send a header and tokens", field="header")
        return Vocabulary(
            tokens=self._tokens,
            vocab_size=self._header.vocab_size,
            stop_token_ids=tuple(self._header.stop_token_ids),
            special_token_ids=tuple(self._header.special_token_ids),
            name=self._header.name[:_NAME_CHARACTERS],
        )


# -- sessions ------------------------------------------------------------------------------------------------------


def session_request_message(request: SessionRequest) -> pb.CreateSessionRequest:
    """Returns a CreateSession request."""
    fields = asdict(request)
    inline = fields.pop("inline")
    return pb.CreateSessionRequest(**fields, transport=pb.TRANSPORT_INLINE if inline else pb.TRANSPORT_SHARED_MEMORY)


def session_request_of(message: pb.CreateSessionRequest) -> SessionRequest:
    """Reads a CreateSession request."""
    fields = _fields(message)
    inline = fields.pop("transport") == pb.TRANSPORT_INLINE
    return SessionRequest(**fields | {"inline": inline, "engine": message.engine[:_NAME_CHARACTERS]})


def session_message(session: NewSession) -> pb.CreateSessionResponse:
    """Returns the answer to CreateSession."""
    return pb.CreateSessionResponse(**asdict(session))


def session_of(message: pb.CreateSessionResponse) -> NewSession:
    """Reads the answer to CreateSession."""
    return NewSession(**_fields(message))


# -- steps ---------------------------------------------------------------------------------------------------------


def step_message(session_id: int, step: int, items: Sequence[Item]) -> pb.StepSequencesRequest:
    """Returns a StepSequences request. Raises InvalidRequestError: a number does not fit its field."""
    try:
        return pb.StepSequencesRequest(session_id=session_id, step=step, items=map(_item_message, items))
    except ValueError as error:
        raise InvalidRequestError(f"a number of the step does not fit its field: {error}", field="items") from None


def items_of(messages: Sequence[pb.Item]) -> list[Item]:
    """Reads the items of a step. Messages have no row numbers: the items get their rows one after the other.

    Raises:
        InvalidRequestError: an action that is unknown.
    """
    items, row = [], 0
    for message in messages:
        item = _item_of(message, row)
        items.append(item)
        row += 0 if item.row == NO_ROW else 1 + len(item.drafts)
    return items


def _item_message(item: Item) -> pb.Item:
    """Returns ``item`` without the number of its row. Raises ValueError: a number does not fit its field."""
    return pb.Item(
        sequence_id=item.sequence_id,
        action=int(item.action) + 1,  # type: ignore[arg-type]  # 0 is unspecified
        grammar_id=item.grammar_id,
        source_sequence_id=item.source_sequence_id,
        rollback_count=item.rollback,
        accept_token_ids=item.accept,
        draft_token_ids=item.drafts,
        row_wanted=item.row >= 0,
        forced_wanted=item.want_forced,
    )


def _item_of(message: pb.Item, row: int) -> Item:
    return Item(
        sequence_id=message.sequence_id,
        action=_action_of(message.action),
        grammar_id=message.grammar_id,
        source_sequence_id=message.source_sequence_id,
        rollback=message.rollback_count,
        accept=tuple(message.accept_token_ids),
        drafts=tuple(message.draft_token_ids),
        row=row if message.row_wanted or message.draft_token_ids else NO_ROW,
        want_forced=message.forced_wanted,
    )


def _action_of(number: int) -> Action:
    try:
        return Action(max(0, number - 1))  # unspecified is ADVANCE
    except ValueError:
        raise InvalidRequestError(
            f"unknown action {number}; give ADVANCE, OPEN, FORK or CLOSE", field="action"
        ) from None


def reply_message(reply: Reply) -> pb.StepSequencesResponse:
    """Returns the answer to a step: its results, and their rows one after the other."""
    results = reply.results
    return pb.StepSequencesResponse(
        step=reply.step,
        results=map(_result_message, results),
        rows=b"".join(reply.rows[r.row : r.row + r.row_count].tobytes() for r in results if r.row_count),
        worker_milliseconds=reply.worker_seconds * 1e3,
    )


def reply_of(
    message: pb.StepSequencesResponse, items: Sequence[Item], *, row_capacity: int, stop_row: NDArray[np.int32]
) -> Reply:
    """Reads the answer to a step of ``items``, and puts the rows where the items wanted them, as in shared memory.

    Args:
        row_capacity: rows of the session.
        stop_row: (row_stride_words,) int32, for rows that were wanted and not filled.
    Raises:
        ProtocolError: this is no answer to these items.
    """
    results, at = list[Result](), 0
    rows = np.zeros((row_capacity, len(stop_row)), dtype=np.int32)
    try:
        packed = np.frombuffer(message.rows, dtype=np.int32).reshape(-1, len(stop_row))
        for one, item in zip(message.results, items, strict=True):
            if item.row >= 0:
                rows[item.row : item.row + 1 + len(item.drafts)] = stop_row
            result = _result_of(one, item.row)
            rows[result.row : result.row + result.row_count] = packed[at : at + result.row_count]
            at += result.row_count
            results.append(result)
        rows.flags.writeable = False
        return Reply.of(message.step, results, rows=rows, worker_seconds=message.worker_milliseconds / 1e3)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        raise ProtocolError(f"the answer to step {message.step} does not fit its items: {error!r}") from None


def _result_message(result: Result) -> pb.ItemResult:
    """Returns ``result`` without the number of its row."""
    return pb.ItemResult(
        sequence_id=result.sequence_id,
        status=int(result.status),  # type: ignore[arg-type]  # the same numbers, a test holds them together
        row_count=result.row_count,
        accepted_count=result.accepted_count,
        position=result.position,
        terminated=result.terminated,
        accepting=result.accepting,
        all_allowed=result.all_allowed,
        forced_token_ids=result.forced,
        detail_index=result.detail_index,
        detail_value=result.detail_value,
    )


def _result_of(message: pb.ItemResult, row: int) -> Result:
    """Reads the result of an item that wanted its rows from ``row`` on. Raises KeyError: the status is unknown."""
    return Result(
        sequence_id=message.sequence_id,
        status=STATUSES[message.status],
        row=row if message.row_count else NO_ROW,
        row_count=message.row_count,
        accepted_count=message.accepted_count,
        position=message.position,
        terminated=message.terminated,
        accepting=message.accepting,
        all_allowed=message.all_allowed,
        forced=tuple(message.forced_token_ids),
        detail_index=message.detail_index,
        detail_value=message.detail_value,
    )
