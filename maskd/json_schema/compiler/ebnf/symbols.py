"""Symbols of EBNF: the names by which its rules know nodes, strings and numbers; and what was left away.

Owns: one rule for each node, one for each language, the text of the grammar, the list of losses.
Knows nothing about: arrays, objects, what keywords mean.
Source: xgrammar, docs/defining_structures/ebnf_grammar.md of 0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, Unenforced
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.numbers import JSON_NUMBER, spelled
from maskd.json_schema.compiler.punctuation import ebnf_punctuation
from maskd.json_schema.compiler.refusals import places
from maskd.json_schema.compiler.symbols import Symbols
from maskd.regular.ebnf import as_json, as_text
from maskd.regular.expression import ANYTHING, Expression, Words

__all__ = ["EbnfSymbols"]

Write = Callable[[Expression, Callable[[], str]], tuple[str, list[str]]]
"""Writes an expression: returns its text, and the rules that it needs."""


class EbnfSymbols(Symbols):
    """The symbols of one grammar.

    Args:
        options: white space and separators.
        root: the node that the whole text is.

    Attributes:
        losses: what the rules let through although the schema does not, by pointer and keyword.
        is_ordered: whether members had to be put into an order.
    """

    def __init__(self, options: GrammarOptions, root: Node) -> None:
        super().__init__(ebnf_punctuation(options))
        self.losses: dict[tuple[str, str], Unenforced] = {}
        self.is_ordered = False
        self._root = self._node = root
        self._written: dict[tuple[str, Expression], str] = {}
        self._lines: list[str] = []
        # The library looks at these when it sorts tokens that go on behind a string: most of them do not fit.
        white = self.punctuation.object_end.rpartition('"}"')[0]
        self._behind_key = f"(=({self.punctuation.colon}))"
        self._behind_value = rf"(=({white}[,}}\]]))" if (options.item_separator or ",")[0] == "," else ""

    def next_waiting(self) -> tuple[Node, str] | None:
        """As of ``Symbols``. What is lost is noted for that node."""
        found = super().next_waiting()
        if found is not None:
            self._node = found[0]
        return found

    def ebnf(self, start: str) -> str:
        """Returns the grammar. Alternatives that can never be completed are left out.

        Raises:
            GrammarUnsatisfiableError: nothing satisfies ``start``.
        """
        lines = [f"root ::= {start}"]
        for name, _, alternatives in self.rules.completable(start):
            lines.append(f"{name} ::= " + " | ".join(alternative.text for alternative in alternatives))
        return "\n".join((*lines, *self._lines)) + "\n"

    # -- strings and numbers ---------------------------------------------------------------------------------------

    def string(self, expression: Expression) -> str:
        """Returns the rule of a value that is a JSON string of ``expression``."""
        behind = "" if self._node is self._root else self._behind_value  # anything may follow the whole text
        return self._rule(expression, as_json, behind, ("pattern", "format", "minLength", "maxLength"))

    def key(self, expression: Expression) -> str:
        """Returns what is written for the keys of ``expression``."""
        if isinstance(expression, Words) and len(expression.texts) == 1:
            return as_json(expression, self._fresh)[0]
        return self._rule(expression, as_json, self._behind_key, ("patternProperties", "propertyNames"))

    def number(self, expression: Expression) -> str:
        """Returns the rule of the numbers of ``expression``."""
        expression = JSON_NUMBER if expression is ANYTHING else spelled(expression)
        return self._rule(expression, as_text, "", ("multipleOf", "minimum", "maximum"))

    def _rule(self, expression: Expression, write: Write, behind: str, keywords: Sequence[str]) -> str:
        known = (write.__name__ + behind, expression)
        if known not in self._written:
            try:
                text, lines = write(expression, self._fresh)
            except (GrammarTooLargeError, GrammarUnsupportedError) as error:
                self.lose(keywords, f"it is not applied: {error.message}")
                text, lines = write(JSON_NUMBER if write is as_text else ANYTHING, self._fresh)
            name = self._written[known] = self._fresh()
            self._lines += (*lines, f"{name} ::= {text} {behind}")
        return self._written[known]

    def _fresh(self) -> str:
        return self.rules.fresh("t")

    # -- what is left away -----------------------------------------------------------------------------------------

    def lose(self, keywords: Sequence[str], effect: str) -> None:
        """Adds that the first of ``keywords`` that is there is not enforced for the node that is being written."""
        found = list(places(self._node))
        place, keyword = next(
            ((place, keyword) for place in found for keyword in keywords if keyword in place.schema),
            (found[0] if found else None, keywords[0]),
        )
        keys = (keyword,) if place is not None and keyword in place.schema else ()
        pointer = place.at(*keys) if place is not None else ""
        self.losses.setdefault((pointer, keyword), Unenforced(pointer, keyword, effect))
