"""Structural tags: text with structured parts in it, for instance tool calls, as xgrammar defines them.

Owns: reading a structural tag in all its spellings, replacing the names of its tokens by ids.
Knows nothing about: the libraries' own objects; how a JSON schema is read (the caller passes a function); Lark
    (``structural_tag_lark``).
Format: xgrammar's "structural tag" documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from maskd.backends.structural_tag_lark import LarkTranslation, RegexReader, SchemaReader
from maskd.errors import GrammarError
from maskd.json_schema import strict_json
from maskd.json_schema.strict_json import Json, Path, pointer
from maskd.vocabulary import Vocabulary

__all__ = ["StructuralTag", "parse"]

# Every type of format: its required fields, and its fields that hold formats.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "any_text": ((), ()),
    "any_tokens": ((), ()),
    "const_string": (("value",), ()),
    "dispatch": (("rules",), ("rules",)),
    "exclude_token": ((), ()),
    "grammar": (("grammar",), ()),
    "json_schema": (("json_schema",), ()),
    "optional": (("content",), ("content",)),
    "or": (("elements",), ("elements",)),
    "plus": (("content",), ("content",)),
    "qwen_xml_parameter": (("json_schema",), ()),
    "regex": (("pattern",), ()),
    "repeat": (("min", "max", "content"), ("content",)),
    "sequence": (("elements",), ("elements",)),
    "star": (("content",), ("content",)),
    "tag": (("begin", "content", "end"), ("content",)),
    "tags_with_separator": (("tags", "separator"), ("tags",)),
    "token": (("token",), ()),
    "token_dispatch": (("rules",), ("rules",)),
    "token_triggered_tags": (("trigger_tokens", "tags"), ("tags",)),
    "triggered_tags": (("triggers", "tags"), ("tags",)),
}
_NAMES_TOKENS = frozenset({"any_tokens", "exclude_token", "token", "token_dispatch", "token_triggered_tags"})
_TOKEN_FIELDS = ("token", "exclude_tokens", "trigger_tokens")


@dataclass(frozen=True)
class StructuralTag:
    """A structural tag, checked.

    Attributes:
        format: the format object; its tokens are ids.
        root: path from the source to ``format``.
        names_tokens: whether it names single tokens, special tokens included.
    """

    format: Json
    root: Path
    names_tokens: bool

    def for_xgrammar(self, schema: Callable[[Json, str], Json], regex: RegexReader) -> Json:
        """Returns the structural tag as xgrammar takes it.

        Args:
            schema: returns the format for one with a JSON schema, at a pointer.
            regex: translates a regex to an EBNF grammar.
        """

        def convert(value: Json, path: Path) -> Json:
            if isinstance(value, list):
                return [convert(item, (*path, index)) for index, item in enumerate(value)]
            if not isinstance(value, dict):
                return value
            if value.get("type") in ("json_schema", "qwen_xml_parameter"):
                return schema(value, pointer((*path, "json_schema")))
            if value.get("type") == "regex":
                return {"type": "grammar", "grammar": regex(value["pattern"], pointer((*path, "pattern")))}
            return {key: convert(item, (*path, key)) for key, item in value.items()}

        return {"type": "structural_tag", "format": convert(self.format, self.root)}

    def for_llguidance(
        self, schema: SchemaReader, regex: RegexReader, gbnf: Callable[[str], str]
    ) -> list[dict[str, object]]:
        """Returns a list of llguidance grammars, the main one first. Args as of ``LarkTranslation``.

        Raises:
            GrammarUnsupportedError: Lark cannot express a format; the message names it.
        """
        return LarkTranslation(schema, regex, gbnf).grammars(self.format, self.root)


def parse(source: str, vocabulary: Vocabulary) -> StructuralTag:
    """Reads a structural tag.

    Spellings: ``{"type": "structural_tag", "format": …}``, a bare ``{"format": …}``, a bare format, or the older
    ``{"structures": [{begin, schema, end}], "triggers": […]}``.

    Raises:
        GrammarError: malformed; ``metadata["pointer"]`` says where.
    """
    value = strict_json.loads(source, "the structural tag")
    if not isinstance(value, dict):
        raise GrammarError("a structural tag is a JSON object", pointer="")
    root: Path = ()
    if "structures" in value:
        value = _from_structures(value)
    elif "format" in value:
        value, root = value["format"], ("format",)
    names_tokens = False
    stack: list[tuple[Path, Json, bool]] = [(root, value, False)]
    while stack:
        path, item, is_tag = stack.pop()
        kind = item.get("type", "tag" if is_tag else None) if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in _FIELDS or (is_tag and kind != "tag"):
            raise GrammarError(
                f"not a structural tag format: {json.dumps(item)[:80]}; its type is one of {', '.join(_FIELDS)}",
                pointer=pointer(path),
            )
        item["type"] = kind
        needed, formats = _FIELDS[kind]
        for field in needed:
            if field not in item:
                raise GrammarError(f"the format {kind} needs {field!r}", pointer=pointer(path))
        names_tokens |= kind in _NAMES_TOKENS
        _check_fields(item, path)
        _name_tokens(item, path, vocabulary)
        if kind == "tag":
            for edge in ("begin", "end"):
                if isinstance(item[edge], dict):
                    names_tokens = True
                    _name_tokens(item[edge], (*path, edge), vocabulary)
        for field in formats:
            children = item[field] if isinstance(item[field], list) else [item[field]]
            for index, child in enumerate(children):
                where = (*path, field, index) if isinstance(item[field], list) else (*path, field)
                if field == "rules":
                    if not (isinstance(child, list) and len(child) == 2):
                        raise GrammarError("a dispatch rule is a pair of pattern and format", pointer=pointer(where))
                    where, child = (*where, 1), child[1]
                stack.append((where, child, field == "tags"))
    return StructuralTag(value, root, names_tokens)


def _from_structures(value: Json) -> Json:
    structures, triggers = value["structures"], value.get("triggers", [])
    if not isinstance(structures, list) or not all(
        isinstance(item, dict) and {"begin", "end"} <= item.keys() for item in structures
    ):
        raise GrammarError("structures is a list of objects with begin, schema and end", pointer="/structures")
    tags = [
        {
            "type": "tag",
            "begin": item["begin"],
            "content": {"type": "json_schema", "json_schema": item.get("schema", {})},
            "end": item["end"],
        }
        for item in structures
    ]
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


_STRINGS = ("value", "grammar", "pattern", "separator")
_STRING_LISTS = ("triggers", "excludes")
_LISTS = ("elements", "tags", "rules")
_FLAGS = ("at_least_one", "stop_after_first", "any_order", "loop")
_COUNTS = ("min", "max", "max_tokens", "max_chars", "max_whitespace_cnt")


def _check_fields(item: Json, path: Path) -> None:
    """Raises GrammarError for a field of the wrong type; later code relies on the types."""

    def refuse(field: str, wanted: str) -> None:
        raise GrammarError(f"{field} of the format {item['type']} is not {wanted}", pointer=pointer((*path, field)))

    for field, value in item.items():
        if field in _STRINGS and not isinstance(value, str):
            refuse(field, "a string")
        if field in _STRING_LISTS and not (
            isinstance(value, list) and all(isinstance(text, str) and text for text in value)
        ):
            refuse(field, "a list of non-empty strings")
        if field in _LISTS and not (isinstance(value, list) and value):
            refuse(field, "a list with at least one element")
        if field in _FLAGS and not isinstance(value, bool):
            refuse(field, "true or false")
        if field in _COUNTS and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            refuse(field, "a whole number")
    if item["type"] == "tag":
        if not isinstance(item["begin"], (str, dict)):
            refuse("begin", "a string or a token format")
        ends = item["end"] if isinstance(item["end"], list) else [item["end"]]
        if not ends or not (isinstance(item["end"], dict) or all(isinstance(end, str) for end in ends)):
            refuse("end", "a string, a list of strings or a token format")
    if item["type"] == "triggered_tags":
        for index, tag in enumerate(item["tags"]):
            begin = tag.get("begin") if isinstance(tag, dict) else None
            if not isinstance(begin, str) or sum(begin.startswith(trigger) for trigger in item["triggers"]) != 1:
                where = pointer((*path, "tags", index))
                raise GrammarError(
                    "a triggered tag begins with exactly one of the triggers; change begin or triggers", pointer=where
                )


def _name_tokens(item: Json, path: Path, vocabulary: Vocabulary) -> None:
    """Replaces token names by ids, in place."""
    for field in _TOKEN_FIELDS:
        if field in item:
            where = pointer((*path, field))
            tokens = item[field] if isinstance(item[field], list) else [item[field]]
            ids = [_token_id(token, where, vocabulary) for token in tokens]
            item[field] = ids if isinstance(item[field], list) else ids[0]
    if item.get("type") == "token_dispatch":
        for index, rule in enumerate(item["rules"]):
            if isinstance(rule, list) and rule:
                rule[0] = _token_id(rule[0], pointer((*path, "rules", index)), vocabulary)


def _token_id(token: Json, where: str, vocabulary: Vocabulary) -> int:
    if isinstance(token, str):
        name = token.encode()
        for token_id in vocabulary.special_token_ids:
            if vocabulary.tokens[token_id] == name:
                return token_id
        if name in vocabulary.tokens:
            return vocabulary.tokens.index(name)
    elif isinstance(token, int) and not isinstance(token, bool) and 0 <= token < len(vocabulary.tokens):
        return token
    raise GrammarError(f"the vocabulary has no token {token!r}; give the id or the name of one it has", pointer=where)
