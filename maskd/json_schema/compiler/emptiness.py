"""Emptiness: which nodes no value satisfies.

A value is finite, so a schema that needs itself below itself is empty: the answer is a least fixpoint. It errs on one
side. "Empty" is always true. "Not empty" may be wrong where a regular expression takes too long to search.
Owns: the answers. Knows nothing about: keywords, grammars.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.contents import Contents
from maskd.json_schema.compiler.nodes import Node, Nodes
from maskd.json_schema.compiler.numbers import SHORTEST_SPELLING, may_be, spelled
from maskd.json_schema.compiler.presence import (
    ALWAYS,
    NEVER,
    And,
    AtLeast,
    Exists,
    Formula,
    Has,
    Leaf,
    Not,
    Or,
    all_of,
    any_of,
    negated,
    without_negated_groups,
)
from maskd.json_schema.compiler.values import ArrayShape, Labels, Members, ObjectShape, Value
from maskd.regular.amounts import count_texts
from maskd.regular.expression import NOTHING, Expression, Words, both, complement, matches, words
from maskd.regular.questions import may_match

__all__ = ["Emptiness", "Term"]

Term = tuple[tuple[Leaf, bool], ...]
"""A conjunction: leaves, each with whether it holds."""
_MOST_TERMS = 3_000
_QUESTION = 20
"""Units of work of a question about a regular expression, as a rule."""
_MOST_JOINED = 300_000
"""Leaves of all terms that one formula may take on the way: a second of work."""
_MOST_SPLITS = 256


class Emptiness:
    """Answers for the nodes of one compile.

    Args:
        nodes: the arena.
        value_of: what a node allows. May call back; what is being worked out is taken for not empty.
        few_values: the only values that a node can allow, if that is plain without looking into it.
    """

    def __init__(
        self,
        nodes: Nodes,
        value_of: Callable[[Node], Value | None],
        few_values: Callable[[Node], frozenset[Hashable] | None],
    ) -> None:
        self._nodes, self._value_of, self._few_values = nodes, value_of, few_values
        self._known: dict[Node, bool] = {nodes.anything: False, nodes.nothing: True}
        self._asked: list[Node] = []
        self._taken_for_empty = self._taken_for_full = 0
        self._members: dict[int, _Index] = {}
        self._simplified: dict[ObjectShape, tuple[Formula, list[Term] | None]] = {}

    def node(self, node: Node) -> bool:
        """Says whether no value satisfies ``node``."""
        if node in self._known:
            return self._known[node]
        if node in self._asked:
            self._taken_for_empty += 1
            return True
        value = self._value_of(node)
        if value is None:
            self._taken_for_full += 1
            return False
        self._asked.append(node)
        empty, full = self._taken_for_empty, self._taken_for_full
        try:
            found = self.value(value)
        finally:
            self._asked.pop()
        # An answer is kept if it does not rest on what was taken for so. The outermost question ends the iteration.
        if (empty == self._taken_for_empty or not self._asked) if found else full == self._taken_for_full:
            self._known[node] = found
        return found

    def splits(self, node: Node, cases: Sequence[tuple[Node, Node]]) -> Iterator[tuple[tuple[bool, ...], Node]]:
        """Yields every choice of the second (True) or the first (False) node of each of ``cases`` that ``node`` allows,
        with what is then allowed.

        Raises:
            GrammarTooLargeError: there are more than ``_MOST_SPLITS``.
        """
        found: list[tuple[tuple[bool, ...], Node]] = [((), node)]
        for case in cases:
            pairs = (
                ((*holds, is_so), self._nodes.all_of((part, case[is_so])))
                for holds, part in found
                for is_so in (False, True)
            )
            found = [(holds, part) for holds, part in pairs if not self.node(part)]
            if len(found) > _MOST_SPLITS:
                raise GrammarTooLargeError(
                    f"a value can satisfy {len(cases)} conditions in more than {_MOST_SPLITS} ways; "
                    "ask for less with contains, or with not and oneOf about members",
                    limit="splits",
                    value=_MOST_SPLITS,
                )
        yield from found

    def value(self, value: Value) -> bool:
        """Says whether ``value`` allows nothing."""
        return not (
            value.null
            or value.true
            or value.false
            or self._may_be(value.numbers)
            or self._may_match(value.strings)
            or not all(map(self.array, value.arrays))
            or not all(map(self.object, value.objects))
        )

    def _may_be(self, numbers: Expression) -> bool:
        self._nodes.work.spend(1 if numbers.plain else _QUESTION)
        return may_be(numbers, self._nodes.work.most_states)

    def _may_match(self, expression: Expression) -> bool:
        if not expression.plain:
            self._nodes.work.spend(_QUESTION)
        return may_match(expression, self._nodes.work.most_states)

    # -- arrays ----------------------------------------------------------------------------------------------------

    def longest(self, shape: ArrayShape) -> int | None:
        """Returns how many items ``shape`` can have; None = without limit."""
        for index, node in enumerate(shape.prefix[: shape.high]):
            if self.node(node):
                return index
        if (shape.high is None or shape.high > len(shape.prefix)) and self.node(shape.rest):
            return len(shape.prefix)
        return shape.high

    def array(self, shape: ArrayShape) -> bool:
        """Says whether no array has ``shape``."""
        longest = self.longest(shape) if shape.low or shape.contains or shape.unique is False else shape.high
        if longest is not None and longest < max(shape.low, 2 if shape.unique is False else 0):
            return True
        if shape.unique and self._has_fewer(shape.rest, shape.low - len(shape.prefix)):
            return True
        if not shape.contains:
            return False
        contents = Contents(self._nodes, self.node, self.splits, shape, longest)
        return contents.is_known and not contents.rooms(0, (0,) * len(shape.contains))

    def _has_fewer(self, node: Node, number: int) -> bool:
        """Says whether certainly fewer than ``number`` values satisfy ``node``."""
        value = self._value_of(node) if number > 1 else None
        if value is None or not all(map(self.array, value.arrays)) or not all(map(self.object, value.objects)):
            return False
        found = value.null + value.true + value.false
        for texts in (value.strings, both(spelled(value.numbers), SHORTEST_SPELLING)):
            self._nodes.work.spend(_QUESTION)
            if found >= number or (count := count_texts(texts, number - found)) is None:
                return False
            found += count
        return found < number

    # -- objects ---------------------------------------------------------------------------------------------------

    def object(self, shape: ObjectShape) -> bool:
        """Says whether no object has ``shape``."""
        return shape.presence != ALWAYS and self.presence(shape)[0] == NEVER

    def object_at_sight(self, shape: ObjectShape) -> bool:
        """Says whether no object has ``shape``, if that is seen without trying combinations; False = perhaps not.

        What must hold is taken for granted, and what it rules out is left away, until nothing more follows.
        """
        if not all(self.labels(shape).values()):
            return True
        holds: dict[Leaf, bool] = {}
        waiting = [without_negated_groups(shape.presence)]
        options: list[Or] = []
        while True:
            while waiting:
                formula = waiting.pop()
                if isinstance(formula, And):
                    waiting += formula.parts
                elif isinstance(formula, Or):
                    options.append(formula)
                else:
                    leaf, is_so = (formula.inner, False) if isinstance(formula, Not) else (formula, True)
                    assert not isinstance(leaf, Not | And | Or)
                    if holds.setdefault(leaf, is_so) != is_so:
                        return True
                    if is_so and isinstance(leaf, Has) and self.named(shape, leaf.name) is self._nodes.nothing:
                        return True
            remaining: list[Or] = []
            for option in options:
                kept = [part for part in option.parts if _may_hold(part, holds)]
                if not kept:
                    return True
                if len(kept) == 1:
                    waiting.append(kept[0])
                else:
                    remaining.append(Or(tuple(kept)))
            options = remaining
            if not waiting:
                return False

    def labels(self, shape: ObjectShape) -> Labels:
        """Returns the only values, if they are plain, of names that every object of ``shape`` has."""
        presence = shape.presence.parts if isinstance(shape.presence, And) else (shape.presence,)
        required = {part.name for part in presence if isinstance(part, Has)}
        found: dict[str, frozenset[Hashable]] = {}
        for members in shape.members if required else ():
            if isinstance(members.keys, Words):
                for name in required & members.keys.texts:
                    if (values := self._few_values(members.node)) is not None:
                        found[name] = found.get(name, values) & values
        return found

    def named(self, shape: ObjectShape, name: str) -> Node:
        """Returns what the member ``name`` of ``shape`` satisfies."""
        key = id(shape.members)
        if key not in self._members:
            self._members[key] = _Index(shape.members)
        return self._members[key].node(name, self._nodes)

    def presence(self, shape: ObjectShape) -> tuple[Formula, list[Term] | None]:
        """Returns the presence formula of ``shape`` without what cannot be, and its terms; None = too many."""
        if shape in self._simplified:
            return self._simplified[shape]
        taken = self._taken_for_empty, self._taken_for_full
        formula = self._possible(without_negated_groups(shape.presence), shape)
        terms = _terms(formula)
        if terms is not None:
            names = self._only_names(shape)
            terms = [term for term in terms if _is_consistent(term, names) and self._has_room(term, shape)]
        found: tuple[Formula, list[Term] | None] = (NEVER, []) if terms == [] else (formula, terms)
        if taken == (self._taken_for_empty, self._taken_for_full):
            self._simplified[shape] = found
        return found

    def _only_names(self, shape: ObjectShape) -> frozenset[str] | None:
        """Returns the names that members of ``shape`` can have; None if they are without number."""
        keys = both(*(complement(members.keys) for members in shape.members if members.node is self._nodes.nothing))
        if not isinstance(keys, Words):
            return None if keys is not NOTHING else frozenset()
        return frozenset(name for name in keys.texts if not self.node(self.named(shape, name)))

    def _has_room(self, term: Term, shape: ObjectShape) -> bool:
        """Says whether ``term`` can hold if there is room for its names only: they must do what has to be done."""
        names = {leaf.name for leaf, is_so in term if is_so and isinstance(leaf, Has)}
        most = min((leaf.count - 1 for leaf, is_so in term if not is_so and isinstance(leaf, AtLeast)), default=None)
        if most != len(names):
            return True
        return all(
            any(matches(leaf.keys, name) and not self._never(shape, name, leaf.node) for name in names)
            for leaf, is_so in term
            if is_so and isinstance(leaf, Exists)
        )

    def _never(self, shape: ObjectShape, name: str, node: Node) -> bool:
        return self.node(self._nodes.all_of((self.named(shape, name), node)))

    def _possible(self, formula: Formula, shape: ObjectShape) -> Formula:
        match formula:
            case Has(name=name):
                return NEVER if self.node(self.named(shape, name)) else formula
            case Exists():
                return self._possible_event(formula, shape)
            case Not(inner=inner):
                return negated(self._possible(inner, shape))
            case And(parts=parts):
                return all_of(self._possible(part, shape) for part in parts)
            case Or(parts=parts):
                return any_of(self._possible(part, shape) for part in parts)
        return formula

    def _possible_event(self, event: Exists, shape: ObjectShape) -> Formula:
        """Returns ``event`` for the keys that ``shape`` can have; a name whose value satisfies it anyway need only be
        there."""
        nodes = self._nodes
        keys = both(
            event.keys, *(complement(members.keys) for members in shape.members if members.node is nodes.nothing)
        )
        if not isinstance(keys, Words):
            return Exists(keys, event.node) if self._may_have(keys, event.node, shape) else NEVER
        found: list[Formula] = []
        unsure = []
        for name in sorted(keys.texts):
            named = self.named(shape, name)
            if self._never(shape, name, event.node):
                continue
            if self.node(nodes.all_of((named, nodes.opposite(event.node)))):
                found.append(Has(name))
            else:
                unsure.append(name)
        return any_of([*found, *([Exists(words(unsure), event.node)] if unsure else [])])

    def _may_have(self, keys: Expression, node: Node, shape: ObjectShape) -> bool:
        """Says whether objects of ``shape`` can have a member of ``keys`` whose value satisfies ``node``."""
        names = {name for one in shape.members if isinstance(one.keys, Words) for name in one.keys.texts}
        others = tuple(one for one in shape.members if not isinstance(one.keys, Words))
        return self._may_have_unnamed(both(keys, complement(words(names))), node, others) or any(
            matches(keys, name) and not self._never(shape, name, node) for name in names
        )

    def _may_have_unnamed(self, keys: Expression, node: Node, members: tuple[Members, ...]) -> bool:
        if self.node(node) or not self._may_match(keys):
            return False
        if not members:
            return True
        within, outside = both(keys, members[0].keys), both(keys, complement(members[0].keys))
        return self._may_have_unnamed(outside, node, members[1:]) or self._may_have_unnamed(
            within, self._nodes.all_of((node, members[0].node)), members[1:]
        )


class _Index:
    """The members of a shape, found by name. Holds them, so that their identity is theirs alone."""

    def __init__(self, members: tuple[Members, ...]) -> None:
        self.members = members
        self._by_name: dict[str, list[Node]] = {}
        self._others: list[Members] = []
        self._known: dict[str, Node] = {}
        for one in members:
            if isinstance(one.keys, Words):
                for name in one.keys.texts:
                    self._by_name.setdefault(name, []).append(one.node)
            else:
                self._others.append(one)

    def node(self, name: str, nodes: Nodes) -> Node:
        if name not in self._known:
            others = (one.node for one in self._others if matches(one.keys, name))
            self._known[name] = nodes.all_of((*self._by_name.get(name, ()), *others))
        return self._known[name]


def _terms(formula: Formula) -> list[Term] | None:
    """Returns the disjunctive normal form of a formula in which only leaves are negated."""
    match formula:
        case Or(parts=parts):
            found: list[Term] = []
            for part in parts:
                terms = _terms(part)
                if terms is None or len(found) + len(terms) > _MOST_TERMS:
                    return None
                found += terms
            return found
        case And(parts=parts):
            product: list[Term] = [tuple(_signed(part) for part in parts if not isinstance(part, And | Or))]
            work = 0
            for part in (part for part in parts if isinstance(part, And | Or)):
                terms = _terms(part)
                if terms is None:
                    return None
                work += len(product) * len(terms) * (len(product[-1]) + 1 if product else 1)
                if work > _MOST_JOINED:
                    return None
                pairs = (_joined(one, other) for one, other in itertools.product(product, terms))
                product = list(dict.fromkeys(term for term in pairs if term is not None))
                if len(product) > _MOST_TERMS:
                    return None
            return product
    return [(_signed(formula),)]


def _signed(formula: Not | Leaf) -> tuple[Leaf, bool]:
    if not isinstance(formula, Not):
        return formula, True
    assert not isinstance(formula.inner, Not | And | Or)
    return formula.inner, False


def _may_hold(formula: Formula, holds: Mapping[Leaf, bool]) -> bool:
    match formula:
        case Not(inner=inner):
            return holds.get(inner) is not True if not isinstance(inner, Not | And | Or) else True
        case And(parts=parts):
            return all(_may_hold(part, holds) for part in parts)
        case Or(parts=parts):
            return any(_may_hold(part, holds) for part in parts)
    return holds.get(formula) is not False


def _joined(one: Term, other: Term) -> Term | None:
    """Returns both together; None if they contradict each other."""
    holds = dict(one)
    if any(holds.setdefault(leaf, is_so) != is_so for leaf, is_so in other):
        return None
    return tuple(holds.items())


def _is_consistent(term: Term, names: frozenset[str] | None) -> bool:
    """Says whether ``term`` can hold for an object whose members have no other names than ``names``; None = any."""
    holds = dict(term)
    if len(holds) < len(term):  # a leaf and its opposite
        return False
    least = max((leaf.count for leaf, is_so in term if is_so and isinstance(leaf, AtLeast)), default=0)
    most = min((leaf.count - 1 for leaf, is_so in term if not is_so and isinstance(leaf, AtLeast)), default=None)
    there = sum(is_so for leaf, is_so in term if isinstance(leaf, Has))
    if most is not None and max(least, there) > most:
        return False
    missing = {leaf.name for leaf, is_so in term if not is_so and isinstance(leaf, Has)}
    if names is not None and least > len(names - missing):
        return False
    finite = (
        leaf.keys.texts for leaf, is_so in term if is_so and isinstance(leaf, Exists) and isinstance(leaf.keys, Words)
    )
    return not any(texts <= missing for texts in finite)
