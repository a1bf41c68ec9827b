"""Strings, numbers and words that are begun: how they can end, and which nodes they then satisfy.

Knows nothing about: objects, arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from maskd.json_schema.compiler.nodes import Node
from maskd.json_schema.compiler.reading import SchemaReader
from maskd.json_schema.compiler.values import Value
from maskd.json_schema.endings.open_values import Endings
from maskd.json_schema.endings.shortest import number_texts
from maskd.json_schema.endings.strings import BegunString, lightest
from maskd.regular.expression import Expression, derivative, matches

__all__ = ["string_endings", "string_satisfies", "word_endings", "word_satisfies"]

_WORDS = ("null", "true", "false")


def string_endings(reader: SchemaReader, string: BegunString, nodes: Sequence[Node]) -> Endings:
    """Returns the endings of ``string``, which may satisfy ``nodes``; if it satisfies none, that of any string."""
    return _endings(reader, nodes, lambda value: string.ending(value.strings))


def string_satisfies(reader: SchemaReader, string: BegunString, nodes: Iterable[Node]) -> set[Node]:
    """Returns which of ``nodes`` the closed ``string`` satisfies."""
    return {node for node in nodes if string.belongs(reader.value(node).strings)}


def word_endings(reader: SchemaReader, text: str, nodes: Sequence[Node]) -> Endings:
    """Returns the endings of ``text``, a number, ``null``, ``true`` or ``false`` that is begun."""
    word = next((word for word in _WORDS if word.startswith(text)), None)
    if word is not None:
        return _endings(reader, nodes, lambda value: word[len(text) :].encode() if getattr(value, word) else None)
    return _endings(reader, nodes, lambda value: _number_ending(number_texts(value.numbers), text))


def word_satisfies(reader: SchemaReader, text: str, nodes: Iterable[Node]) -> set[Node]:
    """Returns which of ``nodes`` the whole ``text`` satisfies."""
    if text in _WORDS:
        return {node for node in nodes if getattr(reader.value(node), text)}
    return {node for node in nodes if matches(number_texts(reader.value(node).numbers), text)}


def _endings(reader: SchemaReader, nodes: Sequence[Node], ending: Callable[[Value], bytes | None]) -> Endings:
    found = {node: text for node in nodes if (text := ending(reader.value(node))) is not None}
    return found or dict.fromkeys(nodes, ending(reader.algebra.anything) or b"")


def _number_ending(numbers: Expression, text: str) -> bytes | None:
    for char in text:
        numbers = derivative(numbers, char)
    rest = lightest(numbers)
    return None if rest is None else rest.encode()
