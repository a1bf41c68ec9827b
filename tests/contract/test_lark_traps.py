"""Traps of llguidance's Lark that the compiler of JSON schemas steps around, each as it is in llguidance 1.9.1.

A test that fails says that a new version mends its trap, and what can then go from the compiler.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llguidance
import numpy as np
import pytest

from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.compiler import compile_schema
from tests.lark import Tokens, matcher_of_lark

ROOT = Path(__file__).resolve().parents[2]
COMPLETE = '%llguidance {"no_forcing": true}\n'
COUNTS = """
start: a::0
a::_: b::incr([0:2])%s
b::_: "none" %%if lt([0:2],1)
 | "one" %%if ge([0:2],1)
"""
RECURSION = """
start: a::0
a::_: "x" h::_ %if lt([0:2],2)
 | "." %if ge([0:2],2)
h::_: {helper}
"""


def takes(grammar: str, text: str | bytes) -> bool:
    """Whether ``grammar`` takes ``text`` and may stop there."""
    matcher = matcher_of_lark(grammar)
    tokens = list(text.encode() if isinstance(text, str) else text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


def test_incr_when_its_alternative_is_one_symbol_without_a_condition_then_lost() -> None:
    """What the rule counts is forgotten, so the wrong alternative is taken. Any condition keeps the count."""
    assert [takes(COUNTS % "", text) for text in ("none", "one")] == [True, False], (
        "llguidance keeps the parameter now: _ALWAYS may go from json_schema/compiler/rules.py"
    )
    assert [takes(COUNTS % " %if le([0:1],1)", text) for text in ("none", "one")] == [False, True]


def test_incr_when_the_compiler_writes_it_then_every_alternative_has_a_condition() -> None:
    """The compiler leaves no alternative of a parametric rule without a condition."""
    schema = {"minProperties": 2, "maxProperties": 3, "contains": {"const": 1}, "minContains": 2, "maxContains": 3}
    rules = compile_schema(schema, GrammarOptions()).lark.splitlines()
    heads = [index for index, line in enumerate(rules) if "::_: " in line]
    assert heads
    for head in heads:
        end = next((index for index in range(head + 1, len(rules)) if not rules[index].startswith(" | ")), len(rules))
        assert all(" %if " in line for line in rules[head:end]), rules[head:end]


def test_recursion_when_it_changes_the_parameter_and_is_all_of_a_helper_then_llguidance_panics() -> None:
    """In a process of its own: a panic may end it. A symbol beside the recursion, in the helper, avoids it."""
    alone, beside = (
        RECURSION.format(helper="a::incr([0:2]) %if le([0:1],1)"),
        RECURSION.replace('"x" h', "h").format(helper='"x" a::incr([0:2]) %if le([0:1],1)'),
    )
    script = "import sys; from tests.contract.test_lark_traps import takes; print(takes(sys.argv[1], 'xx.'))"
    found = [
        subprocess.run(
            [sys.executable, "-c", script, COMPLETE + grammar],
            capture_output=True,
            check=False,
            cwd=ROOT,
            text=True,
            timeout=60,
        )
        for grammar in (alone, beside)
    ]
    assert found[0].stdout.strip() != "True", (
        "llguidance does not panic any more: the helpers in Rules.changed of json_schema/compiler/rules.py may stand "
        "behind the symbols"
    )
    assert "panic" in found[0].stderr
    assert found[1].stdout.strip() == "True", found[1].stderr


def test_forced_text_when_forcing_is_on_then_one_tokenization_only() -> None:
    """A row then lacks tokens that the grammar allows, so every grammar of the compiler says ``no_forcing``."""

    class Longer(Tokens):
        tokens = (*Tokens.tokens, b"ab")

        def __call__(self, text: bytes | str) -> list[int]:
            return [257] if text in (b"ab", "ab") else super().__call__(text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Longer()))
    rows = [
        np.frombuffer(llguidance.LLMatcher(tokenizer, head + 'start: "ab"').compute_logit_bias(), dtype=np.uint8)
        for head in ("", COMPLETE)
    ]
    assert np.flatnonzero(rows[0]).tolist() == [257], "llguidance offers every tokenization: no_forcing may go"
    assert np.flatnonzero(rows[1]).tolist() == [ord("a"), 257]
    assert compile_schema({"const": "ab"}, GrammarOptions()).lark.startswith(COMPLETE)


@pytest.mark.parametrize("text", [b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_complement_when_it_stands_alone_then_holds_what_is_no_utf_8(text: bytes) -> None:
    """Regular expressions hold well-formed UTF-8 only, so the compiler takes a complement from one of those."""
    assert takes("start: T\nT: ~(/b/)", text), (
        "llguidance's ~ is about UTF-8 now: the universe in regular/lark.py may go"
    )
    assert not takes("start: T\nT: /(?s:.)*/ & ~(/b/)", text)
    assert takes("start: T\nT: /(?s:.)*/ & ~(/b/)", "é")


def test_parentheses_when_they_nest_29_deep_then_refused() -> None:
    """Rules and terminals share the limit."""
    for grammar in ("start: %s", "start: T\nT: %s"):
        assert takes(grammar % ("(" * 28 + '"x"' + ")" * 28), "x")
        with pytest.raises(AssertionError, match="too deeply nested"):
            takes(grammar % ("(" * 29 + '"x"' + ")" * 29), "x")


def test_conditions_when_they_nest_deep_then_taken() -> None:
    """Conditions on parameters have no such limit."""
    condition = "bit_clear(0)"
    for _ in range(500):
        condition = f"and({condition},bit_clear(1))"
    assert takes(f'start: a::0\na::_: "x" %if {condition}', "x")
