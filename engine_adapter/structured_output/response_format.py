"""Every way in which clients ask for structured output, as one grammar spec.

Owns: the spellings of OpenAI, LMDeploy, LoRAX, TensorRT-LLM, Together, vLLM, SGLang, TGI and Ollama, and refusing what
    contradicts itself.
Knows nothing about: HTTP, engines, backends, whether a schema can be compiled.

The server and the offline interfaces share it, so a format means the same in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from maskd.grammar import GrammarOptions, GrammarSpec

__all__ = ["ResponseFormatError", "grammar_of", "grammar_of_structured_outputs", "grammar_text_spec", "schema_spec"]

_SCHEMA_TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}
_SCHEMA_KEYS = {
    "$ref",
    "$defs",
    "$schema",
    "properties",
    "anyOf",
    "oneOf",
    "allOf",
    "enum",
    "const",
    "items",
    "additionalProperties",
}
_STRUCTURED_OUTPUT_KEYS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_OPTION_KEYS = (
    "disable_any_whitespace",
    "disable_additional_properties",
    "disable_fallback",
    "backend",
    "whitespace_pattern",
)


class ResponseFormatError(ValueError):
    """A format that cannot be read.

    Attributes:
        field: path of the offending field, dots between the steps, for instance ``json_schema.schema``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def grammar_of(response_format: Any) -> GrammarSpec | None:
    """Returns the grammar that ``response_format`` asks for; None if it asks for plain text.

    Args:
        response_format: a mapping with a ``type`` (``text``, ``json_object``, ``json``, ``json_schema``, ``regex``,
            ``regex_schema``, ``ebnf``, ``grammar``, ``lark``, ``choice``, ``structural_tag``) and what belongs to it;
            or vLLM's ``structured_outputs`` mapping, which has no type; or, as in Ollama's ``format``, ``"json"`` or a
            JSON schema itself; or a Pydantic model; or None. Keys that no dialect gives a meaning are ignored.

    Raises:
        ResponseFormatError: an unknown type, a missing or wrong field, two fields that contradict each other.
    """
    if response_format is None or response_format == "":
        return None
    if isinstance(response_format, str):
        response_format = {"type": "json_object" if response_format == "json" else response_format}
    if hasattr(response_format, "model_json_schema"):
        return schema_spec(response_format, "response_format")
    if not isinstance(response_format, Mapping):
        raise ResponseFormatError("response_format", f"is {type(response_format).__name__}; give an object with a type")
    if "structured_outputs" in response_format:
        return grammar_of_structured_outputs(response_format["structured_outputs"])
    kind = response_format.get("type")
    if kind is None and response_format.keys() & set(_STRUCTURED_OUTPUT_KEYS):
        return grammar_of_structured_outputs(response_format)
    if (
        isinstance(kind, list)
        or (isinstance(kind, str) and kind in _SCHEMA_TYPES)
        or (kind is None and response_format.keys() & _SCHEMA_KEYS)
    ):
        return schema_spec(response_format, "format")
    if not isinstance(kind, str):
        raise ResponseFormatError("type", "is missing" if kind is None else f"is {kind!r}; give a string")
    reader = _READERS.get(_SPELLINGS.get(kind, kind))
    if reader is None:
        raise ResponseFormatError("type", f"{kind!r} is unknown; give one of {', '.join(_READERS)}")
    return reader(response_format)


