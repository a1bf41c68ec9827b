"""What the fuzz tests share: how many examples they try, wild JSON, and good JSON with something wrong in it.

``MASKD_FUZZ=20`` tries twenty times as many examples; ``make test`` tries a few of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = float(os.environ.get("MASKD_FUZZ", "1"))
_LITERALS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "01",
    "1e",
    "nul",
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\q"',
    "'x'",
    "",
)
_MARK = "\u0091literal\u0092"


def budget(examples: int, **more: Any) -> settings:
    """Settings for ``examples`` examples, times ``MASKD_FUZZ``. Without it, the same ones each time."""
    health = [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ]
    return settings(
        max_examples=max(1, round(examples * TIMES)),
        deadline=None,
        suppress_health_check=health,
        derandomize=TIMES == 1,
        **more,
    )


WILD_INTS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from(
        [2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**40, -(10**40)]
    ),
)
WILD_FLOATS = st.one_of(
    st.floats(-3, 3), st.sampled_from([5e-324, 1e-300, 1e300, 1.7976931348623157e308, -0.0, 1e-46, 1e-45, 3.5e38])
)
EDGES = (
    # float32: around 0, the least subnormal and its half, the least normal, 1, the last integers, the largest and what
    # rounds to infinity
    "0", "-0.0", "1e-46", "7.006492321624085e-46", "1.401298464324817e-45", "-1e-45", "1.1754943508222875e-38",
    "0.99999999", "1", "1.0", "1.0000001", "16777217", "3.4028234663852886e38", "3.4028235677973366e38", "-3.5e38",
    "1e39", "-1e39", "1e-6", "1e-39",
    # float64: the same, and what JSON can say beyond
    "5e-324", "2.2250738585072014e-308", "1e-400", "9007199254740993", "1.7976931348623157e308",
    "-1.7976931348623157e308", "1e309", "-1e400", "1" + "0" * 400, "0." + "0" * 400 + "1", "1e-2147483649",
    "1e2147483648",
    # int32, int64 and uint64
    "-1", "-2", "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967296", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551615",
    "18446744073709551616", "1" + "0" * 40, "-1" + "0" * 40, "1" + "0" * 5000,
    # each range of a request, and just beyond
    "2", "2.0000001", "-2.0000001", "100", "100.00001", "0.01", "0.00999", "128", "129", "20", "21", "1024", "1025",
    # what is no number
    "true", "null", '"1"', '"NaN"', "NaN", "Infinity", "-Infinity", "[1]", "{}",
)  # fmt: skip
"""JSON texts of numbers at the edges of what tensors and native code hold."""
WILD_TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(max_codepoint=0x9F), max_size=8),
    st.sampled_from(
        [
            "",
            "\0",
            "\r\nX: y",
            "\u2028",
            "\ufeff",
            "../../etc/passwd",
            "a" * 5000,
            "\U0010ffff",
            "__proto__",
            "{}",
            "[",
            "auto",
        ]
    ),
)
WILD_SCALARS = st.one_of(st.none(), st.booleans(), WILD_INTS, WILD_FLOATS, WILD_TEXTS)
WILD_JSON = st.recursive(
    WILD_SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(WILD_TEXTS, st.sampled_from(["type", "name", "function", "text", "content"])), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
_KEYWORDS = (
    "type",
    "properties",
    "items",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "$defs",
    "required",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "multipleOf",
    "minItems",
    "maxItems",
    "prefixItems",
    "additionalProperties",
    "patternProperties",
    "format",
    "if",
    "then",
    "uniqueItems",
    "minProperties",
    "propertyNames",
    "contains",
    "dependentSchemas",
    "x-guidance",
    "x-lark",
)
_TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
_LEAVES = st.one_of(
    st.sampled_from(
        [
            "#",
            "#/$defs/a",
            "#/properties/a",
            "http://x/y",
            "[a-z]{3}",
            "(",
            "date-time",
            True,
            False,
            None,
            0,
            1,
            2,
            65537,
            10**9,
            10**30,
        ]
    ),
    WILD_SCALARS,
)


_WANTED: dict[str, Any] = {
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "multipleOf", "minProperties"),
        WILD_INTS,
    ),
    "type": st.one_of(_TYPES, _TYPES, st.lists(_TYPES, max_size=3)),
    "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "http://x/y", "#/nowhere"]),
    "enum": st.lists(_LEAVES, max_size=4),
    "required": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
    "pattern": st.sampled_from(["[a-z]+", "(", "^a{2,5}$", "a{1000}", "(a|b)*c"]),
}
_NAMED = ("properties", "$defs", "patternProperties", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_NESTED = ("items", "additionalProperties", "not", "if", "then", "propertyNames", "contains")


@st.composite
def schemas(draw: st.DrawFn, depth: int = 3) -> Any:
    """JSON schemas that make little sense: keywords with the kind of value that they want, and sometimes with
    another."""
    schema: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(_KEYWORDS), max_size=3 if depth else 1)):
        if not draw(st.integers(0, 7)):
            schema[key] = draw(_LEAVES)
        elif key in _NAMED + _LISTED + _NESTED:
            inner = [draw(schemas(depth - 1)) for _ in range(draw(st.integers(1, 2)) if depth else 0)]
            schema[key] = (
                dict(zip("ab", inner, strict=False))
                if key in _NAMED
                else inner
                if key in _LISTED
                else inner[0]
                if inner
                else True
            )
        else:
            schema[key] = draw(_WANTED.get(key, _LEAVES))
    return schema


@st.composite
def edged(draw: st.DrawFn, good: dict[str, Any], numbers: Sequence[tuple[Any, ...]]) -> bytes:
    """``good`` with edges at one or two of the places ``numbers``: paths, of which the last key may be new."""
    value, texts = good, {}
    for path in draw(
        st.lists(st.sampled_from(list(numbers)), min_size=1, max_size=draw(st.sampled_from([1, 1, 1, 2])), unique=True)
    ):
        mark = f"{_MARK}{len(texts)}"
        texts[json.dumps(mark)] = draw(st.sampled_from(EDGES))
        value = _with(value, path, mark)
    text = json.dumps(value)
    for mark, edge in texts.items():
        text = text.replace(mark, edge)
    return text.encode()


def _with(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at the end of ``path``; what the path lacks is made, a step that is a number
    makes a list."""
    if not path:
        return new
    key, *rest = path
    if isinstance(key, int):
        return [_with(None, rest, new)]
    holder = value if isinstance(value, dict) else {}
    return {**holder, key: _with(holder.get(key), rest, new)}


