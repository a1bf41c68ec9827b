"""The position at the start of an output, by the kind of its grammar.

Owns: which kinds of grammars can be followed, and the automata of the patterns used last.
Knows nothing about: tokens, masks, steering.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re

from engine_adapter.steering.base import Position
from engine_adapter.steering.json_position import JsonPosition
from engine_adapter.steering.regex_position import Automaton, RegexPosition
from engine_adapter.steering.tag_position import TagPosition, tags_of
from maskd.grammar import GrammarSpec
from maskd.json_schema import strict_json
from maskd.json_schema.endings.schema import SchemaEndings
from maskd.json_schema.strict_json import Json

__all__ = ["position_of"]

_MOST_SOURCE = 1 << 18
"""Longest source of schemas that are read, in characters; a second of work at most, as a rule."""
_automaton = functools.lru_cache(maxsize=64)(Automaton)


def position_of(spec: GrammarSpec) -> Position | None:
    """Returns the position at the start of an output of ``spec``; None if this kind of grammar cannot be followed.

    Raises:
        ValueError, GrammarError: the source is malformed or too large to be followed. A source that is malformed deep
            inside raises TypeError, AttributeError, ArithmeticError, LookupError or RecursionError.
    """
    if spec.kind in ("json_schema", "json_object"):
        schema = strict_json.loads(spec.source, "the schema") if spec.kind == "json_schema" else {"type": "object"}
        return JsonPosition(_endings(schema, spec))
    if spec.kind == "structural_tag":
        source = strict_json.loads(spec.source, "the structural tag")
        tags = tags_of(source, functools.partial(_endings, spec=spec))
        return TagPosition(source, tags) if tags else None
    if spec.kind in ("regex", "choice"):
        pattern = spec.source if spec.kind == "regex" else "|".join(map(re.escape, json.loads(spec.source)))
        return RegexPosition(_automaton(pattern))
    return None


def _endings(schema: Json, spec: GrammarSpec) -> SchemaEndings:
    """Returns the endings of ``schema``. xgrammar's masks have the order of the schema, whatever was asked for."""
    resources = {address: strict_json.loads(text, "a document") for address, text in spec.resources.items()}
    if len(spec.source) > _MOST_SOURCE:
        raise ValueError(f"the source has more than {_MOST_SOURCE} characters")
    order = "schema" if spec.backend == "xgrammar" else spec.options.property_order
    return SchemaEndings(schema, dataclasses.replace(spec.options, property_order=order), resources)
