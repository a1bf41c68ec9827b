"""The compiler: a schema in, Lark out.

Owns: the order of the stages. Source and grammar are texts; nothing is kept between two compiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskd.errors import GrammarError, GrammarTooLargeError
from maskd.grammar import GrammarOptions, Unenforced
from maskd.json_schema.compiler.documents import Documents
from maskd.json_schema.compiler.evaluated import read
from maskd.json_schema.compiler.lowering import Lowering
from maskd.json_schema.strict_json import Json

__all__ = ["CompiledSchema", "compile_schema"]


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema as a grammar.

    Attributes:
        lark: in llguidance's dialect.
        unenforced: what the grammar lets through although the schema may not.
    """

    lark: str
    unenforced: tuple[Unenforced, ...]


def compile_schema(
    schema: Json, options: GrammarOptions, *, resources: Mapping[str, Json] | None = None, pointer: str = ""
) -> CompiledSchema:
    """Compiles ``schema``, parsed JSON, which stays as it is.

    Args:
        schema: the schema.
        options: of the grammar. Its separators are JSON.
        resources: documents that references may lead to, parsed JSON by address.
        pointer: where the schema stands in what the caller sent.

    Raises:
        GrammarError: a schema is malformed, a reference leads nowhere.
        GrammarUnsupportedError, GrammarTooLargeError: a part of the schema cannot be done.
        GrammarUnsatisfiableError: nothing satisfies it.
    """
    try:
        documents = Documents(schema, pointer, resources)
        while True:
            was_dynamic = documents.is_dynamic
            try:
                compiled = _compiled(documents, options)
            except GrammarError:
                if documents.is_dynamic == was_dynamic:
                    raise
                continue
            if documents.is_dynamic == was_dynamic:
                return compiled
            # A document that was read on the way has references that depend on how they were reached.
    except RecursionError:
        raise GrammarTooLargeError(
            "the schema is nested too deeply, or references follow one another too long; make it flatter",
            pointer=pointer,
            limit="depth",
        ) from None


def _compiled(documents: Documents, options: GrammarOptions) -> CompiledSchema:
    reader, root = read(documents, options)
    lark = Lowering(reader, options).lark(root)
    return CompiledSchema(lark, tuple(reader.unenforced.values()))
