r"""Expressions as rules of xgrammar's EBNF.

An expression becomes a deterministic automaton, with a rule for each state: some characters, and behind them the next
state. Such rules end only where the text ends, and that makes masks quick. Where rules end within a token, the library
looks at each such token again. That takes up to 60 ms with 131,072 tokens. A repetition of one character stays one: the
library counts better than rules can. A plain expression with too many states is written as it is, with groups.

The library has a macro ``Regex("…")``, but reads some expressions wrongly in it: ``(ab+)?`` takes "b". So only
repetitions of one character are written with it.
Knows nothing about: what the texts mean; the rules around.
Source: xgrammar's EBNF. Written against xgrammar 0.2.8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from maskd.errors import GrammarTooLargeError
from maskd.regular.charset import CharSet
from maskd.regular.expression import (
    ANYTHING,
    NOTHING,
    Chars,
    Concatenation,
    Expression,
    Repeat,
    Union,
    Words,
)
from maskd.regular.questions import MOST_STATES, MOST_WEIGHT, TooManyStatesError, automaton
from maskd.regular.spelling import any_json, check_weight, json_spellings, times

__all__ = ["as_json", "as_text"]

Forms: TypeAlias = tuple[tuple[CharSet, ...], ...]
"""How one character of a set is written: alternatives, each a sequence of sets."""

_NEVER = "[]"
_MOST_STATES_OF_PLAIN, _MOST_WEIGHT_OF_PLAIN = 256, 100_000
_MOST_REPETITIONS = 2_000
_MOST_COUNTED = 128
"""A repetition of one character is written out by the library up to this count; beyond, it counts."""
_ASCII = CharSet([(0, 0x7F)])
_LENGTHS = CharSet([(0, 0x7FF)]), CharSet([(0x800, 0xFFFF)]), CharSet([(0x10000, 0x10FFFF)])


def as_text(expression: Expression, fresh: Callable[[], str]) -> tuple[str, list[str]]:
    """Returns ``expression`` as an EBNF expression, and the rules that it needs.

    Args:
        fresh: returns a name for a rule, each time another one.
    Raises:
        GrammarTooLargeError: it has too many parts, states or repetitions.
    """
    return _written(expression, fresh, _Writer(lambda charset: ((charset,),), ""))


def as_json(expression: Expression, fresh: Callable[[], str]) -> tuple[str, list[str]]:
    """Returns ``expression`` as JSON strings, quotes included: an EBNF expression, and the rules that it needs.

    ``ANYTHING`` is every JSON string, in every spelling. Args and errors as of ``as_text``.
    """
    if expression is ANYTHING:
        return _macro(any_json(_one)), []
    writer = _Writer(json_spellings, '"')
    if isinstance(expression, Words):
        check_weight(expression)
        return f"{writer.end} {writer.nested(expression)} {writer.end}", []
    root, rules = _written(expression, fresh, writer)
    return f"{writer.end} {root}", rules


def _written(expression: Expression, fresh: Callable[[], str], writer: _Writer) -> tuple[str, list[str]]:
    check_weight(expression)
    if expression is NOTHING:
        return _NEVER, []
    most = _MOST_STATES_OF_PLAIN if expression.plain else MOST_STATES
    try:
        states = automaton(expression, _is_leaf, most, _MOST_WEIGHT_OF_PLAIN if expression.plain else MOST_WEIGHT)
    except TooManyStatesError:
        if expression.plain and _repetitions(expression) <= _MOST_REPETITIONS:
            return f"({writer.nested(expression)}) {writer.end}".rstrip(), []
        raise GrammarTooLargeError(
            f"an expression needs more than {most} states in xgrammar, because of look-ahead, of patterns that must "
            "hold together, or of repetitions; use llguidance, or simplify it",
            limit="states",
            value=most,
        ) from None
    return writer.rules(expression, states, fresh) if states else (_NEVER, [])


def _is_leaf(expression: Expression) -> bool:
    return isinstance(expression, Words) or (isinstance(expression, Repeat) and isinstance(expression.inner, Chars))


def _repetitions(expression: Expression) -> int:
    """Returns how many repetitions there are when those around them are written out, as the library does."""
    match expression:
        case Repeat(inner=inner, low=low, high=high):
            count = max(low, high or 1)
            return min(count, _MOST_COUNTED) if isinstance(inner, Chars) else count * (1 + _repetitions(inner))
        case Concatenation(parts=parts) | Union(parts=parts):
            return sum(map(_repetitions, parts))
    return 0


class _Writer:
    """Writes expressions whose characters have the ``forms``, with ``quote`` behind them."""

    def __init__(self, forms: Callable[[CharSet], Forms], quote: str) -> None:
        self._forms = forms
        self.end = _string(quote) if quote else ""
        self._end_of_macro = _one(CharSet.of(quote)) if quote else ""

    def rules(
        self, start: Expression, states: dict[Expression, dict[Expression, CharSet]], fresh: Callable[[], str]
    ) -> tuple[str, list[str]]:
        """Returns the name of the rule for ``start``, and a rule for each state that does not stand in another."""
        steps = {
            state: [
                (" ".join(map(_class, form)), target)
                for target, charset in following.items()
                for form in self._forms(charset)
            ]
            for state, following in states.items()
        }
        uses = Counter(target for some in steps.values() for _, target in some)
        within = {
            state
            for state, some in steps.items()
            if state is not start and uses[state] == 1 and len(some) == 1 and not state.nullable
        }
        ends = {state for state, some in steps.items() if state.nullable and not some and not _is_leaf(state)}
        names = {state: fresh() for state in states if state is start or state not in within | ends}

        def behind(target: Expression) -> str:
            parts = []
            while target in within:
                [(characters, target)] = steps[target]
                parts.append(characters)
            parts.append(names.get(target, self.end))
            return " ".join(parts).rstrip()

        written = []
        for state, name in names.items():
            if _is_leaf(state):
                options = [self._leaf(state)]
            else:
                options = [f"{characters} {behind(target)}".rstrip() for characters, target in steps[state]]
                options += [self.end or '""'] * state.nullable
            written.append(f"{name} ::= {' | '.join(options)}")
        return names[start], written

    def _leaf(self, state: Expression) -> str:
        if isinstance(state, Repeat) and isinstance(state.inner, Chars):
            return _macro(f"{self._repeatable(state.inner.charset)}{times(state.low, state.high)}{self._end_of_macro}")
        return f"{self.nested(state)} {self.end}".rstrip()

    def nested(self, expression: Expression) -> str:
        """Returns a plain expression as groups of groups, without what stands behind it."""
        match expression:
            case Chars(charset=charset):
                return self._character(charset)
            case Words(texts=texts):
                return f"({' | '.join(sorted(map(self._word, texts)))})"
            case Concatenation(parts=parts):
                return " ".join(map(self.nested, parts)) or '""'
            case Union(parts=parts):
                return f"({' | '.join(sorted(map(self.nested, parts)))})"
            case Repeat(inner=Chars(charset=charset), low=low, high=high) if self._needs_macro(charset, low, high):
                return _macro(self._repeatable(charset) + times(low, high))
            case Repeat(inner=inner, low=low, high=high):
                return f"({self.nested(inner)}){times(low, high)}"
        raise TypeError(type(expression))

    def _needs_macro(self, charset: CharSet, low: int, high: int | None) -> bool:
        """Whether a repetition must be the library's macro. Where the library counts characters beyond ASCII itself,
        its rows allow tokens that its matcher refuses."""
        is_counted = max(low, high or 0) > _MOST_COUNTED
        return len(self._forms(charset)) > 1 or (is_counted and bool(charset & ~_ASCII))

    def _character(self, charset: CharSet) -> str:
        forms = [" ".join(map(_class, form)) for form in self._forms(charset)]
        return forms[0] if len(forms) == 1 else f"({' | '.join(forms)})"

    def _word(self, text: str) -> str:
        """Returns one text; characters of one spelling are one string, of which the library makes a trie."""
        pieces: list[str] = []
        plain = ""
        for char in text:
            forms = self._forms(CharSet.of(char))
            if len(forms) == 1 and all(_is_single(charset) for charset in forms[0]):
                plain += "".join(chr(charset.ranges[0][0]) for charset in forms[0])
                continue
            pieces += [_string(plain)] * bool(plain) + [self._character(CharSet.of(char))]
            plain = ""
        return " ".join(pieces + [_string(plain)] * (bool(plain) or not pieces))

    def _repeatable(self, charset: CharSet) -> str:
        """Returns a regular expression for one character of ``charset``, to be repeated as it stands."""
        forms = ["".join(map(_one, form)) for form in self._forms(charset)]
        return forms[0] if len(forms) == 1 and len(self._forms(charset)[0]) == 1 else f"(?:{'|'.join(forms)})"


def _is_single(charset: CharSet) -> bool:
    return len(charset.ranges) == 1 and charset.ranges[0][0] == charset.ranges[0][1]


def _macro(pattern: str) -> str:
    return f'Regex("{pattern}")'.replace("\\", "\\\\")


def _string(text: str) -> str:
    return '"' + "".join(map(_one_of_ebnf, map(ord, text))) + '"'


def _class(charset: CharSet) -> str:
    """Returns a class of EBNF for ``charset``."""
    return f"[{''.join(_range(first, last, _one_of_ebnf) for first, last in charset.ranges)}]"


def _one(charset: CharSet) -> str:
    r"""Returns a regular expression for one character of ``charset``.

    A class of the library that crosses the border of two and three bytes, or of three and four, would hold overlong
    forms as well. So it is split there.
    """
    pieces = [
        f"[{''.join(_range(first, last, _one_of_regex) for first, last in piece.ranges)}]"
        for length in _LENGTHS
        if (piece := charset & length)
    ]
    return pieces[0] if len(pieces) == 1 else f"(?:{'|'.join(pieces)})"


def _range(first: int, last: int, one: Callable[[int], str]) -> str:
    return one(first) if first == last else f"{one(first)}-{one(last)}"


def _one_of_ebnf(code_point: int) -> str:
    return chr(code_point) if _is_plain(code_point) else f"\\U{code_point:08x}"


def _one_of_regex(code_point: int) -> str:
    return chr(code_point) if _is_plain(code_point) else f"\\u{{{code_point:x}}}"


def _is_plain(code_point: int) -> bool:
    return code_point < 0x80 and chr(code_point).isalnum()
