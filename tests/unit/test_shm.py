"""The C extension: bounded reading of foreign bytes, results, rows, ordering words."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskd import _shm
from maskd.bitmask import row_of
from maskd.sequences import ItemResult, item_of
from maskd.sequences.rows import RowFlag
from maskd.shm import layout as lay
from maskd.shm.layout import ITEM_DTYPE, RESULT_DTYPE, Layout
from maskd.step import NO_ROW, Action, ItemField, ItemFlag, Status

LAYOUT = Layout(vocab_size=100, item_capacity=4, row_capacity=6, token_capacity=16)


class Cell:
    """A steps cell in ordinary memory, with room around it that must not be read as items."""

    def __init__(self, raw: bytes = b"") -> None:
        self.bytes: NDArray[np.uint8] = np.zeros(LAYOUT.steps_cell_stride, dtype=np.uint8)
        self.bytes[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)

    @property
    def items(self) -> NDArray[np.void]:
        return self.bytes[LAYOUT.items_offset : LAYOUT.tokens_offset].view(ITEM_DTYPE)

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self.bytes[LAYOUT.tokens_offset :][: 4 * LAYOUT.token_capacity].view(np.int32)

    def head(self, step: int, item_count: int, token_count: int) -> None:
        lay.STEPS_CELL.pack_into(self.bytes, 0, step, item_count, token_count)

    def read(self, step: int = 1) -> list[_shm.CheckedItem] | None:
        batch = self.read_batch(step)
        return None if batch is None else [item_of(batch, at) for at in range(len(batch.ids))]

    def read_batch(self, step: int = 1) -> _shm.Batch | None:
        return _shm.read_step(
            self.bytes.ctypes.data,
            LAYOUT.items_offset,
            LAYOUT.tokens_offset,
            LAYOUT.item_capacity,
            LAYOUT.token_capacity,
            LAYOUT.vocab_size,
            LAYOUT.row_capacity,
            step,
        )


def one(**fields: object) -> Cell:
    """A cell with one good item, but for ``fields``."""
    cell = Cell()
    item = cell.items[0]
    good = {"sequence_id": 1, "row": NO_ROW, "accept_offset": 1, "accept_count": 2, "draft_count": 0}
    for name, value in {**good, **fields}.items():
        item[name] = value
    cell.tokens[:] = np.arange(LAYOUT.token_capacity) + 10
    cell.head(1, 1, 8)
    return cell


def check(items: list[_shm.CheckedItem] | None) -> None:
    """What the table relies on, whatever the bytes were."""
    if items is None:
        return
    assert len(items) <= LAYOUT.item_capacity
    taken: set[int] = set()
    for item in items:
        assert item.status in (Status.OK, Status.INVALID_ITEM, Status.TOKEN_OUT_OF_RANGE)
        tokens = (*item.accept, *item.drafts)
        assert len(tokens) <= LAYOUT.token_capacity
        if item.status == Status.INVALID_ITEM:
            assert item.detail_index in list(ItemField)
            continue
        rows = set(range(item.row, item.row + 1 + len(item.drafts))) if item.row >= 0 else set()
        assert rows <= set(range(LAYOUT.row_capacity))
        assert not rows & taken
        taken |= rows
        bad = [i for i, token in enumerate(tokens) if not 0 <= token < LAYOUT.vocab_size]
        if item.status == Status.TOKEN_OUT_OF_RANGE:
            assert (item.detail_index, item.detail_value) == (bad[0], tokens[bad[0]])
            continue
        assert not bad
        assert item.sequence_id > 0
        assert item.action in list(Action)
        assert item.flags in (0, ItemFlag.WANT_FORCED)
        assert item.rollback >= -1
        assert item.row >= -1
        assert not item.drafts or item.row >= 0


@given(st.binary(max_size=512))
def test_read_step_when_the_cell_holds_any_bytes_then_none_or_items_within_bounds(raw: bytes) -> None:
    """Random bytes never crash the worker, and what passes is within every bound."""
    cell = Cell(raw)
    check(cell.read(int.from_bytes(raw[:8], "little")))


small = st.integers(-3, 20)
WILD = st.one_of(small, st.sampled_from([1 << 15, (1 << 31) - 1, -(1 << 31)]))
COUNT = st.one_of(st.integers(0, 9), st.sampled_from([1 << 31, (1 << 32) - 1]))


@given(
    st.lists(st.tuples(WILD, st.integers(0, 5), st.integers(0, 3), WILD, WILD, COUNT, COUNT, COUNT), max_size=4),
    st.lists(small, max_size=16),
)
def test_read_step_when_items_are_half_right_then_none_or_items_within_bounds(
    items: list[tuple[int, ...]], tokens: list[int]
) -> None:
    """Plausible cells with wild numbers in them pass only within bounds."""
    cell = Cell()
    cell.tokens[: len(tokens)] = tokens
    for record, (sequence_id, action, flags, rollback, row, offset, accept, drafts) in zip(
        cell.items, items, strict=False
    ):
        for name, value in (
            ("sequence_id", sequence_id),
            ("action", action),
            ("flags", flags),
            ("rollback", rollback),
            ("row", row),
            ("accept_offset", offset),
            ("accept_count", accept),
            ("draft_count", drafts),
        ):
            record[name] = value
    cell.head(1, len(items), len(tokens))
    out = cell.read()
    assert out is not None
    check(out)


def test_read_step_when_the_item_is_good_then_its_fields_come_out() -> None:
    """All twelve fields, in order and by name; tokens cut at the right places."""
    cell = one(action=Action.FORK, flags=1, grammar_id=5, source_sequence_id=6, rollback=-1, row=2, draft_count=3)
    items = cell.read()
    assert items == [(0, 1, Action.FORK, 1, 5, 6, -1, 2, (11, 12), (13, 14, 15), -1, 0)]
    item = items[0]
    by_name = {
        "status": Status.OK, "sequence_id": 1, "action": Action.FORK, "flags": ItemFlag.WANT_FORCED, "grammar_id": 5,
        "source_sequence_id": 6, "rollback": -1, "row": 2, "accept": (11, 12), "drafts": (13, 14, 15),
        "detail_index": -1, "detail_value": 0,
    }  # fmt: skip
    assert {name: getattr(item, name) for name in by_name} == by_name


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sequence_id": 0}, ItemField.SEQUENCE_ID),
        ({"sequence_id": -5}, ItemField.SEQUENCE_ID),
        ({"action": 4}, ItemField.ACTION),
        ({"flags": 2}, ItemField.FLAGS),
        ({"rollback": -2}, ItemField.ROLLBACK),
        ({"row": -2}, ItemField.ROW),
        ({"row": 6}, ItemField.ROW),
        ({"row": 4, "draft_count": 2}, ItemField.ROW),
        ({"row": 0, "draft_count": 1, "accept_count": (1 << 32) - 1}, ItemField.TOKENS),
        ({"draft_count": 1}, ItemField.ROW),
        ({"accept_count": 8}, ItemField.TOKENS),
        ({"accept_offset": (1 << 32) - 1}, ItemField.TOKENS),
        ({"zero": b"\0" * 15 + b"\1"}, ItemField.ZERO),
    ],
)
def test_read_step_when_a_field_is_bad_then_the_item_names_it(fields: dict[str, object], field: ItemField) -> None:
    """INVALID_ITEM carries the number of the field, and no tokens."""
    items = one(**fields).read()
    assert items is not None
    item = items[0]
    assert (item.status, item.accept, item.drafts, item.detail_index) == (Status.INVALID_ITEM, (), (), field)


@pytest.mark.parametrize("token", [-1, 100, (1 << 31) - 1, -(1 << 31)])
def test_read_step_when_a_token_is_out_of_range_then_index_and_id_are_told(token: int) -> None:
    """Draft tokens count on from the accepted ones; the rows of the item are known, so that they can be closed."""
    cell = one(row=0, draft_count=1)
    cell.tokens[3] = token
    items = cell.read()
    assert items is not None
    item = items[0]
    assert (item.status, item.row, item.accept, item.drafts) == (Status.TOKEN_OUT_OF_RANGE, 0, (11, 12), (token,))
    assert (item.detail_index, item.detail_value) == (2, token)


def test_read_step_when_two_items_want_a_row_then_the_second_is_refused() -> None:
    """Rows have one owner in a step; the first item keeps it."""
    cell = one(row=0, draft_count=2)
    cell.items[1] = cell.items[0]
    cell.items[1]["sequence_id"], cell.items[1]["row"], cell.items[1]["draft_count"] = 2, 2, 0
    cell.head(1, 2, 8)
    items = cell.read()
    assert items is not None
    ends = [(item.status, item.detail_index) for item in items]
    assert ends == [(Status.OK, -1), (Status.INVALID_ITEM, ItemField.ROW_TAKEN)]


@pytest.mark.parametrize(
    "head", [(2, 1, 0), (0, 1, 0), (1, 5, 0), (1, 1, 17), (1, (1 << 32) - 1, 0), (1, 0, (1 << 32) - 1)]
)
def test_read_step_when_the_cell_lies_about_itself_then_none(head: tuple[int, int, int]) -> None:
    """Another step's number, or counts beyond the capacity, end the session: there is nothing to answer."""
    cell = Cell()
    cell.head(*head)
    assert cell.read() is None


