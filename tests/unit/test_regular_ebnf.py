"""Expressions in xgrammar's EBNF: the library takes the texts of the expression, and no other bytes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskd.errors import GrammarTooLargeError, GrammarUnsupportedError
from maskd.regular import ebnf, lark
from maskd.regular.assertions import searched, whole
from maskd.regular.charset import ANY, CharSet
from maskd.regular.expression import (
    ANYTHING,
    EMPTY_TEXT,
    NOTHING,
    Expression,
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
from maskd.regular.questions import may_match
from tests.ebnf import grammar_of_ebnf, takes
from tests.fuzzing import budget
from tests.lark import matcher_of_lark
from tests.patterns import Pair, asserted, grouped, texts

BORDERS = [
    0, 1, 0x1F, 0x20, 0x22, 0x2F, 0x5C, 0x5D, 0x5E, 0x7E, 0x7F, 0x80, 0x7FE, 0x7FF, 0x800, 0x801, 0xFFF, 0x1000,
    0xD7FF, 0xE000, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFE, 0x10FFFF,
]  # fmt: skip
NOT_UTF8 = [
    b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
    b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xc3", b"\xe2\x82",
]  # fmt: skip


def written(expression: Expression, *, as_json: bool) -> Any:
    """``expression`` as the library compiles it."""
    numbers = itertools.count()
    body, rules = (ebnf.as_json if as_json else ebnf.as_text)(expression, lambda: f"rule{next(numbers)}")
    return grammar_of_ebnf("\n".join([f"root ::= {body}", *rules]))


def agrees(expression: Expression, some: list[str]) -> None:
    """Raises unless the library takes just the texts of ``expression``, plain and in JSON."""
    plain, quoted = written(expression, as_json=False), written(expression, as_json=True)
    for text in ["", *some]:
        expected = matches(expression, text)
        assert takes(plain, text.encode()) == expected, text
        assert takes(quoted, json.dumps(text, ensure_ascii=False).encode()) == expected, text


@given(asserted, texts)
@budget(150)
def test_ebnf_when_of_a_random_pattern_then_the_library_takes_the_same_texts(pair: Pair, some: list[str]) -> None:
    """Anchors, look-aheads, repetitions: searched and whole, the verdict on each text is ours."""
    try:
        expressions = searched(pair[0]), whole(pair[0])
    except GrammarUnsupportedError:
        return
    for expression in expressions:
        agrees(expression, some)


@given(asserted, asserted, texts, st.sampled_from(["both", "but", "or", "then"]))
@budget(80)
def test_ebnf_when_combined_then_the_library_takes_the_same_texts(
    one: Pair, other: Pair, some: list[str], how: str
) -> None:
    """Intersection, difference, union and sequence of what has assertions."""
    try:
        a, b = whole(one[0]), searched(other[0])
    except GrammarUnsupportedError:
        return
    combined = {"both": both(a, b), "but": both(a, complement(b)), "or": choice(a, b), "then": sequence(a, b)}
    agrees(combined[how], some)


@given(asserted, st.lists(st.binary(max_size=6), max_size=20))
@budget(60)
def test_ebnf_when_bytes_are_random_then_both_libraries_agree(pair: Pair, some: list[bytes]) -> None:
    """Also on what is no UTF-8, and on what is no JSON string."""
    try:
        expression = searched(pair[0])
    except GrammarUnsupportedError:
        return
    if not may_match(expression):
        return
    for ours, theirs in (
        (written(expression, as_json=False), lark.as_text(expression)),
        (written(expression, as_json=True), lark.as_json(expression)),
    ):
        grammar = f"start: T\nT: {theirs}\n"
        for text in [*some, *(b'"' + text + b'"' for text in some)]:
            matcher = matcher_of_lark(grammar)
            assert takes(ours, text) == bool(matcher.consume_tokens(list(text)) and matcher.is_accepting()), text


@given(st.lists(st.tuples(st.sampled_from(BORDERS), st.sampled_from(BORDERS)), min_size=1, max_size=3))
@budget(60)
def test_ebnf_when_of_a_class_then_it_has_just_its_characters(pairs: list[tuple[int, int]]) -> None:
    """Every border of a range and of a length in UTF-8; plain, and as the step of an automaton."""
    charset = CharSet((min(pair), max(pair)) for pair in pairs)
    for expression in (chars(charset), both(repeat(chars(charset)), complement(literal("ab")))):
        plain, quoted = written(expression, as_json=False), written(expression, as_json=True)
        for point in BORDERS:
            text = chr(point)
            assert takes(plain, text.encode()) == (text in charset), hex(point)
            assert takes(quoted, json.dumps(text, ensure_ascii=False).encode()) == (text in charset), hex(point)
        for wrong in NOT_UTF8:
            assert not takes(plain, wrong)
            assert not takes(quoted, b'"' + wrong + b'"')


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ("", True), ("a", True), ("\\u0061", True), ("\\u0000", True), ("\\uD83D\\uDe00", True), ("\\/", True),
        ("/", True), ("\\b\\f\\n\\r\\t\\\"\\\\", True), ("😀", True), ("\x7f", True), ("\\ud7ff\\ue000", True),
        ("\\ud83d", False), ("\\ude00", False), ("\\ud83d\\ud83d", False), ("\\ud83da", False), ("\n", False),
        ("\x00", False), ("\\x41", False), ("\\u12", False), ("\\", False), ('"', False), ("\\u{41}", False),
    ],
)  # fmt: skip
def test_as_json_when_anything_then_every_json_string_in_every_spelling(body: str, is_valid: bool) -> None:
    """Both libraries agree about it; lone surrogates are no text."""
    text = f'"{body}"'.encode()
    assert takes(written(ANYTHING, as_json=True), text) is is_valid
    matcher = matcher_of_lark(f"start: T\nT: {lark.as_json(ANYTHING)}\n")
    assert bool(matcher.consume_tokens(list(text)) and matcher.is_accepting()) is is_valid
    for wrong in NOT_UTF8:
        assert not takes(written(ANYTHING, as_json=True), b'"' + wrong + b'"')


@pytest.mark.parametrize("spelled", ["\\u0061", "\\u0009", "\n", "\\x61", "\\ud800", "\\u000a", "\\", '"'], ids=ascii)
def test_as_json_when_no_canonical_spelling_then_not_taken(spelled: str) -> None:
    """As in ``lark``: printable characters and those with a short escape have no ``\\uXXXX``."""
    for expression in (chars(ANY), both(repeat(chars(ANY)), complement(literal("b")))):
        assert not takes(written(expression, as_json=True), f'"{spelled}"'.encode())
        assert takes(written(expression, as_json=True), b'"\\u001F"')


@pytest.mark.parametrize("expression", [NOTHING, both(whole("a+"), whole("b+"))], ids=["plain", "seen late"])
def test_ebnf_when_nothing_matches_then_no_byte_is_allowed(expression: Expression) -> None:
    """What nothing matches is a class without members, also as an alternative."""
    numbers = itertools.count()
    body, rules = ebnf.as_text(expression, lambda: f"rule{next(numbers)}")
    grammar = grammar_of_ebnf("\n".join([f'root ::= {body} | "b"', *rules]))
    assert takes(grammar, b"b")
    assert not any(takes(grammar, text) for text in (b"", b"a", b"ab"))


def test_ebnf_when_of_words_then_each_of_them() -> None:
    """Common prefixes are shared; one word may begin another, and one may be empty."""
    some = ["", "a", "ab", "abc", "b", 'q"', "\n", "é", *("x" * size for size in range(300)), "x" * 150 + "y"]
    expression = words(some)
    plain, quoted = written(expression, as_json=False), written(expression, as_json=True)
    for text in some:
        assert takes(plain, text.encode())
        assert takes(quoted, json.dumps(text, ensure_ascii=False).encode())
    for text in ("ac", "x" * 300, "bc", "x" * 149 + "y"):
        assert not takes(plain, text.encode())


def test_ebnf_when_it_has_too_many_states_then_refused() -> None:
    """An automaton that grows exponentially has a limit."""
    wide = both(whole("[ab]*a[ab]{14}"), complement(whole("[ab]*b[ab]{15}")))
    with pytest.raises(GrammarTooLargeError, match="states"):
        ebnf.as_text(wide, lambda: "rule")


@given(st.recursive(st.sampled_from(["a", "b", "[ab]"]).map(lambda atom: (atom, atom)), grouped, max_leaves=10))
@budget(100)
def test_ebnf_when_groups_are_optional_or_repeated_then_the_library_takes_the_same_texts(pair: Pair) -> None:
    """Shapes that the library's own reading of regular expressions gets wrong, as an automaton and as groups."""
    expression = whole(pair[0])
    some = ["".join(letters) for size in range(1, 6) for letters in itertools.product("ab", repeat=size)]
    agrees(expression, some)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ebnf, "_MOST_STATES_OF_PLAIN", 0)
        agrees(expression, some)


@pytest.mark.parametrize("low_high", [(0, 3), (2, 5), (0, 130), (127, 129), (128, 300), (200, None), (0, None), (3, 3)])
@pytest.mark.parametrize("members", ["a", '/"\n', "aé😀"])
def test_ebnf_when_one_character_is_counted_then_exactly(low_high: tuple[int, int | None], members: str) -> None:
    """On both sides of the library's own limits."""
    low, high = low_high
    expression = repeat(chars(CharSet.of(members)), low, high)
    sizes = {0, low - 1, low, low + 1, low + 150, *(() if high is None else (high - 1, high, high + 1))}
    agrees(expression, [(members * size)[:size] for size in sizes if size > 0])


def test_ebnf_when_written_then_few_rules() -> None:
    """What follows in one way only needs no rule of its own, and one repeated character needs no automaton."""
    numbers = itertools.count()
    root, rules = ebnf.as_text(whole("ab(c|d)e*"), lambda: f"rule{next(numbers)}")
    assert (root, rules) == ("rule0", ["rule0 ::= [a] [b] [c-d] rule1", 'rule1 ::= Regex("[e]*")'])
    assert ebnf.as_text(EMPTY_TEXT, lambda: "rule") == ("rule", ['rule ::= ""'])
