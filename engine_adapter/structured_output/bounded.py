"""Rewrites a JSON schema to a subset of it whose every document is short.

A model that was not trained picks among the allowed tokens almost evenly, so a string without a limit ends only by
luck. The rewritten schema limits what the original leaves open: plain strings to a few letters, plain numbers to small
integers, arrays to a few items. Whatever is valid under the result is valid under the original. Off by default
everywhere; the demo uses it.

Where narrowing a part could widen the whole (``not``, ``if``, ``contains``, ``oneOf`` with overlapping branches, and
whatever those
refer to), the part is left as it is. Enumerations, constants, formats and limits that are there stay.
Knows nothing about: grammar libraries, models. JSON Schema drafts 4 to 2020-12.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from maskd.grammar import GrammarSpec

__all__ = ["bounded_schema", "bounded_spec"]

STRING_LENGTH = 8
ARRAY_LENGTH = 4
NUMBER_SPAN = 999

_SCHEMA = (
    "additionalProperties",
    "additionalItems",
    "items",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SCHEMA_LIST = ("allOf", "anyOf", "prefixItems", "items")
_SCHEMA_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_FROZEN = ("not", "if", "contains")
_UNBOUNDED_REPEAT = re.compile(r"(?<=[^\\*+?{}|(])([+*])\$$")


def bounded_spec(spec: GrammarSpec) -> GrammarSpec:
    """Returns ``spec`` with its schema bounded, compact spelling and no properties but the named ones; other kinds come
    back as they are.

    Raises:
        ValueError: the source is no JSON.
    """
    if spec.kind != "json_schema":
        return spec
    options = dataclasses.replace(spec.options, max_whitespace=0, additional_properties="forbid")
    return dataclasses.replace(spec, source=json.dumps(bounded_schema(json.loads(spec.source))), options=options)


def bounded_schema(schema: Any) -> Any:
    """Returns a new schema that allows a subset of what ``schema`` allows; ``schema`` itself is not changed.

    One that is malformed comes back as it is: whoever compiles it says where.
    """
    try:
        frozen = _frozen_paths(schema)
        return schema if frozen is None else _bounded(schema, (), frozen)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return schema


Path = tuple[str, ...]


def _bounded(schema: Any, path: Path, frozen: set[Path]) -> Any:
    if not isinstance(schema, Mapping) or path in frozen:
        return schema
    result = dict(schema)
    for key, keys, part in _parts(schema):
        below = _bounded(part, (*path, *keys), frozen)
        if len(keys) == 1:
            result[key] = below
        else:
            result[key] = _with(result[key], keys[1], below)
    if not result.keys() & {"enum", "const", "$ref"}:
        _bound_string(result)
        _bound_number(result)
        _bound_array(result)
    return result


def _with(container: Any, key: str, value: Any) -> Any:
    """Returns a copy of a list or mapping with one entry replaced."""
    if isinstance(container, Mapping):
        return {**container, key: value}
    index = int(key)
    return [*container[:index], value, *container[index + 1 :]]


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Path, Any]]:
    """Yields (keyword, path below the schema, subschema) for every place where a narrower subschema narrows the
    whole."""
    for key in _SCHEMA:
        if isinstance(schema.get(key), Mapping):
            yield key, (key,), schema[key]
    lists = (*_SCHEMA_LIST, "oneOf") if _is_disjoint(schema.get("oneOf")) else _SCHEMA_LIST
    for key in lists:
        if isinstance(schema.get(key), list):
            for index, part in enumerate(schema[key]):
                yield key, (key, str(index)), part
    for key in _SCHEMA_MAP:
        if isinstance(schema.get(key), Mapping):
            for name, part in schema[key].items():
                yield key, (key, name), part


def _types(schema: Mapping[str, Any]) -> list[str]:
    declared = schema.get("type", [])
    return list(declared) if isinstance(declared, list) else [declared]


def _is_disjoint(branches: Any) -> bool:
    """Says whether no value can match two of the branches, told by ``type`` alone: only then is narrowing one
    harmless."""
    if not isinstance(branches, list):
        return False
    seen: set[str] = set()
    for branch in branches:
        types = (
            {"number" if name == "integer" else name for name in _types(branch)}
            if isinstance(branch, Mapping)
            else set()
        )
        if not types or seen & types:
            return False
        seen |= types
    return True


def _bound_string(schema: dict[str, Any]) -> None:
    if "string" not in _types(schema) or "format" in schema:
        return
    if "pattern" not in schema:
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < max(least, 1):
            return  # nothing, or only the empty string: short enough
        longest = max(least, STRING_LENGTH if most is None else min(int(most), STRING_LENGTH))
        schema["pattern"] = f"^[A-Za-z]{{{max(least, 1)},{longest}}}$"
        # The pattern says it all, and says it in ASCII, where characters are bytes.
        schema.pop("minLength", None)
        schema.pop("maxLength", None)
    elif "minLength" not in schema and "maxLength" not in schema:
        schema["pattern"] = _UNBOUNDED_REPEAT.sub(
            lambda m: f"{{{int(m[1] == '+')},{STRING_LENGTH}}}$", schema["pattern"]
        )


def _bound_number(schema: dict[str, Any]) -> None:
    types = _types(schema)
    if not {"integer", "number"} & set(types) or "multipleOf" in schema:
        return
    lowest, highest = _bound(schema, "minimum", "exclusiveMinimum"), _bound(schema, "maximum", "exclusiveMaximum")
    if lowest is None and highest is None:
        # Integers are numbers, and end without a limit on their digits after the point.
        names = list(dict.fromkeys("integer" if name == "number" else name for name in types))
        schema["type"] = names if isinstance(schema["type"], list) else names[0]
        schema["minimum"], schema["maximum"] = 0, NUMBER_SPAN
    elif highest is None:
        schema["maximum"] = lowest + NUMBER_SPAN
    elif lowest is None:
        schema["minimum"] = highest - NUMBER_SPAN


def _bound(schema: Mapping[str, Any], *keys: str) -> Any:
    """Returns the first of the keywords that holds a number (draft 4 has exclusive bounds as booleans)."""
    values = (schema.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), None)


def _bound_array(schema: dict[str, Any]) -> None:
    if "array" in _types(schema) and "maxItems" not in schema:
        schema["maxItems"] = max(schema.get("minItems", 0), len(schema.get("prefixItems", ())), ARRAY_LENGTH)


def _frozen_paths(schema: Any) -> set[Path] | None:
    """Returns the places that must stay as they are because a frozen part refers to them; None if that cannot be
    told."""
    frozen: set[Path] = set()
    has_bases = any("$id" in holder or "id" in holder for holder in _walk(schema) if holder is not schema)
    waiting = [part for holder in _walk(schema) for part in _frozen_parts(holder)]
    while waiting:
        for holder in _walk(waiting.pop()):
            if "$dynamicRef" in holder or "$recursiveRef" in holder:
                return None
            if not isinstance(reference := holder.get("$ref"), str):
                continue
            path = _pointer(reference)
            target = _resolve(schema, path)
            if path is None or target is None or has_bases:
                return None  # points out of the document, or a nested base may bend it
            if path not in frozen:
                frozen.add(path)
                waiting.append(target)
    return frozen


def _frozen_parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    yield from (schema[key] for key in _FROZEN if key in schema)
    if "oneOf" in schema and not _is_disjoint(schema["oneOf"]):
        yield schema["oneOf"]


def _walk(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yields every mapping at or below ``node``, whether it is a schema or not: too many frozen places do no harm."""
    if isinstance(node, Mapping):
        yield node
        for value in node.values():
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def _pointer(reference: str) -> Path | None:
    """Returns the path of a reference within the document (RFC 6901), None for any other."""
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        return None
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/"))


def _resolve(schema: Any, path: Path | None) -> Any:
    for step in path or ():
        if isinstance(schema, Mapping) and step in schema:
            schema = schema[step]
        elif isinstance(schema, list) and step.isdigit() and int(step) < len(schema):
            schema = schema[int(step)]
        else:
            return None
    return schema
