"""Grammar specs: what an engine asks for, and what it is told about the compiled result.

Owns: ``GrammarSpec`` with its options and content digest, and ``GrammarReport``.
Knows nothing about: how a backend compiles, sessions, the wire.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

from maskd.errors import InvalidRequestError

__all__ = ["KINDS", "GrammarKind", "GrammarOptions", "GrammarReport", "GrammarSpec", "Unenforced"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf", "lark", "structural_tag"]
KINDS: tuple[GrammarKind, ...] = ("json_schema", "json_object", "regex", "choice", "ebnf", "lark", "structural_tag")


@dataclass(frozen=True, slots=True)
class GrammarOptions:
    """How a grammar is read. Every option means the same on every backend.

    Attributes:
        max_whitespace: characters of white space allowed between two JSON tokens; None = any number, 0 = none.
        item_separator: literal instead of ``","``; the white space above stays allowed around it. None = ``","``.
        key_separator: literal instead of ``":"``, likewise. None = ``":"``.
        additional_properties: what an object schema means that says nothing about ``additionalProperties``:
            "allow" as the JSON Schema standard has it (the default), or "forbid" as OpenAI's strict mode has it.
        strict: refuse a schema with a keyword that the backend does not enforce, instead of reporting it.
        stop_token_ids: replaces the stop tokens of the vocabulary for this grammar; empty = keep those.
    """

    max_whitespace: int | None = None
    item_separator: str | None = None
    key_separator: str | None = None
    additional_properties: Literal["allow", "forbid"] = "allow"
    strict: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_whitespace is not None and not 0 <= self.max_whitespace <= 1024:
            raise InvalidRequestError(
                f"max_whitespace is {self.max_whitespace}; give 0 to 1024, or leave it out for any", field="max_whitespace"
            )
        if self.additional_properties not in ("allow", "forbid"):
            raise InvalidRequestError(
                f"additional_properties is {self.additional_properties!r}; give 'allow' or 'forbid'", field="additional_properties"
            )


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The source of a grammar.

    Attributes:
        kind: one of ``KINDS``.
        source: the text: a JSON schema, a regex, GBNF, Lark, a structural tag as JSON; for ``choice`` a JSON list of
            strings; for ``json_object`` empty.
        backend: "auto", "xgrammar", "llguidance" or the ``module:attribute`` of another backend.
        options: how to read it.
    """

    kind: GrammarKind
    source: str = ""
    backend: str = "auto"
    options: GrammarOptions = field(default_factory=GrammarOptions)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequestError(f"unknown grammar kind {self.kind!r}; give one of {', '.join(KINDS)}", field="kind")

    def digest(self) -> bytes:
        """Returns the sha256 (32 bytes) of everything that changes the masks; equal digests share one compiled grammar.

        Source text is compared as it is: property order matters to both libraries, so no JSON is normalised.
        """
        parts = json.dumps(
            [self.kind, self.source, self.backend, dataclasses.astuple(self.options)], ensure_ascii=True, separators=(",", ":")
        )
        return hashlib.sha256(parts.encode("ascii")).digest()


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
