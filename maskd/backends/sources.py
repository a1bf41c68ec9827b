"""Reading the source of a grammar spec, as far as it is the same for every backend.

Owns: checks of the text, choice lists, separators, documents given along, what ``strict`` refuses.
    Also regexes in the form to which xgrammar gives the usual meaning.
Knows nothing about: structural tags (``structural_tag``), the libraries themselves.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from maskd.errors import GrammarError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarOptions, GrammarSpec, Unenforced
from maskd.json_schema import strict_json
from maskd.json_schema.patterns import misread, units
from maskd.json_schema.schema import JsonSchema, parse_schema
from maskd.json_schema.strict_json import Json

__all__ = [
    "check_strict", "check_text", "json_options", "read_choices", "read_resources", "read_schema", "regex_for_xgrammar",
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


def read_schema(spec: GrammarSpec) -> JsonSchema:
    """Returns the schema of a ``json_schema`` or ``json_object`` spec, as ``parse_schema`` does."""
    if spec.kind == "json_object":  # any object: further properties are not forbidden
        return parse_schema({"type": "object"}, dataclasses.replace(spec.options, additional_properties="allow"))
    return parse_schema(spec.source, spec.options)


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


_CLASS_OPERATOR = re.compile(r"\[:|&&|~~|--")
_SURROGATES = r"\ud800-\udfff"
_BEYOND = r"-\ud7ff\ue000-\U0010ffff"
# The classes as ranges within brackets: xgrammar's own classes include surrogates, and its \s a no-break space.
_REGEX_CLASSES = {
    r"\d": "0-9",
    r"\D": r"\x00-/:" + _BEYOND,
    r"\s": r" \t\n\r\f\v",
    r"\S": r"\x00-\x08\x0e-\x1f!" + _BEYOND,
    r"\w": "a-zA-Z0-9_",
    r"\W": r"\x00-/:-@\[-\^`{" + _BEYOND,
}


def regex_for_xgrammar(pattern: str) -> str:
    """Returns ``pattern`` in a form to which xgrammar gives its usual meaning.

    In xgrammar "." matches a newline, ``\\s`` matches a no-break space, and negated classes match UTF-8 encoded
    surrogates.

    Raises:
        GrammarUnsupportedError: the pattern has a construct that xgrammar misreads. llguidance reads or refuses it.
    """
    parts = units(pattern)
    operators = (_CLASS_OPERATOR.search(part) for part in parts if part[0] == "[")
    strange = misread(pattern) or next((operator[0] for operator in operators if operator), None)
    if strange is not None:
        raise GrammarUnsupportedError(
            f"xgrammar does not read {strange} in a regex as others do; use llguidance, or rewrite it",
            backends="llguidance",
        )
    read: list[str] = []
    for unit in parts:
        if unit == ".":
            unit = f"[^\\n{_SURROGATES}]"
        elif unit in _REGEX_CLASSES:
            unit = f"[{_REGEX_CLASSES[unit]}]"
        elif len(unit) > 2 and unit[0] == "[" and unit[-1] == "]":
            body = re.sub(r"\\.", lambda match: _REGEX_CLASSES.get(match[0], match[0]), unit[1:-1], flags=re.DOTALL)
            unit = f"[{body}{_SURROGATES if body[0] == '^' else ''}]"
        read.append(unit)
    return "".join(read)
