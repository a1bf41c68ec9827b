r"""Reads patterns of ECMA-262 with the flag ``u``, section 22.2.1 (Patterns).

Lenient where other readers are and the meaning is plain: any punctuation may be escaped. ``{``, ``}`` and ``]`` stand
for themselves where they begin or end nothing. A group may be named as in Python. Lazy quantifiers are read and
ignored: they choose among matches, never whether there is one.
Refused by name: back-references, look-behind, ``\b``, ``\B``, flags in a group, anchors of other dialects.
Owns: syntax. Knows nothing about: what assertions mean (``assertions``), JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from maskd.errors import GrammarError, GrammarUnsupportedError
from maskd.regular.charset import CharSet, Range, unicode_property
from maskd.regular.expression import Expression, chars, choice, repeat, sequence

__all__ = ["Either", "End", "InOrder", "Look", "Pattern", "Start", "Times", "read_pattern"]

_DIGIT = CharSet([(0x30, 0x39)])
_WORD = CharSet([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_LINE_ENDS = CharSet.of("\n\r\u2028\u2029")
_SPACE = CharSet.of("\t\v\f \u00a0\ufeff\u1680\u202f\u205f\u3000") | CharSet([(0x2000, 0x200A)]) | _LINE_ENDS
_CLASSES = {"d": _DIGIT, "D": ~_DIGIT, "w": _WORD, "W": ~_WORD, "s": _SPACE, "S": ~_SPACE}
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_HEX = frozenset("0123456789abcdefABCDEF")
_MOST_NESTED = 100


@dataclass(frozen=True, slots=True)
class Start:
    """``^``: nothing stands before."""


@dataclass(frozen=True, slots=True)
class End:
    """``$``: nothing stands behind."""


@dataclass(frozen=True, slots=True)
class Look:
    """``(?=inner)``, or with ``negative`` ``(?!inner)``: what follows begins, or does not begin, with ``inner``."""

    inner: Pattern
    negative: bool


@dataclass(frozen=True, slots=True)
class InOrder:
    """Parts, one behind the other; at least one of them has an assertion."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several; at least one of them has an assertion."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """A repetition of something with an assertion; ``high`` None = without limit."""

    inner: Pattern
    low: int
    high: int | None


Member: TypeAlias = int | CharSet
"""What stands in a class, or behind a backslash: a code point, which may be a surrogate, or a set."""
Pattern: TypeAlias = Expression | Start | End | Look | InOrder | Either | Times
"""What was read: an ``Expression`` where there is no assertion in it."""


def read_pattern(text: str) -> Pattern:
    """Reads a pattern.

    Raises:
        GrammarError: it is malformed; ``position`` is the offset of the character.
        GrammarUnsupportedError: it is no regular language, or not one that is done here; ``feature`` says what.
    """
    reader = _Reader(text)
    pattern = reader.disjunction()
    if reader.at < len(text):
        reader.fail("an unmatched )")
    return pattern


