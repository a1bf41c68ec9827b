"""The ring between engine and worker, both ends in one process, in any order of events, against a model.

The model: steps are answered in the order in which they were published, each once, two under way at most; the reply to
a step stays as it is until the step after the next is served; whoever sleeps is woken, and whoever is awake is not.
"""

from __future__ import annotations

import contextlib
import os
import socket

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from maskd import _shm, backends
from maskd.bitmask import allowed_token_ids
from maskd.errors import ProtocolError, StepOrderError
from maskd.grammar import GrammarSpec
from maskd.ipc.marker import Marker
from maskd.sequences import HeldGrammar, SequenceTable
from maskd.shm import layout as lay
from maskd.shm.arena import Arena
from maskd.shm.cells import Reply
from maskd.step import Action, Item
from maskd.worker.shared_session import SharedSession
from tests.conftest import byte_vocabulary
from tests.fuzzing import budget

VOCABULARY = byte_vocabulary()
LETTERS = b"abcdefghij"
BACKEND = backends.load("llguidance")(VOCABULARY, threads=1)
GRAMMAR = BACKEND.compile(GrammarSpec("regex", f"({LETTERS.decode()}){{500}}"))
"""After n tokens exactly one is allowed, the letter number n modulo 10: a row tells which step it belongs to."""


