"""The record of grammars that took a process down, and of those that may have.

A grammar that alone is responsible for a process that died or hung gets a strike. The second strike quarantines it.
If several grammars were under way, each of them may be at fault. All become suspects and run alone from then on, so
the next death has one candidate.

The record is bounded: a new entry pushes out the longest unused entry of the same kind. There are three kinds, so that
what is cheap to learn never pushes out what was dear:

- Grammars that took a worker down. To push one out, an attacker needs as many worker deaths as the record holds. Each
  is followed by the pause of a restart.
- Grammars that crashed compile children only. A child costs a few milliseconds, so these can be pushed out in minutes.
  The attacker gains two more dead children, which any new grammar costs too.
- Suspects. A forgotten suspect costs its neighbours one more death, and is a suspect again.

Entries do not expire: a grammar that crashes once a day would never be caught. A new daemon begins with an empty
record, for it may have other libraries.
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
        """Counts one more process, a worker or a compile child, that died of ``key`` alone. Returns the strikes."""
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
        """Marks grammars one of which took their worker down."""
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
