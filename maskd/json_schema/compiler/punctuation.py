"""Punctuation: what stands around and between the values of a document, white space included.

Owns: the symbols of Lark for it, as the options of a grammar ask. Knows nothing about: schemas, rules.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from maskd.grammar import GrammarOptions

__all__ = ["Punctuation", "punctuation"]

_WHITESPACE = r"[ \t\n\r]"


class Punctuation(NamedTuple):
    """Symbols for the right side of a rule.

    Attributes:
        object_start, array_start: before the first member or item.
        object_end, array_end: behind the last one.
        no_members, no_items: an empty object, an empty array.
        comma: between members and items.
        colon: between a key and its value.
        lines: what the grammar needs for them.
    """

    object_start: str
    object_end: str
    no_members: str
    array_start: str
    array_end: str
    no_items: str
    comma: str
    colon: str
    lines: tuple[str, ...]


def punctuation(options: GrammarOptions) -> Punctuation:
    """Returns the punctuation for ``max_whitespace`` and the separators of ``options``.

    Without a limit llguidance ignores white space between lexemes. With one, rules name it: llguidance would ignore one
    run behind another.
    """
    gap, lines = "", [rf"%ignore /{_WHITESPACE}+/"]
    if options.max_whitespace is not None:
        gap = "GAP?" if options.max_whitespace else ""
        lines = [rf"GAP: /{_WHITESPACE}{{1,{options.max_whitespace}}}/"] if gap else []
    return Punctuation(
        object_start=f'"{{" {gap}',
        object_end=f'{gap} "}}"',
        no_members=f'"{{" {gap} "}}"',
        array_start=f'"[" {gap}',
        array_end=f'{gap} "]"',
        no_items=f'"[" {gap} "]"',
        comma=f"{gap} {json.dumps(options.item_separator or ',')} {gap}",
        colon=f"{gap} {json.dumps(options.key_separator or ':')} {gap}",
        lines=tuple(lines),
    )