class RingMachine(RuleBasedStateMachine):
    """Engine and worker take turns in any order."""

    @initialize(start=st.sampled_from([0, 1, 2**32 - 3, 2**32 - 2, 2**53 - 2, 2**63 - 9]), capacity=st.integers(1, 3))
    def begin(self, start: int, capacity: int) -> None:
        layout = lay.Layout(VOCABULARY.vocab_size, capacity, capacity, 8)
        self.marker = Marker()
        table = SequenceTable(
            len(VOCABULARY.tokens), VOCABULARY.vocab_size, VOCABULARY.stop_token_ids, 8, progress=self.marker.slots[0]
        )
        table.grammars[1] = HeldGrammar.of(1, GRAMMAR, None)
        self.worker = SharedSession(7, VOCABULARY, layout, table, 1, self.marker)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker.attach(theirs)
        self.engine = Arena(ours)
        self.capacity = capacity
        self.accepted = 0  # tokens of the one sequence that steps carry on
        self.positions: dict[int, int] = {}  # step: where the sequence stands after it
        self.kept: list[tuple[int, Reply]] = []
        self.worker_asleep = self.engine_asleep = False
        # As if ``start`` steps had been made: numbers have 64 bits, and nothing may happen where 32 or 53 end.
        self.worker.completed = self.engine.submitted = self.engine.collected = start
        _shm.store_u64(self.worker.published_word, start)
        _shm.store_u64(self.worker._completed_word, start)
        self.start = start

    @property
    def outstanding(self) -> int:
        return self.engine.submitted - self.engine.collected

    # -- the engine -------------------------------------------------------------------------------------------------

    @rule(plain=st.booleans())
    def submit(self, plain: bool) -> None:
        action = Action.ADVANCE if self.accepted else Action.OPEN
        item = Item(
            1,
            action,
            1,
            accept=(LETTERS[self.accepted % 10],),
            row=0 if plain else self.capacity - 1,
            want_forced=not plain,
        )
        if self.outstanding == 2:
            with pytest.raises(StepOrderError):
                self.engine.submit([item])
            return
        step = self.engine.submit([item])
        assert step == self.engine.submitted
        self.accepted += 1
        self.positions[step] = self.accepted
        assert self.rung(self.worker.doorbell_fd) == self.worker_asleep
        if self.worker_asleep:  # woken: it lowers its flag
            self.worker_asleep = False
            _shm.store_u32(self.worker.sleep_word, 0)

    @rule()
    def collect(self) -> None:
        if not self.outstanding:
            with pytest.raises(StepOrderError):
                self.engine.collect(timeout_seconds=0)
            return
        step = self.engine.collected + 1
        assert self.engine.is_done(step) == (self.worker.completed >= step)
        if not self.engine.is_done(step):
            return
        reply = self.engine.collect(timeout_seconds=0)
        self.check(step, reply)
        self.kept = [*self.kept, (step, reply)][-2:]

    @rule()
    def engine_sleeps(self) -> None:
        """Raises its flag, and looks once more: only if nothing is there would it sleep."""
        self.engine.ask_for_wakeup()
        self.engine_asleep = bool(self.outstanding) and not self.engine.is_done(self.engine.collected + 1)
        if not self.engine_asleep:
            _shm.store_u32(self.engine._need_wakeup, 0)

    # -- the worker -------------------------------------------------------------------------------------------------

    @rule()
    def serve(self) -> None:
        assert self.worker.has_work == (self.engine.submitted > self.worker.completed)
        if not self.worker.has_work:
            with pytest.raises(ProtocolError):
                # a spurious wake-up is answered by looking at ``has_work``; without that it is a broken contract
                self.worker.serve()
            return
        _shm.store_u32(self.worker.sleep_word, 0)
        self.worker_asleep = False
        self.worker.serve()
        assert self.rung(self.engine.reply_fd) == self.engine_asleep
        if self.engine_asleep:  # woken: it lowers its flag
            self.engine_asleep = False
            _shm.store_u32(self.engine._need_wakeup, 0)

    @rule()
    def worker_sleeps(self) -> None:
        _shm.store_u32(self.worker.sleep_word, 1)
        _shm.fence()
        self.worker_asleep = not self.worker.has_work
        if not self.worker_asleep:
            _shm.store_u32(self.worker.sleep_word, 0)

    @rule(which=st.booleans())
    def spurious_ring(self, which: bool) -> None:
        """From an engine that rings for nothing, or a bell that rings twice."""
        os.eventfd_write(self.worker.doorbell_fd, 3)
        assert self.rung(self.worker.doorbell_fd)

    @precondition(lambda self: self.worker.completed > self.start)
    @rule()
    def beat(self) -> None:
        self.worker.beat()

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check(self, step: int, reply: Reply) -> None:
        (result,) = reply.results
        position = self.positions[step]
        assert (reply.step, result.position, result.row_count) == (step, position, 1)
        assert allowed_token_ids(reply.rows[result.row]).tolist() == [LETTERS[position % 10]]

    @invariant()
    def nothing_is_lost_or_out_of_order(self) -> None:
        assert self.engine.collected <= self.worker.completed <= self.engine.submitted <= self.engine.collected + 2
        assert _shm.load_u64(self.engine._completed) == self.worker.completed
        assert _shm.load_u64(self.worker.published_word) == self.engine.submitted

    @invariant()
    def replies_stay_until_the_step_after_the_next_is_served(self) -> None:
        for step, reply in self.kept:
            if self.worker.completed < step + lay.CELL_COUNT:
                self.check(step, reply)

    @staticmethod
    def rung(fd: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(fd, 4096))
        return False

    def teardown(self) -> None:
        if hasattr(self, "worker"):
            self.kept.clear()
            self.engine.close()
            self.worker.close()
            self.marker.close()


TestRing = RingMachine.TestCase
TestRing.settings = settings(budget(60), stateful_step_count=40)


def test_ring_when_a_step_is_published_twice_or_too_far_ahead_then_protocol_error() -> None:
    """Three ahead, backwards, or another number in the cell: the worker reads nothing of it."""
    machine = RingMachine()
    machine.begin(0, 1)
    try:
        for published in (3, 2**32, 2**64 - 1):
            _shm.store_u64(machine.worker.published_word, published)
            with pytest.raises(ProtocolError):
                machine.worker.serve()
        _shm.store_u64(machine.worker.published_word, 1)
        with pytest.raises(ProtocolError):  # the cell holds no step yet
            machine.worker.serve()
        assert (
            np.frombuffer(machine.engine._rows.view, dtype=np.uint64, count=1, offset=lay.COMPLETED_STEP_OFFSET)[0] == 0
        )
    finally:
        machine.teardown()
