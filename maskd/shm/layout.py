"""The byte layout of the two segments of a session: picture, offsets, sizes. Pure.

    steps segment (engine writes)                 rows segment (worker writes)
    +------------------------------+              +------------------------------------------+
    | header, one page             |              | header, one page                         |
    |   0x200 published_step       |              |   0x100 state   0x180 heartbeat          |
    |   0x280 engine_need_wakeup   |              |   0x200 completed_step                   |
    +------------------------------+              |   0x280 worker_need_wakeup               |
    | cell 0: step, counts         |              +------------------------------------------+
    |   items  64 B x capacity     |              | cell 0: lock, step, counts, duration     |
    |   tokens int32 x capacity    |              |   results 64 B x item capacity           |
    +------------------------------+              |   forced tokens int32 x capacity         |
    | cell 1                       |              |   rows, page-aligned: stride x capacity  |
    +------------------------------+              +------------------------------------------+
                                                  | cell 1                                   |
                                                  +------------------------------------------+

Step s uses cell s % 2 of both. The same layout for C stands in ``native/maskd_shm.h``; ``docs/shared-memory.md`` is the
normative text, and ``tests/unit/test_layout.py`` holds the three together.
Owns: numbers. Knows nothing about: descriptors, mappings, ordering.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from maskd.bitmask import row_stride_words
from maskd.errors import CapacityError, ProtocolError

__all__ = [
    "CELL_COUNT", "CELL_HEADER_BYTES", "GRANT", "HELLO", "ITEM", "ITEM_DTYPE", "MAGIC_GRANT", "MAGIC_HELLO",
    "MAGIC_ROWS", "MAGIC_STEPS", "MAJOR", "MINOR", "PAGE_BYTES", "RESULT", "RESULT_DTYPE", "ROWS_CELL", "ROWS_HEADER",
    "STEPS_CELL", "STEPS_HEADER", "Layout", "COMPLETED_STEP_OFFSET", "ENGINE_NEED_WAKEUP_OFFSET",
    "ENGINE_PROCESSOR_OFFSET", "HEARTBEAT_OFFSET", "PUBLISHED_STEP_OFFSET", "STATE_OFFSET", "TOKEN_BYTES",
    "WORKER_NEED_WAKEUP_OFFSET",
]  # fmt: skip

MAJOR, MINOR = 1, 2
PAGE_BYTES = 4096
CELL_COUNT = 2
CELL_HEADER_BYTES = 128
TOKEN_BYTES = 16
"""Bytes of the one-time token that opens a data socket."""

MAGIC_STEPS = int.from_bytes(b"MSKSTEP1", "little")
MAGIC_ROWS = int.from_bytes(b"MSKROWS1", "little")
MAGIC_HELLO = int.from_bytes(b"MSKHELO1", "little")
MAGIC_GRANT = int.from_bytes(b"MSKGRNT1", "little")

STEPS_HEADER = struct.Struct("<Q2HIQ4I4Qq")
"""magic, major, minor, header_bytes, total_bytes, cell_count, item_capacity, token_capacity, 0, cells_offset,
cell_stride_bytes, items_offset, tokens_offset, session_id"""
ROWS_HEADER = struct.Struct("<Q2HIQ4I2Q3QQ2IqQ32s")
"""magic, major, minor, header_bytes, total_bytes, cell_count, item_capacity, row_capacity, forced_capacity,
cells_offset, cell_stride_bytes, results_offset, forced_offset, rows_offset, row_stride_bytes, vocab_size,
token_capacity, session_id, worker_epoch, fingerprint"""
STEPS_CELL = struct.Struct("<QII")
"""step, item_count, token_count"""
ROWS_CELL = struct.Struct("<QQIIQ")
"""lock, step, item_count, forced_count, duration_ns"""
ITEM = struct.Struct("<qqqHHii3I16x")
"""sequence_id, grammar_id, source_sequence_id, action, flags, rollback, row, accept_offset, accept_count,
draft_count"""
RESULT = struct.Struct("<qHHi5Iiq16x")
"""sequence_id, status, flags, row, row_count, accepted_count, position, forced_offset, forced_count, detail_index,
detail_value"""
HELLO = struct.Struct("<Q2HI16s16x")
"""magic, major, minor, 0, token"""
GRANT = struct.Struct("<QI2Hq2Q24x")
"""magic, refusal (0 = granted), major, minor, session_id, rows_bytes, steps_bytes"""

ITEM_DTYPE = np.dtype(
    [
        ("sequence_id", "<i8"), ("grammar_id", "<i8"), ("source_sequence_id", "<i8"), ("action", "<u2"),
        ("flags", "<u2"), ("rollback", "<i4"), ("row", "<i4"), ("accept_offset", "<u4"), ("accept_count", "<u4"),
        ("draft_count", "<u4"), ("zero", "V16"),
    ]
)  # fmt: skip
RESULT_DTYPE = np.dtype(
    [
        ("sequence_id", "<i8"), ("status", "<u2"), ("flags", "<u2"), ("row", "<i4"), ("row_count", "<u4"),
        ("accepted_count", "<u4"), ("position", "<u4"), ("forced_offset", "<u4"), ("forced_count", "<u4"),
        ("detail_index", "<i4"), ("detail_value", "<i8"), ("zero", "V16"),
    ]
)  # fmt: skip

STATE_OFFSET = 0x100
HEARTBEAT_OFFSET = 0x180
PUBLISHED_STEP_OFFSET = COMPLETED_STEP_OFFSET = 0x200
ENGINE_PROCESSOR_OFFSET = 0x208
ENGINE_NEED_WAKEUP_OFFSET = WORKER_NEED_WAKEUP_OFFSET = 0x280

MAX_ITEMS = 1 << 16
MAX_ROWS = 1 << 16
MAX_TOKENS = 1 << 22


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


@dataclass(frozen=True)
class Layout:
    """Sizes and offsets of one session's segments, derived from four capacities.

    Attributes:
        vocab_size: width of the logits.
        item_capacity: items of one step.
        row_capacity: rows of one step.
        token_capacity: accepted and draft tokens of one step, all items together.
        forced_capacity: forced tokens of one reply.
    """

    vocab_size: int
    item_capacity: int
    row_capacity: int
    token_capacity: int
    forced_capacity: int = 1024

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("item_capacity", self.item_capacity, MAX_ITEMS),
            ("row_capacity", self.row_capacity, MAX_ROWS),
            ("token_capacity", self.token_capacity, MAX_TOKENS),
        ):
            if not 1 <= value <= limit:
                raise CapacityError(f"{name} is {value}; give 1 to {limit}", limit=name, value=value, maximum=limit)

    @property
    def row_stride_words(self) -> int:
        """int32 words from one row to the next."""
        return row_stride_words(self.vocab_size)

    @property
    def row_stride_bytes(self) -> int:
        """Bytes from one row to the next."""
        return 4 * self.row_stride_words

    def cut(self, item_count: int, token_count: int, row_count: int) -> Layout:
        """Returns the layout of cells that have room for one step and no more: what travels inside messages.

        Raises:
            CapacityError: the step does not fit the session.
        """
        for name, value, limit in (
            ("item_capacity", item_count, self.item_capacity),
            ("token_capacity", token_count, self.token_capacity),
            ("row_capacity", row_count, self.row_capacity),
        ):
            if value > limit:
                raise CapacityError(
                    f"{value} {name.partition('_')[0]}s in a step; the session takes {limit}", limit=name, value=limit
                )
        return Layout(self.vocab_size, max(1, item_count), max(1, row_count), max(1, token_count), self.forced_capacity)

    # Steps segment.
    @property
    def items_offset(self) -> int:
        """Of the items within a steps cell."""
        return CELL_HEADER_BYTES

    @property
    def tokens_offset(self) -> int:
        """Of the tokens within a steps cell."""
        return self.items_offset + ITEM.size * self.item_capacity

    @property
    def steps_cell_stride(self) -> int:
        """Bytes from one steps cell to the next."""
        return _align(self.tokens_offset + 4 * self.token_capacity, PAGE_BYTES)

    @property
    def steps_bytes(self) -> int:
        """Size of the steps segment."""
        return PAGE_BYTES + CELL_COUNT * self.steps_cell_stride

    # Rows segment.
    @property
    def results_offset(self) -> int:
        """Of the results within a rows cell."""
        return CELL_HEADER_BYTES

    @property
    def forced_offset(self) -> int:
        """Of the forced tokens within a rows cell."""
        return self.results_offset + RESULT.size * self.item_capacity

    @property
    def rows_offset(self) -> int:
        """Of the rows within a rows cell; whole pages, so that a GPU driver can register them."""
        return _align(self.forced_offset + 4 * self.forced_capacity, PAGE_BYTES)

    @property
    def rows_cell_stride(self) -> int:
        """Bytes from one rows cell to the next."""
        return _align(self.rows_offset + self.row_stride_bytes * self.row_capacity, PAGE_BYTES)

    @property
    def rows_bytes(self) -> int:
        """Size of the rows segment."""
        return PAGE_BYTES + CELL_COUNT * self.rows_cell_stride

    def pack_steps_header(self, session_id: int) -> bytes:
        """Returns the header of the steps segment, magic included."""
        return STEPS_HEADER.pack(
            MAGIC_STEPS, MAJOR, MINOR, PAGE_BYTES, self.steps_bytes, CELL_COUNT, self.item_capacity,
            self.token_capacity, 0, PAGE_BYTES, self.steps_cell_stride, self.items_offset, self.tokens_offset,
            session_id,
        )  # fmt: skip

    def pack_rows_header(self, session_id: int, worker_epoch: int, fingerprint: bytes) -> bytes:
        """Returns the header of the rows segment with magic 0; the magic is stored last, with release."""
        return ROWS_HEADER.pack(
            0, MAJOR, MINOR, PAGE_BYTES, self.rows_bytes, CELL_COUNT, self.item_capacity, self.row_capacity,
            self.forced_capacity, PAGE_BYTES, self.rows_cell_stride, self.results_offset, self.forced_offset,
            self.rows_offset, self.row_stride_bytes, self.vocab_size, self.token_capacity, session_id, worker_epoch,
            fingerprint,
        )  # fmt: skip

    @classmethod
    def unpack_rows_header(cls, header: bytes, segment_bytes: int) -> tuple[Layout, int, int, bytes]:
        """Reads the header of a rows segment: (layout, session_id, worker_epoch, fingerprint).

        Raises:
            ProtocolError: wrong magic or version, or numbers that do not fit each other or ``segment_bytes``.
        """
        if len(header) < ROWS_HEADER.size:
            raise ProtocolError(f"rows segment of {segment_bytes} bytes is shorter than its header")
        f = ROWS_HEADER.unpack_from(header)
        if f[0] != MAGIC_ROWS or f[1] != MAJOR:
            raise ProtocolError(
                f"rows segment has magic {f[0]:#x}, layout {f[1]}.{f[2]}; this client reads layout {MAJOR}.{MINOR}"
            )
        layout = cls(
            vocab_size=f[15], item_capacity=f[6], row_capacity=f[7], token_capacity=f[16], forced_capacity=f[8]
        )
        expected = layout.pack_rows_header(f[17], f[18], f[19])
        # behind the minor version, which may differ
        if expected[12:] != header[12 : ROWS_HEADER.size] or f[4] != segment_bytes:
            raise ProtocolError(f"rows segment of {segment_bytes} bytes has a header that does not add up")
        return layout, f[17], f[18], f[19]
