"""The tokens of a vocabulary, sorted by what they can do to a watched text.

Most tokens are harmless at most places: they only go on with a string. The others are few, and are found once.
Owns: which tokens are worth a look at a reading. Knows nothing about: grammars, what becomes of them.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from maskd.backends.watching.agreement import StringBeginning
from maskd.backends.watching.rivals import begun_in, is_spared, rivals_of
from maskd.backends.watching.scanner import Frame, Reading, Stand
from maskd.backends.watching.values import canonical
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.vocabulary import Vocabulary

__all__ = ["WatchTokens", "is_between_characters"]

Ids = NDArray[np.int64]

_OUTSIDE = re.compile(
    rb"(?:rue|ue|e|alse|lse|se|ull|ll|l)?"
    rb'(?:[ \t\r\n,:\[\]{}0-9.eE+\-]|true|false|null|"(?:[^"\\]|\\.)*")*'
    rb'(?:"(?:[^"\\]|\\.)*\\?|t|tr|tru|f|fa|fal|fals|n|nu|nul)?',
    re.DOTALL,
)
"""What can stand outside strings, or begins there."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*("?)', re.DOTALL)
_LOUD = re.compile(rb'[\]}\[{eEtfn]|""|[0-9][^0-9.eE+\-]')
"""Where strings are empty: ends an item or a key that it begins, or a container, or begins a word or an exponent."""
_ENDING = re.compile(rb"[0-9a-zA-Z.+\-]*[ \t\r\n,\]}]")
"""Ends a number or a word that has begun before it."""
_STRING_END = re.compile(rb'([^"\\]*)"[ \t\r\n]*[,:]?[ \t\r\n]*"?')
"""Ends a string, and at most begins another one."""
_SCALAR_END = re.compile(rb"([0-9a-zA-Z.+\-]*)[ \t\r\n]*(?:(?<=[ \t\r\n])|,)[ \t\r\n]*\"?")
"""Ends a number or a word, and at most begins a string."""
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
_ESCAPE_BYTES = 12
_OPENING = re.compile(rb"[\[{](?=.*[,:])", re.DOTALL)
"""Opens a container and may go on to a second item, or to the value of a key."""


