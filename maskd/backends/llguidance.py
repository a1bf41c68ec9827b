"""llguidance behind the backend interface.

Owns: the tokenizer of one vocabulary, the translation of every kind to llguidance's grammar list, and what hides its
habits: forced tokenization, matchers that die of a refused or a failed token, stop tokens that do not always count,
    masks that
are wrong after a rollback, and a lexer that all matchers of a grammar share and one of them can spoil.
Knows nothing about: other backends, sequences, rows beyond the one it is given.
Written against llguidance 1.9.1.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from typing import Any, cast

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from maskd.backends import structural_tag
from maskd.backends.sources import WHITESPACE, check_text, json_options, read_choices, read_schema
from maskd.backends.structural_tag_lark import lark_string
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.errors import (
    BackendError,
    GrammarError,
    GrammarTooLargeError,
    GrammarUnsatisfiableError,
    GrammarUnsupportedError,
    VocabularyError,
)
from maskd.grammar import GrammarOptions, GrammarReport, GrammarSpec
from maskd.json_schema.enforcement import NAMES_AGAIN, may_name_again
from maskd.json_schema.schema import JsonSchema, parse_schema
from maskd.vocabulary import Vocabulary

__all__ = ["create"]

_OPTIONS = {"name": "maskd_options", "lark_grammar": '%llguidance {"no_forcing": true}\nstart: "x"'}
"""A grammar that nothing refers to. Options hold for the whole list, so this makes rows complete for every kind, where
llguidance would allow only the canonical tokens of forced text, and no grammar of a user can undo it."""

# Resident memory of 1,010 compiled schemas of 0.1 to 36 kB, divided: 117 to 186 kB each (Tekken, llguidance 1.9.1).
_MEMORY_BYTES, _MEMORY_FACTOR = 128 << 10, 4

_PIECE_TOKENS = 16
"""Tokens of one native call in a replay: the library holds the interpreter meanwhile."""
_QUICK_SECONDS = 0.5
"""A grammar that compiles faster is compiled again where a matcher needs a lexer of its own. The data path waits for
it."""
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)

_TOKEN_BYTES, _TRIE_NODES = 1 << 10, (1 << 22) - 1
"""Limits of the trie that llguidance makes of a vocabulary; it panics beyond them (toktrie, ``PARENT_BITS``)."""


def create(vocabulary: Vocabulary, *, threads: int) -> LlguidanceBackend:
    """Returns the backend for ``vocabulary``. ``threads`` is not used: its thread pool loses against one thread.

    Masks are cached per lexer state, so most rows cost 1–2 µs; ``LLExecutor`` adds 80 µs a batch (2 noisy cores,
    Tekken).
    """
    return LlguidanceBackend(vocabulary)


class _Tokenizer:
    """What LLTokenizer asks for. Padded to whole rows; llguidance marks special tokens so that they never match
    text."""

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

    The native matcher is never rolled back either: its masks are wrong afterwards (docs/llguidance-rollback.md). It is
    replaced by a copy of an earlier one, which takes the tokens that are left; drafts are walked on a copy.

    All copies of one native matcher share a lexer. If its states pass the library's limit, it refuses whatever it is
    asked from
    then on, to every copy, without an error. So a refusal is believed only after a look at the lexer, and a matcher
    whose lexer is
    spoiled replays on a sound one. The lexer also has a lock, so a matcher that is slow gets one of its own:
    ``detach``.
    """

    __slots__ = (
        "_careful",
        "_checkpoint",
        "_grammar",
        "_history",
        "_native",
        "_not_text",
        "_overrides_stop",
        "_root",
        "is_terminated",
    )

    def __init__(
        self,
        grammar: LlguidanceGrammar,
        root: Any,
        native: Any,
        history: list[int],
        checkpoint: tuple[Any, int],
        is_terminated: bool,
    ) -> None:
        self._grammar = grammar
        self._root = root  # at the start, with the lexer that ``native`` has; only copied
        self._native = native
        self._not_text = grammar.not_text
        self._history = history
        # a native matcher that took so many tokens of the history; only copied, so forks share it
        self._checkpoint = checkpoint
        self._overrides_stop = grammar.overrides_stop
        self._careful = False
        self.is_terminated = is_terminated

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See ``Matcher.fill_bitmask``."""
        self._fill(_address(row), row)

    def _fill(self, address: int, row: NDArray[np.int32]) -> None:
        self._native.unsafe_compute_mask_ptr(address, row.nbytes)
        if self._native.is_error():  # the row then says "stop", which is not true
            message = _short(self._native.get_error())
            if self._leave_spoiled_lexer():
                self._native.unsafe_compute_mask_ptr(address, row.nbytes)
            if self._native.is_error():
                self._stand_again()
                raise BackendError(f"llguidance cannot fill a row: {message}")
        if self._overrides_stop:
            self._grammar.override_stop_bits(row, may_stop=self._native.is_accepting())

    def _stand_again(self) -> None:
        """Replaces the native matcher by one that took the history, and nothing else."""
        for _ in range(2):
            start, count = self._checkpoint if self._checkpoint[1] <= len(self._history) else (self._root, 0)
            native = start.deep_copy()
            left = self._history[count:]
            if all(native.consume_tokens(left[at : at + _PIECE_TOKENS]) for at in range(0, len(left), _PIECE_TOKENS)):
                self._native = native
                return
            self._move(self._grammar.sound_root(self._root))
        raise BackendError("llguidance refuses tokens that it took before")

    def _move(self, root: Any) -> None:
        self._root = root
        self._checkpoint = (root, 0)

    def _leave_spoiled_lexer(self) -> bool:
        """Replays on a sound lexer if this one is spoiled; returns whether it did."""
        if not self._grammar.is_spoiled(self._root):
            return False
        self._move(self._grammar.sound_root(self._root))
        self._stand_again()
        return True

    def detach(self) -> None:
        """See ``Detach.detach``."""
        if self._grammar.is_quick:
            self._move(self._grammar.new_root())
            self._stand_again()

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
        self._stand_again()
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
            if accepted < len(text) and self._leave_spoiled_lexer():
                accepted = self._native.try_consume_tokens(text)
            if accepted < len(text):
                if self._native.is_error():
                    raise BackendError(f"llguidance failed on a token: {_short(self._native.get_error())}")
                self._history.extend(text[:accepted])
                return accepted
            self._history.extend(text)
        if len(text) < len(token_ids) and token_ids[len(text)] in self._grammar.stop_token_ids and self._may_stop():
            self.is_terminated = True
            return accepted + 1
        return accepted

    def _may_stop(self) -> bool:
        return self._native.is_accepting() or (self._leave_spoiled_lexer() and self._native.is_accepting())

    def rollback(self, token_count: int) -> None:
        """See ``Matcher.rollback``."""
        if token_count and self.is_terminated:
            self.is_terminated = False
            token_count -= 1
        if token_count:
            del self._history[-token_count:]
            self._stand_again()
            # An engine that rolls back does so again, near here: the next time starts from here, not from the first
            # token.
            self._checkpoint = (self._native.deep_copy(), len(self._history))

    def fork(self) -> LlguidanceMatcher:
        """See ``Matcher.fork``."""
        native = self._native.deep_copy()
        return LlguidanceMatcher(
            self._grammar, self._root, native, self._history.copy(), self._checkpoint, self.is_terminated
        )

    look_ahead = fork
    """See ``LookAhead.look_ahead``."""


class LlguidanceGrammar:
    """A compiled grammar: a native matcher at the start, of which every other is a copy. See ``Grammar``.

    Args:
        root: a native matcher at the start.
        make_root: makes another one, with a lexer of its own.
        never_text: ids that are no text: the vocabulary's stop tokens, and padding.
        names_ids: the grammar speaks of token ids.
        is_quick: another root is made in less than ``_QUICK_SECONDS``.

    Attributes:
        canary: a token that the grammar allows at its start, and refuses only if its lexer is spoiled; None if there is
            none.
    """

    def __init__(
        self,
        root: Any,
        make_root: Callable[[], Any],
        report: GrammarReport,
        vocabulary: Vocabulary,
        stop_token_ids: Sequence[int],
        never_text: frozenset[int],
        *,
        names_ids: bool,
        is_quick: bool,
    ) -> None:
        self._make_root = make_root
        self._root = root
        self.is_quick = is_quick
        self._lock = threading.Lock()
        self.report = report
        self.canary: int | None = None
        self.stop_token_ids = frozenset(stop_token_ids or vocabulary.stop_token_ids)
        self.not_text = never_text if self.stop_token_ids <= never_text else never_text | self.stop_token_ids
        self.overrides_stop = names_ids or self.stop_token_ids != frozenset(vocabulary.stop_token_ids)
        self._default_stop = tuple(
            (token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in vocabulary.stop_token_ids
        )
        self._new_stop = tuple((token_id >> 5, np.uint32(1 << (token_id & 31))) for token_id in self.stop_token_ids)

    def matcher(self) -> LlguidanceMatcher:
        """See ``Grammar.matcher``."""
        root = self._root
        return LlguidanceMatcher(self, root, root.deep_copy(), [], (root, 0), False)

    def is_spoiled(self, root: Any) -> bool:
        """Whether the lexer of ``root``, a native matcher at the start, refuses everything."""
        return self.canary is not None and not root.deep_copy().validate_tokens([self.canary])

    def new_root(self) -> Any:
        """Returns one more native matcher at the start. Raises BackendError if that would hold up the data path."""
        if not self.is_quick:
            raise BackendError(
                "llguidance passed its limit of lexer states, and the grammar takes too long to be compiled again"
            )
        return self._make_root()

    def sound_root(self, spoiled: Any) -> Any:
        """Returns the root that new matchers are copies of, which is not ``spoiled``. Raises BackendError as
        ``new_root`` does."""
        with self._lock:
            if self._root is spoiled or self.is_spoiled(self._root):
                self._root = self.new_root()
            return self._root

    def override_stop_bits(self, row: NDArray[np.int32], *, may_stop: bool) -> None:
        """Lets ``row`` allow this grammar's stop tokens if the text ``may_stop`` here, and the vocabulary's others
        never: stop tokens
        match no text, also where a grammar names every id."""
        words = row.view(np.uint32)
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
        # A Lark grammar can name any id, as ``<[*]>`` does, and llguidance would take padding for it.
        self._never_text = frozenset((*vocabulary.stop_token_ids, *range(len(vocabulary.tokens), self._width)))
        try:
            self._tokenizer = llguidance.LLTokenizer(
                _Tokenizer(vocabulary, self._width), eos_token=list(vocabulary.stop_token_ids)
            )
        except BaseException as error:  # a panic of Rust is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise _too_large(vocabulary) from None

    def compile(self, spec: GrammarSpec) -> LlguidanceGrammar:
        """See ``Backend.compile``."""
        check_text(spec)
        warnings: list[str] = []
        text = json.dumps({"grammars": [*self._grammars(spec, warnings), _OPTIONS]})
        make_root = functools.partial(llguidance.LLMatcher, self._tokenizer, text, log_level=0, limits=_LIMITS)
        started = time.thread_time()  # on a busy machine, waits for a core say nothing about the grammar
        root = make_root()
        seconds = time.thread_time() - started
        if root.is_error():
            raise _refusal(spec, root.get_error())
        warnings.extend(map(_short, root.get_grammar_warnings()))
        report = GrammarReport(
            self.name, "asked for", (), tuple(dict.fromkeys(warnings)), _MEMORY_BYTES + _MEMORY_FACTOR * len(text)
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
            return [{"lark_grammar": spec.source}]
        tag = structural_tag.parse(spec.source, self._vocabulary)

        def schema_of(value: object, pointer: str, max_whitespace: int | None) -> object:
            options = (
                spec.options
                if max_whitespace is None
                else dataclasses.replace(spec.options, max_whitespace=max_whitespace)
            )
            return for_library(parse_schema(value, spec.options, pointer=pointer), options)

        return tag.for_llguidance(schema_of, regex_body, lark_of_gbnf)

    def fill_bitmasks(
        self, matchers: Sequence[LlguidanceMatcher], rows: NDArray[np.int32], indices: Sequence[int]
    ) -> None:
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
            f"llguidance cannot hold the vocabulary: token {token_id} has {size} bytes, and no token may have more "
            f"than {_TOKEN_BYTES} beyond what it shares with another one; "
            "leave it out, or leave llguidance out of backends",
            limit="token_bytes",
            value=_TOKEN_BYTES,
            token_id=token_id,
            backend="llguidance",
        )
    return VocabularyError(
        f"llguidance cannot hold the vocabulary: its tokens have more than {_TRIE_NODES} prefixes together; "
        "use fewer or shorter tokens, or leave llguidance out of backends",
        limit="trie_nodes",
        value=_TRIE_NODES,
        backend="llguidance",
    )


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
    """Returns ``pattern`` as it stands between two slashes in Lark; classes such as ``\\d`` mean ASCII, as in
    xgrammar."""
    return str(llguidance.regex_to_lark(pattern, "dws"))


def lark_of_gbnf(source: str) -> str:
    """Returns a GBNF grammar as Lark. Raises GrammarError with the position of a mistake."""
    try:
        return str(gbnf_to_lark(source))
    except RecursionError:
        raise GrammarTooLargeError(
            "the ebnf is nested too deeply for llguidance; make it flatter", limit="depth"
        ) from None
    except Exception as error:  # the translator has no base class of its own
        raise GrammarError(f"llguidance cannot read the ebnf: {_short(str(error))}") from None


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
    return (
        GrammarUnsupportedError(refusal, backends="xgrammar")
        if spec.kind == "json_schema"
        else GrammarError(refusal, **metadata)
    )
