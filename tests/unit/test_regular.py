"""Regular expressions: read as ECMA-262 says, combined, asked, and written so that the grammar library agrees."""

from __future__ import annotations

import json
import re

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from maskd.errors import GrammarError, GrammarUnsupportedError
from maskd.regular.assertions import searched, whole
from maskd.regular.charset import ANY, CharSet, unicode_property
from maskd.regular.expression import (
    ANYTHING,
    EMPTY_TEXT,
    NOTHING,
    both,
    chars,
    choice,
    complement,
    literal,
    matches,
    repeat,
    sequence,
    words,
)
from maskd.regular.lark import as_json, as_text
from maskd.regular.questions import TooManyStatesError, may_match, shortest
from tests.fuzzing import budget
from tests.lark import matcher_of_lark
from tests.patterns import Pair, asserted, plain, texts

# -- sets of characters ------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
@budget(200)
def test_charset_when_combined_then_as_sets_of_integers(one: set[int], other: set[int]) -> None:
    """Union, intersection, difference and complement are those of plain sets."""

    def made(points: set[int]) -> CharSet:
        return CharSet((point, point) for point in points)

    assert made(one) | made(other) == made(one | other)
    assert made(one) & made(other) == made(one & other)
    assert made(one) - made(other) == made(one - other)
    assert ~~made(one) == made(one)
    assert (made(one) | ~made(one)) == ANY
    assert [chr(point) in made(one) for point in range(41)] == [point in one for point in range(41)]


def test_charset_when_it_spans_surrogates_then_it_holds_none() -> None:
    """A surrogate is no character: nothing well-formed holds one."""
    assert CharSet([(0xD000, 0xE000)]).ranges == ((0xD000, 0xD7FF), (0xE000, 0xE000))
    assert not CharSet([(0xD800, 0xDFFF)])


@pytest.mark.parametrize("name", ["L", "Lu", "Script=Greek", "Emoji", "Nd", "Cs", "Any", "Cn"])
def test_unicode_property_when_known_then_every_character_agrees(name: str) -> None:
    """The set is what the table says of each character alone."""
    found = unicode_property(*name.split("="))
    assert found is not None
    one = regex.compile(rf"\p{{{name}}}")
    for point in (*range(0x0, 0x3000, 7), *range(0xD700, 0xE100), *range(0x1F000, 0x20000, 5), 0x10FFFF):
        if not 0xD800 <= point <= 0xDFFF:
            assert (chr(point) in found) == bool(one.match(chr(point))), hex(point)


@pytest.mark.parametrize("name", ["", "Nope", "L}", "Script=Nope", "^L", "L|a"])
def test_unicode_property_when_unknown_then_none(name: str) -> None:
    """What is no property is no set, and never a piece of syntax."""
    assert unicode_property(name) is None


# -- against Python's regex --------------------------------------------------------------------------------------------


@given(asserted, texts)
@budget(500)
def test_pattern_when_random_then_matches_what_regex_matches(pair: Pair, some: list[str]) -> None:
    """Searching and matching whole, with anchors, look-aheads and classes, agree with the package ``regex``."""
    ours, theirs = pair
    reference = regex.compile(theirs, regex.V0)
    try:
        found, full = searched(ours), whole(ours)
    except GrammarUnsupportedError as error:
        assert error.metadata["feature"] == "an assertion inside a repetition"
        return
    for text in ["", *some]:
        assert matches(found, text) == bool(reference.search(text)), (ours, text)
        assert matches(full, text) == bool(reference.fullmatch(text)), (ours, text)
    try:
        example = shortest(found, 200)
    except TooManyStatesError:
        return
    if example is not None:
        assert reference.search(example)
        assert may_match(found)


