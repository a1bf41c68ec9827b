from typing import TypeAlias

def load_u64(address: int, /) -> int: ...
def load_u32(address: int, /) -> int: ...
def store_u64(address: int, value: int, /) -> None: ...
def store_u32(address: int, value: int, /) -> None: ...
def fence() -> None: ...
def publish(word: int, value: int, peer_flag: int, fd: int, processor_word: int = 0, /) -> bool: ...
def processor() -> int: ...
def spin(words: list[int], targets: list[int], nanoseconds: int, /) -> int: ...

ItemTuple: TypeAlias = tuple[int, int, int, int, int, int, int, int, tuple[int, ...], tuple[int, ...], int, int]
ResultTuple: TypeAlias = tuple[int, int, int, int, int, int, int, tuple[int, ...], int, int]
Batch: TypeAlias = tuple[list[int], list[int], list[int], dict[int, ItemTuple]]

def read_step(
    cell: int,
    items_offset: int,
    tokens_offset: int,
    item_capacity: int,
    token_capacity: int,
    vocab_size: int,
    row_capacity: int,
    step: int,
    /,
) -> Batch | None: ...
def write_results(
    cell: int,
    results_offset: int,
    forced_offset: int,
    forced_capacity: int,
    step: int,
    duration_ns: int,
    ids: list[int],
    rows: list[int],
    results: list[int | ResultTuple],
    /,
) -> None: ...
def read_reply(
    cell: int, results_offset: int, forced_offset: int, item_capacity: int, forced_capacity: int, step: int, /
) -> tuple[bytes, bytes, int, int] | None: ...
def finish_rows(rows: int, stride_words: int, token_count: int, indices: list[int], stops: list[bytes], /) -> bytes: ...
def only_token(row: int, stride_words: int, /) -> int: ...
def mask_logits(
    logits: int,
    logit_bytes: int,
    minus_infinity: int,
    position_stride: int,
    token_stride: int,
    vocab_size: int,
    rows: int,
    row_stride_words: int,
    row_count: int,
    row_indices: list[int],
    /,
) -> None: ...
