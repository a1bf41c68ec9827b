"""The keywords of JSON Schema: which of them hold schemas, and which values each of them looks at.

Owns: the one table of keywords, from draft 4 to 2020-12, and the direct subschemas of a schema.
Knows nothing about: references, backends, the values that a keyword may have.
"""

from __future__ import annotations

from collections.abc import Iterator

from maskd.json_schema.strict_json import Json, Path

__all__ = [
    "CONDITIONS", "DYNAMIC_REFERENCES", "OF_TYPE", "SAME_VALUE", "SCHEMA_MAPS", "TYPES", "TYPE_OF", "declared_types",
    "put", "subschemas",
]  # fmt: skip

TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")

# Which keywords hold a schema, a list of schemas, or a map of schemas. All others hold data.
# Up to draft 7: ``definitions`` and ``dependencies``. Up to 2019-09: ``additionalItems``, and ``items`` as a list.
ONE_SCHEMA = frozenset({
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
SCHEMA_LISTS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
SCHEMA_MAPS = frozenset({
    "$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties",
})  # fmt: skip

SAME_VALUE = frozenset({"$ref", "allOf", "anyOf", "oneOf", "then", "else", "dependentSchemas"})
"""Their schemas describe the same value as the schema that holds them."""
CONDITIONS = frozenset({"contains", "if", "not"})
"""A narrower schema under one of these can let more values through."""
DYNAMIC_REFERENCES = frozenset({"$dynamicRef", "$recursiveRef"})

OF_TYPE = {
    "object": frozenset({
        "additionalProperties", "dependencies", "dependentRequired", "dependentSchemas", "maxProperties",
        "minProperties", "patternProperties", "properties", "propertyNames", "required", "unevaluatedProperties",
    }),
    "array": frozenset({
        "additionalItems", "contains", "items", "maxContains", "maxItems", "minContains", "minItems", "prefixItems",
        "unevaluatedItems", "uniqueItems",
    }),
    "string": frozenset({"format", "maxLength", "minLength", "pattern"}),
    "number": frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"}),
}  # fmt: skip
"""The keywords that look at values of one type only; "number" stands for integers too."""
TYPE_OF = {keyword: name for name, keywords in OF_TYPE.items() for keyword in keywords}


def subschemas(schema: Json) -> Iterator[tuple[Path, Json]]:
    """Yields the direct subschemas of ``schema`` with their paths, in the order of its keys."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in SCHEMA_MAPS and isinstance(value, dict):
            yield from (
                ((key, name), child)
                for name, child in value.items()
                if not (key == "dependencies" and isinstance(child, list))
            )
        elif key in SCHEMA_LISTS and isinstance(value, list):
            yield from (((key, index), child) for index, child in enumerate(value))
        elif key in ONE_SCHEMA:
            yield (key,), value


def put(schema: Json, step: Path, child: Json) -> None:
    """Replaces the subschema at ``step``, one of the paths that ``subschemas`` yields, by ``child``, in place."""
    for part in step[:-1]:
        schema = schema[part]
    schema[step[-1]] = child


def declared_types(schema: Json) -> tuple[str, ...]:
    """Returns the types that the keyword ``type`` names; () if the schema does not have it."""
    declared = schema.get("type", ())
    return (declared,) if isinstance(declared, str) else tuple(declared)
