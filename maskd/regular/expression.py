"""The tree of a regular expression without assertions: characters, sequence, choice, repetition, and, not.

Trees are hash-consed: the constructors return the same object for the same tree. Comparing is cheap then, and a memo
keyed by a tree works. What a tree matches is decided one character at a time. The derivative of a set of texts by a
character is what may follow that character.
Source: Brzozowski, "Derivatives of regular expressions", 1964; Owens, Reppy and Turon, "Regular-expression derivatives
re-examined", 2009.
Owns: the shapes, the simplifications that keep trees small, membership.
Knows nothing about: syntax, JSON, grammar libraries.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator

from maskd.regular.charset import ANY, CharSet

__all__ = [
    "ANYTHING", "Both", "Chars", "Complement", "Concatenation", "EMPTY_TEXT", "Expression", "NOTHING", "Remainder",
    "Repeat", "Union", "Words",
    "both", "chars", "choice", "complement", "derivative", "literal", "matches", "remainder", "repeat", "sequence",
    "words",
]  # fmt: skip


class Expression:
    """A set of texts. Made by the functions of this module; equal trees are the same object.

    Attributes:
        nullable: whether the empty text belongs to it.
        plain: whether it holds neither Both nor Complement. Then it is empty only as ``NOTHING``.
        weight: how many parts it has when nothing is shared: the size of its text.
    """

    __slots__ = ("__weakref__", "nullable", "plain", "weight")
    nullable: bool
    plain: bool
    weight: int


class Chars(Expression):
    """One character of ``charset``, which is not empty."""

    __slots__ = ("charset",)

    def __init__(self, charset: CharSet) -> None:
        self.charset, self.nullable, self.plain = charset, False, True
        self.weight = 1 + len(charset.ranges)


class Words(Expression):
    """A finite set of ``texts``, not empty. What it is combined with is asked about each of them."""

    __slots__ = ("texts",)

    def __init__(self, texts: frozenset[str]) -> None:
        self.texts, self.nullable, self.plain = texts, "" in texts, True
        self.weight = sum(map(len, texts))


class Concatenation(Expression):
    """``parts``, one behind the other; none of them is a Concatenation. Without parts it is the empty text."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Expression, ...]) -> None:
        self.parts, self.nullable = parts, all(part.nullable for part in parts)
        self.plain = all(part.plain for part in parts)
        self.weight = 1 + sum(part.weight for part in parts)


class Union(Expression):
    """Any of ``parts``; none of them is a Union. Without parts it is no text at all."""

    __slots__ = ("parts",)

    def __init__(self, parts: frozenset[Expression]) -> None:
        self.parts, self.nullable = parts, any(part.nullable for part in parts)
        self.plain = all(part.plain for part in parts)
        self.weight = 1 + sum(part.weight for part in parts)


class Repeat(Expression):
    """``inner``, from ``low`` to ``high`` times; ``high`` None = without limit."""

    __slots__ = ("high", "inner", "low")

    def __init__(self, inner: Expression, low: int, high: int | None) -> None:
        self.inner, self.low, self.high = inner, low, high
        self.nullable, self.plain = low == 0 or inner.nullable, inner.plain
        self.weight = 1 + inner.weight


class Both(Expression):
    """What belongs to all of ``parts``; none of them is a Both."""

    __slots__ = ("parts",)

    def __init__(self, parts: frozenset[Expression]) -> None:
        self.parts, self.nullable, self.plain = parts, all(part.nullable for part in parts), False
        self.weight = 1 + sum(part.weight for part in parts)


class Remainder(Expression):
    """Digits, with points anywhere among them, that continue a number so that ``modulus`` divides it.

    ``left``: what the digits before leave when divided by ``modulus``. The automaton has ``modulus`` states, and no
    short regular expression.
    """

    __slots__ = ("left", "modulus")

    def __init__(self, modulus: int, left: int) -> None:
        self.modulus, self.left, self.nullable, self.plain = modulus, left, left == 0, False
        self.weight = modulus


class Complement(Expression):
    """Every text that does not belong to ``inner``."""

    __slots__ = ("inner",)

    def __init__(self, inner: Expression) -> None:
        self.inner, self.nullable, self.plain = inner, not inner.nullable, False
        self.weight = 1 + inner.weight


_DIGITS = frozenset("0123456789")
_known: weakref.WeakValueDictionary[tuple[object, ...], Expression] = weakref.WeakValueDictionary()


def _interned(kind: type[Expression], *values: object) -> Expression:
    key = (kind, *values)
    found = _known.get(key)
    if found is None:
        found = _known[key] = kind(*values)
    return found


NOTHING = _interned(Union, frozenset())
"""No text at all."""
EMPTY_TEXT = _interned(Concatenation, ())
"""The empty text, and no other."""


def chars(charset: CharSet) -> Expression:
    """One character of ``charset``."""
    return _interned(Chars, charset) if charset else NOTHING


def literal(text: str) -> Expression:
    """``text``, and no other."""
    return sequence(*(chars(CharSet.of(char)) for char in text))


def sequence(*parts: Expression) -> Expression:
    """``parts``, one behind the other."""
    flat: list[Expression] = []
    for part in parts:
        if part is NOTHING:
            return NOTHING
        flat += part.parts if isinstance(part, Concatenation) else (part,)
    return flat[0] if len(flat) == 1 else _interned(Concatenation, tuple(flat))


