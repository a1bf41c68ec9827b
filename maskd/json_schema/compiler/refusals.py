"""Refusals: where in the schema an error comes from.

A language, a shape or a limit does not know which keyword it was made of. The stage that works on a schema knows, and
gives its errors the JSON pointer and the keyword.
Owns: how errors get them. Knows nothing about: what is refused, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from maskd.errors import GrammarError
from maskd.json_schema.compiler.documents import Place
from maskd.json_schema.compiler.nodes import AllOf, AnyOf, Node, Opposite, Reference

__all__ = ["located", "located_below", "places"]

_LIKELY = (
    "unevaluatedProperties", "unevaluatedItems", "oneOf", "anyOf", "if", "not", "allOf", "dependentSchemas",
    "dependencies", "dependentRequired", "contains", "uniqueItems", "patternProperties", "required", "enum", "pattern",
    "maxLength", "minLength", "multipleOf", "properties", "items", "$ref",
)  # fmt: skip
"""Keywords that may be the cause of an error that names none, the likeliest first."""


@contextlib.contextmanager
def located(place: Place, *keys: str) -> Iterator[None]:
    """Gives errors that are raised within, and have none, the pointer of a keyword of ``place``.

    ``keys``: the keyword, and the entry in it; without them it is the keyword that the error names, or a likely one.
    """
    try:
        yield
    except GrammarError as error:
        if "pointer" in error.metadata:
            raise
        if not keys:
            likely = (error.metadata.get("keyword", ""), *_LIKELY)
            keys = tuple([keyword for keyword in likely if keyword in place.schema][:1])
        pointer = place.at(*keys)
        metadata = {"keyword": keys[0] if keys else None, **error.metadata, "pointer": pointer}
        raise type(error)(f"{error.message} (at {pointer or 'the root'})", **metadata) from None


@contextlib.contextmanager
def located_below(node: Node) -> Iterator[None]:
    """Does the same with a schema that ``node`` is made of: one that has the keyword, if the error names one."""
    try:
        yield
    except GrammarError as error:
        found = list(places(node))
        named = error.metadata.get("keyword")
        place = next((place for place in found if named in place.schema), found[0] if found else None)
        if place is None:
            raise
        with located(place):
            raise


def places(node: Node) -> Iterator[Place]:
    """Yields the schemas that ``node`` is made of."""
    match node:
        case Reference(place=place):
            yield place
        case AllOf(parts=parts) | AnyOf(parts=parts):
            for part in parts:
                yield from places(part)
        case Opposite(inner=inner):
            yield from places(inner)
