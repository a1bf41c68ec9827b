"""A share of the oracle (``python -m tests.oracle``): random steps through real daemons, each answer predicted, each
row compared."""

from __future__ import annotations

import random

import pytest

from maskd.grammar import GrammarSpec, ReasoningGate
from maskd.step import Action, Item, Status
from tests.fuzzing import TIMES
from tests.oracle.grammars import grammars, vocabulary
from tests.oracle.reference import Reference
from tests.oracle.run import Side, drive, sessions

STEPS = 200
SPECS = [
    GrammarSpec(
        "regex", "(Paris|London)( is (true|null))*", backend="xgrammar", reasoning=ReasoningGate((ord("a"), ord("b")))
    )
]


@pytest.mark.parametrize("row_seconds", [0.02, 0.00001])
@pytest.mark.parametrize("transports", [("shm", "inline"), ("table", "table")])
def test_steps_when_random_then_each_answer_is_right_and_each_row_a_new_matchers(
    transports: tuple[str, str], row_seconds: float
) -> None:
    """Two sessions of one worker at a time; at 10 µs everything goes through the slow lane. A daemon compiles some of
    the grammars only, as each takes a child."""
    seed = 1 if TIMES == 1 else random.randrange(10**6)
    reference = Reference(vocabulary("bundled" if "shm" in transports else "bytes"))
    specs = grammars(reference.vocabulary)
    if "shm" in transports:
        specs = random.Random(seed).sample(specs, round(min(len(specs), 12 * TIMES)))
    with sessions(reference.vocabulary, row_seconds) as (open_session, log):
        findings = drive(
            lambda name: Side(open_session(name), reference, specs), transports, seed, round(STEPS * TIMES), log=log
        )
    assert not findings.differences, "\n".join(findings.differences)
    assert findings.counts["rows compared"] > STEPS
    assert (findings.counts["late items answered"] > STEPS) == (row_seconds < 0.001)


def test_oracle_when_an_answer_is_wrong_then_it_says_so() -> None:
    """One bit, one count, one status: each is a difference, and the right answer is none."""
    reference = Reference(vocabulary("bytes"))
    with sessions(reference.vocabulary, 0.02) as (open_session, _):
        items = [Item(1, Action.OPEN, 1, accept=(ord("a"), ord("b"), ord("P")), drafts=(ord("a"), ord("x")), row=0)]

        def told(change: str, value: int = 0) -> bool:
            side = Side(open_session("table"), reference, SPECS)
            side.session.submit(items)
            reply = side.session.collect()
            rows, results = reply.rows.copy(), reply.results
            assert (results[0].status, results[0].row_count) == (Status.OK, 2)
            if change == "row":
                rows[value, 3] ^= 1
            elif change:
                setattr(results[0], change, value)
            return bool(side.model.check(items, results, rows))

        assert not told("")
        assert all(told("row", position) for position in range(3))
        assert all(
            told(name, 9)
            for name in ("status", "position", "accepted_count", "row_count", "detail_index", "detail_value")
        )
        assert all(told(name, 1) for name in ("terminated", "accepting", "all_allowed"))
