"""The shortest documents of a JSON schema, near enough.

Owns: choosing among alternatives, the shortest text of each type, and a limit on the work for one output.
Knows nothing about: tokens, masks, where in a document an output stands.

The results are aims and estimates: the mask decides what is valid. Keywords that are not read here (``minProperties``,
``contains``, ``if``, …) make an aim worse and no output wrong.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine_adapter.steering.base import UNKNOWN
from maskd.json_schema.keywords import OF_TYPE
from maskd.json_schema.references import follow
from maskd.json_schema.strict_json import walk

__all__ = ["MOST_BYTES", "Shape", "Shapes", "literals", "string_length"]

Shape = Mapping[str, Any]
"""A schema whose top has neither references nor alternatives; of one type, or of any."""

_regex_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_MOST_ALTERNATIVES = 32
_MOST_REFERENCES = 32
_MOST_WORK, _WORK_PER_BYTE = 20_000, 200
"""Work that an output may cost at once, some 20 ms, and that each of its bytes gives back: alternatives multiply."""
MOST_BYTES = 1 << 13
"""Longest shortest text: hardly any output has room for a longer one, and repeats within repeats multiply."""
_MOST_NODES = 2000
"""Values of a schema that are searched for its largest part."""
_MOST_PATTERN = 2000
"""Longest pattern, in characters, whose shortest match is measured."""
_FORMAT_LENGTHS = {
    "date": 10, "time": 9, "date-time": 20, "uuid": 36, "ipv4": 7, "ipv6": 2, "email": 3, "hostname": 1, "uri": 3,
    "duration": 3,
}  # fmt: skip


class Shapes:
    """The shapes of one schema."""

    def __init__(self, schema: Any, item_separator: str = ",", key_separator: str = ":") -> None:
        """``schema``: a parsed JSON schema. The separators are those that its grammar demands."""
        self.root = schema
        self.item_separator = item_separator.encode()
        self.key_separator = key_separator.encode()
        self._expanded: dict[
            int, tuple[Any, list[Shape]]
        ] = {}  # keyed by id; holds the schema, so that ids stay unique
        self._shortest: dict[int, tuple[Any, bytes]] = {}
        self._measuring: set[int] = set()
        self._spent = 0

    def spend(self, work: int) -> None:
        """Counts ``work``, about a microsecond each.

        Raises:
            ValueError: it was too much, so the schema cannot be followed.
        """
        self._spent += work
        if self._spent > _MOST_WORK:
            raise ValueError("the schema takes too long to be followed")

    def rest(self) -> None:
        """Counts one byte of the output, which gives some work back."""
        self._spent = max(0, self._spent - _WORK_PER_BYTE)

    def alternatives(self, schema: Any) -> list[Shape]:
        """Returns the shapes that a value of ``schema`` may have; empty if no value matches.

        Raises:
            ValueError: the schema has too many alternatives to be looked at.
        """
        for _ in range(_MOST_REFERENCES):  # so that all references to a schema share its alternatives
            if not (isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)) or schema.keys() & _MERGED:
                break
            schema = self._resolve(schema["$ref"])
        if id(schema) not in self._expanded:
            self._expanded[id(schema)] = schema, list(itertools.islice(self._expand(schema, 0), _MOST_ALTERNATIVES))
        return self._expanded[id(schema)][1]

    def shortest(self, schema: Any) -> bytes | None:
        """Returns the shortest text of a value; None if no value is finite, or none has at most ``MOST_BYTES``."""
        if id(schema) in self._shortest:
            return self._shortest[id(schema)][1]
        if id(schema) in self._measuring:
            return None
        self._measuring.add(id(schema))
        texts = [text for shape in self.alternatives(schema) if (text := self._text(shape)) is not None]
        self._measuring.discard(id(schema))
        if not texts:
            return None
        self._shortest[id(schema)] = schema, min(texts, key=len)
        return self._shortest[id(schema)][1]

    def property(self, shape: Shape, key: str) -> Any:
        """Returns the schema of the property ``key``."""
        properties = shape.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
        return shape.get("additionalProperties", True)

    def item(self, shape: Shape, index: int) -> Any:
        """Returns the schema of the item at ``index``."""
        first = shape.get("prefixItems", shape["items"] if isinstance(shape.get("items"), list) else ())
        if index < len(first):
            return first[index]
        return shape.get("additionalItems", True) if isinstance(shape.get("items"), list) else shape.get("items", True)

    def end_of_object(self, shape: Shape, seen: set[str], *, is_first: bool) -> bytes | None:
        """Returns the shortest text from after a property to the end of the object; None if there is none.

        ``is_first``: from after the opening brace.
        """
        properties = shape.get("properties") or {}
        required = [key for key in shape.get("required") or () if isinstance(key, str) and key not in seen]
        self.spend((len(properties) + len(required)) // 8)
        order = {key: at for at, key in enumerate(properties)}
        required.sort(key=lambda key: order.get(key, len(order)))
        parts, size = [], 0
        for key in required:
            value = self.shortest(self.property(shape, key))
            if value is None or (size := size + len(key) + len(value)) > MOST_BYTES:
                return None
            parts.append(json.dumps(key, ensure_ascii=False).encode() + self.key_separator + value)
        head = b"" if is_first or not parts else self.item_separator
        return head + self.item_separator.join(parts) + b"}"

    def end_of_array(self, shape: Shape, count: int) -> bytes | None:
        """Returns the shortest text from after ``count`` items to the end of the array; None if there is none."""
        parts, size = list[bytes](), 0
        for index in range(count, int(shape.get("minItems") or 0)):
            self.spend(index % 2)
            value = self.shortest(self.item(shape, index))
            if value is None or (size := size + 1 + len(value)) > MOST_BYTES:
                return None
            parts.append(value)
        head = self.item_separator if count and parts else b""
        return head + self.item_separator.join(parts) + b"]"

    def largest_part(self) -> int:
        """Returns the bytes of the longest of the shortest values of any part of the schema."""
        nodes = (node for _, node in itertools.islice(walk(self.root), _MOST_NODES))
        texts = (self.shortest(node) for node in nodes if isinstance(node, Mapping))  # not all of them are schemas
        return max((len(text) for text in texts if text is not None), default=0)

    def _expand(self, schema: Any, depth: int) -> Iterator[Shape]:
        self.spend(1 + (len(schema) // 16 if isinstance(schema, Mapping) else 0))
        if schema is True or not isinstance(schema, Mapping | bool):
            schema = {}
        if schema is False or depth > _MOST_REFERENCES:
            return
        assert isinstance(schema, Mapping)
        if isinstance(reference := schema.get("$ref"), str):
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            target = self._resolve(reference)
            yield from self._expand(
                _merged(target, rest) if isinstance(target, Mapping) and rest.keys() & _MERGED else target, depth + 1
            )
            return
        for key in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(key), list):
                rest = {name: value for name, value in schema.items() if name != key}
                for branch in branches:
                    for shape in self._expand(branch, depth + 1):
                        yield from self._expand(_merged(rest, shape), depth + 1)
                return
        if isinstance(branches := schema.get("allOf"), list):
            merged: Shape = {name: value for name, value in schema.items() if name != "allOf"}
            for branch in branches:
                merged = _merged(merged, next(self._expand(branch, depth + 1), {}))
            yield from self._expand(merged, depth + 1)
            return
        types = schema.get("type")
        if isinstance(types, list):
            yield from ({**schema, "type": name} for name in types)
        else:
            yield schema if types else {**schema, **_implied_type(schema)}

    def _resolve(self, reference: str) -> Any:
        target = follow(self.root, reference)
        return {} if target is None else target[1]

    def _text(self, shape: Shape) -> bytes | None:
        if values := literals(shape):
            return min(values, key=len)
        kind = shape.get("type")
        if kind == "object":
            rest = self.end_of_object(shape, set(), is_first=True)
            return None if rest is None else b"{" + rest
        if kind == "array":
            rest = self.end_of_array(shape, 0)
            return None if rest is None else b"[" + rest
        if kind == "string":
            length, is_known = string_length(shape)
            return None if length > MOST_BYTES else b'"' + (b"a" if is_known else UNKNOWN) * length + b'"'
        if kind in ("integer", "number"):
            return _shortest_number(shape)
        return {"boolean": b"true", "null": b"null"}.get(str(kind), b"0")


_MERGED = {"properties", "required", "type", "enum", "const", "items", "minItems", "anyOf", "oneOf", "allOf"}


def literals(shape: Shape) -> list[bytes]:
    """Returns the texts that ``shape`` lists (``const``, ``enum``); empty if it does not list any."""
    values = [shape["const"]] if "const" in shape else shape.get("enum")
    return (
        [json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() for value in values]
        if isinstance(values, list)
        else []
    )


def string_length(shape: Shape) -> tuple[int, bool]:
    """Returns the least number of characters of a string, and whether any characters are allowed."""
    least = int(shape.get("minLength") or 0)
    if isinstance(pattern := shape.get("pattern"), str):
        try:
            return max(least, _least_length(pattern)), False
        except Exception:  # the pattern is of another dialect, or too long
            return max(least, 1), False
    if isinstance(name := shape.get("format"), str) and name in _FORMAT_LENGTHS:
        return max(least, _FORMAT_LENGTHS[name]), False
    return least, True


@functools.lru_cache(maxsize=256)
def _least_length(pattern: str) -> int:
    if len(pattern) > _MOST_PATTERN:
        raise ValueError(f"the pattern has {len(pattern)} characters")
    return int(_regex_parser.parse(pattern).getwidth()[0])


def _shortest_number(shape: Shape) -> bytes:
    low = max(_numbers(shape, "minimum", "exclusiveMinimum"), default=-math.inf)
    high = min(_numbers(shape, "maximum", "exclusiveMaximum"), default=math.inf)
    excluded = set(_numbers(shape, "exclusiveMinimum", "exclusiveMaximum"))
    step = next(iter(_numbers(shape, "multipleOf")), 1) or 1
    nearest = 0.0 if low <= 0 <= high else math.ceil(low / step) * step if low > 0 else math.floor(high / step) * step
    if nearest in excluded:
        nearest += step if nearest <= low else -step
    return str(int(nearest) if float(nearest).is_integer() else nearest).encode()


def _numbers(shape: Shape, *keys: str) -> Sequence[float]:
    return [value for key in keys if isinstance(value := shape.get(key), int | float) and not isinstance(value, bool)]


def _implied_type(shape: Shape) -> Shape:
    if "const" in shape or "enum" in shape:
        return {}
    return next(({"type": name} for name, keywords in OF_TYPE.items() if not keywords.isdisjoint(shape)), {})


def _merged(first: Shape, second: Shape) -> Shape:
    """Returns one schema for both, near enough."""
    merged = {**first, **second}
    if isinstance(first.get("properties"), Mapping) and isinstance(second.get("properties"), Mapping):
        merged["properties"] = {**first["properties"], **second["properties"]}
    if isinstance(first.get("required"), list) and isinstance(second.get("required"), list):
        merged["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    return merged
