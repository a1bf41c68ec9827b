"""Output text to content and calls: the same whatever the pieces it comes in."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapter.serve.tools.calls import CallDelta, CallEnd, CallStart, Content, Part, TaggedReader

TOOLS = {"f": False, "note": True}
ONE = '<function=f>{"a": "</function> \\" <function=f>{", "b": [{"c": 1}]}</function>'
ARGUMENTS = ONE[len("<function=f>") : -len("</function>")]


def read(pieces: list[str]) -> tuple[TaggedReader, list[Part]]:
    reader = TaggedReader(TOOLS)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return reader, parts + reader.finish()


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("plain <function", "plain <function", []),
        ("a <function=unknown>{}</function> b", "a <function=unknown>{}</function> b", []),
        (ONE, "", [("f", ARGUMENTS, True)]),
        (f"Sure.\n{ONE}\n{ONE}\n", "Sure.", [("f", ARGUMENTS, True)] * 2),
        ("<function=note>free { text</function>", "", [("note", "free { text", True)]),
        ('<function=f>{"a": 1', "", [("f", '{"a": 1', False)]),
        ('<function=f>{"a": 1}</func', "", [("f", '{"a": 1}</func', False)]),
        ("  \n ", "  \n ", []),
    ],
)
def test_reader_when_text_comes_in_any_pieces_then_it_is_read_the_same(
    text: str, content: str, calls: list[object]
) -> None:
    """Cut at every place, and character by character; an end tag within a JSON string is none."""
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        reader, parts = read(pieces)
        assert reader.content == content
        assert [(call.name, call.arguments, call.is_complete) for call in reader.calls] == calls
        assert "".join(part.text for part in parts if isinstance(part, Content)) == content
        assert "".join(part.text for part in parts if isinstance(part, CallDelta)) == "".join(
            call.arguments for call in reader.calls
        )
        assert (
            sum(isinstance(part, CallStart) for part in parts)
            == sum(isinstance(part, CallEnd) for part in parts)
            == len(calls)
        )


@settings(deadline=None)
@given(
    values=st.lists(
        st.dictionaries(st.text(), st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner))),
        max_size=3,
    ),
    cuts=st.lists(st.integers(0, 400)),
)
def test_reader_when_given_any_arguments_then_they_come_out_unchanged(values: list[object], cuts: list[int]) -> None:
    """Any JSON object within a call, in any pieces."""
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    text = "\n".join(f"<function=f>{arguments}</function>" for arguments in texts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    reader, _ = read([text[start:end] for start, end in pairwise(edges)])
    assert [call.arguments for call in reader.calls] == texts
    assert reader.content == ""


@settings(deadline=None)
@given(st.text(alphabet='<function=>/{}"\\ f\n', max_size=60))
def test_reader_when_given_noise_then_it_never_fails(text: str) -> None:
    """Whatever a model writes is content or arguments; character by character is the same as whole."""
    whole, _ = read([text])
    pieces, _ = read(list(text))
    assert [call.arguments for call in whole.calls] == [call.arguments for call in pieces.calls]
