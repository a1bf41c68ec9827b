"""One schema, read for its endings.

Owns: what that may cost. All that is asked is counted: at the start, and then as the document grows.
Knows nothing about: bytes that were read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from maskd.errors import GrammarError, GrammarTooLargeError
from maskd.grammar import GrammarOptions
from maskd.json_schema.compiler.documents import Documents
from maskd.json_schema.compiler.evaluated import read
from maskd.json_schema.compiler.nodes import Node, Work
from maskd.json_schema.endings.shortest import Shortest
from maskd.json_schema.strict_json import Json

__all__ = ["SchemaEndings"]

_FIRST_WORK, _MOST_WORK, _WORK_PER_BYTE = 60_000, 5_000, 100
"""Units of work for reading the schema, for one answer, and what each byte of the document gives back. A unit takes
some microseconds."""
_MOST_STATES = 300
"""Derivatives that one question about a regular expression may look at, some milliseconds."""
_MOST_PARTS = 2000
"""Parts of a schema that are searched for the largest one."""


class SchemaEndings:
    """The shortest documents of one schema. For one thread.

    Args:
        schema: parsed JSON.
        options: of the grammar.
        resources: documents that references may lead to, parsed JSON by address.

    Attributes:
        root: the node of the schema.
        shortest: of its nodes.
        largest: bytes of the longest of the shortest documents of the schema's parts, as far as they were looked at.

    Raises:
        GrammarError: the schema is malformed or cannot be read. Or no document of at most ``MOST_BYTES`` was found.
        RecursionError: it is nested too deeply.
    """

    def __init__(self, schema: Json, options: GrammarOptions, resources: Mapping[str, Json]) -> None:
        self._work = Work(_FIRST_WORK, _MOST_STATES)
        documents = Documents(schema, "", resources)
        reader, self.root = read(documents, options, self._work)
        self.shortest = Shortest(
            reader,
            in_order=options.property_order == "schema",
            item_separator=options.item_separator or ",",
            key_separator=options.key_separator or ":",
        )
        if self.shortest.document(self.root) is None:
            raise GrammarError("the schema has no document of a usual size")
        self.largest = 0
        with contextlib.suppress(GrammarTooLargeError):  # then it is that of the parts that were looked at
            for node in self._parts():
                self.largest = max(self.largest, len(self.shortest.document(node) or b""))
        self._work.left = _MOST_WORK

    def rest(self) -> None:
        """Counts one byte of the document, which gives some work back."""
        self._work.left = min(_MOST_WORK, self._work.left + _WORK_PER_BYTE)

    def _parts(self) -> Iterator[Node]:
        """Yields the nodes that are met from the root on, each once."""
        found, waiting = {self.root}, [self.root]
        while waiting and len(found) < _MOST_PARTS:
            node = waiting.pop()
            yield node
            for is_object in (False, True):
                for end in self.shortest.ends_of(node, objects=is_object):
                    further = [part for part in end.parts() if part not in found]
                    found.update(further)
                    waiting += further
