"""The text of a sequence, byte by byte, along the places of a watch.

A ``Reading`` is an immutable point of the text. It has the containers that are open, and what was in those that are
watched. A token leads to the next reading. The scanner is no parser: it trusts the grammar that the text is JSON. It
says that an item or a key is there again. It says that an object ends without a name that it must have.
Source: RFC 8259. Equality: ``values``.
Owns: readings. Knows nothing about: rows, matchers, whether a beginning can be completed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from maskd.backends.watching.record import EMPTY_RECORD, Record
from maskd.backends.watching.values import Seen, canonical, nothing_seen
from maskd.errors import BackendError
from maskd.json_schema.compiler.watch import ArrayPlace, ObjectPlace, WatchedPlace

__all__ = ["Frame", "Reading", "Rivals", "Stand", "start"]

_WHITE = b" \t\r\n"
_IN_STRING = re.compile(rb'[^"\\]*')
_IN_SCALAR = re.compile(rb"[0-9a-zA-Z.+\-]*")
_BETWEEN = re.compile(rb'[^"\[\]{}]*')
_ENDS_STRING = re.compile(rb'["\\]')


class Stand(IntEnum):
    """Where a reading stands in its innermost container, or in the document."""

    VALUE = 0
    """Before a value."""
    FIRST = 1
    """Behind the opening bracket or brace."""
    NEXT_KEY = 2
    """Behind the comma of an object."""
    KEY = 3
    """In a key."""
    COLON = 4
    """Behind a key."""
    STRING = 5
    """In a string that is a value."""
    SCALAR = 6
    """In a number, or in true, false or null."""
    BEHIND = 7
    """Behind a value."""
    ELSEWHERE = 8
    """In a container in which nothing is watched, outside its strings."""
    ELSEWHERE_STRING = 9
    """In a string of such a container."""


@dataclass(slots=True, eq=False)
class Frame:
    """An open container with something watched in it or below. Immutable.

    Attributes:
        outer: the frame around it.
        array, object: its place; one of them is None.
        seen: items or keys that were there; None = it is not watched itself.
        begun: how many items have begun.
        start: where its present item begins in the text of the reading; -1 = there is none.
        watched: how many frames are watched, from the outermost to this one.
        recorders: how many frames have their present item recorded, from the outermost to this one.
        is_endless: whether nothing that is watched, from the outermost to this one, can run out.
    """

    outer: Frame | None
    array: ArrayPlace | None
    object: ObjectPlace | None
    seen: Seen | None
    begun: int
    start: int
    watched: int
    recorders: int
    is_endless: bool

    @property
    def is_differing(self) -> bool:
        """Whether it is an array whose items must differ."""
        return self.array is not None and self.seen is not None

    def with_start(self, start: int) -> Frame:
        """Returns the frame with another item that begins at ``start``."""
        outer = self.outer.recorders if self.outer is not None else 0
        return Frame(
            self.outer, self.array, self.object, self.seen, self.begun + 1, start, self.watched, outer + (start >= 0),
            self.is_endless,
        )  # fmt: skip

    def with_seen(self, value: Hashable) -> Frame:
        """Returns the frame without a present item, and with ``value`` among those that were there."""
        assert self.seen is not None
        outer = self.outer.recorders if self.outer is not None else 0
        return Frame(
            self.outer, self.array, self.object, self.seen.with_value(value), self.begun, -1, self.watched, outer,
            self.is_endless,
        )  # fmt: skip


class Rivals(NamedTuple):
    """Values that were there and agree with an item that has begun.

    Attributes:
        seen, start: of the frame of the item; they tell items apart.
        values: canonical.
    """

    seen: Seen
    start: int
    values: list[Hashable]


@dataclass(slots=True, eq=False)
class Reading:
    """A point of the text. Immutable but for ``rivals``, which are found when they are asked for.

    Attributes:
        frame: the innermost open frame; None = none is open.
        stand: where it stands there.
        depth: how many containers are open in it in which nothing is watched.
        is_escaped: the last character is a backslash that escapes the next one.
        is_recorded: whether ``text`` is kept.
        text: from the start of the outermost item, or of the key, that is recorded.
        start: where the present key begins in ``text``.
        place: of the value that follows.
        rivals: what was there and agrees with the present item, or that of an earlier reading; None = not known.
    """

    frame: Frame | None
    stand: Stand
    depth: int
    is_escaped: bool
    is_recorded: bool
    text: Record
    start: int
    place: WatchedPlace | None
    rivals: Rivals | None = None

    @property
    def watched(self) -> int:
        """How many of the open containers are watched."""
        return self.frame.watched if self.frame is not None else 0

    def after(self, token: bytes) -> Reading | None:
        """Returns the reading behind ``token``; None = the token repeats something, ends an object too early, or is
        not JSON here.

        Raises:
            BackendError: an item is nested too deeply to be compared.
        """
        if self.stand in _STRINGS and not self.is_escaped and not _ENDS_STRING.search(token):
            if not self.is_recorded:
                return self
            return Reading(
                self.frame, self.stand, self.depth, False, True, self.text + token, self.start, self.place, self.rivals
            )
        return _Scan(self, token).end()


_STRINGS = (Stand.KEY, Stand.STRING, Stand.ELSEWHERE_STRING)


def start(place: WatchedPlace) -> Reading:
    """Returns the reading of an empty text, for the watch that begins at ``place``."""
    return Reading(None, Stand.VALUE, 0, False, False, EMPTY_RECORD, 0, place)


class _Scan:
    """One token on its way through a reading."""

    __slots__ = (
        "_at", "_kept", "_rivals", "_token",
        "depth", "frame", "is_escaped", "is_recorded", "place", "stand", "start", "text",
    )  # fmt: skip

    def __init__(self, reading: Reading, token: bytes) -> None:
        self.frame, self.stand, self.depth = reading.frame, reading.stand, reading.depth
        self.is_escaped, self.is_recorded = reading.is_escaped, reading.is_recorded
        self.text, self.start, self.place = reading.text, reading.start, reading.place
        self._token, self._at, self._rivals = token, 0, reading.rivals
        self._kept = 0
        """The token from here on belongs to the record and is not in ``text`` yet."""

    def end(self) -> Reading | None:
        try:
            while self._at < len(self._token):
                if not self._move():
                    return None
        except ValueError:
            return None
        except RecursionError:
            raise BackendError("an item is nested too deeply to be compared with others") from None
        text = self.text + self._token[self._kept :] if self.is_recorded else EMPTY_RECORD
        return Reading(
            self.frame, self.stand, self.depth, self.is_escaped, self.is_recorded, text, self.start, self.place,
            self._rivals,
        )  # fmt: skip

    def _move(self) -> bool:
        """Takes at least one byte, or ends a scalar; returns False if the token is not allowed."""
        stand = self.stand
        if stand in _STRINGS:
            return self._in_string()
        if stand is Stand.SCALAR:
            found = _IN_SCALAR.match(self._token, self._at)
            assert found is not None
            self._at = found.end()
            return self._at == len(self._token) or self._end_value()
        if stand is Stand.ELSEWHERE:
            return self._elsewhere()
        byte = self._token[self._at]
        if byte in _WHITE:
            self._at += 1
            return True
        if stand is Stand.BEHIND:
            return self._behind(byte)
        if stand is Stand.COLON:
            self._at += 1
            self.stand = Stand.VALUE
            return byte == 0x3A
        if byte in b"]}":
            return stand is Stand.FIRST and self._close()
        if stand is Stand.VALUE or (self.frame is not None and self.frame.array is not None):
            return self._begin_value(byte)
        if not self.is_recorded:
            self._record()
        self.start = self._offset()
        self._at += 1
        self.stand = Stand.KEY
        return byte == 0x22

    # -- the record ------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        self.is_recorded, self.text, self._kept = True, EMPTY_RECORD, self._at

    def _offset(self) -> int:
        return self.text.size + self._at - self._kept

    def _recorded(self, begin: int) -> bytes:
        """Returns the record from ``begin`` up to here."""
        self.text = self.text + self._token[self._kept : self._at]
        self._kept = self._at
        return self.text.since(begin)

    def _forget(self) -> None:
        """Ends the record if no item around is recorded."""
        if self.frame is None or not self.frame.recorders:
            self.is_recorded = False

    # -- strings, and where nothing is watched ---------------------------------------------------------------------

    def _in_string(self) -> bool:
        if self.is_escaped:
            self.is_escaped = False
            self._at += 1
            return True
        found = _IN_STRING.match(self._token, self._at)
        assert found is not None
        self._at = found.end()
        if self._at == len(self._token):
            return True
        self._at += 1
        if self._token[self._at - 1] == 0x5C:
            self.is_escaped = True
            return True
        if self.stand is Stand.KEY:
            return self._end_key()
        if self.stand is Stand.STRING:
            return self._end_value()
        self.stand = Stand.ELSEWHERE
        return True

    def _elsewhere(self) -> bool:
        found = _BETWEEN.match(self._token, self._at)
        assert found is not None
        self._at = found.end()
        if self._at == len(self._token):
            return True
        byte = self._token[self._at]
        self._at += 1
        if byte == 0x22:
            self.stand = Stand.ELSEWHERE_STRING
        elif byte in b"[{":
            self.depth += 1
        else:
            self.depth -= 1
            return bool(self.depth) or self._end_value()
        return True

    # -- values and keys -------------------------------------------------------------------------------------------

    def _begin_value(self, byte: int) -> bool:
        frame = self.frame
        if frame is not None and frame.array is not None:
            self.place = frame.array.item(frame.begun)
            begin = -1
            if frame.seen is not None:
                if not self.is_recorded:
                    self._record()
                begin = self._offset()
            self.frame = frame.with_start(begin)
        if byte not in b"[{":
            self.stand = Stand.STRING if byte == 0x22 else Stand.SCALAR
            self._at += byte == 0x22
            return byte == 0x22 or byte in b"-0123456789tfn"
        self._at += 1
        array = self.place.array if self.place is not None and byte == 0x5B else None
        member = self.place.object if self.place is not None and byte == 0x7B else None
        if array is None and member is None:
            self.depth, self.stand = 1, Stand.ELSEWHERE
            return True
        outer = self.frame
        differing = array.differing if array is not None else None
        members = member.members if member is not None else None
        is_watched = differing is not None or members is not None
        is_endless = (differing is None or differing.is_endless) and (members is None or members.endless)
        self.frame = Frame(
            outer,
            array,
            member,
            nothing_seen() if is_watched else None,
            0,
            -1,
            (outer.watched if outer is not None else 0) + is_watched,
            outer.recorders if outer is not None else 0,
            is_endless and (outer is None or outer.is_endless),
        )
        self.stand = Stand.FIRST
        return True

    def _end_value(self) -> bool:
        frame = self.frame
        self.stand = Stand.BEHIND
        if frame is not None and frame.is_differing:
            assert frame.seen is not None
            value = canonical(self._recorded(frame.start))
            if value in frame.seen:
                return False
            self.frame = frame.with_seen(value)
        self._forget()
        return True

    def _end_key(self) -> bool:
        frame = self.frame
        assert frame is not None and frame.object is not None
        key = json.loads(self._recorded(self.start))
        self.place, self.stand = frame.object.value(key), Stand.COLON
        if frame.seen is not None:
            if key in frame.seen:
                return False
            self.frame = frame.with_seen(key)
        self._forget()
        return True

    def _behind(self, byte: int) -> bool:
        if self.frame is None:
            return False
        if byte == 0x2C:
            self._at += 1
            self.stand = Stand.VALUE if self.frame.array is not None else Stand.NEXT_KEY
            return True
        return byte in b"]}" and self._close()

    def _close(self) -> bool:
        frame = self.frame
        assert frame is not None
        members = frame.object.members if frame.object is not None else None
        if members is not None and members.required:
            assert frame.seen is not None
            if not all(name in frame.seen for name in members.required):
                return False
        self._at += 1
        self.frame = frame.outer
        return self._end_value()
