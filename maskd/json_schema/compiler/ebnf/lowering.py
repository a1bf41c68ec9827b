"""Lowering to EBNF, what is lost on the way, and whether an order of members was forced.

Knows nothing about: how rules are written.
"""

from __future__ import annotations

from typing import NamedTuple

from maskd.grammar import GrammarOptions, Unenforced
from maskd.json_schema.compiler.ebnf.arrays import EbnfArrayRules
from maskd.json_schema.compiler.ebnf.objects import EbnfObjectRules
from maskd.json_schema.compiler.ebnf.symbols import EbnfSymbols
from maskd.json_schema.compiler.lowering import Lowering
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.reading import SchemaReader

__all__ = ["Ebnf", "ebnf"]


class Ebnf(NamedTuple):
    """A grammar.

    Attributes:
        text: in xgrammar's dialect; its first rule is ``root``.
        losses: what it lets through although the schema does not.
        is_ordered: whether it wants members in the order of the schema, where the schema does not.
    """

    text: str
    losses: tuple[Unenforced, ...]
    is_ordered: bool


def ebnf(reader: SchemaReader, root: Node, options: GrammarOptions) -> Ebnf:
    """Returns the EBNF of ``root``. Raises GrammarUnsatisfiableError if nothing satisfies it."""
    symbols = EbnfSymbols(options, root)
    writing = Lowering(reader, symbols, EbnfArrayRules(reader, symbols), EbnfObjectRules(reader, symbols))
    return Ebnf(symbols.ebnf(writing.write(root)), tuple(symbols.losses.values()), symbols.is_ordered)
