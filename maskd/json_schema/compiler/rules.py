"""Rules and terminals, and their text in llguidance's Lark.

A parametric rule carries one 64-bit number: alternatives ask about its bits and change them. That is how an object
remembers which members it has, and an array how many of its items matched.
Owns: names, conditions, what cannot be completed being left out, the text. Knows nothing about: schemas.
Source: llguidance, docs/parametric.md and docs/syntax.md of 1.9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from maskd.errors import GrammarTooLargeError, GrammarUnsatisfiableError

__all__ = ["PARAMETER_BITS", "Alternative", "Bits", "BitField", "Rules", "all_hold", "any_holds"]

PARAMETER_BITS = 64
_MOST_RULES = 20_000
_ALWAYS = "le([0:1],1)"
"""A condition that always holds. Without one, llguidance 1.9.1 drops the change that an alternative of a single symbol
makes to its parameter."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to satisfy a rule.

    Attributes:
        text: its symbols, as Lark has them.
        uses: the rules among them: it can be completed only if all of them can.
        condition: when it may be taken; "" = always.
    """

    text: str
    uses: tuple[str, ...] = ()
    condition: str = ""


@dataclass(frozen=True, slots=True)
class BitField:
    """Bits ``first`` to ``last``, without the last, of a parameter, as a number that counts up to their maximum."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"[{self.first}:{self.last}]"

    def at_least(self, number: int) -> str:
        """The condition that the count is ``number`` or more."""
        return f"ge({self},{number})"

    def below(self, number: int) -> str:
        """The condition that the count is below ``number``."""
        return f"lt({self},{number})"

    def counted(self) -> str:
        """The change that counts one more."""
        return f"incr({self})"


class Bits:
    """Hands out the bits of one parameter."""

    def __init__(self) -> None:
        self.used = 0

    def field(self, maximum: int) -> BitField:
        """Returns a field that counts up to ``maximum``."""
        first = self.used
        self.used += max(1, maximum.bit_length())
        return BitField(first, self.used)

    def bit(self) -> int:
        """Returns one bit."""
        self.used += 1
        return self.used - 1


class Rules:
    """The rules and terminals of one grammar."""

    def __init__(self) -> None:
        self._rules: dict[str, tuple[bool, Sequence[Alternative]]] = {}
        self._terminals: dict[str, str] = {}
        self._numbers = 0

    def fresh(self, prefix: str) -> str:
        """Returns a name for a rule that is added later."""
        self._numbers += 1
        return f"{prefix}{self._numbers}"

    def add(self, name: str, alternatives: Sequence[Alternative], *, parametric: bool = False) -> str:
        """Adds a rule and returns its name."""
        if len(self._rules) >= _MOST_RULES:
            raise GrammarTooLargeError(
                f"the schema needs more than {_MOST_RULES} rules; give it fewer parts, or fewer alternatives",
                pointer="",
                limit="rules",
                value=_MOST_RULES,
            )
        self._rules[name] = parametric, alternatives
        return name

    def terminal(self, text: str) -> str:
        """Returns the name of the terminal ``text``."""
        return self._terminals.setdefault(text, f"T{len(self._terminals)}")

    def changed(self, symbols: str, uses: str, target: str, changes: Sequence[str], condition: str) -> Alternative:
        """Returns ``symbols`` and then ``target`` with all ``changes`` made to the parameter.

        A symbol makes one change, so further ones are made by helpers before ``symbols``: a recursion that is the only
        symbol of a helper makes llguidance 1.9.1 panic.
        """
        if len(changes) <= 1:
            change = changes[0] if changes else "_"
            return Alternative(f"{symbols} {target}::{change}", (uses, target), condition)
        helper = self.fresh("h")
        self.add(helper, [Alternative(f"{symbols} {target}::{changes[-1]}", (uses, target))], parametric=True)
        for change in changes[-2:0:-1]:
            outer = self.fresh("h")
            helper = self.add(outer, [Alternative(f"{helper}::{change}", (helper,))], parametric=True)
        return Alternative(f"{helper}::{changes[0]}", (helper,), condition)

    def lark(self, start: str, options: Sequence[str]) -> str:
        """Returns the grammar. Alternatives that can never be completed are left out.

        Raises:
            GrammarUnsatisfiableError: nothing satisfies ``start``.
        """
        lines = [*options, f"start: {start}"]
        for name, parametric, kept in self.completable(start):
            conditions = (alternative.condition or (_ALWAYS if parametric else "") for alternative in kept)
            texts = [
                f"{alternative.text} %if {condition}" if condition else alternative.text
                for alternative, condition in zip(kept, conditions, strict=True)
            ]
            lines.append(f"{name}{'::_' if parametric else ''}: " + "\n | ".join(texts))
        lines += (f"{name}: {text}" for text, name in self._terminals.items())
        return "\n".join(lines) + "\n"

    def completable(self, start: str) -> Iterator[tuple[str, bool, list[Alternative]]]:
        """Yields every rule, whether it is parametric, and its alternatives, without what can never be completed.

        Raises:
            GrammarUnsatisfiableError: nothing satisfies ``start``.
        """
        complete = self._completable()
        if start not in complete:
            raise GrammarUnsatisfiableError("nothing satisfies the schema")
        for name, (parametric, alternatives) in self._rules.items():
            kept = [alternative for alternative in alternatives if complete.issuperset(alternative.uses)]
            if kept:
                yield name, parametric, kept

    def _completable(self) -> set[str]:
        """Returns the rules that some finite text satisfies, conditions left aside: a least fixpoint."""
        waiting: dict[str, list[tuple[str, list[int]]]] = {}
        complete: list[str] = []
        found: set[str] = set()
        for name, (_, alternatives) in self._rules.items():
            for alternative in alternatives:
                needed = set(alternative.uses)
                left = [len(needed)]
                for use in needed:
                    waiting.setdefault(use, []).append((name, left))
                if not needed and name not in found:
                    found.add(name)
                    complete.append(name)
        while complete:
            for name, left in waiting.get(complete.pop(), ()):
                left[0] -= 1
                if not left[0] and name not in found:
                    found.add(name)
                    complete.append(name)
        return found


def all_hold(conditions: Iterable[str]) -> str:
    """Returns the condition that all of ``conditions`` hold; "" always does."""
    kept = list(dict.fromkeys(condition for condition in conditions if condition))
    return _balanced("and", kept) if kept else ""


def any_holds(conditions: Iterable[str]) -> str:
    """Returns the condition that one of ``conditions`` holds, which are not empty; "" always holds."""
    kept = list(dict.fromkeys(conditions))
    return "" if "" in kept else _balanced("or", kept)


def _balanced(operator: str, conditions: list[str]) -> str:
    """Nests pairs, as deep as the logarithm of their number. llguidance reads them by recursion."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    return f"{operator}({_balanced(operator, conditions[:half])},{_balanced(operator, conditions[half:])})"
