"""Structural tags in Lark, for llguidance.

Owns: the translation of each format that Lark can express; other formats are refused by name.
Knows nothing about: how a tag is read and checked (``structural_tag``).

Everything up to a JSON schema or a grammar becomes one terminal. A terminal is a regular expression and finds the right
split by itself. A sequence of terminals would be cut greedily: ``[a-z]*`` before "b" would take the "b".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from maskd.errors import GrammarUnsupportedError
from maskd.json_schema.strict_json import Json, Path, pointer

__all__ = ["LarkTranslation", "RegexReader", "SchemaReader", "lark_string"]

SchemaReader = Callable[[Json, str, "int | None"], Json]
"""Takes a JSON schema, its JSON pointer and its ``max_whitespace_cnt``; returns it as the library takes it.

None for the limit: that of the grammar's options."""

RegexReader = Callable[[str, str], str]
"""Takes a regex and its JSON pointer; returns it as the library takes it."""

_UNDERSTOOD = {
    "any_text": {"type", "excludes"},
    "const_string": {"type", "value"},
    "grammar": {"type", "grammar"},
    "json_schema": {"type", "json_schema", "style", "max_whitespace_cnt"},
    "optional": {"type", "content"},
    "or": {"type", "elements"},
    "plus": {"type", "content"},
    "regex": {"type", "pattern"},
    "repeat": {"type", "min", "max", "content"},
    "sequence": {"type", "elements"},
    "star": {"type", "content"},
    "tag": {"type", "begin", "content", "end"},
    "tags_with_separator": {"type", "tags", "separator", "at_least_one", "stop_after_first"},
    "token": {"type", "token"},
    "triggered_tags": {"type", "triggers", "tags", "at_least_one", "stop_after_first", "excludes"},
}


