"""The record of grammars that took a process down, and of those that may have.

A grammar that is alone responsible for a process that died or hung gets a strike; the second one quarantines it. Where
several grammars were under way nobody can tell which it was: they are suspects, and run alone from then on, so that the
next death has one candidate.

The record is bounded, and what is in it leaves for newer entries of the same kind only, the longest unused first. Three
kinds, so that nothing cheap pushes out what was dear to learn:

- Grammars that took a worker with them. To push one out takes as many worker deaths as the record holds, each followed
  by
  the pause of the restart.
- Grammars that crashed compile children only. A child costs a few milliseconds, so these can be pushed out in minutes.
  What
  is won by it is two more dead children, which any grammar that was never seen has too.
- Suspects. To forget one costs its neighbours a death, and makes it a suspect again.

There is no expiry: a grammar that crashes once a day would never be caught, and crashes do not wear off. A new daemon
begins
with an empty record, for it may have other libraries.
Owns: strikes and suspicions. Pure. Knows nothing about: processes, sessions, compiles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["STRIKES", "Key", "Quarantine"]

Key = tuple[bytes, bytes]
"""(fingerprint of the vocabulary, digest of the spec)"""
STRIKES = 2


class Quarantine:
    """Strikes and suspicions by content.

    Args:
        limit: entries of each kind.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_children: OrderedDict[Key, int] = OrderedDict()
        self._of_workers: OrderedDict[Key, int] = OrderedDict()
        self._suspects: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of_children) + len(self._of_workers) + len(self._suspects)

    def strike(self, key: Key, *, of_worker: bool) -> int:
        """Counts one more process that died of ``key`` alone, a worker or a compile child, and returns its strikes."""
        of_worker = of_worker or key in self._of_workers
        strikes = self._of_workers.pop(key, 0) + self._of_children.pop(key, 0) + 1
        self._put(self._of_workers if of_worker else self._of_children, key, strikes)
        return strikes

    def holds(self, key: Key) -> bool:
        """Whether the grammar is quarantined."""
        for record in (self._of_workers, self._of_children):
            if key in record:
                record.move_to_end(key)
                return record[key] >= STRIKES
        return False

    def suspect(self, keys: Iterable[Key]) -> None:
        """Marks grammars of which one, nobody knows which, took its worker down."""
        for key in keys:
            self._suspects.pop(key, None)
            self._put(self._suspects, key, None)

    def is_suspect(self, key: Key) -> bool:
        """Whether the grammar must run alone."""
        if key in self._suspects:
            self._suspects.move_to_end(key)
            return True
        return False

    def _put(self, record: OrderedDict[Key, int] | OrderedDict[Key, None], key: Key, value: int | None) -> None:
        record[key] = value  # type: ignore[assignment]
        while len(record) > self._limit:
            record.popitem(last=False)
