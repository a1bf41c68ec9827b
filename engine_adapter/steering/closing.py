"""Closing before the budget ends: an output that must be a whole document is steered to its end while there is room for
one.

How: beside the output a reader knows where in the JSON document it stands, and from the schema the shortest text that
    would end it. The
model chooses freely as long as that text fits into the tokens that are left. A token after which it would not fit is
replaced by the longest allowed one that continues the text; where the text turns out to be wrong (a pattern, a keyword
it does not know) the model chooses again, and the text is worked out anew. Every token is one that the mask allows, so
this can make an output plain, but never invalid. If even the shortest text does not fit, the output ends by "length",
as it would have.
In a structural tag this holds for the values in its tags (``closing_tags.py``), and the tag is ended with them;
likewise for regular expressions and choices (``closing_regex.py``). Other grammars take a stop token as soon as they
allow one in the last quarter of the budget.
Owns: when to step in, and with which token. Knows nothing about: the loop, models. The tokens of a text are counted as
    if each were the
longest that fits; a quarter more is kept in reserve.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine_adapter.steering.base import Steering, allows
from engine_adapter.steering.json_position import JsonPosition
from engine_adapter.steering.regex_position import Automaton, RegexPosition
from engine_adapter.steering.shapes import UNKNOWN, Shapes
from engine_adapter.steering.tag_position import TagPosition, tags_of
from maskd.grammar import GrammarSpec
from maskd.vocabulary import Vocabulary

__all__ = ["Closing", "ClosingVocabulary", "steering_for"]

Position = JsonPosition | TagPosition | RegexPosition
_MARKS = b'}]",:0123456789tfn-{['
"""What to try, in this order, where a document neither goes on as foreseen nor stands in a string."""
_MOST_NODES = 2000


class ClosingVocabulary:
    """The tokens of a model by their bytes; made once per model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.stop_token_ids = vocabulary.stop_token_ids
        special = frozenset(vocabulary.special_token_ids)
        self._ids = {
            token: token_id
            for token_id, token in reversed(list(enumerate(self.tokens)))
            if token and token_id not in special
        }
        self._longest = max(map(len, self._ids), default=0)
        self._longest_with: dict[bytes, int] = {}  # bytes of the longest token that begins with these two
        for token in self._ids:
            self._longest_with[token[:2]] = max(len(token), self._longest_with.get(token[:2], 0))

    def longest_start(self, text: bytes, row: NDArray[np.int32] | None = None) -> int | None:
        """Returns the token of the most bytes that ``text`` starts with, and that ``row`` allows; None if there is
        none."""
        known = text.partition(UNKNOWN)[0]
        for size in range(min(self._longest_with.get(known[:2], 1), len(known)), 0, -1):
            token_id = self._ids.get(known[:size])
            if token_id is not None and (row is None or allows(row, token_id)):
                return token_id
        return None

    def count(self, text: bytes) -> int:
        """Returns how many tokens ``text`` takes, an unknown character taken for one."""
        tokens = at = 0
        while at < len(text):
            token_id = self.longest_start(text[at : at + self._longest])
            at += 1 if token_id is None else len(self.tokens[token_id])
            tokens += 1
        return tokens


class Closing(Steering, Protocol):
    """A steering that ends an output."""

    def reserve(self) -> int:
        """Returns the tokens to keep for the shortest ending from here, a stop token included; 0 if that is not
        known."""


def steering_for(spec: GrammarSpec, vocabulary: ClosingVocabulary) -> Closing:
    """Returns what ends an output of ``spec`` in time. One per output.

    Nobody has compiled the source yet: one that is malformed, or too large to be looked at, is left to whoever compiles
    it.
    """
    stop_token_ids = spec.options.stop_token_ids or vocabulary.stop_token_ids
    try:
        return _steering_for(spec, vocabulary, stop_token_ids)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError):
        return _StopSoon(stop_token_ids)


