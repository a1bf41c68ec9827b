"""Random patterns of ECMA-262, each beside the same pattern of Python's ``regex``, and texts to try them on."""

from __future__ import annotations

from hypothesis import strategies as st

ALPHABET = "ab0_ \n-é😀"
CLASSES = {
    r"\d": "[0-9]",
    r"\D": "[^0-9]",
    r"\w": "[0-9A-Za-z_]",
    r"\W": "[^0-9A-Za-z_]",
    ".": r"[^\n\r\u2028\u2029]",
    r"\p{L}": r"\p{L}",
    r"\P{L}": r"\P{L}",
    "[^a]": "[^a]",
    "[a-z0]": "[a-z0]",
    r"[^\w-]": "[^0-9A-Za-z_-]",
    "[^]": r"[\s\S]",
    "[]": r"(?!)",
}
Pair = tuple[str, str]
"""The same pattern as ECMA-262 and as Python's ``regex`` write it."""

atoms: st.SearchStrategy[Pair] = st.one_of(
    st.sampled_from("ab0_ é😀").map(lambda char: (char, char)),
    st.sampled_from(["\\n", "\\-", "\\x61", "\\u0062", "\\u{1f600}"]).map(
        lambda text: (text, text.replace("\\u{1f600}", "😀"))
    ),
    st.sampled_from(sorted(CLASSES.items())),
)


def grouped(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    """Sequences, choices and repetitions of ``inner``."""
    return st.one_of(
        st.lists(inner, min_size=0, max_size=3).map(
            lambda parts: tuple(map("".join, zip(*parts, strict=True))) or ("", "")
        ),
        st.tuples(inner, inner).map(lambda two: (f"(?:{two[0][0]}|{two[1][0]})", f"(?:{two[0][1]}|{two[1][1]})")),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"])).map(
            lambda two: (f"({two[0][0]}){two[1]}", f"({two[0][1]}){two[1]}")
        ),
    )


plain: st.SearchStrategy[Pair] = st.recursive(atoms, grouped, max_leaves=6)


def _look(pair: Pair, opening: str) -> Pair:
    return f"({opening}{pair[0]})", f"({opening}{pair[1]})"


asserted: st.SearchStrategy[Pair] = st.recursive(
    st.one_of(plain, st.just(("^", r"\A")), st.just(("$", r"\Z"))),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(lambda parts: tuple(map("".join, zip(*parts, strict=True)))),
        st.tuples(inner, inner).map(lambda two: (f"(?:{two[0][0]}|{two[1][0]})", f"(?:{two[0][1]}|{two[1][1]})")),
        st.tuples(inner, st.sampled_from(["?=", "?!"])).map(lambda two: _look(*two)),
        st.tuples(inner, st.sampled_from(["?", "{0,2}", "{2}", "{1,3}"])).map(
            lambda two: (f"(?:{two[0][0]}){two[1]}", f"(?:{two[0][1]}){two[1]}")
        ),
        st.tuples(inner, st.sampled_from(["ab", r"\w", "."]), st.sampled_from(["?=", "?!"])).map(
            lambda three: (
                f"(?:({three[2]}{three[0][0]}){three[1]})*$",
                f"(?:({three[2]}{three[0][1]}){CLASSES.get(three[1], three[1])})*\\Z",
            )
        ),
    ),
    max_leaves=8,
)
texts = st.lists(st.text(ALPHABET, max_size=7), min_size=1, max_size=12)

asserted_common: st.SearchStrategy[str] = st.recursive(
    st.one_of(
        st.sampled_from([*"ab0_ é😀AB", "\\n", "\\x61", "\\-"]),
        st.sampled_from(
            [*r"\d \D \w \W \s \S . \p{L} \P{L} [^a] [a-z0] [^\w-]".split(), "[ab]", "^", "$", r"\A", r"\Z"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        st.tuples(st.sampled_from(["?=", "?!", "?i:", "?s:", "?P<n>"]), inner).map(lambda two: f"({two[0]}{two[1]})"),
    ),
    max_leaves=8,
)
"""Random regexes that mean the same here and in Python's ``regex``, with its flag for ASCII classes."""
