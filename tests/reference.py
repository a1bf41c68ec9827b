"""A brute-force backend: slow, obviously right, and made of nothing that the libraries are made of.

Regexes and choices only. A regex is read by Python's own parser and matched by Brzozowski derivatives over bytes: after
each byte the state is again a regex, for the rest of the text. A token is allowed if, after its bytes, anything is
left.
Source: J. Brzozowski, "Derivatives of Regular Expressions", JACM 1964.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskd.errors import GrammarError, GrammarUnsatisfiableError, GrammarUnsupportedError
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.vocabulary import Vocabulary

try:
    from re import _parser as sre_parse  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse  # type: ignore[no-redef]

# A regex over bytes: NEVER, EMPTY, ("set", bytes), ("cat", one, other), ("alt", frozenset of regexes), ("star", one).
Regex = tuple[Any, ...]
NEVER: Regex = ("never",)
EMPTY: Regex = ("empty",)


def cat(one: Regex, other: Regex) -> Regex:
    if NEVER in (one, other):
        return NEVER
    if one == EMPTY:
        return other
    return one if other == EMPTY else ("cat", one, other)


def alt(options: Iterable[Regex]) -> Regex:
    flat: set[Regex] = set()
    for option in options:
        flat |= option[1] if option[0] == "alt" else {option}
    flat.discard(NEVER)
    if not flat:
        return NEVER
    return flat.pop() if len(flat) == 1 else ("alt", frozenset(flat))


def star(one: Regex) -> Regex:
    return EMPTY if one in (NEVER, EMPTY) else ("star", one)


@functools.lru_cache(None)
def matches_empty(regex: Regex) -> bool:
    kind = regex[0]
    if kind == "cat":
        return matches_empty(regex[1]) and matches_empty(regex[2])
    if kind == "alt":
        return any(map(matches_empty, regex[1]))
    return kind in ("empty", "star")


@functools.lru_cache(None)
def derive(regex: Regex, byte: int) -> Regex:
    """Returns what may follow ``byte``."""
    kind = regex[0]
    if kind == "set":
        return EMPTY if byte in regex[1] else NEVER
    if kind == "cat":
        first = cat(derive(regex[1], byte), regex[2])
        return alt([first, derive(regex[2], byte)]) if matches_empty(regex[1]) else first
    if kind == "alt":
        return alt(derive(option, byte) for option in regex[1])
    return cat(derive(regex[1], byte), regex) if kind == "star" else NEVER


def literal(text: bytes) -> Regex:
    return functools.reduce(lambda rest, byte: cat(("set", bytes([byte])), rest), reversed(text), EMPTY)


def _ranges(*ranges: tuple[int, int]) -> Regex:
    return functools.reduce(
        lambda rest, pair: cat(("set", bytes(range(pair[0], pair[1] + 1))), rest), reversed(ranges), EMPTY
    )


TAIL = (0x80, 0xBF)
NOT_ASCII = alt(
    [
        _ranges((0xC2, 0xDF), TAIL),
        _ranges((0xE0, 0xE0), (0xA0, 0xBF), TAIL),
        _ranges((0xE1, 0xEC), TAIL, TAIL),
        _ranges((0xED, 0xED), (0x80, 0x9F), TAIL),
        _ranges((0xEE, 0xEF), TAIL, TAIL),
        _ranges((0xF0, 0xF0), (0x90, 0xBF), TAIL, TAIL),
        _ranges((0xF1, 0xF3), TAIL, TAIL, TAIL),
        _ranges((0xF4, 0xF4), (0x80, 0x8F), TAIL, TAIL),
    ]
)
"""Well-formed UTF-8 beyond ASCII: table 3-7 of the Unicode standard."""

CLASSES = {
    f"CATEGORY_{negated}{name}": "\\" + (letter.upper() if negated else letter)
    for negated in ("", "NOT_")
    for name, letter in (("DIGIT", "d"), ("WORD", "w"), ("SPACE", "s"))
}


def _chars(items: Iterable[Any]) -> Regex:
    """A character class, as Python parsed it."""
    ascii_part: set[int] = set()
    beyond: list[Regex] = []
    negated = False
    for operator, argument in items:
        name = str(operator)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL" and argument > 0x7F:
            beyond.append(literal(chr(argument).encode()))
        elif name == "LITERAL":
            ascii_part.add(argument)
        elif name == "RANGE" and argument[1] <= 0x7F:
            ascii_part |= set(range(argument[0], argument[1] + 1))
        elif name == "CATEGORY":
            ascii_part |= {code for code in range(128) if re.match(CLASSES[str(argument)], chr(code), re.ASCII)}
            beyond += [NOT_ASCII] * ("_NOT_" in str(argument))
        else:
            raise GrammarUnsupportedError(f"the reference has no {operator} {argument}")
    if negated:
        if beyond:
            raise GrammarUnsupportedError("the reference has no negated class beyond ASCII")
        return alt([("set", bytes(sorted(set(range(128)) - ascii_part))), NOT_ASCII])
    return alt([("set", bytes(sorted(ascii_part)))] * bool(ascii_part) + beyond)


def _convert(parsed: Iterable[Any]) -> Regex:
    result = EMPTY
    for operator, argument in parsed:
        name = str(operator)
        if name == "AT" and str(argument) in ("AT_BEGINNING", "AT_END"):
            part = EMPTY  # the whole text is matched anyway; only used at the edges
        elif name == "LITERAL":
            part = literal(chr(argument).encode())
        elif name == "NOT_LITERAL":
            part = _chars([("NEGATE", None), ("LITERAL", argument)])
        elif name == "IN":
            part = _chars(argument)
        elif name == "ANY":
            part = _chars([("NEGATE", None), ("LITERAL", 10)])
        elif name == "BRANCH":
            part = alt(map(_convert, argument[1]))
        elif name == "SUBPATTERN":
            part = _convert(argument[3])
        elif name == "MAX_REPEAT":
            least, most, inner = argument
            one = _convert(inner)
            part = functools.reduce(lambda rest, _: cat(one, rest), range(least), EMPTY)
            if most == sre_parse.MAXREPEAT:
                part = cat(part, star(one))
            else:
                tail = functools.reduce(lambda rest, _: alt([EMPTY, cat(one, rest)]), range(most - least), EMPTY)
                part = cat(part, tail)
        else:
            raise GrammarUnsupportedError(f"the reference has no {operator}")
        result = cat(result, part)
    return result


class ReferenceMatcher:
    def __init__(self, grammar: ReferenceGrammar, states: list[Regex | None]) -> None:
        self._grammar = grammar
        self._states = states  # one after each token; None after a stop token

    @property
    def is_terminated(self) -> bool:
        return self._states[-1] is None

    def _after(self, token_id: int) -> Regex | None:
        """The state after ``token_id``; NEVER if it is not allowed."""
        state = self._states[-1]
        assert state is not None
        if token_id in self._grammar.stop_token_ids:
            return None if matches_empty(state) else NEVER
        token = self._grammar.text.get(token_id)
        return functools.reduce(derive, token, state) if token else NEVER

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        words = np.zeros(row.size, np.uint32)
        for token_id in [*self._grammar.text, *self._grammar.stop_token_ids]:
            if self._after(token_id) != NEVER:
                words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        row[:] = words.view(np.int32)

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token_id in enumerate(token_ids):
            if self.is_terminated or (state := self._after(token_id)) == NEVER:
                return count
            self._states.append(state)
        return len(token_ids)

    def rollback(self, token_count: int) -> None:
        del self._states[len(self._states) - token_count :]

    def fork(self) -> ReferenceMatcher:
        return ReferenceMatcher(self._grammar, self._states.copy())


class ReferenceGrammar:
    def __init__(self, start: Regex, vocabulary: Vocabulary, stop_token_ids: Sequence[int]) -> None:
        self.start = start
        self.stop_token_ids = frozenset(stop_token_ids or vocabulary.stop_token_ids)
        never = {*vocabulary.special_token_ids, *self.stop_token_ids}
        self.text = {
            token_id: token for token_id, token in enumerate(vocabulary.tokens) if token and token_id not in never
        }
        self.report = GrammarReport("reference", "asked for")

    def matcher(self) -> ReferenceMatcher:
        return ReferenceMatcher(self, [self.start])


class ReferenceBackend:
    name = "reference"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def compile(self, spec: GrammarSpec) -> ReferenceGrammar:
        if spec.kind == "choice":
            start = alt(literal(choice.encode()) for choice in json.loads(spec.source))
        elif spec.kind == "regex":
            try:
                start = _convert(sre_parse.parse(spec.source, re.ASCII))
            except re.error as error:
                raise GrammarError(f"not a regex: {error}") from None
        else:
            raise GrammarUnsupportedError(f"the reference has no {spec.kind}")
        grammar = ReferenceGrammar(start, self._vocabulary, spec.options.stop_token_ids)
        if start == NEVER:
            raise GrammarUnsatisfiableError("nothing matches")
        return grammar


def create(vocabulary: Vocabulary, *, threads: int) -> ReferenceBackend:
    return ReferenceBackend(vocabulary)
