r"""Reads patterns, in a dialect (``characters``).

Lenient where other readers are and the meaning is plain: any punctuation may be escaped. ``{``, ``}`` and ``]`` stand
for themselves where they begin or end nothing. A group may be named as in Python. Lazy quantifiers are read and
ignored: they choose among matches, never whether there is one.
Refused by name: back-references, look-behind, ``\b``, ``\B``; flags, anchors and quantifiers that the dialect lacks.
Owns: groups, flags, quantifiers, anchors. Knows nothing about: what assertions mean (``assertions``), JSON.
"""

from __future__ import annotations

from maskd.regular.characters import ECMA, CharacterReader, Syntax
from maskd.regular.expression import Expression, chars, choice, repeat, sequence
from maskd.regular.pattern import Either, End, InOrder, Look, Pattern, Start, Times

__all__ = ["read_pattern"]

_MOST_NESTED = 100
_ANCHORS: dict[str, Pattern] = {"A": Start(), "z": End(), "Z": End()}
"""Those of the dialect ``COMMON``. Python and Rust mean the very end by the one that they have, ``\\Z`` or ``\\z``."""


def read_pattern(text: str, dialect: Syntax = ECMA) -> Pattern:
    """Reads a pattern.

    Raises:
        GrammarError: it is malformed; ``position`` is the offset of the character.
        GrammarUnsupportedError: it is no regular language, or not one that is done here; ``feature`` says what, and
            ``position`` where.
    """
    reader = _Reader(text, dialect)
    pattern = reader.disjunction()
    if reader.at < len(text):
        reader.fail("an unmatched )")
    return pattern


class _Reader(CharacterReader):
    """A recursive descent."""

    def __init__(self, text: str, dialect: Syntax) -> None:
        super().__init__(text, dialect)
        self._depth = 0
        self._has_line_anchors = False

    def disjunction(self) -> Pattern:
        """Reads up to the end, or to a ``)``."""
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self.fail(f"groups more than {_MOST_NESTED} deep")
        options = [self._alternative()]
        while self.take("|"):
            options.append(self._alternative())
        self._depth -= 1
        if len(options) == 1:
            return options[0]
        plain = [option for option in options if isinstance(option, Expression)]
        return choice(*plain) if len(plain) == len(options) else Either(tuple(options))

    def _alternative(self) -> Pattern:
        parts: list[Pattern] = []
        plain: list[Expression] = []
        while self.peek() not in ("", "|", ")"):
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
        if self.text.startswith(("^", "$", "(?=", "(?!", "\\A", "\\z", "\\Z"), began):
            self.fail("a quantifier behind an assertion", began)
        low, high = bounds
        return repeat(atom, low, high) if isinstance(atom, Expression) else Times(atom, low, high, began)

    def _quantifier(self) -> tuple[int, int | None] | None:
        began = self.at
        bounds: tuple[int, int | None]
        if self.take("*"):
            bounds = 0, None
        elif self.take("+"):
            bounds = 1, None
        elif self.take("?"):
            bounds = 0, 1
        elif (braces := self._braces()) is not None:
            bounds = braces
            if bounds[1] is not None and bounds[1] < bounds[0]:
                self.fail("a repetition whose upper bound is below its lower one", began)
        else:
            return None
        self.take("?")
        if self.dialect.is_common and self.peek() == "+":
            self.refuse("a quantifier with + behind it", self.at, "in Python it is possessive, in Rust a repetition")
        if self.peek() in ("*", "+", "?") and self.peek():
            self.fail("a quantifier behind a quantifier")
        return bounds

    def _braces(self) -> tuple[int, int | None] | None:
        """Reads ``{n}``, ``{n,}`` or ``{n,m}``; a brace that begins none of these stands for itself."""
        end = self.text.find("}", self.at, self.at + 32)
        if self.peek() != "{" or end < 0:
            return None
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if self.dialect.is_common and not low and comma and (not high or _is_number(high)):
            self.refuse(f"{{,{high}}}", self.at, f"write {{0,{high}}}")
        if not _is_number(low) or (high and not _is_number(high)):
            return None
        self.at = end + 1
        return int(low), int(high) if high else None if comma else int(low)

    def _atom(self) -> Pattern:
        began = self.at
        char = self.text[self.at]
        self.at += 1
        if char in "^$":
            if self._has_line_anchors:
                self.refuse(f"{char} at lines, by the flag m,", began)
            return Start() if char == "^" else End()
        if char == ".":
            return chars(self.dot())
        if char == "[":
            return chars(self.character_class(began))
        if char == "(":
            return self._group(began)
        if char in "*+?":
            self.fail("a quantifier behind nothing", began)
        if char != "\\":
            return chars(self.cased(ord(char)))
        return self._anchor(began) or chars(self.cased(self.escape(began)))

    def _anchor(self, began: int) -> Pattern | None:
        """Reads an anchor behind a backslash; refuses what matches no character and is done nowhere here."""
        char = self.peek()
        if self.dialect.is_common and char in _ANCHORS:
            self.at += 1
            return _ANCHORS[char]
        if char in ("b", "B"):
            self.refuse(f"\\{char}, the word boundary,", began)
        if char in ("A", "Z", "z", "G"):
            self.refuse(f"\\{char}, an anchor of another dialect,", began)
        if char == "k" or (char.isdecimal() and char != "0"):
            self.refuse("a back-reference", began)
        return None

    # -- groups ----------------------------------------------------------------------------------------------------

    def _group(self, began: int) -> Pattern:
        look: bool | None = None
        flags = self.ignores_case, self.dot_is_all, self._has_line_anchors
        if self.take("?="):
            look = False
        elif self.take("?!"):
            look = True
        elif self.take("?<=") or self.take("?<!"):
            self.refuse("look-behind", began)
        elif self.take("?<") or self.take("?P<"):
            end = self.text.find(">", self.at)
            if end < 0 or not self.text[self.at : end].replace("$", "_").isidentifier():
                self.fail("a malformed group name", began)
            self.at = end + 1
        elif not self.take("?:") and self.take("?") and self._flags(began):
            return sequence()  # the flags hold up to the end of the group around
        inner = self.disjunction()
        if not self.take(")"):
            self.fail("an unclosed group", began)
        self.ignores_case, self.dot_is_all, self._has_line_anchors = flags
        return inner if look is None else Look(inner, look)

    def _flags(self, began: int) -> bool:
        """Reads flags of a group, from behind its question mark. Says whether they are all of it."""
        if self.text.startswith(("P=", "P>", "(", "R)", "&"), self.at) or self.peek().isdecimal():
            self.refuse("a back-reference or recursion", began)
        if self.text.startswith(">", self.at):
            self.refuse("an atomic group", began)
        if self.text.startswith("#", self.at):
            self.refuse("a comment", began)
        if not self.dialect.is_common:
            self.refuse("flags in a group", began)
        value = True
        while (flag := self.peek()) not in (":", ")"):
            self.at += 1
            if flag == "-" and value:
                value = False
            elif flag == "i":
                self.ignores_case = value
            elif flag == "s":
                self.dot_is_all = value
            elif flag == "m":
                self._has_line_anchors = value
            elif flag != "U" and not (flag == "u" and value):  # U makes quantifiers lazy; u is always on
                self.refuse(f"the flag {flag or 'at the end'}", began)
        self.at += 1
        return flag == ")"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9
