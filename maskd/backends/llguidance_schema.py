"""JSON schemas for llguidance's own front end, where our compiler refuses one.

Owns: which schemas the front end reads exactly, and the options as it takes them.
Knows nothing about: our compiler. Written against llguidance 1.9.1.
"""

from __future__ import annotations

import re
from typing import Any

from maskd.grammar import GrammarOptions
from maskd.json_schema.keywords import subschemas
from maskd.json_schema.strict_json import Json

__all__ = ["reads", "with_guidance"]

_READ = frozenset({
    "$comment", "$defs", "$ref", "$schema", "additionalProperties", "allOf", "anyOf", "const", "default", "definitions",
    "description", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems",
    "maxLength", "maximum", "minItems", "minLength", "minimum", "multipleOf", "oneOf", "pattern", "prefixItems",
    "properties", "required", "title", "type",
})  # fmt: skip
"""Keywords that it enforces, or refuses, and those that ask for nothing."""


def reads(schema: Json, options: GrammarOptions) -> bool:
    """Whether the front end makes of ``schema`` what JSON Schema does, or refuses it."""
    if options.additional_properties == "forbid" or not isinstance(schema, dict):
        return False
    stack = [schema]
    while stack:
        part = stack.pop()
        if not isinstance(part, dict):
            continue
        is_local = str(part.get("$ref", "#")).startswith("#")
        if not part.keys() <= _READ or not is_local or ("format" in part and options.formats == "annotate"):
            return False
        if "$ref" in part and part.keys() & {"properties", "type", "enum", "const", "allOf", "anyOf", "oneOf"}:
            return False  # drafts differ on what stands beside a reference
        stack.extend(child for _, child in subschemas(part))
    return True


def with_guidance(schema: Json, options: GrammarOptions, item_separator: str, key_separator: str) -> Json:
    """Returns ``schema`` with ``x-guidance``, where llguidance reads options; what stood there is replaced."""
    given: dict[str, Any] = {"item_separator": re.escape(item_separator), "key_separator": re.escape(key_separator)}
    if options.max_whitespace == 0:
        given["whitespace_flexible"] = False
    elif options.max_whitespace is not None:
        given["whitespace_pattern"] = f"[ \\t\\n\\r]{{1,{options.max_whitespace}}}"
    return {**schema, "x-guidance": given}
