"""What the oracle decodes: vocabularies with everything odd that a vocabulary may have, and grammars of every kind for
them."""

from __future__ import annotations

import dataclasses
import functools
import json

from maskd.grammar import GrammarOptions, GrammarSpec, ReasoningGate, WhenSlow
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary
from tests.bench.workload import SCHEMA, TEKKEN
from tests.conftest import byte_vocabulary

__all__ = ["VOCABULARIES", "grammars", "vocabulary"]

VOCABULARIES = ("bytes", "bundled", "tekken")
BUNDLED = "engine_adapter/bundled"
_SMALL_SCHEMA = (
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["Paris","London"]}},"required":["a","b"]}'
)
_TREE = json.dumps(
    {
        "$defs": {
            "t": {
                "type": "object",
                "properties": {"v": {"type": "string"}, "t": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
            }
        },
        "$ref": "#/$defs/t",
    }
)
_DIFFERENT = json.dumps({
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    "required": ["a"],
    "maxProperties": 3,
})  # fmt: skip
"""What the grammar cannot hold is watched beside it on llguidance."""
_WORD = {"type": "regex", "pattern": "[a-z]{0,9}"}
_TOKEN_TAG = json.dumps(
    {
        "type": "sequence",
        "elements": [
            {"type": "tag", "begin": {"type": "token", "token": "<tool>"}, "content": _WORD, "end": "</t>"},
            {"type": "any_text"},
        ],
    }
)
_TAG = (
    '{"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f="],"tags":[{"begin":"<f=a>","content":'
    '{"type":"json_schema","json_schema":{"type":"integer"}},"end":"</f>"}]}}'
)


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """Returns a vocabulary with tokens without bytes, special tokens, two stop tokens, padding up to its vocab_size,
    and no way to say "~"."""
    if name == "bytes":
        plain = byte_vocabulary(
            words=(b"Paris", b"London", b'":', b'{"', b"true", b"null", b" is ", b"", b"bc", b"aa", b"  ", b'",', b"")
        )
    elif name == "bundled":
        plain = load_vocabulary(BUNDLED)
    else:
        plain = load_vocabulary(str(TEKKEN))
    tokens = [*(b"" if b"~" in token else token for token in plain.tokens), b"", b"<tool>", b"<end>"]
    stops, special = (
        (*plain.stop_token_ids, len(tokens) - 1),
        (*plain.special_token_ids, len(tokens) - 2, len(tokens) - 1),
    )
    return Vocabulary(tokens, len(tokens) + 45, stops, special, name)


def grammars(of: Vocabulary) -> list[GrammarSpec]:
    """Returns specs for ``of``: each kind on each backend, with gates, other stop tokens, and every ``when_slow``."""
    special = of.special_token_ids[-2]
    letters = [of.tokens.index(bytes([letter])) for letter in b"abcdx"]
    kinds = [
        GrammarSpec("json_schema", _SMALL_SCHEMA),
        GrammarSpec("json_schema", SCHEMA),
        GrammarSpec("json_schema", _TREE),
        GrammarSpec("json_object"),
        GrammarSpec("json_object", options=GrammarOptions(max_whitespace=1)),
        GrammarSpec("regex", "(Paris|London)( is (true|null))*"),
        GrammarSpec("regex", "[a-z ]{0,80}"),
        GrammarSpec("regex", r"(\w+ ){0,30}[^a]*"),
        GrammarSpec("choice", '["Paris", "Paris is", "London", "bcbc", "\u00fcber"]'),
        GrammarSpec("ebnf", 'root ::= root root | "a" | "b" "c"'),
        GrammarSpec("ebnf", 'root ::= "a" root "b" | "a" root | "a"'),
        GrammarSpec("ebnf", 'root ::= "a" tail\ntail ::= [0-9]+ | "(" root ")" tail?'),
        GrammarSpec("structural_tag", _TAG),
        GrammarSpec("structural_tag", _TOKEN_TAG),
        GrammarSpec("lark", 'start: "a" TAIL ("," TAIL)*\nTAIL: /[0-9]+|ab?c/'),
        GrammarSpec("regex", "(ab~|ac|b)*"),
        GrammarSpec("json_schema", _DIFFERENT),
    ]
    gates = [
        ReasoningGate((letters[0], letters[1], letters[0], letters[1], letters[4])),
        ReasoningGate((special,), max_tokens=12),
        ReasoningGate((letters[2], letters[2]), max_tokens=0),
        ReasoningGate((letters[0], letters[0], letters[1])),
    ]
    stops = [
        GrammarOptions(stop_token_ids=(special,)),
        GrammarOptions(stop_token_ids=(letters[3], of.stop_token_ids[0])),
    ]
    specs = []
    slow: tuple[WhenSlow, ...] = ("wait", "fail", "switch", "wait", "switch")
    for number, backend in enumerate(("llguidance", "xgrammar")):
        on_it = [dataclasses.replace(spec, backend=backend) for spec in kinds]
        specs += [dataclasses.replace(spec, when_slow=slow[(i + number) % 5]) for i, spec in enumerate(on_it)]
        for i, gate in enumerate(gates):
            specs.append(dataclasses.replace(on_it[(3 * i + number) % len(on_it)], reasoning=gate))
            specs.append(
                dataclasses.replace(
                    on_it[5 + i], reasoning=gate, options=stops[i % 2], when_slow=("wait", "switch")[i % 2]
                )
            )
        specs += [dataclasses.replace(on_it[i], options=stops[i % 2]) for i in (0, 5, 6, 7)]
    return [*specs, GrammarSpec("regex", "(a|bc)*d?", backend="auto"), dataclasses.replace(kinds[3], backend="auto")]
