"""Closing objects: what ``additional_properties="forbid"`` means for a whole JSON schema.

Owns: ``close_objects``.
Knows nothing about: backends.

A value at one place may be described by several schemas: by a schema, by what its ``$ref`` leads to, by the members of
its
``allOf``. To close each of them would forbid what the others name. So a place is closed once: by the one schema that
describes it, or, where several do, by the outermost, which then names the properties of all of them. A definition can
be
both alone at one place and a member at another, so each use gets the copy it needs.
"""

from __future__ import annotations

import copy
from typing import Literal

from maskd.json_schema.schema import subschemas
from maskd.json_schema.strict_json import Json, Path

__all__ = ["close_objects"]

Mode = Literal["closed", "open", "raw"]
"""closed: alone at its place, so it closes it. open: another schema closes this place. raw: under a negation or a
condition, where closing would change what is asked."""

_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "then", "else", "dependentSchemas")
_RAW = ("contains", "if", "not", "propertyNames")
_SAYS = ("additionalProperties", "unevaluatedProperties")
_NAMES = ("properties", "patternProperties")


def close_objects(root: Json) -> tuple[Json, dict[Path, Path]]:
    """Returns a copy of ``root`` in which every object schema that says nothing about further properties forbids them,
    and where its definitions came from: path in the copy → path in ``root``. Every ``$ref`` must be "#" or "#/…"."""
    if root is True:
        return True, {}
    return _Closing(root).close()


class _Closing:
    def __init__(self, root: Json) -> None:
        self._root = root
        self._definitions: dict[str, Json] = {}
        self._origins: dict[Path, Path] = {}
        self._aliases: dict[tuple[str, Mode], str] = {("#", "closed"): "#"}
        self._todo: list[tuple[Json, Json, Mode]] = []  # schema, its copy to be finished, mode

    def close(self) -> tuple[Json, dict[Path, Path]]:
        closed = self._copy(self._root, "closed")
        while self._todo:
            self._finish(*self._todo.pop())
        for container in ("$defs", "definitions"):
            closed.pop(container, None)
        if self._definitions:
            closed["$defs"] = self._definitions
        return closed, self._origins

    def _copy(self, schema: Json, mode: Mode) -> Json:
        """Returns a copy that ``_finish`` completes later; nothing here recurses."""
        if not isinstance(schema, dict):
            return schema
        copied: dict[str, Json] = {}
        self._todo.append((schema, copied, mode))
        return copied

    def _finish(self, schema: Json, copied: Json, mode: Mode) -> None:
        together = mode == "closed" and _is_composed(schema)
        inside: dict[str, list[tuple[Path, Json]]] = {}
        for step, child in subschemas(schema):
            inside.setdefault(str(step[0]), []).append((step, child))
        for key, value in schema.items():
            if key in ("$defs", "definitions"):
                continue
            if key == "$ref":
                copied[key] = self._alias(value, "open" if together else mode)
            elif key in inside:
                child_mode: Mode = "raw" if mode == "raw" or key in _RAW else "closed"
                if key in _IN_PLACE and child_mode == "closed":
                    child_mode = "open" if together else mode
                copied[key] = _shell(value)
                for step, child in inside[key]:
                    _put(copied, step, self._copy(child, child_mode))
            else:
                copied[key] = copy.deepcopy(value)
        if mode == "closed":
            self._forbid(schema, copied, together)

    def _alias(self, ref: str, mode: Mode) -> str:
        if (ref, mode) not in self._aliases:
            name = f"maskd_{mode}_{len(self._aliases)}"
            self._aliases[ref, mode] = f"#/$defs/{name}"
            path, target = self._lookup(ref)
            self._origins["$defs", name] = path
            self._definitions[name] = self._copy(target, mode)
        return self._aliases[ref, mode]

    def _lookup(self, ref: str) -> tuple[Path, Json]:
        path: Path = tuple(ref[2:].split("/")) if len(ref) > 1 else ()
        target = self._root
        for part in path:
            target = target[part]
        return path, target

    def _forbid(self, schema: Json, copied: Json, together: bool) -> None:
        if not together:
            if _is_object(schema) and not any(key in schema for key in (*_SAYS, *_IN_PLACE)):
                copied["additionalProperties"] = False
            return
        names: dict[str, dict[str, Json]] = {key: {} for key in _NAMES}
        is_object = False
        stack, seen = [schema], set()
        while stack:
            part = stack.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            if any(key in part for key in _SAYS):
                return
            is_object |= _is_object(part)
            for key in _NAMES:
                for name in part.get(key) or {}:
                    names[key].setdefault(name, True)
            stack.extend([child for step, child in reversed(list(subschemas(part))) if step[0] in (*_IN_PLACE, "if")])
            if "$ref" in part:
                stack.append(self._lookup(part["$ref"])[1])
        if is_object:
            for key in _NAMES:
                if names[key]:
                    own = copied.setdefault(key, {})
                    for name in names[key]:
                        own.setdefault(name, True)
            copied["additionalProperties"] = False


def _is_object(schema: Json) -> bool:
    kind = schema.get("type")
    if kind is None:
        return any(key in schema for key in _NAMES)
    return "object" in ([kind] if isinstance(kind, str) else kind)


def _is_composed(schema: Json) -> bool:
    """Whether more than one schema describes the value at this place, other than as alternatives."""
    present = [key for key in _IN_PLACE if key in schema]
    if not present:
        return False
    if len(present) > 1 or any(key in schema for key in (*_NAMES, *_SAYS)):
        return True
    return present[0] not in ("$ref", "anyOf", "oneOf") and not (present[0] == "allOf" and len(schema["allOf"]) == 1)


def _shell(value: Json) -> Json:
    """Returns a container like ``value``, whose schemas are still to be put in."""
    if isinstance(value, list):
        return [None] * len(value)
    return dict(value) if isinstance(value, dict) else value


def _put(copied: Json, step: Path, child: Json) -> None:
    container = copied
    for part in step[:-1]:
        container = container[part]
    container[step[-1]] = child
