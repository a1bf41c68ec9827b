"""Contradictions: why nothing satisfies a schema.

A schema that nothing satisfies is still so without most of its keywords. What is left when none more can be taken away
is what contradicts itself, often two keywords. The search goes from the outside inwards. First it asks which keywords
of the schema matter, then which entries and keywords below these. Each question is a compile of what would remain.
Owns: the search, its limits, the sentence. Knows nothing about: what keywords mean, but for where their schemas stand.
Source: Junker, "QuickXplain: preferred explanations and relaxations for over-constrained problems", 2004.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskd.errors import GrammarError, GrammarUnsatisfiableError
from maskd.json_schema.compiler.documents import Documents, Place
from maskd.json_schema.keywords import ONE_SCHEMA, SCHEMA_LISTS, SCHEMA_MAPS
from maskd.json_schema.strict_json import Json, pointer

__all__ = ["contradiction"]

_SECONDS = 0.25
_MOST_QUESTIONS = 200
_MOST_ENDS = 4
_NAMES = frozenset({"$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "definitions", "id"})
"""Keywords that ask for nothing; without them a reference might lead nowhere."""
_BRANCHES = frozenset({"anyOf", "oneOf"})
_NEEDS = frozenset({"dependentRequired", "minContains", "minItems", "minProperties", "required"})
"""Keywords that ask for a part, and so only pass on that nothing satisfies the part."""
_PARTS = frozenset({
    "additionalItems", "additionalProperties", "contains", "items", "patternProperties", "prefixItems", "properties",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
"""Keywords whose schemas are about a part of the value."""

Resources = Mapping[str, Json]
"""Documents by address."""
Path = tuple[str, ...]
Edits = dict[str, Any]
"""What to leave away, by step: True = here, else the edits below."""


class _OutOfTime(Exception):
    """Of a search; what is known so far is the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """A keyword, or an entry of one such as ``/properties/a``, that may be taken away.

    Attributes:
        document: address of its document; "" = the schema itself.
        path: where it stands there.
        keyword: the keyword.
        value: of the keyword or the entry.
        part: of which part of the output it speaks; longer = deeper inside.
        is_entry: whether it is an entry: then the schema true takes its place.
    """

    document: str
    path: Path
    keyword: str
    value: Json
    part: Path
    is_entry: bool = False

    def __str__(self) -> str:
        if isinstance(self.value, dict | list) and self.keyword not in ("const", "enum", "required", "type"):
            return self.keyword
        text = json.dumps(self.value, ensure_ascii=False)
        return f"{self.keyword} {text if len(text) <= 60 else text[:60] + '…'}"


def contradiction(
    schema: Json, resources: Resources, where: str, is_empty: Callable[[Json, Resources], bool]
) -> GrammarUnsatisfiableError:
    """Returns the error for ``schema``, which nothing satisfies, with the pointers of what contradicts itself.

    Args:
        schema: parsed JSON, which stays as it is.
        resources: documents that references may lead to.
        where: pointer of the schema in what the caller sent.
        is_empty: whether nothing satisfies a schema, with such resources. Raises GrammarError where it cannot say.
    """
    if schema is False:
        return GrammarUnsatisfiableError("the schema is false, so nothing satisfies it; change it", pointer=where)
    ends = _Search(schema, resources, is_empty).ends()
    if not ends:
        return GrammarUnsatisfiableError(
            "nothing satisfies the schema; look for a part that is required and needs itself, or for keywords that "
            "contradict each other",
            pointer=where,
        )
    places = [
        f"{end.document}#{pointer(end.path)}" if end.document else where + pointer(end.path)
        for end in ends[:_MOST_ENDS]
    ]
    told = [f"{end} at {place or 'the root'}" for end, place in zip(ends, places, strict=False)]
    further = f" and {len(ends) - len(told)} more" if len(ends) > len(told) else ""
    if len(ends) == 1:
        sentence = f"{told[0]} allows nothing; change it"
    elif len(ends) == 2:
        sentence = f"{told[0]} contradicts {told[1]}; change one of them"
    else:
        sentence = f"these contradict each other: {', '.join(told)}{further}; change one of them"
    metadata: dict[str, Any] = {"pointer": places[0], "keyword": ends[0].keyword}
    for number, (end, place) in enumerate(zip(ends, places, strict=False)):
        if number:
            metadata |= {f"pointer_{number + 1}": place, f"keyword_{number + 1}": end.keyword}
    return GrammarUnsatisfiableError(f"nothing satisfies the schema: {sentence}", **metadata)


