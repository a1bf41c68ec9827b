"""Rewrites a JSON schema to a subset of it whose documents are all short.

Owns: which parts may be narrowed, and the limits that they get.
Knows nothing about: grammar libraries, models. JSON Schema drafts 4 to 2020-12.

An untrained model picks among the allowed tokens almost evenly, so a string without a limit ends only by luck. Plain
strings are limited to a few letters, plain numbers to small integers, arrays to a few items. Every document that is
valid under the result is valid under the original. The demo uses it; elsewhere it is off by default.

Some parts stay as they are, because a narrower part could make the whole wider. These are ``not``, ``if``,
``contains``, ``oneOf`` with branches that overlap, and the targets of their references. Enumerations, constants,
formats and limits that a schema has stay too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from maskd.grammar import GrammarSpec
from maskd.json_schema.keywords import CONDITIONS, DYNAMIC_REFERENCES, declared_types, put, subschemas
from maskd.json_schema.references import follow
from maskd.json_schema.strict_json import Json, Path, walk
from maskd.json_schema.types import Types, are_disjoint

__all__ = ["bounded_schema", "bounded_spec"]

STRING_LENGTH = 8
ARRAY_LENGTH = 4
NUMBER_SPAN = 999

_UNTOUCHED = CONDITIONS | {"contentSchema", "propertyNames"}
_UNBOUNDED_REPEAT = re.compile(r"(?<=[^\\*+?{}|(])([+*])\$$")


def bounded_spec(spec: GrammarSpec) -> GrammarSpec:
    """Returns ``spec`` with its schema bounded; specs of other kinds come back as they are.

    The result allows no white space and no properties but the named ones.

    Raises:
        ValueError: the source is not JSON.
    """
    if spec.kind != "json_schema":
        return spec
    options = dataclasses.replace(spec.options, max_whitespace=0, additional_properties="forbid")
    return dataclasses.replace(spec, source=json.dumps(bounded_schema(json.loads(spec.source))), options=options)


def bounded_schema(schema: Json) -> Json:
    """Returns a schema that allows a subset of what ``schema`` allows; ``schema`` itself is not changed.

    A malformed schema comes back as it is: its error is for the compiler to report.
    """
    try:
        frozen = _frozen_paths(schema)
        return schema if frozen is None else _bounded(schema, (), frozen)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return schema


def _bounded(schema: Json, path: Path, frozen: set[Path]) -> Json:
    if not isinstance(schema, dict) or path in frozen:
        return schema
    result = {key: value.copy() if isinstance(value, (dict, list)) else value for key, value in schema.items()}
    untouched = _UNTOUCHED if _is_disjoint(schema.get("oneOf")) else _UNTOUCHED | {"oneOf"}
    for step, part in subschemas(schema):
        if step[0] not in untouched:
            put(result, step, _bounded(part, (*path, *step), frozen))
    if not result.keys() & {"enum", "const", "$ref"}:
        _bound_string(result)
        _bound_number(result)
        _bound_array(result)
    return result


def _is_disjoint(branches: Json) -> bool:
    """Whether no value can match two of ``branches``, so that each may be narrowed; a reference may be any value."""
    return isinstance(branches, list) and are_disjoint(Types(lambda reference: True, declared_types), branches)


def _bound_string(schema: dict[str, Any]) -> None:
    if "string" not in declared_types(schema) or "format" in schema:
        return
    if "pattern" not in schema:
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < max(least, 1):
            return  # nothing matches, or only the empty string: short enough
        longest = max(least, STRING_LENGTH if most is None else min(int(most), STRING_LENGTH))
        schema["pattern"] = f"^[A-Za-z]{{{max(least, 1)},{longest}}}$"
        # The pattern has these limits, in ASCII, where characters are bytes.
        schema.pop("minLength", None)
        schema.pop("maxLength", None)
    elif "minLength" not in schema and "maxLength" not in schema:
        schema["pattern"] = _UNBOUNDED_REPEAT.sub(
            lambda m: f"{{{int(m[1] == '+')},{STRING_LENGTH}}}$", schema["pattern"]
        )


def _bound_number(schema: dict[str, Any]) -> None:
    types = declared_types(schema)
    if not {"integer", "number"} & set(types) or "multipleOf" in schema:
        return
    lowest, highest = _bound(schema, "minimum", "exclusiveMinimum"), _bound(schema, "maximum", "exclusiveMaximum")
    if lowest is None and highest is None:
        # An integer is a number too, and has no digits after the point that would need a limit.
        names = list(dict.fromkeys("integer" if name == "number" else name for name in types))
        schema["type"] = names if isinstance(schema["type"], list) else names[0]
        schema["minimum"], schema["maximum"] = 0, NUMBER_SPAN
    elif highest is None:
        schema["maximum"] = lowest + NUMBER_SPAN
    elif lowest is None:
        schema["minimum"] = highest - NUMBER_SPAN


def _bound(schema: Mapping[str, Any], *keys: str) -> Json:
    """Returns the value of the first of ``keys`` that holds a number; in draft 4, exclusive bounds are booleans."""
    values = (schema.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), None)


def _bound_array(schema: dict[str, Any]) -> None:
    if "array" in declared_types(schema) and "maxItems" not in schema:
        schema["maxItems"] = max(schema.get("minItems", 0), len(schema.get("prefixItems", ())), ARRAY_LENGTH)


def _frozen_paths(schema: Json) -> set[Path] | None:
    """Returns the places that must stay as they are because a part that must stay refers to them.

    None: that is not certain, so the whole schema must stay.
    """
    frozen: set[Path] = set()
    has_bases = any("$id" in holder or "id" in holder for holder in _objects(schema) if holder is not schema)
    waiting = [part for holder in _objects(schema) for part in _frozen_parts(holder)]
    while waiting:
        for holder in _objects(waiting.pop()):
            if holder.keys() & DYNAMIC_REFERENCES:
                return None
            if not isinstance(reference := holder.get("$ref"), str):
                continue
            target = follow(schema, reference)
            if target is None or has_bases:
                return None  # it leads out of the document, or to a place that an inner "$id" decides
            path, part = target
            if path not in frozen:
                frozen.add(path)
                waiting.append(part)
    return frozen


def _frozen_parts(schema: Mapping[str, Any]) -> Iterator[Json]:
    yield from (schema[key] for key in CONDITIONS & schema.keys())
    if "oneOf" in schema and not _is_disjoint(schema["oneOf"]):
        yield schema["oneOf"]


def _objects(value: Json) -> Iterator[dict[str, Json]]:
    """Yields every object at or below ``value``, a schema or not: too many frozen places do no harm."""
    return (item for _, item in walk(value) if isinstance(item, dict))
