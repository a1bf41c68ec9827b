"""llguidance behind the backend interface.

Owns: the tokenizer of one vocabulary, the translation of every kind to llguidance's grammar list, and what hides its
habits: forced tokenization, matchers that die of a refused or a failed token, stop tokens that do not always count.
Knows nothing about: other backends, sequences, rows beyond the one it is given.
Written against llguidance 1.9.1.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import Any, cast

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from maskd.backends import structural_tag
from maskd.backends.sources import WHITESPACE, check_text, json_options, read_choices, read_schema
from maskd.backends.structural_tag_lark import lark_string
from maskd.bitmask import row_stride_words
from maskd.errors import (
    BackendError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
    VocabularyError,
)
from maskd.grammar import GrammarOptions, GrammarReport, GrammarSpec
from maskd.schema import JsonSchema, parse_schema
from maskd.schema_enforcement import NAMES_AGAIN, may_name_again
from maskd.vocabulary import Vocabulary

__all__ = ["create"]

_OPTIONS = {"name": "maskd_options", "lark_grammar": '%llguidance {"no_forcing": true}\nstart: "x"'}
"""A grammar that nothing refers to. Options hold for the whole list, so this makes rows complete for every kind, where
llguidance would allow only the canonical tokens of forced text, and no grammar of a user can undo it."""

# Resident memory of 1,010 compiled schemas of 0.1 to 36 kB, divided: 117 to 186 kB each (Tekken, llguidance 1.9.1).
_MEMORY_BYTES, _MEMORY_FACTOR = 128 << 10, 4

_LIMITS = llguidance.LLParserLimits(verbose_errors=False)

_TOKEN_BYTES, _TRIE_NODES = 1 << 10, (1 << 22) - 1
"""Limits of the trie that llguidance makes of a vocabulary; it panics beyond them (toktrie, ``PARENT_BITS``)."""


def create(vocabulary: Vocabulary, *, threads: int) -> LlguidanceBackend:
    """Returns the backend for ``vocabulary``. ``threads`` is not used: its thread pool loses against one thread.

    Masks are cached per lexer state, so most rows cost 1–2 µs; ``LLExecutor`` adds 80 µs a batch (2 noisy cores, Tekken).
    """
    return LlguidanceBackend(vocabulary)


class _Tokenizer:
    """What LLTokenizer asks for. Padded to whole rows; llguidance marks special tokens so that they never match text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        self.tokens = list(vocabulary.tokens) + [b""] * (width - len(vocabulary.tokens))
        self.special_token_ids = list(vocabulary.special_token_ids)
        self.eos_token_id = vocabulary.stop_token_ids[0]

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("forcing is off, so nothing is ever tokenized")


class LlguidanceMatcher:
    """The state of one sequence. See ``Matcher``.

    The native matcher never sees a stop token: it would record it in some states and not in others. Its end-of-sequence
    bits say whether the text is a complete match, and the matcher keeps the stop token itself.
    """

    __slots__ = ("_careful", "_grammar", "_history", "_native", "_not_text", "_overrides_stop", "is_terminated")

    def __init__(self, grammar: LlguidanceGrammar, native: Any, history: list[int], is_terminated: bool) -> None:
        self._grammar = grammar
        self._native = native
        self._not_text = grammar.not_text
        self._history = history  # to stand again where it stood after a failed fill, which kills the native matcher
        self._overrides_stop = grammar.overrides_stop
        self._careful = False
        self.is_terminated = is_terminated

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        self._fill(_address(row), row)

    def _fill(self, address: int, row: NDArray[np.int32]) -> None:
        native = self._native
        native.unsafe_compute_mask_ptr(address, row.nbytes)
        if native.is_error():  # the row then says "stop", which is not true
            message = _short(native.get_error())
            self._revive()
            raise BackendError(f"llguidance cannot fill a row: {message}")
        if self._overrides_stop:
            self._grammar.override_stop_bits(row)

    def _revive(self) -> None:
        self._native = self._grammar.native()
        self._native.try_consume_tokens(self._history)

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """See ``Advance.advance``.

        ``consume_token`` does not try a token before it takes it, and dies of a refused one. That takes a replay of the
        history, so it is risked only until the first time.
        """
        if token_id in self._not_text or self.is_terminated or self._careful:
            return 0
        native = self._native
        if native.consume_token(token_id):
            if self._overrides_stop:
                self._history.append(token_id)
                return 1
            native.unsafe_compute_mask_ptr(row_address, row_bytes)
            if not native.is_error():
                self._history.append(token_id)
                return 2
        self._careful = True
        self._revive()
        return 0

    def accept(self, token_ids: Sequence[int]) -> int:
        """See ``Matcher.accept``."""
        if self.is_terminated:
            return 0
        text = token_ids
        for index, token_id in enumerate(token_ids):
            if token_id in self._not_text:
                text = token_ids[:index]
                break
        accepted: int = 0
        if text:
            accepted = self._native.try_consume_tokens(text)
            if accepted < len(text):
                if self._native.is_error():
                    raise BackendError(f"llguidance failed on a token: {_short(self._native.get_error())}")
                self._history.extend(text[:accepted])
                return accepted
            self._history.extend(text)
        if len(text) < len(token_ids) and token_ids[len(text)] in self._grammar.stop_token_ids and self._native.is_accepting():
            self.is_terminated = True
            return accepted + 1
        return accepted

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        if token_count and self.is_terminated:
            self.is_terminated = False
            token_count -= 1
        if token_count:
            self._native.rollback(token_count)
            del self._history[-token_count:]

    def fork(self) -> LlguidanceMatcher:
        """See ``Matcher.fork``."""
        return LlguidanceMatcher(self._grammar, self._native.deep_copy(), self._history.copy(), self.is_terminated)


