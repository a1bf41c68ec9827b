"""The grammar cache of a worker: compiled once per content, many waiters, least recently used out first, limited by
bytes.

Owns: the cache and the single flight. Used by one thread, the worker's data path; only ``compile`` runs elsewhere, and
    its
outcome comes back through ``finish``.
Knows nothing about: threads, sessions, sockets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from maskd.backends.base import Grammar
from maskd.errors import MaskdError

__all__ = ["Compiled", "GrammarCache", "Key"]

_LEAST_BYTES = 64 << 10
"""What a grammar is counted as at least: not every library can tell its size, and a count of 0 would bound nothing."""

Key = tuple[bytes, bytes]
"""(fingerprint of the vocabulary, digest of the spec)"""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The outcome of a compile, as one waiter gets it."""

    outcome: Grammar | MaskdError
    seconds: float
    cached: bool


Waiter = Callable[[Compiled], None]


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
        """Calls ``waiter`` now if the grammar is there, else when it is compiled. Returns True if the caller must
        start the compile; False if it is there or under way."""
        grammar = self._compiled.get(key)
        if grammar is not None:
            self._compiled.move_to_end(key)
            waiter(Compiled(grammar, 0.0, cached=True))
            return False
        waiters = self._waiting.get(key)
        if waiters is not None:
            waiters.append(waiter)
            return False
        self._waiting[key] = [waiter]
        return True

    def finish(self, key: Key, outcome: Grammar | MaskdError, seconds: float) -> None:
        """Answers everybody who waits for ``key``. Errors are not remembered: the next request compiles again."""
        if not isinstance(outcome, MaskdError):
            self._compiled[key] = outcome
            self.bytes += _bytes_of(outcome)
            while self.bytes > self._limit and len(self._compiled) > 1:
                _, evicted = self._compiled.popitem(last=False)
                self.bytes -= _bytes_of(evicted)
        for number, waiter in enumerate(self._waiting.pop(key, ())):
            waiter(Compiled(outcome, seconds, cached=number > 0))


def _bytes_of(grammar: Grammar) -> int:
    return max(_LEAST_BYTES, grammar.report.memory_bytes)
