"""What of a JSON schema a backend does not enforce. Stub until the table is in."""

from __future__ import annotations

from maskd.grammar import Unenforced
from maskd.schema import JsonSchema


def unenforced(schema: JsonSchema, backend: str) -> tuple[Unenforced, ...]:
    return ()