def test_read_step_when_items_are_plain_then_lists_and_the_others_in_full() -> None:
    """One token, one row, a sequence named once: that is plain. Nothing else is."""
    cell = one(sequence_id=7, row=3, accept_count=1)
    cell.items[1:4] = cell.items[0]
    cell.items["sequence_id"][:4], cell.items["row"][:4] = (7, 8, 9, 8), (3, 1, 0, 2)
    cell.items["rollback"][2] = 1
    cell.items["accept_offset"][:4] = (0, 5, 0, 5)
    cell.head(1, 4, 8)
    assert cell.read_batch() == (
        [7, 0, 0, 0],
        [10, 0, 0, 0],
        [3, 0, 0, 0],
        {
            1: (0, 8, 0, 0, 0, 0, 0, 1, (15,), (), -1, 0),
            2: (0, 9, 0, 0, 0, 0, 1, 0, (10,), (), -1, 0),
            3: (0, 8, 0, 0, 0, 0, 0, 2, (15,), (), -1, 0),
        },
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"action": 1},
        {"flags": 1},
        {"rollback": -1},
        {"accept_count": 0},
        {"accept_count": 2},
        {"draft_count": 1},
        {"row": NO_ROW},
        {"row": 6},
    ],
)
def test_read_step_when_an_item_is_not_plain_then_it_comes_in_full(fields: dict[str, object]) -> None:
    """Each condition alone."""
    plain = {"row": 0, "accept_count": 1}
    good, other = one(**plain).read_batch(), one(**{**plain, **fields}).read_batch()
    assert good == ([1], [11], [0], {})
    assert other is not None
    assert (other.ids, other.tokens, other.rows, list(other.others)) == ([0], [0], [0], [0])