def places(value: Any, depth: int = 40) -> list[tuple[Any, ...]]:
    """Every path into a JSON value of at most ``depth`` steps, the empty one for the whole included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, inner in items if depth for rest in places(inner, depth - 1))]


def value_at(value: Any, path: Sequence[Any]) -> Any:
    """The value at the end of ``path``."""
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at the end of ``path``."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def without(value: Any, path: Sequence[Any]) -> Any:
    """A copy of ``value`` in which the end of ``path`` is missing."""
    *way, last = path
    holder = value_at(value, way)
    kept = (
        {k: v for k, v in holder.items() if k != last}
        if isinstance(holder, dict)
        else [v for i, v in enumerate(holder) if i != last]
    )
    return replaced(value, way, kept)


@st.composite
def mutated(draw: st.DrawFn, good: Any) -> Any:
    """``good`` with one to three changes: something wild instead of a value, something missing, something moved or
    repeated."""
    value = good
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = places(value)
        path = draw(st.sampled_from(paths))
        how = draw(
            st.sampled_from(["wild", "wild", "wild", "wrap", "list", "without", "move", "deep", "many", "schema"])
        )
        if how == "without" and path:
            value = without(value, path)
        elif how == "wrap":
            value = replaced(value, path, {draw(st.sampled_from(["type", "schema", "a"])): value_at(value, path)})
        elif how == "list":
            value = replaced(value, path, [value_at(value, path)])
        elif how == "move":
            value = replaced(value, path, value_at(value, draw(st.sampled_from(paths))))
        elif how == "deep":
            key, deep = draw(st.sampled_from(["", "items", "anyOf", "a"])), value_at(value, path)
            for _ in range(draw(st.sampled_from([3, 40, 70, 300, 900]))):
                deep = {key: [deep] if key == "anyOf" else deep} if key else [deep]
            value = replaced(value, path, deep)
        elif how == "many":
            value = replaced(value, path, [value_at(value, path)] * draw(st.sampled_from([2, 17, 300])))
        elif how == "schema":
            value = replaced(value, path, draw(schemas()))
        else:
            value = replaced(value, path, draw(WILD_JSON))
    return value


@st.composite
def bodies(draw: st.DrawFn, goods: Sequence[Any]) -> bytes:
    """Bodies made from one of ``goods``: mostly well-formed JSON with wrong contents, sometimes no JSON any more."""
    value = draw(mutated(draw(st.sampled_from(list(goods)))))
    how = draw(st.sampled_from(["json"] * 6 + ["ascii", "literal", "twice", "cut", "noise", "raw", "bom"]))
    if how == "literal":
        value = replaced(value, draw(st.sampled_from(places(value))), _MARK)
        text = json.dumps(value, ensure_ascii=False).replace(f'"{_MARK}"', draw(st.sampled_from(_LITERALS)))
    else:
        text = json.dumps(value, ensure_ascii=how == "ascii")
    if how == "twice" and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw(WILD_JSON))}}}"
    raw = text.encode("utf-8", "surrogatepass")
    if how == "cut":
        return raw[: draw(st.integers(0, len(raw)))]
    if how == "noise":
        at = draw(st.integers(0, len(raw)))
        return raw[:at] + draw(st.binary(min_size=1, max_size=4)) + raw[at + draw(st.integers(0, 4)) :]
    if how == "raw":
        return draw(st.binary(max_size=64))
    return b"\xef\xbb\xbf" + raw if how == "bom" else raw
