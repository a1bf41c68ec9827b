"""Regexes: one reader for both backends, so the same texts, the same rows, the same refusals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import llguidance
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from walks import SMALL, accepts, allowed

from maskd.backends import load
from maskd.backends.base import Backend, Grammar
from maskd.errors import GrammarError, GrammarTooLargeError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarSpec
from maskd.tokenizer_files import load_vocabulary
from tests.fuzzing import budget
from tests.patterns import asserted_common, texts


@pytest.fixture(params=["xgrammar", "llguidance"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(f"{request.param}_small")
    return found


def compiled(backend: Backend, pattern: str) -> Grammar:
    return backend.compile(GrammarSpec("regex", pattern))


@given(asserted_common, texts)
@budget(100)
def test_regex_when_random_then_both_backends_match_what_regex_matches(
    xgrammar_small: Backend, llguidance_small: Backend, pattern: str, some: list[str]
) -> None:
    """The whole text, byte by byte; the reference is Python's package ``regex``."""
    reference = regex.compile(pattern, regex.V0 | regex.ASCII)
    grammars = []
    for backend in (xgrammar_small, llguidance_small):
        try:
            grammars.append(compiled(backend, pattern))
        except GrammarUnsatisfiableError:
            assert not any(reference.fullmatch(text) for text in some)
        except GrammarUnsupportedError as error:
            assert error.metadata["feature"] == "an assertion inside a repetition"
            assert int(error.metadata["position"]) < len(pattern)
    assert len(grammars) != 1
    for text in ["", *some]:
        expected = bool(reference.fullmatch(text))
        assert [accepts(grammar, text) for grammar in grammars] == [expected] * len(grammars), text


@given(asserted_common, st.randoms(use_true_random=False))
@budget(40)
def test_regex_when_backends_walk_together_then_rows_are_equal(
    xgrammar_small: Backend, llguidance_small: Backend, pattern: str, random: object
) -> None:
    """Bit for bit, along a random walk of allowed tokens."""
    try:
        matchers = [compiled(backend, pattern).matcher() for backend in (xgrammar_small, llguidance_small)]
    except GrammarError:
        return
    for _ in range(8):
        rows = [allowed(matcher, SMALL) for matcher in matchers]
        assert rows[0] == rows[1], pattern
        assert rows[0], "a row that allows nothing"
        token_id = random.choice(sorted(rows[0]))  # type: ignore[attr-defined]
        assert [matcher.accept([token_id]) for matcher in matchers] == [1, 1]
        if matchers[0].is_terminated:
            return


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("(?=.*[0-9])(?=.*[a-z])[0-9a-z]{3,}", "a1b", "abc"), ("(?!admin|root).*", "bob", "root2"),
        ("^ab?$", "ab", "abb"), (r"\Aa\z", "a", "Aaz"), (r"a\Z", "a", "aZ"), ("(?P<n>a)(?<m>b)", "ab", "n"),
        ("a+?b*?", "aab", "ba"), ("(?i)straße", "STRAẞE", "STRASSE"), ("(?i:a)b", "Ab", "AB"), ("a(?i)b|c", "C", "A"),
        ("(?i)[^a]", "b", "A"), ("((?i)a)b", "Ab", "AB"), ("(?i-i:a)", "a", "A"), ("(?s).", "\n", ""),
        (".", "\r", "\n"), ("(?s-s:.)", "a", "\n"), (r"\s", "\v", "\u00a0"), (r"\S", "\u00a0", " "),
        (r"\w\d", "a1", "é1"), (r"\x41\x{42}\u0043\u{44}\U00000045", "ABCDE", "x"), (r"\a\f\v\t\0", "\a\f\v\t\0", "a"),
        (r"\p{Lu}\pL\P{L}", "Éa1", "éa1"), (r"\p{Script=Greek}+", "αβ", "ab"), ("[[:alpha:][:^ascii:]]", "é", "1"),
        ("[a-z&&[^aeiou]]", "b", "e"), ("[a-f--[bc]]", "d", "b"), ("[a-c~~b-d]", "d", "b"), ("[]a]", "]", "b"),
        ("[^]a]", "b", "]"), (r"[\b]", "\b", "b"), (r"[\w-]", "-", "+"), ("[a-]", "-", "b"), ("/", "/", "\\"),
        ('{"a": [0-9]{1,2}}', '{"a": 12}', '{"a": 123}'), ("a{2", "a{2", "aa"), ("a|", "", "b"), ("", "", "a"),
        ("(?U)a*", "aa", "b"), ("(?u)é", "é", "e"), ("(?m)a", "a", "b"), (r"\-\_\@\<\é", "-_@<é", "a"),
        ("(?!a)[ab]", "b", "a"), ("x(?=y)y|z", "xy", "x"), ("(?:(?!--).)*", "a-b", "a--b"), (r"\_\cJ", "_\n", "_J"),
    ],
)  # fmt: skip
def test_regex_when_it_has_a_construct_then_it_means_what_it_says(
    backend: Backend, pattern: str, good: str, bad: str
) -> None:
    """The spellings of Python and Rust."""
    grammar = compiled(backend, pattern)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


