"""What ``additional_properties="forbid"`` means: objects have only the members that their schemas name.

Several schemas may describe one value: a schema, the target of its ``$ref``, the members of its ``allOf``. Forbidding
in each of them what it does not name would forbid what the others name. So a value is closed once, by its outermost
schema. That schema does it as ``unevaluatedProperties: false`` would. A schema that only refers to another, or only
offers alternatives, leaves it to those. A schema that says something itself about further members keeps what it says.
Owns: which schema closes. Knows nothing about: what schemas allow.
"""

from __future__ import annotations

from maskd.json_schema.compiler.documents import Place, SchemaDraft
from maskd.json_schema.keywords import DYNAMIC_REFERENCES, SAME_VALUE, declared_types

__all__ = ["is_closed_alone", "is_composed", "is_object"]

_NAMED = ("properties", "patternProperties")
_FURTHER = ("additionalProperties", "unevaluatedProperties")
_OTHERS = SAME_VALUE | DYNAMIC_REFERENCES | {"dependencies"}
"""Keywords that apply further schemas to the same value."""
_ALONE = DYNAMIC_REFERENCES | {"$ref", "anyOf", "oneOf"}
"""Those of which one alone leaves the value to the schemas that it applies."""


def is_object(place: Place) -> bool:
    """Whether the schema at ``place`` describes objects by itself."""
    schema = place.schema
    if _is_hidden(place):
        return False
    return "object" in declared_types(schema) if "type" in schema else any(key in schema for key in _NAMED)


def is_composed(place: Place) -> bool:
    """Whether more than one schema describes the value at this place, other than as alternatives."""
    schema = place.schema
    if _is_hidden(place):
        return False
    present = sorted(_OTHERS & schema.keys())
    if not present:
        return False
    if len(present) > 1 or any(key in schema for key in (*_NAMED, *_FURTHER)):
        return True
    return present[0] not in _ALONE and not (present[0] == "allOf" and len(schema["allOf"]) == 1)


def is_closed_alone(place: Place) -> bool:
    """Whether no other schema describes the value, and this one says nothing about further members."""
    return is_object(place) and not place.schema.keys() & {*_OTHERS, *_FURTHER}


def _is_hidden(place: Place) -> bool:
    """Whether a reference hides all that stands beside it."""
    return place.draft <= SchemaDraft.DRAFT_7 and "$ref" in place.schema
