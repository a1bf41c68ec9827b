"""The compiler: a schema in, Lark out.

Owns: the order of the stages. Source and grammar are texts; nothing is kept between two compiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskd.errors import GrammarError
from maskd.grammar import Unenforced
from maskd.json_schema.compiler.documents import Documents
from maskd.json_schema.compiler.evaluated import Evaluated
from maskd.json_schema.compiler.lowering import Lowering
from maskd.json_schema.compiler.nodes import Nodes
from maskd.json_schema.compiler.objects import PropertyOrder
from maskd.json_schema.compiler.reading import SchemaReader
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
    schema: Json,
    *,
    order: PropertyOrder = "any",
    assert_formats: bool = True,
    resources: Mapping[str, Json] | None = None,
    pointer: str = "",
) -> CompiledSchema:
    """Compiles ``schema``, parsed JSON.

    Args:
        schema: the schema; its keywords have values of the right type.
        order: whether properties come in any order, or in that of the schema.
        assert_formats: whether ``format`` is an assertion where it can be one.
        resources: documents that references may lead to, by address.
        pointer: where the schema stands in what the caller sent.

    Raises:
        GrammarError: a reference leads nowhere, or a pattern is malformed.
        GrammarUnsupportedError, GrammarTooLargeError: a part of the schema cannot be done.
        GrammarUnsatisfiableError: nothing satisfies it.
    """
    documents = Documents(schema, pointer, resources)
    while True:
        was_dynamic = documents.is_dynamic
        try:
            compiled = _compiled(documents, order, assert_formats=assert_formats)
        except GrammarError:
            if documents.is_dynamic == was_dynamic:
                raise
            continue
        if documents.is_dynamic == was_dynamic:
            return compiled
        # A document that was read on the way has references that depend on how they were reached.


def _compiled(documents: Documents, order: PropertyOrder, *, assert_formats: bool) -> CompiledSchema:
    nodes = Nodes(documents)
    reader = SchemaReader(documents, nodes, assert_formats=assert_formats)
    reader.read_unevaluated = Evaluated(reader).schema
    options = ('%llguidance {"no_forcing": true}', r"%ignore /[ \t\n\r]+/")
    lark = Lowering(reader, order).lark(nodes.schema(documents.root, ()), options)
    return CompiledSchema(lark, tuple(reader.unenforced.values()))
