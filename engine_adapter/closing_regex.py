"""Where in a regular expression an output stands, and the shortest text that ends it from there.

A nondeterministic automaton, built from the tree that Python's own parser makes of the pattern, which takes one character at a time; for
each state the least number of characters to the end is worked out once.
Owns: the automaton. Trusts its input: what the mask let through. Where the pattern is of another dialect or too large there is no
automaton, and where the two disagree the ending is taken to be empty: the mask decides what is valid.
Knows nothing about: tokens, masks.
"""

from __future__ import annotations

import codecs
import functools
import importlib
import re
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from engine_adapter.closing_shapes import UNKNOWN

__all__ = ["Automaton", "RegexPosition"]

_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_MOST_STATES = 5000
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_GROUPS = ("SUBPATTERN", "ATOMIC_GROUP")
_LIKELY = "a0 A_-.,/"
"""Characters to look among for one that a set has."""

Leaf = tuple[str, Any]
"""One character: the name of the parser's operation, and its argument."""


class Automaton:
    """The automaton of one pattern; state 0 is the end.

    Attributes:
        start: the states before the first character.
        distances: state to the least number of characters that lead to the end; only of states that have such a way.
    """

    def __init__(self, pattern: str) -> None:
        """Builds it.

        Raises:
            ValueError: the pattern is no regular expression of Python's, looks around itself, or has too many states.
        """
        self._leaves: list[Leaf | None] = [None]  # what a state waits for; None = nothing
        self._next: list[tuple[int, ...]] = [()]  # where it leads, at once if it waits for nothing
        try:
            first = self._sequence(_parser.parse(pattern), 0)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"no regular expression of Python's: {error}") from error
        self.start = self._closure([first])
        self.distances = self._distances()

    def step(self, states: Iterable[int], char: str) -> frozenset[int]:
        """Returns the states after ``char``."""
        following = [
            self._next[state][0] for state in states if (leaf := self._leaves[state]) is not None and _matches(leaf[0], leaf[1], char)
        ]
        return self._closure(following)

    def shortest(self, states: Iterable[int]) -> str:
        """Returns the shortest text to the end; empty if there is none. A byte 0 stands for a character that is not known."""
        text = ""
        here = min((state for state in states if state in self.distances), key=lambda state: self.distances[state], default=0)
        while here:
            leaf = self._leaves[here]
            if leaf is not None:
                text += _example(*leaf)
            here = min((state for state in self._next[here] if state in self.distances), key=lambda state: self.distances[state])
        return text

    # -- building ----------------------------------------------------------------------------------------------------

    def _add(self, leaf: Leaf | None, *following: int) -> int:
        if len(self._next) >= _MOST_STATES:
            raise ValueError(f"the pattern has more than {_MOST_STATES:,} states")
        self._leaves.append(leaf)
        self._next.append(following)
        return len(self._next) - 1

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
                if end == before:  # of nothing, any number is nothing
                    break
            return end
        raise ValueError(f"{operation} is not followed")

    def _closure(self, states: Sequence[int]) -> frozenset[int]:
        waiting, found = list(states), set(states)
        while waiting:
            state = waiting.pop()
            if self._leaves[state] is None:
                new = [following for following in self._next[state] if following not in found]
                found.update(new)
                waiting += new
        return frozenset(state for state in found if state == 0 or self._leaves[state] is not None)

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
    """Reads one output."""

    is_in_string = False
    is_in_bare = True
    """Nothing is forced where the shortest ending cannot go on."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._states = automaton.start
        self._bytes = b""  # of a character that is not whole

    def fork(self) -> RegexPosition:
        """Returns another reader at the same place."""
        other = RegexPosition(self._automaton)
        other._states, other._bytes = self._states, self._bytes
        return other

    def feed(self, text: bytes) -> None:
        """Takes the next bytes of the output."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for char in decoder.decode(self._bytes + text):
            self._states = self._automaton.step(self._states, char)
        self._bytes = decoder.getstate()[0]

    def completion(self) -> bytes:
        """Returns the shortest text that ends the output; empty if it may end here."""
        return UNKNOWN * bool(self._bytes) + self._automaton.shortest(self._states).encode()


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
    """Returns a character that matches, or one of byte 0 if none is found."""
    if operation == "LITERAL":
        return chr(argument)
    members = argument if operation == "IN" else ()
    named = [value if str(kind) == "LITERAL" else value[0] for kind, value in members if str(kind) in ("LITERAL", "RANGE")]
    candidates = [*map(chr, named), *_LIKELY]
    return next((char for char in candidates if _matches(operation, argument, char)), UNKNOWN.decode())