def _steering_for(spec: GrammarSpec, vocabulary: ClosingVocabulary, stop_token_ids: tuple[int, ...]) -> Closing:
    separators = spec.options.item_separator or ",", spec.options.key_separator or ":"
    if spec.kind in ("json_schema", "json_object"):
        shapes = Shapes(json.loads(spec.source) if spec.kind == "json_schema" else {"type": "object"}, *separators)
        return _Closing(JsonPosition(shapes), _largest_part(shapes), vocabulary, stop_token_ids)
    if spec.kind == "structural_tag" and (tags := tags_of(source := json.loads(spec.source), *separators)):
        largest = max(len(tag.begin + tag.shortest) + _largest_part(tag.shapes) for tag in tags)
        return _Closing(TagPosition(source, tags), largest, vocabulary, stop_token_ids)
    if spec.kind in ("regex", "choice"):
        pattern = spec.source if spec.kind == "regex" else "|".join(map(re.escape, json.loads(spec.source)))
        with contextlib.suppress(ValueError):
            automaton = _automaton(pattern)
            return _Closing(RegexPosition(automaton), max(automaton.distances.values()), vocabulary, stop_token_ids)
    return _StopSoon(stop_token_ids)


_automaton = functools.lru_cache(maxsize=64)(Automaton)


class _StopSoon:
    """For grammars whose shortest ending is not known."""

    def __init__(self, stop_token_ids: tuple[int, ...]) -> None:
        self._stop_token_ids = stop_token_ids
        self._begin = 0  # remaining tokens from which on to stop; known with the first choice

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        self._begin = self._begin or max(1, remaining // 4)
        return _allowed_stop(row, self._stop_token_ids) if remaining <= self._begin else None

    def accept(self, token_id: int) -> None:
        """Needs to know nothing."""

    def reserve(self) -> int:
        return 0


class _Closing:
    def __init__(
        self, position: Position, largest_part: int, vocabulary: ClosingVocabulary, stop_token_ids: tuple[int, ...]
    ) -> None:
        self._vocabulary = vocabulary
        self._stop_token_ids = stop_token_ids
        self._position = position
        self._growth = 2 + largest_part  # the most that one token can add to the shortest ending, near enough
        self._unchecked = 0  # tokens that may be taken before the ending has to be looked at again

    def choose(self, row: NDArray[np.int32], drawn: int, remaining: int) -> int | None:
        if drawn in self._stop_token_ids or self._has_room_for(drawn, remaining):
            return None
        if (stop := _allowed_stop(row, self._stop_token_ids)) is not None:
            return stop
        ending = self._position.completion()
        if (token_id := self._vocabulary.longest_start(ending, row)) is not None:
            return token_id
        if self._position.is_in_bare:
            return None
        marks = b'"' if self._position.is_in_string else _MARKS
        starts = (self._vocabulary.longest_start(bytes([mark]), row) for mark in marks)
        return next((token_id for token_id in starts if token_id is not None), None)

    def reserve(self) -> int:
        return self._reserve(self._position)

    def accept(self, token_id: int) -> None:
        self._position.feed(self._vocabulary.tokens[token_id])

    def _has_room_for(self, drawn: int, remaining: int) -> bool:
        """Says whether the document can still be ended in time after ``drawn``."""
        if self._unchecked > 0:
            self._unchecked -= 1
            return True
        spare = remaining - self._reserve(self._position)
        if spare > self._growth:
            self._unchecked = spare // (1 + self._growth) - 1
            return True
        after = self._position.fork()
        after.feed(self._vocabulary.tokens[drawn])
        return remaining - 1 >= self._reserve(after)

    def _reserve(self, position: Position) -> int:
        """Returns the tokens to keep for the ending from ``position``, and its stop token."""
        needed = self._vocabulary.count(position.completion()) + 1
        return needed + needed // 4 + 1


def _allowed_stop(row: NDArray[np.int32], stop_token_ids: tuple[int, ...]) -> int | None:
    return next((token_id for token_id in stop_token_ids if allows(row, token_id)), None)


def _largest_part(shapes: Shapes) -> int:
    """Returns the bytes of the longest of the shortest values of any part of the schema."""
    texts = (shapes.shortest(part) for part in _parts(shapes.root))
    return max((len(text) for text in texts if text is not None), default=0)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yields every mapping in ``schema``: its subschemas, and some that are none."""
    waiting, seen = [schema], 0
    while waiting and seen < _MOST_NODES:
        node = waiting.pop()
        seen += 1
        if isinstance(node, Mapping):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
