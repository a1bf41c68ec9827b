"""Errors as gRPC statuses, through a real server and back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2

from maskd import errors
from maskd.errors import MaskdError, error_classes
from maskd.rpc.status import abort, from_rpc_error, to_status
from maskd.step import Action, Status
from maskd.v1 import mask_service_pb2 as pb

CLASSES = list(error_classes())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_to_status_when_given_any_error_then_one_error_info_and_retry_where_it_helps(cls: type[MaskdError]) -> None:
    """One ErrorInfo with reason, domain and recovery; RetryInfo exactly for what may be retried."""
    status = to_status(cls("what", limit="x"))
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    info = error_details_pb2.ErrorInfo()
    assert infos[0].Unpack(info)
    assert len(infos) == 1
    assert (info.reason, info.domain, dict(info.metadata)) == (
        cls.reason,
        "maskd",
        {"limit": "x", "recovery": cls.recovery},
    )
    assert status.code == getattr(grpc.StatusCode, cls.code).value[0]
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details) == cls.retryable


class Raises(grpc.GenericRpcHandler):
    """A server whose one method aborts with the error that was put here."""

    error: MaskdError | None = None

    def service(self, _: object) -> grpc.RpcMethodHandler:
        async def call(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            if self.error is None:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "gRPC says so itself")
            await abort(context, self.error)

        return grpc.unary_unary_rpc_method_handler(call)


@pytest_asyncio.fixture
async def wire(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Raises, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]]:
    handler, server = Raises(), grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield handler, channel.unary_unary("/x/Y")
    await server.stop(None)


async def over(
    wire: tuple[Raises, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]], error: MaskdError | None
) -> MaskdError:
    handler, call = wire
    handler.error = error
    with pytest.raises(grpc.RpcError) as caught:
        await call(b"")
    return from_rpc_error(Sync(caught.value))


class Sync(grpc.RpcError):
    """An aio error with the methods of a sync call, which is what clients see."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()

    def trailing_metadata(self) -> object:
        return self._error.trailing_metadata()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
async def test_error_when_it_crosses_grpc_then_it_is_the_same_error(
    cls: type[MaskdError], wire: tuple[Raises, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]
) -> None:
    """Class, message and metadata survive the wire; the recovery stays the class's."""
    error = cls("what, which; “what to do”\nnext", limit="x", value=7)
    back = await over(wire, error)
    assert (type(back), back.message, back.metadata) == (cls, error.message, {"limit": "x", "value": "7"})


@pytest.mark.parametrize("character", ["a", "ä", "🙂", "\x01", "\n", "%", "\udcff"])
async def test_error_when_the_message_is_as_long_as_allowed_then_it_always_arrives(
    character: str, wire: tuple[Raises, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]
) -> None:
    """gRPC drops calls with much metadata at random, between a soft and a hard limit; our longest error stays below."""
    for _ in range(50):
        back = await over(wire, errors.GrammarError(character * 4000, pointer=character * 300, text=character * 300))
        assert type(back) is errors.GrammarError


async def test_error_when_grpc_itself_refuses_then_it_is_still_typed(
    wire: tuple[Raises, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]],
) -> None:
    """A status without our details becomes the nearest class."""
    back = await over(wire, None)
    assert type(back) is errors.CapacityError
    assert "gRPC says so itself" in back.message


def test_numbers_when_compared_with_the_proto_then_statuses_and_actions_are_the_same() -> None:
    """Inline and shared memory use the same numbers; actions are one higher on the wire, for UNSPECIFIED is 0."""
    assert {
        name.removeprefix("ITEM_STATUS_").removesuffix("_UNSPECIFIED"): number for name, number in pb.ItemStatus.items()
    } == {status.name: int(status) for status in Status}
    assert {name.removeprefix("ACTION_"): number - 1 for name, number in pb.Action.items() if number} == {
        action.name: int(action) for action in Action
    }
