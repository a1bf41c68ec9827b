"""What ``additional_properties="forbid"`` means for a whole JSON schema: its objects have only the named properties.

Owns: ``forbid_additional_properties``.
Knows nothing about: backends, checking a schema.

Several schemas may describe one value: a schema, the target of its ``$ref``, the members of its ``allOf``.
Closing each of them would forbid what the others name. So a place is closed once. If one schema describes it, that
schema closes it. If several do, the outermost closes it and names the properties of all. A definition can be alone at
one place and a member at another. Each use gets the copy that it needs.
"""

from __future__ import annotations

import copy
from typing import Literal

from maskd.json_schema.keywords import CONDITIONS, SAME_VALUE, declared_types, put, subschemas
from maskd.json_schema.references import follow
from maskd.json_schema.strict_json import Json, Path

__all__ = ["forbid_additional_properties"]

Mode = Literal["closed", "open", "raw"]
"""closed: alone at its place, so it closes it. open: another schema closes this place. raw: under a negation or a
condition, where closing would change the meaning."""

_RAW = CONDITIONS | {"propertyNames"}
_FURTHER = ("additionalProperties", "unevaluatedProperties")
_NAMED = ("properties", "patternProperties")


def forbid_additional_properties(root: Json) -> tuple[Json, dict[Path, Path]]:
    """Returns a copy of ``root`` whose objects forbid further properties, and where its definitions came from.

    An object schema that says something about further properties keeps it. The second value maps paths in the copy to
    paths in ``root``. Every ``$ref`` of ``root`` must be "#" or "#/…" and lead to a schema.
    """
    if root is True:
        return True, {}
    return _Copying(root).copy()


class _Copying:
    def __init__(self, root: Json) -> None:
        self._root = root
        self._definitions: dict[str, Json] = {}
        self._origins: dict[Path, Path] = {}
        self._aliases: dict[tuple[str, Mode], str] = {("#", "closed"): "#"}
        self._todo: list[tuple[Json, Json, Mode]] = []  # schema, its unfinished copy, mode

    def copy(self) -> tuple[Json, dict[Path, Path]]:
        copied = self._copy(self._root, "closed")
        while self._todo:
            self._finish(*self._todo.pop())
        for container in ("$defs", "definitions"):
            copied.pop(container, None)
        if self._definitions:
            copied["$defs"] = self._definitions
        return copied, self._origins

    def _copy(self, schema: Json, mode: Mode) -> Json:
        """Returns a copy that ``_finish`` completes later; nothing here recurses."""
        if not isinstance(schema, dict):
            return schema
        copied: dict[str, Json] = {}
        self._todo.append((schema, copied, mode))
        return copied

    def _finish(self, schema: Json, copied: Json, mode: Mode) -> None:
        is_shared = mode == "closed" and _is_composed(schema)
        inside: dict[str, list[tuple[Path, Json]]] = {}
        for step, child in subschemas(schema):
            inside.setdefault(str(step[0]), []).append((step, child))
        for key, value in schema.items():
            if key in ("$defs", "definitions"):
                continue
            if key == "$ref":
                copied[key] = self._alias(value, "open" if is_shared else mode)
            elif key in inside:
                child_mode: Mode = "raw" if mode == "raw" or key in _RAW else "closed"
                if key in SAME_VALUE and child_mode == "closed":
                    child_mode = "open" if is_shared else mode
                copied[key] = value.copy() if isinstance(value, (list, dict)) else value
                for step, child in inside[key]:
                    put(copied, step, self._copy(child, child_mode))
            else:
                copied[key] = copy.deepcopy(value)
        if mode == "closed":
            self._forbid(schema, copied, is_shared)

    def _alias(self, reference: str, mode: Mode) -> str:
        if (reference, mode) not in self._aliases:
            name = f"maskd_{mode}_{len(self._aliases)}"
            self._aliases[reference, mode] = f"#/$defs/{name}"
            path, target = self._lookup(reference)
            self._origins["$defs", name] = path
            self._definitions[name] = self._copy(target, mode)
        return self._aliases[reference, mode]

    def _lookup(self, reference: str) -> tuple[Path, Json]:
        target = follow(self._root, reference)
        assert target is not None, "the caller checked that every $ref leads to a schema"
        return target

    def _forbid(self, schema: Json, copied: Json, is_shared: bool) -> None:
        if not is_shared:
            if _is_object(schema) and not schema.keys() & (SAME_VALUE | set(_FURTHER)):
                copied["additionalProperties"] = False
            return
        names: dict[str, dict[str, Json]] = {key: {} for key in _NAMED}
        is_object = False
        stack, seen = [schema], set()
        while stack:
            part = stack.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            if any(key in part for key in _FURTHER):
                return
            is_object |= _is_object(part)
            for key in _NAMED:
                names[key].update(dict.fromkeys(part.get(key) or {}, True))
            same_value = [child for step, child in subschemas(part) if step[0] in SAME_VALUE or step[0] == "if"]
            stack.extend(reversed(same_value))
            if "$ref" in part:
                stack.append(self._lookup(part["$ref"])[1])
        if is_object:
            for key in _NAMED:
                if names[key]:
                    copied[key] = names[key] | copied.get(key, {})
            copied["additionalProperties"] = False


def _is_object(schema: Json) -> bool:
    return "object" in declared_types(schema) if "type" in schema else any(key in schema for key in _NAMED)


def _is_composed(schema: Json) -> bool:
    """Whether more than one schema describes the value at this place, other than as alternatives."""
    present = sorted(SAME_VALUE & schema.keys())
    if not present:
        return False
    if len(present) > 1 or any(key in schema for key in (*_NAMED, *_FURTHER)):
        return True
    return present[0] not in ("$ref", "anyOf", "oneOf") and not (present[0] == "allOf" and len(schema["allOf"]) == 1)
