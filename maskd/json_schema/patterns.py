"""Regular expressions in the parts that matter to xgrammar 0.2.8, and what it misreads.

Owns: the parts of a regex, the list of misread constructs. Patterns of schemas, spelled so that it reads them well.
Knows nothing about: schemas, the source of a grammar spec of kind ``regex`` (``maskd.backends.sources``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["misread", "needs_escapes", "pattern_for_xgrammar", "units"]

_MEMBER = re.compile(r"\\(?:u\{\w+\}|u\w{4}|x\w{2}|c\w|.)|.", re.DOTALL)
# An unclosed class runs to the end, so that a pattern of brackets is read once, not once for each bracket.
_UNIT = re.compile(
    r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*(?:\]|\\?\Z)|\\(?:u\{\w+\}|u\w{4}|x\w{2}|c\w|.)|\((?:\?(?:[:=!]|<[=!]|P?<\w+>))?|.",
    re.DOTALL,
)
_LOOK_AROUND = frozenset({"(?=", "(?!", "(?<=", "(?<!"})
_STRANGE_ESCAPE = re.compile(r"\\[AzZG0ecpP]|\\[1-9bBkK]")
_OPERATORS = frozenset("^$*+?{},0123456789")
_CODE_POINT = re.compile(r"\\(.)|([^\x00-\x7f])", re.DOTALL)
_WIDE_SPACES = r"\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"


def units(pattern: str) -> list[str]:
    """Returns the classes, escapes, openings of groups and other characters of ``pattern``, in order."""
    return _UNIT.findall(pattern)


def misread(pattern: str) -> str | None:
    """Returns a construct of ``pattern`` that xgrammar ignores or misreads; None if there is none.

    xgrammar ignores look-ahead and anchors in mid-pattern. It reads some escapes as plain characters. Each of these
    only writes a line to stderr.
    """
    parts = units(pattern)
    for part in parts:
        if part in _LOOK_AROUND:
            return part
        if part[0] in "\\[" and (strange := _STRANGE_ESCAPE.search(part)):
            return strange[0]
        if part.startswith("[") and part[1:2] != "^" and r"\S" in part and r"\s" not in part:
            return r"\S"
    if _is_inside(parts, "^", ")"):
        return "^"
    return "$" if _is_inside(reversed(parts), "$", "(") else None


def needs_escapes(pattern: str) -> bool:
    """Whether every match of ``pattern`` has a character that JSON strings spell with an escape.

    xgrammar leaves such characters out of a string. If nothing else matches, it writes them raw, which is no JSON.
    """
    parts = units(pattern)
    found = [(False, True)]  # of each open group: an alternative is plain; so is the present one, so far
    for index, part in enumerate(parts):
        if part == "|":
            found[-1] = (any(found[-1]), True)
        elif part[0] == "(":
            found.append((False, True))
        elif part == ")" or part not in _OPERATORS:
            is_plain = any(found.pop()) if part == ")" and len(found) > 1 else _may_be_plain(part)
            if parts[index + 1 : index + 2] in (["*"], ["?"]) or parts[index + 1 : index + 3] == ["{", "0"]:
                is_plain = True
            found[-1] = (found[-1][0], found[-1][1] and is_plain)
    return not any(found[0])


def _may_be_plain(part: str) -> bool:
    """Whether one character or class matches a character that JSON strings spell as it is."""
    if part[0] != "[":
        return _is_plain(_code_point(part))
    if part.startswith("[^"):
        return True
    members = [_code_point(each) for each in _MEMBER.findall(part[1:-1])]
    for index, member in enumerate(members):
        if members[index + 1 : index + 2] == [ord("-")] and index + 2 < len(members):
            members[index + 1] = next((code for code in range(member, members[index + 2]) if _is_plain(code)), member)
    return any(map(_is_plain, members))


def _is_plain(code: int) -> bool:
    return code >= 0x20 and code not in (ord('"'), ord("\\"))


def _code_point(part: str) -> int:
    """Returns the character that ``part`` stands for; a space for a class such as ``\\w``."""
    if part[0] != "\\" or len(part) == 1:
        return ord(part[0])
    if part[1] in "ux" and (digits := part[2:].strip("{}")):
        try:
            return int(digits, 16)
        except ValueError:
            return ord(" ")
    return 0 if part[1] in "0abcefnrtv" else ord(" ") if part[1] in "dDsSwW" else ord(part[1])


def _is_inside(parts: Iterable[str], anchor: str, closing: str) -> bool:
    """Whether ``anchor`` stands anywhere but at the beginning of ``parts``. ``closing`` ends a group in this order."""
    groups: list[tuple[bool, bool]] = []  # outside of each open group: at the edge, and an anchor was seen
    at_edge, seen, is_repeatable = True, False, False
    for part in parts:
        is_bracket = part[0] in "()"
        if is_repeatable and part in ("*", "+", "{"):
            return True
        is_repeatable = False
        if part == anchor:
            if not at_edge:
                return True
            seen = True
        elif is_bracket and part[0] == closing:
            is_repeatable = seen
            at_edge, seen = False, (groups.pop()[1] if groups else False) or seen
        elif is_bracket:
            groups.append((at_edge, seen))
            seen = False
        elif part == "|":
            at_edge = groups[-1][0] if groups else True
        elif part != "?":
            at_edge = False
    return False


def pattern_for_xgrammar(pattern: str) -> str:
    """Returns ``pattern`` of a schema in a form to which xgrammar gives its usual meaning.

    With a character beyond ASCII in the pattern, xgrammar would let quotes and control characters into the string.
    So such characters become escapes. Its ``\\S`` matches a no-break space, which is white space in JSON Schema.
    """
    read: list[str] = []
    for unit in units(pattern):
        if unit == r"\S":
            unit = rf"[^\s{_WIDE_SPACES}]"
        elif unit.startswith("[^") and unit.endswith("]") and r"\s" in unit:
            unit = f"{unit[:-1]}{_WIDE_SPACES}]"
        read.append(_CODE_POINT.sub(_escaped, unit))
    return "".join(read)


def _escaped(match: re.Match[str]) -> str:
    character = match[1] or match[2]
    return match[0] if character.isascii() else f"\\u{{{ord(character):x}}}"