@pytest.mark.parametrize(
    ("pattern", "feature", "position"),
    [
        ("a(?<=b)", "look-behind", 1), ("a(?<!b)", "look-behind", 1), (r"ab\b", r"\b, the word boundary,", 2),
        (r"\Ba", r"\B, the word boundary,", 0), (r"(a)\1", "a back-reference", 3),
        (r"(?P<n>a)(?P=n)", "a back-reference or recursion", 8), (r"(?<n>a)\k<n>", "a back-reference", 7),
        ("(?R)", "a back-reference or recursion", 0), ("a(?>b)", "an atomic group", 1), ("(?#x)a", "a comment", 0),
        ("(?x)a b", "the flag x", 0), ("(?a)a", "the flag a", 0), ("(?m)^a", "^ at lines, by the flag m,", 4),
        ("a*+", "a quantifier with + behind it", 2), ("a{,3}", "{,3}", 1),
        (r"\Ga", r"\G, an anchor of another dialect,", 0),
        ("(?-u)a", "the flag u", 0), ("ab(?:(?=a).b)*", "an assertion inside a repetition", 2),
    ],
)  # fmt: skip
def test_regex_when_it_cannot_be_done_then_refused_by_name_and_position(
    backend: Backend, pattern: str, feature: str, position: int
) -> None:
    """The same answer from both backends, also within a structural tag."""
    with pytest.raises(GrammarUnsupportedError, match="regular expression: ") as caught:
        compiled(backend, pattern)
    assert dict(caught.value.metadata) == {"feature": feature, "position": str(position)}
    tag = {"type": "sequence", "elements": [{"type": "regex", "pattern": pattern}]}
    with pytest.raises(GrammarUnsupportedError) as caught:
        backend.compile(GrammarSpec("structural_tag", json.dumps(tag)))
    assert caught.value.metadata["pointer"] == "/elements/0/pattern"
    assert caught.value.metadata["position"] == str(position)


@pytest.mark.parametrize("pattern", ["a^b", "(?=a)b", "[a&&b]", r"[^\s\S]", "(?!)", "(?=.*a)b*"])
def test_regex_when_nothing_matches_then_unsatisfiable(backend: Backend, pattern: str) -> None:
    """Found before a library sees it."""
    with pytest.raises(GrammarUnsatisfiableError, match="nothing can match"):
        compiled(backend, pattern)


