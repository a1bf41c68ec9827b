"""A session without a daemon: the table of a worker in this process, behind the bytes of an inline step, with the
threads of a slow lane.

Knows nothing about: models, what is right.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from maskd import _shm, backends
from maskd.backends.auto import AutoBackend
from maskd.backends.base import Backend
from maskd.backends.gate import GatedFill, GatedGrammar
from maskd.client import Grammar
from maskd.grammar import GrammarSpec
from maskd.ipc.marker import Marker
from maskd.sequences import HeldGrammar, SequenceTable
from maskd.shm import layout as lay
from maskd.shm.cells import Reply, pack_items
from maskd.step import Item
from maskd.vocabulary import Vocabulary
from maskd.worker.session import InlineSession
from maskd.worker.slow_lane import SlowLane

__all__ = ["TableSession"]

_NAMES = ("llguidance", "xgrammar")
_ALWAYS_SLOW_SECONDS = 1e-3
"""Below it every grammar starts in the lane, as it does in a daemon whose jail timed it."""


@functools.cache
def _lane() -> tuple[Marker, SlowLane]:
    marker = Marker()
    return marker, SlowLane(marker)


class TableSession:
    """What the oracle needs of ``client.Session``."""

    transport = "table"

    def __init__(self, vocabulary: Vocabulary, row_seconds: float, *, row_capacity: int) -> None:
        marker, lane = _lane()
        self._vocabulary, self._slow = vocabulary, row_seconds < _ALWAYS_SLOW_SECONDS
        self._table = SequenceTable(
            len(vocabulary.tokens),
            vocabulary.vocab_size,
            vocabulary.stop_token_ids,
            64,
            marker.slots[0],
            1,
            lane,
            row_seconds,
        )
        self._layout = lay.Layout(vocabulary.vocab_size, 64, row_capacity, 4096)
        self._session = InlineSession(1, vocabulary, self._layout, self._table, marker)
        self._backends: dict[str, Backend] = {name: backends.load(name)(vocabulary, threads=1) for name in _NAMES}
        self._fills = {id(one): GatedFill(one) for one in self._backends.values()}  # type: ignore[arg-type]
        self._ids = itertools.count(1)

    def create_grammar(self, spec: GrammarSpec, *, timeout_seconds: float = 0) -> Grammar:
        """Compiles ``spec`` here. Raises GrammarError."""
        auto = AutoBackend(list(self._backends.values()))
        held, backend = self._held(spec, auto if spec.backend == "auto" else self._backends[spec.backend])
        alternate = ""
        if spec.when_slow == "switch":
            (alternate,) = set(_NAMES) - {backend}
            other, _ = self._held(spec, self._backends[alternate])
            held = held.with_alternate(other)
        self._table.grammars[held.grammar_id] = held
        return Grammar(held.grammar_id, held.grammar.report, 0.0, False, alternate)

    def _held(self, spec: GrammarSpec, compiler: Backend) -> tuple[HeldGrammar, str]:
        grammar = compiler.compile(dataclasses.replace(spec, backend=compiler.name))
        backend = self._backends[grammar.report.backend]
        batch: object = backend
        if spec.reasoning is not None:
            forbidden = grammar.stop_token_ids.union(self._vocabulary.stop_token_ids)
            count, size = len(self._vocabulary.tokens), self._vocabulary.vocab_size
            grammar, batch = GatedGrammar(grammar, spec.reasoning, count, size, forbidden), self._fills[id(backend)]
        number = next(self._ids)
        return HeldGrammar.of(number, grammar, batch, slow=self._slow, when_slow=spec.when_slow), backend.name  # type: ignore[arg-type]

    def submit(self, items: Sequence[Item]) -> None:
        """Does the step."""
        step, tokens = self._session.completed + 1, sum(len(item.accept) + len(item.drafts) for item in items)
        rows = max((item.row + 1 + len(item.drafts) for item in items if item.row >= 0), default=0)
        cell = bytearray(lay.CELL_HEADER_BYTES + lay.ITEM.size * len(items))
        lay.STEPS_CELL.pack_into(cell, 0, step, len(items), tokens)
        cell += pack_items(cell, lay.CELL_HEADER_BYTES, items)
        head, block = self._session.step(bytes(cell), rows)
        layout, address = self._layout.cut(len(items), tokens, rows), np.frombuffer(head, dtype=np.uint8)
        read = _shm.read_reply(
            address.ctypes.data,
            layout.results_offset,
            layout.forced_offset,
            layout.item_capacity,
            layout.forced_capacity,
            step,
        )
        assert read is not None
        results, forced, duration_ns, failed = read
        stride = layout.row_stride_words
        self._reply = Reply(
            step,
            results,
            np.frombuffer(block, dtype=np.int32).reshape(rows, stride),
            np.frombuffer(forced, dtype=np.int32),
            duration_ns / 1e9,
            not failed,
        )

    def collect(self, *, timeout_seconds: float = 0) -> Reply:
        """Returns the answer to the last step."""
        return self._reply

    def close(self) -> None:
        """Frees it."""
        self._session.close()
