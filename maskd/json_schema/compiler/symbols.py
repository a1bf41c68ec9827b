"""Symbols: the names by which rules know nodes and terminals.

Owns: one rule for each node, one terminal for each language. Knows nothing about: what is written into a rule.
"""

from __future__ import annotations

from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import ANY_NUMBER, as_schemas, spelled
from maskd.json_schema.compiler.punctuation import Punctuation
from maskd.json_schema.compiler.rules import Alternative, Rules
from maskd.regular.expression import ANYTHING, Expression
from maskd.regular.lark import as_json, as_text

__all__ = ["Symbols"]


class Symbols:
    """The symbols of one grammar.

    Attributes:
        punctuation: what stands around and between values.
        rules: what was written so far.
    """

    def __init__(self, punctuation: Punctuation) -> None:
        self.punctuation = punctuation
        self.rules = Rules()
        self._names: dict[Node, str] = {}
        self._waiting: list[Node] = []
        self._multiples: dict[tuple[str, ...], str] = {}

    def rule(self, node: Node) -> str:
        """Returns the name of the rule of ``node``, which is written later."""
        if node not in self._names:
            self._names[node] = self.rules.fresh("v")
            self._waiting.append(node)
        return self._names[node]

    def string(self, expression: Expression) -> str:
        """Returns the terminal of the JSON strings of ``expression``."""
        return self.rules.terminal(as_json(expression))

    def key(self, expression: Expression) -> str:
        """Returns the terminal of the keys of ``expression``."""
        return self.string(expression)

    def number(self, expression: Expression) -> str:
        """Returns the terminal of the numbers of ``expression``, or the rule of multiples that no terminal can name."""
        if schemas := tuple(as_schemas(expression)):
            if schemas not in self._multiples:
                ways = [Alternative(f"%json {schema}") for schema in schemas]
                self._multiples[schemas] = self.rules.add(self.rules.fresh("n"), ways)
            return self._multiples[schemas]
        return self.rules.terminal(ANY_NUMBER if expression is ANYTHING else as_text(spelled(expression)))

    def next_waiting(self) -> tuple[Node, str] | None:
        """Returns a node whose rule is to be written, and the name of the rule; None = there is none."""
        if not self._waiting:
            return None
        node = self._waiting.pop()
        return node, self._names[node]
