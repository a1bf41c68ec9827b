from typing import TypeAlias, TypeVar, final

def load_u64(address: int, /) -> int: ...
def load_u32(address: int, /) -> int: ...
def store_u64(address: int, value: int, /) -> None: ...
def store_u32(address: int, value: int, /) -> None: ...
def fence() -> None: ...
def publish(word: int, value: int, peer_flag: int, fd: int, processor_word: int = 0, /) -> bool: ...
def processor() -> int: ...
def spin(words: list[int], targets: list[int], nanoseconds: int, /) -> int: ...

_Tokens: TypeAlias = tuple[int, ...]
_ItemFields: TypeAlias = tuple[int, int, int, int, int, int, int, int, _Tokens, _Tokens, int, int]
_BatchFields: TypeAlias = tuple[list[int], list[int], list[int], dict[int, CheckedItem]]
_ResultFields: TypeAlias = tuple[int, int, int, int, int, int, int, _Tokens, int, int]
_Result = TypeVar("_Result", bound=_ResultFields)

@final
class CheckedItem(_ItemFields):
    def __new__(cls, fields: _ItemFields, /) -> CheckedItem: ...
    status: int
    sequence_id: int
    action: int
    flags: int
    grammar_id: int
    source_sequence_id: int
    rollback: int
    row: int
    accept: _Tokens
    drafts: _Tokens
    detail_index: int
    detail_value: int

@final
class Batch(_BatchFields):
    def __new__(cls, fields: _BatchFields, /) -> Batch: ...
    ids: list[int]
    tokens: list[int]
    rows: list[int]
    others: dict[int, CheckedItem]

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
    results: list[int | _Result | tuple[int | _Result, int]],
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
