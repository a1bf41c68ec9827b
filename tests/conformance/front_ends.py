"""Front ends of JSON Schema: our backends, and what the two libraries do by themselves.

Owns: how each is asked, with which settings. Knows nothing about: what is right.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import llguidance
import numpy as np
import xgrammar

from maskd import backends
from maskd.backends.auto import AutoBackend
from maskd.backends.base import Backend, Grammar
from maskd.errors import GrammarError, GrammarUnsatisfiableError, MaskdError
from maskd.grammar import GrammarOptions, GrammarSpec
from tests import byte_grammars
from tests.byte_grammars import STOP, VOCABULARY
from tests.lark import Tokens

__all__ = ["FRONT_ENDS", "OURS", "Compiled", "FrontEnd", "front_end"]

FRONT_ENDS = {
    "maskd": "maskd on llguidance",
    "maskd-auto": "maskd, `auto`",
    "maskd-xgrammar": "maskd on xgrammar",
    "llguidance": "llguidance's own",
    "xgrammar": "xgrammar's own",
}
OURS = frozenset(name for name in FRONT_ENDS if name.startswith("maskd"))


class Compiled(Protocol):
    """A grammar over the bytes.

    Attributes:
        unenforced: keywords that the front end says it does not enforce.
    """

    unenforced: Sequence[str]

    def takes(self, text: str) -> bool:
        """Whether every row allows the next byte of ``text``, and the last one its end."""


FrontEnd = Callable[[Any, bool], Compiled]
"""Compiles a schema, with formats asserted or not. Raises GrammarError."""


@dataclass(frozen=True)
class _Ours:
    grammar: Grammar
    unenforced: Sequence[str]

    def takes(self, text: str) -> bool:
        try:
            return byte_grammars.walked(self.grammar, text)
        except MaskdError:
            return False

    def walk(self, rng: random.Random) -> str | None:
        """Returns a random output; None if it did not end."""
        return byte_grammars.walk(self.grammar, rng)


@dataclass(frozen=True)
class _Llguidance:
    root: Any
    unenforced: Sequence[str] = ()

    def takes(self, text: str) -> bool:
        matcher = self.root.deep_copy()
        for token in (*text.encode(), STOP):
            if not matcher.compute_logit_bias()[token] or not matcher.consume_token(token):
                return False
        return True


@dataclass(frozen=True)
class _Xgrammar:
    grammar: Any
    unenforced: Sequence[str] = ()

    def takes(self, text: str) -> bool:
        matcher, row = xgrammar.GrammarMatcher(self.grammar), xgrammar.allocate_token_bitmask(1, VOCABULARY.vocab_size)
        for token in (*text.encode(), STOP):
            if matcher.fill_next_token_bitmask(row) and not byte_grammars.allows(row.numpy()[0].view(np.int32), token):
                return False
            if not matcher.accept_token(token):
                return False
        return True


def front_end(name: str, resources: Mapping[str, Any]) -> FrontEnd:
    """Returns the front end ``name``; ``resources`` are documents that references lead to, for those that take any."""
    if name == "llguidance":
        return _llguidance
    if name == "xgrammar":
        return _xgrammar
    library, xgrammar_backend = (backends.load(one)(VOCABULARY, threads=1) for one in ("llguidance", "xgrammar"))
    backend: Backend = {
        "maskd": library,
        "maskd-auto": AutoBackend([library, xgrammar_backend]),
        "maskd-xgrammar": xgrammar_backend,
    }[name]
    texts = {address: json.dumps(document) for address, document in resources.items()}

    def compile_here(schema: Any, asserts_formats: bool) -> Compiled:
        options = GrammarOptions(formats="assert" if asserts_formats else "annotate")
        spec = GrammarSpec("json_schema", json.dumps(schema), "auto", options=options, resources=texts)
        grammar = backend.compile(spec)
        return _Ours(grammar, [one.keyword for one in grammar.report.unenforced])

    return compile_here


@functools.cache
def _tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokens()))


def _llguidance(schema: Any, asserts_formats: bool) -> Compiled:
    """With its defaults. It always asserts formats."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    root = llguidance.LLMatcher(_tokenizer(), grammar, log_level=0)
    if root.is_error():
        message = root.get_error()
        raise GrammarUnsatisfiableError(message) if "Unsatisfiable" in message else GrammarError(message)
    return _Llguidance(root)


@functools.cache
def _compiler() -> Any:
    info = xgrammar.TokenizerInfo(
        list(VOCABULARY.tokens),
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=VOCABULARY.vocab_size,
        stop_token_ids=[STOP],
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _xgrammar(schema: Any, asserts_formats: bool) -> Compiled:
    """With its defaults but for ``strict_mode``, which would forbid what JSON Schema allows."""
    try:
        return _Xgrammar(_compiler().compile_json_schema(json.dumps(schema), strict_mode=False))
    except RuntimeError as error:
        raise GrammarError(str(error)) from None
