"""Whether the keywords of one schema have values that the standard allows.

Owns: the check of each keyword's value.
Knows nothing about: references, subschemas, backends.
"""

from __future__ import annotations

from maskd.json_schema.keywords import SCHEMA_LISTS, SCHEMA_MAPS, TYPES
from maskd.json_schema.strict_json import Json, kind_of

__all__ = ["fault_in"]

_COUNTS = frozenset({
    "maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength", "minProperties",
})  # fmt: skip
_EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_NUMBERS = frozenset({*_EXCLUSIVE, *_EXCLUSIVE.values(), "multipleOf"})
_LISTS = SCHEMA_LISTS - {"items"} | {"enum", "required"}
_NOT_EMPTY = frozenset({"allOf", "anyOf", "enum", "oneOf"})
_STRINGS = frozenset({
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveRef", "$ref", "$schema", "format", "pattern",
})  # fmt: skip


def fault_in(schema: dict[str, Json]) -> tuple[str, str] | None:
    """Returns the first keyword whose value the standard does not allow, and a sentence about it; None = no fault."""
    return next(((keyword, fault) for keyword, value in schema.items() if (fault := _fault(keyword, value))), None)


def _are_strings(values: list[Json]) -> bool:
    return all(isinstance(value, str) for value in values)


def _fault(keyword: str, value: Json) -> str | None:
    wanted = None
    if keyword == "type":
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in TYPES for name in names):
            return f"type {str(value)[:80]!r} is not known; give one of {', '.join(TYPES)}, or a list of them"
    elif keyword in SCHEMA_MAPS and not isinstance(value, dict):
        wanted = "an object"
    elif keyword == "dependencies" and any(isinstance(one, list) and not _are_strings(one) for one in value.values()):
        return "dependencies has a list that is not one of strings"
    elif keyword == "dependentRequired":
        if not isinstance(value, dict) or not all(
            isinstance(one, list) and _are_strings(one) for one in value.values()
        ):
            return "dependentRequired is an object of lists of strings"
    elif keyword in _LISTS:
        if not isinstance(value, list):
            wanted = "a list"
        elif not value and keyword in _NOT_EMPTY:
            return f"{keyword} is empty; give at least one"
        elif keyword == "required" and not _are_strings(value):
            return "required is a list of strings"
    elif keyword in _COUNTS:
        is_whole = value.is_integer() if isinstance(value, float) else isinstance(value, int)
        if not is_whole or isinstance(value, bool) or value < 0:
            return f"{keyword} is {str(value)[:40]}; give a whole number from 0"
    elif keyword in _NUMBERS:
        is_flag = keyword in _EXCLUSIVE and isinstance(value, bool)  # draft 4
        if not is_flag and (isinstance(value, bool) or not isinstance(value, (int, float))):
            wanted = "a number"
        elif keyword == "multipleOf" and value <= 0:
            return "multipleOf is a number above 0"
    elif keyword in _STRINGS and not isinstance(value, str):
        wanted = "a string"
    return wanted and f"{keyword} is {wanted}, not {kind_of(value)}"
