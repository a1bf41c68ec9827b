"""Each defect of a library that an adapter hides or refuses, as a case that fails if the defect shows again.

xgrammar 0.2.8 and llguidance 1.9.1. Where the defect is reported upstream, the number stands beside it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import llguidance
import numpy as np
import pytest
from walks import NAMELESS, SMALL, STOP, STOP_TOO, TOOL, accepts, accepts_ids, allowed, new_row

from maskd.backends.auto import AutoBackend
from maskd.backends.base import Advance, Backend, Detach, Grammar
from maskd.bitmask import row_stride_words
from maskd.errors import (
    BackendError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
)
from maskd.grammar import GrammarKind, GrammarOptions, GrammarSpec

BOTH = ("xgrammar", "llguidance")
ROLLBACK_PAGE = Path(__file__).resolve().parents[2] / "docs" / "llguidance-rollback.md"


@pytest.fixture(params=BOTH)
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(f"{request.param}_small")
    return found


@pytest.fixture
def auto(xgrammar_small: Backend, llguidance_small: Backend) -> Backend:
    return AutoBackend([llguidance_small, xgrammar_small])


def compiled(backend: Backend, kind: GrammarKind, source: object, **options: object) -> Grammar:
    text = source if isinstance(source, str) else json.dumps(source)
    return backend.compile(GrammarSpec(kind, text, backend.name, GrammarOptions(**options)))  # type: ignore[arg-type]


# -- strings that are no JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": "string", "minLength": 1},
        {"type": "string", "maxLength": 3},
        {"type": ["string", "null"], "maxLength": 3},
        {"$ref": "#/$defs/s", "$defs": {"s": {"type": "string", "maxLength": 3}}},
        {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": 3}]},
    ],
)
def test_length_limited_string_when_walked_then_is_json(backend: Backend, schema: object) -> None:
    """xgrammar's own rule for minLength and maxLength allows control characters and forbids escapes
    (mlc-ai/xgrammar#800)."""
    grammar = compiled(backend, "json_schema", schema)
    for text in ('"a"', '"\\n\\""', '"\\\\"', '"é€😀"'):
        assert accepts(grammar, text), text
    for text in ('"\t"', '"\n"', '"\0"', '"\x1f"', '"""', '"\\x"', '"\\ud800"', '"\ud800"'):
        assert not accepts(grammar, text), text


def test_length_limit_when_characters_are_escaped_or_long_then_each_counts_once(backend: Backend) -> None:
    """Length is counted in characters: an escape and a four-byte character are one each."""
    grammar = compiled(
        backend, "json_schema", {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 2}}
    )
    for text, fits in (
        ("ab", True),
        ("\\n\\n", True),
        ("😀é", True),
        ("a", False),
        ("abc", False),
        ("\\n", False),
        ("😀", False),
    ):
        assert accepts(grammar, f'["{text}"]') == fits, text


@pytest.mark.parametrize(
    "format_name",
    ["json-pointer", "relative-json-pointer", "uri", "email", "date-time", "uri-template", "duration", "ipv6", "uuid"],
)
def test_format_when_a_quote_or_a_control_character_comes_then_refused(
    xgrammar_small: Backend, format_name: str
) -> None:
    """xgrammar's patterns for the two pointer formats let quotes and control characters into the string."""
    matcher = compiled(xgrammar_small, "json_schema", {"type": "string", "format": format_name}).matcher()
    assert matcher.accept(list(b'"')) == 1
    for text in (b"", b"/", b"0/", b"a:", b"0"):
        reached = matcher.accept(list(text))
        assert not allowed(matcher, SMALL) & set(range(0x20))
        matcher.rollback(reached)


def test_any_value_when_compact_then_has_no_white_space(backend: Backend) -> None:
    """xgrammar separates with ", " within values that no schema describes, also where no white space is allowed
    (#945)."""
    grammar = compiled(
        backend, "json_schema", {"type": "object", "properties": {"a": {}, "b": {"type": "array"}}}, max_whitespace=0
    )
    assert accepts(grammar, '{"a":[1,{"x":1,"y":[]}],"b":[1,2],"c":{"d":1,"e":2}}')
    for text in ('{"a":[1, 2]}', '{"b":[1, 2]}', '{"c":{"d":1, "e":2}}', '{"a":1, "b":[]}', '{"a": 1}'):
        assert not accepts(grammar, text), text


