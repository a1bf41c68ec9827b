"""llguidance behind the backend interface.

Owns: the tokenizer of one vocabulary, the translation of every kind for llguidance, the reading of its refusals.
Knows nothing about: other backends, sequences, the state of a sequence (``llguidance_matcher``).
Written against llguidance 1.9.1.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Sequence

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from maskd.backends import structural_tag
from maskd.backends.llguidance_matcher import LlguidanceGrammar, LlguidanceMatcher, address_of, first_lines
from maskd.backends.llguidance_schema import reads, with_guidance
from maskd.backends.sources import check_strict, check_text, json_options, read_choices, read_regex, read_resources
from maskd.backends.structural_tag_lark import lark_string
from maskd.backends.watching.matcher import WatchedGrammar, WatchedMatcher
from maskd.backends.watching.tokens import WatchTokens
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.errors import (
    BackendError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
    VocabularyError,
)
from maskd.grammar import GrammarReport, GrammarSpec, Unenforced
from maskd.json_schema import strict_json
from maskd.json_schema.compiler.compiler import compile_schema
from maskd.json_schema.compiler.watch import WatchedPlace
from maskd.json_schema.strict_json import Json
from maskd.regular import lark
from maskd.vocabulary import Vocabulary

__all__ = ["create"]

_OPTIONS = {"name": "maskd_options", "lark_grammar": '%llguidance {"no_forcing": true}\nstart: "x"'}
"""A grammar that no other refers to, added for its options: options hold for the whole list of grammars.

Without it llguidance would allow only the canonical tokens of forced text. With it rows are complete for every kind,
and no grammar of a client can undo that."""

# Resident memory of 939 schemas, divided, by the length of their Lark: 340 characters 40 kB, 1.5 k 170 kB, 9 k 420 kB,
# 41 k 1,330 kB (Tekken, llguidance 1.9.1).
_MEMORY_BYTES, _MEMORY_FACTOR = 96 << 10, 32

_QUICK_SECONDS = 0.5
"""A grammar that compiles in less time is compiled again where a matcher needs another lexer; the data path waits."""
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)

_LIBRARY = (
    "llguidance's own reading of the schema is used, which takes properties in the order of the schema, "
    "and a name again if it is written with escapes"
)

_TOKEN_BYTES, _TRIE_NODES = 1 << 10, (1 << 22) - 1
"""Limits of the trie that llguidance builds from a vocabulary; it panics beyond them (toktrie, ``PARENT_BITS``)."""


def create(vocabulary: Vocabulary, *, threads: int) -> LlguidanceBackend:
    """Returns the backend for ``vocabulary``. ``threads`` is not used: one thread is faster than llguidance's pool.

    Masks are cached for each lexer state, so most rows cost 1–2 µs. ``LLExecutor`` adds 80 µs a batch (2 noisy cores,
    Tekken).
    """
    return LlguidanceBackend(vocabulary)


@dataclasses.dataclass(slots=True)
class _Notes:
    """What a compile says about a grammar.

    Attributes:
        unenforced, warnings: for the report.
        watch: what must be watched beside the grammar; None = nothing.
        refusal: why our own compiler did not do a schema that the library may do.
    """

    unenforced: list[Unenforced] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    watch: WatchedPlace | None = None
    refusal: GrammarError | None = None


class _Tokenizer:
    """The vocabulary as LLTokenizer wants it, padded to whole rows.

    llguidance marks special tokens, so that they never match text.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        self.tokens = list(vocabulary.tokens) + [b""] * (width - len(vocabulary.tokens))
        self.special_token_ids = list(vocabulary.special_token_ids)
        self.eos_token_id = vocabulary.stop_token_ids[0]

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("forcing is off, so nothing is ever tokenized")