def lark_string(text: str) -> str:
    """Returns ``text`` as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


class _Part(NamedTuple):
    """A piece of Lark.

    Attributes:
        text: the expression.
        is_terminal: whether it is regular, so that it may be part of a terminal.
        is_free: whether it ends in free text, whose end llguidance cannot find before a rule.
    """

    text: str
    is_terminal: bool = True
    is_free: bool = False


class LarkTranslation:
    """Translates one structural tag.

    Args:
        schema: translates a JSON schema to a grammar of the list that llguidance takes.
        regex: translates a regex, with its JSON pointer, to the right side of a terminal.
        gbnf: translates an EBNF grammar to Lark.
    """

    def __init__(self, schema: SchemaReader, regex: RegexReader, gbnf: Callable[[str], str]) -> None:
        self._schema = schema
        self._regex = regex
        self._gbnf = gbnf
        self._lines: list[str] = []
        self._subgrammars: list[dict[str, object]] = []

    def grammars(self, value: Json, path: Path) -> list[dict[str, object]]:
        """Returns the grammars for the format ``value`` at ``path``, the main one first. Call once."""
        start = self._rule(self._format(value, path, ()))
        return [{"lark_grammar": "\n".join([f"start: {start}", *self._lines])}, *self._subgrammars]

    def _format(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        """Returns the Lark of a format. Free text at its end must not contain any of ``ends``."""
        translate = getattr(self, "_of_" + value["type"], None)
        unknown = value.keys() - _UNDERSTOOD.get(value["type"], {"type"})
        if translate is None or any(value[field] for field in unknown):
            what = value["type"] if translate is None else f"{value['type']} with {min(unknown)}"
            raise GrammarUnsupportedError(
                f"llguidance cannot express the structural tag format {what}; use xgrammar",
                pointer=pointer(path),
                backends="xgrammar",
            )
        part: _Part = translate(value, path, ends)
        return part

    def _name(self, letter: str, text: str) -> str:
        name = f"{letter}{len(self._lines)}"
        self._lines.append(f"{name}: {text}")
        return name

    def _rule(self, part: _Part) -> str:
        """Returns ``part`` for use in a rule. A terminal gets a name, so that it stays one lexeme."""
        return self._name("T", part.text) if part.is_terminal else part.text

    def _text_without(self, strings: Sequence[str]) -> str:
        if not strings:
            return "/(?s:.*)/"
        any_of = "|".join("".join(f"\\x{{{ord(char):x}}}" for char in text) for text in strings)
        return f"(/(?s:.*)/ & ~/(?s:.*)({any_of})(?s:.*)/)"

    def _join(self, parts: Sequence[_Part], path: Path) -> _Part:
        joined: list[_Part] = []
        for part in parts:
            if joined and joined[-1].is_terminal and part.is_terminal:
                joined[-1] = _Part(f"{joined[-1].text} {part.text}", True, part.is_free)
            else:
                if joined and joined[-1].is_free:
                    raise GrammarUnsupportedError(
                        "llguidance cannot tell where free text ends and structure starts; "
                        "use triggered_tags, or xgrammar",
                        pointer=pointer(path),
                        backends="xgrammar",
                    )
                joined.append(part)
        if len(joined) == 1:
            return joined[0]._replace(text=f"({joined[0].text})")
        return _Part("(" + " ".join(map(self._rule, joined)) + ")", False, joined[-1].is_free)

    def _either(self, parts: Sequence[_Part]) -> _Part:
        if all(part.is_terminal for part in parts):
            return _Part("(" + " | ".join(part.text for part in parts) + ")", True, any(part.is_free for part in parts))
        return _Part("(" + " | ".join(map(self._rule, parts)) + ")", False, any(part.is_free for part in parts))

    def _times(self, part: _Part, operator: str) -> _Part:
        if part.is_free and not part.is_terminal:
            raise GrammarUnsupportedError(
                "llguidance cannot repeat free text that holds structure; use xgrammar", backends="xgrammar"
            )
        return _Part(f"({part.text}){operator}", part.is_terminal, part.is_free)

    def _of_const_string(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return _Part(lark_string(value["value"]))

    def _of_regex(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return _Part(self._regex(value["pattern"], pointer((*path, "pattern"))))

    def _of_any_text(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return _Part(self._text_without([*value.get("excludes", []), *ends]), True, True)

    def _of_json_schema(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        if value.get("style", "json") != "json":
            raise GrammarUnsupportedError(
                f"llguidance has no JSON schema style {value['style']!r}; use xgrammar",
                pointer=pointer(path),
                backends="xgrammar",
            )
        schema = self._schema(value["json_schema"], pointer((*path, "json_schema")), value.get("max_whitespace_cnt"))
        return self._subgrammar(schema)

    def _of_grammar(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return self._subgrammar({"lark_grammar": self._gbnf(value["grammar"])})

    def _subgrammar(self, grammar: Mapping[str, object]) -> _Part:
        name = f"g{len(self._subgrammars)}"
        self._subgrammars.append({"name": name, **grammar})
        return _Part(self._name("s", f"@{name}"), False)

    def _of_token(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return _Part(self._name("t", f"<[{value['token']}]>"), False)

    def _of_sequence(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        last = len(value["elements"]) - 1
        parts = [
            self._format(element, (*path, "elements", index), ends if index == last else ())
            for index, element in enumerate(value["elements"])
        ]
        return self._join(parts, path)

    def _of_or(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        return self._either(
            [self._format(element, (*path, "elements", index), ends) for index, element in enumerate(value["elements"])]
        )

    def _of_repeat(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        operator = {"optional": "?", "star": "*", "plus": "+"}.get(value["type"])
        if operator is None:
            operator = f"{{{value['min']},{'' if value['max'] == -1 else value['max']}}}"
        return self._times(self._format(value["content"], (*path, "content"), ends), operator)

    _of_optional = _of_star = _of_plus = _of_repeat

    def _edge(self, value: Json) -> _Part:
        """Returns the begin or the end of a tag."""
        if isinstance(value, dict):
            return self._of_token(value, (), ())
        return self._either([_Part(lark_string(text)) for text in ([value] if isinstance(value, str) else value)])

    def _of_tag(self, value: Json, path: Path, ends: Sequence[str], after: int = 0) -> _Part:
        """Returns a tag. ``after``: how many characters of its begin string stand before it already."""
        begin = value["begin"][after:] if after else value["begin"]
        strings = (
            [] if isinstance(value["end"], dict) else [value["end"]] if isinstance(value["end"], str) else value["end"]
        )
        content = self._format(value["content"], (*path, "content"), [text for text in strings if text])
        if content.is_free and content.is_terminal and isinstance(value["end"], dict):
            content = _Part(self._name("T", content.text), False)  # no text has a special token, so the token ends it
        return self._join([self._edge(begin), content, self._edge(value["end"])], path)

    def _tags(self, value: Json, path: Path) -> list[_Part]:
        return [self._of_tag(tag, (*path, "tags", index), ()) for index, tag in enumerate(value["tags"])]

    def _of_tags_with_separator(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        tag = self._either(self._tags(value, path))
        if not value.get("stop_after_first"):
            tag = self._join(
                [tag, self._times(self._join([_Part(lark_string(value["separator"])), tag], path), "*")], path
            )
        return tag if value.get("at_least_one") else self._times(tag, "?")

    def _of_triggered_tags(self, value: Json, path: Path, ends: Sequence[str]) -> _Part:
        first = self._either(self._tags(value, path)) if value.get("at_least_one") else None
        if first and value.get("stop_after_first"):
            return first
        free = self._text_without([*value["triggers"], *value.get("excludes", []), *ends])
        calls = []
        for trigger in value["triggers"]:
            tags = [
                self._of_tag(tag, (*path, "tags", index), (), after=len(trigger))
                for index, tag in enumerate(value["tags"])
                if tag["begin"].startswith(trigger)
            ]
            if tags:
                # a lazy rule holds one terminal and ends with the trigger
                opening = self._name("t", f"T{len(self._lines)}x")
                self._lines[-1] = f"{opening}[lazy]: {free} {lark_string(trigger)}"
                calls.append(f"{opening} {self._rule(self._either(tags))}")
        call = "(" + " | ".join(calls) + ")"
        tail = self._name("T", free)
        text = f"({call} | {tail})" if value.get("stop_after_first") else f"({call}* {tail})"
        return _Part(f"({self._rule(first)} {text})" if first else text, False, True)
