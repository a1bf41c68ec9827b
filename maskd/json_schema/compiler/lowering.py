"""Lowering: from what nodes allow to rules.

Every node that is reached has one rule. So a recursive schema becomes a recursive rule.
Owns: the order of the work. ``arrays`` and ``objects`` write the rules of their shapes. Knows nothing about: keywords.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from maskd.errors import GrammarUnsatisfiableError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.arrays import ArrayRules
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import apart, may_be
from maskd.json_schema.compiler.objects import ObjectRules
from maskd.json_schema.compiler.punctuation import lark_punctuation
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.refusals import located_below
from maskd.json_schema.compiler.rules import Alternative
from maskd.json_schema.compiler.symbols import Symbols
from maskd.json_schema.compiler.values import ArrayShape, ObjectShape, Value
from maskd.json_schema.compiler.watch import WatchedPlace, WatchNotes
from maskd.regular.expression import NOTHING
from maskd.regular.questions import may_match

__all__ = ["Lowering", "lark"]

_NO_FORCING = '%llguidance {"no_forcing": true}'
"""Without it, forced text has one tokenization only."""


_Shape = TypeVar("_Shape", contravariant=True)


class Writes(Protocol[_Shape]):
    """Writes the rules of shapes."""

    def write(self, name: str, shape: _Shape) -> None:
        """Adds the rule ``name`` for ``shape``, which some value has."""


class Lowering:
    """The rules of one schema.

    Args:
        reader: what nodes allow.
        symbols: where the rules go.
        arrays, objects: write the rules of shapes.
    """

    def __init__(
        self,
        reader: SchemaReader,
        symbols: Symbols,
        arrays: Writes[ArrayShape],
        objects: Writes[ObjectShape],
    ) -> None:
        self._reader, self._symbols, self._arrays, self._objects = reader, symbols, arrays, objects
        self._shapes: dict[ArrayShape | ObjectShape, str] = {}

    def write(self, root: Node) -> str:
        """Adds the rules of ``root`` and of all that it leads to; returns the name of its rule.

        Raises:
            GrammarUnsatisfiableError: nothing satisfies it.
            GrammarUnsupportedError, GrammarTooLargeError: a part of it cannot be done.
        """
        with located_below(root):
            is_empty = self._reader.emptiness.node(root)
        if is_empty:
            raise GrammarUnsatisfiableError("nothing satisfies the schema")
        symbols = self._symbols
        start = symbols.rule(root)
        while (waiting := symbols.next_waiting()) is not None:
            node, name = waiting
            with located_below(node):
                alternatives = self._alternatives(self._reader.value(node))
            symbols.rules.add(name, alternatives)
        return start

    def _alternatives(self, value: Value) -> list[Alternative]:
        emptiness, symbols = self._reader.emptiness, self._symbols
        found = [Alternative(f'"{word}"') for word in ("null", "true", "false") if getattr(value, word)]
        found += [Alternative(symbols.number(numbers)) for numbers in apart(value.numbers) if may_be(numbers)]
        if value.strings is not NOTHING and may_match(value.strings):
            found.append(Alternative(symbols.string(value.strings)))
        names = [self._shape(shape) for shape in value.arrays if not emptiness.array(shape)]
        names += [self._shape(shape) for shape in value.objects if not emptiness.object(shape)]
        return found + [Alternative(name, (name,)) for name in names]

    def _shape(self, shape: ArrayShape | ObjectShape) -> str:
        if shape not in self._shapes:
            self._shapes[shape] = self._symbols.rules.fresh("a" if isinstance(shape, ArrayShape) else "o")
            if isinstance(shape, ArrayShape):
                self._arrays.write(self._shapes[shape], shape)
            else:
                self._objects.write(self._shapes[shape], shape)
        return self._shapes[shape]


def lark(reader: SchemaReader, root: Node, options: GrammarOptions) -> tuple[str, WatchedPlace | None]:
    """Returns the Lark of ``root``, and what must be watched beside it, from the place of the document on.

    Raises:
        GrammarUnsatisfiableError: nothing satisfies it.
        GrammarUnsupportedError, GrammarTooLargeError: a part of it cannot be done.
    """
    symbols, notes = Symbols(lark_punctuation(options)), WatchNotes(reader)
    objects = ObjectRules(reader, symbols, notes, options.property_order)
    start = Lowering(reader, symbols, ArrayRules(reader, symbols, notes), objects).write(root)
    text = symbols.rules.lark(start, (_NO_FORCING, *symbols.punctuation.lines))
    with located_below(root):
        return text, notes.watch(root)