class LlguidanceBackend:
    """llguidance for one vocabulary. Thread-safe: the tokenizer is immutable, and roots are only copied."""

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._watch_tokens = WatchTokens(vocabulary)
        self._width = 32 * row_stride_words(vocabulary.vocab_size)
        # A Lark grammar can name every id, as ``<[*]>`` does, and llguidance would accept padding for it.
        self._never_text = frozenset((*vocabulary.stop_token_ids, *range(len(vocabulary.tokens), self._width)))
        try:
            self._tokenizer = llguidance.LLTokenizer(
                _Tokenizer(vocabulary, self._width), eos_token=list(vocabulary.stop_token_ids)
            )
        except BaseException as error:  # a panic of Rust is not an Exception
            if type(error).__name__ != "PanicException":
                raise
            raise _too_large(vocabulary) from None

    def compile(self, spec: GrammarSpec) -> LlguidanceGrammar | WatchedGrammar:
        """See ``Backend.compile``."""
        check_text(spec)
        notes = _Notes()
        text = json.dumps({"grammars": [*self._grammars(spec, notes), _OPTIONS]})
        make_root = functools.partial(llguidance.LLMatcher, self._tokenizer, text, log_level=0, limits=_LIMITS)
        started = time.thread_time()  # of this thread: time spent waiting for a core says nothing
        root = make_root()
        seconds = time.thread_time() - started
        if root.is_error():
            raise notes.refusal or _refusal(spec, root.get_error())
        report = GrammarReport(
            self.name,
            "asked for",
            tuple(dict.fromkeys(notes.unenforced)),
            tuple(dict.fromkeys((*notes.warnings, *map(first_lines, root.get_grammar_warnings())))),
            _MEMORY_BYTES + _MEMORY_FACTOR * len(text),
        )
        grammar = LlguidanceGrammar(
            root,
            make_root,
            report,
            self._vocabulary,
            spec.options.stop_token_ids,
            self._never_text,
            names_ids="<[" in text,
            is_quick=seconds < _QUICK_SECONDS,
        )
        row: NDArray[np.int32] = np.zeros(self._width // 32, dtype=np.int32)
        try:
            grammar.matcher().fill_bitmask(row)
        except BackendError as error:
            if "NoExtension" in error.message:
                raise GrammarUnsatisfiableError(
                    f"nothing can match this {spec.kind}: llguidance allows no first token; "
                    "check for rules that need themselves"
                ) from None
            raise GrammarTooLargeError(
                f"the {spec.kind} is too large for llguidance at its first token: {error.message}; simplify it"
            ) from None
        grammar.canary = next(
            (int(token_id) for token_id in allowed_token_ids(row) if int(token_id) not in grammar.not_text), None
        )
        return grammar if notes.watch is None else WatchedGrammar(grammar, notes.watch, self._watch_tokens)

    def _grammars(self, spec: GrammarSpec, notes: _Notes) -> list[dict[str, object]]:
        """Returns ``spec`` as llguidance takes it: the main grammar, and those that it refers to."""
        if spec.kind == "json_schema":
            return [self._schema(strict_json.loads(spec.source, "the schema"), spec, notes)]
        if spec.kind == "json_object":  # any object: further properties are not forbidden
            options = dataclasses.replace(spec.options, additional_properties="allow")
            return [self._schema({"type": "object"}, dataclasses.replace(spec, options=options), notes)]
        if spec.kind == "regex":
            return [{"lark_grammar": f"start: TEXT\nTEXT: {lark_of_regex(spec.source)}"}]
        if spec.kind == "choice":
            return [{"lark_grammar": "start: " + " | ".join(map(lark_string, read_choices(spec.source)))}]
        if spec.kind == "ebnf":
            return [{"lark_grammar": lark_of_gbnf(spec.source)}]
        if spec.kind == "lark":
            return [{"lark_grammar": spec.source}]
        tag = structural_tag.parse(spec.source, self._vocabulary)
        return tag.for_llguidance(
            lambda value, pointer, most: self._schema(value, spec, notes, pointer, most), lark_of_regex, lark_of_gbnf
        )

    def _schema(
        self, value: Json, spec: GrammarSpec, notes: _Notes, pointer: str = "", max_whitespace: int | None = None
    ) -> dict[str, object]:
        """Returns the grammar of the schema ``value``: of our own compiler, or where that refuses, the library's.

        ``max_whitespace``: instead of that of the options.
        """
        options = spec.options
        if max_whitespace is not None:
            options = dataclasses.replace(options, max_whitespace=max_whitespace)
        item_separator, key_separator = json_options(options)
        try:
            compiled = compile_schema(value, options, resources=read_resources(spec), pointer=pointer)
            check_strict(compiled.unenforced, options, self.name)
            if compiled.watch is not None and spec.kind == "structural_tag":
                raise GrammarUnsupportedError(
                    "in a structural tag, neither uniqueItems over many values is done, nor a count of members with "
                    "keys that may be equal, nor more required names than 63; use the kind json_schema",
                    pointer=pointer,
                )
        except (GrammarUnsupportedError, GrammarTooLargeError) as refusal:
            if not reads(value, options):
                raise
            notes.refusal = refusal
            notes.warnings.append(f"{_LIBRARY}: {refusal.message}")
            return {"json_schema": with_guidance(value, options, item_separator, key_separator)}
        notes.unenforced.extend(compiled.unenforced)
        notes.watch = compiled.watch
        return {"lark_grammar": compiled.lark}

    def fill_bitmasks(
        self, matchers: Sequence[LlguidanceMatcher | WatchedMatcher], rows: NDArray[np.int32], indices: Sequence[int]
    ) -> None:
        """See ``BatchFill.fill_bitmasks``. Uses one thread, and looks up the address of the rows once."""
        address, stride = address_of(rows), rows.strides[0]
        for matcher, index in zip(matchers, indices, strict=True):
            if isinstance(matcher, LlguidanceMatcher):
                matcher.fill_at(address + index * stride, rows[index])
            else:
                matcher.fill_bitmask(rows[index])


def _too_large(vocabulary: Vocabulary) -> VocabularyError:
    """Returns the error for a vocabulary that the library cannot hold."""
    token_id = max(range(len(vocabulary.tokens)), key=lambda number: len(vocabulary.tokens[number]))
    size = len(vocabulary.tokens[token_id])
    metadata: dict[str, object]
    if size > _TOKEN_BYTES:
        reason = (
            f"token {token_id} has {size} bytes, and no token may have more than {_TOKEN_BYTES} "
            "beyond what it shares with another one; leave it out"
        )
        metadata = {"limit": "token_bytes", "value": _TOKEN_BYTES, "token_id": token_id}
    else:
        reason = f"its tokens have more than {_TRIE_NODES} prefixes together; use fewer or shorter tokens"
        metadata = {"limit": "trie_nodes", "value": _TRIE_NODES}
    return VocabularyError(
        f"llguidance cannot hold the vocabulary: {reason}, or leave llguidance out of backends",
        backend="llguidance",
        **metadata,
    )


def lark_of_regex(pattern: str, pointer: str | None = None) -> str:
    """Returns a regex as the right side of a terminal. ``pointer``: where it stands. Raises as ``read_regex`` does."""
    return lark.as_text(read_regex(pattern, pointer))


def lark_of_gbnf(source: str) -> str:
    """Returns a GBNF grammar as Lark. Raises GrammarError with the position of a mistake."""
    try:
        return str(gbnf_to_lark(source))
    except RecursionError:
        raise GrammarTooLargeError(
            "the ebnf is nested too deeply for llguidance; make it flatter", limit="depth"
        ) from None
    except Exception as error:  # the translator's errors have no base class of their own
        raise GrammarError(f"llguidance cannot read the ebnf: {first_lines(str(error))}") from None


_UNSUPPORTED = (
    "not supported",
    "unknown special token",
    "not disjoint",
    "only supported",
    "Unimplemented",
    "Unknown format",
    "circular references",
)
_LIMITS_HIT = ("limit", "too large", "too complex", "fuel", "exceeded", "too many", "too big")


def _refusal(spec: GrammarSpec, message: str) -> GrammarError:
    text = first_lines(message)
    position = re.match(r"at (\d+)\((\d+)\):", text)
    metadata = {"line": position[1], "column": position[2]} if position and spec.kind == "lark" else {}
    refusal = f"llguidance refuses the {spec.kind}: {text}"
    if "Unsatisfiable schema" in message:
        return GrammarUnsatisfiableError(refusal)
    if any(sign in message for sign in _UNSUPPORTED):
        return GrammarUnsupportedError(refusal, backends="xgrammar" if spec.kind == "json_schema" else None, **metadata)
    if any(sign in message for sign in _LIMITS_HIT):
        return GrammarTooLargeError(refusal, **metadata)
    # The schema passed our own checks, so llguidance cannot do it.
    return (
        GrammarUnsupportedError(refusal, backends="xgrammar")
        if spec.kind == "json_schema"
        else GrammarError(refusal, **metadata)
    )
