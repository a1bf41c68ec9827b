"""Errors and ``google.rpc.Status``: the one map, both directions side by side.

Owns: codes and details of a status. Knows nothing about: when an error is raised, or by which module.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from maskd.errors import (
    CapacityError,
    DeadlineError,
    InvalidRequestError,
    MaskdError,
    PermissionDeniedError,
    UnavailableError,
    make_error,
)
from maskd.v1 import mask_service_pb2 as pb

__all__ = ["DOMAIN", "abort", "from_refusal", "from_rpc_error", "to_refusal", "to_status"]

DOMAIN = "maskd"
_CODES = {code.name: code for code in grpc.StatusCode}
RETRY_SECONDS = 1
_ENCODED_BYTES = 4096
_BARE: dict[grpc.StatusCode, type[MaskdError]] = {  # statuses from gRPC itself, without our details
    grpc.StatusCode.RESOURCE_EXHAUSTED: CapacityError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}


def to_status(error: MaskdError) -> status_pb2.Status:
    """Returns ``error`` as a status with one ErrorInfo, and RetryInfo where a retry is the answer."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={**error.metadata, "recovery": error.recovery}
    )
    details = [info]
    if error.retryable:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_SECONDS)))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=_CODES[error.code].value[0], message=_clip_encoded(error.message), details=packed)


def _clip_encoded(message: str) -> str:
    """Cuts ``message`` to 4 KiB as gRPC sends it: a byte that is not printable ASCII counts three times.

    gRPC drops calls with more than 8 KiB of metadata at random, and all with more than 16 KiB. The message travels in
    it twice, once encoded as above.
    """
    room, raw = _ENCODED_BYTES, message.encode("utf-8", "replace")
    for at, byte in enumerate(raw):
        room -= 1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3
        if room < 9 and len(raw) > at + 3:  # an ellipsis takes nine
            return raw[:at].decode("utf-8", "ignore") + "…"
    return message


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MaskdError) -> NoReturn:
    """Ends a call with ``error``."""
    status = rpc_status.to_status(to_status(error))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort raises")


def to_refusal(error: MaskdError) -> pb.StreamStepsResponse.Refusal:
    """Returns ``error`` as the refusal of one step on a stream that goes on."""
    return pb.StreamStepsResponse.Refusal(
        code=_CODES[error.code].value[0], reason=error.reason, message=error.message, metadata=dict(error.metadata)
    )


def from_refusal(refusal: pb.StreamStepsResponse.Refusal) -> MaskdError:
    """Returns the error that ``to_refusal`` packed."""
    return make_error(refusal.reason, refusal.message, refusal.metadata)


def from_rpc_error(error: grpc.RpcError) -> MaskdError:
    """Returns the error that the daemon raised, or UnavailableError if none came from it."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details contradict each other: gRPC replaced the code on its way
        status = None
    if status is not None:
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                metadata = {key: value for key, value in info.metadata.items() if key != "recovery"}
                return make_error(info.reason, status.message, metadata)
    code, details = error.code(), error.details()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"the daemon does not answer: {details}")
    return _BARE.get(code, MaskdError)(f"{code.name}: {details}")
