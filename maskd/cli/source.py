"""From flags and a file to a grammar spec: kind, text, options.

Owns: which suffix means which kind, and a flag for every option of a grammar.
Knows nothing about: what the source means; any backend.

Flags and help of options follow from ``GrammarOptions``: ``max_whitespace`` is ``--max-whitespace``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from maskd.errors import ConfigError, InvalidRequestError
from maskd.front.config import field_help
from maskd.grammar import KINDS, GrammarKind, GrammarOptions, GrammarSpec

__all__ = ["STDIN", "add_flags", "read_file", "read_spec"]

STDIN = "-"
_SUFFIXES: dict[str, GrammarKind] = {
    ".ebnf": "ebnf", ".gbnf": "ebnf", ".lark": "lark", ".regex": "regex", ".re": "regex",
}  # fmt: skip
_MOST_BYTES = 64 << 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the file, ``--kind``, ``--backend`` and a flag for every option."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="", help="the grammar; - is standard input; json_object needs none"
    )
    parser.add_argument(
        "--kind", choices=KINDS, help="default: by suffix: .json (a schema, a structural tag, or a list of choices), "
        ".regex or .re, .ebnf or .gbnf, .lark",
    )  # fmt: skip
    parser.add_argument("--backend", default="auto", metavar="NAME", help="default: auto")
    parser.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="ADDRESS=FILE",
        help="a document that references of the schema lead to, by its address; may be given many times",
    )
    options = parser.add_argument_group("options of the grammar")
    meanings, kinds = dict(field_help(GrammarOptions)), typing.get_type_hints(GrammarOptions)
    for field in dataclasses.fields(GrammarOptions):
        flag = "--" + field.name.replace("_", "-")
        meaning = meanings[field.name].replace("``", "").replace("%", "%%")
        options.add_argument(flag, default=argparse.SUPPRESS, help=meaning, **_reading(flag, kinds[field.name]))


def _reading(flag: str, kind: Any) -> dict[str, Any]:
    """Returns how argparse reads a value of ``kind``."""
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is tuple:
        return {"type": lambda text: _token_ids(flag, text), "metavar": "ID,…"}
    [inner] = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return {"type": inner, "metavar": {int: "N", str: "TEXT"}[inner]}


def _token_ids(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; give token ids with commas between them", field=flag) from None


def read_spec(arguments: Mapping[str, Any]) -> GrammarSpec:
    """Returns the spec that the flags describe.

    A regex in a file ends before the file's last line break.

    Raises:
        ConfigError: a file that cannot be read, a kind that is not known, or an option out of range.
    """
    name, kind = arguments["file"], arguments["kind"]
    if not name and kind != "json_object":
        raise ConfigError("FILE is missing; give the file of the grammar, or - for standard input", field="file")
    kind = kind or _kind_of_suffix(name)
    source = _decoded(name, read_file(name)) if name else ""
    kind = kind or _kind_of_json(source)
    if kind == "regex":
        source = source.removesuffix("\n").removesuffix("\r")
    given = {
        field.name: arguments[field.name] for field in dataclasses.fields(GrammarOptions) if field.name in arguments
    }
    resources = dict(_resource(text) for text in arguments["resource"])
    try:
        return GrammarSpec(kind, source, arguments["backend"], GrammarOptions(**given), resources=resources)
    except InvalidRequestError as error:
        raise ConfigError(error.message, **error.metadata) from None


def read_file(name: str) -> bytes:
    """Returns the bytes of a file, or of standard input for "-". Raises ConfigError."""
    try:
        if name == STDIN:
            found = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                found = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}", field="file") from None
    if len(found) > _MOST_BYTES:
        raise ConfigError(f"{name} has more than {_MOST_BYTES} bytes; give a smaller file", field="file")
    return found


def _resource(text: str) -> tuple[str, str]:
    address, _, name = text.rpartition("=")  # an address may have "=" in its query
    if not address or not name:
        raise ConfigError(f"--resource is {text!r}; give ADDRESS=FILE", field="resource")
    return address, _decoded(name, read_file(name))


def _decoded(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}", field="file") from None


def _kind_of_suffix(name: str) -> GrammarKind | None:
    """Returns the kind; None for .json, where the text decides. Raises ConfigError."""
    suffix = Path(name).suffix.lower()
    if suffix == ".json":
        return None
    if suffix not in _SUFFIXES:
        what = "standard input has no suffix" if name == STDIN else f"{name} has the suffix {suffix or 'none'!r}"
        raise ConfigError(f"{what}, which says no kind; give --kind, one of {', '.join(KINDS)}", field="kind")
    return _SUFFIXES[suffix]


def _kind_of_json(source: str) -> GrammarKind:
    """A schema is an object or a boolean; "structural_tag" is no type of JSON Schema; a list can only be choices."""
    try:
        document = json.loads(source)
    except (ValueError, RecursionError):
        return "json_schema"  # whose reader says where the JSON is wrong
    if isinstance(document, list):
        return "choice"
    is_tag = isinstance(document, dict) and (
        document.get("type") == "structural_tag" or {"structures", "triggers"} <= document.keys()
    )
    return "structural_tag" if is_tag else "json_schema"
