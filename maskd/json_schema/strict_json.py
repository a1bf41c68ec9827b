"""JSON of clients, read strictly and without recursion; every error has a JSON pointer.

Owns: ``loads``, the walk over a parsed value, writing JSON pointers (RFC 6901).
Knows nothing about: JSON Schema, grammar kinds, backends.

Python's ``json`` takes duplicate keys, NaN, lone surrogates and numbers beyond float. Deep nesting ends it with
RecursionError. Both grammar libraries behave differently, and badly, on each of these.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from maskd.errors import GrammarError, GrammarTooLargeError

__all__ = ["MAX_DEPTH", "Json", "Path", "kind_of", "loads", "pointer", "walk"]

Json: TypeAlias = Any
"""A parsed value, as ``json.loads`` returns it. A union would need a cast in every line that looks inside."""

Path: TypeAlias = tuple["str | int", ...]

MAX_DEPTH = 128
"""Deepest nesting taken: where llguidance's parser stops. A recursion of this depth is far below Python's limit."""

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_UNSAFE = re.compile("[\0\ud800-\udfff]")


def pointer(path: Path) -> str:
    """Returns the JSON pointer for ``path``; "" is the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def kind_of(value: Json) -> str:
    """Returns what kind of JSON value ``value`` is, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def walk(value: Json) -> Iterator[tuple[Path, Json]]:
    """Yields ``value`` and every value within it with its path, parents first. Iterative."""
    stack: list[tuple[Path, Json]] = [((), value)]
    while stack:
        path, item = stack.pop()
        yield path, item
        if isinstance(item, dict):
            stack.extend([((*path, key), child) for key, child in reversed(item.items())])
        elif isinstance(item, list):
            stack.extend([((*path, index), item[index]) for index in reversed(range(len(item)))])


def loads(text: str, what: str) -> Json:
    """Parses ``text``.

    Args:
        text: JSON of any size; nesting is counted before it is parsed.
        what: name of the text in messages: "the schema".
    Raises:
        GrammarTooLargeError: nested deeper than ``MAX_DEPTH``.
        GrammarError: not JSON; NaN or a number beyond float; a key twice in one object; NUL or a lone surrogate in a
            string, which neither library preserves. ``metadata`` holds ``pointer``, or ``line`` and ``column``.
    """
    _check_depth(text, what)
    repeated: dict[int, str] = {}  # id of the dict → the key that came twice; the dicts live in the result

    def build(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        built = dict(pairs)
        if len(built) < len(pairs):
            seen: set[str] = set()
            repeated[id(built)] = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return built

    def refuse(constant: str) -> Json:
        raise GrammarError(f"{what} holds {constant}, which is not JSON; give a number")

    try:
        value = json.loads(text, object_pairs_hook=build, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise GrammarError(
            f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            line=error.lineno,
            column=error.colno,
        ) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise GrammarError(f"{what} holds a number that cannot be read: {error}") from None
    for path, item in walk(value):
        if isinstance(item, dict):
            if id(item) in repeated:
                raise GrammarError(
                    f"{what} has the key {repeated[id(item)]!r} twice in one object; give it once",
                    pointer=pointer(path),
                )
            strings = list(item)
        else:
            strings = [item] if isinstance(item, str) else []
            if isinstance(item, float) and not math.isfinite(item):
                raise GrammarError(
                    f"{what} holds a number beyond the range of float; give a smaller one", pointer=pointer(path)
                )
        if any(map(_UNSAFE.search, strings)):
            raise GrammarError(
                f"{what} has a string with NUL or a lone surrogate; remove it", pointer=ascii(pointer(path))[1:-1]
            )
    return value


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise GrammarTooLargeError(
                    f"{what} is nested deeper than {MAX_DEPTH} levels; make it flatter", limit="depth", value=MAX_DEPTH
                )
        elif match[0] in "]}":
            depth -= 1
