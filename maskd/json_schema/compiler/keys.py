"""The keys of an object: names of which something is said, and classes of all others.

Owns: the division of keys. Knows nothing about: grammars, in which order members come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskd.errors import GrammarTooLargeError
from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.presence import Exists, Formula, Has, Leaf, leaves
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import ObjectShape
from maskd.regular.expression import (
    ANYTHING,
    NOTHING,
    Both,
    Complement,
    Expression,
    Union,
    Words,
    both,
    choice,
    complement,
    matches,
    words,
)
from maskd.regular.questions import may_match

__all__ = ["Key", "Keys"]

_MOST_CLASSES = 64


@dataclass(frozen=True, slots=True)
class Key:
    """Members that are alike.

    Attributes:
        name: of the member; None = a class of keys without a name of their own.
        keys: the keys.
        node: what the value satisfies.
        events: the ``Exists`` leaves that the member can make true.
    """

    name: str | None
    keys: Expression
    node: Node
    events: tuple[Exists, ...]


class Keys:
    """The keys that an object of ``shape`` with ``presence`` can have.

    Attributes:
        events: the ``Exists`` leaves of the formula.
        named: a key for each name, in the order of the schema.
        classes: the keys without a name, divided by what their values satisfy and which events they make true.

    Raises:
        GrammarTooLargeError: patterns divide the keys into too many classes.
    """

    def __init__(self, reader: SchemaReader, shape: ObjectShape, presence: Formula) -> None:
        self._nodes, self._emptiness, self._shape = reader.nodes, reader.emptiness, shape
        found = list(dict.fromkeys(leaves(presence)))
        self.events = [leaf for leaf in found if isinstance(leaf, Exists)]
        names = self._names(found)
        self.classes = self._unnamed(words(names))
        self.named = [self._key(name) for name in names if not self._emptiness.node(self._node(name))]

    def _names(self, found: Sequence[Leaf]) -> list[str]:
        """Returns every name that something is said about, in the order of the schema."""
        names: dict[str, None] = {}
        for members in self._shape.members:
            names.update(dict.fromkeys(_texts(members.keys)))
        for leaf in found:
            names.update(dict.fromkeys([leaf.name] if isinstance(leaf, Has) else []))
            names.update(dict.fromkeys(_texts(leaf.keys) if isinstance(leaf, Exists) else []))
        return list(names)

    def _node(self, name: str) -> Node:
        return self._emptiness.named(self._shape, name)

    def _key(self, name: str) -> Key:
        events = tuple(event for event in self.events if matches(event.keys, name))
        return Key(name, words((name,)), self._node(name), events)

    def _unnamed(self, named: Expression) -> list[Key]:
        """Divides the keys without a name into classes whose values satisfy the same, and make the same events true."""
        classes: list[tuple[Expression, tuple[Node, ...], tuple[Exists, ...]]] = [(ANYTHING, (), ())]
        constraints: list[tuple[Expression, tuple[Node, ...], tuple[Exists, ...]]] = [
            *((_unworded(members.keys), (members.node,), ()) for members in self._shape.members),
            *((_unworded(event.keys), (), (event,)) for event in self.events),
        ]
        for keys, nodes, events in constraints:
            if keys is NOTHING:
                continue
            divided = []
            for others, known, seen in classes:
                divided.append((both(others, keys), (*known, *nodes), (*seen, *events)))
                divided.append((both(others, complement(keys)), known, seen))
            classes = [entry for entry in divided if entry[0] is ANYTHING or may_match(entry[0])]
            if len(classes) > _MOST_CLASSES:
                raise GrammarTooLargeError(
                    f"an object's patterns divide its keys into more than {_MOST_CLASSES} classes; "
                    "write fewer patternProperties that overlap",
                    keyword="patternProperties",
                    limit="key_classes",
                    value=_MOST_CLASSES,
                )
        found = []
        for keys, nodes, events in classes:
            node, rest = self._nodes.all_of(nodes), both(keys, complement(named))
            if not self._emptiness.node(node) and (rest is ANYTHING or may_match(rest)):
                found.append(Key(None, rest, node, events))
        return found


def _texts(keys: Expression) -> list[str]:
    """Returns the words that ``keys`` names, negated or not."""
    match keys:
        case Words(texts=texts):
            return sorted(texts) if len(texts) > 1 else list(texts)
        case Complement(inner=inner):
            return _texts(inner)
        case Union(parts=parts) | Both(parts=parts):
            return sorted(text for part in parts for text in _texts(part))
    return []


def _unworded(keys: Expression) -> Expression:
    """Returns ``keys`` for keys that are none of its words."""
    match keys:
        case Words():
            return NOTHING
        case Complement(inner=inner):
            return complement(_unworded(inner))
        case Union(parts=parts):
            return choice(*map(_unworded, parts))
        case Both(parts=parts):
            return both(*map(_unworded, parts))
    return keys
