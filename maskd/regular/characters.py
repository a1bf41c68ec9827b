r"""Reads what stands for one character of a pattern: characters, escapes, classes. And the dialects, which differ here.

Owns: the text that is read and the place in it, the errors with their positions; escapes and classes.
Knows nothing about: groups, quantifiers, anchors (``reader``).

Sources: ECMA-262, section 22.2.1 (Patterns), with the flag ``u``. For ``COMMON`` also the syntax of Python's ``re`` and
of Rust's ``regex``. Operators in classes and classes in classes mean what Rust says; Python warns of them. What else
these two read differently is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from maskd.errors import GrammarError, GrammarUnsupportedError
from maskd.regular.charset import CharSet, Range, case_variants, unicode_property

__all__ = ["COMMON", "ECMA", "CharacterReader", "Syntax"]

_DIGIT = CharSet([(0x30, 0x39)])
_UPPER, _LOWER = CharSet([(0x41, 0x5A)]), CharSet([(0x61, 0x7A)])
_WORD = _DIGIT | _UPPER | _LOWER | CharSet.of("_")
_LINE_ENDS = CharSet.of("\n\r\u2028\u2029")
_ASCII_SPACE = CharSet.of(" \t\n\r\f\v")
_SPACE = _ASCII_SPACE | CharSet.of("\u00a0\ufeff\u1680\u202f\u205f\u3000") | CharSet([(0x2000, 0x200A)]) | _LINE_ENDS
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_POSIX = {
    "alnum": _DIGIT | _UPPER | _LOWER, "alpha": _UPPER | _LOWER, "ascii": CharSet([(0, 0x7F)]),
    "blank": CharSet.of("\t "), "cntrl": CharSet([(0, 0x1F), (0x7F, 0x7F)]), "digit": _DIGIT,
    "graph": CharSet([(0x21, 0x7E)]), "lower": _LOWER, "print": CharSet([(0x20, 0x7E)]),
    "punct": CharSet([(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)]), "space": _ASCII_SPACE,
    "upper": _UPPER, "word": _WORD, "xdigit": _DIGIT | CharSet.of("abcdefABCDEF"),
}  # fmt: skip
_HEX = frozenset("0123456789abcdefABCDEF")
_OPERATORS = ("&&", "--", "~~")
_MOST_NESTED = 100

Member: TypeAlias = int | CharSet
"""What stands in a class, or behind a backslash: a code point, which may be a surrogate, or a set."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """How patterns are read.

    Attributes:
        line_ends: what ``.`` does not match.
        space: what ``\\s`` matches.
        is_common: whether the spellings of Python and Rust are read: flags, ``\\A``, classes in classes, ``\\x{…}``.
    """

    line_ends: CharSet
    space: CharSet
    is_common: bool


ECMA = Syntax(_LINE_ENDS, _SPACE, is_common=False)
"""ECMA-262 with the flag ``u``: the patterns of JSON Schema."""
COMMON = Syntax(CharSet.of("\n"), _ASCII_SPACE, is_common=True)
"""What Python and Rust write, where both mean the same or one refuses; ``\\d``, ``\\s`` and ``\\w`` are ASCII."""


class CharacterReader:
    """A reader of ``text``; ``at`` is the next character. ``ignores_case`` and ``dot_is_all`` are the flags so far."""

    def __init__(self, text: str, dialect: Syntax) -> None:
        self.text, self.at, self.dialect = text, 0, dialect
        self.ignores_case = self.dot_is_all = False
        self._sets = {"d": _DIGIT, "s": dialect.space, "w": _WORD}
        self._classes_open = 0

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        """Raises for a malformed pattern; ``at``: where, if not at the next character."""
        position = self.at if at is None else at
        raise GrammarError(f"regular expression: {what} at position {position}; mend it", position=position)

    def refuse(self, feature: str, at: int, instead: str = "write it without") -> NoReturn:
        """Raises for what is not done here. ``instead``: what to do."""
        raise GrammarUnsupportedError(
            f"regular expression: {feature} at position {at} is not supported; {instead}", feature=feature, position=at
        )

    def peek(self) -> str:
        """Returns the next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, token: str) -> bool:
        """Says whether ``token`` comes next, and goes behind it."""
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def dot(self) -> CharSet:
        """Returns what ``.`` matches."""
        return ~CharSet() if self.dot_is_all else ~self.dialect.line_ends

    def cased(self, member: Member) -> CharSet:
        """Returns ``member`` as a set, with its other cases where the flag ``i`` says so."""
        charset = CharSet([(member, member)]) if isinstance(member, int) else member
        return charset | case_variants(charset) if self.ignores_case else charset

    # -- escapes ---------------------------------------------------------------------------------------------------

    def escape(self, began: int) -> Member:
        """Reads what stands behind the backslash at ``began``, in a class or outside."""
        char = self.peek()
        self.at += 1
        if char and char in "dDsSwW":
            return self._positive_or_not(self._sets[char.lower()], char)
        if char == "0" and self.peek().isdecimal():
            self.fail("an octal escape", began)
        if char and char in _CONTROLS:
            return ord(_CONTROLS[char])
        if char == "c" and self.peek().isascii() and self.peek().isalpha():
            self.at += 1
            return ord(self.text[self.at - 1]) % 32
        if char == "x" and not (self.dialect.is_common and self.peek() == "{"):
            return self._hex(2, began)
        if char in ("u", "x"):
            return self._unicode(began)
        if char in ("p", "P"):
            return self._positive_or_not(self._property(began), char)
        if self.dialect.is_common and char == "a":
            return ord("\a")
        if self.dialect.is_common and char == "U":
            return self._scalar(self._hex(8, began), began)
        if not char:
            self.fail("a backslash at the end", began)
        if char.isascii() and char.isalnum():
            self.fail(f"the unknown escape \\{char}", began)
        return ord(char)

    def _positive_or_not(self, charset: CharSet, letter: str) -> CharSet:
        return ~self.cased(charset) if letter.isupper() else charset

    def _hex(self, digits: int, began: int) -> int:
        text = self.text[self.at : self.at + digits]
        if len(text) < digits or not _HEX.issuperset(text):
            self.fail("a malformed escape", began)
        self.at += digits
        return int(text, 16)

    def _scalar(self, value: int, began: int) -> int:
        return value if value <= 0x10FFFF else self.fail("a malformed escape", began)

    def _unicode(self, began: int) -> int:
        if self.take("{"):
            end = self.text.find("}", self.at, self.at + 16)
            digits = self.text[self.at : end] if end > self.at else ""
            if not digits or not _HEX.issuperset(digits):
                self.fail("a malformed escape", began)
            self.at = end + 1
            return self._scalar(int(digits, 16), began)
        first = self._hex(4, began)
        if 0xD800 <= first < 0xDC00 and self.text.startswith("\\u", self.at):
            behind = self.at
            self.at += 2
            second = self._hex(4, began)
            if 0xDC00 <= second < 0xE000:
                return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            self.at = behind
        return first

    def _property(self, began: int) -> CharSet:
        if self.dialect.is_common and self.peek().isalpha():
            name, self.at = self.peek(), self.at + 1
            return unicode_property(name) or self.fail(f"the unknown property {name}", began)
        end = self.text.find("}", self.at)
        if self.peek() != "{" or end < 0:
            self.fail("a property without braces", began)
        name, equals, value = self.text[self.at + 1 : end].partition("=")
        found = unicode_property(name, value if equals else None)
        if found is None:
            self.fail(f"the unknown property {self.text[self.at : end + 1]}", began)
        self.at = end + 1
        return found

    # -- classes ---------------------------------------------------------------------------------------------------

    def character_class(self, began: int) -> CharSet:
        """Reads the class that begins at ``began``, from behind its bracket."""
        self._classes_open += 1
        if self._classes_open > _MOST_NESTED:
            self.fail(f"classes more than {_MOST_NESTED} deep", began)
        negated = self.take("^")
        is_common = self.dialect.is_common
        # In ECMA-262 a "]" that comes first ends the class. Elsewhere it stands for itself.
        found = self._members(began, CharSet.of("]") if is_common and self.take("]") else CharSet())
        while not self.take("]"):
            operator = self.text[self.at : self.at + 2]
            self.at += 2
            other = self._members(began, CharSet())
            if operator == "&&":
                found &= other
            else:
                found = found - other if operator == "--" else (found | other) - (found & other)
        self._classes_open -= 1
        return ~found if negated else found

    def _members(self, began: int, found: CharSet) -> CharSet:
        """Returns ``found`` and the members up to the end of the class, or up to an operator between two sets."""
        is_common = self.dialect.is_common
        ranges = list(found.ranges)
        while self.peek() != "]" and not (is_common and self.text.startswith(_OPERATORS, self.at)):
            if is_common and self.take("[:"):
                ranges += self.cased(self._posix(self.at - 2)).ranges
                continue
            if is_common and self.take("["):
                ranges += self.character_class(self.at - 1).ranges
                continue
            first = self._member(began)
            is_range = self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "")
            if is_range and not (is_common and self.text.startswith(("--", "-["), self.at)):
                self.at += 1
                ranges += self.cased(self._range(first, self._member(began), began)).ranges
            else:
                ranges += self.cased(first).ranges
        return CharSet(ranges)

    def _posix(self, began: int) -> CharSet:
        negated = self.take("^")
        end = self.text.find(":]", self.at, self.at + 16)
        found = _POSIX.get(self.text[self.at : max(self.at, end)])
        if found is None:
            self.fail("an unknown class in [: :]", began)
        self.at = end + 2
        return ~found if negated else found

    def _member(self, began: int) -> Member:
        at = self.at
        char = self.peek()
        if not char:
            self.fail("an unclosed class", began)
        self.at += 1
        if char != "\\":
            return ord(char)
        return ord("\b") if self.take("b") else self.escape(at)

    def _range(self, first: Member, last: Member, began: int) -> CharSet:
        if isinstance(first, CharSet) or isinstance(last, CharSet):  # the hyphen stands for itself
            return CharSet(pair for end in (first, last) for pair in _ranges(end)) | CharSet.of("-")
        if first > last:
            self.fail("a range whose end is below its begin", began)
        return CharSet([(first, last)])


def _ranges(member: Member) -> tuple[Range, ...]:
    return ((member, member),) if isinstance(member, int) else member.ranges
