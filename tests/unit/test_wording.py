"""What people read about a place in a text: few words for any set of characters, and none of them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskd.cli.check import Allowed, Span
from maskd.cli.source import read_spec
from maskd.cli.wording import allowed_text, place_of
from maskd.cli.words import words_of
from maskd.errors import ConfigError
from maskd.grammar import GrammarSpec

BEYOND = ((0x80, 0x10FFFF),)


def spans(characters: str) -> tuple[Span, ...]:
    return tuple((ord(one), ord(one)) for one in characters)


@pytest.mark.parametrize(
    ("characters", "said"),
    [
        (spans("a"), "'a'"),
        (((48, 57),), "a digit"),
        (((48, 57), *spans('-"')), "a digit, '-' or '\"'"),
        (((9, 10), (13, 13), *spans(" }")), "white space or '}'"),
        (spans("\t\n "), "a tab, a line break or a space"),
        (((65, 90), (97, 122), *spans("_")), "a letter or '_'"),
        (((97, 122), (48, 50)), "a small letter, '0', '1' or '2'"),
        (((98, 121),), "'b' to 'y'"),
        (((98, 100),), "'b', 'c' or 'd'"),
        (spans("'é\u0301\x7f\x85"), "\"'\", 'é', U+0301, U+007F or U+0085"),
        (((0, 31),), "a control character"),
        (((0x4E00, 0x4E10),), "'一' to '丐'"),
    ],
)
def test_characters_when_said_then_sets_have_names_and_ranges_are_short(
    characters: tuple[Span, ...], said: str
) -> None:
    """Names of whole sets, ranges of more than three, single characters in quotes or by their code point."""
    assert allowed_text(Allowed(characters, (), (), (), False)) == said


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (Allowed(((0, 0x7F),), BEYOND, (), (), False), "any character"),
        (
            Allowed(((0x20, 0x21), (0x23, 0x7F)), BEYOND, (), (), False),
            "any character but a control character and '\"'",
        ),
        (Allowed(spans("a"), BEYOND, (), (), False), "'a' or a character beyond ASCII"),
        (Allowed(spans("a"), ((0x4000, 0x4FFF),), (), (), False), "'a' or some characters of U+4000 to U+4FFF"),
        (Allowed((), (), (0x80, 0x81), (), False), "the byte 0x80, 0x81"),
        (Allowed((), (), (), ("<|x|>",), True), "the special token <|x|> or the end of the text"),
        (Allowed((), (), (), (), True), "the end of the text"),
    ],
)
def test_place_when_said_then_all_that_may_follow_is_there(allowed: Allowed, said: str) -> None:
    """Characters beyond ASCII as a whole, bytes, special tokens, and the end."""
    assert allowed_text(allowed) == said


def test_place_when_very_much_is_allowed_then_the_rest_is_counted() -> None:
    """A line of a terminal is no place for a thousand characters."""
    said = allowed_text(Allowed(tuple((code, code) for code in range(0x4E00, 0x4F00, 2)), (), (), (), False))
    assert said.endswith(" or 104 others") and len(said) < 200


@pytest.mark.parametrize(
    ("text", "offset", "place"),
    [
        (b"", 0, (1, 1)),
        (b"ab", 2, (1, 3)),
        (b"a\nb", 2, (2, 1)),
        ("é\nöü!".encode(), 7, (2, 3)),
        (b"\xff\xffx", 2, (1, 3)),
    ],
)
def test_place_when_counted_then_lines_and_characters_start_at_one(
    text: bytes, offset: int, place: tuple[int, int]
) -> None:
    """Bytes that are no UTF-8 count as one character each."""
    assert place_of(text, offset) == place


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            GrammarSpec(
                "json_schema",
                '{"properties": {"a\\"b": {"type": "string", "enum": ["one", 2, null]}, "required": {"pattern":'
                ' "^foo-[a-z]"}}, "required": ["required"], "title": "not this"}',
            ),
            {b'a\\"b': 1, b"one": 1, b"2": 1, b"null": 1, b"required": 2, b"foo": 1},
        ),
        (GrammarSpec("json_schema", '{"properties": ["x"], "dependentRequired": {"a": ["b"]}}'), {b"a": 1, b"b": 1}),
        (GrammarSpec("json_schema", '{"const": {"key": [true]}}'), {b"key": 1, b"true": 1}),
        (GrammarSpec("choice", '["Paris", "Köln"]'), {b"Paris": 1, "Köln".encode(): 1}),
        (GrammarSpec("json_schema", "no JSON"), {}),
        (GrammarSpec("regex", "(foo|ba)x"), {b"foo": 1, b"ba": 1}),
        (GrammarSpec("ebnf", 'root ::= "in fact"'), {b"in fact": 1, b"root": 1, b"in": 1, b"fact": 1}),
    ],
)
def test_words_when_read_from_a_source_then_they_are_what_an_output_may_have(
    spec: GrammarSpec, words: dict[bytes, int]
) -> None:
    """Names, values and parts of patterns of a schema, as JSON writes them; literals and words of other sources."""
    assert words_of(spec) == words


@pytest.mark.parametrize(
    ("name", "contents", "kind"),
    [
        ("a.json", "{}", "json_schema"),
        ("a.json", "true", "json_schema"),
        ("a.json", "{", "json_schema"),
        ("a.JSON", '["a"]', "choice"),
        ("a.json", '{"type": "structural_tag", "format": {"type": "any_text"}}', "structural_tag"),
        ("a.json", '{"structures": [], "triggers": []}', "structural_tag"),
        ("a.re", "a", "regex"),
        ("a.ebnf", "a", "ebnf"),
        ("a.gbnf", "a", "ebnf"),
        ("a.lark", "a", "lark"),
    ],
)
def test_kind_when_a_file_has_a_suffix_then_it_follows(name: str, contents: str, kind: str, tmp_path: Path) -> None:
    """JSON is told apart by what it is; what is broken is a schema, whose reader says where."""
    path = tmp_path / name
    path.write_text(contents)
    given = {"kind": None, "backend": "auto", "resource": []}
    assert read_spec({"file": str(path), **given}).kind == kind
    with pytest.raises(ConfigError, match="cannot read"):
        read_spec({"file": f"{path}x", **given, "kind": "lark"})