@pytest.mark.parametrize(
    ("options", "fits", "not_fits"),
    [
        ({"max_whitespace": 2}, ['{"a":1}', '{ "a" :  [ 1 , 2 ] }', '{\n\t"a":1}'], ['{"a":   1}']),
        ({}, ['{"a":       1}', '{"a":1\r\n}'], []),
        (
            {"item_separator": ", ", "key_separator": ": ", "max_whitespace": 0},
            ['{"a": [1, 2], "b": 1}'],
            ['{"a":1}', '{"a": [1,2]}', '{"a":  1}'],
        ),
    ],
)
def test_white_space_when_limited_then_means_the_same_on_both(
    backend: Backend, options: dict[str, object], fits: list[str], not_fits: list[str]
) -> None:
    """Options on white space and separators mean the same on every backend, within undescribed values too."""
    grammar = compiled(backend, "json_object", "", **options)
    assert [accepts(grammar, text) for text in fits] == [True] * len(fits)
    assert [accepts(grammar, text) for text in not_fits] == [False] * len(not_fits)


# -- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "error", "pointer"),
    [
        ({"properties": {"a": {"$ref": "http://example.com/x"}}}, GrammarError, "/properties/a/$ref"),
        ({"items": {"$ref": "#/$defs/none"}}, GrammarError, "/items/$ref"),
        ({"items": {"$ref": "#none"}}, GrammarError, "/items/$ref"),
        ({"items": {"$ref": 5}}, GrammarError, "/items/$ref"),
    ],
)
def test_ref_when_remote_or_dangling_then_refused_with_pointer(
    auto: Backend, backend: Backend, schema: object, error: type[GrammarError], pointer: str | None
) -> None:
    """xgrammar takes a remote reference for "any value"."""
    for one in (backend, auto):
        with pytest.raises(error) as caught:
            compiled(one, "json_schema", schema)
        assert type(caught.value) is error
        assert pointer is None or caught.value.metadata["pointer"] == pointer


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}],
)
def test_ref_when_circular_then_refused(auto: Backend, backend: Backend, schema: object) -> None:
    """xgrammar gives rows of zeros for a circle."""
    for one in (backend, auto):
        with pytest.raises((GrammarUnsatisfiableError, GrammarUnsupportedError)):
            compiled(one, "json_schema", schema)


def test_grammar_when_rules_only_need_themselves_then_unsatisfiable(backend: Backend) -> None:
    """xgrammar compiles it and allows nothing at all; llguidance says "stop" in its first row."""
    with pytest.raises(GrammarUnsatisfiableError):
        compiled(backend, "ebnf", "root ::= A\nA ::= B\nB ::= A")


# -- matchers --------------------------------------------------------------------------------------------------------


def test_fill_when_llguidance_gives_up_then_error_and_the_matcher_stands(llguidance_small: Backend) -> None:
    """A failed fill kills llguidance's matcher and leaves a row that says "stop"; ours raises, and can be rolled
    back."""
    schema = {
        "type": "object",
        "properties": {f"p{index}": {"type": "integer"} for index in range(3000)},
        "additionalProperties": False,
    }
    matcher = compiled(llguidance_small, "json_schema", schema).matcher()
    row = np.zeros(row_stride_words(SMALL.vocab_size), np.int32)
    with pytest.raises(BackendError) as caught:
        for byte in b'{"p1":1,':
            matcher.fill_bitmask(row)
            matcher.accept([byte])
        matcher.fill_bitmask(row)
    assert len(caught.value.message) < 500


def test_fill_when_it_failed_then_rollback_goes_back_to_where_it_worked(llguidance_small: Backend) -> None:
    """After a failed fill the matcher stands where it stood, and works again where it worked before."""
    matcher = compiled(llguidance_small, "lark", 'start: "a" ("b" dead)?\ndead: dead "x"').matcher()
    assert matcher.accept([ord("a"), ord("b")]) == 2
    with pytest.raises(BackendError):
        allowed(matcher, SMALL)
    matcher.rollback(1)
    assert STOP in allowed(matcher, SMALL)
    assert matcher.accept([STOP]) == 1


