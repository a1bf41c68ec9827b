"""Rewrites JSON schemas to the form that xgrammar enforces.

Owns: the rewriting of a checked schema for xgrammar 0.2.8; every step works around one measured defect.
Knows nothing about: what xgrammar cannot enforce in any form (``maskd.json_schema.enforcement``), grammars, tokens.
"""

from __future__ import annotations

import copy
import dataclasses

from maskd.errors import GrammarUnsupportedError
from maskd.json_schema.enforcement import KNOWN_FORMATS
from maskd.json_schema.keywords import put, subschemas
from maskd.json_schema.patterns import needs_escapes, pattern_for_xgrammar
from maskd.json_schema.schema import JsonSchema
from maskd.json_schema.strict_json import Json
from maskd.json_schema.types import deciding_keyword, types_of

__all__ = ["NOT_UTF8", "SURROGATES", "rewrite"]

SURROGATES = (
    "xgrammar lets strings through that are not UTF-8: encoded surrogates (ED A0..BF), "
    "and with a pattern overlong forms (E0 80..9F, F0 80..8F)"
)
NOT_UTF8 = "xgrammar lets through bytes that are not UTF-8 in the free text of a structural tag"

# One character of a JSON string, escapes included, as raw bytes of the output. The pattern has characters beyond ASCII.
# They make xgrammar match the bytes of the output, so that the pattern can spell escapes. Without them it would match
# the characters that a JSON string stands for. The pattern then compiles to well-formed UTF-8 only.
_HEX = "[0-9a-fA-F]"
_PLAIN = " !#-\\[\\]-\ud7ff\ue000-\U0010ffff"
_ESCAPE = (
    f'\\\\(["\\\\/bfnrt]|u([0-9a-cefA-CEF]{_HEX}{{3}}|'
    f"[dD]([0-7]{_HEX}{{2}}|[89abAB]{_HEX}{{2}}\\\\u[dD][c-fC-F]{_HEX}{{2}})))"
)
_CHARACTER = f"([{_PLAIN}]|{_ESCAPE})"
# xgrammar's own patterns for these two formats allow quotes and control characters.
_POINTER = "(/([ !#-.0-\\[\\]-}\x7f-\ud7ff\ue000-\U0010ffff]|~[01])*)*"
_FORMATS = {"json-pointer": f"^{_POINTER}$", "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$"}

_ANY_NAME = "maskd_any"


def rewrite(schema: JsonSchema, *, compact: bool, strict_mode: bool = False) -> Json:
    """Returns the schema for xgrammar; the given one is not changed.

    Args:
        compact: no white space is allowed. Within values that no schema describes, xgrammar would separate with ", ",
            so these values get a schema.
        strict_mode: xgrammar will read the result in its strict mode, as it always does within a structural tag. The
            result then says explicitly what the standard allows by default.
    Raises:
        GrammarUnsupportedError: xgrammar cannot enforce a combination of keywords in any form.
    """
    root = copy.deepcopy(schema.value)
    if root is True:
        root = {}
    any_value = {"$ref": f"#/$defs/{_ANY_NAME}"}
    rewritten = dataclasses.replace(schema, value=root)
    key_schemas = {
        id(node["propertyNames"])
        for _, node in rewritten.schemas()
        if isinstance(node, dict) and "propertyNames" in node
    }
    for path, node in list(rewritten.schemas()):
        if not isinstance(node, dict):
            continue
        _modern_items(node)
        _patterns(node, schema.pointer_to(path))
        if node.get("additionalProperties") is False and not node.get("properties"):
            node.pop("propertyNames", None)  # an empty object has no names; xgrammar would allow names that match
        _drop_false(node)
        for step, child in list(subschemas(node)):
            if child is True:
                put(node, step, {})
        if deciding_keyword(node) is None or deciding_keyword(node) == "type":
            types = types_of(node) or (("string",) if id(node) in key_schemas else ())
            if "string" in types:
                _lengths(node)
            if strict_mode or compact:
                _open(node, types, any_value if compact else {}, schema.pointer_to(path))
        if compact and id(node) not in key_schemas and _is_any(node):
            node.update(any_value)
    if compact:
        # A list of types: for a schema without types, xgrammar's own rules would separate with ", ".
        kinds: list[Json] = [{"type": name} for name in ("null", "boolean", "number", "string")]
        kinds += [{"type": "array", "items": any_value}, {"type": "object", "additionalProperties": any_value}]
        root.setdefault("$defs", {})[_ANY_NAME] = {"anyOf": kinds}
    return root


def _modern_items(node: Json) -> None:
    """Gives the list form of ``items`` (before 2020-12) its present name."""
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node.pop("additionalItems")


def _patterns(node: Json, where: str) -> None:
    """Spells patterns as xgrammar reads them well."""
    patterns = node.get("patternProperties") or {}
    for pattern in [*patterns, *([node["pattern"]] if "pattern" in node else [])]:
        if needs_escapes(pattern):
            raise GrammarUnsupportedError(
                f"xgrammar cannot write the escapes that each match of the pattern {pattern!r} needs; use llguidance",
                pointer=where,
                backends="llguidance",
            )
    if "pattern" in node:
        node["pattern"] = pattern_for_xgrammar(node["pattern"])
    if patterns:
        node["patternProperties"] = {pattern_for_xgrammar(name): child for name, child in patterns.items()}


def _drop_false(node: Json) -> None:
    """Removes alternatives that nothing matches: xgrammar refuses the whole schema for one of them."""
    for key in ("anyOf", "oneOf"):
        if isinstance(node.get(key), list) and any(branch is not False for branch in node[key]):
            node[key] = [branch for branch in node[key] if branch is not False]


def _lengths(node: Json) -> None:
    """Turns limits on the length into a pattern: xgrammar's own rule allows control characters and no escapes."""
    if node.get("format") in _FORMATS and "pattern" not in node:
        node["pattern"] = _FORMATS[node.pop("format")]
    least, most = node.get("minLength", 0), node.get("maxLength")
    if "pattern" in node or node.get("format") in KNOWN_FORMATS or (most is not None and most < max(least, 1)):
        return
    if least or most is not None:
        node["pattern"] = f"^{_CHARACTER}{{{least},{'' if most is None else most}}}$"
    node.pop("minLength", None)
    node.pop("maxLength", None)


def _open(node: Json, types: tuple[str, ...], anything: Json, where: str) -> None:
    """Makes an object or array schema say explicitly that it allows anything, where it says nothing."""
    if "object" in types and node.get("additionalProperties", {}) in ({}, True) and "unevaluatedProperties" not in node:
        if "propertyNames" in node and not node.get("properties") and anything:
            raise GrammarUnsupportedError(
                "xgrammar cannot do propertyNames without white space; use llguidance, or allow white space",
                pointer=where,
                backends="llguidance",
            )
        node["additionalProperties"] = anything
    if "array" in types and node.get("items", {}) in ({}, True) and "unevaluatedItems" not in node:
        node["items"] = anything


def _is_any(node: Json) -> bool:
    keyword = deciding_keyword(node)
    return (keyword is None and not types_of(node)) or (keyword == "allOf" and len(node["allOf"]) > 1)
