"""Runs the oracle against sessions, tells of what was wrong, and makes the way to it shorter.

Knows nothing about: what is right.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from maskd.client import Client, Session
from maskd.errors import GrammarError, MaskdError
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item, Result
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon
from tests.oracle.driver import ROW_CAPACITY, Driver
from tests.oracle.in_process import TableSession
from tests.oracle.model import Difference, Model, short
from tests.oracle.reference import NotKnown, Reference, RightGrammar

__all__ = ["Findings", "Side", "drive", "open_session", "sessions"]

_STEP_SECONDS = 30.0
_ASKS = 3000
Script = list[list[Item]]


@dataclass
class Findings:
    """What came out.

    Attributes:
        counts: what was done.
        differences: what was wrong, in words.
        longest: tokens of the longest history.
    """

    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0

    def add(self, other: Findings) -> None:
        """Adds those of another seed."""
        self.counts += other.counts
        self.differences += other.differences
        self.longest = max(self.longest, other.longest)

    differences: list[str] = field(default_factory=list)


def open_session(client: Client, vocabulary: Vocabulary, transport: str) -> Session:
    """Returns a session in which a ``Driver`` has room. Raises MaskdError."""
    return client.open_session(
        client.upload_vocabulary(vocabulary),
        vocab_size=vocabulary.vocab_size,
        row_capacity=ROW_CAPACITY,
        sequence_capacity=64,
        item_capacity=64,
        token_capacity=1 << 15,
        transport=transport,  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def sessions(
    vocabulary: Vocabulary, row_seconds: float
) -> Iterator[tuple[Callable[[str], Session | TableSession], Callable[[], str]]]:
    """Yields what opens a session over "shm" or "inline", all on one worker of a daemon of their own, or over "table",
    in this process; and what tells of the daemon's last words."""
    with contextlib.ExitStack() as stack:
        started: list[tuple[Daemon, Client]] = []

        def open_one(transport: str) -> Session | TableSession:
            if transport == "table":
                return TableSession(vocabulary, row_seconds, row_capacity=ROW_CAPACITY)
            if not started:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mk"))
                flags = ("--drain-seconds", "0.2", "--restart-seconds", "0.2", "--row-seconds", f"{row_seconds:.6f}")
                daemon = Daemon(directory, *flags)
                stack.callback(daemon.stop)
                started.append((daemon, stack.enter_context(Client.connect(daemon.target, timeout_seconds=60))))
            return open_session(started[0][1], vocabulary, transport)

        def last_words() -> str:
            return "\n  ".join(str(event)[:300] for event in started[0][0].events()[-4:]) if started else ""

        yield open_one, last_words


class Side:
    """One session with its model."""

    def __init__(self, session: Session | TableSession, reference: Reference, specs: Sequence[GrammarSpec]) -> None:
        self.session = session
        self.refused: list[str] = []
        grammars: dict[int, RightGrammar] = {}
        for spec in specs:
            try:
                made = session.create_grammar(spec, timeout_seconds=60)
            except GrammarError as error:
                self.refused.append(
                    f"{spec.kind} {spec.source[:30]!r} on {spec.backend}, {spec.when_slow}: {error.message[:120]}"
                )
                continue
            grammars[made.grammar_id] = reference.grammar(spec, made.report.backend, made.alternate_backend)
        self.model = Model(reference, grammars)

    def step(self, items: Sequence[Item]) -> list[Difference]:
        """One step, compared. Raises MaskdError: the session is lost."""
        self.session.submit(items)
        return self.collect(items)

    def collect(self, items: Sequence[Item]) -> list[Difference]:
        """The answer to ``items``, which were submitted, compared. Raises MaskdError."""
        reply = self.session.collect(timeout_seconds=_STEP_SECONDS)
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
        item = Item(next(iter(late)))
        return [
            Difference(self.model.step, item, Result(item.sequence_id), (), (), [f"still late after {_ASKS} questions"])
        ]


def drive(
    open_side: Callable[[str], Side],
    transports: Sequence[str],
    seed: int,
    steps: int,
    *,
    most: int = 5,
    shorten: bool = True,
    log: Callable[[], str] = str,
) -> Findings:
    """Drives a session over each of ``transports``, their steps at the same time, for ``steps`` steps together.

    Args:
        most: stops after so many differences.
        shorten: looks for the shortest way to each difference.
        log: what the daemon said last, for a session that is lost.
    """
    findings = Findings()
    driven: dict[int, tuple[Side, Driver, Script]] = {}

    def end(number: int, error: MaskdError | None = None) -> None:
        side, _, script = driven.pop(number)
        where = f"seed {seed}, {transports[number]}"
        try:
            found = side.settle() if error is None else []
            findings.differences += [f"{where}, at the end: {difference}" for difference in found]
        except MaskdError as lost:
            error = lost
        if error is not None:
            step = ", ".join(map(short, script[-1]))
            findings.differences.append(
                f"{where}, step {len(script)}: the session is lost: {error}\n    {step}\n  {log()}"
            )
        findings.counts += side.model.counts
        findings.counts["tokens that xgrammar's rows forbid and its matchers take"] = (
            side.model.reference.contradictions
        )
        findings.longest = max(findings.longest, side.model.longest)
        side.session.close()

    while findings.counts["steps"] < steps and len(findings.differences) < most:
        for number, transport in enumerate(transports):
            if number not in driven:
                side = open_side(transport)
                chooser = random.Random(f"{seed} {number} {findings.counts['steps']}")
                driven[number] = side, Driver(chooser, side.model), []
            side, driver, script = driven[number]
            script.append(driver.items())
            _count(findings.counts, script[-1])
            try:
                side.session.submit(script[-1])
            except MaskdError as error:
                end(number, error)
        for number, (side, _, script) in list(driven.items()):
            try:
                differences = side.collect(script[-1])
            except MaskdError as error:
                end(number, error)
                continue
            for difference in differences:
                shorter = _shortened(open_side, transports[number], script, difference) if shorten else ""
                findings.differences.append(f"seed {seed}, {transports[number]}, {difference}\n  {shorter}")
    for number in list(driven):
        end(number)
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


def _shortened(
    open_side: Callable[[str], Side], transport: str, script: Script, difference: Difference, tries: int = 120
) -> str:
    """Returns the shortest script that still shows a difference: first that of the sequence and its ancestors, then
    without one item after the other."""
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
        side.session.close()