@given(st.lists(st.integers(1, 40), max_size=64), st.sampled_from([1, 1 << 32, 0x1_0000_0001]))
def test_read_step_when_sequences_are_named_twice_then_none_of_them_is_plain(numbers: list[int], factor: int) -> None:
    """Ids that fall together in the table of ids may cost the short way, never the answer."""
    layout = Layout(vocab_size=100, item_capacity=64, row_capacity=64, token_capacity=64)
    raw = np.zeros(layout.steps_cell_stride, dtype=np.uint8)
    items = raw[layout.items_offset : layout.tokens_offset].view(ITEM_DTYPE)[: len(numbers)]
    items["sequence_id"] = [number * factor for number in numbers]
    items["row"], items["accept_count"] = np.arange(len(numbers)), 1
    lay.STEPS_CELL.pack_into(raw, 0, 1, len(numbers), 1)
    batch = _shm.read_step(
        raw.ctypes.data,
        layout.items_offset,
        layout.tokens_offset,
        layout.item_capacity,
        layout.token_capacity,
        layout.vocab_size,
        layout.row_capacity,
        1,
    )
    assert batch is not None
    assert batch[0] == [number * factor if numbers.count(number) == 1 else 0 for number in numbers]
    assert set(batch[3]) == {at for at, number in enumerate(numbers) if numbers.count(number) > 1}


