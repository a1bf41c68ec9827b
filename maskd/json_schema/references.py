"""Where a ``$ref`` leads within one document.

Owns: JSON pointers as references (RFC 6901). Knows nothing about: what a schema asks for, names of schemas, backends.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from maskd.json_schema.strict_json import Json, Path

__all__ = ["follow"]


def follow(root: Json, reference: str) -> tuple[Path, Json] | None:
    """Returns path and value of what ``reference``, "#" or "#/…", leads to from ``root``.

    None: it is another kind of reference, or leads nowhere.
    """
    if reference != "#" and not reference.startswith("#/"):
        return None
    path: Path = ()
    value = root
    for segment in unquote(reference[1:]).split("/")[1:]:
        key: str | int = segment.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,8}", segment) and int(segment) < len(value):
            key = int(segment)
        elif not (isinstance(value, dict) and key in value):
            return None
        value = value[key]
        path = (*path, key)
    return path, value
