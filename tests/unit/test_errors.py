"""The exception tree and its way through the control channel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskd import errors
from maskd.errors import ConfigError, MaskdError, clip, error_classes
from maskd.ipc import messages
from maskd.step import ItemField, LateIndex, Result, Status

CLASSES = list(error_classes())
PROTO = Path(__file__).parents[2] / "proto/maskd/v1/mask_service.proto"


def test_errors_when_listed_then_every_class_is_exported_drawn_and_has_its_own_reason() -> None:
    """__all__, the tree in the docstring and the classes are one list; a reason finds its class."""
    names = {cls.__name__ for cls in CLASSES}
    assert names == set(errors.__all__) - {"error_classes", "make_error"}
    assert all(name in (errors.__doc__ or "") for name in names)
    reasons = [cls.reason for cls in CLASSES]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", reason) for reason in reasons)
    assert all(cls.__doc__ and cls.recovery for cls in CLASSES)


def test_errors_when_compared_with_the_proto_then_its_table_has_every_code_and_reason() -> None:
    """What a client reads in the proto is what can come; a bad configuration never leaves the daemon."""
    head = PROTO.read_text().split("syntax =")[0]
    listed: set[tuple[str, str]] = set()
    for code, reasons in re.findall(r"//   ([A-Z_]+) / ([A-Z_]+(?:, [A-Z_]+)*)  ", head):
        listed |= {(code, reason) for reason in reasons.split(", ")}
    assert listed == {(cls.code, cls.reason) for cls in CLASSES if cls is not ConfigError}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_when_sent_over_the_control_channel_then_it_comes_back(cls: type[MaskdError]) -> None:
    """A worker's error is the same error in the front: class, message, metadata."""
    error = cls("what, which, what to do: ä…", limit="rows", value=3, nothing=None)
    back = messages.error_of(messages.failure_of(error))
    assert (type(back), back.message, back.metadata) == (cls, error.message, {"limit": "rows", "value": "3"})


def test_error_when_the_reason_is_unknown_then_the_base_class_carries_the_message() -> None:
    """A newer worker's reason is no crash in an older front."""
    back = messages.error_of(messages.Failure("NEWER", "hello", {"a": "b"}))
    assert (type(back), back.message) == (MaskdError, "hello")


@pytest.mark.parametrize("text", ["", "a" * 2048, "a" * 2049, "ä" * 4000, "🙂" * 1000, "\ud800 lone"])
def test_clip_when_text_is_long_or_broken_then_it_fits_and_is_valid(text: str) -> None:
    """At most 2 KiB of valid UTF-8; what fits is unchanged."""
    out = clip(text)
    assert len(out.encode()) <= 2048
    assert out == text or out.endswith("…") or "\ud800" in text


@pytest.mark.parametrize("status", [s for s in Status if s], ids=lambda s: s.name)
def test_status_when_a_result_has_it_then_there_is_a_typed_error(status: Status) -> None:
    """Every status but OK has its sentence, and names the sequence."""
    error = Result(42, status, detail_index=0, detail_value=42).error()
    assert isinstance(error, MaskdError)
    assert type(error) is not MaskdError
    assert "42" in error.message


@pytest.mark.parametrize(
    ("result", "closed"),
    [
        (Result(1, Status.BACKEND_FAILED, detail_value=1), True),
        (Result(1, Status.BACKEND_FAILED, detail_value=0), False),
        (Result(1, Status.STEP_DEADLINE, detail_index=LateIndex.CLOSED), True),
        (Result(1, Status.STEP_DEADLINE, detail_index=LateIndex.UNDER_WAY, detail_value=1), False),
        (Result(1, Status.STEP_DEADLINE, detail_index=LateIndex.NOT_BEGUN, detail_value=1), False),
        (Result(1, Status.BACKENDS_DISAGREE), True),
        (Result(1, Status.TOKEN_REJECTED, detail_index=1, detail_value=1), False),
        (Result(1, detail_value=1), False),
    ],
)
def test_result_when_its_sequence_was_closed_then_it_says_so_and_so_does_its_error(
    result: Result, closed: bool
) -> None:
    assert result.closed is closed
    error = result.error()
    if error is not None and "closed" in error.metadata:
        assert (error.metadata["closed"], "is closed" in error.message) == (str(closed), closed)


def test_result_when_ok_then_there_is_no_error() -> None:
    """OK is no error."""
    assert Result(1).error() is None


@pytest.mark.parametrize("field", list(ItemField), ids=lambda f: f.name)
def test_invalid_item_when_a_field_is_named_then_the_error_says_which(field: ItemField) -> None:
    """INVALID_ITEM tells the field in words and in its metadata."""
    error = Result(1, Status.INVALID_ITEM, detail_index=field).error()
    assert error is not None
    assert error.metadata["field"] == field.name.lower()
