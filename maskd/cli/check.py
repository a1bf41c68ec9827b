"""Whether a text matches a grammar. If not: the first place that the grammar refuses, and what it allows there.

Owns: the verdict on one text, exact to the byte. Knows nothing about: how it is said (``wording``), flags.
Source: The Unicode Standard, table 3-7 (well-formed UTF-8), for the characters that begin with given bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskd.cli.walk import TOKEN_CAPACITY, Alphabet, Walk

__all__ = ["Allowed", "Span", "TextVerdict", "judge"]

Span = tuple[int, int]
"""First and last code point."""

_MOST_LOOKS = 128
"""Rows that may be asked for to tell characters beyond ASCII apart."""
_LEAST_OF_LENGTH = {2: 0x80, 3: 0x800, 4: 0x10000}
_MOST_OF_LENGTH = {2: 0x7FF, 3: 0xFFFF, 4: 0x10FFFF}


@dataclass(frozen=True)
class Allowed:
    """What a grammar allows at one place of a text.

    Attributes:
        characters: that may follow, as spans.
        beyond: spans beyond ASCII of which some characters may follow; there are too many to ask for each.
        stray_bytes: that may follow and begin no character.
        special: names of the special tokens that may follow, for grammars that name tokens.
        end: whether the text may end here.
    """

    characters: tuple[Span, ...]
    beyond: tuple[Span, ...]
    stray_bytes: tuple[int, ...]
    special: tuple[str, ...]
    end: bool


@dataclass(frozen=True)
class TextVerdict:
    """What a grammar says about a text.

    Attributes:
        accepted: the text is a complete match.
        without_line_break: it is one without its last line break, which text files end with.
        offset: of the first byte that is refused; the length of the text where it ended too early, or is accepted.
        start: offset of the character that this byte belongs to.
        allowed_bytes: that may stand at ``offset``.
        allowed: what may stand at ``start``; None where the text is accepted.
    """

    accepted: bool
    without_line_break: bool
    offset: int
    start: int
    allowed_bytes: tuple[int, ...] = ()
    allowed: Allowed | None = None


def judge(walk: Walk, text: bytes, alphabet: Alphabet) -> TextVerdict:
    """Walks ``text`` byte by byte and returns the verdict.

    Where the grammar refuses a byte and allows a special token whose name stands there, that token is taken.

    Args:
        walk: at the start of the grammar; it moves.
        text: any bytes.
        alphabet: of the walk.
    Raises:
        MaskdError: as ``Walk``.
    """
    offset = whole = 0  # how far the text is accepted; where the last special token ended
    while True:
        piece = text[offset : offset + TOKEN_CAPACITY]
        taken = walk.accept([alphabet.byte_ids[byte] for byte in piece])
        offset += taken
        if piece and taken == len(piece):
            continue
        allowed_ids, accepting = walk.look()
        here = set(map(int, allowed_ids))
        fits = [i for i, name in alphabet.names.items() if i in here and name and text.startswith(name, offset)]
        if not fits:
            break
        token_id = max(fits, key=lambda i: len(alphabet.names[i]))
        walk.accept([token_id])
        offset = whole = offset + len(alphabet.names[token_id])
    if accepting and text[offset:] in (b"", b"\n", b"\r\n"):
        return TextVerdict(True, offset < len(text), offset, offset)
    allowed_bytes = tuple(byte for byte in range(256) if alphabet.byte_ids[byte] in here)
    start = max(whole, _start_of_character(text, offset))
    walk.rollback(offset - start)
    return TextVerdict(False, False, offset, start, allowed_bytes, _allowed_here(walk, alphabet))


def _start_of_character(text: bytes, offset: int) -> int:
    """Returns where the character that has the byte at ``offset`` begins; ``offset`` if it is not in UTF-8."""
    for start in range(offset, max(-1, offset - 4), -1):
        if start == len(text) or text[start] & 0xC0 != 0x80:
            for end in range(offset + 1, start + 5):
                try:
                    text[start:end].decode()
                except UnicodeDecodeError:
                    continue
                return start
            break
    return offset


def _allowed_here(walk: Walk, alphabet: Alphabet) -> Allowed:
    """Returns what may follow. Asks for rows behind the first bytes of characters, within ``_MOST_LOOKS``."""
    allowed_ids, accepting = walk.look()
    here = set(map(int, allowed_ids))
    first = [byte for byte in range(256) if alphabet.byte_ids[byte] in here]
    whole = [(byte, byte) for byte in first if byte < 0x80]
    begun = [bytes([byte]) for byte in first if 0xC2 <= byte <= 0xF4]
    stray = tuple(byte for byte in first if 0x80 <= byte < 0xC2 or byte > 0xF4)
    looks = 0
    while begun and looks + len(begun) <= _MOST_LOOKS:
        looks += len(begun)
        longer = [head + bytes([byte]) for head in begun for byte in _next_bytes(walk, alphabet, head)]
        whole += [(ord(one.decode()),) * 2 for one in longer if len(one) == _length(one)]
        begun = [one for one in longer if len(one) < _length(one)]
    names = tuple(name.decode("utf-8", "replace") for i, name in alphabet.names.items() if i in here)
    return Allowed(_joined(whole), _joined([_span_of(head) for head in begun]), stray, names, accepting)


def _next_bytes(walk: Walk, alphabet: Alphabet, head: bytes) -> list[int]:
    """Returns the bytes that may follow ``head``, the first bytes of a character."""
    after = set(map(int, walk.look([alphabet.byte_ids[byte] for byte in head])[0]))
    return [byte for byte in range(0x80, 0xC0) if alphabet.byte_ids[byte] in after]


def _length(head: bytes) -> int:
    return 2 if head[0] < 0xE0 else 3 if head[0] < 0xF0 else 4


def _span_of(head: bytes) -> Span:
    """Returns the first and the last code point whose UTF-8 begins with ``head``."""
    length = _length(head)
    bits = head[0] & (0xFF >> (length + 1))
    for byte in head[1:]:
        bits = bits << 6 | byte & 0x3F
    shift = 6 * (length - len(head))
    low = max(bits << shift, _LEAST_OF_LENGTH[length])
    high = min((bits + 1 << shift) - 1, _MOST_OF_LENGTH[length])
    return low, 0xD7FF if head == b"\xed" else high


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Returns ``spans`` sorted, with neighbours made one. There is no character between U+D7FF and U+E000."""
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and (low <= joined[-1][1] + 1 or (low, joined[-1][1]) == (0xE000, 0xD7FF)):
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)
