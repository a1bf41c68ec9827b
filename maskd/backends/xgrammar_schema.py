from __future__ import annotations

from maskd.schema import JsonSchema
from maskd.strict_json import Json

SURROGATES = "x"


def rewrite(schema: JsonSchema, *, compact: bool, strict_mode: bool = False) -> Json:
    return schema.value
