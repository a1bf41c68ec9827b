"""How many texts an expression has: at least so many, or without end whatever they begin with.

Characters that an expression treats alike are counted together. Source: Owens, Reppy and Turon, "Regular-expression
derivatives re-examined", 2009.
Knows nothing about: syntax, JSON, grammar libraries.
"""

from __future__ import annotations

from maskd.regular.expression import NOTHING, Expression, derivative
from maskd.regular.questions import MOST_STATES, classes

__all__ = ["count_texts", "has_texts", "is_open_ended"]


def has_texts(expression: Expression, number: int) -> bool:
    """Says whether at least ``number`` texts belong to ``expression``. False also if that takes too long."""
    found = count_texts(expression, number)
    return found is not None and found >= number


def count_texts(expression: Expression, most: int) -> int | None:
    """Returns how many texts belong to ``expression``; ``most`` or more for more; None if that takes too long."""
    counts, found = {expression: 1}, 0
    for _ in range(MOST_STATES):
        found += sum(count for state, count in counts.items() if state.nullable)
        if found >= most or not counts:
            return found
        longer: dict[Expression, int] = {}
        for state, count in counts.items():
            for charset in classes(state):
                following = derivative(state, chr(charset.ranges[0][0]))
                if following is not NOTHING:
                    longer[following] = longer.get(following, 0) + count * len(charset)
        if len(longer) > MOST_STATES:
            break
        counts = longer
    return None


def is_open_ended(expression: Expression) -> bool:
    """Says whether every beginning of a text of ``expression`` begins infinitely many of its texts. False also if that
    takes more than ``MOST_STATES`` states."""
    following: dict[Expression, set[Expression]] = {}
    waiting = [expression]
    while waiting:
        state = waiting.pop()
        if state in following:
            continue
        if len(following) >= MOST_STATES:
            return False
        found = {derivative(state, chr(charset.ranges[0][0])) for charset in classes(state)} - {NOTHING}
        following[state] = found
        waiting += found
    before: dict[Expression, list[Expression]] = {}
    for state, found in following.items():
        for successor in found:
            before.setdefault(successor, []).append(state)
    complete, waiting = set[Expression](), [state for state in following if state.nullable]
    while waiting:  # what can become a text
        state = waiting.pop()
        if state not in complete:
            complete.add(state)
            waiting += before.get(state, ())
    return all(following[state] & complete for state in complete)