@given(plain, plain, texts)
@budget(200)
def test_operations_when_random_then_those_of_sets(one: Pair, other: Pair, some: list[str]) -> None:
    """Choice, both, complement and repetition mean what they say."""
    a, b = whole(one[0]), whole(other[0])
    for text in ["", *some]:
        in_a, in_b = matches(a, text), matches(b, text)
        assert matches(choice(a, b), text) == (in_a or in_b)
        assert matches(both(a, b), text) == (in_a and in_b)
        assert matches(complement(a), text) == (not in_a)
        assert matches(both(a, complement(b)), text) == (in_a and not in_b)
    assert may_match(both(a, complement(a))) is False
    assert complement(complement(a)) is a


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (sequence(literal("a"), NOTHING), NOTHING),
        (sequence(), EMPTY_TEXT),
        (repeat(EMPTY_TEXT), EMPTY_TEXT),
        (repeat(NOTHING), EMPTY_TEXT),
        (repeat(NOTHING, 1), NOTHING),
        (repeat(repeat(literal("a"), 1), 0, 1), repeat(literal("a"))),
        (repeat(repeat(literal("a"), 1), 2, 5), repeat(literal("a"), 2)),
        (choice(literal("a"), literal("b")), chars(CharSet.of("ab"))),
        (choice(literal("a"), complement(literal("a"))), ANYTHING),
        (both(literal("a"), literal("b")), NOTHING),
        (both(), ANYTHING),
        (choice(), NOTHING),
        (complement(NOTHING), ANYTHING),
        (words(()), NOTHING),
        (choice(words(["ab"]), words(["c"])), words(["c", "ab"])),
        (both(words(["ab", "cd", ""]), whole("a.*|")), words(["ab", ""])),
        (both(words(["ab"]), words(["cd"])), NOTHING),
    ],
)
def test_expression_when_made_then_simple(expression: object, expected: object) -> None:
    """Equal trees are one object, and what is plainly nothing or everything is seen at once."""
    assert expression is expected


def test_shortest_when_there_is_none_or_too_much_then_said() -> None:
    """No text is None; a question that takes too many states is an error, and counts as "may match"."""
    assert shortest(both(whole("a*"), whole("b+"))) is None
    assert shortest(both(whole("[ab]*b"), whole("..."))) == "aab"
    wide = both(whole("(?:a|b)*a(?:a|b){12}"), whole("(?:a|b)*b(?:a|b){11}"), complement(whole("[ab]*")))
    with pytest.raises(TooManyStatesError):
        shortest(wide, 50)
    assert may_match(both(searched("x"), searched("y")))


# -- malformed and refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("a)", 1), ("(a", 0), ("*a", 0), ("a**", 2), ("a{2,1}", 1), ("[a", 0), ("[b-a]", 0), ("a\\", 1), ("\\x1", 0),
        ("\\u12", 0), ("\\u{110000}", 0), ("\\p{Nope}", 0), ("\\pL", 0), ("\\q", 0), ("(?<1a>b)", 0), ("^*", 0),
        ("(?=a)+", 0), ("\\01", 0), ("a|b)c", 3), ("\\u{}", 0), ("[\\", 1),
    ],
)  # fmt: skip
def test_pattern_when_malformed_then_refused_with_the_position(pattern: str, position: int) -> None:
    """The error says what is wrong and where."""
    with pytest.raises(GrammarError, match=f"at position {position}") as caught:
        whole(pattern)
    assert type(caught.value) is GrammarError
    assert caught.value.metadata["position"] == str(position)


@pytest.mark.parametrize(
    ("pattern", "feature", "position"),
    [
        (r"(a)\1", "a back-reference", 3), (r"(?<n>a)\k<n>", "a back-reference", 7), ("x(?<=a)", "look-behind", 1),
        ("(?<!a)", "look-behind", 0), (r"a\b", r"\b, the word boundary,", 1), (r"\Ba", r"\B, the word boundary,", 0),
        ("(?i)a", "flags in a group", 0), ("(?i:a)", "flags in a group", 0),
        (r"\Aa\Z", r"\A, an anchor of another dialect,", 0),
        ("(?>a)", "an atomic group", 0), ("(?P=n)", "a back-reference or recursion", 0),
    ],
)  # fmt: skip
def test_pattern_when_not_regular_then_refused_by_name(pattern: str, feature: str, position: int) -> None:
    """What cannot be done is named, with its place."""
    with pytest.raises(GrammarUnsupportedError, match="write it without") as caught:
        searched(pattern)
    assert dict(caught.value.metadata) == {"feature": feature, "position": str(position)}