def test_xgrammar_row_when_a_rule_is_recursive_and_ambiguous_then_still_lacks_what_it_takes(
    xgrammar_small: Backend, llguidance_small: Backend
) -> None:
    """Its rows lack tokens that reach beyond the rule. No text is lost: the same can be said in shorter tokens. The
    oracle knows of it."""
    rows, taken = [], []
    for backend in (xgrammar_small, llguidance_small):
        matcher = compiled(backend, "ebnf", 'root ::= "a" root "b" | "a" root | "a"').matcher()
        assert matcher.accept([ord("a")]) == 1
        rows.append(allowed(matcher, SMALL))
        taken.append({token_id for token_id in range(len(SMALL.tokens)) if matcher.fork().accept([token_id])})
    assert taken[0] == taken[1] == rows[1] > rows[0], "xgrammar's rows are whole now: let the oracle's reference say so"


def test_stop_token_when_replaced_then_never_allowed_nor_accepted(backend: Backend) -> None:
    """xgrammar leaves a replaced stop token allowed in free text, and accepts it as no text at all."""
    matcher = compiled(backend, "regex", "[^x]*", stop_token_ids=(STOP_TOO,)).matcher()
    assert STOP not in allowed(matcher, SMALL)
    assert matcher.accept([STOP]) == 0
    assert STOP_TOO in allowed(matcher, SMALL)


def test_refused_special_token_when_many_then_nothing_on_stderr(
    backend: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    """xgrammar writes a line to stderr for every special token offered to it."""
    matcher = compiled(backend, "regex", "[^x]*").matcher()
    for token_id in (TOOL, NAMELESS, STOP_TOO, SMALL.vocab_size - 1):
        assert matcher.accept([token_id]) == 0
    assert capfd.readouterr() == ("", "")


def test_llguidance_rollback_when_the_script_of_the_page_runs_then_masks_are_still_wrong() -> None:
    """llguidance's rollback keeps the last mask. The page holds the script with its output, and names the version that
    is installed."""
    page = ROLLBACK_PAGE.read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    ran = subprocess.run([sys.executable, "-c", found[1]], check=True, capture_output=True, text=True, timeout=100)
    for line in re.findall("after a rollback.*", ran.stdout):
        kept, right = re.fullmatch("after a rollback: (.*) a new matcher: (.*)", line).groups()  # type: ignore[union-attr]
        assert set(kept) != set(right), (
            f"llguidance forgets the mask in rollback now: say so in {ROLLBACK_PAGE.name}, roll back natively again"
        )
    assert ran.stdout == found[2]
    assert importlib.metadata.version("llguidance") in page


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [".", "[^a]", r"\S", r"\W", r"[\s\S]", r"[^\d]", r"[\W]"])
def test_regex_when_a_surrogate_comes_then_refused(backend: Backend, pattern: str) -> None:
    """xgrammar lets UTF-8 encoded surrogates through wherever a class is negated."""
    grammar = compiled(backend, "regex", pattern)
    assert accepts(grammar, "é") or pattern == r"\W"
    assert not accepts(grammar, b"\xed\xa0\x80")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("a^b", "ab"), ("a$b", "ab"), (r"\Aa", "Aa"), (r"a\z", "az"), ("[[:alpha:]]", "["), ("[a&&b]", "&")],
)
def test_regex_when_xgrammar_alone_would_misread_it_then_read_well(backend: Backend, pattern: str, text: str) -> None:
    """xgrammar ignores an anchor in mid-pattern, and takes escapes and classes that it does not know literally."""
    try:
        grammar = compiled(backend, "regex", pattern)
    except GrammarUnsatisfiableError:
        return
    assert not accepts(grammar, text)


@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice", "ebnf", "lark", "structural_tag"])
@pytest.mark.parametrize(
    "source",
    [
        "",
        "\0",
        "a\ud800",
        '{"a":"\\ud800"}',
        "{",
        "(" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "root ::= " + "(" * 30_000 + "a",
    ],
)
def test_source_when_malformed_then_grammar_error_and_short(
    backend: Backend, auto: Backend, kind: GrammarKind, source: str
) -> None:
    """RuntimeError, UnicodeEncodeError and RecursionError of a library become a GrammarError that does not repeat the
    source."""
    if (kind == "regex" and (not source or source[0] == "{")) or (
        kind == "lark" and source.startswith('{"a"') and len(source) < 100
    ):
        pytest.skip("is no mistake in this kind")
    for one in (backend, auto):
        with pytest.raises(GrammarError) as caught:
            compiled(one, kind, source)
        assert len(caught.value.message) < 1000
        caught.value.message.encode()


