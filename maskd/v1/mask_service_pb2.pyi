from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Transport(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSPORT_UNSPECIFIED: _ClassVar[Transport]
    TRANSPORT_SHARED_MEMORY: _ClassVar[Transport]
    TRANSPORT_INLINE: _ClassVar[Transport]

class WhenSlow(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WHEN_SLOW_UNSPECIFIED: _ClassVar[WhenSlow]
    WHEN_SLOW_WAIT: _ClassVar[WhenSlow]
    WHEN_SLOW_FAIL: _ClassVar[WhenSlow]
    WHEN_SLOW_SWITCH: _ClassVar[WhenSlow]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ADVANCE: _ClassVar[Action]
    ACTION_OPEN: _ClassVar[Action]
    ACTION_FORK: _ClassVar[Action]
    ACTION_CLOSE: _ClassVar[Action]

class ItemStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ITEM_STATUS_OK_UNSPECIFIED: _ClassVar[ItemStatus]
    ITEM_STATUS_INVALID_ITEM: _ClassVar[ItemStatus]
    ITEM_STATUS_GRAMMAR_NOT_FOUND: _ClassVar[ItemStatus]
    ITEM_STATUS_SEQUENCE_NOT_FOUND: _ClassVar[ItemStatus]
    ITEM_STATUS_SEQUENCE_EXISTS: _ClassVar[ItemStatus]
    ITEM_STATUS_SEQUENCE_CAPACITY: _ClassVar[ItemStatus]
    ITEM_STATUS_TOKEN_OUT_OF_RANGE: _ClassVar[ItemStatus]
    ITEM_STATUS_TOKEN_REJECTED: _ClassVar[ItemStatus]
    ITEM_STATUS_SEQUENCE_TERMINATED: _ClassVar[ItemStatus]
    ITEM_STATUS_ROLLBACK_TOO_FAR: _ClassVar[ItemStatus]
    ITEM_STATUS_NO_TOKEN_ALLOWED: _ClassVar[ItemStatus]
    ITEM_STATUS_BACKEND_FAILED: _ClassVar[ItemStatus]
    ITEM_STATUS_STEP_DEADLINE: _ClassVar[ItemStatus]
    ITEM_STATUS_BACKENDS_DISAGREE: _ClassVar[ItemStatus]
TRANSPORT_UNSPECIFIED: Transport
TRANSPORT_SHARED_MEMORY: Transport
TRANSPORT_INLINE: Transport
WHEN_SLOW_UNSPECIFIED: WhenSlow
WHEN_SLOW_WAIT: WhenSlow
WHEN_SLOW_FAIL: WhenSlow
WHEN_SLOW_SWITCH: WhenSlow
ACTION_UNSPECIFIED: Action
ACTION_ADVANCE: Action
ACTION_OPEN: Action
ACTION_FORK: Action
ACTION_CLOSE: Action
ITEM_STATUS_OK_UNSPECIFIED: ItemStatus
ITEM_STATUS_INVALID_ITEM: ItemStatus
ITEM_STATUS_GRAMMAR_NOT_FOUND: ItemStatus
ITEM_STATUS_SEQUENCE_NOT_FOUND: ItemStatus
ITEM_STATUS_SEQUENCE_EXISTS: ItemStatus
ITEM_STATUS_SEQUENCE_CAPACITY: ItemStatus
ITEM_STATUS_TOKEN_OUT_OF_RANGE: ItemStatus
ITEM_STATUS_TOKEN_REJECTED: ItemStatus
ITEM_STATUS_SEQUENCE_TERMINATED: ItemStatus
ITEM_STATUS_ROLLBACK_TOO_FAR: ItemStatus
ITEM_STATUS_NO_TOKEN_ALLOWED: ItemStatus
ITEM_STATUS_BACKEND_FAILED: ItemStatus
ITEM_STATUS_STEP_DEADLINE: ItemStatus
ITEM_STATUS_BACKENDS_DISAGREE: ItemStatus

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "layout_major", "layout_minor", "backends", "vocabularies", "worker_count", "session_count", "draining", "shared_memory")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_MAJOR_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_MINOR_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARIES_FIELD_NUMBER: _ClassVar[int]
    WORKER_COUNT_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    version: str
    layout_major: int
    layout_minor: int
    backends: _containers.RepeatedScalarFieldContainer[str]
    vocabularies: _containers.RepeatedCompositeFieldContainer[VocabularyInfo]
    worker_count: int
    session_count: int
    draining: bool
    shared_memory: bool
    def __init__(self, version: _Optional[str] = ..., layout_major: _Optional[int] = ..., layout_minor: _Optional[int] = ..., backends: _Optional[_Iterable[str]] = ..., vocabularies: _Optional[_Iterable[_Union[VocabularyInfo, _Mapping]]] = ..., worker_count: _Optional[int] = ..., session_count: _Optional[int] = ..., draining: _Optional[bool] = ..., shared_memory: _Optional[bool] = ...) -> None: ...

class VocabularyInfo(_message.Message):
    __slots__ = ("fingerprint", "name", "vocab_size", "token_count", "stop_token_ids")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    name: str
    vocab_size: int
    token_count: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, fingerprint: _Optional[bytes] = ..., name: _Optional[str] = ..., vocab_size: _Optional[int] = ..., token_count: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class UploadVocabularyRequest(_message.Message):
    __slots__ = ("header", "tokens")
    class Header(_message.Message):
        __slots__ = ("name", "vocab_size", "stop_token_ids", "special_token_ids")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
        STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        SPECIAL_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        name: str
        vocab_size: int
        stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
        special_token_ids: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, name: _Optional[str] = ..., vocab_size: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., special_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    header: UploadVocabularyRequest.Header
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[_Union[UploadVocabularyRequest.Header, _Mapping]] = ..., tokens: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UploadVocabularyResponse(_message.Message):
    __slots__ = ("vocabulary", "warnings")
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    vocabulary: VocabularyInfo
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vocabulary: _Optional[_Union[VocabularyInfo, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("vocabulary_fingerprint", "vocab_size", "transport", "row_capacity", "item_capacity", "token_capacity", "sequence_capacity", "engine")
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ROW_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    ITEM_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    vocabulary_fingerprint: bytes
    vocab_size: int
    transport: Transport
    row_capacity: int
    item_capacity: int
    token_capacity: int
    sequence_capacity: int
    engine: str
    def __init__(self, vocabulary_fingerprint: _Optional[bytes] = ..., vocab_size: _Optional[int] = ..., transport: _Optional[_Union[Transport, str]] = ..., row_capacity: _Optional[int] = ..., item_capacity: _Optional[int] = ..., token_capacity: _Optional[int] = ..., sequence_capacity: _Optional[int] = ..., engine: _Optional[str] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("session_id", "data_token", "claim_seconds", "lease_seconds", "row_stride_words", "rows_bytes", "steps_bytes", "item_capacity", "token_capacity")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CLAIM_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROW_STRIDE_WORDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_BYTES_FIELD_NUMBER: _ClassVar[int]
    ITEM_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    data_token: bytes
    claim_seconds: int
    lease_seconds: int
    row_stride_words: int
    rows_bytes: int
    steps_bytes: int
    item_capacity: int
    token_capacity: int
    def __init__(self, session_id: _Optional[int] = ..., data_token: _Optional[bytes] = ..., claim_seconds: _Optional[int] = ..., lease_seconds: _Optional[int] = ..., row_stride_words: _Optional[int] = ..., rows_bytes: _Optional[int] = ..., steps_bytes: _Optional[int] = ..., item_capacity: _Optional[int] = ..., token_capacity: _Optional[int] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("state", "sequence_count", "grammar_count", "last_step")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[GetSessionResponse.State]
        STATE_UNCLAIMED: _ClassVar[GetSessionResponse.State]
        STATE_ACTIVE: _ClassVar[GetSessionResponse.State]
    STATE_UNSPECIFIED: GetSessionResponse.State
    STATE_UNCLAIMED: GetSessionResponse.State
    STATE_ACTIVE: GetSessionResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    state: GetSessionResponse.State
    sequence_count: int
    grammar_count: int
    last_step: int
    def __init__(self, state: _Optional[_Union[GetSessionResponse.State, str]] = ..., sequence_count: _Optional[int] = ..., grammar_count: _Optional[int] = ..., last_step: _Optional[int] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GrammarSpec(_message.Message):
    __slots__ = ("json_schema", "json_object", "regex", "choice", "ebnf", "lark", "structural_tag", "backend", "options", "reasoning", "when_slow", "resources")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    JSON_OBJECT_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    EBNF_FIELD_NUMBER: _ClassVar[int]
    LARK_FIELD_NUMBER: _ClassVar[int]
    STRUCTURAL_TAG_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    WHEN_SLOW_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    json_object: bool
    regex: str
    choice: Choice
    ebnf: str
    lark: str
    structural_tag: str
    backend: str
    options: GrammarOptions
    reasoning: ReasoningGate
    when_slow: WhenSlow
    resources: _containers.ScalarMap[str, str]
    def __init__(self, json_schema: _Optional[str] = ..., json_object: _Optional[bool] = ..., regex: _Optional[str] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ..., ebnf: _Optional[str] = ..., lark: _Optional[str] = ..., structural_tag: _Optional[str] = ..., backend: _Optional[str] = ..., options: _Optional[_Union[GrammarOptions, _Mapping]] = ..., reasoning: _Optional[_Union[ReasoningGate, _Mapping]] = ..., when_slow: _Optional[_Union[WhenSlow, str]] = ..., resources: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReasoningGate(_message.Message):
    __slots__ = ("end_token_ids", "max_tokens")
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    def __init__(self, end_token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, options: _Optional[_Iterable[str]] = ...) -> None: ...

class GrammarOptions(_message.Message):
    __slots__ = ("max_whitespace", "item_separator", "key_separator", "additional_properties", "strict", "stop_token_ids", "property_order", "formats")
    class AdditionalProperties(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ADDITIONAL_PROPERTIES_UNSPECIFIED: _ClassVar[GrammarOptions.AdditionalProperties]
        ADDITIONAL_PROPERTIES_ALLOW: _ClassVar[GrammarOptions.AdditionalProperties]
        ADDITIONAL_PROPERTIES_FORBID: _ClassVar[GrammarOptions.AdditionalProperties]
    ADDITIONAL_PROPERTIES_UNSPECIFIED: GrammarOptions.AdditionalProperties
    ADDITIONAL_PROPERTIES_ALLOW: GrammarOptions.AdditionalProperties
    ADDITIONAL_PROPERTIES_FORBID: GrammarOptions.AdditionalProperties
    class PropertyOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PROPERTY_ORDER_UNSPECIFIED: _ClassVar[GrammarOptions.PropertyOrder]
        PROPERTY_ORDER_ANY: _ClassVar[GrammarOptions.PropertyOrder]
        PROPERTY_ORDER_SCHEMA: _ClassVar[GrammarOptions.PropertyOrder]
    PROPERTY_ORDER_UNSPECIFIED: GrammarOptions.PropertyOrder
    PROPERTY_ORDER_ANY: GrammarOptions.PropertyOrder
    PROPERTY_ORDER_SCHEMA: GrammarOptions.PropertyOrder
    class Formats(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORMATS_UNSPECIFIED: _ClassVar[GrammarOptions.Formats]
        FORMATS_ASSERT: _ClassVar[GrammarOptions.Formats]
        FORMATS_ANNOTATE: _ClassVar[GrammarOptions.Formats]
    FORMATS_UNSPECIFIED: GrammarOptions.Formats
    FORMATS_ASSERT: GrammarOptions.Formats
    FORMATS_ANNOTATE: GrammarOptions.Formats
    MAX_WHITESPACE_FIELD_NUMBER: _ClassVar[int]
    ITEM_SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    KEY_SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROPERTY_ORDER_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    max_whitespace: int
    item_separator: str
    key_separator: str
    additional_properties: GrammarOptions.AdditionalProperties
    strict: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    property_order: GrammarOptions.PropertyOrder
    formats: GrammarOptions.Formats
    def __init__(self, max_whitespace: _Optional[int] = ..., item_separator: _Optional[str] = ..., key_separator: _Optional[str] = ..., additional_properties: _Optional[_Union[GrammarOptions.AdditionalProperties, str]] = ..., strict: _Optional[bool] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., property_order: _Optional[_Union[GrammarOptions.PropertyOrder, str]] = ..., formats: _Optional[_Union[GrammarOptions.Formats, str]] = ...) -> None: ...

class CreateGrammarRequest(_message.Message):
    __slots__ = ("session_id", "grammar", "validate_only")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    grammar: GrammarSpec
    validate_only: bool
    def __init__(self, session_id: _Optional[int] = ..., grammar: _Optional[_Union[GrammarSpec, _Mapping]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class CreateGrammarResponse(_message.Message):
    __slots__ = ("grammar_id", "backend", "backend_reason", "warnings", "unenforced", "compile_milliseconds", "memory_bytes", "cached", "alternate_backend")
    class Unenforced(_message.Message):
        __slots__ = ("pointer", "keyword", "effect")
        POINTER_FIELD_NUMBER: _ClassVar[int]
        KEYWORD_FIELD_NUMBER: _ClassVar[int]
        EFFECT_FIELD_NUMBER: _ClassVar[int]
        pointer: str
        keyword: str
        effect: str
        def __init__(self, pointer: _Optional[str] = ..., keyword: _Optional[str] = ..., effect: _Optional[str] = ...) -> None: ...
    GRAMMAR_ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    UNENFORCED_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ALTERNATE_BACKEND_FIELD_NUMBER: _ClassVar[int]
    grammar_id: int
    backend: str
    backend_reason: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    unenforced: _containers.RepeatedCompositeFieldContainer[CreateGrammarResponse.Unenforced]
    compile_milliseconds: float
    memory_bytes: int
    cached: bool
    alternate_backend: str
    def __init__(self, grammar_id: _Optional[int] = ..., backend: _Optional[str] = ..., backend_reason: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., unenforced: _Optional[_Iterable[_Union[CreateGrammarResponse.Unenforced, _Mapping]]] = ..., compile_milliseconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., cached: _Optional[bool] = ..., alternate_backend: _Optional[str] = ...) -> None: ...

class DeleteGrammarRequest(_message.Message):
    __slots__ = ("session_id", "grammar_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    grammar_id: int
    def __init__(self, session_id: _Optional[int] = ..., grammar_id: _Optional[int] = ...) -> None: ...

class DeleteGrammarResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Item(_message.Message):
    __slots__ = ("sequence_id", "action", "grammar_id", "source_sequence_id", "rollback_count", "accept_token_ids", "draft_token_ids", "row_wanted", "forced_wanted")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_COUNT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_WANTED_FIELD_NUMBER: _ClassVar[int]
    FORCED_WANTED_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    action: Action
    grammar_id: int
    source_sequence_id: int
    rollback_count: int
    accept_token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    row_wanted: bool
    forced_wanted: bool
    def __init__(self, sequence_id: _Optional[int] = ..., action: _Optional[_Union[Action, str]] = ..., grammar_id: _Optional[int] = ..., source_sequence_id: _Optional[int] = ..., rollback_count: _Optional[int] = ..., accept_token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., row_wanted: _Optional[bool] = ..., forced_wanted: _Optional[bool] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("sequence_id", "status", "row_count", "accepted_count", "position", "terminated", "accepting", "all_allowed", "forced_token_ids", "detail_index", "detail_value")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTING_FIELD_NUMBER: _ClassVar[int]
    ALL_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    FORCED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_INDEX_FIELD_NUMBER: _ClassVar[int]
    DETAIL_VALUE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    status: ItemStatus
    row_count: int
    accepted_count: int
    position: int
    terminated: bool
    accepting: bool
    all_allowed: bool
    forced_token_ids: _containers.RepeatedScalarFieldContainer[int]
    detail_index: int
    detail_value: int
    def __init__(self, sequence_id: _Optional[int] = ..., status: _Optional[_Union[ItemStatus, str]] = ..., row_count: _Optional[int] = ..., accepted_count: _Optional[int] = ..., position: _Optional[int] = ..., terminated: _Optional[bool] = ..., accepting: _Optional[bool] = ..., all_allowed: _Optional[bool] = ..., forced_token_ids: _Optional[_Iterable[int]] = ..., detail_index: _Optional[int] = ..., detail_value: _Optional[int] = ...) -> None: ...

class StepSequencesRequest(_message.Message):
    __slots__ = ("session_id", "step", "items")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    step: int
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, session_id: _Optional[int] = ..., step: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class StepSequencesResponse(_message.Message):
    __slots__ = ("step", "results", "rows", "worker_milliseconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WORKER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    rows: bytes
    worker_milliseconds: float
    def __init__(self, step: _Optional[int] = ..., results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., rows: _Optional[bytes] = ..., worker_milliseconds: _Optional[float] = ...) -> None: ...

class StreamStepsRequest(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: StepSequencesRequest
    def __init__(self, step: _Optional[_Union[StepSequencesRequest, _Mapping]] = ...) -> None: ...

class StreamStepsResponse(_message.Message):
    __slots__ = ("step", "refusal")
    class Refusal(_message.Message):
        __slots__ = ("code", "reason", "message", "metadata")
        class MetadataEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: str
            def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
        CODE_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        METADATA_FIELD_NUMBER: _ClassVar[int]
        code: int
        reason: str
        message: str
        metadata: _containers.ScalarMap[str, str]
        def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    step: StepSequencesResponse
    refusal: StreamStepsResponse.Refusal
    def __init__(self, step: _Optional[_Union[StepSequencesResponse, _Mapping]] = ..., refusal: _Optional[_Union[StreamStepsResponse.Refusal, _Mapping]] = ...) -> None: ...