def test_pattern_when_nested_without_end_then_refused() -> None:
    """Depth is counted before Python's stack ends."""
    with pytest.raises(GrammarError, match="deep"):
        whole("(" * 100_000)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("a{,2}", "a{,2}"), ("{", "{"), ("}]", "}]"), (r"\_\@\"\/", '_@"/'), ("(?P<n>a)", "a"), (r"\ud83d\ude00", "😀"),
     (r"\cJ", "\n"), (r"[\b]", "\b"), ("[a-]", "-"), (r"[\d-x]", "-"), ("(?<$a>b)", "b"), (r"\0", "\0")],
)  # fmt: skip
def test_pattern_when_lenient_then_read_as_other_readers_do(pattern: str, text: str) -> None:
    """What real schemas hold and every reader takes the same way is read."""
    assert matches(whole(pattern), text)


@pytest.mark.parametrize("pattern", [r"\ud800", r"[\ud800-\udfff]"])
def test_pattern_when_of_lone_surrogates_then_it_matches_nothing(pattern: str) -> None:
    """No well-formed text holds one."""
    assert whole(pattern) is NOTHING


# -- written for the grammar library -----------------------------------------------------------------------------------


def taken_by_library(terminal: str, text: bytes) -> bool:
    """Whether llguidance takes ``text`` as all of ``terminal``."""
    matcher = matcher_of_lark(f"start: T\nT: {terminal}\n")
    return bool(matcher.consume_tokens(list(text)) and matcher.is_accepting()) if text else bool(matcher.is_accepting())


@given(asserted, texts)
@budget(60)
def test_lark_when_written_then_the_library_takes_the_same_texts(pair: Pair, some: list[str]) -> None:
    """Plain and in JSON, the library's verdict on each text is ours."""
    try:
        found = searched(pair[0])
    except GrammarUnsupportedError:
        return
    if not may_match(found):
        return
    for text in some:
        expected = matches(found, text)
        if text:  # the library offers no empty terminal
            assert taken_by_library(as_text(found), text.encode()) == expected, (pair[0], text)
        quoted = json.dumps(text, ensure_ascii=False)
        assert taken_by_library(as_json(found), quoted.encode()) == expected, (pair[0], text)


@pytest.mark.parametrize(
    ("spelled", "char"),
    [('\\"', '"'), ("\\\\", "\\"), ("\\/", "/"), ("/", "/"), ("\\n", "\n"), ("\\u0001", "\x01"),
     ("\\u001F", "\x1f"), ("\\u001f", "\x1f"),
     ("\\b", "\b"), ("\x7f", "\x7f"), ("é", "é"), ("😀", "😀")],
)  # fmt: skip
def test_as_json_when_a_character_is_spelled_then_the_same_for_all_and_for_none(spelled: str, char: str) -> None:
    """A spelling is one of the character itself, of every character, and of none but it."""
    assert json.loads(f'"{spelled}"') == char
    for expression, expected in (
        (literal(char), True),
        (chars(ANY), True),
        (both(chars(ANY), complement(literal(char))), False),
        (chars(~CharSet.of(char)), False),
    ):
        assert taken_by_library(as_json(expression), f'"{spelled}"'.encode()) is expected


@pytest.mark.parametrize("spelled", ["\\u0061", "\\u0009", '"', "\\", "\n", "\\x61", "\\ud800", "\\u000a"])
def test_as_json_when_no_canonical_spelling_then_not_taken(spelled: str) -> None:
    """Printable characters and those with a short escape have no ``\\uXXXX``."""
    assert not taken_by_library(as_json(chars(ANY)), f'"{spelled}"'.encode())


def test_as_text_when_made_of_many_words_then_one_regular_expression() -> None:
    """A large choice of words stays one literal, which is what the library is quick with."""
    written = as_text(words(f"word{number}" for number in range(500)))
    assert re.fullmatch(r"/\(\?:.*\)/", written)
    assert taken_by_library(written, b"word499") and not taken_by_library(written, b"word500")
