"""The position at the start of an output, by the kind of its grammar.

Owns: which kinds of grammars can be followed, and the automata of the patterns used last.
Knows nothing about: tokens, masks, steering.
"""

from __future__ import annotations

import functools
import json
import re

from engine_adapter.steering.base import Position
from engine_adapter.steering.json_position import JsonPosition
from engine_adapter.steering.regex_position import Automaton, RegexPosition
from engine_adapter.steering.shapes import Shapes
from engine_adapter.steering.tag_position import TagPosition, tags_of
from maskd.grammar import GrammarSpec

__all__ = ["position_of"]

_automaton = functools.lru_cache(maxsize=64)(Automaton)


def position_of(spec: GrammarSpec) -> Position | None:
    """Returns the position at the start of an output of ``spec``; None if this kind of grammar cannot be followed.

    Raises:
        ValueError: the source is malformed or too large to be followed. A source that is malformed deep inside raises
            TypeError, AttributeError, ArithmeticError, LookupError or RecursionError.
    """
    separators = spec.options.item_separator or ",", spec.options.key_separator or ":"
    if spec.kind in ("json_schema", "json_object"):
        schema = json.loads(spec.source) if spec.kind == "json_schema" else {"type": "object"}
        return JsonPosition(Shapes(schema, *separators))
    if spec.kind == "structural_tag":
        source = json.loads(spec.source)
        tags = tags_of(source, *separators)
        return TagPosition(source, tags) if tags else None
    if spec.kind in ("regex", "choice"):
        pattern = spec.source if spec.kind == "regex" else "|".join(map(re.escape, json.loads(spec.source)))
        return RegexPosition(_automaton(pattern))
    return None
