"""The gRPC service: message in, call, message out. Protobuf ends here.

Owns: the handlers, how their errors are answered, and messages of ids and counts alone.
Knows nothing about: the fields of other messages (``rpc.messages``), how a call does its work.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from maskd import __version__
from maskd.bitmask import row_stride_words
from maskd.errors import InvalidRequestError, MaskdError, NotFoundError, UnavailableError
from maskd.front.sessions import SessionBook
from maskd.front.vocabulary_shelf import VocabularyShelf
from maskd.rpc import messages as codec
from maskd.rpc.status import abort, to_refusal
from maskd.rpc.values import Grammar, NewSession, ServerInfo, VocabularyInfo
from maskd.shm import layout as lay
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

__all__ = ["SERVICE", "MaskService"]

SERVICE = pb.DESCRIPTOR.services_by_name["MaskService"].full_name
"""Its name, as gRPC has it."""
_Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")
_log = structlog.get_logger()


def _typed(method: Callable[..., Awaitable[_Answer]]) -> Callable[..., Awaitable[_Answer]]:
    """Answers a MaskdError with its status. Any other exception is logged and answered INTERNAL; the daemon lives."""

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
    """``maskd.v1.MaskService`` over a session book and a vocabulary shelf.

    Args:
        book: the sessions.
        shelf: the vocabularies.
        backends: names that clients may ask for, besides "auto".
        worker_count: workers of each vocabulary.
        shared_memory: whether there is a data socket.
    """

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
        info = ServerInfo(
            version=__version__,
            layout=(lay.MAJOR, lay.MINOR),
            backends=tuple(self._backends),
            vocabularies=tuple(_info_of(vocabulary) for vocabulary in self._shelf),
            worker_count=self._worker_count,
            session_count=len(self._book),
            draining=self._book.draining,
            shared_memory=self._shared_memory,
        )
        return codec.server_info_message(info)

    @_typed
    async def UploadVocabulary(  # noqa: N802, D102
        self, request: AsyncIterator[pb.UploadVocabularyRequest], context: _Context
    ) -> pb.UploadVocabularyResponse:
        upload = codec.Upload(self._shelf.limit_bytes)
        async for part in request:
            upload.add(part)
        kept, warnings = await self._shelf.add(await asyncio.to_thread(upload.vocabulary))
        return pb.UploadVocabularyResponse(vocabulary=codec.vocabulary_info_message(_info_of(kept)), warnings=warnings)

    @_typed
    async def CreateSession(self, request: pb.CreateSessionRequest, context: _Context) -> pb.CreateSessionResponse:  # noqa: N802, D102
        asked = codec.session_request_of(request)
        if not asked.inline and not self._shared_memory:
            raise InvalidRequestError("this listener has no data socket; use the inline transport", field="transport")
        session = await self._book.create(
            self._shelf.get(asked.vocabulary_fingerprint),
            vocab_size=asked.vocab_size,
            row_capacity=asked.row_capacity,
            item_capacity=asked.item_capacity,
            token_capacity=asked.token_capacity,
            sequence_capacity=asked.sequence_capacity,
            inline=asked.inline,
            engine=asked.engine,
        )
        new = NewSession(
            session_id=session.session_id,
            data_token=session.token,
            claim_seconds=0 if asked.inline else int(self._book.claim_seconds),
            lease_seconds=int(self._book.lease_seconds) if asked.inline else 0,
            row_stride_words=row_stride_words(session.vocabulary.vocab_size),
            rows_bytes=session.opened.rows_bytes,
            steps_bytes=session.opened.steps_bytes,
            item_capacity=session.layout.item_capacity,
            token_capacity=session.layout.token_capacity,
        )
        return codec.session_message(new)

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
        spec = codec.spec_of(request.grammar)
        grammar_id, compiled = await self._book.create_grammar(
            request.session_id, spec, validate_only=request.validate_only
        )
        created = Grammar(
            grammar_id=grammar_id,
            report=compiled.report,
            compile_seconds=compiled.compile_seconds,
            cached=compiled.cached,
            alternate_backend=compiled.alternate_backend,
        )
        return codec.grammar_message(created)

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
        items = codec.items_of(request.items)
        return codec.reply_message(await self._book.step(request.session_id, request.step, items))

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has ``server`` answer the calls of the service."""
        mask_service_pb2_grpc.add_MaskServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]


def _info_of(vocabulary: Vocabulary) -> VocabularyInfo:
    return VocabularyInfo(
        fingerprint=vocabulary.fingerprint,
        name=vocabulary.name,
        vocab_size=vocabulary.vocab_size,
        token_count=len(vocabulary.tokens),
        stop_token_ids=vocabulary.stop_token_ids,
    )
