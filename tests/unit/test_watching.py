"""The parts of a watch: equal values, what was there, texts that grow, beginnings."""

from __future__ import annotations

import json
import random

import pytest

from maskd.backends.watching.agreement import beginning_of
from maskd.backends.watching.record import EMPTY_RECORD
from maskd.backends.watching.values import Number, canonical, nothing_seen, number_of
from tests import random_values


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", Number(False, "", 0)),
        ("-0.00", Number(False, "", 0)),
        ("0e7", Number(False, "", 0)),
        ("100", Number(False, "1", 2)),
        ("1.20", Number(False, "12", -1)),
        ("-0.012E+2", Number(True, "12", -1)),
    ],
)
def test_number_when_spelled_with_zeros_then_is_without(text: str, number: Number) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        ("1", "1.0", True),
        ("1", "true", False),
        ("0", "false", False),
        ("[1, true]", "[true, 1]", False),
        ('{"a": [1], "b": null}', '{"b": null, "a": [1.00]}', True),
        ('["a"]', '{"a": null}', False),
        ("[]", "{}", False),
        ('"1"', "1", False),
    ],
)
def test_values_when_compared_then_as_json_schema_has_it(one: str, other: str, are_equal: bool) -> None:
    found, another = canonical(one.encode()), canonical(other.encode())
    assert (found == another) is are_equal
    assert (hash(found) == hash(another)) >= are_equal


def test_seen_when_it_grows_on_several_branches_then_each_has_its_own() -> None:
    """Every set that was made stays what it was; compared with Python's sets."""
    rng = random.Random(3)
    made = [(nothing_seen(), list[int]())]
    for _ in range(300):
        seen, values = rng.choice(made)
        value = rng.choice([number for number in range(400) if number not in values])
        made.append((seen.with_value(value), [*values, value]))
        for one, expected in rng.sample(made, min(5, len(made))):
            assert list(one) == expected
            assert len(one) == len(expected)
            assert [number in one for number in range(400)] == [number in expected for number in range(400)]


def test_record_when_it_grows_on_several_branches_then_each_has_its_own() -> None:
    rng = random.Random(4)
    made = [(EMPTY_RECORD, b"")]
    for _ in range(300):
        record, text = rng.choice(made)
        more = rng.randbytes(rng.choice([1, 5, 100, 400]))
        made.append((record + more, text + more))
        for one, expected in rng.sample(made, min(5, len(made))):
            start = rng.randrange(-3, len(expected) + 3)
            assert one.size == len(expected)
            assert one.since(start) == expected[max(0, start) :]


def test_beginning_when_cut_anywhere_then_agrees_with_what_it_was_cut_from() -> None:
    """What disagrees with a value begins none of its spellings."""
    rng = random.Random(5)
    for _ in range(400):
        value = random_values.value(rng, 3)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        for size in range(len(text) + 1):
            assert beginning_of(text[:size]).agrees(canonical(text)), text[:size]


@pytest.mark.parametrize(
    ("begun", "value"),
    [
        ('"ab', '"a"'),
        ('{"a": 1', '{"a": 2}'),
        ('{"a": 1, "b', '{"a": 1, "c": 1}'),
        ('{"a": 1,', '{"a": 1}'),
        ("[1,", "[1]"),
        ("[1, [", "[1, 2]"),
        ("12", "13"),
        ("-1", "1"),
        ("t", "false"),
        ('"1', "1"),
    ],
)
def test_beginning_when_it_can_become_something_else_only_then_disagrees(begun: str, value: str) -> None:
    assert not beginning_of(begun.encode()).agrees(canonical(value.encode()))
