"""Lowering: from what nodes allow to rules.

Every node that is reached has one rule. So a recursive schema becomes a recursive rule.
Owns: the order of the work. ``arrays`` and ``objects`` write the rules of their shapes. Knows nothing about: keywords.
"""

from __future__ import annotations

from maskd.errors import GrammarUnsatisfiableError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.arrays import ArrayRules
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import apart, may_be
from maskd.json_schema.compiler.objects import ObjectRules
from maskd.json_schema.compiler.punctuation import punctuation
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.refusals import located_below
from maskd.json_schema.compiler.rules import Alternative
from maskd.json_schema.compiler.symbols import Symbols
from maskd.json_schema.compiler.values import ArrayShape, ObjectShape, Value
from maskd.json_schema.compiler.watch import WatchedPlace, WatchNotes
from maskd.regular.expression import NOTHING
from maskd.regular.questions import may_match

__all__ = ["Lowering"]

_NO_FORCING = '%llguidance {"no_forcing": true}'
"""Without it, forced text has one tokenization only."""


class Lowering:
    """The rules of one schema.

    Args:
        reader: what nodes allow.
        options: of the grammar.
    """

    def __init__(self, reader: SchemaReader, options: GrammarOptions) -> None:
        self._reader = reader
        self._symbols = Symbols(punctuation(options))
        self._shapes: dict[ArrayShape | ObjectShape, str] = {}
        self._notes = WatchNotes(reader)
        self._arrays = ArrayRules(reader, self._symbols, self._notes)
        self._objects = ObjectRules(reader, self._symbols, self._notes, options.property_order)

    def lark(self, root: Node) -> tuple[str, WatchedPlace | None]:
        """Returns the grammar of ``root``, and what must be watched beside it, from the place of the document on.

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
        lark = symbols.rules.lark(start, (_NO_FORCING, *symbols.punctuation.lines))
        with located_below(root):
            return lark, self._notes.watch(root)

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
            writer = self._arrays if isinstance(shape, ArrayShape) else self._objects
            self._shapes[shape] = self._symbols.rules.fresh("a" if isinstance(shape, ArrayShape) else "o")
            writer.write(self._shapes[shape], shape)  # type: ignore[arg-type]
        return self._shapes[shape]
