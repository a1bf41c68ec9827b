"""Where a ``$ref`` leads within one document.

Owns: JSON pointers as references (RFC 6901), and the names that ``$id``, ``$anchor`` and ``$dynamicAnchor`` give.
Knows nothing about: what a schema asks for, backends. Nothing is fetched.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urldefrag, urljoin

from maskd.json_schema.strict_json import Json, Path, pointer

__all__ = ["BrokenReferenceError", "Names", "follow"]


class BrokenReferenceError(Exception):
    """A reference that leaves the document or leads nowhere; its text says how."""


def follow(root: Json, reference: str) -> tuple[Path, Json] | None:
    """Returns path and value of what ``reference``, "#" or "#/…", leads to from ``root``.

    None: it is another kind of reference, or leads nowhere.
    """
    if reference != "#" and not reference.startswith("#/"):
        return None
    path, value, missing = _descend(root, reference[1:])
    return (path, value) if missing is None else None


class Names:
    """What references by name lead to. The names are added while a document is read."""

    def __init__(self, root: Json, base_pointer: str) -> None:
        """``base_pointer``: JSON pointer of ``root`` within what the caller sent, for messages."""
        self._root = root
        self._base_pointer = base_pointer
        self._named: dict[str, tuple[Path, Json]] = {}

    def add(self, path: Path, schema: Json, base: str) -> str:
        """Adds the names of ``schema``, which stands at ``path`` below the base URI ``base``; returns its base URI."""
        own_id = schema.get("$id", schema.get("id"))  # "id" in draft 4
        if isinstance(own_id, str):
            base, fragment = urldefrag(urljoin(base, own_id))
            self._named.setdefault(f"{base}#{fragment}", (path, schema))
            self._named.setdefault(f"{base}#", (path, schema))
        for anchor in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(anchor), str):
                self._named.setdefault(f"{base}#{schema[anchor]}", (path, schema))
        return base

    def find(self, reference: str, base: str) -> tuple[Path, Json]:
        """Returns path and value of what ``reference`` leads to from a schema with the base URI ``base``.

        Raises:
            BrokenReferenceError: it leaves the document, or leads nowhere.
        """
        document, fragment = urldefrag(urljoin(base, reference) if base else reference)
        start = self._named.get(f"{document}#") if document else ((), self._root)
        if start is None:
            raise BrokenReferenceError(
                f"$ref {reference!r} leads out of the schema, and nothing is fetched; put the target under $defs"
            )
        if fragment and not fragment.startswith("/"):
            target = self._named.get(f"{document}#{fragment}")
            if target is None:
                raise BrokenReferenceError(f"$ref {reference!r}: the schema has no anchor {fragment!r}")
            return target
        path, value, missing = _descend(start[1], fragment)
        path = (*start[0], *path)
        if missing is not None:
            where = self._base_pointer + pointer(path) or "the schema"
            raise BrokenReferenceError(f"$ref {reference!r} leads nowhere: there is no {missing!r} in {where}")
        return path, value


def _descend(value: Json, fragment: str) -> tuple[Path, Json, str | None]:
    """Follows the pointer in ``fragment``, "" or "/…", as far as it leads.

    Returns path and value of the last place reached, and the name that is missing there, if one is.
    """
    path: Path = ()
    for segment in unquote(fragment).split("/")[1:]:
        key: str | int = segment.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,8}", segment) and int(segment) < len(value):
            key = int(segment)
        elif not (isinstance(value, dict) and key in value):
            return path, value, str(key)
        value = value[key]
        path = (*path, key)
    return path, value, None
