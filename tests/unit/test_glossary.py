"""One concept, one word: public names of both packages and of the wire hold no word that docs/glossary.md forbids."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from maskd.v1 import mask_service_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("maskd", "engine_adapter")
GENERATED = "v1"

EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "JSON Schema's word": {
        "type": ("OF_TYPE", "TYPES", "TYPE_OF", "Types", "declared_types", "has_type", "types", "types_of"),
    },
    "HTTP's and OpenAI's words": {
        "type": ("media_type", "type"),
        "response": ("PiecewiseResponse", "ResponseFields", "error_response", "previous_response_id",
                     "response_format", "responses"),
        "bias": ("logit_bias",),
        "EOS": ("ignore_eos",),
    },
    "fields of vLLM, SGLang, Qwen and Ollama": {
        "thinking": ("enable_thinking", "thinking_token_budget"),
        "parser": ("reasoning_parser",),
    },
    "names of LMDeploy and TensorRT-LLM": {
        "type": ("device_type",),
        "response": ("Response",),
        "bias": ("embedding_bias",),
    },
    "gRPC's server, and calls of the wire": {
        "server": ("GetServerInfo", "ServerInfo", "server", "server_info_message", "server_info_of",
                   "server_credentials"),
    },
    "the HTTP server": {"server": ("run_server",)},
    "argparse's parser": {"parser": ("parser",)},
    "the command line": {"command": ("command",)},
    "a set of threads": {"pool": ("WorkPool", "pool")},
    "a finite automaton, as the textbooks have it": {"automaton": ("Automaton", "automaton")},
    "kinds of structured output, spelled as clients spell them": {"response": ("ResponseFormatError",)},
}  # fmt: skip
"""Names that hold a forbidden word and may: reason, word, names."""

SAME_NAME = {
    "Grammar": "the interface for backends, and what a client holds: one concept, and both are public",
    "SamplingParams": "TensorRT-LLM's class, for its scripts, beside our own",
}
"""Names that two public classes of the packages have, and why."""


def glossary() -> tuple[set[str], set[str], set[str]]:
    """The words of the first column; forbidden ones; those in italics."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ][1:]  # without the head
    words = {word.strip("` ") for first, _, _ in rows for word in first.split(",")}
    others = {word.strip() for _, _, last in rows for word in last.split(",") if last}
    italics = {word.strip("*") for word in others if word.startswith("*")}
    return words, others - {f"*{word}*" for word in italics}, italics


def words_of(name: str) -> str:
    """ "GetServerInfo" and "server_infos" are " get server info " and " server info "."""
    found = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    return f" {' '.join(word.removesuffix('s') for word in found)} "


def holds(name: str, forbidden: str) -> bool:
    return words_of(forbidden.replace(" ", "_")) in words_of(name)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, int]]:
    given = function.args
    for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if one is not None:
            yield one.arg, one.lineno


def targets(node: ast.Assign | ast.AnnAssign) -> Iterator[tuple[str, int]]:
    for target in node.targets if isinstance(node, ast.Assign) else (node.target,):
        for one in ast.walk(target):
            if isinstance(one, ast.Name):
                yield one.id, node.lineno


def names_in(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Names that a module, or a public class, offers: classes, functions, parameters, attributes, constants."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            yield from targets(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_") and node.name != "__init__":
                continue
            yield node.name, node.lineno
            if isinstance(node, ast.ClassDef):
                yield from names_in(node.body)
                continue
            yield from parameters(node)
            for one in ast.walk(node):
                if (
                    isinstance(one, ast.Attribute)
                    and isinstance(one.ctx, ast.Store)
                    and ast.unparse(one.value) == "self"
                ):
                    yield one.attr, one.lineno


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if GENERATED not in path.parts)


def public_names() -> Iterator[tuple[str, str]]:
    """name, where it stands: of every module, and of the proto file."""
    for path in modules():
        inside = path.relative_to(ROOT)
        yield from ((part, str(inside)) for part in inside.with_suffix("").parts)
        for name, line in names_in(ast.parse(path.read_text(encoding="utf-8")).body):
            yield name, f"{inside}:{line}"
    yield from ((name, "proto") for name in proto_names())


def proto_names() -> Iterator[str]:
    """Names of the wire. ``StepSequencesRequest`` is named by its call: the ending is protobuf's custom."""
    file = pb.DESCRIPTOR
    messages, enums = list(file.message_types_by_name.values()), list(file.enum_types_by_name.values())
    for message in messages:
        messages += message.nested_types
        enums += message.enum_types
        yield re.sub(r"(Request|Response)$", "", message.name)
        yield from message.fields_by_name
    for enum in enums:
        yield from (enum.name, *enum.values_by_name)
    for service in file.services_by_name.values():
        yield from (service.name, *service.methods_by_name)


def found() -> dict[tuple[str, str], list[str]]:
    """(forbidden word, public name that holds it) -> where."""
    _, forbidden, _ = glossary()
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, where in public_names():
        for word in forbidden:
            if not name.startswith("_") and holds(name, word):
                places[word, name].append(where)
    return places


ALLOWED = {(word, name) for words in EXPECTED.values() for word, names in words.items() for name in names}


def test_public_names_when_read_then_none_holds_a_word_that_the_glossary_forbids() -> None:
    """Names of modules, classes, functions, parameters, attributes, constants, settings, messages and fields."""
    assert {
        f"{name} has {word!r}": where for (word, name), where in found().items() if (word, name) not in ALLOWED
    } == {}


def test_exceptions_when_compared_with_the_names_then_each_is_still_needed() -> None:
    """What was renamed is not excused any more."""
    assert sorted(ALLOWED - found().keys()) == []


def test_italics_when_read_then_each_is_a_word_of_its_own() -> None:
    """A word that is forbidden for one thing only says in a line of its own what it means."""
    words, forbidden, italics = glossary()
    assert italics <= words
    assert not forbidden & words
    assert forbidden and italics


def test_words_when_looked_for_in_names_then_whole_words_are_found() -> None:
    """Words are found in every spelling of a name, and parts of words are not."""
    assert holds("GuideState", "guide") and holds("stop_pools", "pool") and holds("LAST_EOS", "EOS")
    assert holds("number_of_tokens", "number of tokens") and holds("maskTensors", "mask tensor")
    assert not holds("typed", "type") and not holds("rerun", "run") and not holds("tokens_of", "number of tokens")


def test_public_classes_when_counted_then_no_two_have_one_name() -> None:
    """Classes of the wire are generated and not counted; `Item` of the wire and of `maskd.step` are one concept."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        inside = path.relative_to(ROOT)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(f"{inside}:{node.lineno}")
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    bad = [f"{name}: {', '.join(places)}" for name, places in twice.items() if name not in SAME_NAME]
    assert not bad, "\n".join(sorted(bad))
    assert sorted(SAME_NAME.keys() - twice.keys()) == []
