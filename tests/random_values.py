"""Random JSON values, and values that lie near a given one: short names, few of them, small numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

NAMES = ("a", "b", "c", "xa")
TEXTS = ("", "a", "b", "ab", "abc", "foo", "x", "xa", "12", 'é"q', "aaaa")
FORMATTED = (
    "2024-02-29", "2023-02-29", "2023-2-03", "1.2.3.4", "1.2.3.256", "01.2.3.4", "::1", "1::2::3", "1:2:3:4:5:6:7::",
    "::ffff:1.2.3.4", "12345::", "123f4567-e89b-12d3-a456-426614174000", "123f4567e89b12d3a456426614174000",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, -1, -3, 2.5, 1.0, 0.5, 10, 12)


def value(rng: random.Random, depth: int = 2) -> Any:
    """Returns a random JSON value."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4, 5):
        return rng.choice(TEXTS if rng.random() < 0.9 else FORMATTED)
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {name: value(rng, depth - 1) for name in rng.sample(NAMES, rng.randrange(4))}


def shuffled(value: Any, rng: random.Random) -> Any:
    """Returns ``value`` with the members of its objects in another order."""
    if isinstance(value, dict):
        members = list(value.items())
        rng.shuffle(members)
        return {key: shuffled(member, rng) for key, member in members}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def orders(value: Any) -> Iterator[Any]:
    """Yields ``value`` with the members of its objects in every order."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for members in itertools.product(*(list(orders(value[name])) for name in names)):
                yield dict(zip(names, members, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*(list(orders(item)) for item in value)))
    else:
        yield value


def neighbour(given: Any, rng: random.Random) -> Any:
    """Returns ``given`` with one small change: a number beside it, a member or an item more or less, another name."""
    if isinstance(given, bool) or given is None or rng.random() < 0.05:
        return value(rng, 1)
    if isinstance(given, int | float):
        return rng.choice([given + 1, given - 1, given + 0.5, -given, 2 * given, str(given)])
    if isinstance(given, str):
        at = rng.randrange(len(given) + 1)
        return rng.choice([given[:at] + given[at + 1 :], given[:at] + rng.choice("ab0é") + given[at:], given.upper()])
    if isinstance(given, list):
        at = rng.randrange(len(given) + 1)
        inside = [*given[:at], neighbour(given[at], rng), *given[at + 1 :]] if at < len(given) else [*given, given]
        return rng.choice([inside, given[:at] + given[at + 1 :], given + given[-1:], [*given, value(rng, 0)]])
    name = rng.choice([*given, *NAMES])
    others = {key: member for key, member in given.items() if key != name}
    if name not in given:
        return given | {name: value(rng, 1)}
    return rng.choice([others, given | {name: neighbour(given[name], rng)}, others | {rng.choice(NAMES): given[name]}])
