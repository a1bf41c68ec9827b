"""The byte layout: Python, the C header and the golden fixtures say the same."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskd
from maskd.errors import CapacityError, ProtocolError
from maskd.sequences.rows import RowFlag
from maskd.shm import layout as lay
from maskd.shm.layout import Layout
from maskd.step import Action, ItemFlag, LateIndex, ResultFlag, Status

NATIVE = Path(maskd.__file__).with_name("native")
GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUT = Layout(vocab_size=131072, item_capacity=24, row_capacity=40, token_capacity=16384)
FINGERPRINT = bytes(range(32))

STRUCTS = {
    "maskd_steps_header": (
        lay.STEPS_HEADER,
        "magic layout_major layout_minor header_bytes total_bytes cell_count item_capacity token_capacity zero0 "
        "cells_offset cell_stride_bytes items_offset tokens_offset session_id",
    ),
    "maskd_rows_header": (
        lay.ROWS_HEADER,
        "magic layout_major layout_minor header_bytes total_bytes cell_count item_capacity row_capacity "
        "forced_capacity cells_offset cell_stride_bytes results_offset forced_offset rows_offset row_stride_bytes "
        "vocab_size token_capacity session_id worker_epoch fingerprint",
    ),
    "maskd_steps_cell": (lay.STEPS_CELL, "step item_count token_count"),
    "maskd_rows_cell": (lay.ROWS_CELL, "lock step item_count forced_count duration_ns"),
    "maskd_item": (
        lay.ITEM,
        "sequence_id grammar_id source_sequence_id action flags rollback row accept_offset accept_count draft_count",
    ),
    "maskd_result": (
        lay.RESULT,
        "sequence_id status flags row row_count accepted_count position forced_offset forced_count "
        "detail_index detail_value",
    ),
    "maskd_hello": (lay.HELLO, "magic layout_major layout_minor zero0 token"),
    "maskd_grant": (lay.GRANT, "magic status layout_major layout_minor session_id rows_bytes steps_bytes"),
}
WORDS = {
    ("maskd_steps_header", "published_step"): lay.PUBLISHED_STEP_OFFSET,
    ("maskd_steps_header", "engine_processor"): lay.ENGINE_PROCESSOR_OFFSET,
    ("maskd_steps_header", "engine_need_wakeup"): lay.ENGINE_NEED_WAKEUP_OFFSET,
    ("maskd_rows_header", "state"): lay.STATE_OFFSET,
    ("maskd_rows_header", "heartbeat"): lay.HEARTBEAT_OFFSET,
    ("maskd_rows_header", "completed_step"): lay.COMPLETED_STEP_OFFSET,
    ("maskd_rows_header", "worker_need_wakeup"): lay.WORKER_NEED_WAKEUP_OFFSET,
}
CONSTANTS = {
    "MASKD_LAYOUT_MAJOR": lay.MAJOR,
    "MASKD_LAYOUT_MINOR": lay.MINOR,
    "MASKD_MAGIC_STEPS": lay.MAGIC_STEPS,
    "MASKD_MAGIC_ROWS": lay.MAGIC_ROWS,
    "MASKD_MAGIC_HELLO": lay.MAGIC_HELLO,
    "MASKD_MAGIC_GRANT": lay.MAGIC_GRANT,
    **{f"MASKD_{action.name}": int(action) for action in Action},
    **{f"MASKD_{status.name}": int(status) for status in Status},
    **{f"MASKD_{flag.name}": int(flag) for flag in (*ItemFlag, *ResultFlag)},
    **{f"MASKD_LATE_{index.name}": int(index) for index in LateIndex},
    **{f"ROW_{flag.name}": int(flag) for flag in RowFlag},
}
SIZES = {
    "maskd_item": lay.ITEM.size,
    "maskd_result": lay.RESULT.size,
    "maskd_hello": lay.HELLO.size,
    "maskd_grant": lay.GRANT.size,
    "maskd_steps_cell": lay.CELL_HEADER_BYTES,
    "maskd_rows_cell": lay.CELL_HEADER_BYTES,
}


def offsets_of(packed: struct.Struct, names: str) -> dict[str, tuple[int, int]]:
    """(offset, size) of every field of a little-endian struct, which has no hidden padding."""
    out, at, codes = {}, 0, []
    count = ""
    for char in packed.format[1:]:
        if char.isdigit():
            count += char
            continue
        codes += [count + char] if char in "sx" else [char] * int(count or 1)
        count = ""
    fields = iter(names.split())
    for code in codes:
        size = struct.calcsize("<" + code)
        if not code.endswith("x"):
            out[next(fields)] = (at, size)
        at += size
    assert list(fields) == []
    assert at == packed.size
    return out


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C compiler makes of the header: name -> number."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = []
    for name, (packed, fields) in STRUCTS.items():
        lines.append(f'P("{name}", sizeof({name}));')
        for field in offsets_of(packed, fields):
            lines.append(f'P("{name}.{field}", offsetof({name}, {field}));')
            lines.append(f'P("{name}.{field}#", sizeof((({name} *)0)->{field}));')
    lines += [f'P("{name}.{field}", offsetof({name}, {field}));' for name, field in WORDS]
    lines += [f'P("{name}", {name});' for name in CONSTANTS]
    directory = tmp_path_factory.mktemp("layout")
    source = directory / "offsets.c"
    source.write_text(
        '#include "maskd_shm.h"\n#include "rows.h"\n#include <stdio.h>\n'
        '#define P(name, value) printf("%s %lld\\n", name, (long long)(value))\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    program = directory / "offsets"
    subprocess.run(
        [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", str(source), "-o", str(program)],
        check=True,
    )
    out = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_layout_when_compiled_as_c_then_every_field_stands_where_python_has_it(
    name: str, compiled: dict[str, int]
) -> None:
    """Offset and size of every field are the same in maskd_shm.h and in layout.py."""
    packed, fields = STRUCTS[name]
    python = offsets_of(packed, fields)
    c = {field: (compiled[f"{name}.{field}"], compiled[f"{name}.{field}#"]) for field in python}
    assert python == c


def test_layout_when_compiled_as_c_then_words_sizes_and_numbers_agree(compiled: dict[str, int]) -> None:
    """Hot words, sizes, magics, versions, actions, statuses and flags are the same in C and Python."""
    assert {f"{name}.{field}": offset for (name, field), offset in WORDS.items()} == {
        f"{n}.{f}": compiled[f"{n}.{f}"] for n, f in WORDS
    }
    assert {name: compiled[name] for name in CONSTANTS} == CONSTANTS
    assert {name: compiled[name] for name in SIZES} == SIZES
    assert compiled["maskd_steps_header"] == compiled["maskd_rows_header"] <= lay.PAGE_BYTES
    assert compiled["maskd_hello.token#"] == lay.TOKEN_BYTES


def test_row_flags_when_a_result_passes_them_on_then_they_are_the_flags_so_named() -> None:
    """The table copies these bits from rows to results."""
    assert {flag.name: int(flag) for flag in RowFlag if flag != RowFlag.EMPTY} == {
        flag.name: int(flag) for flag in ResultFlag if flag != ResultFlag.TERMINATED
    }


@pytest.mark.parametrize(
    ("dtype", "packed", "name"),
    [(lay.ITEM_DTYPE, lay.ITEM, "maskd_item"), (lay.RESULT_DTYPE, lay.RESULT, "maskd_result")],
)
def test_dtype_when_compared_with_its_struct_then_the_fields_are_the_same(
    dtype: np.dtype, packed: struct.Struct, name: str
) -> None:
    """The numpy record of items and results is the packed struct."""
    expected = offsets_of(packed, STRUCTS[name][1])
    assert dtype.itemsize == packed.size
    assert {field: (dtype.fields[field][1], dtype.fields[field][0].itemsize) for field in expected} == expected


def golden() -> dict[str, bytes]:
    """The fixtures as this version packs them."""
    rows = LAYOUT.pack_rows_header(7, 0x0123456789ABCDEF, FINGERPRINT)
    return {
        "steps_header": LAYOUT.pack_steps_header(7),
        "rows_header": struct.pack("<Q", lay.MAGIC_ROWS) + rows[8:],
        "item": lay.ITEM.pack(0x1122334455667788, 2, 3, Action.FORK, 1, -1, 5, 6, 7, 8),
        "result": lay.RESULT.pack(0x1122334455667788, Status.TOKEN_REJECTED, 2, -1, 4, 5, 6, 7, 8, 9, -10),
        "hello": lay.HELLO.pack(lay.MAGIC_HELLO, lay.MAJOR, lay.MINOR, 0, bytes(range(16))),
        "grant": lay.GRANT.pack(lay.MAGIC_GRANT, 0, lay.MAJOR, lay.MINOR, 7, LAYOUT.rows_bytes, LAYOUT.steps_bytes),
    }


@pytest.mark.parametrize("name", ["steps_header", "rows_header", "item", "result", "hello", "grant"])
def test_layout_when_packed_then_the_golden_bytes_come_out(name: str) -> None:
    """Clients that are out there read these bytes; a change of them is a change of the layout version."""
    assert golden()[name] == (GOLDEN / f"{name}.bin").read_bytes()


def test_rows_header_when_unpacked_then_the_layout_comes_back() -> None:
    """unpack_rows_header is the inverse of pack_rows_header, once the magic is there."""
    header = (GOLDEN / "rows_header.bin").read_bytes()
    assert Layout.unpack_rows_header(header, LAYOUT.rows_bytes) == (LAYOUT, 7, 0x0123456789ABCDEF, FINGERPRINT)


def test_rows_header_when_packed_then_its_magic_is_missing() -> None:
    """An engine that maps the segment early reads a header that is not one yet."""
    assert LAYOUT.pack_rows_header(7, 1, FINGERPRINT)[:8] == bytes(8)


@pytest.mark.parametrize(
    ("at", "field", "error"),
    [
        (0, struct.pack("<Q", 0xAB), "magic 0xab, layout 1.2; this client reads layout 1.2"),
        (8, struct.pack("<HH", 9, 5), "magic 0x3153574f524b534d, layout 9.5; this client reads layout 1.2"),
        (16, bytes([1]), "does not add up"),
    ],
)
def test_rows_header_when_it_is_of_another_layout_then_the_error_names_both(at: int, field: bytes, error: str) -> None:
    header = bytearray((GOLDEN / "rows_header.bin").read_bytes())
    header[at : at + len(field)] = field
    with pytest.raises(ProtocolError, match=error):
        Layout.unpack_rows_header(bytes(header), LAYOUT.rows_bytes)


def test_rows_header_when_the_segment_is_too_short_or_another_size_then_refused() -> None:
    header = (GOLDEN / "rows_header.bin").read_bytes()
    with pytest.raises(ProtocolError, match="rows segment of 9 bytes is shorter than its header"):
        Layout.unpack_rows_header(header[: lay.ROWS_HEADER.size - 1], 9)
    with pytest.raises(ProtocolError, match="does not add up"):
        Layout.unpack_rows_header(header, LAYOUT.rows_bytes + 1)


def test_rows_header_when_only_the_minor_version_differs_then_it_is_read() -> None:
    header = bytearray((GOLDEN / "rows_header.bin").read_bytes())
    header[10] += 1
    assert Layout.unpack_rows_header(bytes(header), LAYOUT.rows_bytes)[0] == LAYOUT


@given(st.integers(0, lay.ROWS_HEADER.size - 1), st.integers(1, 255))
def test_rows_header_when_a_byte_is_wrong_then_it_is_refused_or_only_names_differ(at: int, change: int) -> None:
    """No damaged header gives offsets that do not follow from its capacities."""
    header = bytearray((GOLDEN / "rows_header.bin").read_bytes())
    header[at] ^= change
    try:
        layout, *_ = Layout.unpack_rows_header(bytes(header), LAYOUT.rows_bytes)
    except (ProtocolError, CapacityError):
        return
    assert layout == LAYOUT or layout.rows_bytes == LAYOUT.rows_bytes


@given(
    st.integers(1, 300_000), st.integers(1, lay.MAX_ITEMS), st.integers(1, lay.MAX_ROWS), st.integers(1, lay.MAX_TOKENS)
)
def test_layout_when_capacities_are_allowed_then_parts_do_not_overlap(
    vocab_size: int, items: int, rows: int, tokens: int
) -> None:
    """Every part ends before the next one starts, rows start on pages, and all sums fit in 63 bits."""
    layout = Layout(vocab_size, items, rows, tokens)
    assert layout.items_offset + 64 * items <= layout.tokens_offset
    assert layout.tokens_offset + 4 * tokens <= layout.steps_cell_stride
    assert lay.PAGE_BYTES + 2 * layout.steps_cell_stride == layout.steps_bytes < 1 << 63
    assert layout.results_offset + 64 * items <= layout.forced_offset
    assert layout.forced_offset + 4 * layout.forced_capacity <= layout.rows_offset
    assert layout.rows_offset % lay.PAGE_BYTES == 0
    assert layout.rows_offset - layout.forced_offset - 4 * layout.forced_capacity < lay.PAGE_BYTES
    assert layout.rows_offset + layout.row_stride_bytes * rows <= layout.rows_cell_stride
    assert layout.row_stride_bytes * 8 >= vocab_size
    assert lay.PAGE_BYTES + 2 * layout.rows_cell_stride == layout.rows_bytes < 1 << 63


@pytest.mark.parametrize("name", ["item_capacity", "row_capacity", "token_capacity"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40])
def test_layout_when_a_capacity_is_out_of_range_then_the_error_names_it(name: str, value: int) -> None:
    """A capacity that would overflow a segment is a CapacityError with its name."""
    capacities = {"item_capacity": 1, "row_capacity": 1, "token_capacity": 1, name: value}
    with pytest.raises(CapacityError) as caught:
        Layout(1000, **capacities)
    assert caught.value.metadata["limit"] == name


@pytest.mark.parametrize(
    ("name", "limit"), [("item_capacity", 65_536), ("row_capacity", 65_536), ("token_capacity", 4_194_304)]
)
def test_layout_when_a_capacity_is_at_its_limit_then_it_is_taken_and_one_more_is_not(name: str, limit: int) -> None:
    capacities = {"item_capacity": 1, "row_capacity": 1, "token_capacity": 1, name: limit}
    assert getattr(Layout(1000, **capacities), name) == limit
    with pytest.raises(CapacityError, match=f"{name} is {limit + 1}; give 1 to {limit}"):
        Layout(1000, **{**capacities, name: limit + 1})


def test_cut_when_a_step_fits_then_its_cells_have_room_for_it_and_no_more() -> None:
    """A layout has at least one of each, also for a step without any."""
    assert LAYOUT.cut(3, 5, 7) == Layout(131072, 3, 7, 5, LAYOUT.forced_capacity)
    assert LAYOUT.cut(24, 16384, 40) == LAYOUT
    assert LAYOUT.cut(0, 0, 0) == Layout(131072, 1, 1, 1, LAYOUT.forced_capacity)


@pytest.mark.parametrize(
    ("counts", "limit", "error"),
    [
        ((25, 0, 0), "item_capacity", "25 items in a step; the session takes 24"),
        ((0, 16385, 0), "token_capacity", "16385 tokens in a step; the session takes 16384"),
        ((0, 0, 41), "row_capacity", "41 rows in a step; the session takes 40"),
    ],
)
def test_cut_when_a_step_does_not_fit_then_the_error_names_what(
    counts: tuple[int, int, int], limit: str, error: str
) -> None:
    with pytest.raises(CapacityError, match=error) as caught:
        LAYOUT.cut(*counts)
    assert caught.value.metadata["limit"] == limit
