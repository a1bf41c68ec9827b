"""Punctuation: what stands around and between the values of a document, white space included.

Owns: the symbols of Lark and of EBNF for it, as the options of a grammar ask. Knows nothing about: schemas, rules.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from maskd.grammar import GrammarOptions

__all__ = ["Punctuation", "ebnf_punctuation", "lark_punctuation"]

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


def lark_punctuation(options: GrammarOptions) -> Punctuation:
    """Returns the punctuation for ``max_whitespace`` and the separators of ``options``.

    Without a limit llguidance ignores white space between lexemes. With one, rules name it: llguidance would ignore one
    run behind another.
    """
    if options.max_whitespace is None:
        return _with_gaps("", options, rf"%ignore /{_WHITESPACE}+/")
    if not options.max_whitespace:
        return _with_gaps("", options)
    return _with_gaps("GAP?", options, rf"GAP: /{_WHITESPACE}{{1,{options.max_whitespace}}}/")


def ebnf_punctuation(options: GrammarOptions) -> Punctuation:
    """Returns the same as ``lark_punctuation`` for EBNF, which ignores nothing: white space is written out."""
    most = options.max_whitespace
    return _with_gaps("" if most == 0 else _WHITESPACE + ("*" if most is None else f"{{0,{most}}}"), options)


def _with_gaps(gap: str, options: GrammarOptions, *lines: str) -> Punctuation:
    return Punctuation(
        object_start=f'"{{" {gap}',
        object_end=f'{gap} "}}"',
        no_members=f'"{{" {gap} "}}"',
        array_start=f'"[" {gap}',
        array_end=f'{gap} "]"',
        no_items=f'"[" {gap} "]"',
        comma=f"{gap} {json.dumps(options.item_separator or ',')} {gap}",
        colon=f"{gap} {json.dumps(options.key_separator or ':')} {gap}",
        lines=lines,
    )
