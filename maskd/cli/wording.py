"""What people read: a report, the place in a text that a grammar refuses, and what it allows there.

Owns: words, columns, and which characters have a name of their own. Knows nothing about: daemons, flags, exit codes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from maskd.cli.check import Allowed, Span, TextVerdict
from maskd.errors import MaskdError
from maskd.rpc.values import Grammar

__all__ = ["allowed_text", "place_of", "refusal_lines", "report_lines", "verdict_lines"]

_LAST = 0x10FFFF
_NAMED: tuple[tuple[str, tuple[Span, ...]], ...] = (
    ("a letter", ((65, 90), (97, 122))),
    ("a capital letter", ((65, 90),)),
    ("a small letter", ((97, 122),)),
    ("a digit", ((48, 57),)),
    ("white space", ((9, 10), (13, 13), (32, 32))),
    ("a control character", ((0, 31),)),
)
"""Sets of ASCII characters with a name, larger ones first."""
_SINGLE = {9: "a tab", 10: "a line break", 13: "a carriage return", 32: "a space", 127: "U+007F"}
_MOST_PHRASES = 24
_MOST_EXCEPT = 40
_CONTEXT_CHARACTERS = 36


def report_lines(name: str, kind: str, grammar: Grammar) -> Iterator[str]:
    """Yields the report of a compile: what holds, then why and at what price, then what is not enforced."""
    report = grammar.report
    count = len(report.unenforced)
    verdict = f"{count} keyword{'s are' * (count != 1) or ' is'} not enforced" if count else "every keyword is enforced"
    yield f"{name}: {verdict if 'json' in kind or kind == 'structural_tag' else 'compiled'}"
    yield f"  kind      {kind}"
    yield f"  backend   {report.backend}: {report.backend_reason}"
    how_long = "before, for another client" if grammar.cached else f"in {grammar.compile_seconds * 1000:.1f} ms"
    yield f"  compiled  {how_long}, about {_bytes(report.memory_bytes)} of memory"
    for warning in report.warnings:
        yield f"  warning   {warning}"
    if report.unenforced:
        width = max(len(one.pointer) for one in report.unenforced)
        yield "  not enforced:"
        for one in report.unenforced:
            yield f"    {one.pointer.ljust(width)}  {one.effect}"


def refusal_lines(name: str, error: MaskdError) -> Iterator[str]:
    """Yields why a grammar was refused, where, and what to do next."""
    at = error.metadata.get("pointer")
    yield f"{name}: refused, {error.reason}" + (f" at {at}" if at else "")
    yield f"  {error.message}"
    yield f"  next: {error.recovery}"


def verdict_lines(name: str, text: bytes, verdict: TextVerdict) -> Iterator[str]:
    """Yields the verdict on ``text``; where it is refused, its line with a mark under the place."""
    if verdict.accepted:
        note = ", without its last line break" if verdict.without_line_break else ""
        yield f"{name}: accepted{note}"
        return
    line, column = place_of(text, verdict.start)
    what = "ends too early" if verdict.offset == len(text) else "refused"
    yield f"{name}: {what} at line {line}, column {column} (byte {verdict.offset})"
    begin = text.rfind(b"\n", 0, verdict.start) + 1
    end = text.find(b"\n", verdict.start)
    before = _shown(text[begin : verdict.start])
    behind = _shown(text[verdict.start : end + 1 if end >= 0 else len(text)])
    before = "…" * (len(before) > _CONTEXT_CHARACTERS) + before[-_CONTEXT_CHARACTERS:]
    behind = behind[:_CONTEXT_CHARACTERS] + "…" * (len(behind) > _CONTEXT_CHARACTERS)
    yield f"  {before}{behind}"
    yield f"  {' ' * _columns(before)}^"
    if verdict.allowed is not None:
        yield f"  allowed here: {allowed_text(verdict.allowed)}"


def place_of(text: bytes, offset: int) -> tuple[int, int]:
    """Returns line and column, both from 1; columns count characters, and bytes that are no UTF-8 as one each."""
    begin = text.rfind(b"\n", 0, offset) + 1
    return text.count(b"\n", 0, begin) + 1, len(text[begin:offset].decode("utf-8", "surrogateescape")) + 1


def allowed_text(allowed: Allowed) -> str:
    """Returns what may stand at a place, for instance ``a digit, '-' or the end of the text``."""
    if allowed.beyond and _covers(allowed.beyond, (0x80, _LAST)):
        phrases = _any_but(allowed.characters)
    else:
        phrases = _phrases(allowed.characters)
        phrases += [f"some characters of {_code(low)} to {_code(high)}" for low, high in allowed.beyond]
    if allowed.stray_bytes:
        phrases.append("the byte " + ", ".join(f"{byte:#04x}" for byte in allowed.stray_bytes[:4])
                       + " …" * (len(allowed.stray_bytes) > 4))  # fmt: skip
    phrases += [f"the special token {name}" for name in allowed.special]
    if len(phrases) > _MOST_PHRASES:
        phrases = [*phrases[:_MOST_PHRASES], f"{len(phrases) - _MOST_PHRASES} others"]
    if allowed.end:
        phrases.append("the end of the text")
    if not phrases:
        return "nothing; the grammar leads into a dead end here, which is a fault: report it"
    return " or ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _any_but(ascii_part: Sequence[Span]) -> list[str]:
    """Returns what to say where characters beyond ASCII may follow, and these below."""
    missing = [(code, code) for code in range(0x80) if not any(low <= code <= high for low, high in ascii_part)]
    if len(missing) > _MOST_EXCEPT:
        return [*_phrases(ascii_part), "a character beyond ASCII"]
    if not missing:
        return ["any character"]
    phrases = _phrases(_merged(missing))
    return ["any character but " + " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)]


def _phrases(spans: Sequence[Span]) -> list[str]:
    """Returns names for ``spans``: those of sets that lie within, then what is left, one by one or as a range."""
    found, left = list[str](), list(spans)
    for name, parts in _NAMED:
        if all(_covers(left, part) for part in parts):
            found.append(name)
            for part in parts:
                left = [piece for span in left for piece in _without(span, part)]
    for low, high in left:
        if high - low < 3:
            found += [_named(code) for code in range(low, high + 1)]
        else:
            found.append(f"{_named(low)} to {_named(high)}")
    return found


def _covers(spans: Sequence[Span], part: Span) -> bool:
    return any(low <= part[0] and part[1] <= high for low, high in spans)


def _without(span: Span, part: Span) -> list[Span]:
    pieces = [(span[0], min(span[1], part[0] - 1)), (max(span[0], part[1] + 1), span[1])]
    return [piece for piece in pieces if piece[0] <= piece[1]]


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for low, high in spans:
        if merged and merged[-1][1] + 1 == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return merged


def _named(code: int) -> str:
    """Returns how people call a character: in quotes, by its name, or by its code point."""
    character = chr(code)
    if code in _SINGLE:
        return _SINGLE[code]
    if not character.isprintable() or unicodedata.combining(character):
        return _code(code)
    return f'"{character}"' if character == "'" else f"'{character}'"


def _code(code: int) -> str:
    return f"U+{code:04X}"


def _shown(text: bytes) -> str:
    """Returns ``text`` with one visible character for each of its characters."""
    characters = text.decode("utf-8", "surrogateescape")
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 32 else c if c.isprintable() and not unicodedata.combining(c) else "�"
        for c in characters
    )


def _columns(text: str) -> int:
    """Returns how many columns of a terminal ``text`` takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _bytes(count: int) -> str:
    return (
        f"{count} bytes"
        if count < 1024
        else f"{count / 1024:.0f} KiB"
        if count < 1 << 20
        else f"{count / (1 << 20):.1f} MiB"
    )
