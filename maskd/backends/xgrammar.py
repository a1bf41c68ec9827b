"""xgrammar behind the backend interface.

Owns: the tokenizer info and the compilers of one vocabulary. It hides two habits of xgrammar. Grammars that nothing
    matches have empty rows, and special tokens make lines on stderr.
Knows nothing about: other backends, sequences, rows beyond the one it is given.
Written against xgrammar 0.2.8. Native handles are called directly: one Python frame less for each sequence and step.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import xgrammar
from numpy.typing import NDArray

from maskd.backends import structural_tag
from maskd.backends.base import Grammar
from maskd.backends.sources import check_strict, check_text, json_options, read_choices, read_regex, read_resources
from maskd.bitmask import row_stride_words
from maskd.errors import (
    BackendError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
)
from maskd.grammar import GrammarOptions, GrammarReport, GrammarSpec, Unenforced
from maskd.json_schema import strict_json
from maskd.json_schema.compiler.compiler import compile_ebnf
from maskd.json_schema.strict_json import Json
from maskd.regular import ebnf
from maskd.vocabulary import Vocabulary

__all__ = ["create"]

NOT_UTF8 = "xgrammar lets through bytes that are not UTF-8 in the free text of a structural tag"
ORDERED = "xgrammar takes properties in the order of the schema only, further ones behind them"
_OWN_STYLE = "xgrammar reads a schema by itself for XML; any part of it may not be enforced"

# A thread pool costs about 90 µs a call (2 noisy cores, xgrammar 0.2.8), a row 9 µs.
_ROWS_WORTH_THREADS = 16


def create(vocabulary: Vocabulary, *, threads: int) -> XgrammarBackend:
    """Returns the backend for ``vocabulary``. ``threads``: most threads of a compile, and of a batch fill."""
    return XgrammarBackend(vocabulary, threads=threads)


class XgrammarMatcher:
    """The state of one sequence: a native handle. See ``Matcher``."""

    __slots__ = ("_accept", "_fill", "_grammar", "_handle", "_never", "_not_simple", "_stop", "is_terminated")

    def __init__(self, grammar: XgrammarGrammar, handle: Any) -> None:
        self._grammar = grammar
        self._handle = handle
        self._accept: Callable[[int, bool], bool] = handle.accept_token
        self._fill: Callable[[NDArray[np.int32], int, bool], bool] = handle.fill_next_token_bitmask
        self._never = grammar.never
        self._not_simple = grammar.not_simple
        self._stop = grammar.stop_token_ids
        self.is_terminated: bool = handle.is_terminated()

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        try:
            self._fill(row, 0, False)
        except RuntimeError as error:
            raise BackendError(f"xgrammar cannot fill a row: {_short(error)}") from None
        if self._grammar.replaced_stop:
            self._grammar.clear_replaced_stop(row)

    def accept(self, token_ids: Sequence[int]) -> int:
        """See ``Matcher.accept``."""
        accepted = 0
        try:
            for token_id in token_ids:
                # The native matcher writes a line to stderr for each special token, and accepts some as empty text.
                if self.is_terminated or token_id in self._never or not self._accept(token_id, False):
                    break
                accepted += 1
                if token_id in self._stop:
                    self.is_terminated = self._handle.is_terminated()
        except RuntimeError as error:
            raise BackendError(f"xgrammar failed on a token: {_short(error)}") from None
        return accepted

    def advance(self, token_id: int, row_address: int, row_bytes: int) -> int:
        """See ``Advance.advance``. Does not fill the row: filling a batch of rows is cheaper."""
        if token_id in self._not_simple or self.is_terminated:
            return 0
        try:
            return self._accept(token_id, False)
        except RuntimeError as error:
            raise BackendError(f"xgrammar failed on a token: {_short(error)}") from None

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        if token_count:
            try:
                self._handle.rollback(token_count)
            except RuntimeError as error:
                raise BackendError(f"xgrammar failed to roll back: {_short(error)}") from None
            self.is_terminated = False

    def fork(self) -> XgrammarMatcher:
        """See ``Matcher.fork``."""
        return XgrammarMatcher(self._grammar, self._handle.fork())


class XgrammarGrammar:
    """A compiled grammar. See ``Grammar``.

    Attributes:
        compiled: the library's object.
        never: ids that are never accepted.
        not_simple: ``never`` and the stop tokens.
        replaced_stop: stop tokens of the vocabulary that this grammar replaces. xgrammar would allow them in free text.
    """

    __slots__ = ("_stop", "compiled", "never", "not_simple", "replaced_stop", "report", "stop_token_ids")

    def __init__(
        self,
        compiled: Any,
        report: GrammarReport,
        options: GrammarOptions,
        vocabulary: Vocabulary,
        never: frozenset[int],
    ) -> None:
        self.compiled = compiled
        self._stop = list(options.stop_token_ids or vocabulary.stop_token_ids)
        self.report = report
        self.stop_token_ids = frozenset(self._stop)
        self.replaced_stop = tuple(
            token_id for token_id in vocabulary.stop_token_ids if token_id not in self.stop_token_ids
        )
        self.never = never.union(self.replaced_stop) - self.stop_token_ids
        self.not_simple = self.never | self.stop_token_ids

    def matcher(self) -> XgrammarMatcher:
        """See ``Grammar.matcher``."""
        return XgrammarMatcher(self, xgrammar.GrammarMatcher(self.compiled, override_stop_tokens=self._stop)._handle)

    def clear_replaced_stop(self, row: NDArray[np.int32]) -> None:
        """Forbids ``replaced_stop`` in ``row``."""
        words = row.view(np.uint32)
        for token_id in self.replaced_stop:
            words[token_id >> 5] &= ~np.uint32(1 << (token_id & 31))


class _Notes:
    """Entries of a report, collected during a compile."""

    def __init__(self) -> None:
        self.relaxed: list[Unenforced] = []
        self.warnings: list[str] = []


class XgrammarBackend:
    """xgrammar for one vocabulary. Thread-safe: compilers lock themselves, everything else is immutable."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary, *, threads: int) -> None:
        self._vocabulary = vocabulary
        self._width = 32 * row_stride_words(vocabulary.vocab_size)
        self._threads = max(1, threads)
        self._special = frozenset(vocabulary.special_token_ids)
        self._empty = frozenset(token_id for token_id, token in enumerate(vocabulary.tokens) if not token)
        self._padding = frozenset(range(len(vocabulary.tokens), self._width))
        self._never_text = self._special | self._empty | self._padding
        self._text_info = self._new_info(lambda name: b"")
        self._text_compiler = self._new_compiler(self._text_info)
        self._fill_one_thread = xgrammar.BatchGrammarMatcher(max_threads=1)._handle.batch_fill_next_token_bitmask
        self._fill_threads = xgrammar.BatchGrammarMatcher(
            max_threads=self._threads
        )._handle.batch_fill_next_token_bitmask

    @cached_property
    def _token_compiler(self) -> Any:
        """The compiler for grammars that name special tokens.

        xgrammar never allows a token without bytes, and lets a token with bytes match text. No UTF-8 text has the byte
        0xFF. So a token that starts with it matches no text, and a grammar can still name it.
        """
        return self._new_compiler(self._new_info(lambda name: b"\xff" + name))

    def _new_info(self, special: Callable[[bytes], bytes]) -> Any:
        tokens = list(self._vocabulary.tokens) + [b""] * (self._width - len(self._vocabulary.tokens))
        for token_id in self._vocabulary.special_token_ids:
            tokens[token_id] = special(tokens[token_id])
        return xgrammar.TokenizerInfo(
            tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=self._width,
            stop_token_ids=list(self._vocabulary.stop_token_ids),
        )

    def _new_compiler(self, info: Any) -> Any:
        # The daemon caches compiled grammars by bytes; the library's own cache has no limit.
        return xgrammar.GrammarCompiler(info, max_threads=self._threads, cache_enabled=False)

    def compile(self, spec: GrammarSpec) -> XgrammarGrammar:
        """See ``Backend.compile``."""
        check_text(spec)
        notes = _Notes()
        never = self._never_text
        try:
            if spec.kind == "json_schema":
                schema = strict_json.loads(spec.source, "the schema")
                compiled = self._text_compiler.compile_grammar(self._ebnf(schema, spec, notes))
            elif spec.kind == "json_object":  # any object: further properties are not forbidden
                options = dataclasses.replace(spec.options, additional_properties="allow")
                any_object = dataclasses.replace(spec, options=options)
                compiled = self._text_compiler.compile_grammar(self._ebnf({"type": "object"}, any_object, notes))
            elif spec.kind == "regex":
                compiled = self._text_compiler.compile_grammar(_ebnf_of_regex(spec.source))
            elif spec.kind == "choice":
                compiled = self._text_compiler.compile_grammar(
                    "root ::= " + " | ".join(map(_literal, read_choices(spec.source)))
                )
            elif spec.kind == "ebnf":
                compiled = self._text_compiler.compile_grammar(spec.source)
            elif spec.kind == "lark":
                compiled = self._text_compiler.compile_lark(spec.source)
            else:
                notes.warnings.append(NOT_UTF8)
                compiled, never = self._structural_tag(spec, never, notes)
        except RecursionError:
            raise GrammarTooLargeError(
                f"the {spec.kind} is nested too deeply for xgrammar; make it flatter", limit="depth"
            ) from None
        except MemoryError:
            raise GrammarTooLargeError(
                f"xgrammar ran out of memory on the {spec.kind}; simplify it", limit="memory"
            ) from None
        except (RuntimeError, ValueError, TypeError) as error:
            raise _refusal(spec, error) from None
        report = GrammarReport(
            self.name,
            "asked for",
            tuple(notes.relaxed),
            tuple(dict.fromkeys(notes.warnings)),
            compiled.memory_size_bytes,
        )
        grammar = XgrammarGrammar(compiled, report, spec.options, self._vocabulary, never)
        row = np.zeros(self._width // 32, dtype=np.int32)
        grammar.matcher().fill_bitmask(row)
        if not row.any():
            raise GrammarUnsatisfiableError(
                f"nothing can match this {spec.kind}: xgrammar allows no first token; "
                "check for rules that need themselves"
            )
        return grammar

    def _ebnf(
        self, schema: Json, spec: GrammarSpec, notes: _Notes, pointer: str = "", max_whitespace: int | None = None
    ) -> str:
        """Returns the grammar of ``schema``. ``max_whitespace``: instead of that of the options."""
        options = spec.options
        if max_whitespace is not None:
            options = dataclasses.replace(options, max_whitespace=max_whitespace)
        json_options(options)
        compiled = compile_ebnf(schema, options, resources=read_resources(spec), pointer=pointer)
        check_strict(compiled.unenforced, options, self.name)
        notes.relaxed.extend(compiled.unenforced)
        if compiled.is_ordered and options.property_order == "any":
            notes.warnings.append(ORDERED)
        return compiled.ebnf

    def _structural_tag(self, spec: GrammarSpec, never: frozenset[int], notes: _Notes) -> tuple[Any, frozenset[int]]:
        """Returns the compiled tag, and ``never``, without the special tokens if the tag names tokens."""
        tag = structural_tag.parse(spec.source, self._vocabulary)

        def format_of(value: Json, pointer: str) -> Json:
            """Returns what stands for a format with a JSON schema: our grammar for it, or for XML the format itself."""
            most = value.get("max_whitespace_cnt")
            grammar = self._ebnf(value["json_schema"], spec, notes, pointer, most)
            if value["type"] == "json_schema" and value.get("style", "json") == "json":
                return {"type": "grammar", "grammar": grammar}
            check_strict(own := [Unenforced(pointer, "json_schema", _OWN_STYLE)], spec.options, self.name)
            notes.relaxed.extend(own)
            limit = spec.options.max_whitespace if most is None else most
            return {**value, "max_whitespace_cnt": limit} if limit is not None else value

        text = json.dumps(tag.for_xgrammar(format_of, _ebnf_of_regex))
        if not tag.names_tokens:
            return self._text_compiler.compile_structural_tag(text), never
        return self._token_compiler.compile_structural_tag(text), self._empty | self._padding

    def serialize(self, grammar: Grammar) -> bytes:
        """See ``Serializer.serialize``. Empty if it names special tokens: its tokenizer info is another one."""
        assert isinstance(grammar, XgrammarGrammar)
        if grammar.never != self._never_text.union(grammar.replaced_stop) - grammar.stop_token_ids:
            return b""
        return str(grammar.compiled.serialize_json()).encode()

    def deserialize(self, data: bytes, spec: GrammarSpec, report: GrammarReport) -> XgrammarGrammar:
        """See ``Serializer.deserialize``."""
        try:
            compiled = xgrammar.CompiledGrammar.deserialize_json(data.decode(), self._text_info)
        except (RuntimeError, ValueError) as error:
            raise GrammarError(f"xgrammar cannot load its own grammar: {_short(error)}") from None
        return XgrammarGrammar(compiled, report, spec.options, self._vocabulary, self._never_text)

    def fill_bitmasks(
        self, matchers: Sequence[XgrammarMatcher], rows: NDArray[np.int32], indices: Sequence[int]
    ) -> None:
        """See ``BatchFill.fill_bitmasks``."""
        fill = self._fill_threads if len(matchers) >= _ROWS_WORTH_THREADS else self._fill_one_thread
        try:
            fill([matcher._handle for matcher in matchers], rows, indices, False)
        except RuntimeError as error:
            raise BackendError(f"xgrammar cannot fill the batch: {_short(error)}") from None
        for matcher, index in zip(matchers, indices, strict=True):
            if matcher._grammar.replaced_stop:
                matcher._grammar.clear_replaced_stop(rows[index])


def _literal(text: str) -> str:
    """Returns ``text`` as an EBNF string."""
    return '"' + "".join(char if char.isalnum() else f"\\U{ord(char):08x}" for char in text) + '"'


def _ebnf_of_regex(pattern: str, pointer: str | None = None) -> str:
    """Returns a regex as an EBNF grammar. ``pointer``: where it stands. Raises as ``read_regex`` does."""
    numbers = itertools.count()
    root, rules = ebnf.as_text(read_regex(pattern, pointer), lambda: f"state{next(numbers)}")
    return "\n".join([f"root ::= {root}", *rules])


_PREFIX = re.compile(r"^\s*(\[\d\d:\d\d:\d\d\] \S+: )?(Check failed: \(.*?\) is false: )?")


def _short(error: Exception) -> str:
    """Returns the first line of an error, without clock and source file; the other lines repeat the grammar."""
    lines = _PREFIX.sub("", str(error), count=1).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


_UNSUPPORTED = (
    "not supported",
    "Unsupported",
    "not recognized",
    "unsupported",
    "not implemented",
    "Integer exceeds",
    "must be an object or boolean",
)


def _refusal(spec: GrammarSpec, error: Exception) -> GrammarError:
    text = _short(error)
    position = re.search(r"line (\d+), column (\d+)", text)
    metadata = {"line": position[1], "column": position[2]} if position else {}
    message = f"xgrammar refuses the {spec.kind}: {text}"
    if "recursion" in text.lower() or "nest" in text.lower():
        return GrammarTooLargeError(message, limit="depth")
    # The schema passed our own checks, so xgrammar cannot do it.
    if spec.kind == "json_schema" or any(sign in text for sign in _UNSUPPORTED):
        return GrammarUnsupportedError(message, backends="llguidance", **metadata)
    return GrammarError(message, **metadata)