class _Reader:
    """A recursive descent over ``text``; ``at`` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self._depth = 0

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        position = self.at if at is None else at
        raise GrammarError(f"regular expression: {what} at position {position}; mend it", position=position)

    def _refuse(self, feature: str, at: int) -> NoReturn:
        raise GrammarUnsupportedError(
            f"regular expression: {feature} at position {at} is not supported; write it without",
            feature=feature,
            position=at,
        )

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, token: str) -> bool:
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    # -- structure -------------------------------------------------------------------------------------------------

    def disjunction(self) -> Pattern:
        """Reads up to the end, or to a ``)``."""
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self.fail(f"groups more than {_MOST_NESTED} deep")
        options = [self._alternative()]
        while self._take("|"):
            options.append(self._alternative())
        self._depth -= 1
        if len(options) == 1:
            return options[0]
        plain = [option for option in options if isinstance(option, Expression)]
        return choice(*plain) if len(plain) == len(options) else Either(tuple(options))

    def _alternative(self) -> Pattern:
        parts: list[Pattern] = []
        plain: list[Expression] = []
        while self._peek() not in ("", "|", ")"):
            part = self._term()
            if isinstance(part, Expression):
                plain.append(part)
                continue
            parts += [sequence(*plain), part] if plain else [part]
            plain = []
        if plain or not parts:
            parts.append(sequence(*plain))
        return parts[0] if len(parts) == 1 else InOrder(tuple(parts))

    def _term(self) -> Pattern:
        began = self.at
        atom = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return atom
        if self.text.startswith(("^", "$", "(?=", "(?!"), began):
            self.fail("a quantifier behind an assertion", began)
        low, high = bounds
        return repeat(atom, low, high) if isinstance(atom, Expression) else Times(atom, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        began = self.at
        bounds: tuple[int, int | None]
        if self._take("*"):
            bounds = 0, None
        elif self._take("+"):
            bounds = 1, None
        elif self._take("?"):
            bounds = 0, 1
        elif (braces := self._braces()) is not None:
            bounds = braces
            if bounds[1] is not None and bounds[1] < bounds[0]:
                self.fail("a repetition whose upper bound is below its lower one", began)
        else:
            return None
        self._take("?")
        if self._peek() in ("*", "+", "?") and self._peek():
            self.fail("a quantifier behind a quantifier")
        return bounds

    def _braces(self) -> tuple[int, int | None] | None:
        """Reads ``{n}``, ``{n,}`` or ``{n,m}``; a brace that begins none of these stands for itself."""
        end = self.text.find("}", self.at)
        if self._peek() != "{" or end < 0:
            return None
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if not _is_number(low) or (high and not _is_number(high)):
            return None
        self.at = end + 1
        return int(low), int(high) if high else None if comma else int(low)

    def _atom(self) -> Pattern:
        began = self.at
        char = self.text[self.at]
        self.at += 1
        if char == "^":
            return Start()
        if char == "$":
            return End()
        if char == ".":
            return chars(~_LINE_ENDS)
        if char == "[":
            return chars(self._class(began))
        if char == "(":
            return self._group(began)
        if char in "*+?":
            self.fail("a quantifier behind nothing", began)
        return chars(_set_of(self._escape(began) if char == "\\" else ord(char)))

    def _group(self, began: int) -> Pattern:
        look: bool | None = None
        if self._take("?="):
            look = False
        elif self._take("?!"):
            look = True
        elif self._take("?<=") or self._take("?<!"):
            self._refuse("look-behind", began)
        elif self._take("?<") or self._take("?P<"):
            end = self.text.find(">", self.at)
            if end < 0 or not self.text[self.at : end].replace("$", "_").isidentifier():
                self.fail("a malformed group name", began)
            self.at = end + 1
        elif not self._take("?:") and self._peek() == "?":
            if self.text.startswith(("?P=", "?(", "?R", "?&"), self.at):
                self._refuse("a back-reference or recursion", began)
            if self.text.startswith("?>", self.at):
                self._refuse("an atomic group", began)
            self._refuse("flags in a group", began)
        inner = self.disjunction()
        if not self._take(")"):
            self.fail("an unclosed group", began)
        return inner if look is None else Look(inner, look)

    # -- characters ------------------------------------------------------------------------------------------------

    def _escape(self, began: int) -> Member:
        """Reads what stands behind a backslash, outside of a class."""
        char = self._peek()
        if char in ("b", "B"):
            self._refuse(f"\\{char}, the word boundary,", began)
        if char in ("A", "Z", "z", "G"):
            self._refuse(f"\\{char}, an anchor of another dialect,", began)
        if char == "k" or (char.isdecimal() and char != "0"):
            self._refuse("a back-reference", began)
        return self._character(began)

    def _character(self, began: int) -> Member:
        """Reads what stands behind a backslash."""
        char = self._peek()
        self.at += 1
        if char in _CLASSES and char:
            return _CLASSES[char]
        if char == "0" and self._peek().isdecimal() and self._peek():
            self.fail("an octal escape", began)
        if char in _CONTROLS and char:
            return ord(_CONTROLS[char])
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            self.at += 1
            return ord(self.text[self.at - 1]) % 32
        if char == "x":
            return self._hex(2, began)
        if char == "u":
            return self._unicode(began)
        if char in ("p", "P"):
            found = self._property(began)
            return ~found if char == "P" else found
        if not char:
            self.fail("a backslash at the end", began)
        if char.isascii() and char.isalnum():
            self.fail(f"the unknown escape \\{char}", began)
        return ord(char)

    def _hex(self, digits: int, began: int) -> int:
        text = self.text[self.at : self.at + digits]
        if len(text) < digits or not _HEX.issuperset(text):
            self.fail("a malformed escape", began)
        self.at += digits
        return int(text, 16)

    def _unicode(self, began: int) -> int:
        if self._take("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at : end] if end > self.at else ""
            if not digits or not _HEX.issuperset(digits) or int(digits, 16) > 0x10FFFF:
                self.fail("a malformed escape", began)
            self.at = end + 1
            return int(digits, 16)
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
        end = self.text.find("}", self.at)
        if self._peek() != "{" or end < 0:
            self.fail("a property without braces", began)
        name, equals, value = self.text[self.at + 1 : end].partition("=")
        found = unicode_property(name, value if equals else None)
        if found is None:
            self.fail(f"the unknown property {self.text[self.at : end + 1]}", began)
        self.at = end + 1
        return found

    def _class(self, began: int) -> CharSet:
        negated = self._take("^")
        ranges: list[Range] = []
        while not self._take("]"):
            first = self._member(began)
            if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                ranges += self._range(first, self._member(began), began).ranges
            else:
                ranges += _set_of(first).ranges
        found = CharSet(ranges)
        return ~found if negated else found

    def _member(self, began: int) -> Member:
        at = self.at
        char = self._peek()
        if not char:
            self.fail("an unclosed class", began)
        self.at += 1
        if char != "\\":
            return ord(char)
        return ord("\b") if self._take("b") else self._character(at)

    def _range(self, first: Member, last: Member, began: int) -> CharSet:
        if isinstance(first, CharSet) or isinstance(last, CharSet):  # the hyphen stands for itself
            return _set_of(first) | _set_of(last) | CharSet.of("-")
        if first > last:
            self.fail("a range whose end is below its begin", began)
        return CharSet([(first, last)])


def _set_of(member: Member) -> CharSet:
    return CharSet([(member, member)]) if isinstance(member, int) else member


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9
