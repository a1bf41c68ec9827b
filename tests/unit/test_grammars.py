"""Specs by content; and the grammar cache: one compile for many waiters, bounded by bytes, no memory of failures."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import msgspec
import pytest

from maskd.errors import GrammarError, GrammarTimeoutError
from maskd.grammar import GrammarOptions, GrammarReport, GrammarSpec, ReasoningGate
from maskd.worker.grammar_cache import CompileOutcome, GrammarCache

MB = 1 << 20


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar of a certain size."""

    name: str
    memory_bytes: int = MB

    @property
    def report(self) -> GrammarReport:
        return GrammarReport("fake", "asked for", memory_bytes=self.memory_bytes)


def key(name: str) -> tuple[bytes, bytes]:
    return b"vocabulary", name.encode()


def put(cache: GrammarCache, name: str, size: int = MB) -> None:
    cache.request(key(name), lambda _: None)
    cache.finish(key(name), Grammar(name, size), 1.0)  # type: ignore[arg-type]


def test_request_when_many_wait_then_one_compile_answers_all() -> None:
    """The first request starts the compile, every waiter gets its outcome, and only the first one paid for it."""
    cache, answers = GrammarCache(10 * MB), list[CompileOutcome]()
    assert [cache.request(key("a"), answers.append) for _ in range(1000)] == [True] + [False] * 999
    assert answers == []
    grammar = Grammar("a")
    cache.finish(key("a"), grammar, 0.5)  # type: ignore[arg-type]
    assert {id(answer.grammar) for answer in answers} == {id(grammar)}
    assert [answer.cached for answer in answers] == [False] + [True] * 999
    assert cache.request(key("a"), answers.append) is False
    assert (answers[-1].cached, answers[-1].seconds) == (True, 0.0)


def test_request_when_the_compile_failed_then_all_waiters_hear_it_and_the_next_one_compiles_again() -> None:
    """A failure, a timeout above all, is not remembered."""
    for failure in (GrammarError("no"), GrammarTimeoutError("late")):
        cache, answers = GrammarCache(10 * MB), list[CompileOutcome]()
        cache.request(key("a"), answers.append)
        cache.request(key("a"), answers.append)
        cache.finish(key("a"), failure, 0.5)
        assert [answer.grammar for answer in answers] == [failure, failure]
        assert (len(cache), cache.bytes) == (0, 0)
        assert cache.request(key("a"), answers.append) is True


def test_finish_when_the_limit_is_passed_then_the_least_recently_used_go() -> None:
    """LRU by bytes: a use moves a grammar to the safe end."""
    cache = GrammarCache(3 * MB)
    for name in "abc":
        put(cache, name)
    assert cache.request(key("a"), lambda _: None) is False
    put(cache, "d")
    assert cache.request(key("b"), lambda _: None) is True
    assert [cache.request(key(name), lambda _: None) for name in "acd"] == [False] * 3
    assert (len(cache), cache.bytes) == (3, 3 * MB)


def test_finish_when_one_grammar_is_larger_than_the_limit_then_it_alone_is_kept() -> None:
    """It was just asked for; it goes with the next one."""
    cache = GrammarCache(3 * MB)
    for name in "ab":
        put(cache, name)
    put(cache, "huge", 100 * MB)
    assert (len(cache), cache.bytes) == (1, 100 * MB)
    put(cache, "c")
    assert (len(cache), cache.bytes) == (1, MB)


def test_finish_when_a_library_cannot_tell_its_size_then_the_cache_is_bounded_nevertheless() -> None:
    """A million grammars that say 0 bytes must not fill the machine."""
    cache = GrammarCache(10 * MB)
    for number in range(1000):
        put(cache, str(number), 0)
    assert 1 < len(cache) <= 10 * MB // (64 << 10)
    assert cache.bytes <= 10 * MB


def test_request_when_a_waiter_asks_again_in_its_answer_then_no_waiter_is_lost() -> None:
    """An answer may lead to the next request, for the same grammar or another."""
    cache, answers = GrammarCache(10 * MB), list[CompileOutcome]()

    def again(compiled: CompileOutcome) -> None:
        answers.append(compiled)
        cache.request(key("a"), answers.append)

    cache.request(key("a"), again)
    cache.request(key("a"), answers.append)
    cache.finish(key("a"), Grammar("a"), 1.0)  # type: ignore[arg-type]
    assert len(answers) == 3


def test_digest_when_what_is_compiled_differs_then_it_differs() -> None:
    """Kind, source, backend, resources and options are compiled; reasoning and when_slow are how sequences use it."""
    spec = GrammarSpec("regex", "a")
    others = [
        dataclasses.replace(spec, kind="ebnf"),
        dataclasses.replace(spec, source="b"),
        dataclasses.replace(spec, backend="xgrammar"),
        *(
            dataclasses.replace(spec, options=GrammarOptions(**{name: value}))  # type: ignore[arg-type]
            for name, value in (
                ("max_whitespace", 0), ("item_separator", ", "), ("key_separator", ": "),
                ("additional_properties", "forbid"), ("strict", True), ("stop_token_ids", (1,)),
                ("property_order", "schema"), ("formats", "annotate"),
            )
        ),
        dataclasses.replace(spec, resources={"http://example.com/a": "{}"}),
        dataclasses.replace(spec, resources={"http://example.com/a": "true"}),
    ]  # fmt: skip
    assert len(others) == 5 + len(dataclasses.fields(GrammarOptions))
    assert len({other.digest() for other in (spec, *others)}) == 1 + len(others)
    used = dataclasses.replace(spec, reasoning=ReasoningGate((1,)), when_slow="fail")
    assert used.digest() == spec.digest()


def test_digest_when_the_spec_is_sent_to_another_process_then_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hashing a long source costs the front and the data path time; once is enough. Equality does not see it."""
    spec = GrammarSpec("regex", "a")
    digest = spec.digest()
    assert spec == GrammarSpec("regex", "a")
    monkeypatch.delattr(hashlib, "sha256")
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=GrammarSpec)
    assert (spec.digest(), there.digest(), there) == (digest, digest, spec)
