"""Text out of tokens: characters whole, stop strings exact, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.text.stream import TextStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.text(alphabet="abü🙂", max_size=30),
    st.lists(st.text(alphabet="abü", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 99)),
)
def test_any_cut_then_the_text_before_the_first_stop_string(text: str, stop: list[str], cuts: list[int]) -> None:
    stream = TextStream(stop)
    released = []
    for piece in pieces(text.encode(), cuts):
        released.append(stream.feed(piece))
        if stream.stop_string is not None:
            break
    released.append(stream.finish())
    assert "".join(released) == stream.text
    assert "\N{REPLACEMENT CHARACTER}" not in stream.text
    if stream.stop_string is None:
        assert stream.text == text and not any(string in text for string in stop)
    else:
        assert text.startswith(stream.text + stream.stop_string) and not any(string in stream.text for string in stop)


def test_text_when_it_ends_within_a_character_then_replaced() -> None:
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) == "" and stream.finish() == "\N{REPLACEMENT CHARACTER}" == stream.text


@pytest.mark.parametrize(("stop", "held"), [(("</s>",), "a<"), (("\n\n",), "a\n")])
def test_text_that_may_become_a_stop_string_then_is_held_back_until_it_does_not(
    stop: tuple[str, ...], held: str
) -> None:
    stream = TextStream(stop)
    assert stream.feed(held.encode()) == "a" and stream.feed(b"b") == held[1:] + "b"
    assert stream.feed(held.encode()) == "a" and stream.finish() == held[1:]