def test_read_step_when_all_ids_fall_on_one_slot_then_all_come_in_full() -> None:
    """Looking for an id is bounded: an engine cannot choose ids that make the worker search for long."""
    layout = Layout(vocab_size=100, item_capacity=256, row_capacity=256, token_capacity=64)
    raw = np.zeros(layout.steps_cell_stride, dtype=np.uint8)
    items = raw[layout.items_offset : layout.tokens_offset].view(ITEM_DTYPE)
    multiplier, slot_bits = 0x9E3779B97F4A7C15, 9
    inverse = pow(multiplier, -1, 1 << 64)
    same = (low * inverse % (1 << 64) for low in range(1 << 20))  # the upper half of id * multiplier is 0
    ids = [number for number in same if 0 < number < 1 << 63][: len(items)]
    assert {number * multiplier % (1 << 64) >> 32 & ((1 << slot_bits) - 1) for number in ids} == {0}
    items["sequence_id"], items["row"], items["accept_count"] = ids, np.arange(len(items)), 1
    lay.STEPS_CELL.pack_into(raw, 0, 1, len(items), 1)
    batch = _shm.read_step(
        raw.ctypes.data,
        layout.items_offset,
        layout.tokens_offset,
        layout.item_capacity,
        layout.token_capacity,
        layout.vocab_size,
        layout.row_capacity,
        1,
    )
    assert batch is not None
    assert [item_of(batch, at).sequence_id for at in range(len(items))] == ids
    assert len(batch.others) == len(items)


def results_cell(
    results: list[Any], ids: Sequence[int] = (), rows: Sequence[int] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.void], NDArray[np.int32]]:
    raw = np.zeros(LAYOUT.rows_offset, dtype=np.uint8)
    _shm.write_results(
        raw.ctypes.data,
        LAYOUT.results_offset,
        LAYOUT.forced_offset,
        LAYOUT.forced_capacity,
        9,
        123,
        list(ids),
        list(rows),
        results,
    )
    table = raw[LAYOUT.results_offset :][: RESULT_DTYPE.itemsize * len(results)].view(RESULT_DTYPE)
    return raw, table, raw[LAYOUT.forced_offset :][: 4 * LAYOUT.forced_capacity].view(np.int32)


