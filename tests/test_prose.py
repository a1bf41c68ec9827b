"""Pages and docstrings are plain: they name the actor, and what a reader meets first has short sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MODULES = [
    path
    for package in ("maskd", "engine_adapter")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "v1" not in path.parts
]
FIRST_PAGES = {"README.md", *(f"docs/{name}.md" for name in ("README", "grammars", "integrating", "troubleshooting"))}
"""Their tables count too. Those of other pages are made of docstrings, or record what was found."""
LOGS = {"docs/log.md"}
"""Measurements, as they were noted; decisions are noted in docs/adr."""
MOST_WORDS = 20
SECTION = r"(?:Args|Attributes|Raises|Returns|Yields):\n"
OPENING = r"(?:Owns|Knows nothing about): "
NO_ACTOR = re.compile(
    r"\b(whoever|whomever|whosever|nobody|somebody|anybody|that one(?=[.,;:)]|$| (?:is|was|has|that|which)\b))\b",
    re.IGNORECASE,
)


def prose_of(text: str) -> str:
    """``text`` of a page without code and comments; code in a line is one word, a link its words."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|<picture>.*?</picture>", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]+`", "code", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def sentences(text: str, *, with_tables: bool = True) -> Iterator[str]:
    """Sentences of paragraphs, list items and table cells; headings are none."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=[|#])", prose_of(text)):
        if part.lstrip().startswith("#") or (part.startswith("|") and not with_tables):
            continue
        part = re.sub(r"^\s*(?:[-*]|\d+\.) ", "", part.strip())
        for piece in part.strip("|").split("|") if part.startswith("|") else [part]:
            yield from re.split(r"(?<=[.!?])[*)\"]*\s+", " ".join(piece.split()))


def docstring_sentences(text: str) -> Iterator[str]:
    """Sentences of a docstring. What is indented behind an empty line is code; an entry of a section is its text."""
    parts = [part for part in re.split(r"\n\s*\n", text) if not part.startswith("    ")]
    for piece in (piece for part in parts for piece in re.split(rf"\n(?={SECTION}|{OPENING})", part)):
        is_section = re.match(SECTION, piece)
        entries = re.split(r"\n {4}(?=\S)", piece)[1:] if is_section else [piece]
        for one in entries:
            prose = re.sub(r"^[\w*, ]+: " if is_section else f"^{OPENING}", "", one)
            yield from sentences(re.sub(r"``[^`]+``", "code", prose))


def too_long(found: list[str]) -> list[str]:
    """The sentences with more than ``MOST_WORDS`` words."""
    return [one for one in found if len(re.findall(r"[\w'’.,/-]*\w[\w'’.,/-]*", one)) > MOST_WORDS]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """line, text: of the module, and of its public classes, functions and methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stack: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    for node in stack:
        if text := ast.get_docstring(node):
            yield getattr(node, "lineno", 1), text
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += [
                child
                for child in node.body
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and not child.name.startswith("_")
            ]


@pytest.mark.parametrize("page", NAMES)
def test_page_when_read_then_every_sentence_has_an_actor(page: str) -> None:
    """No "nobody", no "whoever": the engine, the client, the worker, or what is missing."""
    lines = prose_of((ROOT / page).read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if NO_ACTOR.search(line)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_when_read_then_every_sentence_has_an_actor(module: Path) -> None:
    """The same for the heads of modules and for what is public in them."""
    found = [(line, match[0]) for line, text in docstrings(module) for match in NO_ACTOR.finditer(text)]
    assert found == []


@pytest.mark.parametrize("page", [name for name in NAMES if name not in LOGS and not name.startswith("docs/adr/")])
def test_page_when_read_then_its_sentences_are_short(page: str) -> None:
    """At most twenty words; what is in backticks is one."""
    found = list(sentences((ROOT / page).read_text(encoding="utf-8"), with_tables=page in FIRST_PAGES))
    assert too_long(found) == []
    assert found


@pytest.mark.parametrize(
    "module", [path for path in MODULES if "training" not in path.parts], ids=lambda path: str(path.relative_to(ROOT))
)
def test_docstrings_of_modules_and_classes_when_read_then_their_sentences_are_short(module: Path) -> None:
    """The heads of modules, and the docstrings of public classes."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    texts = [text for node in (tree, *classes) if (text := ast.get_docstring(node))]
    assert too_long([one for text in texts for one in docstring_sentences(text)]) == []
