"""Grammar specs: what an engine asks for, and what it is told about the compiled result.

Owns: ``GrammarSpec`` with its options and content digest, and ``GrammarReport``.
Knows nothing about: how a backend compiles, sessions, the wire (``maskd.rpc.messages``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from maskd.errors import InvalidRequestError

__all__ = [
    "KINDS",
    "WHEN_SLOW",
    "FormatPolicy",
    "GrammarKind",
    "GrammarOptions",
    "GrammarReport",
    "GrammarSpec",
    "PropertyOrder",
    "ReasoningGate",
    "Unenforced",
    "WhenSlow",
]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf", "lark", "structural_tag"]
KINDS: tuple[GrammarKind, ...] = get_args(GrammarKind)

WhenSlow = Literal["wait", "fail", "switch"]
WHEN_SLOW: tuple[WhenSlow, ...] = get_args(WhenSlow)
PropertyOrder = Literal["any", "schema"]
FormatPolicy = Literal["assert", "annotate"]
_WORDS = {
    "additional_properties": ("allow", "forbid"),
    "property_order": get_args(PropertyOrder),
    "formats": get_args(FormatPolicy),
}
"""The options that are one of some words."""
_MAX_END_TOKENS = 64


@dataclass(frozen=True, slots=True)
class GrammarOptions:
    """How a grammar is read. Every option means the same on every backend.

    Attributes:
        max_whitespace: characters of white space allowed between two JSON tokens; None = any number, 0 = none.
        item_separator: literal instead of ``","``; the white space above stays allowed around it. None = ``","``.
        key_separator: literal instead of ``":"``, likewise. None = ``":"``.
        additional_properties: for object schemas without ``additionalProperties``: "allow", as in the JSON Schema
            standard, or "forbid", as in OpenAI's strict mode.
        strict: refuse a schema with a keyword that the backend does not enforce. Otherwise the report lists it.
        property_order: "any", as JSON Schema has it, or "schema": named properties in the order of the schema, further
            ones behind them.
        formats: "assert": ``format`` decides where it is a regular language (docs/json-schema.md). "annotate": it never
            does, and the report lists it.
        stop_token_ids: replaces the stop tokens of the vocabulary for this grammar; empty = keep those.
    """

    max_whitespace: int | None = None
    item_separator: str | None = None
    key_separator: str | None = None
    additional_properties: Literal["allow", "forbid"] = "allow"
    strict: bool = False
    stop_token_ids: tuple[int, ...] = ()
    property_order: PropertyOrder = "any"
    formats: FormatPolicy = "assert"

    def __post_init__(self) -> None:
        if self.max_whitespace is not None and not 0 <= self.max_whitespace <= 1024:
            raise InvalidRequestError(
                f"max_whitespace is {self.max_whitespace}; give 0 to 1024, or leave it out for any",
                field="max_whitespace",
            )
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise InvalidRequestError(f"{name} is {getattr(self, name)!r}; give {' or '.join(known)}", field=name)


@dataclass(frozen=True, slots=True)
class ReasoningGate:
    """Lets a sequence reason before its grammar begins.

    Until the end tokens were accepted, one after the other, every token but the stop tokens is allowed. The next token
    is the first of the grammar.

    Attributes:
        end_token_ids: the tokens that end the model's reasoning, for instance those of ``</think>``. None of them is a
            stop token.
        max_tokens: after this many tokens only the end tokens are allowed; None = no limit.
    """

    end_token_ids: tuple[int, ...]
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.end_token_ids) <= _MAX_END_TOKENS:
            raise InvalidRequestError(
                f"reasoning ends with {len(self.end_token_ids)} tokens; give 1 to {_MAX_END_TOKENS}",
                field="reasoning.end_token_ids",
            )
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InvalidRequestError(
                f"reasoning.max_tokens is {self.max_tokens}; give 0 or more, or leave it out for any",
                field="reasoning.max_tokens",
            )


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The source of a grammar, and how sequences use it.

    Attributes:
        kind: one of ``KINDS``.
        source: the text: a JSON schema, a regex, GBNF, Lark, or a structural tag as JSON. For ``choice``, a JSON list
            of strings. For ``json_object``, empty.
        backend: "auto", "xgrammar", "llguidance" or the ``module:attribute`` of another backend.
        options: how to read it.
        resources: documents that the references of its schemas may lead to: JSON text by address. Nothing is fetched.
        reasoning: what may come before the grammar; None = nothing.
        when_slow: what becomes of a sequence whose row is late. "wait": the engine asks for the row again. "fail": the
            sequence is closed. "switch": it moves to another backend, which must take every token so far. If that
            backend refuses one, the sequence fails.
    """

    kind: GrammarKind
    source: str = ""
    backend: str = "auto"
    options: GrammarOptions = field(default_factory=GrammarOptions)
    resources: Mapping[str, str] = field(default_factory=dict, hash=False)
    reasoning: ReasoningGate | None = None
    when_slow: WhenSlow = "wait"
    _digest: bytes = field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.when_slow not in WHEN_SLOW:
            raise InvalidRequestError(
                f"when_slow is {self.when_slow!r}; give one of {', '.join(WHEN_SLOW)}", field="when_slow"
            )
        if self.kind not in KINDS:
            raise InvalidRequestError(
                f"unknown grammar kind {self.kind!r}; give one of {', '.join(KINDS)}", field="kind"
            )

    def digest(self) -> bytes:
        """Returns the sha256 (32 bytes) of everything that is compiled; equal digests share one compiled grammar.

        JSON is not normalised: the order of properties matters to both libraries. The digest is made once: the spec
        keeps it, and has it when it arrives in another of the daemon's processes.
        """
        if not self._digest:
            parts = [self.kind, self.source, self.backend, dataclasses.astuple(self.options)]
            parts += sorted(self.resources.items())
            text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
            object.__setattr__(self, "_digest", hashlib.sha256(text.encode("ascii")).digest())
        return self._digest


@dataclass(frozen=True, slots=True)
class Unenforced:
    """A schema keyword that the masks do not enforce.

    Attributes:
        pointer: JSON pointer (RFC 6901) to the keyword, for instance ``/properties/age/multipleOf``.
        keyword: its name.
        effect: what the output may therefore do, one sentence.
    """

    pointer: str
    keyword: str
    effect: str


@dataclass(frozen=True, slots=True)
class GrammarReport:
    """What a compile did.

    Attributes:
        backend: the backend that holds the grammar.
        backend_reason: why this one, one sentence.
        unenforced: keywords that the masks do not enforce; empty means that every keyword is enforced.
        warnings: other things worth knowing, one sentence each.
        memory_bytes: approximate memory of the compiled grammar.
    """

    backend: str
    backend_reason: str
    unenforced: tuple[Unenforced, ...] = ()
    warnings: tuple[str, ...] = ()
    memory_bytes: int = 0
