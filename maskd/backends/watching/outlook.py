"""Whether a reading can still be completed: what has begun may become something that was not there yet.

A beginning is compared with what was there. If it agrees with none of that, it is fine. Else the watch may know that it
can become infinitely many things. Where it does not, the grammar is asked. The search goes along what was there
only. A step that leaves all of that behind is the proof.
Owns: the verdict on a reading, and the search. Knows nothing about: rows beyond the one of the search.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from maskd.backends.base import Matcher
from maskd.backends.watching.agreement import NumberBeginning, StringBeginning, WordBeginning
from maskd.backends.watching.rivals import begun_in, is_spared, rivals_of
from maskd.backends.watching.scanner import Frame, Reading, Stand
from maskd.backends.watching.tokens import WatchTokens, is_between_characters
from maskd.backends.watching.values import Seen, number_of
from maskd.json_schema.compiler.watch import Differing, Numbers
from maskd.regular.amounts import has_texts
from maskd.regular.expression import derivative

__all__ = ["Search", "outlook"]

_MOST_LOOKS = 2_000
"""Rows that one search may ask for. Behind them a beginning is taken for one that can be completed."""
_MOST_ZEROS = 16
_has_texts = functools.lru_cache(maxsize=1 << 12)(has_texts)


def outlook(reading: Reading) -> bool | None:
    """Says whether ``reading`` can be completed as far as its watch is concerned; None = the grammar must be asked."""
    frame, is_direct, found = reading.frame, reading.depth == 0, True
    if frame is not None and frame.is_endless and reading.stand is not Stand.SCALAR:
        return True
    while frame is not None and frame.watched:
        if frame.seen:
            verdict = _items(frame, reading, is_direct) if frame.array is not None else _keys(frame, reading, is_direct)
            if verdict is False:
                return False
            found = found and verdict is True
        frame, is_direct = frame.outer, False
    return True if found else None


def _items(frame: Frame, reading: Reading, is_direct: bool) -> bool | None:
    assert frame.array is not None and frame.array.differing is not None and frame.seen is not None
    differing, stand = frame.array.differing, reading.stand
    if is_direct and stand is Stand.VALUE:
        if differing.words is not None:
            return len(frame.seen) < len(differing.words)
        return True if differing.endless_start else None
    if frame.start < 0 or (differing.endless_composites if not is_direct else False):
        return True
    is_counted = is_direct and stand is Stand.STRING and is_between_characters(reading)
    if is_direct and stand is Stand.STRING and differing.endless_strings:
        return True
    if is_counted and _strings(_begun_string(reading, frame), differing, len(frame.seen)):
        return True
    try:
        beginning = begun_in(reading, frame)
    except ValueError:  # not JSON, which the scanner does not see where nothing is watched; the grammar refuses it
        return None
    if is_spared(beginning, differing):
        return True
    rivals = rivals_of(reading, frame, beginning)
    if not rivals or isinstance(beginning, WordBeginning):
        return not rivals
    if isinstance(beginning, NumberBeginning):
        return _numbers(beginning.text, differing.numbers, frame.seen)
    if isinstance(beginning, StringBeginning) and is_counted:
        return _strings(beginning.text, differing, len(rivals))
    return None


def _begun_string(reading: Reading, frame: Frame) -> str:
    beginning = begun_in(reading, frame)
    assert isinstance(beginning, StringBeginning)
    return beginning.text


def _numbers(text: str, numbers: Numbers, seen: Seen) -> bool | None:
    """Says whether the beginning ``text`` of a number can become one that was not there."""
    if numbers == "any":
        return number_of("0") not in seen if re.fullmatch(r"-?0(\.0*)?[eE].*", text) else True
    if numbers == "some" or text == "-":
        return None
    integer, point, _ = text.partition(".")
    return number_of(integer) not in seen if point or integer in ("0", "-0") else True


def _strings(text: str, differing: Differing, rivals: int) -> bool | None:
    """Says whether there are more strings that begin with ``text`` than the ``rivals`` that were there."""
    if differing.words is not None:
        words = differing.words
        return rivals < bisect_left(words, text + "\U0010ffff\U0010ffff") - bisect_left(words, text)
    if differing.strings is None:
        return None
    rest = differing.strings
    for char in text:
        rest = derivative(rest, char)
    return True if _has_texts(rest, rivals + 1) else None


def _keys(frame: Frame, reading: Reading, is_direct: bool) -> bool | None:
    assert frame.object is not None and frame.object.members is not None and frame.seen is not None
    members = frame.object.members
    if not is_direct or members.endless or reading.stand not in (Stand.KEY, Stand.NEXT_KEY):
        return True
    text = ""
    if reading.stand is Stand.KEY:
        beginning = begun_in(reading, frame)
        assert isinstance(beginning, StringBeginning)
        text = beginning.text
    if not any(str(key).startswith(text) for key in frame.seen):
        return True
    if not is_between_characters(reading):
        return None
    if any(name.startswith(text) and name not in frame.seen for name in members.free):
        return True
    return False if members.only_free else None


class Search:
    """Asks the grammar whether a reading can be completed.

    Args:
        tokens: the vocabulary.
        row: to write rows into, (row_stride_words,) int32.
        stop_token_ids: of the grammar.
    """

    def __init__(self, tokens: WatchTokens, row: NDArray[np.int32], stop_token_ids: frozenset[int]) -> None:
        self._tokens, self._row, self._stop = tokens, row, np.array(sorted(stop_token_ids))
        self._known: dict[bytes, bool] = {}
        self._looks = 0

    def may_follow(self, matcher: Matcher, token_id: int, reading: Reading) -> bool:
        """Says whether ``token_id`` leaves a way to the end.

        Args:
            matcher: before ``token_id``; stays as it is.
            reading: behind it.

        Raises:
            BackendError: the library gave up.
        """
        verdict = outlook(reading)
        if verdict is not None:
            return verdict
        waiting, tried = [(matcher, token_id, reading, b"")], set[bytes]()
        while waiting:
            before, token_id, reading, begun = waiting.pop()
            begun += self._tokens.texts[token_id]
            if begun in tried:
                continue
            is_known = self._known.get(begun)
            if is_known is None:
                tried.add(begun)
                here = before.fork()
                unsure = self._unsure(here, reading) if here.accept((token_id,)) == 1 else []
                is_known = unsure is None
                waiting += [(here, token_id, following, begun) for token_id, following in unsure or ()]
            if is_known:
                self._known.update((one, True) for one in tried if begun.startswith(one))
                return True
        self._known.update(dict.fromkeys(tried, False))
        return False

    def _unsure(self, matcher: Matcher, reading: Reading) -> list[tuple[int, Reading]] | None:
        """Returns the steps behind ``reading`` of which it is not known whether they lead on; None = something does."""
        self._looks += 1
        if self._looks > _MOST_LOOKS:
            return None
        matcher.fill_bitmask(self._row)
        if self._tokens.allowed(self._stop, self._row).size:
            return None
        unsure: list[tuple[int, Reading]] = []
        for token_id in self._tokens.steps(self._row):
            text = self._tokens.texts[token_id]
            following = None if _is_idle(reading, text) else reading.after(text)
            if following is None:
                continue
            verdict = outlook(following)
            if verdict:
                return None
            if verdict is None:
                unsure.append((token_id, following))
        return unsure


def _is_idle(reading: Reading, text: bytes) -> bool:
    """Whether ``text`` only puts off what must come: white space between tokens, or one more of many zeros."""
    if reading.stand in (Stand.KEY, Stand.STRING, Stand.ELSEWHERE_STRING):
        return False
    if not text.strip(b" \t\r\n"):
        return True
    return (
        text == b"0"
        and reading.is_recorded
        and reading.text.since(reading.text.size - _MOST_ZEROS) == b"0" * _MOST_ZEROS
    )
