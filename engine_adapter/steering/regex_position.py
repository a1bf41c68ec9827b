"""Where in a regular expression an output stands, and the shortest text that ends it from there.

Owns: the automaton of a pattern, and the reader that moves through it.
Knows nothing about: tokens, masks.

The automaton is nondeterministic and takes one character at a time. It is built from the tree that Python's parser
makes of the pattern. A set of states is an int, with a bit for each state. Each state knows its least number of
characters to the end. A pattern of another dialect, or one that is too large, has no automaton. Where automaton and
mask disagree, the ending is taken to be empty.
"""

from __future__ import annotations

import codecs
import functools
import importlib
import operator
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from engine_adapter.steering.base import UNKNOWN

__all__ = ["Automaton", "RegexPosition"]

_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_MOST_STATES = 2000
"""Most states, and members of sets of characters. A character takes some 0.3 ms where all of them wait for one."""
_MOST_LOOPS = 32
"""Most loops within loops."""
_MOST_CHARS = 512
"""Most characters that are kept, with the states that wait for them."""
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_GROUPS = ("SUBPATTERN", "ATOMIC_GROUP")
_LIKELY = "a0 A_-.,/"
"""Characters that are tried as members of a set."""

Leaf = tuple[str, Any]
"""One character: the name of the parser's operation, and its argument."""


