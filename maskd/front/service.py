"""The gRPC service: message in, call, message out. No logic lives here, and protobuf ends here."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from maskd import __version__
from maskd.bitmask import row_stride_words
from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, UnavailableError, VocabularyError
from maskd.front.sessions import SessionBook
from maskd.front.vocabulary_shelf import VocabularyShelf
from maskd.grammar import WHEN_SLOW, GrammarKind, GrammarOptions, GrammarSpec, ReasoningGate, WhenSlow
from maskd.ipc import messages
from maskd.rpc.status import abort, to_refusal
from maskd.shm import layout as lay
from maskd.shm.cells import Reply
from maskd.step import NO_ROW, Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import MAX_VOCAB_SIZE, Vocabulary

__all__ = ["MaskService"]

_Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")
_log = structlog.get_logger()


def _typed(method: Callable[..., Awaitable[_Answer]]) -> Callable[..., Awaitable[_Answer]]:
    """Answers a MaskdError with its status; anything else is logged and answered INTERNAL, and the daemon lives."""

    @functools.wraps(method)
    async def call(self: MaskService, request: Any, context: _Context) -> _Answer:
        try:
            return await method(self, request, context)
        except MaskdError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            _log.exception("call failed", call=method.__name__)
            await abort(
                context,
                MaskdError(f"the daemon failed in {method.__name__}: {type(error).__name__}; its log says more"),
            )
        raise AssertionError

    return call


class MaskService(mask_service_pb2_grpc.MaskServiceServicer):
    """``maskd.v1.MaskService`` over a session book and a vocabulary shelf."""

    def __init__(
        self, book: SessionBook, shelf: VocabularyShelf, *, backends: list[str], worker_count: int, shared_memory: bool
    ) -> None:
        self._book = book
        self._shelf = shelf
        self._backends = backends
        self._worker_count = worker_count
        self._shared_memory = shared_memory

    @_typed
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: _Context) -> pb.GetServerInfoResponse:  # noqa: N802, D102
        return pb.GetServerInfoResponse(
            version=__version__,
            layout_major=lay.MAJOR,
            layout_minor=lay.MINOR,
            backends=self._backends,
            vocabularies=[_vocabulary_info(vocabulary) for vocabulary in self._shelf],
            worker_count=self._worker_count,
            session_count=len(self._book),
            draining=self._book.draining,
            shared_memory=self._shared_memory,
        )

    @_typed
    async def UploadVocabulary(  # noqa: N802, D102
        self, request: AsyncIterator[pb.UploadVocabularyRequest], context: _Context
    ) -> pb.UploadVocabularyResponse:
        header, tokens, size = None, list[bytes](), 0
        async for part in request:
            if header is None:
                if not part.HasField("header"):
                    raise InvalidRequestError("the first message of an upload must have the header", field="header")
                header = part.header
            elif part.HasField("header"):
                raise InvalidRequestError("only the first message of an upload may have the header", field="header")
            tokens += part.tokens
            size += part.ByteSize()
            if len(tokens) > MAX_VOCAB_SIZE or size > self._shelf.limit_bytes:
                raise VocabularyError(
                    f"the upload passes {MAX_VOCAB_SIZE} tokens or {self._shelf.limit_bytes} bytes",
                    limit="vocabulary_bytes",
                )
        if header is None:
            raise InvalidRequestError("the upload is empty; send a header and tokens", field="header")
        vocabulary = await asyncio.to_thread(
            Vocabulary,
            tokens,
            header.vocab_size,
            tuple(header.stop_token_ids),
            tuple(header.special_token_ids),
            header.name[:256],
        )
        kept, warnings = await self._shelf.add(vocabulary)
        return pb.UploadVocabularyResponse(vocabulary=_vocabulary_info(kept), warnings=warnings)

    @_typed
    async def CreateSession(self, request: pb.CreateSessionRequest, context: _Context) -> pb.CreateSessionResponse:  # noqa: N802, D102
        inline = request.transport == pb.TRANSPORT_INLINE
        if not inline and not self._shared_memory:
            raise InvalidRequestError("this listener has no data socket; use the inline transport", field="transport")
        session = await self._book.create(
            self._shelf.get(request.vocabulary_fingerprint),
            vocab_size=request.vocab_size,
            row_capacity=request.row_capacity,
            item_capacity=request.item_capacity,
            token_capacity=request.token_capacity,
            sequence_capacity=request.sequence_capacity,
            inline=inline,
            engine=request.engine[:256],
        )
        return pb.CreateSessionResponse(
            session_id=session.session_id,
            data_token=session.token,
            claim_seconds=0 if inline else int(self._book.claim_seconds),
            lease_seconds=int(self._book.lease_seconds) if inline else 0,
            row_stride_words=row_stride_words(session.vocabulary.vocab_size),
            rows_bytes=session.opened.rows_bytes,
            steps_bytes=session.opened.steps_bytes,
            item_capacity=session.layout.item_capacity,
            token_capacity=session.layout.token_capacity,
        )

    @_typed
    async def GetSession(self, request: pb.GetSessionRequest, context: _Context) -> pb.GetSessionResponse:  # noqa: N802, D102
        state = await self._book.read(request.session_id)
        return pb.GetSessionResponse(
            state=pb.GetSessionResponse.STATE_ACTIVE if state.attached else pb.GetSessionResponse.STATE_UNCLAIMED,
            sequence_count=state.sequence_count,
            grammar_count=state.grammar_count,
            last_step=state.last_step,
        )

    @_typed
    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: _Context) -> pb.DeleteSessionResponse:  # noqa: N802, D102
        self._book.delete(request.session_id)
        return pb.DeleteSessionResponse()

    @_typed
    async def CreateGrammar(self, request: pb.CreateGrammarRequest, context: _Context) -> pb.CreateGrammarResponse:  # noqa: N802, D102
        spec = _grammar_spec(request.grammar)
        grammar_id, compiled = await self._book.create_grammar(
            request.session_id, spec, validate_only=request.validate_only
        )
        return _grammar_answer(grammar_id, compiled)

    @_typed
    async def DeleteGrammar(self, request: pb.DeleteGrammarRequest, context: _Context) -> pb.DeleteGrammarResponse:  # noqa: N802, D102
        self._book.delete_grammar(request.session_id, request.grammar_id)
        return pb.DeleteGrammarResponse()

    @_typed
    async def StepSequences(self, request: pb.StepSequencesRequest, context: _Context) -> pb.StepSequencesResponse:  # noqa: N802, D102
        return await self._step(request)

    async def StreamSteps(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.StreamStepsRequest], context: _Context
    ) -> AsyncIterator[pb.StreamStepsResponse]:
        try:
            async for request in request_iterator:
                try:
                    yield pb.StreamStepsResponse(step=await self._step(request.step))
                except (NotFoundError, UnavailableError) as error:  # the session is gone, and the stream with it
                    await abort(context, error)
                except MaskdError as error:
                    yield pb.StreamStepsResponse(refusal=to_refusal(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            _log.exception("call failed", call="StreamSteps")
            await abort(
                context, MaskdError(f"the daemon failed in StreamSteps: {type(error).__name__}; its log says more")
            )

    async def _step(self, request: pb.StepSequencesRequest) -> pb.StepSequencesResponse:
        items = _items(request)
        return _step_answer(await self._book.step(request.session_id, request.step, items))


def _vocabulary_info(vocabulary: Vocabulary) -> pb.VocabularyInfo:
    return pb.VocabularyInfo(
        fingerprint=vocabulary.fingerprint,
        name=vocabulary.name,
        vocab_size=vocabulary.vocab_size,
        token_count=len(vocabulary.tokens),
        stop_token_ids=vocabulary.stop_token_ids,
    )


def _grammar_spec(message: pb.GrammarSpec) -> GrammarSpec:
    which = message.WhichOneof("grammar")
    if which is None:
        raise InvalidRequestError(
            "the grammar is missing; set one of json_schema, json_object, regex, choice, ebnf, lark, structural_tag",
            field="grammar",
        )
    if which == "json_object" and not message.json_object:
        raise InvalidRequestError("json_object is false; leave it out instead", field="json_object")
    value = getattr(message, which)
    source = (
        ""
        if which == "json_object"
        else json.dumps(list(value.options), ensure_ascii=False)
        if which == "choice"
        else value
    )
    given = message.options
    options = GrammarOptions(
        max_whitespace=given.max_whitespace if given.HasField("max_whitespace") else None,
        item_separator=given.item_separator if given.HasField("item_separator") else None,
        key_separator=given.key_separator if given.HasField("key_separator") else None,
        additional_properties="forbid"
        if given.additional_properties == pb.GrammarOptions.ADDITIONAL_PROPERTIES_FORBID
        else "allow",
        strict=given.strict,
        stop_token_ids=tuple(given.stop_token_ids),
    )
    kind: GrammarKind = which
    return GrammarSpec(
        kind, source, message.backend or "auto", options, _reasoning(message), _when_slow(message.when_slow)
    )


def _reasoning(message: pb.GrammarSpec) -> ReasoningGate | None:
    if not message.HasField("reasoning"):
        return None
    given = message.reasoning
    return ReasoningGate(tuple(given.end_token_ids), given.max_tokens if given.HasField("max_tokens") else None)


def _when_slow(number: int) -> WhenSlow:
    if not 0 <= number <= len(WHEN_SLOW):
        raise InvalidRequestError(f"unknown when_slow {number}; give WAIT, FAIL or SWITCH", field="when_slow")
    return WHEN_SLOW[max(0, number - 1)]  # unspecified is WAIT


def _grammar_answer(grammar_id: int, compiled: messages.GrammarCompiled) -> pb.CreateGrammarResponse:
    report = compiled.report
    return pb.CreateGrammarResponse(
        grammar_id=grammar_id,
        backend=report.backend,
        backend_reason=report.backend_reason,
        warnings=report.warnings,
        unenforced=[
            pb.CreateGrammarResponse.Unenforced(pointer=u.pointer, keyword=u.keyword, effect=u.effect)
            for u in report.unenforced
        ],
        compile_milliseconds=compiled.compile_seconds * 1e3,
        memory_bytes=report.memory_bytes,
        cached=compiled.cached,
        alternate_backend=compiled.alternate_backend,
    )


def _action(number: int) -> Action:
    try:
        return Action(max(0, number - 1))  # unspecified is ADVANCE
    except ValueError:
        raise InvalidRequestError(
            f"unknown action {number}; give ADVANCE, OPEN, FORK or CLOSE", field="action"
        ) from None


def _items(request: pb.StepSequencesRequest) -> list[Item]:
    """Reads the items; rows are handed out in order, for the answer has them one after the other."""
    items, row = [], 0
    for message in request.items:
        drafts = tuple(message.draft_token_ids)
        wanted = message.row_wanted or bool(drafts)
        items.append(
            Item(
                message.sequence_id,
                _action(message.action),
                message.grammar_id,
                message.source_sequence_id,
                message.rollback_count,
                tuple(message.accept_token_ids),
                drafts,
                row if wanted else NO_ROW,
                message.forced_wanted,
            )
        )
        row += (1 + len(drafts)) if wanted else 0
    return items


def _step_answer(reply: Reply) -> pb.StepSequencesResponse:
    parts, results = [], []
    for result in reply.results:
        if result.row_count:
            parts.append(reply.rows[result.row : result.row + result.row_count].tobytes())
        results.append(
            pb.ItemResult(
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
        )
    return pb.StepSequencesResponse(
        step=reply.step, results=results, rows=b"".join(parts), worker_milliseconds=reply.worker_seconds * 1e3
    )
