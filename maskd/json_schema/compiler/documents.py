"""Documents: every schema object, where it stands, and what a reference leads to.

Owns: base URIs, anchors, drafts, JSON pointers, and that every schema that is read is well formed.
Knows nothing about: what keywords ask for.
Nothing is fetched. A document is the caller's, comes along with it, or is the metaschema of a draft.
Source: JSON Schema Core 2020-12, sections 8 and 9; the same of 2019-09 and of drafts 7, 6 and 4.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from maskd.errors import GrammarError
from maskd.json_schema.checks import fault_in
from maskd.json_schema.keywords import subschemas
from maskd.json_schema.strict_json import Json, kind_of, pointer

__all__ = ["Documents", "SchemaDraft", "Place"]


class SchemaDraft(enum.IntEnum):
    """A version of JSON Schema; later ones are greater."""

    DRAFT_4 = 4
    DRAFT_6 = 6
    DRAFT_7 = 7
    DRAFT_2019 = 2019
    DRAFT_2020 = 2020


_NAMES = {
    "draft-04": SchemaDraft.DRAFT_4,
    "draft-06": SchemaDraft.DRAFT_6,
    "draft-07": SchemaDraft.DRAFT_7,
    "2019-09": SchemaDraft.DRAFT_2019,
    "2020-12": SchemaDraft.DRAFT_2020,
}


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One schema object of a document.

    Attributes:
        schema: the object.
        base: the URI of its resource, without a fragment; "" = the caller's document has no name.
        draft: that its resource is written in.
        document: the address of its document; "" = the caller's own.
        pointer: JSON pointer within the document.
    """

    schema: Mapping[str, Json]
    base: str
    draft: SchemaDraft
    document: str
    pointer: str

    def at(self, *keys: str | int) -> str:
        """Returns the pointer of something in it, behind the address of a document that was given along."""
        local = self.pointer + pointer(keys)
        return f"{self.document}#{local}" if self.document else local