def remainder(modulus: int, left: int = 0) -> Expression:
    """Digits that continue a number which leaves ``left`` so that ``modulus`` divides it; points do not count."""
    return _interned(Remainder, modulus, left)


def words(texts: Iterable[str]) -> Expression:
    """Any of ``texts``, each as a whole."""
    found = frozenset(texts)
    return _interned(Words, found) if found else NOTHING


def choice(*options: Expression) -> Expression:
    """Any of ``options``."""
    flat: set[Expression] = set()
    single, texts = CharSet(), frozenset[str]()
    for option in _flat(options, Union):
        if isinstance(option, Chars):
            single |= option.charset
        elif isinstance(option, Words):
            texts |= option.texts
        else:
            flat.add(option)
    flat.update(found for found in (chars(single), words(texts)) if found is not NOTHING)
    if ANYTHING in flat or _has_opposites(flat):
        return ANYTHING
    return flat.pop() if len(flat) == 1 else _interned(Union, frozenset(flat))


def both(*parts: Expression) -> Expression:
    """What belongs to all of ``parts``."""
    flat = set(_flat(parts, Both))
    flat.discard(ANYTHING)
    if NOTHING in flat or _has_opposites(flat):
        return NOTHING
    if EMPTY_TEXT in flat:
        return EMPTY_TEXT if all(part.nullable for part in flat) else NOTHING
    if not flat:
        return ANYTHING
    if finite := next((part for part in flat if isinstance(part, Words)), None):
        rest = flat - {finite}
        return words(text for text in finite.texts if all(matches(part, text) for part in rest))
    single = [part for part in flat if isinstance(part, Chars)]
    if len(single) > 1:
        charset = ANY
        for part in single:
            charset &= part.charset
        return both(chars(charset), *(flat - set(single)))
    return flat.pop() if len(flat) == 1 else _interned(Both, frozenset(flat))


def complement(inner: Expression) -> Expression:
    """Every text that does not belong to ``inner``."""
    if isinstance(inner, Complement):
        return inner.inner
    if inner is NOTHING:
        return ANYTHING
    return NOTHING if inner is ANYTHING else _interned(Complement, inner)


def repeat(inner: Expression, low: int = 0, high: int | None = None) -> Expression:
    """``inner``, from ``low`` to ``high`` times, both inclusive; ``high`` None = without limit.

    Raises:
        ValueError: ``high`` is below ``low``.
    """
    if high is not None and high < low:
        raise ValueError(f"a repetition from {low} to {high} times")
    if inner is EMPTY_TEXT or high == 0:
        return EMPTY_TEXT
    if inner is NOTHING:
        return NOTHING if low else EMPTY_TEXT
    if inner.nullable:
        low = 0
    if isinstance(inner, Repeat) and inner.low <= 1 and inner.high is None:  # (a*){2,5} = a*, (a+){2,5} = a{2,}
        low, high, inner = low if inner.low else 0, None, inner.inner
    if (low, high) == (1, 1):
        return inner
    return _interned(Repeat, inner, low, high)


ANYTHING = _interned(Repeat, chars(ANY), 0, None)
"""Every text."""


def _flat(parts: Iterable[Expression], kind: type[Union | Both]) -> Iterator[Expression]:
    for part in parts:
        if isinstance(part, kind):
            yield from part.parts
        else:
            yield part


def _has_opposites(parts: set[Expression]) -> bool:
    return any(isinstance(part, Complement) and part.inner in parts for part in parts)


def matches(expression: Expression, text: str) -> bool:
    """Says whether ``text`` belongs to ``expression``."""
    match expression:
        case Words(texts=texts):
            return text in texts
        case Complement(inner=inner):
            return not matches(inner, text)
        case Union(parts=parts):
            return any(matches(part, text) for part in parts)
        case Both(parts=parts):
            return all(matches(part, text) for part in parts)
    for char in text:
        if expression is NOTHING:
            return False
        expression = derivative(expression, char)
    return expression.nullable


@functools.lru_cache(maxsize=1 << 16)
def derivative(expression: Expression, char: str) -> Expression:
    """Returns what may follow ``char``, one character, in the texts of ``expression``."""
    match expression:
        case Chars():
            return EMPTY_TEXT if char in expression.charset else NOTHING
        case Words(texts=texts):
            return words(text[1:] for text in texts if text[:1] == char)
        case Concatenation():
            options = []
            for number, part in enumerate(expression.parts, start=1):
                options.append(sequence(derivative(part, char), *expression.parts[number:]))
                if not part.nullable:
                    break
            return choice(*options)
        case Repeat(inner=inner, low=low, high=high):
            return sequence(derivative(inner, char), repeat(inner, max(0, low - 1), None if high is None else high - 1))
        case Union(parts=parts):
            return choice(*(derivative(part, char) for part in parts))
        case Both(parts=parts):
            return both(*(derivative(part, char) for part in parts))
        case Complement(inner=inner):
            return complement(derivative(inner, char))
        case Remainder(modulus=modulus, left=left):
            if char == ".":
                return expression
            return remainder(modulus, (10 * left + int(char)) % modulus) if char in _DIGITS else NOTHING
    raise TypeError(type(expression))
