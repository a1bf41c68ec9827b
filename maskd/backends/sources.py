"""Reading the source of a grammar spec, as far as it is the same for every backend.

Owns: checks of the text, choice lists, separators, documents given along, what ``strict`` refuses, regexes as
    expressions.
Knows nothing about: structural tags (``structural_tag``), the libraries themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from maskd.errors import GrammarError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec, Unenforced
from maskd.json_schema import strict_json
from maskd.json_schema.strict_json import Json
from maskd.regular.assertions import whole
from maskd.regular.characters import COMMON
from maskd.regular.expression import Expression
from maskd.regular.questions import may_match

__all__ = [
    "check_strict", "check_text", "json_options", "read_choices", "read_regex", "read_resources",
]  # fmt: skip

_WHITESPACE = " \t\n\r"


def check_text(spec: GrammarSpec) -> None:
    """Raises GrammarError if the source is empty, or holds NUL or a lone surrogate; positions are in ``metadata``."""
    if not spec.source and spec.kind not in ("json_object", "regex"):
        raise GrammarError(f"the {spec.kind} source is empty; give the text of the grammar")
    bad = re.search("[\0\ud800-\udfff]", spec.source)
    if bad:
        raise GrammarError(
            f"the {spec.kind} source has {bad[0]!a} at character {bad.start()}; remove it", offset=bad.start()
        )


def read_choices(source: str) -> Sequence[str]:
    """Returns the strings of a ``choice`` spec, each once, in order. Raises GrammarError if it is not such a list."""
    choices = strict_json.loads(source, "the choice list")
    if not isinstance(choices, list):
        raise GrammarError(f"a choice is a JSON list of strings, not {type(choices).__name__}", pointer="")
    if not choices:
        raise GrammarUnsatisfiableError(
            "the choice list is empty, so nothing can match it; give at least one string", pointer=""
        )
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise GrammarError(f"choice {index} is {type(choice).__name__}, not a string", pointer=f"/{index}")
    return tuple(dict.fromkeys(choices))


def json_options(options: GrammarOptions) -> tuple[str, str]:
    """Returns the item and the key separator. Raises GrammarError if one is not "," or ":" within white space."""
    for name, literal, needed in (
        ("item_separator", options.item_separator, ","),
        ("key_separator", options.key_separator, ":"),
    ):
        if literal is not None and literal.strip(_WHITESPACE) != needed:
            raise GrammarError(
                f"{name} is {literal!r}, which is not JSON; give {needed!r}, with white space around it if wanted",
                field=name,
            )
    return options.item_separator or ",", options.key_separator or ":"


def read_resources(spec: GrammarSpec) -> dict[str, Json]:
    """Returns the documents that come with ``spec``, parsed. Raises GrammarError if one is not JSON."""
    return {address: strict_json.loads(text, f"the document {address}") for address, text in spec.resources.items()}


def check_strict(unenforced: Sequence[Unenforced], options: GrammarOptions, backend: str) -> None:
    """Raises GrammarUnsupportedError if ``options`` are strict, and ``backend`` does not enforce all of a schema."""
    if unenforced and options.strict:
        listed = ", ".join(f"{entry.keyword} at {entry.pointer!r}" for entry in unenforced[:20])
        raise GrammarUnsupportedError(
            f"{backend} does not enforce {listed}; drop the keywords, use another backend, or leave out strict",
            pointer=unenforced[0].pointer,
            keyword=unenforced[0].keyword,
        )


def read_regex(pattern: str, pointer: str | None = None) -> Expression:
    """Returns the texts that ``pattern`` matches as a whole.

    Args:
        pointer: where the pattern stands in a structural tag, for errors.
    Raises:
        GrammarError: it is malformed; ``position`` is the offset of the character.
        GrammarUnsupportedError: it is no regular language, or not one that is done here; with ``position``.
        GrammarUnsatisfiableError: nothing matches it.
    """
    place = {} if pointer is None else {"pointer": pointer}
    try:
        expression = whole(pattern, COMMON)
    except GrammarError as error:
        raise type(error)(error.message, **{**error.metadata, **place}) from None
    if not may_match(expression):
        raise GrammarUnsatisfiableError(
            "nothing can match this regex: its anchors, look-aheads or classes contradict each other; change it",
            **place,
        )
    return expression