def test_gbnf_when_nested_deeply_then_too_large(backend: Backend) -> None:
    """llguidance's translator recurses; xgrammar has a limit of its own."""
    with pytest.raises(GrammarTooLargeError):
        compiled(backend, "ebnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000)


@pytest.mark.parametrize("source", ["start[max_tokens=3]: /a*/", 'start: a "!"\na[stop="x"]: /[a-z]*/'])
def test_lark_when_llguidance_itself_cannot_roll_back_then_the_adapter_does(
    llguidance_small: Backend, source: str
) -> None:
    """llguidance's own rollback kills a matcher of a grammar with max_tokens or stop."""
    grammar = compiled(llguidance_small, "lark", source)
    matcher, tokens = grammar.matcher(), [ord("a")] * 2
    rows = []
    for token in tokens:
        rows.append(allowed(matcher, SMALL))
        assert matcher.accept([token]) == 1
    for undone in (1, 2):
        matcher.rollback(undone)
        assert allowed(matcher, SMALL) == rows[-undone]
        assert matcher.accept(tokens[-undone:]) == undone


@pytest.fixture
def few_lexer_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that a hostile text reaches in seconds, reached at once."""
    monkeypatch.setattr(
        "maskd.backends.llguidance._LIMITS", llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=3000)
    )


EXPLODING = "[ab]*a[ab]{22}c"
"""Nearly every text of it is a new state of the lexer."""


def spoil(grammar: Grammar, seed: int) -> None:
    """Walks sequences until the lexer of the newest ones has no state left; how they end is no matter."""
    source = random.Random(seed)
    for _ in range(25):
        matcher = grammar.matcher()
        with contextlib.suppress(BackendError):
            for _ in range(15):
                matcher.accept(source.choices(b"ab", k=10))
                matcher.fill_bitmask(new_row(SMALL))


@pytest.mark.usefixtures("few_lexer_states")
def test_lexer_when_a_neighbour_spoils_it_then_no_other_sequence_notices(llguidance_small: Backend) -> None:
    """llguidance refuses good tokens of every copy from then on, without an error."""
    grammar = compiled(llguidance_small, "regex", EXPLODING)
    walked = [grammar.matcher() for _ in range(4)]
    for matcher in walked:
        assert matcher.accept(b"aabb") == 4
    expected = allowed(walked[0].fork(), SMALL)
    complete = grammar.matcher()
    assert complete.accept(b"a" * 23 + b"c") == 24
    for seed in range(3):
        spoil(grammar, seed)
        assert grammar.is_spoiled(walked[0]._root), "else nothing is tested"  # type: ignore[attr-defined]
        assert walked[0].accept(b"ab") == 2
        walked[0].rollback(2)
        assert isinstance(walked[1], Advance)
        row = new_row(SMALL)
        assert walked[1].advance(ord("a"), row.ctypes.data, row.nbytes) or walked[1].accept(b"a") == 1
        walked[1].rollback(1)
        for matcher in (*walked, walked[2].fork()):
            assert allowed(matcher, SMALL) == expected
        assert walked[3].accept(b"z") == 0
        assert complete.accept([STOP]) == 1
        complete.rollback(1)
        new = grammar.matcher()
        assert new.accept(b"aabb") == 4
        assert allowed(new, SMALL) == expected


def test_detach_when_a_slow_neighbour_holds_the_lock_then_a_detached_matcher_does_not_wait(
    llguidance_small: Backend,
) -> None:
    """What spoils the lexer of one is not the lexer of the other; state and rows stay."""
    matcher = compiled(llguidance_small, "json_object", "").matcher()
    assert matcher.accept(b'{"a') == 3
    expected = allowed(matcher.fork(), SMALL)
    assert isinstance(matcher, Detach)
    root = matcher._root  # type: ignore[attr-defined]
    matcher.detach()
    assert matcher._root is not root  # type: ignore[attr-defined]
    assert allowed(matcher, SMALL) == expected
    matcher.rollback(2)
    assert matcher.accept(b'"b":1}') == 6


def test_x_guidance_when_the_schema_brings_it_then_does_not_relax(llguidance_small: Backend) -> None:
    """llguidance takes options from within a schema, ``lenient`` among them."""
    with pytest.raises(GrammarUnsupportedError):
        schema = {"type": "array", "not": {"uniqueItems": True}, "x-guidance": {"lenient": True}}
        compiled(llguidance_small, "json_schema", schema)


def test_no_forcing_when_a_lark_grammar_wants_forcing_then_rows_stay_complete(llguidance_small: Backend) -> None:
    """Forced text allows every tokenization, whatever the grammar asks for."""
    matcher = compiled(llguidance_small, "lark", '%llguidance {"no_forcing": false}\nstart: "Paris"').matcher()
    assert allowed(matcher, SMALL) == {SMALL.tokens.index(b"Paris"), ord("P")}


# -- choosing --------------------------------------------------------------------------------------------------------


def test_auto_when_llguidance_refuses_then_xgrammar_reports(auto: Backend) -> None:
    """A schema that llguidance refuses goes to xgrammar, and the report says why and what is not enforced."""
    part = {"type": "array", "not": {"uniqueItems": True}}
    report = compiled(auto, "json_schema", {"type": "object", "properties": {"a": part}}).report
    assert report.backend == "xgrammar"
    assert "uniqueItems" in report.backend_reason
    assert [(entry.pointer, entry.keyword) for entry in report.unenforced] == [("/properties/a/not", "not")]
    assert compiled(auto, "json_schema", {"type": "object"}).report.backend == "llguidance"


def test_strict_when_a_keyword_is_not_enforced_then_unsupported_with_pointer(
    auto: Backend, xgrammar_small: Backend
) -> None:
    """strict refuses what would otherwise be reported."""
    for one in (auto, xgrammar_small):
        with pytest.raises(GrammarUnsupportedError, match="not at '/not'"):
            compiled(one, "json_schema", {"type": "array", "not": {"uniqueItems": True}}, strict=True)


# -- structural tags -------------------------------------------------------------------------------------------------

CALL = {
    "type": "triggered_tags",
    "triggers": ["<f="],
    "tags": [
        {"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": {"type": "object"}}, "end": "</f>"},
        {"begin": "<f=b>", "content": {"type": "regex", "pattern": "[0-9]+"}, "end": ["</f>", ";"]},
    ],
}
TAGS: list[tuple[object, list[str | list[int]], list[str | list[int]]]] = [
    (
        CALL,
        ["", "hello", 'hi<f=a>{"a":1}</f> more', "<f=b>12</f><f=a>{}</f>", "<f=b>1;x", "a<b"],
        ["<f=c>", 'x<f=a>{"a"}</f>', "<f=b></f>", "<f=b>1"],
    ),
    ({**CALL, "at_least_one": True}, ["<f=b>1;", "<f=b>1; and <f=b>2;"], ["", "hello", "hi<f=b>1;"]),
    ({**CALL, "stop_after_first": True}, ["", "hi", "hi<f=b>1;"], ["<f=b>1;<f=b>1;"]),
    ({**CALL, "at_least_one": True, "stop_after_first": True}, ["<f=b>1;"], ["", "x<f=b>1;", "<f=b>1; "]),
    (
        {"structures": [{"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}], "triggers": ["<a"]},
        ["q<a>1</a>z", ""],
        ["q<ab", "<a>x"],
    ),
    (
        {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"},
        ["<t></t>", "<t>a\nb</t>"],
        ["<t>", "<t></t>x", "<t></t></t>"],
    ),
    (
        {
            "type": "sequence",
            "elements": [{"type": "regex", "pattern": "[a-z]*"}, {"type": "const_string", "value": "b"}],
        },
        ["b", "abb"],
        ["a", ""],
    ),
    (
        {
            "type": "or",
            "elements": [
                {"type": "const_string", "value": "x"},
                {"type": "json_schema", "json_schema": {"type": "integer"}},
            ],
        },
        ["x", "12"],
        ["y"],
    ),
    ({"type": "grammar", "grammar": 'root ::= "a" root | "b"'}, ["b", "aab"], ["a"]),
    (
        {
            "type": "tags_with_separator",
            "separator": ",",
            "tags": [{"begin": "<", "content": {"type": "regex", "pattern": "x*"}, "end": ">"}],
        },
        ["", "<>", "<x>,<>"],
        ["<>,", ",<>"],
    ),
    (
        {"type": "repeat", "min": 1, "max": 2, "content": {"type": "const_string", "value": "ab"}},
        ["ab", "abab"],
        ["", "ababab"],
    ),
    ({"type": "star", "content": {"type": "json_schema", "json_schema": {"enum": ["a"]}}}, ["", '"a""a"'], ['"b"']),
    ({"type": "any_text", "excludes": ["bad"]}, ["", "ba", "good"], ["bad", "a bad b"]),
    (
        {
            "type": "sequence",
            "elements": [{"type": "const_string", "value": "x"}, {"type": "token", "token": "<tool>"}],
        },
        [[120, TOOL]],
        ["x", "x<tool>"],
    ),
    (
        {
            "type": "tag",
            "begin": {"type": "token", "token": TOOL},
            "content": {"type": "any_text"},
            "end": {"type": "token", "token": "</s2>"},
        },
        [[TOOL, STOP_TOO], [TOOL, 97, STOP_TOO]],
        [[TOOL, 97], "<tool></s2>"],
    ),
]


@pytest.mark.parametrize("number", range(len(TAGS)))
def test_structural_tag_when_translated_then_both_take_the_same(backend: Backend, number: int) -> None:
    """The translation to Lark takes and refuses what xgrammar takes and refuses."""
    tag, fits, not_fits = TAGS[number]
    for source in (tag,) if "structures" in tag else (tag, {"format": tag}, {"type": "structural_tag", "format": tag}):  # type: ignore[operator]
        grammar = compiled(backend, "structural_tag", source)
        for text in fits:
            assert accepts_ids(grammar, text.encode() if isinstance(text, str) else text), text
        for text in not_fits:
            assert not accepts_ids(grammar, text.encode() if isinstance(text, str) else text), text


def test_structural_tag_when_lark_cannot_say_it_then_unsupported_names_the_format(
    llguidance_small: Backend, auto: Backend
) -> None:
    """What Lark cannot express is refused by name, and auto takes xgrammar."""
    tag = {"type": "any_tokens", "exclude_tokens": ["<tool>"]}
    with pytest.raises(GrammarUnsupportedError, match="any_tokens"):
        compiled(llguidance_small, "structural_tag", tag)
    grammar = compiled(auto, "structural_tag", tag)
    assert grammar.report.backend == "xgrammar"
    assert TOOL not in allowed(grammar.matcher(), SMALL)
    assert STOP_TOO in allowed(grammar.matcher(), SMALL)


def test_structural_tag_when_its_schema_is_open_then_further_properties_pass(backend: Backend) -> None:
    """xgrammar reads schemas within a structural tag in its strict mode, which forbids what the standard allows."""
    tag = {
        "type": "json_schema",
        "json_schema": {"type": "object", "properties": {"a": {"type": "array", "prefixItems": [{}]}}},
    }
    assert accepts(compiled(backend, "structural_tag", tag), '{"a":[1,2],"b":2}')
    assert not accepts(compiled(backend, "structural_tag", tag, additional_properties="forbid"), '{"a":[1],"b":2}')


@pytest.mark.parametrize(
    ("tag", "pointer"),
    [
        ({"type": "nope"}, ""),
        ({"type": "sequence", "elements": []}, "/elements"),
        ({"type": "structural_tag", "format": {"type": "const_string", "value": 5}}, "/format/value"),
        ({"type": "token", "token": "<none>"}, "/token"),
        (
            {
                "type": "triggered_tags",
                "triggers": ["x"],
                "tags": [{"begin": "y", "content": {"type": "any_text"}, "end": ""}],
            },
            "/tags/0",
        ),
        (
            {"type": "or", "elements": [{"type": "json_schema", "json_schema": {"type": "strin"}}]},
            "/elements/0/json_schema/type",
        ),
    ],
)
def test_structural_tag_when_malformed_then_pointer_says_where(auto: Backend, tag: object, pointer: str) -> None:
    """Mistakes are found before a library sees the tag."""
    with pytest.raises(GrammarError) as caught:
        compiled(auto, "structural_tag", tag)
    assert caught.value.metadata["pointer"] == pointer
