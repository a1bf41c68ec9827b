"""The backend interface, said as tests: the same for xgrammar, llguidance, auto and the brute-force reference."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
import reference
from walks import NAMELESS, SMALL, STOP, STOP_TOO, TOOL, allowed, new_row, row_of_matcher

from maskd.backends import load
from maskd.backends.auto import AutoBackend
from maskd.backends.base import Advance, Backend, BatchFill, Grammar, LookAhead, Matcher, Serializer
from maskd.bitmask import row_stride_words
from maskd.errors import GrammarError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarKind, GrammarOptions, GrammarSpec

NAMES = ("xgrammar", "llguidance", "auto", "reference")
PARIS = SMALL.tokens.index(b"Paris")
LONDON = tuple(SMALL.tokens.index(word) for word in (b"Lon", b"don"))
AB, A, B, C = SMALL.tokens.index(b"ab"), ord("a"), ord("b"), ord("c")

_CACHE: dict[str, Backend] = {}


def backend_named(name: str) -> Backend:
    if name not in _CACHE:
        if name == "auto":
            _CACHE[name] = AutoBackend([backend_named("llguidance"), backend_named("xgrammar")])
        else:
            _CACHE[name] = reference.create(SMALL, threads=1) if name == "reference" else load(name)(SMALL, threads=2)
    return _CACHE[name]


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return backend_named(request.param)


def compiled(backend: Backend, kind: GrammarKind, source: object, **options: object) -> Grammar:
    text = source if isinstance(source, str) else json.dumps(source)
    return backend.compile(GrammarSpec(kind, text, backend.name, GrammarOptions(**options)))  # type: ignore[arg-type]


def test_fill_when_at_start_then_allows_each_tokenization_of_what_may_follow(backend: Backend) -> None:
    """A row is complete: every token that starts a match is allowed, whole words and single bytes alike."""
    matcher = compiled(backend, "choice", ["Paris", "London"]).matcher()
    assert {PARIS, ord("P"), LONDON[0], ord("L")} == allowed(matcher, SMALL)


def test_fill_when_called_twice_then_writes_every_word_and_changes_nothing(backend: Backend) -> None:
    """fill_bitmask overwrites the whole row and leaves the matcher as it was."""
    matcher = compiled(backend, "regex", "[a-z]+").matcher()
    first, second = new_row(SMALL), np.zeros(row_stride_words(SMALL.vocab_size), np.int32)
    matcher.fill_bitmask(first)
    matcher.fill_bitmask(second)
    assert (first == second).all()
    assert matcher.accept([A]) == 1


def test_fill_when_row_is_a_view_of_a_block_then_touches_no_other_row(backend: Backend) -> None:
    """Rows of a block are neighbours in memory; a fill stays within its own."""
    block = np.full((3, row_stride_words(SMALL.vocab_size)), 7, np.int32)
    compiled(backend, "regex", "[a-z]+").matcher().fill_bitmask(block[1])
    assert (block[[0, 2]] == 7).all()
    assert not (block[1] == 7).all()


def test_stop_token_when_text_is_complete_then_allowed_and_terminates(backend: Backend) -> None:
    """A stop token is allowed exactly where the text so far is a complete match."""
    matcher = compiled(backend, "choice", ["Paris", "Pariss"]).matcher()
    assert STOP not in allowed(matcher, SMALL)
    assert matcher.accept([STOP]) == 0
    assert matcher.accept([PARIS]) == 1
    assert allowed(matcher, SMALL) == {STOP, ord("s")}
    assert not matcher.is_terminated
    assert matcher.accept([STOP]) == 1
    assert matcher.is_terminated
    assert matcher.accept([ord("s")]) == 0
    assert matcher.accept([STOP]) == 0


def test_accept_when_a_token_is_refused_then_keeps_the_prefix_and_lives(backend: Backend) -> None:
    """accept takes the longest allowed prefix; the matcher is good and stands after it."""
    matcher = compiled(backend, "regex", "(Paris|London)").matcher()
    assert matcher.accept([*LONDON[:1], PARIS, LONDON[1]]) == 1
    assert allowed(matcher, SMALL) == {LONDON[1], ord("d")}
    for refused in (TOOL, NAMELESS, STOP_TOO, STOP, SMALL.vocab_size - 1, 0):
        assert matcher.accept([refused]) == 0
    assert matcher.accept([]) == 0
    assert matcher.accept([LONDON[1], STOP, STOP]) == 2
    assert matcher.is_terminated


def test_special_tokens_when_text_is_free_then_never_allowed(backend: Backend) -> None:
    """A special token, a token without bytes and padding never match text, not even their own names."""
    matcher = compiled(backend, "regex", r"(.|\n)*").matcher()
    for text in (b"", b"<to"):
        matcher.accept(list(text))
        row = allowed(matcher, SMALL)
        assert not row & {TOOL, NAMELESS, STOP_TOO}
        assert max(row) < len(SMALL.tokens)


ANYTHING: dict[str, tuple[GrammarKind, object]] = {
    "regex": ("regex", r"(.|\n)*"),
    "choice": ("choice", ["Paris", "London"]),
    "json": ("json_object", ""),
    "any token": ("lark", "start: <[*]>+"),
    "all tokens but": ("lark", "start: <[^97]>+"),
}


@pytest.mark.parametrize("name", ANYTHING)
def test_accept_when_any_id_is_tried_then_it_is_taken_exactly_where_the_row_allows_it(
    backend: Backend, name: str
) -> None:
    """Row and accept never disagree: on special tokens, on tokens without bytes, and on padding, which no row
    allows."""
    try:
        grammar = compiled(backend, *ANYTHING[name])
    except GrammarUnsupportedError:
        pytest.skip(f"{backend.name} has no {name}")
    for before in ([], [ord("P")], [ord("{")]):
        matcher = grammar.matcher()
        if matcher.accept(before) < len(before):
            continue
        row = allowed(matcher, SMALL)
        for token_id in range(SMALL.vocab_size):
            assert matcher.fork().accept([token_id]) == (token_id in row), token_id
            quick = matcher.fork()
            if isinstance(quick, Advance):
                scratch = new_row(SMALL)
                assert not quick.advance(token_id, scratch.ctypes.data, scratch.nbytes) or token_id in row, token_id


FORKED_PATHS: dict[str, tuple[GrammarKind, str, bytes, bytes]] = {
    "json": ("json_schema", "{}", b"[1,1", b'{"a":1'),
    "lark": ("lark", 'start: "a" NUMBER ("x" | "y") | "b" NUMBER ("z" | "w")\nNUMBER: /[0-9]+/', b"a1", b"b1"),
    "ebnf": ("ebnf", 'root ::= "a" [0-9]+ ("x" | "y") | "b" [0-9]+ ("z" | "w")', b"a1", b"b1"),
}


@pytest.mark.parametrize("name", FORKED_PATHS)
def test_rollback_when_another_path_is_taken_then_the_row_is_that_of_a_new_matcher(backend: Backend, name: str) -> None:
    """Also at the same depth and in the same token, where llguidance keeps the mask of the path that was undone."""
    kind, source, first, second = FORKED_PATHS[name]
    try:
        grammar = compiled(backend, kind, source)
    except GrammarUnsupportedError:
        pytest.skip(f"{backend.name} has no {kind}")
    new = grammar.matcher()
    assert new.accept(list(second)) == len(second)
    for walked in (grammar.matcher(), grammar.matcher().fork()):
        for tokens in (first, second):
            for token_id in tokens:
                allowed(walked, SMALL)
                assert walked.accept([token_id]) == 1
            if tokens == first:
                allowed(walked, SMALL)
                walked.rollback(len(tokens))
        assert allowed(walked, SMALL) == allowed(new, SMALL)
        assert allowed(walked.fork(), SMALL) == allowed(new, SMALL)


def test_look_ahead_when_a_copy_walks_on_then_the_matcher_stands_where_it_stood(backend: Backend) -> None:
    """Only where a backend has it."""
    matcher = compiled(backend, "choice", ["Paris", "London"]).matcher()
    if not isinstance(matcher, LookAhead):
        pytest.skip(f"{backend.name} rolls drafts back")
    row = allowed(matcher, SMALL)
    copy = matcher.look_ahead()
    assert copy.accept([LONDON[0]]) == 1
    assert LONDON[1] in allowed(copy, SMALL)
    assert allowed(matcher, SMALL) == row


def test_rollback_when_all_is_undone_then_as_new(backend: Backend) -> None:
    """rollback is the exact inverse of accept; a stop token counts as one, also where nothing but it could follow."""
    for source, tokens in ((["Paris"], [PARIS]), (["Paris", "Paris!"], [PARIS])):
        matcher = compiled(backend, "choice", source).matcher()
        start = row_of_matcher(matcher, SMALL)
        assert matcher.accept([*tokens, STOP]) == 2
        matcher.rollback(1)
        assert not matcher.is_terminated
        assert STOP in allowed(matcher, SMALL)
        assert matcher.accept([STOP]) == 1
        matcher.rollback(0)
        assert matcher.is_terminated
        matcher.rollback(2)
        assert (row_of_matcher(matcher, SMALL) == start).all()
        assert matcher.accept([*tokens, STOP]) == 2


def test_fork_when_one_goes_on_then_the_other_stands(backend: Backend) -> None:
    """A fork is independent, and can undo what was accepted before it."""
    matcher = compiled(backend, "regex", "(ab|c)+").matcher()
    matcher.accept([A])
    other = matcher.fork()
    assert other.accept([B, C, STOP]) == 3
    assert allowed(matcher, SMALL) == {B}
    other.rollback(4)
    assert allowed(other, SMALL) == {A, AB, C}
    assert matcher.accept([B]) == 1
    terminated = compiled(backend, "choice", ["a"]).matcher()
    terminated.accept([A, STOP])
    assert terminated.fork().is_terminated


def test_draft_when_walked_then_rows_are_those_of_single_steps(backend: Backend) -> None:
    """fill, accept, fill, accept, …, rollback: every row is the one that the sequence would have got there."""
    grammar = compiled(backend, "regex", "(ab|c){2,4}")
    matcher, draft = grammar.matcher(), [AB, C, A, B, A]
    rows, accepted = [], 0
    for token_id in draft:
        rows.append(row_of_matcher(matcher, SMALL))
        if not matcher.accept([token_id]):
            break
        accepted += 1
    matcher.rollback(accepted)
    for length, row in enumerate(rows):
        fresh = grammar.matcher()
        assert fresh.accept(draft[:length]) == length
        assert (row_of_matcher(fresh, SMALL) == row).all()
    assert (row_of_matcher(matcher, SMALL) == rows[0]).all()


@pytest.mark.parametrize("stop", [(STOP_TOO,), (C, STOP_TOO), (STOP, STOP_TOO), (TOOL,)])
def test_stop_token_ids_when_given_then_replace_those_of_the_vocabulary(
    backend: Backend, stop: tuple[int, ...]
) -> None:
    """The option replaces the stop tokens; a stop token never matches text, even if it has bytes."""
    grammar = compiled(backend, "regex", "(ab|c)+", stop_token_ids=stop)
    assert grammar.stop_token_ids == set(stop)
    matcher = grammar.matcher()
    text = {A, AB} | ({C} - set(stop))
    assert allowed(matcher, SMALL) == text
    assert matcher.accept([AB]) == 1
    assert allowed(matcher, SMALL) == text | set(stop)
    assert matcher.accept([] if STOP in stop else [STOP]) == 0
    for token_id in stop:
        assert matcher.accept([token_id]) == 1
        assert matcher.is_terminated
        matcher.rollback(1)
    assert allowed(matcher, SMALL) == text | set(stop)


@pytest.mark.parametrize("stop", [(), (STOP_TOO, C)])
def test_batch_fill_when_it_exists_then_equals_single_fills(backend: Backend, stop: tuple[int, ...]) -> None:
    """fill_bitmasks writes the rows that fill_bitmask writes, at the indices given, and no others."""
    if not isinstance(backend, BatchFill):
        pytest.skip(f"{backend.name} has no batch fill")
    grammar = compiled(backend, "regex", "([a-c]{1,40}|[^a-c]+)x?", stop_token_ids=stop)
    for count in (1, 3, 40):
        matchers: list[Matcher] = []
        for length in range(count):
            matchers.append(grammar.matcher())
            assert matchers[-1].accept([A] * length) == length
        block = np.full((2 * count, row_stride_words(SMALL.vocab_size)), 7, np.int32)
        indices = [2 * count - 1 - 2 * index for index in range(count)]
        backend.fill_bitmasks(matchers, block, indices)
        for matcher, index in zip(matchers, indices, strict=True):
            single = new_row(SMALL)
            matcher.fill_bitmask(single)
            assert (block[index] == single).all()
        assert (block[::2] == 7).all()


@pytest.mark.parametrize("stop", [(), (STOP_TOO, C)])
def test_deserialize_when_serialized_then_every_row_is_the_same(backend: Backend, stop: tuple[int, ...]) -> None:
    """A grammar that travelled as bytes makes the rows of the one that stayed."""
    if not isinstance(backend, Serializer):
        pytest.skip(f"{backend.name} does not serialise")
    spec = GrammarSpec("regex", "([a-c]{1,40}|[^a-c]+)x?", options=GrammarOptions(stop_token_ids=stop))
    stayed = backend.compile(spec)
    travelled = backend.deserialize(backend.serialize(stayed), spec, stayed.report)
    assert travelled.stop_token_ids == stayed.stop_token_ids
    one, other = stayed.matcher(), travelled.matcher()
    for token_id in (A, B, A, A, ord("x"), stop[0] if stop else STOP):
        rows = new_row(SMALL), new_row(SMALL)
        one.fill_bitmask(rows[0])
        other.fill_bitmask(rows[1])
        assert (rows[0] == rows[1]).all()
        assert one.accept([token_id]) == other.accept([token_id]) == 1
    with pytest.raises(GrammarError):
        backend.deserialize(b"{}", spec, stayed.report)


def test_compile_when_nothing_matches_then_unsatisfiable(backend: Backend) -> None:
    """A grammar that nothing can match is an error at compile, not a row of zeros at the first step."""
    with pytest.raises(GrammarUnsatisfiableError):
        compiled(backend, "choice", [])


@pytest.mark.parametrize("pattern", ["(", "a{5,2}", "[", "*a", "a)"])
def test_compile_when_regex_is_malformed_then_grammar_error(backend: Backend, pattern: str) -> None:
    """A malformed regex is a GrammarError with a short message."""
    with pytest.raises(GrammarError) as caught:
        compiled(backend, "regex", pattern)
    assert len(caught.value.message) < 700


GRAMMARS: list[tuple[GrammarKind, str]] = [
    ("choice", json.dumps(["Paris", "London", "Parisian", ""])),
    ("choice", json.dumps(['a"b', "a\\b", "a\nb", "é€", "\t", "a/b"])),
    ("regex", "(Paris|London)( the [a-z]+)?"),
    ("regex", "(ab|c)+"),
    ("regex", "[0-9]{2,4}-[0-9]+"),
    ("regex", r"\d+\.\d{1,3}|\w*"),
    ("regex", r'"([^"\\]|\\["\\n])*"'),
    ("regex", "[^a-z]{1,3}é?"),
    ("regex", "a.c*"),
    ("regex", r"\s*true\s*"),
    ("regex", "(a|b)*abb"),
    ("regex", "[é€a]+x?"),
    ("regex", "(?:12|1)(?:2|)3?"),
    ("regex", "^ab?$"),
    ("regex", r"[\s\d]{0,3}\S"),
]


@pytest.mark.parametrize(("kind", "source"), GRAMMARS)
def test_random_walk_when_three_backends_walk_together_then_rows_are_equal(kind: GrammarKind, source: str) -> None:
    """Rows, counts and termination agree bit for bit over random accepts, refusals, rollbacks, forks and stop
    tokens."""
    rng = random.Random(f"{kind} {source}")
    names = ("reference", "xgrammar", "llguidance")
    for options in ({}, {"stop_token_ids": (STOP_TOO, PARIS)}):
        grammars = [compiled(backend_named(name), kind, source, **options) for name in names]
        for _ in range(6):
            _walk_together([grammar.matcher() for grammar in grammars], grammars[0].stop_token_ids, rng)


def _walk_together(matchers: list[Matcher], stop: frozenset[int], rng: random.Random) -> None:
    depth = 0
    for _ in range(40):
        if not matchers[0].is_terminated:
            rows = [allowed(matcher, SMALL) for matcher in matchers]
            assert rows[0] == rows[1] == rows[2]
            choices = sorted(rows[0])
            assert choices, "a state without a way out"
        move = rng.random()
        if move < 0.7 and not matchers[0].is_terminated:
            depth += _all_accept(matchers, [rng.choice(choices)])
        elif move < 0.8:
            depth += _all_accept(
                matchers, [rng.choice([*choices, *stop, rng.randrange(SMALL.vocab_size)]) for _ in range(3)]
            )
        elif move < 0.95:
            count = rng.randint(0, min(depth, 4))
            for matcher in matchers:
                matcher.rollback(count)
            depth -= count
        else:
            matchers[:] = [matcher.fork() for matcher in matchers]
        assert len({matcher.is_terminated for matcher in matchers}) == 1


def _all_accept(matchers: Sequence[Matcher], token_ids: Sequence[int]) -> int:
    counts = {matcher.accept(token_ids) for matcher in matchers}
    assert len(counts) == 1
    return counts.pop()