i32 = st.integers(-(1 << 31), (1 << 31) - 1)
u32 = st.integers(0, (1 << 32) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
u16 = st.integers(0, (1 << 16) - 1)
RESULT = st.builds(ItemResult, i64, u16, u16, i32, u32, u32, u32, st.lists(i32, max_size=5).map(tuple), i32, i64)


@given(st.lists(RESULT, max_size=4))
def test_write_results_when_read_back_then_every_field_is_there(results: list[ItemResult]) -> None:
    """RESULT_DTYPE reads what write_results wrote, forced tokens included."""
    raw, table, forced = results_cell([*results])
    assert lay.ROWS_CELL.unpack_from(raw) == (0, 9, len(results), sum(len(r.forced) for r in results), 123)
    for record, result in zip(table, results, strict=True):
        for name in set(ItemResult._fields) - {"forced"}:
            assert record[name] == getattr(result, name), name
        at, count = record["forced_offset"], record["forced_count"]
        assert tuple(forced[at : at + count].tolist()) == result.forced
        assert not any(record["zero"].tobytes())


def test_write_results_when_a_result_is_a_position_then_it_is_written_out() -> None:
    """Nearly all results say the same: one token, one row, no flags."""
    full = (5, 0, 2, 1, 1, 1, 9, (4,), -1, 0)
    _, table, _ = results_cell([77, full, 3], [1 << 40, 0, 6], [3, 0, 2])
    fields = [(*r[:7], *r[8:11]) for r in table.tolist()]
    assert fields == [
        (1 << 40, 0, 0, 3, 1, 1, 77, 0, -1, 0),
        (5, 0, 2, 1, 1, 1, 9, 1, -1, 0),
        (6, 0, 0, 2, 1, 1, 3, 0, -1, 0),
    ]


def test_write_results_when_a_result_comes_with_the_flags_of_its_row_then_they_are_added() -> None:
    """A pair of a result and flags, whether the result is a position or in full."""
    _, table, _ = results_cell(
        [(77, 6), (ItemResult(5, flags=1, row=0, row_count=1, position=9), 2)], [1 << 40, 0], [3, 0]
    )
    fields = ["sequence_id", "flags", "row", "row_count", "accepted_count", "position", "detail_index"]
    assert table[fields].tolist() == [(1 << 40, 6, 3, 1, 1, 77, -1), (5, 3, 0, 1, 0, 9, -1)]


@pytest.mark.parametrize(
    ("result", "ids", "rows"), [(1, [], [0]), (1, [1], []), (-1, [1], [0]), (1, ["x"], [0]), (1, [1], ["x"])]
)
def test_write_results_when_a_position_stands_alone_then_it_raises(
    result: int, ids: list[int], rows: list[int]
) -> None:
    """Its id and its row must be there."""
    with pytest.raises((IndexError, TypeError, OverflowError, SystemError)):
        results_cell([result], ids, rows)


def test_write_results_when_forced_tokens_do_not_fit_then_they_are_cut() -> None:
    """Forced tokens are a hint: what does not fit is left out, and nothing is written behind their room."""
    most = LAYOUT.forced_capacity
    raw, table, forced = results_cell(
        [(1, 0, 0, 0, 1, 1, 1, (7,) * (most - 1), -1, 0), (2, 0, 0, 0, 1, 1, 1, (8, 9), -1, 0)]
    )
    assert table["forced_count"].tolist() == [most - 1, 1]
    assert forced[-1] == 8
    assert not raw[LAYOUT.forced_offset + 4 * most :].any()


@pytest.mark.parametrize(
    "bad",
    [
        [(1, 2, 3)],
        [((1, 2), 0)],
        [(ItemResult(1), "x")],
        [(1,) * 10],
        [("x", 0, 0, 0, 1, 1, 1, (), -1, 0)],
        [(1, 0, 0, 0, 1, 1, 1, ("x",), -1, 0)],
        (1,),
    ],
)
def test_write_results_when_a_result_is_malformed_then_it_raises(bad: object) -> None:
    """Our own mistakes are Python errors, never wild writes."""
    with pytest.raises((ValueError, TypeError, SystemError)):
        results_cell(bad)  # type: ignore[arg-type]


STOPS = (3, 64)


def finish(bits: NDArray[np.bool_], token_count: int) -> tuple[NDArray[np.int32], int]:
    row = row_of(np.flatnonzero(bits).tolist(), len(bits))
    block = np.stack([np.full_like(row, 0x55555555), row])
    stops = np.array([stop for stop in STOPS if stop < token_count], dtype=np.int32).tobytes()
    flags = _shm.finish_rows(block.ctypes.data, block.shape[1], token_count, [1], [stops])
    assert (block[0] == 0x55555555).all()
    return block[1], flags[0]


@given(
    st.integers(1, 200),
    st.integers(0, 70),
    st.sampled_from(["random", "ones", "zeros", "tail"]),
    st.randoms(use_true_random=False),
)
def test_finish_rows_when_compared_with_numpy_then_rows_and_flags_agree(
    token_count: int, padding: int, kind: str, random: object
) -> None:
    """Bits from token_count on are cleared; empty, accepting and all-allowed are told of what is left."""
    vocab_size = token_count + padding
    bits = np.zeros(vocab_size, dtype=bool)
    if kind == "ones":
        bits[:] = True
    elif kind == "random":
        bits[:] = [random.random() < 0.1 for _ in range(vocab_size)]  # type: ignore[attr-defined]
    elif kind == "tail":
        bits[token_count:] = True
    row, flags = finish(bits, token_count)
    expected = bits.copy()
    expected[token_count:] = False
    np.testing.assert_array_equal(row, row_of(np.flatnonzero(expected).tolist(), vocab_size))
    accepting = any(expected[stop] for stop in STOPS if stop < token_count)
    assert bool(flags & RowFlag.EMPTY) == (not expected.any())
    assert bool(flags & RowFlag.ACCEPTING) == accepting
    assert bool(flags & RowFlag.ALL_ALLOWED) == expected[:token_count].all()


@pytest.mark.parametrize("token_count", [1, 31, 32, 33, 63, 64, 65, 1023, 1024])
def test_finish_rows_when_all_bits_are_set_then_the_tail_is_cut_at_any_boundary(token_count: int) -> None:
    """On and off word boundaries, in a row with no padding and with a whole line of it."""
    for vocab_size in (token_count, token_count + 1024):
        row, flags = finish(np.ones(vocab_size, dtype=bool), token_count)
        assert np.unpackbits(row.view(np.uint8)).sum() == token_count
        assert RowFlag(flags) & (RowFlag.ALL_ALLOWED | RowFlag.EMPTY) == RowFlag.ALL_ALLOWED


@given(st.sets(st.integers(0, 299), max_size=3))
def test_only_token_when_compared_with_the_set_then_it_is_the_single_id(ids: set[int]) -> None:
    """The one allowed id, or -1 for none and for several."""
    row = row_of(ids, 300)
    assert _shm.only_token(row.ctypes.data, len(row)) == (next(iter(ids)) if len(ids) == 1 else -1)


def test_words_when_stored_then_they_load_back() -> None:
    """Plain ordering words, 32 and 64 bits."""
    word = np.zeros(2, dtype=np.uint64)
    _shm.store_u64(word.ctypes.data, (1 << 64) - 2)
    _shm.store_u32(word.ctypes.data + 8, (1 << 32) - 3)
    _shm.fence()
    assert (_shm.load_u64(word.ctypes.data), _shm.load_u32(word.ctypes.data + 8)) == ((1 << 64) - 2, (1 << 32) - 3)
    assert word.tolist() == [(1 << 64) - 2, (1 << 32) - 3]


def test_publish_when_the_peer_is_awake_then_it_does_not_ring() -> None:
    """The eventfd costs a system call: it is rung for a sleeping peer only."""
    words, fd = np.zeros(2, dtype=np.uint64), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert _shm.publish(words.ctypes.data, 5, words.ctypes.data + 8, fd) is False
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        words[1] = 1
        assert _shm.publish(words.ctypes.data, 6, words.ctypes.data + 8, fd) is True
        assert (os.eventfd_read(fd), words[0]) == (1, 6)
    finally:
        os.close(fd)


def test_publish_when_a_word_for_the_processor_is_given_then_a_ring_tells_it_and_silence_does_not() -> None:
    """Who sleeps hears where the ring came from, as 1 + its number; who is awake needs no move."""
    words, fd = np.zeros(3, dtype=np.uint64), os.eventfd(0, os.EFD_NONBLOCK)
    word, flag, processor = (words.ctypes.data + 8 * i for i in range(3))
    before = os.sched_getaffinity(0)
    try:
        _shm.publish(word, 1, flag, fd, processor)
        assert words[2] == 0
        words[1] = 1
        for only in before:
            os.sched_setaffinity(0, {only})
            _shm.publish(word, 2, flag, fd, processor)
            assert words[2] == 1 + only == 1 + _shm.processor()
    finally:
        os.sched_setaffinity(0, before)
        os.close(fd)


def test_publish_when_the_reader_of_a_pipe_has_left_then_that_is_no_error() -> None:
    """An engine that dies is found out by its lease, not by the ring."""
    words = np.array([0, 1], dtype=np.uint64)
    read, write = os.pipe2(os.O_NONBLOCK)
    os.close(read)
    assert _shm.publish(words.ctypes.data, 1, words.ctypes.data + 8, write) is True
    os.close(write)


def test_publish_when_the_eventfd_is_full_or_gone_then_full_is_fine_and_gone_is_an_error() -> None:
    """A saturated counter is a wake-up that waits already; a closed descriptor is a bug."""
    words, fd = np.array([0, 1], dtype=np.uint64), os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(fd, (1 << 64) - 2)
    assert _shm.publish(words.ctypes.data, 1, words.ctypes.data + 8, fd) is True
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _shm.publish(words.ctypes.data, 2, words.ctypes.data + 8, fd)
    assert words[0] == 2


def test_spin_when_a_word_reaches_its_target_then_its_index_comes_back() -> None:
    """The first word that is there wins; none in time is -1; bad arguments raise."""
    words = np.array([1, 5, 9], dtype=np.uint64)
    addresses = [words.ctypes.data + 8 * i for i in range(3)]
    assert _shm.spin(addresses, [2, 5, 9], 1_000_000) == 1
    assert _shm.spin(addresses, [2, 6, 10], 1000) == -1
    assert _shm.spin([], [], 1000) == -1
    with pytest.raises(ValueError, match="differ in length"):
        _shm.spin(addresses, [1], 1000)
    with pytest.raises(TypeError):
        _shm.spin(["x"], [1], 1000)  # type: ignore[list-item]


def test_spin_when_another_thread_stores_then_the_gil_was_free_for_it() -> None:
    """A spinning thread does not keep the thread that it waits for from running."""
    word = np.zeros(1, dtype=np.uint64)

    def later() -> None:
        time.sleep(0.02)
        _shm.store_u64(word.ctypes.data, 1)

    thread = threading.Thread(target=later)
    thread.start()
    found = next((i for i in (_shm.spin([word.ctypes.data], [1], 50_000_000) for _ in range(200)) if i >= 0), None)
    thread.join()
    assert found == 0