class LlguidanceGrammar:
    """A compiled grammar: a native matcher at the start, of which every other is a copy. See ``Grammar``."""

    def __init__(self, template: Any, report: GrammarReport, vocabulary: Vocabulary, stop_token_ids: Sequence[int]) -> None:
        self._template = template
        self.report = report
        self.stop_token_ids = frozenset(stop_token_ids or vocabulary.stop_token_ids)
        self.not_text = self.stop_token_ids.union(vocabulary.stop_token_ids)
        self.overrides_stop = self.stop_token_ids != frozenset(vocabulary.stop_token_ids)
        self._default_stop = tuple((token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in vocabulary.stop_token_ids)
        self._new_stop = tuple((token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in self.stop_token_ids)

    def native(self) -> Any:
        """Returns a new native matcher at the start."""
        return self._template.deep_copy()

    def matcher(self) -> LlguidanceMatcher:
        """See ``Grammar.matcher``."""
        return LlguidanceMatcher(self, self.native(), [], False)

    def override_stop_bits(self, row: NDArray[np.int32]) -> None:
        """Moves the stop permission of ``row`` from the vocabulary's stop tokens to this grammar's; they never match text."""
        words = row.view(np.uint32)
        word, bit = self._default_stop[0]
        may_stop = bool(words[word] & bit)
        for word, bit in self._default_stop + self._new_stop:
            words[word] &= ~bit
        if may_stop:
            for word, bit in self._new_stop:
                words[word] |= bit


class LlguidanceBackend:
    """llguidance for one vocabulary. Thread-safe: the tokenizer is immutable, a template is only copied."""

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._width = 32 * row_stride_words(vocabulary.vocab_size)
        try:
            self._tokenizer = llguidance.LLTokenizer(_Tokenizer(vocabulary, self._width), eos_token=list(vocabulary.stop_token_ids))
        except BaseException as error:  # a panic of Rust is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise _too_large(vocabulary) from None

    def compile(self, spec: GrammarSpec) -> LlguidanceGrammar:
        """See ``Backend.compile``."""
        check_text(spec)
        warnings: list[str] = []
        text = json.dumps({"grammars": [*self._grammars(spec, warnings), _OPTIONS]})
        template = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=_LIMITS)
        if template.is_error():
            raise _refusal(spec, template.get_error())
        warnings.extend(map(_short, template.get_grammar_warnings()))
        report = GrammarReport(self.name, "asked for", (), tuple(dict.fromkeys(warnings)), _MEMORY_BYTES + _MEMORY_FACTOR * len(text))
        grammar = LlguidanceGrammar(template, report, self._vocabulary, spec.options.stop_token_ids)
        try:
            grammar.matcher().fill_bitmask(np.zeros(self._width // 32, dtype=np.int32))
        except BackendError as error:
            if "NoExtension" in error.message:
                raise GrammarUnsatisfiableError(
                    f"nothing can match this {spec.kind}: llguidance allows no first token; check for rules that need themselves"
                ) from None
            raise GrammarTooLargeError(
                f"the {spec.kind} is too large for llguidance at its first token: {error.message}; simplify it"
            ) from None
        return grammar

    def _grammars(self, spec: GrammarSpec, warnings: list[str]) -> list[dict[str, object]]:

        def for_library(schema: JsonSchema, options: GrammarOptions) -> Any:
            if may_name_again(schema):
                warnings.append(NAMES_AGAIN)
            return with_options(schema.value, options)

        if spec.kind in ("json_schema", "json_object"):
            return [{"json_schema": for_library(read_schema(spec), spec.options)}]
        if spec.kind == "regex":
            return [{"lark_grammar": f"start: /{regex_body(spec.source)}/"}]
        if spec.kind == "choice":
            return [{"lark_grammar": "start: " + " | ".join(map(lark_string, read_choices(spec.source)))}]
        if spec.kind == "ebnf":
            return [{"lark_grammar": lark_of_gbnf(spec.source)}]
        if spec.kind == "lark":
            _check_lark(spec.source)
            return [{"lark_grammar": spec.source}]
        tag = structural_tag.parse(spec.source, self._vocabulary)

        def schema_of(value: object, pointer: str, max_whitespace: int | None) -> object:
            options = spec.options if max_whitespace is None else dataclasses.replace(spec.options, max_whitespace=max_whitespace)
            return for_library(parse_schema(value, spec.options, pointer=pointer), options)

        return tag.for_llguidance(schema_of, regex_body, lark_of_gbnf)

    def fill_bitmasks(self, matchers: Sequence[LlguidanceMatcher], rows: NDArray[np.int32], indices: Sequence[int]) -> None:
        """See ``BatchFill.fill_bitmasks``. One thread; saves looking up the address of each row."""
        address, stride = _address(rows), rows.strides[0]
        for matcher, index in zip(matchers, indices, strict=True):
            matcher._fill(address + index * stride, rows[index])


def _too_large(vocabulary: Vocabulary) -> VocabularyError:
    """Returns the error of a vocabulary that the library cannot hold."""
    token_id = max(range(len(vocabulary.tokens)), key=lambda number: len(vocabulary.tokens[number]))
    size = len(vocabulary.tokens[token_id])
    if size > _TOKEN_BYTES:
        return VocabularyError(
            f"llguidance cannot hold the vocabulary: token {token_id} has {size} bytes, and no token may have more than {_TOKEN_BYTES} "
            "beyond what it shares with another one; leave it out, or leave llguidance out of backends",
            limit="token_bytes", value=_TOKEN_BYTES, token_id=token_id, backend="llguidance",
        )  # fmt: skip
    return VocabularyError(
        f"llguidance cannot hold the vocabulary: its tokens have more than {_TRIE_NODES} prefixes together; use fewer or shorter tokens, "
        "or leave llguidance out of backends",
        limit="trie_nodes", value=_TRIE_NODES, backend="llguidance",
    )  # fmt: skip


def _address(array: NDArray[np.int32]) -> int:
    """Returns where the data are: 0.3 µs, where ``array.ctypes.data`` takes 0.9 µs."""
    return addressof(c_char.from_buffer(cast("memoryview", array)))


def with_options(schema: Any, options: GrammarOptions) -> Any:
    """Returns ``schema`` with llguidance's options in it; options that the schema brought along are overridden."""
    item_separator, key_separator = json_options(options)
    white = re.escape(WHITESPACE)
    given: dict[str, object] = {"item_separator": re.escape(item_separator), "key_separator": re.escape(key_separator)}
    if options.max_whitespace == 0:
        given["whitespace_flexible"] = False
    elif options.max_whitespace is not None:
        given["whitespace_pattern"] = f"[{white}]{{1,{options.max_whitespace}}}"
    return {**(schema if isinstance(schema, dict) else {}), "x-guidance": given}


def regex_body(pattern: str) -> str:
    """Returns ``pattern`` as it stands between two slashes in Lark; classes such as ``\\d`` mean ASCII, as in xgrammar."""
    return str(llguidance.regex_to_lark(pattern, "dws"))


def lark_of_gbnf(source: str) -> str:
    """Returns a GBNF grammar as Lark. Raises GrammarError with the position of a mistake."""
    try:
        return str(gbnf_to_lark(source))
    except RecursionError:
        raise GrammarTooLargeError("the ebnf is nested too deeply for llguidance; make it flatter", limit="depth") from None
    except Exception as error:  # the translator has no base class of its own
        raise GrammarError(f"llguidance cannot read the ebnf: {_short(str(error))}") from None


def _check_lark(source: str) -> None:
    if re.search(r"\bmax_tokens\s*=", source):
        raise GrammarUnsupportedError(
            "llguidance cannot roll back in a grammar with max_tokens; use xgrammar, or limit the text itself", backends="xgrammar"
        )


def _short(message: str) -> str:
    """Returns the first lines of what the library says; the rest repeats the grammar."""
    lines = [line.strip() for line in message.replace("<non-verbose/>", "").strip().splitlines()]
    picked = [lines[0], *[line for line in lines[1:] if line.startswith("error:")]] if lines else ["no reason given"]
    return "; ".join(picked)[:300]


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
    text = _short(message)
    position = re.match(r"at (\d+)\((\d+)\):", text)
    metadata = {"line": position[1], "column": position[2]} if position and spec.kind == "lark" else {}
    refusal = f"llguidance refuses the {spec.kind}: {text}"
    if "Unsatisfiable schema" in message:
        return GrammarUnsatisfiableError(refusal)
    if any(sign in message for sign in _UNSUPPORTED):
        return GrammarUnsupportedError(refusal, backends="xgrammar" if spec.kind == "json_schema" else None, **metadata)
    if any(sign in message for sign in _LIMITS_HIT):
        return GrammarTooLargeError(refusal, **metadata)
    # The schema passed our own checks, so what is left is what llguidance cannot do.
    return GrammarUnsupportedError(refusal, backends="xgrammar") if spec.kind == "json_schema" else GrammarError(refusal, **metadata)