class WatchTokens:
    """The tokens of ``vocabulary``. Immutable.

    Attributes:
        texts: the bytes of every id.
        row_words: the width of a row.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.texts = vocabulary.tokens
        never = {*vocabulary.special_token_ids, *vocabulary.stop_token_ids}
        ids = [number for number, text in enumerate(self.texts) if text and number not in never]
        outside = [number for number in ids if _OUTSIDE.fullmatch(self.texts[number])]
        self._outside = _ids(outside)
        self._outside_not_white = _ids(number for number in outside if self.texts[number].strip(b" \t\r\n"))
        self._loud = _ids(number for number in outside if _LOUD.search(_without_strings(self.texts[number])))
        ending = (number for number in outside if _ENDING.match(self.texts[number]))
        self._loud_or_ending = np.union1d(self._loud, _ids(ending))
        self._quoted = _ids(number for number in ids if b'"' in self.texts[number])
        self._escaping = _ids(number for number in ids if b"\\" in self.texts[number])
        self._escaped_ends = _ids(number for number in self._quoted.tolist() if b"\\" in self.texts[number])
        self._ending_strings, self._loud_strings = self._grouped(self._quoted, _STRING_END)
        self._ending_scalars, self._loud_scalars = self._grouped(self._loud_or_ending, _SCALAR_END)
        self._closing = self._with(rb"[\]}]", self._quoted), self._with(rb"[\]}]", self._outside)
        self._marking = self._with(rb"[\]}:]", self._quoted), self._with(rb"[\]}:]", self._outside)
        self._fixing = self._with(rb"[.0]", self._outside)
        self._opening = _ids(number for number in ids if _opens(self.texts[number]))
        self._sorted = sorted(ids, key=self.texts.__getitem__)
        self.row_words = row_stride_words(vocabulary.vocab_size)
        self._longest = max(map(len, self.texts), default=0)
        self._bytes = _ids(number for number in ids if len(self.texts[number]) == 1)
        single = {self.texts[number][0] for number in self._bytes.tolist()}
        self._has_all_bytes = single.issuperset(b"".join({self.texts[number] for number in ids}))

    @staticmethod
    def allowed(ids: Ids, row: NDArray[np.int32]) -> Ids:
        """Returns those of ``ids`` that ``row`` allows."""
        found: Ids = ids[(row[ids >> 5] >> (ids & 31).astype(np.int32)) & 1 != 0]
        return found

    def steps(self, row: NDArray[np.int32]) -> list[int]:
        """Returns tokens that ``row`` allows, such that every text that it allows can be made of such steps."""
        ids = self._bytes if self._has_all_bytes else allowed_token_ids(row)
        return [number for number in self.allowed(ids, row).tolist() if number < len(self.texts) and self.texts[number]]

    def _with(self, pattern: bytes, ids: Ids) -> Ids:
        return _ids(number for number in ids.tolist() if re.search(pattern, self.texts[number]))

    def _grouped(self, ids: Ids, quiet: re.Pattern[bytes]) -> tuple[dict[bytes, Ids], Ids]:
        """Divides ``ids`` into those that end a scalar and do no more, by what the scalar ends with, and the others."""
        ending: dict[bytes, list[int]] = {}
        loud = []
        for number in ids.tolist():
            found = quiet.fullmatch(self.texts[number])
            if found is not None:
                ending.setdefault(found[1], []).append(number)
            else:
                loud.append(number)
        return {text: _ids(numbers) for text, numbers in ending.items()}, _ids(loud)

    def worth_a_look(self, reading: Reading, row: NDArray[np.int32]) -> Iterator[int]:
        """Yields the tokens that ``row`` allows and that may not be allowed behind ``reading``."""
        frame, stand = reading.frame, reading.stand
        if frame is None or not frame.watched:
            ids = self._opening
        elif (marks := self._marks_that_matter(frame, reading)) is not None:
            ids = marks
        elif stand in (Stand.KEY, Stand.STRING, Stand.ELSEWHERE_STRING):
            if (
                reading.is_escaped
                or _is_escaping(reading)
                or not (frame.is_endless or _only_strings_end(frame, reading))
            ):
                ids = self._quoted
            else:
                ids = self._loud_strings
                if stand is not Stand.ELSEWHERE_STRING:
                    yield from self._repeating(frame, reading, row)
            if not frame.is_endless:
                yield from self._along(frame, reading, row)
        elif not frame.is_endless:
            ids = self._outside if stand in (Stand.SCALAR, Stand.ELSEWHERE) else self._outside_not_white
        elif stand is Stand.SCALAR:
            ids = self._loud_scalars
            if reading.depth == 0 and frame.is_differing:
                yield from self._ending_again(frame, reading, row)
        else:
            ids = self._loud
        if _holds_integers(frame) and stand in (Stand.VALUE, Stand.BEHIND, Stand.SCALAR):
            yield from self.allowed(self._fixing, row).tolist()
        if ids.size:
            yield from self.allowed(ids, row).tolist()

    def _marks_that_matter(self, frame: Frame, reading: Reading) -> Ids | None:
        """Returns tokens to look at within an object that may run out, if few of them can make it so; None = others
        can, too."""
        if frame.is_endless or not reading.depth or not frame.is_differing:
            return None
        assert frame.array is not None and frame.array.differing is not None
        if not frame.array.differing.endless_start or not (frame.outer is None or frame.outer.is_endless):
            return None
        beginning, is_outside = begun_in(reading, frame), reading.stand is Stand.ELSEWHERE
        if is_spared(beginning, frame.array.differing, is_between=True):
            return self._marking[is_outside]
        return None if rivals_of(reading, frame, beginning) else self._closing[is_outside]

    def _repeating(self, frame: Frame, reading: Reading, row: NDArray[np.int32]) -> Iterator[int]:
        """Yields tokens that may end a string or key as one that was there."""
        if not frame.seen or frame.is_differing != (reading.stand is Stand.STRING):
            return
        beginning = begun_in(reading, frame)
        rivals = rivals_of(reading, frame, beginning)
        assert isinstance(beginning, StringBeginning)
        begun = _open_bytes(reading)
        for text in rivals:
            rest = _spelled(str(text)[len(beginning.text) :])
            if rest.startswith(begun) and (ids := self._ending_strings.get(rest[len(begun) :])) is not None:
                yield from self.allowed(ids, row).tolist()
        if rivals:
            yield from self.allowed(self._escaped_ends, row).tolist()

    def _ending_again(self, frame: Frame, reading: Reading, row: NDArray[np.int32]) -> Iterator[int]:
        """Yields tokens that end a number or a word as one that was there."""
        assert frame.seen is not None
        begun = reading.text.since(frame.start)
        for text, ids in self._ending_scalars.items():
            allowed = self.allowed(ids, row).tolist()
            try:
                is_there = bool(allowed) and canonical(begun + text) in frame.seen
            except ValueError:  # an exponent of thousands of digits
                is_there = True
            if is_there:
                yield from allowed

    def _along(self, frame: Frame, reading: Reading, row: NDArray[np.int32]) -> Iterator[int]:
        """Yields tokens that go on with a string as something does that was there."""
        if reading.is_escaped or _is_escaping(reading):
            yield from (number for number in allowed_token_ids(row).tolist() if number < len(self.texts))
            return
        rests = set(_rests(frame, reading))
        if rests:
            found = set[int]()
            tried = set[bytes]()
            for rest in rests:
                found.update(self._prefixes(rest, tried))
            yield from self.allowed(_ids(sorted(found)), row).tolist()
            if any(b"\\" in rest or b"/" in rest for rest in rests):  # other characters have one spelling
                yield from self.allowed(self._escaping, row).tolist()

    def _prefixes(self, text: bytes, tried: set[bytes]) -> Iterator[int]:
        """Yields the tokens that ``text`` begins with, without those of the prefixes that were ``tried``."""
        for length in range(1, min(len(text), self._longest) + 1):
            prefix = text[:length]
            if prefix in tried:
                continue
            tried.add(prefix)
            at = bisect_left(self._sorted, prefix, key=self.texts.__getitem__)
            if at == len(self._sorted) or not self.texts[self._sorted[at]].startswith(prefix):
                return
            while at < len(self._sorted) and self.texts[self._sorted[at]] == prefix:
                yield self._sorted[at]
                at += 1


def _holds_integers(frame: Frame | None) -> bool:
    """Whether a point or a zero can leave a number of ``frame`` one value only."""
    differing = frame.array.differing if frame is not None and frame.array is not None else None
    return differing is not None and differing.numbers == "integers"


def _only_strings_end(frame: Frame, reading: Reading) -> bool:
    """Whether a token that only ends the present string is harmless unless it makes it one that was there."""
    if reading.depth or not (frame.outer is None or frame.outer.is_endless):
        return False
    if frame.array is not None:
        differing = frame.array.differing
        return differing is not None and differing.endless_start
    members = frame.object.members if frame.object is not None else None
    return members is not None and frame.seen is not None and any(name not in frame.seen for name in members.free)


def _rests(frame: Frame, reading: Reading) -> Iterator[bytes]:
    """Yields how the string at the end of ``reading`` goes on in what was there and agrees with it so far."""
    begun = _open_bytes(reading)
    inner: Frame | None = frame
    while inner is not None and inner.watched:
        is_key = inner is frame and reading.depth == 0 and reading.stand is Stand.KEY
        if inner.seen and (inner.start >= 0 or is_key):
            beginning = begun_in(reading, inner)
            rivals = rivals_of(reading, inner, beginning)
            last = beginning.last
            assert isinstance(last, StringBeginning)
            for value in rivals:
                for text in beginning.strings(value):
                    rest = _spelled(text[len(last.text) :])
                    if rest.startswith(begun):
                        yield rest[len(begun) :]
        inner = inner.outer


def _spelled(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


def _is_escaping(reading: Reading) -> bool:
    """Whether an escape sequence at the end of the text is not whole, or may be the first half of a character."""
    return _ESCAPE.search(reading.text.since(reading.text.size - _ESCAPE_BYTES)) is not None


def is_between_characters(reading: Reading) -> bool:
    """Whether the text ends between two characters of a string, not within one."""
    return not (reading.is_escaped or _is_escaping(reading) or _open_bytes(reading))


def _open_bytes(reading: Reading) -> bytes:
    """Returns the bytes at the end of the text of ``reading`` that begin a character of UTF-8."""
    text = reading.text.since(reading.text.size - 3)
    for size in (1, 2, 3):
        first = text[-size:][:1]
        if first >= b"\xc0":  # begins a character of 2, 3 or 4 bytes
            return text[-size:] if size < 2 + (first >= b"\xe0") + (first >= b"\xf0") else b""
    return b""


def _opens(text: bytes) -> bool:
    """Whether all that is in a container may be wrong by the end of ``text``, which opens it."""
    return any(_OUTSIDE.fullmatch(text, found.start()) for found in _OPENING.finditer(text))


def _without_strings(text: bytes) -> bytes:
    return _STRING.sub(rb'"\1', text)


def _ids(numbers: Iterable[int]) -> Ids:
    return np.fromiter(numbers, dtype=np.int64)
