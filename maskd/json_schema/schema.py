"""The JSON Schema front door: what every backend may rely on, whoever wrote the schema.

Owns: reading and checking a schema, resolving its ``$ref``, closing its objects (``additional_properties="forbid"``).
Knows nothing about: backends; what one of them does not enforce is in ``schema_enforcement.py``.
Iterative throughout: depth is limited when the text is read, and no chain of references is walked by recursion.
Format: JSON Schema 2020-12 and back to draft 4, as far as both libraries read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urldefrag, urljoin

from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError
from maskd.grammar import GrammarOptions
from maskd.json_schema import strict_json
from maskd.json_schema.strict_json import Json, Path, pointer

__all__ = ["TYPES", "JsonSchema", "parse_schema", "subschemas"]

TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
MAX_REF_CHAIN = 256
"""Longest chain of references from one to the next. Both libraries recurse along it, and die of a few thousand."""

_ONE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
_COUNTS = (
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
)
_NUMBERS = ("maximum", "minimum")
_STRINGS = ("$ref", "pattern", "format", "$id", "$anchor", "$schema")


@dataclass(frozen=True)
class JsonSchema:
    """A schema, read and checked.

    Attributes:
        value: the schema; a dict, or True. Every ``$ref`` is "#" or "#/…" and leads somewhere. Shared: do not change
            it.
        pointer: JSON pointer of the schema within what the caller sent; pointers in messages start with it.
        origins: where rewritten parts came from: path in ``value`` → path in the source.
    """

    value: Json
    pointer: str
    origins: dict[Path, Path]

    def pointer_to(self, path: Path) -> str:
        """Returns the JSON pointer, in the caller's document, of ``path`` in ``value``."""
        return self.pointer + pointer(_origin(self.origins, path))

    def schemas(self) -> Iterator[tuple[Path, Json]]:
        """Yields every schema within, each object once, with its path: subschemas, and what a ``$ref`` leads to."""
        stack: list[tuple[Path, Json]] = [((), self.value)]
        seen: set[int] = set()
        while stack:
            path, schema = stack.pop()
            if id(schema) in seen and isinstance(schema, dict):
                continue
            seen.add(id(schema))
            yield path, schema
            stack.extend([((*path, *step), child) for step, child in subschemas(schema)])
            if isinstance(schema, dict) and "$ref" in schema:
                stack.append(self.lookup(schema["$ref"]))

    def lookup(self, ref: str) -> tuple[Path, Json]:
        """Returns path and value of the target of ``ref``, one of the ``$ref`` of this schema."""
        return _lookup(self.value, ref)


def _origin(origins: dict[Path, Path], path: Path) -> Path:
    for length in range(len(path), 0, -1):
        origin = origins.get(path[:length])
        if origin is not None:
            return (*origin, *path[length:])
    return path