def test_structural_tag_when_its_regex_looks_ahead_then_both_backends_keep_it(backend: Backend) -> None:
    """What is no plain regex works within a tag as well."""
    tag = {"type": "tag", "begin": "<x>", "content": {"type": "regex", "pattern": "(?!b)[a-c]{2}"}, "end": "</x>"}
    grammar = backend.compile(GrammarSpec("structural_tag", json.dumps(tag)))
    assert accepts(grammar, "<x>ab</x>")
    assert not accepts(grammar, "<x>ba</x>")
    assert not accepts(grammar, "<x>abc</x>")


USUAL = [
    (r"[\w.+-]+@[\w-]+\.[\w.-]+", "john.doe+x@example.co.uk"), (r"\d{4}-\d{2}-\d{2}", "2024-02-29"),
    (r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})", "2024-02-29T12:00:00.123Z"),
    (r"\+?[0-9 ()-]{7,20}", "+49 (30) 123456"),
    ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "123e4567-e89b-12d3-a456-426614174000"),
    (r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)", "192.168.1.254"),
    (r"https?://[^\s/$.?#].[^\s]*", "https://example.com/a/b?c=d"), ("[A-Z][a-z]+ [A-Z][a-z]+", "John Smith"),
    ("#[0-9a-fA-F]{6}", "#ff00aa"), (r"-?\d+(\.\d+)?([eE][+-]?\d+)?", "-12.5e10"), ("(yes|no|maybe)", "maybe"),
    (r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", "DE89370400440532013000"), (r"\d{5}(-\d{4})?", "12345-6789"),
    ("[a-z0-9]+(-[a-z0-9]+)*", "my-nice-slug-here"), (r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", "v1.22.3-beta.1"),
    (r"\$\d{1,3}(,\d{3})*(\.\d{2})?", "$1,234.50"), ("[A-Za-z_][A-Za-z0-9_]*", "snake_case_name"),
    (r"(\w+ ){3,8}\w+", "one two three four five"), (r"\w+( \w+)*", "the quick brown fox"),
    (".{1,80}", "Any text of at most eighty characters."), (".*", "Some text without newline"),
    (r"(.|\n)*", "Some text\nwith newline"), (r"\s*true\s*", "  true "),
    (r'"([^"\\]|\\["\\/bfnrt])*"', r'"a \"quoted\" text"'), (r"[^,\n]+(,[^,\n]+)*", "a,b,c d,e"),
    (r"(\d+, )*\d+", "1, 22, 333"), (r"\[\d+(, \d+)*\]", "[1, 2, 3]"), ("<[a-z]+>[^<]*</[a-z]+>", "<b>bold</b>"),
    (r"\(\d{3}\) \d{3}-\d{4}", "(555) 123-4567"), ("(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", "Wednesday"),
    (r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", "23:59:59"), ("[01]+", "010101"), ("0x[0-9a-fA-F]+", "0xdeadBEEF"),
    ("(?i)(error|warning|info)", "Warning"), (r"[A-Z]{3}-\d{3,6}", "ABC-12345"),
    (r"(http|ftp)s?://([\w-]+\.)+[a-z]{2,6}(:\d+)?(/\S*)?", "https://www.example.org:8080/x"),
    (r"\d{3}-\d{2}-\d{4}", "123-45-6789"), ("[ACGT]{4,60}", "ACGTACGTTTGA"),
    (r"(\d{4}[ -]?){3}\d{4}", "4111 1111 1111 1111"), ("[A-Za-z0-9+/]+={0,2}", "SGVsbG8gd29ybGQ="),
    (r"[^\x00-\x1f]*", "printable text é"), (r"- .+(\n- .+)*", "- one\n- two items\n- three"),
    (r"(\w+): (\w+)(; (\w+): (\w+))*", "a: b; c: d"), ("[a-zA-Z ,.'-]{2,50}", "Jean-Luc O'Neil, Jr."),
    ("(left|right|up|down)( (left|right|up|down))*", "left right up"), ("p(ersonal|rofessional)?", "professional"),
    (r"[\p{L} ]+", "Größe und Länge"), (r"(19|20)\d\d[-/.](0[1-9]|1[012])[-/.](0[1-9]|[12]\d|3[01])", "1999/12/31"),
    (r"\w{8,64}", "averylongpasswordindeed"), (r"[a-z]+\d*[!?.]*", "hello123!?"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text"), USUAL)
def test_regex_when_usual_then_rows_are_those_of_the_libraries_own_reading(
    xgrammar_small: Backend, llguidance_small: Backend, pattern: str, text: str
) -> None:
    """Fifty regexes that people write: every row along a text of each, bit for bit."""
    own = GrammarSpec("lark", f"start: /{llguidance.regex_to_lark(pattern, 'dws')}/")
    matchers = [
        compiled(xgrammar_small, pattern).matcher(),
        compiled(llguidance_small, pattern).matcher(),
        llguidance_small.compile(own).matcher(),
    ]
    for byte in text.encode():
        rows = [allowed(matcher, SMALL) for matcher in matchers]
        assert rows[0] == rows[1] == rows[2]
        token_id = SMALL.tokens.index(bytes([byte]))
        assert [matcher.accept([token_id]) for matcher in matchers] == [1, 1, 1]
    rows = [allowed(matcher, SMALL) for matcher in matchers]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0] & set(SMALL.stop_token_ids)


HOSTILE: dict[str, Callable[[], str]] = {
    "nested counts": lambda: "(a{1,1000}){1,1000}",
    "ambiguous": lambda: "(a|a)*b",
    "nested stars": lambda: "((((a*)*)*)*)*b",
    "long": lambda: "a" * 100_000,
    "long choice": lambda: "|".join(f"w{number}" for number in range(15_000)),
    "optional": lambda: "a?" * 3_000 + "b",
    "huge class": lambda: "[" + "".join(f"\\u{{{point:x}}}" for point in range(0x100, 0x4000, 2)) + "]",
    "properties": lambda: r"(?i)(\p{L}\P{Lu}[^\p{Greek}]){1,50}",
    "deep": lambda: "(" * 90 + "a" + ")?" * 90,
    "too deep": lambda: "(" * 5_000 + "a" + ")" * 5_000,
    "deep classes": lambda: "[" * 5_000,
    "look-aheads": lambda: "".join(f"(?!w{number})" for number in range(500)) + ".*",
    "nested look-aheads": lambda: "(?!" * 60 + "a" + ")" * 60 + ".*",
    "exponential": lambda: "(?=[ab]*a[ab]{18}c)[ab]*b[ab]{17}c",
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.timeout(120)
def test_regex_when_hostile_then_compiled_or_refused_typed(backend: Backend, what: str) -> None:
    """Bounded: a grammar or an error of the tree, never one of Python's or the library's own."""
    try:
        compiled(backend, HOSTILE[what]()).matcher()
    except (GrammarTooLargeError, GrammarUnsupportedError):
        return
    except GrammarError as error:
        assert what in ("too deep", "deep classes"), error.message


@pytest.mark.parametrize("pattern", [r"[^\n]{10,300}\.", r"[^a]{200,}b", r"[é-ü]{1,150}x"])
def test_regex_when_it_counts_far_then_every_token_of_a_row_is_taken(pattern: str) -> None:
    """xgrammar's own count of characters beyond ASCII allows tokens in its rows that its matcher refuses."""
    vocabulary = load_vocabulary("engine_adapter/bundled")
    grammar, rng = load("xgrammar")(vocabulary, threads=1).compile(GrammarSpec("regex", pattern)), random.Random(0)
    for _ in range(6):
        matcher = grammar.matcher()
        for _ in range(12):
            choices = sorted(allowed(matcher, vocabulary) - grammar.stop_token_ids)
            for token_id in rng.sample(choices, min(len(choices), 200)):
                assert matcher.fork().accept([token_id]) == 1, vocabulary.tokens[token_id]
            if not choices:
                break
            matcher.accept([rng.choice(choices)])
