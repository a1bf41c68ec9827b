"""Reading a JSON schema: what every backend may rely on, whatever the client sent.

Owns: ``parse_schema``. It checks every schema of a document and makes every ``$ref`` a plain pointer into it.
Knows nothing about: backends, what a backend does not enforce (``enforcement``).

Nothing here recurses: the depth is limited when the text is read, and chains of references are walked in loops.
Format: JSON Schema 2020-12 and back to draft 4, as far as both libraries read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError
from maskd.grammar import GrammarOptions
from maskd.json_schema import strict_json
from maskd.json_schema.additional_properties import forbid_additional_properties
from maskd.json_schema.checks import fault_in, modernise
from maskd.json_schema.keywords import subschemas
from maskd.json_schema.references import BrokenReferenceError, Names, follow
from maskd.json_schema.strict_json import Json, Path, kind_of, pointer

__all__ = ["JsonSchema", "parse_schema"]

MAX_REF_CHAIN = 256
"""Longest chain of references from one to the next. Both libraries recurse along it, and die of a few thousand."""


@dataclass(frozen=True)
class JsonSchema:
    """A schema, read and checked.

    Attributes:
        value: the schema; a dict, or True. Every ``$ref`` is "#" or "#/…" and leads to a schema. Shared: do not change
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
        """Yields every schema within, each object once, with its path: subschemas and targets of ``$ref``."""
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

    def lookup(self, reference: str) -> tuple[Path, Json]:
        """Returns path and value of the target of ``reference``, one of the ``$ref`` of this schema."""
        target = follow(self.value, reference)
        assert target is not None, "checked when the schema was parsed"
        return target


def parse_schema(source: Json, options: GrammarOptions, *, pointer: str = "") -> JsonSchema:
    """Reads a schema.

    Args:
        source: text, or a parsed value that the caller does not use again.
        options: ``additional_properties`` is applied here, the same for every backend.
        pointer: where the schema stands within the caller's document.
    Raises:
        GrammarUnsatisfiableError: the schema is ``false``, or a ``$ref`` leads back to itself without asking for
            anything.
        GrammarTooLargeError: nested too deeply, or a chain of more than ``MAX_REF_CHAIN`` references.
        GrammarError: malformed, or a ``$ref`` leaves the document or leads nowhere. ``metadata["pointer"]`` says where.
    """
    value = strict_json.loads(source, "the schema") if isinstance(source, str) else source
    if value is False:
        raise GrammarUnsatisfiableError("the schema is false, so nothing can match it", pointer=pointer)
    if value is not True and not isinstance(value, dict):
        raise GrammarError(f"a schema is a JSON object, true or false, not {kind_of(value)}", pointer=pointer)
    origins = _Document(value, pointer).resolve()
    if options.additional_properties == "forbid":
        value, copied = forbid_additional_properties(value)
        origins = {path: _origin(origins, origin) for path, origin in copied.items()}
    return JsonSchema(value, pointer, origins)


def _origin(origins: dict[Path, Path], path: Path) -> Path:
    for length in range(len(path), 0, -1):
        origin = origins.get(path[:length])
        if origin is not None:
            return (*origin, *path[length:])
    return path


class _Document:
    """Checks every schema of a document and makes every ``$ref`` a plain pointer into it, in place.

    Both libraries look a pointer up by its raw text, from the root of the document. They do not find all targets so:
    escapes, anchors, ids, and for xgrammar array elements. Such targets get a second name in ``$defs``.
    """

    def __init__(self, root: Json, base_pointer: str) -> None:
        self._root = root
        self._base_pointer = base_pointer
        self._names = Names(root, base_pointer)
        self._refs: list[tuple[Path, Json, str]] = []  # path of a schema with a $ref, the schema, its base URI
        self._seen: set[Path] = set()
        self._origins: dict[Path, Path] = {}
        self._aliases: dict[Path, str] = {}

    def resolve(self) -> dict[Path, Path]:
        """Returns the origins of the parts that got a second name."""
        self._scan((), self._root, "")
        targets: dict[int, int] = {}  # id of a schema with a $ref → id of its target
        for path, schema, base in self._refs:  # grows: targets may hold further references
            try:
                target, value = self._names.find(schema["$ref"], base)
            except BrokenReferenceError as error:
                self._refuse(str(error), (*path, "$ref"))
            if target not in self._seen:
                if not isinstance(value, (dict, bool)):
                    self._refuse(f"$ref {schema['$ref']!r} leads to {kind_of(value)}, not to a schema", (*path, "$ref"))
                self._scan(target, value, base)
            schema["$ref"] = self._plain(target, value)
            targets[id(schema)] = id(value)
        self._check_chains(targets)
        return self._origins

    def _refuse(self, message: str, path: Path) -> NoReturn:
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
                self._refuse(f"a schema is a JSON object, true or false, not {kind_of(schema)}", path)
            fault = fault_in(schema)
            if fault is not None:
                self._refuse(fault[1], (*path, fault[0]))
            modernise(schema)
            base = self._names.add(path, schema, base)
            if "$ref" in schema:
                self._refs.append((path, schema, base))
            stack.extend([((*path, *step), child, base) for step, child in subschemas(schema)])

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
            chain: set[int] = set()
            at: int | None = id(schema)
            while at is not None and at not in settled:
                if at in chain:
                    where = self._base_pointer + pointer((*path, "$ref"))
                    raise GrammarUnsatisfiableError(
                        f"$ref {schema['$ref']!r} leads back to itself, so nothing can match it", pointer=where
                    )
                chain.add(at)
                at = targets.get(at)
            if len(chain) > MAX_REF_CHAIN:
                raise GrammarTooLargeError(
                    f"a chain of more than {MAX_REF_CHAIN} $ref; shorten it", limit="ref_chain", value=MAX_REF_CHAIN
                )
            settled |= chain
