"""Which values a schema lets through: types, constants, and whether alternatives exclude each other.

Owns: ``Types``, ``are_disjoint``; how xgrammar reads a type (``DECIDING``, ``types_of``).
Knows nothing about: grammars, backends.
"""

from __future__ import annotations

from collections.abc import Callable

from maskd.json_schema.keywords import TYPES, declared_types
from maskd.json_schema.strict_json import Json

__all__ = ["DECIDING", "Types", "are_disjoint", "constants", "deciding_keyword", "has_type", "types_of"]

DECIDING = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf", "type")
"""The first of these that a schema has decides what xgrammar reads of it."""

_IMPLIES_OBJECT = ("properties", "additionalProperties", "unevaluatedProperties")
_IMPLIES_ARRAY = ("items", "prefixItems", "unevaluatedItems")


def deciding_keyword(node: Json) -> str | None:
    """Returns the first keyword of ``DECIDING`` that the schema has, if any."""
    return next((keyword for keyword in DECIDING if keyword in node), None)


def types_of(node: Json) -> tuple[str, ...]:
    """Returns the types that xgrammar gives a schema whose deciding keyword is ``type`` or None; () = any value."""
    if "type" in node:
        return declared_types(node)
    if any(keyword in node for keyword in _IMPLIES_OBJECT):
        return ("object",)
    return ("array",) if any(keyword in node for keyword in _IMPLIES_ARRAY) else ()


def has_type(value: Json, name: str) -> bool:
    """Whether ``value`` is of the JSON Schema type ``name``."""
    kinds = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
    if name in kinds:
        return isinstance(value, kinds[name])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return name == "number" or isinstance(value, int) or value.is_integer()


class Types:
    """Which types a value of a schema can have: too many rather than too few. Remembers what it found.

    Args:
        lookup: returns the schema that a ``$ref`` leads to. No chain of references may lead back to itself.
        types_of: returns the types of a schema whose deciding keyword is ``type`` or None; () = any value.
    """

    def __init__(self, lookup: Callable[[str], Json], types_of: Callable[[Json], tuple[str, ...]] = types_of) -> None:
        self._lookup = lookup
        self._types_of = types_of
        self._known: dict[int, frozenset[str]] = {}

    def resolved(self, node: Json) -> Json:
        """Returns ``node``, or the schema that it leads to if it is a ``$ref``."""
        while isinstance(node, dict) and "$ref" in node:
            node = self._lookup(node["$ref"])
        return node

    def of(self, node: Json, depth: int = 8) -> frozenset[str]:
        """Returns the types of ``node``; "number" stands for numbers that are not integers."""
        node = self.resolved(node)
        if not isinstance(node, dict) or depth == 0:
            return frozenset(TYPES)
        if id(node) not in self._known:
            self._known[id(node)] = frozenset(TYPES)  # for a schema that contains itself
            self._known[id(node)] = self._of(node, depth)
        return self._known[id(node)]

    def _of(self, node: Json, depth: int) -> frozenset[str]:
        deciding = deciding_keyword(node)
        values = constants(node)
        if values is not None:
            return frozenset(
                name
                for value in values
                for name in TYPES
                if has_type(value, name) and not (name == "number" and has_type(value, "integer"))
            )
        if deciding in ("anyOf", "oneOf") or (deciding == "allOf" and len(node["allOf"]) == 1):
            return frozenset[str]().union(*(self.of(branch, depth - 1) for branch in node[deciding]))
        return frozenset(TYPES if deciding == "allOf" else self._types_of(node) or TYPES)


def constants(node: Json) -> list[Json] | None:
    """Returns the only values that a schema allows; None if it does not list them."""
    if not isinstance(node, dict) or "$ref" in node:
        return None
    return [node["const"]] if "const" in node else node.get("enum")


_Facts = tuple[frozenset[str], "set[Json] | None", "dict[str, set[Json]]"]
"""Types of a schema; its constants, if it lists them; the constants of its required properties."""

_PAIRWISE_LIMIT = 64


def are_disjoint(types: Types, branches: list[Json]) -> bool:
    """Whether no value can match two of ``branches``, by types, constants and constants in required properties."""
    facts = [_facts(types, types.resolved(branch)) for branch in branches]
    if _all_differ([fact[1] for fact in facts]) or any(
        _all_differ([fact[2].get(name) for fact in facts]) for name in facts[0][2]
    ):
        return True
    if len(facts) > _PAIRWISE_LIMIT:
        return False
    return all(_apart(one, other) for index, one in enumerate(facts) for other in facts[:index])


def _all_differ(sets: list[set[Json] | None]) -> bool:
    known = [values for values in sets if values is not None]
    return len(known) == len(sets) and sum(map(len, known)) == len(set[Json]().union(*known))


def _facts(types: Types, node: Json) -> _Facts:
    allowed = types.of(node)
    allowed |= {"integer"} if "number" in allowed else frozenset()
    values = constants(node)
    tags: dict[str, set[Json]] = {}
    if allowed == {"object"} and deciding_keyword(node) in (None, "type"):
        for name in node.get("required", ()):
            tag = constants((node.get("properties") or {}).get(name))
            if tag is not None:
                tags[name] = set(map(_key, tag))
    return allowed, None if values is None else set(map(_key, values)), tags


def _apart(one: _Facts, other: _Facts) -> bool:
    if not one[0] & other[0]:
        return True
    if one[1] is not None and other[1] is not None:
        return not one[1] & other[1]
    return any(name in other[2] and not values & other[2][name] for name, values in one[2].items())


def _key(value: Json) -> Json:
    """Returns a hashable value, equal for equal JSON values: 1.0 equals 1, and ``True`` does not."""
    if isinstance(value, list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return frozenset((name, _key(item)) for name, item in value.items())
    return (isinstance(value, bool), value)
