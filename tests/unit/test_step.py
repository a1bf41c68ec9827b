"""What an engine is told of a result that is not OK: type, fields and sentence of every status."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from maskd.errors import (
    BackendError,
    CapacityError,
    DeadlineError,
    InvalidRequestError,
    MaskdError,
    NotFoundError,
    RollbackError,
    SequenceExistsError,
    TerminatedError,
    TokenRejectedError,
)
from maskd.step import NO_ROW, ROLLBACK_ALL, Action, Item, ItemField, ItemFlag, LateIndex, Result, ResultFlag, Status

WIRE = {
    Action: "ADVANCE OPEN FORK CLOSE",
    Status: "OK INVALID_ITEM GRAMMAR_NOT_FOUND SEQUENCE_NOT_FOUND SEQUENCE_EXISTS SEQUENCE_CAPACITY TOKEN_OUT_OF_RANGE "
    "TOKEN_REJECTED SEQUENCE_TERMINATED ROLLBACK_TOO_FAR NO_TOKEN_ALLOWED BACKEND_FAILED STEP_DEADLINE "
    "BACKENDS_DISAGREE",
    ItemField: "SEQUENCE_ID ACTION FLAGS ROLLBACK ROW TOKENS ZERO ROW_TAKEN",
}


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.__name__)
def test_numbers_when_engines_read_them_then_they_are_those_of_the_wire(kind: type[enum.IntEnum]) -> None:
    """From 0 on; a new name has a new number."""
    assert {one.name: int(one) for one in kind} == {name: at for at, name in enumerate(WIRE[kind].split())}


def test_numbers_when_they_stand_for_something_else_then_they_are_those_of_the_wire() -> None:
    assert {one.name: int(one) for one in LateIndex} == {"UNDER_WAY": -1, "NOT_BEGUN": 0, "CLOSED": 1}
    assert {one.name: int(one) for one in ItemFlag} == {"WANT_FORCED": 1}
    assert {one.name: int(one) for one in ResultFlag} == {"TERMINATED": 1, "ACCEPTING": 2, "ALL_ALLOWED": 4}
    assert (ROLLBACK_ALL, NO_ROW) == (-1, -1)


def test_item_and_result_when_only_a_sequence_is_named_then_nothing_is_asked_and_nothing_went_wrong() -> None:
    assert Item(5) == Item(5, Action.ADVANCE, 0, 0, 0, (), (), NO_ROW, False)
    assert Result(5) == Result(5, Status.OK, NO_ROW, 0, 0, 0, False, False, False, (), -1, 0)


def result(status: Status, index: int = -1, value: int = 0) -> Result:
    return Result(3, status, position=4, detail_index=index, detail_value=value)


CASES: list[tuple[Result, type[MaskdError], dict[str, Any], str]] = [
    (result(Status.GRAMMAR_NOT_FOUND, value=7), NotFoundError, {"kind": "grammar", "grammar_id": 7}, "no grammar 7"),
    (result(Status.SEQUENCE_NOT_FOUND, value=7), NotFoundError, {"kind": "sequence", "sequence_id": 7}, "sequence 7"),
    (result(Status.SEQUENCE_EXISTS, value=7), SequenceExistsError, {"sequence_id": 7}, "sequence 7 is open already"),
    (result(Status.SEQUENCE_CAPACITY, value=7), CapacityError, {"value": 7}, "holds its 7 sequences"),
    (
        result(Status.TOKEN_OUT_OF_RANGE, 1, 7),
        InvalidRequestError,
        {"field": "tokens", "token_id": 7, "index": 1},
        "token 7 .index 1.",
    ),
    (
        result(Status.TOKEN_REJECTED, 1, 7),
        TokenRejectedError,
        {"sequence_id": 3, "token_id": 7, "index": 1, "position": 4},
        "does not allow token 7 .index 1 of the step's tokens. at position 4",
    ),
    (result(Status.SEQUENCE_TERMINATED, value=7), TerminatedError, {"sequence_id": 3}, "stop token at position 7"),
    (result(Status.ROLLBACK_TOO_FAR, value=7), RollbackError, {"sequence_id": 3, "tokens": 7}, "has 7 tokens"),
    (result(Status.NO_TOKEN_ALLOWED), BackendError, {"sequence_id": 3, "position": 4}, "no token at position 4"),
    (result(Status.BACKEND_FAILED), BackendError, {"position": 4, "closed": False}, "sequence is unchanged"),
    (result(Status.BACKEND_FAILED, value=1), BackendError, {"position": 4, "closed": True}, "sequence is closed"),
    (
        result(Status.STEP_DEADLINE, LateIndex.UNDER_WAY, 20),
        DeadlineError,
        {"limit_us": 20, "closed": False},
        "longer than 20 µs and is still being made",
    ),
    (
        result(Status.STEP_DEADLINE, LateIndex.NOT_BEGUN, 20),
        DeadlineError,
        {"limit_us": 20, "closed": False},
        "not begun, send it again",
    ),
    (
        result(Status.STEP_DEADLINE, LateIndex.CLOSED, 20),
        DeadlineError,
        {"limit_us": 20, "closed": True},
        "the sequence is closed",
    ),
    (
        result(Status.BACKENDS_DISAGREE, 2, 7),
        BackendError,
        {"token_id": 7, "position": 4, "closed": True},
        "does not allow token 7 at position 4",
    ),
    *(
        (result(Status.INVALID_ITEM, field), InvalidRequestError, {"field": field.name.lower(), "sequence_id": 3}, ".")
        for field in ItemField
    ),
]


@pytest.mark.parametrize(("case", "kind", "fields", "sentence"), CASES, ids=lambda value: getattr(value, "status", ""))
def test_error_when_a_result_is_not_ok_then_type_fields_and_sentence_say_why(
    case: Result, kind: type[MaskdError], fields: dict[str, Any], sentence: str
) -> None:
    """As text, as they travel in messages."""
    error = case.error()
    assert type(error) is kind
    assert error.metadata.items() >= {name: str(value) for name, value in fields.items()}.items()
    with pytest.raises(kind, match=sentence):
        raise error


def test_error_when_the_result_is_ok_then_there_is_none() -> None:
    assert Result(1).error() is None


def test_statuses_when_listed_then_every_one_has_an_error() -> None:
    assert {case.status for case, *_ in CASES} == set(Status) - {Status.OK}
