"""The compiler: a schema in, Lark out, or EBNF.

Owns: the order of the stages. Source and grammar are texts; nothing is kept between two compiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError
from maskd.grammar import GrammarOptions, Unenforced
from maskd.json_schema.compiler.contradiction import contradiction
from maskd.json_schema.compiler.documents import Documents
from maskd.json_schema.compiler.ebnf.lowering import ebnf
from maskd.json_schema.compiler.evaluated import read
from maskd.json_schema.compiler.lowering import lark
from maskd.json_schema.compiler.watch import WatchedPlace
from maskd.json_schema.strict_json import Json

__all__ = ["CompiledSchema", "EbnfSchema", "compile_ebnf", "compile_schema"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema as a grammar.

    Attributes:
        lark: in llguidance's dialect.
        watch: what the grammar lets through and must be watched beside it, from the place of the document on; None =
            nothing.
        unenforced: what both let through although the schema may not.
    """

    lark: str
    watch: WatchedPlace | None
    unenforced: tuple[Unenforced, ...]


@dataclass(frozen=True, slots=True)
class EbnfSchema:
    """A schema as a grammar for xgrammar.

    Attributes:
        ebnf: in its dialect; the first rule is ``root``.
        unenforced: what the grammar lets through although the schema may not.
        is_ordered: whether members come in the order of the schema, although the schema does not ask for it.
    """

    ebnf: str
    unenforced: tuple[Unenforced, ...]
    is_ordered: bool


def compile_schema(
    schema: Json, options: GrammarOptions, *, resources: Mapping[str, Json] | None = None, pointer: str = ""
) -> CompiledSchema:
    """Compiles ``schema``, parsed JSON, which stays as it is, to Lark.

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

    def write(documents: Documents) -> CompiledSchema:
        reader, root = read(documents, options)
        text, watch = lark(reader, root, options)
        return CompiledSchema(text, watch, tuple(reader.unenforced.values()))

    return _compiled(write, schema, options, resources or {}, pointer)


def compile_ebnf(
    schema: Json, options: GrammarOptions, *, resources: Mapping[str, Json] | None = None, pointer: str = ""
) -> EbnfSchema:
    """Compiles ``schema`` to EBNF: its properties in the order of the schema, whatever ``property_order`` says.

    What cannot be done is left away and listed. Args and errors as of ``compile_schema``.
    """
    ordered = dataclasses.replace(options, property_order="schema")

    def write(documents: Documents) -> EbnfSchema:
        reader, root = read(documents, ordered, is_lenient=True)
        text, losses, is_ordered = ebnf(reader, root, options)
        return EbnfSchema(text, (*reader.unenforced.values(), *losses), is_ordered)

    return _compiled(write, schema, options, resources or {}, pointer)


def _compiled(
    write: Callable[[Documents], Result],
    schema: Json,
    options: GrammarOptions,
    resources: Mapping[str, Json],
    pointer: str,
) -> Result:
    try:
        documents = Documents(schema, pointer, resources)
        return _settled(documents, lambda: write(documents))
    except GrammarUnsatisfiableError as error:
        if error.metadata.get("pointer"):
            raise
        raise contradiction(schema, resources, pointer, functools.partial(_is_empty, options)) from None
    except RecursionError:
        raise GrammarTooLargeError(
            "the schema is nested too deeply, or references follow one another too long; make it flatter",
            pointer=pointer,
            limit="depth",
        ) from None


def _settled(documents: Documents, work: Callable[[], Result]) -> Result:
    """Returns what ``work`` does. A document that it reads may have references that depend on how they were reached;
    then all is done again."""
    while True:
        was_dynamic = documents.is_dynamic
        try:
            result = work()
        except GrammarError:
            if documents.is_dynamic == was_dynamic:
                raise
            continue
        if documents.is_dynamic == was_dynamic:
            return result


def _is_empty(options: GrammarOptions, schema: Json, resources: Mapping[str, Json]) -> bool:
    """Says whether nothing satisfies ``schema``."""

    def ask() -> bool:
        reader, root = read(documents, options)
        return reader.emptiness.node(root)

    documents = Documents(schema, "", resources)
    return _settled(documents, ask)
