"""Bounded reading of tokenizer files, and the half-made vocabulary that every format is read into.

A value that was read here has the type that its name says.
Owns: ``Draft``, the size limit, and the checks that turn malformed JSON into a VocabularyError that names the file.
Knows nothing about: any format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from maskd.errors import VocabularyError
from maskd.vocabulary import MAX_VOCAB_SIZE

__all__ = ["MAX_FILE_BYTES", "Draft", "expect", "expect_id", "invalid", "parse_json", "read_bounded", "utf8"]

MAX_FILE_BYTES = 256 << 20
"""Largest file that is read. The largest published tokenizer.json files have about 35 MB."""

T = TypeVar("T")


@dataclass
class Draft:
    """What a tokenizer file says, before the files beside it and the caller's arguments are applied.

    Attributes:
        tokens: token id to bytes; ids may have holes.
        names: token as written in the file to its id; finds ``eos_token`` and its like.
        special_ids: ids that never match text.
        added_ids: ids outside of the trained vocabulary; a model may be narrower than these.
        stop_ids: ids that the format itself calls the end of a sequence.
        vocab_size: width of the logits if a file says it.
        decode_added: bytes of an added token that stands for text; None if that is its UTF-8.
        is_open_ended: special tokens may lie beyond the ids listed (tiktoken files never list them).
    """

    tokens: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    special_ids: set[int] = field(default_factory=set)
    added_ids: set[int] = field(default_factory=set)
    stop_ids: tuple[int, ...] = ()
    vocab_size: int | None = None
    decode_added: Callable[[str], bytes] | None = None
    is_open_ended: bool = False

    def add(self, path: Path, token_id: int, text: str, *, special: bool) -> None:
        """Adds or replaces an added token: a special one keeps its name as bytes, any other one stands for its text.

        A token that was trained under the same id keeps the bytes it has: that is what the model writes with it.
        """
        if special:
            self.tokens[token_id] = utf8(path, text)
        elif self.names.get(text) != token_id:
            self.tokens[token_id] = utf8(path, text) if self.decode_added is None else self.decode_added(text)
        self.names[text] = token_id
        self.added_ids.add(token_id)
        (self.special_ids.add if special else self.special_ids.discard)(token_id)

    def mark_special(self, path: Path, text: str) -> None:
        """Makes the token named ``text`` special. Unknown names are ignored: configurations have some."""
        if text in self.names:
            self.tokens[self.names[text]] = utf8(path, text)
            self.special_ids.add(self.names[text])


def invalid(path: Path, problem: str) -> VocabularyError:
    """Returns the error for ``problem`` in the file ``path``."""
    return VocabularyError(f"{path}: {problem}", file=path)


def expect(path: Path, where: str, value: object, kind: type[T]) -> T:
    """Returns ``value`` if it is a ``kind`` (a bool is no int), else raises VocabularyError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {dict: "an object", list: "a list", str: "a string", int: "an integer"}.get(kind, kind.__name__)
        raise invalid(
            path,
            f"{where} is {'missing' if value is None else type(value).__name__}, not {wanted}; fetch the file again",
        )
    return value


def expect_id(path: Path, where: str, value: object) -> int:
    """Returns ``value`` if it can be a token id, else raises VocabularyError."""
    token_id = expect(path, where, value, int)
    if not 0 <= token_id < MAX_VOCAB_SIZE:
        raise invalid(path, f"{where} is {token_id:.20g}; token ids are from 0 to {MAX_VOCAB_SIZE - 1}")
    return token_id


def utf8(path: Path, text: str) -> bytes:
    """Returns the UTF-8 of ``text``. Raises VocabularyError: a lone surrogate, which JSON can write."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid(
            path, f"token {text[:40]!a} holds half of a surrogate pair; write the tokenizer file again"
        ) from None


def read_bounded(path: Path) -> bytes:
    """Returns the content of ``path``. Raises VocabularyError: no regular file, unreadable, over MAX_FILE_BYTES."""
    try:
        if not path.is_file():  # before opening: to open a pipe would wait for its writer
            raise invalid(path, "no such file" if not path.exists() else "not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise invalid(path, f"cannot be read: {error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise invalid(path, f"has more than {MAX_FILE_BYTES >> 20} MiB; is it a tokenizer file?")
    return raw


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """Returns the JSON object in ``raw``. Raises VocabularyError if it is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise invalid(path, f"not JSON: {error}; the file may be cut short, fetch it again") from None
    return expect(path, "the file", value, dict)