def subschemas(schema: Json) -> Iterator[tuple[Path, Json]]:
    """Yields the direct subschemas of ``schema`` with their paths, in the order of its keys."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            yield from (
                ((key, name), child)
                for name, child in value.items()
                if not (key == "dependencies" and isinstance(child, list))
            )
        elif key in _LISTS and isinstance(value, list):
            yield from (((key, index), child) for index, child in enumerate(value))
        elif key in _ONE:
            yield (key,), value


def parse_schema(source: Json, options: GrammarOptions, *, pointer: str = "") -> JsonSchema:
    """Reads a schema.

    Args:
        source: text, or a parsed value that is not used again.
        options: ``additional_properties`` is applied here, the same for every backend.
        pointer: where the schema stands within the caller's document.
    Raises:
        GrammarUnsatisfiableError: the schema is ``false``, or a ``$ref`` leads back to itself without asking for
            anything.
        GrammarError: malformed; ``metadata["pointer"]`` says where. So is a ``$ref`` that leaves the document or leads
            nowhere.
    """
    value = strict_json.loads(source, "the schema") if isinstance(source, str) else source
    if value is False:
        raise GrammarUnsatisfiableError("the schema is false, so nothing can match it", pointer=pointer)
    if value is not True and not isinstance(value, dict):
        raise GrammarError(f"a schema is a JSON object, true or false, not {_kind(value)}", pointer=pointer)
    origins = _Refs(value, pointer).resolve()
    if options.additional_properties == "forbid":
        from maskd.json_schema.closing import close_objects  # it builds on this module

        value, closed = close_objects(value)
        origins = {path: _origin(origins, origin) for path, origin in closed.items()}
    return JsonSchema(value, pointer, origins)


def _kind(value: Json) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(
        type(value), "a number" if not isinstance(value, bool) else "a boolean"
    )


class _Refs:
    """Checks every schema of a document and makes every ``$ref`` a plain pointer into it.

    Both libraries look a pointer up by its raw text, from the root of the document. What they could not find that way
    (escapes, array elements for xgrammar, anchors, ids) gets a second name in ``$defs``.
    """

    def __init__(self, root: Json, base_pointer: str) -> None:
        self._root = root
        self._base_pointer = base_pointer
        self._by_uri: dict[str, Path] = {}
        self._refs: list[tuple[Path, Json, str]] = []  # where, the schema that holds it, base URI
        self._seen: set[Path] = set()
        self._origins: dict[Path, Path] = {}
        self._aliases: dict[Path, str] = {}

    def resolve(self) -> dict[Path, Path]:
        """Returns the origins of the parts that got a second name."""
        self._scan((), self._root, "")
        done = 0
        targets: dict[int, int] = {}  # id of a schema that is nothing but a $ref → id of its target
        while done < len(self._refs):
            path, schema, base = self._refs[done]
            done += 1
            target = self._find(path, schema["$ref"], base)
            value = _at(self._root, target)
            if target not in self._seen:
                if not isinstance(value, (dict, bool)):
                    self._refuse(f"$ref {schema['$ref']!r} leads to {_kind(value)}, not to a schema", (*path, "$ref"))
                self._scan(target, value, base)
            schema["$ref"] = self._plain(target, value)
            targets[id(schema)] = id(value)
        self._check_chains(targets)
        return self._origins

    def _refuse(self, message: str, path: Path) -> None:
        raise GrammarError(message, pointer=self._base_pointer + pointer(path))

    def _scan(self, path: Path, schema: Json, base: str) -> None:
        stack = [(path, schema, base)]
        while stack:
            path, schema, base = stack.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            if isinstance(schema, bool):
                continue
            if not isinstance(schema, dict):
                self._refuse(f"a schema is a JSON object, true or false, not {_kind(schema)}", path)
            self._check_keywords(schema, path)
            _name_unevaluated(schema)
            own_id = schema.get("$id", schema.get("id"))
            if isinstance(own_id, str):
                base, fragment = urldefrag(urljoin(base, own_id))
                self._by_uri.setdefault(f"{base}#{fragment}", path)
                self._by_uri.setdefault(f"{base}#", path)
            for anchor in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(anchor), str):
                    self._by_uri.setdefault(f"{base}#{schema[anchor]}", path)
            if isinstance(schema.get("$ref"), str):
                self._refs.append((path, schema, base))
            stack.extend([((*path, *step), child, base) for step, child in subschemas(schema)])

    def _find(self, path: Path, ref: str, base: str) -> Path:
        where = (*path, "$ref")
        document, fragment = urldefrag(urljoin(base, ref) if base else ref)
        if document and f"{document}#" not in self._by_uri:
            self._refuse(
                f"$ref {ref!r} leads out of the schema, and nothing is fetched; put the target under $defs", where
            )
        root = self._by_uri.get(f"{document}#", ()) if document else ()
        if not fragment:
            return root
        if not fragment.startswith("/"):
            target = self._by_uri.get(f"{document}#{fragment}")
            if target is None:
                self._refuse(f"$ref {ref!r}: the schema has no anchor {fragment!r}", where)
            return target or ()
        target = root
        value = _at(self._root, root)
        for segment in unquote(fragment[1:]).split("/"):
            key: str | int = segment.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,8}", segment) and int(segment) < len(value):
                key = int(segment)
            elif not (isinstance(value, dict) and key in value):
                self._refuse(
                    f"$ref {ref!r} leads nowhere: there is no {key!r} in "
                    f"{self._base_pointer + pointer(target) or 'the schema'}",
                    where,
                )
            value = value[key]
            target = (*target, key)
        return target

    def _plain(self, target: Path, value: Json) -> str:
        if not target:
            return "#"
        if all(isinstance(part, str) and re.fullmatch(r"[^/~%\"\\]+", part) and part.isascii() for part in target):
            return "#/" + "/".join(map(str, target))
        if target not in self._aliases:
            definitions = self._root.setdefault("$defs", {})
            name = f"maskd_{len(self._aliases)}"
            while name in definitions:
                name += "_"
            definitions[name] = value
            self._aliases[target] = f"#/$defs/{name}"
            self._origins["$defs", name] = target
            self._seen.add(("$defs", name))
        return self._aliases[target]

    def _check_chains(self, targets: dict[int, int]) -> None:
        settled: set[int] = set()
        for path, schema, _ in self._refs:
            chain: list[int] = []
            at: int | None = id(schema)
            on_chain: set[int] = set()
            while at is not None and at not in settled:
                if at in on_chain:
                    where = self._base_pointer + pointer((*path, "$ref"))
                    raise GrammarUnsatisfiableError(
                        f"$ref {schema['$ref']!r} leads back to itself, so nothing can match it", pointer=where
                    )
                chain.append(at)
                on_chain.add(at)
                at = targets.get(at)
            if len(chain) > MAX_REF_CHAIN:
                raise GrammarTooLargeError(
                    f"a chain of more than {MAX_REF_CHAIN} $ref; shorten it", limit="ref_chain", value=MAX_REF_CHAIN
                )
            settled |= on_chain

    def _check_keywords(self, schema: Json, path: Path) -> None:
        """Refuses values that the standard does not allow; several of them end xgrammar's parser in the middle."""

        def refuse(key: str, wanted: str) -> None:
            self._refuse(
                f"{key} is {wanted}, not {_kind(schema[key])}" if wanted[0] in "a1" else f"{key} {wanted}", (*path, key)
            )

        for key, value in schema.items():
            if key == "type":
                names = value if isinstance(value, list) else [value]
                if not names or not all(isinstance(name, str) and name in TYPES for name in names):
                    self._refuse(
                        f"type {str(value)[:80]!r} is not known; give one of {', '.join(TYPES)}, or a list of them",
                        (*path, key),
                    )
            elif key in _MAPS and not isinstance(value, dict):
                refuse(key, "an object")
            elif key in ("allOf", "anyOf", "oneOf", "prefixItems", "enum", "required"):
                if not isinstance(value, list):
                    refuse(key, "a list")
                elif not value and key in ("allOf", "anyOf", "oneOf", "enum"):
                    self._refuse(f"{key} is empty; give at least one", (*path, key))
                elif key == "required" and not all(isinstance(name, str) for name in value):
                    self._refuse("required is a list of strings", (*path, key))
            elif key in _COUNTS:
                if isinstance(value, float) and value.is_integer():
                    schema[key] = value = int(value)  # 2.0 is a whole number by the standard, and to neither library
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    self._refuse(f"{key} is {str(value)[:40]}; give a whole number from 0", (*path, key))
            elif (key in _NUMBERS or key == "multipleOf") and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                refuse(key, "a number")
            elif key == "multipleOf" and value <= 0:
                self._refuse("multipleOf is a number above 0", (*path, key))
            elif key in _STRINGS and not isinstance(value, str):
                refuse(key, "a string")
        for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            value = schema.get(bound)
            if isinstance(value, bool):  # draft 4: a flag on the other keyword
                del schema[bound]
                if value and limit in schema:
                    schema[bound] = schema.pop(limit)
            elif value is not None and not isinstance(value, (int, float)):
                refuse(bound, "a number")


_IN_PLACE = (
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "allOf",
    "anyOf",
    "contains",
    "dependentSchemas",
    "if",
    "not",
    "oneOf",
)


def _name_unevaluated(schema: Json) -> None:
    """Where nothing beside it evaluates anything, "unevaluated" is "additional", which both libraries can do."""
    if any(keyword in schema for keyword in _IN_PLACE):
        return
    for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if keyword in schema and plain not in schema:
            schema[plain] = schema.pop(keyword)


def _at(root: Json, path: Path) -> Json:
    for part in path:
        root = root[part]
    return root


def _lookup(root: Json, ref: str) -> tuple[Path, Json]:
    path: Path = tuple(ref[2:].split("/")) if len(ref) > 1 else ()
    return path, _at(root, path)
