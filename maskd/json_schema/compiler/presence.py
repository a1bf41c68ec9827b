"""Formulas over which members an object has: the part of an object schema that is not about one value alone.

A leaf asks about the members that were written so far. Is there one of that name (``Has``)? One whose key and value
satisfy something (``Exists``)? Are there so many of them (``AtLeast``)? Parts keep the order in which they came.
Knows nothing about: schemas, grammars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from maskd.json_schema.compiler.nodes import Node
from maskd.regular.expression import Expression

__all__ = [
    "ALWAYS",
    "NEVER",
    "And",
    "AtLeast",
    "Exists",
    "Formula",
    "Has",
    "Leaf",
    "Not",
    "Or",
    "all_of",
    "any_of",
    "conjuncts",
    "holds_without_members",
    "leaves",
    "negated",
    "without_negated_groups",
]


@dataclass(frozen=True, slots=True)
class Has:
    """There is a member of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Exists:
    """There is a member whose key is one of ``keys`` and whose value satisfies ``node``."""

    keys: Expression
    node: Node


@dataclass(frozen=True, slots=True)
class AtLeast:
    """There are ``count`` members or more; at least 1."""

    count: int


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a leaf, or of a group."""

    inner: Formula


@dataclass(frozen=True, slots=True)
class And:
    """All of ``parts``; without parts it always holds."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of ``parts``; without parts it never holds."""

    parts: tuple[Formula, ...]


Leaf: TypeAlias = Has | Exists | AtLeast
Formula: TypeAlias = Has | Exists | AtLeast | Not | And | Or
ALWAYS = And(())
NEVER = Or(())


def negated(formula: Formula) -> Formula:
    """Returns the opposite of ``formula``."""
    if formula == ALWAYS:
        return NEVER
    if formula == NEVER:
        return ALWAYS
    return formula.inner if isinstance(formula, Not) else Not(formula)


def all_of(formulas: Iterable[Formula]) -> Formula:
    """Returns what holds if all of ``formulas`` do."""
    return _group(formulas, And, NEVER)


def any_of(formulas: Iterable[Formula]) -> Formula:
    """Returns what holds if one of ``formulas`` does."""
    return _group(formulas, Or, ALWAYS)


def _group(formulas: Iterable[Formula], kind: type[And | Or], absorbing: Formula) -> Formula:
    parts: dict[Formula, None] = {}
    for formula in formulas:
        for part in formula.parts if isinstance(formula, kind) else (formula,):
            if part == absorbing or negated(part) in parts:
                return absorbing
            parts[part] = None
    return next(iter(parts)) if len(parts) == 1 else kind(tuple(parts))


def without_negated_groups(formula: Formula, *, negative: bool = False) -> Formula:
    """Returns the same formula, in which only leaves are negated."""
    match formula:
        case Not(inner=inner):
            return without_negated_groups(inner, negative=not negative)
        case And(parts=parts) | Or(parts=parts):
            inside = [without_negated_groups(part, negative=negative) for part in parts]
            return all_of(inside) if isinstance(formula, And) != negative else any_of(inside)
    return Not(formula) if negative else formula


def leaves(formula: Formula) -> Iterator[Leaf]:
    """Yields the leaves of ``formula``, from the left; some more than once."""
    match formula:
        case Not(inner=inner):
            yield from leaves(inner)
        case And(parts=parts) | Or(parts=parts):
            for part in parts:
                yield from leaves(part)
        case _:
            yield formula


def conjuncts(formula: Formula) -> Sequence[Formula]:
    """Returns the formulas that must all hold for ``formula`` to hold."""
    return formula.parts if isinstance(formula, And) else (formula,)


def holds_without_members(formula: Formula) -> bool:
    """Says whether ``formula`` holds for an object without members."""
    match formula:
        case Not(inner=inner):
            return not holds_without_members(inner)
        case And(parts=parts):
            return all(map(holds_without_members, parts))
        case Or(parts=parts):
            return any(map(holds_without_members, parts))
    return False
