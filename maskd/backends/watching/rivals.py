"""The rivals of an item that has begun: what was there and agrees with it so far.

They become fewer with every token. So the rivals of a reading are looked for among those of the reading before it.
Owns: that search. Knows nothing about: tokens, grammars.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from maskd.backends.watching.agreement import (
    Beginning,
    NumberBeginning,
    ObjectBeginning,
    StringBeginning,
    beginning_of,
)
from maskd.backends.watching.scanner import Frame, Reading, Rivals
from maskd.json_schema.compiler.watch import Differing

__all__ = ["begun_in", "is_spared", "rivals_of"]


def begun_in(reading: Reading, frame: Frame) -> Beginning:
    """Returns the present item or key of ``frame``, as far as it is there.

    Raises:
        ValueError: it is not JSON.
    """
    return beginning_of(reading.text.since(_start(reading, frame)))


def rivals_of(reading: Reading, frame: Frame, beginning: Beginning) -> list[Hashable]:
    """Returns what was there and agrees with ``beginning``, the present item or key of ``frame``."""
    assert frame.seen is not None
    known: Iterable[Hashable] = frame.seen
    start = _start(reading, frame)
    if reading.rivals is not None and reading.rivals.seen is frame.seen and reading.rivals.start == start:
        known = reading.rivals.values
    found = list(filter(beginning.agrees, known))
    reading.rivals = Rivals(frame.seen, start, found)
    return found


def _start(reading: Reading, frame: Frame) -> int:
    return frame.start if frame.array is not None else reading.start


def is_spared(beginning: Beginning, differing: Differing, *, is_between: bool = False) -> bool:
    """Says whether it is known of an item that more can become of it than there can ever be; with ``is_between``,
    whatever becomes of the member that has begun."""
    if not isinstance(beginning, ObjectBeginning):
        return False
    begun = dict(beginning.members)
    last = next(reversed(begun), None) if beginning.key is None and not is_between else None
    if last is not None and _goes_on(begun[last]):
        del begun[last]
    return all(not spares <= begun.keys() for spares in differing.spares)


def _goes_on(value: Beginning) -> bool:
    """Whether a member that never runs out may still become many values."""
    if isinstance(value, NumberBeginning):
        return value.text.lstrip("-").isdecimal() and value.text.lstrip("-") != "0"
    return isinstance(value, StringBeginning) or type(value) is Beginning