class Documents:
    """The caller's schema and what it may refer to.

    Attributes:
        root: the caller's schema.
        is_dynamic: whether a document has references that depend on how they were reached.
    """

    def __init__(self, root: Json, where: str = "", resources: Mapping[str, Json] | None = None) -> None:
        """Reads ``root``, which stands at the pointer ``where``. ``resources`` are read when a reference leads there.

        All are parsed JSON, which stays as it is.
        """
        self.root = root
        self.is_dynamic = False
        self._given = {urldefrag(address)[0]: document for address, document in (resources or {}).items()}
        self._places: dict[int, Place] = {}
        self._resources: dict[str, Json] = {}
        self._anchors: dict[tuple[str, str], Json] = {}
        self._dynamic: dict[tuple[str, str], Json] = {}
        self._resources[""] = root
        self._index(root, "", _draft_of(root, SchemaDraft.DRAFT_2020), "", where)

    def place(self, schema: Mapping[str, Json]) -> Place:
        """Returns where ``schema``, an object of one of the documents, stands."""
        return self._places[id(schema)]

    def follow(self, reference: str, place: Place) -> tuple[Json, Place]:
        """Returns the schema that ``reference`` in ``place`` leads to, and a place in whose resource it stands.

        Raises:
            GrammarError: it leads nowhere, or to a document that was not given.
        """
        address, fragment = urldefrag(_joined(place.base, reference))
        document = self._resource(address, reference, place)
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if (address, fragment) not in self._anchors:
                raise GrammarError(
                    f"$ref {reference!r} leads nowhere: there is no anchor {fragment!r} in {address or 'the schema'}; "
                    "name one that is there",
                    pointer=place.at("$ref"),
                    keyword="$ref",
                )
            return self._located(self._anchors[address, fragment], place)
        return self._descend(document, address, fragment, reference, place)

    def loop(self, place: Place) -> Place | None:
        """Returns ``place``, or where its ``$ref`` leads, if that refers to itself again; None = no such loop."""
        seen = set[Place]()
        while "$ref" in place.schema:
            if place in seen:
                return place
            seen.add(place)
            target, _ = self.follow(place.schema["$ref"], place)
            if isinstance(target, bool):
                return None
            place = self.place(target)
        return None

    def outermost(self, name: str, scope: tuple[str, ...]) -> Json | None:
        """Returns the schema with the dynamic anchor ``name`` in the first resource of ``scope`` that has one."""
        return next((self._dynamic[base, name] for base in scope if (base, name) in self._dynamic), None)

    def matters(self, base: str, scope: tuple[str, ...]) -> bool:
        """Whether a dynamic reference may lead elsewhere because ``base`` was gone through behind ``scope``."""
        return any(where == base and self.outermost(name, scope) is None for where, name in self._dynamic)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _index(self, schema: Json, base: str, draft: SchemaDraft, document: str, where: str) -> None:
        """Checks ``schema``, which stands at the pointer ``where``, and all below it; gives them places and names."""
        if isinstance(schema, bool) or id(schema) in self._places:
            return
        address = f"{document}#{where}" if document else where
        if not isinstance(schema, dict):
            raise GrammarError(
                f"a schema is a JSON object, true or false, not {kind_of(schema)}; write one", pointer=address
            )
        if fault := fault_in(schema):
            raise GrammarError(fault[1], pointer=address + pointer(fault[:1]), keyword=fault[0])
        draft = _draft_of(schema, draft)
        is_hidden = draft <= SchemaDraft.DRAFT_7 and "$ref" in schema  # a reference hides what stands beside it
        own = schema.get("id" if draft == SchemaDraft.DRAFT_4 else "$id")
        if isinstance(own, str) and not is_hidden:
            base = self._name(schema, own, base, draft)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := schema.get(keyword), str) and draft >= SchemaDraft.DRAFT_2019:
                self._anchors[base, name] = schema
        if isinstance(name := schema.get("$dynamicAnchor"), str) and draft >= SchemaDraft.DRAFT_2020:
            self._dynamic[base, name] = schema
        if schema.get("$recursiveAnchor") is True and draft == SchemaDraft.DRAFT_2019:
            self._dynamic[base, ""] = schema
        self.is_dynamic |= "$dynamicRef" in schema or "$recursiveRef" in schema
        self._places[id(schema)] = Place(schema, base, draft, document, where)
        for path, child in subschemas(schema):
            self._index(child, base, draft, document, where + pointer(path))

    def _name(self, schema: Json, own: str, base: str, draft: SchemaDraft) -> str:
        """Adds the names that an id gives; returns the new base URI."""
        address, fragment = urldefrag(_joined(base, own))
        if fragment and draft <= SchemaDraft.DRAFT_7:
            self._anchors[address, fragment] = schema
        if own.startswith("#"):
            return base
        self._resources[address] = schema
        return address

    def _resource(self, address: str, reference: str, place: Place) -> Json:
        if address not in self._resources:
            document = self._given.get(address)
            if document is None:
                document = _metaschema(address)
            if document is None:
                raise GrammarError(
                    f"$ref {reference!r} leads to {address}, and nothing is fetched; give that document along, "
                    "or put the target under $defs",
                    pointer=place.at("$ref"),
                    keyword="$ref",
                    address=address,
                )
            self._resources[address] = document
            self._index(document, address, _draft_of(document, place.draft), address, "")
        return self._resources[address]

    def _descend(self, value: Json, base: str, fragment: str, reference: str, place: Place) -> tuple[Json, Place]:
        inside = self._places.get(id(value), place)
        path = ""
        for segment in fragment.split("/")[1:]:
            key = segment.replace("~1", "/").replace("~0", "~")
            path += f"/{segment}"
            if isinstance(value, list) and key.isascii() and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                raise GrammarError(
                    f"$ref {reference!r} leads nowhere: there is no {key!r} in {base or 'the schema'}; "
                    "give a JSON pointer to a schema",
                    pointer=place.at("$ref"),
                    keyword="$ref",
                )
            inside = self._places.get(id(value), inside)
        if not isinstance(value, dict | bool):
            raise GrammarError(
                f"$ref {reference!r} leads to {kind_of(value)}, not to a schema; let it lead to one",
                pointer=place.at("$ref"),
                keyword="$ref",
            )
        if id(value) not in self._places:  # below a keyword that is unknown
            self._index(value, inside.base, inside.draft, inside.document, inside.pointer + path)
        return self._located(value, inside)

    def _located(self, schema: Json, inside: Place) -> tuple[Json, Place]:
        return schema, self._places.get(id(schema), inside)


def _joined(base: str, reference: str) -> str:
    """Returns ``reference`` as seen from ``base``, which may be a URN: Python joins those to nothing."""
    return base + reference if reference.startswith("#") else urljoin(base, reference)


def _draft_of(schema: Json, inherited: SchemaDraft) -> SchemaDraft:
    declared = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(declared, str):
        return inherited
    return next((draft for name, draft in _NAMES.items() if name in declared), inherited)


@functools.cache
def _metaschemas() -> Mapping[str, Any]:
    from jsonschema_specifications import REGISTRY  # read from its package when a schema refers to one

    return {urldefrag(str(address))[0]: REGISTRY[address].contents for address in REGISTRY}


def _metaschema(address: str) -> Json | None:
    return _metaschemas().get(address)