def grammar_of_structured_outputs(given: Any, *, field: str = "structured_outputs") -> GrammarSpec | None:
    """Returns the grammar of vLLM's ``structured_outputs`` or TensorRT-LLM's ``GuidedDecodingParams``; None = any text.

    Args:
        given: a mapping in which at most one of ``json``, ``regex``, ``choice``, ``grammar``, ``json_object`` and
            ``structural_tag`` is not None.
        field: what error messages call the mapping.

    Raises:
        ResponseFormatError: more than one, an unknown key, a wrong value.
    """
    if not isinstance(given, Mapping):
        raise ResponseFormatError(field, "must be an object")
    for key in given:
        if key not in (*_STRUCTURED_OUTPUT_KEYS, *_OPTION_KEYS):
            raise ResponseFormatError(f"{field}.{key}", f"is unknown; give one of {', '.join(_STRUCTURED_OUTPUT_KEYS)}")
    if given.get("whitespace_pattern") is not None:
        raise ResponseFormatError(f"{field}.whitespace_pattern", "is not supported; disable_any_whitespace is")
    found = [key for key in _STRUCTURED_OUTPUT_KEYS if given.get(key) is not None]
    if len(found) > 1:
        raise ResponseFormatError(field, f"only one of {' and '.join(found)} can be given")
    if not found:
        return None
    key, path = found[0], f"{field}.{found[0]}"
    value = given[key]
    options = GrammarOptions(
        max_whitespace=0 if given.get("disable_any_whitespace") else None,
        additional_properties="forbid" if given.get("disable_additional_properties") else "allow",
    )
    if key == "json":
        return schema_spec(value, path, options)
    if key == "json_object":
        if not isinstance(value, bool):
            raise ResponseFormatError(path, "must be true or false")
        return GrammarSpec("json_object", options=options) if value else None
    if key == "regex":
        return GrammarSpec("regex", _text(value, path))
    if key == "choice":
        return _choice(value, path)
    if key == "grammar":
        return grammar_text_spec(value, path)
    return _tag(value, path)


def schema_spec(schema: Any, field: str, options: GrammarOptions | None = None) -> GrammarSpec:
    """Returns the grammar of a JSON schema.

    Args:
        schema: a mapping, a boolean, JSON text, or a Pydantic model, class or instance.
        field: what error messages call it.
        options: of the grammar.

    Raises:
        ResponseFormatError: none of these, or not JSON.
    """
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if isinstance(schema, str):
        schema = _from_json(_text(schema, field), field)
    if not isinstance(schema, Mapping | bool):
        raise ResponseFormatError(field, "must be a JSON schema, an object")
    return GrammarSpec("json_schema", _as_json(schema, field), options=options or GrammarOptions())


def grammar_text_spec(source: Any, field: str) -> GrammarSpec:
    """Returns the grammar of a text in GBNF or Lark; only a GBNF rule has ``::=``.

    Raises:
        ResponseFormatError: not a text, or empty.
    """
    text = _text(source, field)
    return GrammarSpec("ebnf" if "::=" in text else "lark", text)


# -- one reader per type ---------------------------------------------------------------------------------------------


def _read_text(given: Mapping[str, Any]) -> GrammarSpec | None:
    for key in ("schema", "json_schema", "regex", "grammar", "ebnf", "structures"):
        if given.get(key) is not None:
            raise ResponseFormatError(key, "contradicts the type 'text'")
    return None


def _read_json_object(given: Mapping[str, Any]) -> GrammarSpec | None:
    """With or without a schema."""
    key, schema = _one_of(given, "schema", "value", required=False)
    return GrammarSpec("json_object") if key is None else schema_spec(schema, key)


def _read_json(given: Mapping[str, Any]) -> GrammarSpec | None:
    """TensorRT-LLM's and TGI's, which refuse it without a schema: ``json_object`` is their word for any object."""
    key, schema = _one_of(given, "schema", "value")
    return schema_spec(schema, str(key))


def _read_json_schema(given: Mapping[str, Any]) -> GrammarSpec | None:
    """OpenAI nests the schema, TensorRT-LLM also has it bare, Responses and Together have it beside the type."""
    key, schema = _one_of(given, "json_schema", "schema", "value")
    holder = given
    if key == "json_schema" and isinstance(schema, Mapping):
        if "schema" in schema:
            key, holder, schema = "json_schema.schema", schema, schema["schema"]
        elif "name" in schema and not schema.keys() & {"type", *_SCHEMA_KEYS}:
            raise ResponseFormatError("json_schema.schema", "is missing")
    strict = holder.get("strict")
    if strict not in (None, True, False):
        raise ResponseFormatError(key.replace("schema.schema", "schema.strict"), "must be true or false")
    options = GrammarOptions(additional_properties="forbid") if strict else None
    return schema_spec(schema, str(key), options)


