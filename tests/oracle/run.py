"""Runs the oracle against sessions, tells of what was wrong, and makes the way to it shorter.

Knows nothing about: what is right.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maskd.client import Client, Session
from maskd.errors import GrammarError, MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from tests.conftest import Daemon
from tests.oracle.driver import ROW_CAPACITY, Driver
from tests.oracle.model import Difference, Model, short
from tests.oracle.reference import NotKnown, Reference, RightGrammar

__all__ = ["Findings", "Side", "drive"]

_STEP_SECONDS = 30.0
_ASKS = 3000
Script = list[list[Item]]


@dataclass
class Findings:
    """What came out.

    Attributes:
        counts: what was done.
        differences: what was wrong, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


class Side:
    """One session with its model."""

    def __init__(self, daemon: Daemon, reference: Reference, specs: Sequence[GrammarSpec], transport: str) -> None:
        self._client = Client.connect(daemon.target, timeout_seconds=60)
        vocabulary = reference.vocabulary
        fingerprint = self._client.upload_vocabulary(vocabulary)
        self.session: Session = self._client.open_session(
            fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=ROW_CAPACITY, sequence_capacity=64, item_capacity=64,
            token_capacity=4096, transport=transport,  # type: ignore[arg-type]
        )  # fmt: skip
        self.refused: list[str] = []
        grammars: dict[int, RightGrammar] = {}
        for spec in specs:
            try:
                made = self.session.create_grammar(spec, timeout_seconds=60)
            except GrammarError as error:
                self.refused.append(f"{spec.kind} {spec.source[:30]!r} on {spec.backend}, {spec.when_slow}: {error.message[:120]}")
                continue
            grammars[made.grammar_id] = reference.grammar(spec, made.report.backend, made.alternate_backend)
        self.model = Model(reference, grammars)

    def step(self, items: Sequence[Item]) -> list[Difference]:
        """One step, compared. Raises MaskdError: the session is lost."""
        reply = self.session.step(items, timeout_seconds=_STEP_SECONDS)
        return self.model.check(items, reply.results, reply.rows)

    def settle(self) -> list[Difference]:
        """Asks for late items until there are none."""
        for _ in range(_ASKS):
            late = {i: one.late for i, one in self.model.known.items() if one.late is not None}
            items, at = [], 0
            for sequence_id, one in late.items():
                if one is not None and at + 1 + len(one.item.drafts) <= ROW_CAPACITY:
                    wanted = one.item.row >= 0
                    items.append(Item(sequence_id, drafts=one.item.drafts, row=at if wanted else -1))
                    at += 1 + len(one.item.drafts) if wanted else 0
            if not items:
                return []
            if differences := self.step(items):
                return differences
            time.sleep(0.001)
        return [Difference(self.model.step, items[0], self.session.step(items).results[0], (), (), [f"late after {_ASKS} questions"])]

    def close(self) -> None:
        with contextlib.suppress(MaskdError):
            self.session.close()
        self._client.close()


def drive(
    open_side: Callable[[str], Side], transports: Sequence[str], seed: int, steps: int, *, most: int = 5, shorten: bool = True,
    log: Callable[[], str] = str,
) -> Findings:  # fmt: skip
    """Drives one session over each of ``transports``, a step of each in turn, for ``steps`` steps together.

    Args:
        most: stops after so many differences.
        shorten: looks for the shortest way to each difference.
        log: what the daemon said last, for a session that is lost.
    """
    findings = Findings()
    sides: dict[int, tuple[Side, Driver, Script]] = {}
    done = 0
    while done < steps and len(findings.differences) < most:
        for number, transport in enumerate(transports):
            if number not in sides:
                side = open_side(transport)
                sides[number] = side, Driver(random.Random(f"{seed} {number} {done}"), side.model), []
            side, driver, script = sides[number]
            items = driver.items()
            script.append(items)
            done += 1
            _count(findings.counts, items)
            try:
                differences = side.step(items)
            except MaskdError as error:
                step = ", ".join(map(short, items))
                findings.differences.append(
                    f"seed {seed}, {transport}, step {side.model.step + 1}: the session is lost: {error}\n    {step}\n  {log()}"
                )
                findings.counts += side.model.counts
                side.close()
                del sides[number]
                continue
            for difference in differences:
                words = f"seed {seed}, {transport}, {difference}"
                if shorten:
                    words += "\n  " + _shortened(open_side, transport, script, difference)
                findings.differences.append(words)
    for side, _, _ in sides.values():
        try:
            findings.differences += [f"seed {seed}, {side.session.transport}, at the end: {difference}" for difference in side.settle()]
        except MaskdError as error:
            findings.differences.append(f"seed {seed}, {side.session.transport}, at the end: the session is lost: {error}\n  {log()}")
        findings.counts += side.model.counts
        longest = max((len(state.history) for one in side.model.known.values() for state in one.states), default=0)
        findings.counts["longest history at the end"] = max(longest, findings.counts["longest history at the end"])
        side.close()
    findings.counts["differences"] = len(findings.differences)
    return findings


def _count(counts: Counter[str], items: Sequence[Item]) -> None:
    counts["steps"] += 1
    for item in items:
        counts[item.action.name] += 1
        counts["tokens"] += len(item.accept)
        counts["draft tokens"] += len(item.drafts)
        counts["rollbacks"] += bool(item.rollback)
        counts["forced tokens asked for"] += item.want_forced


# -- the shortest way -------------------------------------------------------------------------------------------------


def _shortened(open_side: Callable[[str], Side], transport: str, script: Script, difference: Difference, tries: int = 120) -> str:
    """Returns the shortest script that still shows a difference: first that of the sequence and its ancestors, then without one item after
    the other."""
    family = {difference.item.sequence_id}
    for items in reversed(script):
        for item in reversed(items):
            if item.sequence_id in family and item.action == Action.FORK:
                family.add(item.source_sequence_id)
    flat = [(at, item) for at, items in enumerate(script) for item in items if item.sequence_id in family]
    budget = tries

    def shows(candidate: Sequence[tuple[int, Item]]) -> bool:
        nonlocal budget
        budget -= 1
        return _shows(open_side, transport, _as_script(candidate))

    if not shows(flat) and not shows(flat):
        return "alone, with every late item waited for, its sequence goes right: a race, or a neighbour"
    size = len(flat) // 2
    while size and budget > 0:
        at = 0
        while at < len(flat) and budget > 0:
            candidate = flat[:at] + flat[at + size :]
            if shows(candidate):
                flat = candidate
            else:
                at += size
        size //= 2
    lines = "\n    ".join(", ".join(map(short, items)) for items in _as_script(flat))
    return f"shown by {len(flat)} items (of {sum(map(len, script))}):\n    {lines}"


def _as_script(flat: Sequence[tuple[int, Item]]) -> Script:
    steps: dict[int, list[Item]] = {}
    for at, item in flat:
        steps.setdefault(at, []).append(item)
    return list(steps.values())


def _shows(open_side: Callable[[str], Side], transport: str, script: Script) -> bool:
    """Whether a new session shows a difference on ``script``, with every late item waited for."""
    try:
        side = open_side(transport)
    except MaskdError:
        return False
    try:
        return any(side.step(items) or side.settle() for items in script)
    except (MaskdError, NotKnown):
        return True
    finally:
        side.close()
