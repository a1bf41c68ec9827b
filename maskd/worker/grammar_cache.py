"""The grammar cache of a worker: each content is compiled once, and the least recently used leave first.

Used by one thread, the worker's data path. Compiles run on other threads; the data path hands in their outcome with
``finish``.
Owns: the cache, its limit in bytes, and the single flight.
Knows nothing about: threads, sessions, sockets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from maskd.backends.base import Grammar
from maskd.errors import MaskdError

__all__ = ["CompileOutcome", "GrammarCache", "Key"]

_LEAST_BYTES = 64 << 10
"""Least size that a grammar counts for: a library that cannot tell its sizes says 0, and 0 would bound nothing."""

Key = tuple[bytes, bytes]
"""(fingerprint of the vocabulary, digest of the spec)"""


@dataclass(frozen=True, slots=True)
class CompileOutcome:
    """What a waiter gets.

    Attributes:
        grammar: or why there is none.
        seconds: that the compile took; 0 if the grammar was there.
        cached: whether another request paid for the compile.
    """

    grammar: Grammar | MaskdError
    seconds: float
    cached: bool


Waiter = Callable[[CompileOutcome], None]


class GrammarCache:
    """Compiled grammars by content.

    Args:
        limit_bytes: sum of ``report.memory_bytes`` kept; a grammar that sequences use lives on outside of the cache.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._compiled: OrderedDict[Key, Grammar] = OrderedDict()
        self._waiting: dict[Key, list[Waiter]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._compiled)

    def request(self, key: Key, waiter: Waiter) -> bool:
        """Calls ``waiter`` now if the grammar is there, else when it is compiled.

        Returns whether the caller must start the compile: the grammar is neither there nor under way.
        """
        grammar = self._compiled.get(key)
        if grammar is not None:
            self._compiled.move_to_end(key)
            waiter(CompileOutcome(grammar, 0.0, cached=True))
            return False
        waiters = self._waiting.get(key)
        if waiters is not None:
            waiters.append(waiter)
            return False
        self._waiting[key] = [waiter]
        return True

    def finish(self, key: Key, outcome: Grammar | MaskdError, seconds: float) -> None:
        """Answers all that wait for ``key``. Errors are not remembered: the next request compiles again."""
        if not isinstance(outcome, MaskdError):
            self._compiled[key] = outcome
            self.bytes += _bytes_of(outcome)
            while self.bytes > self._limit and len(self._compiled) > 1:
                _, evicted = self._compiled.popitem(last=False)
                self.bytes -= _bytes_of(evicted)
        for number, waiter in enumerate(self._waiting.pop(key, ())):
            waiter(CompileOutcome(outcome, seconds, cached=number > 0))


def _bytes_of(grammar: Grammar) -> int:
    return max(_LEAST_BYTES, grammar.report.memory_bytes)