def _read_regex(given: Mapping[str, Any]) -> GrammarSpec | None:
    key, source = _one_of(given, "regex", "pattern", "regex_schema", "value")
    return GrammarSpec("regex", _text(source, str(key)))


def _read_grammar(given: Mapping[str, Any]) -> GrammarSpec | None:
    """GBNF, Lark, and OpenAI's ``{"syntax": "lark" | "regex", "definition": …}``, flat or under ``grammar``."""
    key, source = _one_of(given, "ebnf", "grammar", "lark", "definition", "value")
    syntax = given.get("syntax")
    if isinstance(source, Mapping):
        syntax, source, key = source.get("syntax"), source.get("definition"), f"{key}.definition"
    if syntax == "regex":
        return GrammarSpec("regex", _text(source, str(key)))
    if syntax not in (None, "lark", "ebnf", "gbnf"):
        raise ResponseFormatError("syntax", f"{syntax!r} is unknown; give lark, ebnf or regex")
    return grammar_text_spec(source, str(key))


def _read_choice(given: Mapping[str, Any]) -> GrammarSpec | None:
    key, value = _one_of(given, "choice", "choices", "value")
    return _choice(value, str(key))


def _read_structural_tag(given: Mapping[str, Any]) -> GrammarSpec | None:
    if given.get("structural_tag") is not None:
        return _tag(given["structural_tag"], "structural_tag")
    key, _ = _one_of(given, "format", "structures")
    if key == "structures" and not isinstance(given.get("triggers"), list):
        raise ResponseFormatError("triggers", "is missing; give a list of strings")
    return _tag(given, str(key))


_READERS: dict[str, Callable[[Mapping[str, Any]], GrammarSpec | None]] = {
    "text": _read_text,
    "json_object": _read_json_object,
    "json": _read_json,
    "json_schema": _read_json_schema,
    "regex": _read_regex,
    "regex_schema": _read_regex,
    "ebnf": _read_grammar,
    "grammar": _read_grammar,
    "lark": _read_grammar,
    "choice": _read_choice,
    "structural_tag": _read_structural_tag,
}
# LoRAX takes its Rust names as well
_SPELLINGS = {"Text": "text", "JsonObject": "json_object", "JsonSchema": "json_schema"}


def _one_of(given: Mapping[str, Any], *keys: str, required: bool = True) -> tuple[Any, Any]:
    """Returns the key of ``keys`` that is given, and its value; (None, None) if none is given or required."""
    found = [key for key in keys if given.get(key) is not None]
    if len(found) > 1 and len({json.dumps(given[key], default=str) for key in found}) > 1:
        raise ResponseFormatError(found[1], f"contradicts {found[0]}")
    if not found and required:
        raise ResponseFormatError(keys[0], "is missing")
    return (found[0], given[found[0]]) if found else (None, None)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise ResponseFormatError(field, "must be a string that is not empty")
    return value


def _choice(value: Any, field: str) -> GrammarSpec:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise ResponseFormatError(field, "must be a list of strings, at least one")
    return GrammarSpec("choice", json.dumps(list(value), ensure_ascii=False))


def _tag(value: Any, field: str) -> GrammarSpec:
    if isinstance(value, Mapping):
        return GrammarSpec("structural_tag", _as_json(dict(value), field))
    text = _text(value, field)
    _from_json(text, field)
    return GrammarSpec("structural_tag", text)


def _as_json(value: Any, field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResponseFormatError(field, f"cannot be written as JSON: {error}") from None


def _from_json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ResponseFormatError(field, f"is not JSON: {error}") from None