class _Search:
    """One search, with its limits on time and on questions."""

    def __init__(self, schema: Json, resources: Resources, is_empty: Callable[[Json, Resources], bool]) -> None:
        self._schema, self._resources, self._is_empty = schema, resources, is_empty
        self._documents = Documents(schema, "", resources)
        self._until = time.thread_time() + _SECONDS
        self._questions = 0
        self._gone = set[_End]()
        self._passing = set[_End]()
        self._seen = set[int]()

    def ends(self) -> list[_End]:
        """Returns a set of ends that contradict each other, in the order of the search."""
        kept: list[_End] = []
        inner = list(self._keywords(self._schema, "", (), ()))
        try:
            while inner:
                needed = self._needed(inner)
                self._gone.update(end for end in inner if end not in needed)
                kept = [end for end in kept if end not in self._gone] + needed
                inner = []
                for end in needed:
                    inside = list(self._inside(end))
                    self._passing.update([end] if inside and end.keyword == "$ref" else [])
                    inner += inside
        except _OutOfTime:
            pass
        except GrammarError:  # a reference that leads nowhere: another error than the one that is told
            return []
        return self._told([end for end in kept if not self._has_kept_inside(end, kept)])

    def _has_kept_inside(self, end: _End, kept: Sequence[_End]) -> bool:
        if end in self._passing:
            return True
        size = len(end.path)
        return any(
            other is not end and other.document == end.document and other.path[:size] == end.path for other in kept
        )

    def _told(self, ends: list[_End]) -> list[_End]:
        """Leaves out what only passes on a contradiction, as long as two ends remain."""
        deepest = max((len(end.part) for end in ends), default=0)
        inside = [end for end in ends if end.keyword not in {"type", *_NEEDS} or len(end.part) == deepest]
        for found in ([end for end in inside if end.keyword != "type"], inside):
            if len(found) >= 2:
                return found
        fewer = [end for end in ends if end.keyword != "type"]
        return fewer if len(fewer) >= 2 else ends

    # -- questions -------------------------------------------------------------------------------------------------

    def _needed(self, ends: list[_End]) -> list[_End]:
        """Returns some of ``ends`` without which something satisfies the schema: a least set, by halves."""

        def halved(kept: list[_End], ends: list[_End], *, is_new: bool) -> list[_End]:
            if is_new and self._without([end for end in every if end not in kept]):
                return []
            if len(ends) == 1:
                return ends
            first, last = ends[: len(ends) // 2], ends[len(ends) // 2 :]
            of_last = halved([*kept, *first], last, is_new=True)
            of_first = halved([*kept, *of_last], first, is_new=bool(of_last))
            return of_first + of_last

        every = ends
        return [] if self._without(ends) else halved([], ends, is_new=False)

    def _without(self, ends: Sequence[_End]) -> bool:
        """Says whether nothing satisfies the schema without ``ends`` either."""
        self._questions += 1
        if self._questions > _MOST_QUESTIONS or time.thread_time() > self._until:
            raise _OutOfTime
        edits: dict[str, Edits] = {}
        for end in sorted((*self._gone, *ends), key=lambda end: len(end.path)):
            level = edits.setdefault(end.document, {})
            for step in end.path[:-1]:
                level = level.setdefault(step, {})
                if level is True:  # all around it is left away
                    break
            else:
                level[end.path[-1]] = True
        schema = _edited(self._schema, edits.get("", {}))
        resources = {
            address: _edited(document, edits.get(address, {})) for address, document in self._resources.items()
        }
        try:
            return self._is_empty(schema, resources)
        except (GrammarError, RecursionError):
            return False

    # -- what there is to take away --------------------------------------------------------------------------------

    def _keywords(self, schema: Json, document: str, path: Path, part: Path) -> Iterator[_End]:
        """Yields the keywords of ``schema``, which stands at ``path``; once for each schema."""
        if isinstance(schema, dict) and id(schema) not in self._seen:
            self._seen.add(id(schema))
            for keyword, value in schema.items():
                if keyword not in _NAMES:
                    yield _End(document, (*path, keyword), keyword, value, part)

    def _inside(self, end: _End) -> Iterator[_End]:
        """Yields what may be taken away inside ``end``."""
        keyword, value = end.keyword, end.value
        part = (*end.part, *end.path[-1:]) if keyword in _PARTS else end.part
        if end.is_entry or (keyword in ONE_SCHEMA and isinstance(value, dict)):
            yield from self._keywords(value, end.document, end.path, part)
        elif keyword in _BRANCHES:
            for index, branch in enumerate(value):
                yield from self._keywords(branch, end.document, (*end.path, str(index)), end.part)
        elif (keyword in SCHEMA_LISTS and isinstance(value, list)) or keyword in SCHEMA_MAPS:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for at, child in entries:
                yield _End(end.document, (*end.path, str(at)), keyword, child, end.part, is_entry=True)
        elif keyword == "$ref":
            holder = self._holder(end)
            target, place = self._documents.follow(value, holder)
            if place.document in ("", *self._resources) and isinstance(target, dict):
                yield from self._keywords(target, place.document, _path(place.pointer), end.part)

    def _holder(self, end: _End) -> Place:
        schema = self._resources[end.document] if end.document else self._schema
        for step in end.path[:-1]:
            schema = schema[int(step) if isinstance(schema, list) else step]
        return self._documents.place(schema)


def _path(text: str) -> Path:
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:])


def _edited(value: Json, edits: Edits) -> Json:
    """Returns ``value`` without what ``edits`` leave away. An entry of a list, or of a map of schemas, becomes true."""
    if isinstance(value, list):
        return [_kept(item, edits.get(str(at))) for at, item in enumerate(value)]
    found = {}
    for key, item in value.items():
        edit = edits.get(key)
        if key in SCHEMA_MAPS and isinstance(edit, dict):
            found[key] = {name: _kept(child, edit.get(name)) for name, child in item.items()}
        elif edit is not True:
            found[key] = _kept(item, edit)
    return found


def _kept(value: Json, edit: Edits | bool | None) -> Json:
    if edit is None:
        return value
    return True if isinstance(edit, bool) else _edited(value, edit)
