"""A text that grows at its end and shares its beginning with what it grew from.

Every token of a sequence has a reading, and each reading has its text. Shared, they take the memory of one text.
Knows nothing about: what the text means.
"""

from __future__ import annotations

__all__ = ["EMPTY_RECORD", "Record"]

_CHUNK_BYTES = 256
"""A chunk is copied until it has so many bytes."""


class Record:
    """Bytes, as a chain of chunks. Immutable.

    Attributes:
        size: how many bytes.
    """

    __slots__ = ("_before", "_chunk", "size")

    def __init__(self, before: Record | None, chunk: bytes) -> None:
        self._before, self._chunk = before, chunk
        self.size: int = len(chunk) + (before.size if before is not None else 0)

    def __add__(self, text: bytes) -> Record:
        if len(self._chunk) < _CHUNK_BYTES:
            return Record(self._before, self._chunk + text)
        return Record(self, text)

    def since(self, start: int) -> bytes:
        """Returns the bytes from ``start`` on; from the first on if it is negative."""
        chunks, record = list[bytes](), self
        while record._before is not None and record._before.size > start:
            chunks.append(record._chunk)
            record = record._before
        first = record._before.size if record._before is not None else 0
        chunks.append(record._chunk[max(0, start - first) :])
        return b"".join(reversed(chunks))


EMPTY_RECORD = Record(None, b"")