class Automaton:
    """The automaton of one pattern; state 0 is the end.

    Attributes:
        start: the states before the first character: bit i for state i.
        distances: state → the least number of characters to the end; without states that never reach it.
    """

    def __init__(self, pattern: str) -> None:
        """Builds the automaton of ``pattern``.

        Raises:
            ValueError: the pattern is not a regular expression of Python's, looks around itself, or is too large.
        """
        self._leaves: list[Leaf | None] = [None]  # the character that each state waits for; None = nothing
        self._next: list[tuple[int, ...]] = [()]  # the states that it leads to, at once if it waits for nothing
        # each leaf once, and the states that wait for it
        self._waiting: dict[tuple[str, int], tuple[Leaf, list[int]]] = {}
        self._size = 0
        try:
            first = self._sequence(_parser.parse(pattern), 0)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"no regular expression of Python's: {error}") from error
        closures = self._closures()
        self.start = closures[first]
        # state → the closure that it leads to
        self._after = [closures[following[0]] if following else 0 for following in self._next]
        self._masks = [(leaf, sum(1 << state for state in states)) for leaf, states in self._waiting.values()]
        self._matching: dict[str, int] = {}
        self.distances = self._distances()
        self._endings = {0: ""}
        self._examples: dict[tuple[str, int], str] = {}

    def step(self, states: int, char: str) -> int:
        """Returns the states after ``char``."""
        if char not in self._matching:
            if len(self._matching) >= _MOST_CHARS:
                self._matching.clear()
            matching = 0
            for leaf, mask in self._masks:
                if _matches(*leaf, char):
                    matching |= mask
            self._matching[char] = matching
        else:
            matching = self._matching[char]
        following = 0
        for state in _bits(states & matching):
            following |= self._after[state]
        return following

    def shortest(self, states: int) -> str:
        """Returns the shortest text to the end; empty if there is none. It may hold ``UNKNOWN``."""
        here = min(
            (state for state in _bits(states) if state in self.distances), key=self.distances.__getitem__, default=0
        )
        path = []
        while here not in self._endings:
            path.append(here)
            here = min((state for state in self._next[here] if state in self.distances), key=self.distances.__getitem__)
        for state in reversed(path):
            leaf = self._leaves[state]
            self._endings[state] = ("" if leaf is None else self._example(leaf)) + self._endings[here]
            here = state
        return self._endings[here]

    def _example(self, leaf: Leaf) -> str:
        key = _key(leaf)
        if key not in self._examples:
            self._examples[key] = _example(*leaf)
        return self._examples[key]

    # -- building ----------------------------------------------------------------------------------------------------

    def _add(self, leaf: Leaf | None, *following: int) -> int:
        state = len(self._next)
        self._size += 1
        if leaf is not None:
            key = _key(leaf)
            if key not in self._waiting:
                self._size += len(leaf[1]) if leaf[0] == "IN" else 0
                self._waiting[key] = leaf, []
            self._waiting[key][1].append(state)
        if self._size >= _MOST_STATES:
            raise ValueError(f"the pattern has more than {_MOST_STATES:,} states and members of sets")
        self._leaves.append(leaf)
        self._next.append(following)
        return state

    def _sequence(self, items: Iterable[Any], end: int) -> int:
        """Returns the state before ``items``, behind which ``end`` stands."""
        for operation, argument in reversed(list(items)):
            end = self._item(str(operation), argument, end)
        return end

    def _item(self, operation: str, argument: Any, end: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
            return self._add((operation, argument), end)
        if operation == "AT":
            return end
        if operation == "BRANCH":
            return self._add(None, *(self._sequence(branch, end) for branch in argument[1]))
        if operation in _GROUPS:
            return self._sequence(argument[-1] if operation == "SUBPATTERN" else argument, end)
        if operation in _REPEATS:
            least, most, items = argument
            if most == _parser.MAXREPEAT:
                again = self._add(None, end)
                self._next[again] = (self._sequence(items, again), end)
                end = again
            else:
                for _ in range(most - least):
                    end = self._add(None, self._sequence(items, end), end)
            for _ in range(least):
                before, end = end, self._sequence(items, end)
                if end == before:  # repeating nothing adds nothing
                    break
            return end
        raise ValueError(f"{operation} is not followed")

    def _closures(self) -> list[int]:
        """Returns for each state which waiting states, or the end, it leads to at once."""
        closures = [1 << state if state == 0 or leaf is not None else 0 for state, leaf in enumerate(self._leaves)]
        for _ in range(_MOST_LOOPS):  # only ends of loops lead to later states
            has_grown = False
            for state, leaf in enumerate(self._leaves):
                if leaf is None:
                    closure = functools.reduce(
                        operator.or_, (closures[following] for following in self._next[state]), closures[state]
                    )
                    has_grown |= closure != closures[state]
                    closures[state] = closure
            if not has_grown:
                return closures
        raise ValueError(f"the pattern has more than {_MOST_LOOPS} loops within loops")

    def _distances(self) -> dict[int, int]:
        before: list[list[int]] = [[] for _ in self._next]
        for state, following in enumerate(self._next):
            for other in following:
                before[other].append(state)
        distances, waiting = {0: 0}, deque([0])
        while waiting:
            here = waiting.popleft()
            for state in before[here]:
                cost = self._leaves[state] is not None
                if distances[here] + cost < distances.get(state, sys.maxsize):
                    distances[state] = distances[here] + cost
                    (waiting.append if cost else waiting.appendleft)(state)
        return distances


class RegexPosition:
    """Reads one output. See ``Position``."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._states = automaton.start
        self._bytes = b""  # of a character that is not whole

    def fork(self) -> RegexPosition:
        """See ``Position.fork``."""
        other = RegexPosition(self._automaton)
        other._states, other._bytes = self._states, self._bytes
        return other

    def feed(self, text: bytes) -> None:
        """See ``Position.feed``."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for char in decoder.decode(self._bytes + text):
            self._states = self._automaton.step(self._states, char)
        self._bytes = decoder.getstate()[0]

    def ending(self) -> bytes:
        """See ``Position.ending``."""
        return UNKNOWN * bool(self._bytes) + self._automaton.shortest(self._states).encode()

    def substitutes(self) -> bytes:
        """See ``Position.substitutes``: none."""
        return b""

    def largest_part(self) -> int:
        """See ``Position.largest_part``."""
        return max(self._automaton.distances.values())


def _key(leaf: Leaf) -> tuple[str, int]:
    """Returns a key that equal leaves share. A set counts by identity: repeats share it, and the automaton keeps it."""
    return leaf[0], id(leaf[1]) if leaf[0] == "IN" else leaf[1] or 0


def _bits(states: int) -> Iterator[int]:
    while states:
        lowest = states & -states
        yield lowest.bit_length() - 1
        states ^= lowest


@functools.cache
def _category(name: str) -> re.Pattern[str]:
    kind = name.removeprefix("CATEGORY_")
    letter = kind.removeprefix("NOT_")[0].lower()
    return re.compile(rf"\{letter.upper() if kind.startswith('NOT_') else letter}")


def _matches(operation: str, argument: Any, char: str) -> bool:
    if operation == "LITERAL":
        return bool(ord(char) == argument)
    if operation == "NOT_LITERAL":
        return bool(ord(char) != argument)
    if operation == "ANY":
        return char != "\n"
    if operation == "RANGE":
        return bool(argument[0] <= ord(char) <= argument[1])
    if operation == "CATEGORY":
        return _category(str(argument)).match(char) is not None
    is_negated = str(argument[0][0]) == "NEGATE"
    return any(_matches(str(kind), value, char) for kind, value in argument[is_negated:]) != is_negated


def _example(operation: str, argument: Any) -> str:
    """Returns a character that matches, or ``UNKNOWN`` if none is found."""
    if operation == "LITERAL":
        return chr(argument)
    members = argument if operation == "IN" and str(argument[0][0]) != "NEGATE" else ()
    named = [
        value if str(kind) == "LITERAL" else value[0] for kind, value in members if str(kind) in ("LITERAL", "RANGE")
    ]
    candidates = [*map(chr, named), *_LIKELY]
    return next((char for char in candidates if _matches(operation, argument, char)), UNKNOWN.decode())
