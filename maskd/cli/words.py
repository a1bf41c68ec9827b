"""The words of a grammar's source: what a random output may need to have, and would never meet by chance.

Owns: which parts of a source count as words. Knows nothing about: what is done with them.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator
from typing import Any

from maskd.grammar import GrammarSpec

__all__ = ["words_of"]

_RUN = re.compile(r"\w{2,}")
_LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)+)"')
_NAMED = ("properties", "dependentSchemas", "dependentRequired", "dependencies")
"""Keywords whose keys are names of properties."""
_MOST_WORDS = 2000
_VALUES = ("required", "enum", "const", "examples", "default", "dependentRequired", "dependencies", "begin")
"""Keywords whose scalars stand in outputs."""


def words_of(spec: GrammarSpec) -> dict[bytes, int]:
    """Returns the words, as they stand in an output without quotes, each with how often the source has it."""
    if spec.kind in ("json_schema", "structural_tag", "choice"):
        try:
            document = json.loads(spec.source)
        except (ValueError, RecursionError):
            return {}
        found = _texts(document, is_value=spec.kind == "choice")
    else:
        literals = (match[1] for match in _LITERAL.finditer(spec.source))
        found = (*literals, *(match[0] for match in _RUN.finditer(spec.source)))  # type: ignore[assignment]
    words = collections.Counter(word.encode("utf-8", "replace") for word in found if word)
    return dict(words.most_common(_MOST_WORDS))


def _texts(document: Any, *, is_value: bool) -> Iterator[str]:
    """Yields names, values and parts of patterns; ``is_value``: of data, not of a schema."""
    stack = [(document, is_value)]
    while stack:
        one, is_value = stack.pop()
        if isinstance(one, list):
            stack += [(item, is_value) for item in one]
        elif isinstance(one, dict):
            for key, value in one.items():
                if is_value:
                    yield _as_in_json(key)
                if not is_value and key in _NAMED and isinstance(value, dict):
                    yield from map(_as_in_json, value)
                    stack += [(item, key in _VALUES) for item in value.values()]
                    continue
                if key == "pattern" and isinstance(value, str):
                    yield from _RUN.findall(value)
                stack.append((value, is_value or key in _VALUES))
        elif is_value:
            yield _as_in_json(one)


def _as_in_json(value: Any) -> str:
    """Returns a scalar as JSON writes it, without the quotes of a string."""
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text
