"""The documents say what is so: their examples run, their tables are compared with the code, their links lead
somewhere."""

from __future__ import annotations

import argparse
import array
import ctypes
import json
import mmap
import os
import re
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
import pytest

from engine_adapter.masker import Masker
from maskd import _shm, backends
from maskd.__main__ import main
from maskd.backends.base import Backend
from maskd.client import Client, Session
from maskd.errors import GrammarUnsupportedError, error_classes
from maskd.front import config
from maskd.grammar import KINDS, WHEN_SLOW, GrammarOptions, GrammarSpec
from maskd.json_schema.compiler.formats import FORMATS
from maskd.shm import layout as lay
from maskd.step import ItemField, Status
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "maskd" / "native"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOCKET = re.compile(r"unix:/(?:run|tmp)/maskd/maskd\.sock")
"""Where the pages have the daemon; the tests run one elsewhere."""


class Block(NamedTuple):
    """A fenced block: where it stands, its language, its text."""

    where: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """Every block of ``language`` in all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return [block for block in found if block.language == language]


def each(language: str) -> Any:
    return pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in blocks(language)])


def table_behind(page: str, marker: str) -> list[list[str]]:
    """The body cells of the first table behind ``marker`` in ``page``, without backticks and emphasis."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = iter(text[text.index(marker) :].splitlines()[1:])
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append([re.sub(r"[`*]", "", cell).strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def hold(page: str, start: str, made: str, end: str) -> None:
    """Asserts that what stands in ``page`` between ``start`` and ``end`` is ``made``; MASKD_UPDATE_DOCS=1 writes it
    there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    before, found, rest = text.partition(start)
    shown, _, after = rest.partition("\n" + end)
    assert found, f"{page} has no {start!r}"
    if os.environ.get("MASKD_UPDATE_DOCS"):
        (ROOT / page).write_text(f"{before}{start}{made}{end}{after}", encoding="utf-8")
    else:
        assert shown + "\n" == made, "set MASKD_UPDATE_DOCS=1 and run this test to write it"


# -- examples run ------------------------------------------------------------------------------------------------------


@each("python")
def test_python_block_when_run_against_a_daemon_then_it_works(
    block: Block, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python example runs as printed, from the top of the repository; only the socket is another."""
    monkeypatch.chdir(ROOT)
    source = SOCKET.sub(daemon.target, block.text)
    exec(compile("\n" * int(block.where.rpartition(":")[2]) + source, block.where, "exec"), {"__name__": "example"})


@each("console")
def test_console_block_when_read_then_its_commands_exist(
    block: Block, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of maskd parse, with settings that are good; make has the verb; other commands that are ours run."""
    verbs = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    assert commands
    for command in commands:
        words = shlex.split(command.partition(" #")[0].rstrip().removesuffix("&").removeprefix(".venv/bin/"))
        environment = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(verbs), command
        elif words[:2] == ["maskd", "serve"]:
            (tmp_path / "maskd.yaml").write_text(blocks("yaml")[0].text)
            monkeypatch.chdir(tmp_path)
            parser = argparse.ArgumentParser(exit_on_error=False)
            config.flags(parser)
            given = vars(parser.parse_args(words[2:]))
            config.load({k: v for k, v in given.items() if k != "config"}, environment, given.get("config"))
        elif words[0] in ("maskd", "engine-adapter"):
            module = words[0].replace("-", "_")
            command = SOCKET.sub(daemon.target, shlex.join([sys.executable, "-m", module, *words[1:]]))
            subprocess.run(["bash", "-c", command], check=True, cwd=ROOT, timeout=100, stdout=subprocess.DEVNULL)
        else:
            assert words[0] in ("git", "cd", "cc", "docker", "pip"), command


@pytest.mark.parametrize(
    "command", re.findall(r"^```text\n\$ (maskd .*)$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
)
def test_command_when_run_then_it_prints_what_the_page_shows(
    command: str, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """docs/commands.md has the output of its commands; time and memory of a compile are other ones each time."""
    monkeypatch.chdir(ROOT)
    main([*shlex.split(command)[1:], "--listen", daemon.target])
    printed = capsysbinary.readouterr().out.decode()
    printed = re.sub(r"compiled  .*", "compiled  in 3.4 ms, about 130 KiB of memory", printed)
    hold("docs/commands.md", f"```text\n$ {command}\n", printed, "```\n")


def test_readme_when_pasted_from_the_top_then_its_loop_prints_a_city() -> None:
    """The daemon that the README starts, in the background, and behind it the README's loop, as a file; only the socket
    moves."""
    directory = tempfile.mkdtemp(prefix="mk")  # short: a socket path has 107 bytes
    listen = f"unix:{directory}/maskd.sock"
    [serve] = re.findall(
        r"^\$ \.venv/bin/(maskd serve .*) &$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    loop = next(block.text for block in blocks("python") if block.where.startswith("README.md"))
    command = [sys.executable, "-m", *shlex.split(SOCKET.sub(listen, serve))]
    file = Path(directory) / "loop.py"
    file.write_text(SOCKET.sub(listen, loop), encoding="utf-8")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as daemon:
        try:
            printed = subprocess.run(
                [sys.executable, str(file)],
                check=True, cwd=ROOT, timeout=100, capture_output=True, text=True,
            ).stdout  # fmt: skip
        finally:
            daemon.terminate()
    shutil.rmtree(directory)
    assert printed in ("Paris\n", "London\n")


@each("yaml")
def test_yaml_block_when_loaded_then_it_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Every YAML example is a configuration of the daemon."""
    path = tmp_path / "maskd.yaml"
    path.write_text(block.text)
    assert config.load({}, {}, str(path)) != config.Config()


@each("c")
def test_c_block_when_compiled_then_there_are_no_warnings(block: Block, tmp_path: Path) -> None:
    """Every C example compiles against the header, strictly."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "example.c"
    source.write_text(block.text)
    subprocess.run(
        [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-c", str(source), "-o", "/dev/null"],
        check=True,
    )


# -- tables are what the code says -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_structs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, int, str]]]:
    """struct name -> (offset, bytes, field) of every field, by a C compiler. Reserved fields are called zero."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    header = (NATIVE / "maskd_shm.h").read_text()
    body, names = "", []
    for definition, name in re.findall(r"typedef struct \{(.*?)\} (maskd_(?!session)\w+);", header, re.DOTALL):
        definition = re.sub(r"/\*.*?\*/", "", definition, flags=re.DOTALL)
        fields = [
            re.sub(r"\[.*", "", part).strip()
            for line in re.findall(r"\w+ ([^;]+);", definition)
            for part in line.split(",")
        ]
        names += [(name, field) for field in fields]
    for name, field in names:
        body += f'printf("{name} {field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
    directory = tmp_path_factory.mktemp("structs")
    (directory / "structs.c").write_text(
        f'#include "maskd_shm.h"\n#include <stdio.h>\nint main(void) {{ {body} return 0; }}\n'
    )
    subprocess.run(
        [compiler, f"-I{NATIVE}", str(directory / "structs.c"), "-o", str(directory / "structs")], check=True
    )
    out = subprocess.run([str(directory / "structs")], check=True, capture_output=True, text=True).stdout
    structs: dict[str, list[tuple[int, int, str]]] = {}
    for line in out.splitlines():
        name, field, offset, size = line.split()
        structs.setdefault(name, []).append((int(offset), int(size), re.sub(r"^zero\d*$", "zero", field)))
    return structs


@pytest.mark.parametrize(
    "name",
    [
        "maskd_hello",
        "maskd_grant",
        "maskd_steps_header",
        "maskd_rows_header",
        "maskd_steps_cell",
        "maskd_rows_cell",
        "maskd_item",
        "maskd_result",
    ],
)
def test_struct_table_when_compared_with_the_header_then_it_is_complete_and_right(
    name: str, compiled_structs: dict[str, list[tuple[int, int, str]]]
) -> None:
    """docs/shared-memory.md has every field of every struct, at its offset, with its size."""
    rows = table_behind("docs/shared-memory.md", f"<!-- struct {name} -->")
    assert [(int(row[0], 16), int(row[1]), row[2]) for row in rows] == compiled_structs[name]


def test_status_tables_when_compared_with_the_code_then_they_are_complete() -> None:
    """Every status and every field number of INVALID_ITEM is in docs/shared-memory.md."""
    statuses = [row[0] for row in table_behind("docs/shared-memory.md", "There is no row behind a draft")]
    assert statuses == [f"{status.value} {status.name}" for status in Status]
    fields = {row[0] for row in table_behind("docs/shared-memory.md", "`detail_index` of INVALID_ITEM")}
    assert fields == {f"{field.value} {field.name}" for field in ItemField}


def test_layout_version_when_compared_with_the_code_then_it_is_the_same() -> None:
    """The page describes the version that the code has, at its top and wherever a struct holds it."""
    page = (ROOT / "docs/shared-memory.md").read_text()
    assert f"Layout version: **{lay.MAJOR}.{lay.MINOR}**" in page
    written = re.findall(r"\| (layout_(?:major|minor)) \| (\d+) \|", page)
    assert written == [("layout_major", str(lay.MAJOR)), ("layout_minor", str(lay.MINOR))] * 3


def test_error_table_when_made_from_the_classes_then_it_is_the_one_on_the_page() -> None:
    """docs/errors.md has every error class with its code, its reason and what to do next."""
    head = "| exception | code | reason | what the caller does next | when |\n|---|---|---|---|---|\n"
    rows = [
        f"| `{cls.__name__}` | {cls.code} | {cls.reason} | {cls.recovery} | "
        f"{(cls.__doc__ or '').splitlines()[0]} |\n".replace("``", "`")
        for cls in error_classes()
    ]
    hold("docs/errors.md", "<!-- errors -->\n", head + "".join(rows), "\n")


def test_settings_table_when_made_from_config_then_it_is_the_one_on_the_page() -> None:
    """docs/daemon.md has every setting with its default, as the help of the flags has it."""
    meanings = dict(config.field_help(config.Config))
    rows = ["| setting | default | meaning |\n|---|---|---|\n"]
    for field in msgspec.structs.fields(config.Config):
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        shown = (
            "see above"
            if field.name == "listen"
            else json.dumps(default, default=str).strip("[]").replace('"', "") or "none"
        )
        rows.append(f"| `{field.name}` | {shown} | {meanings[field.name]} |\n")
    hold("docs/daemon.md", "<!-- settings -->\n", "".join(rows), "\n")


def test_tables_of_grammars_when_compared_with_grammar_then_they_are_complete() -> None:
    """docs/grammars.md has every option of a grammar, and every kind."""
    options = [row[0] for row in table_behind("docs/grammars.md", "<!-- options -->")]
    assert options == list(GrammarOptions.__dataclass_fields__)
    assert [row[0] for row in table_behind("docs/grammars.md", "## Kinds")] == list(KINDS)
    assert [row[0].strip('"') for row in table_behind("docs/grammars.md", "`when_slow` says")] == list(WHEN_SLOW)


def test_table_of_formats_when_compared_with_the_compiler_then_it_is_complete() -> None:
    """docs/json-schema.md has every format that is asserted."""
    rows = table_behind("docs/json-schema.md", "<!-- formats -->")
    assert {name for row in rows for name in row[0].split(", ")} == set(FORMATS)


SAMPLES = {
    "json_schema": '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}',
    "json_object": "",
    "regex": "[a-z]+ [0-9]{2}",
    "choice": '["Paris","London"]',
    "ebnf": 'root ::= "a" tail\ntail ::= [0-9]+',
    "lark": 'start: "a" TAIL\nTAIL: /[0-9]+/',
    "structural_tag": '{"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f="],'
    '"tags":[{"begin":"<f=a>","content":{"type":"json_schema","json_schema":{"type":"integer"}},"end":"</f>"}]}}',
}


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_kind_table_when_compiled_then_yes_means_yes(backend: str, vocabulary: Vocabulary) -> None:
    """The README's table of kinds and backends has every kind, and each "yes" compiles and has a first row."""
    rows = table_behind("README.md", "<!-- kinds -->")
    assert [row[0] for row in rows] == list(KINDS) == list(SAMPLES)
    maker = backends.load(backend)(vocabulary, threads=1)
    for row in rows:
        says_yes = row[{"llguidance": 2, "xgrammar": 3}[backend]].startswith("yes")
        try:
            maker.compile(GrammarSpec(row[0], SAMPLES[row[0]])).matcher()
        except GrammarUnsupportedError:
            assert not says_yes, row[0]
        else:
            assert says_yes, row[0]


KEYWORDS: dict[str, dict[str, object]] = {
    "any value": {
        "type": {"type": "integer"},
        "const": {"const": {"a": [1]}},
        "enum": {"enum": ["a", 5]},
        "anyOf": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "oneOf": {"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
        "allOf": {"allOf": [{"type": "string"}, {"minLength": 2}]},
        "not": {"not": {"type": "string"}},
        "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
        "$ref": {"$ref": "#/$defs/s", "$defs": {"s": {"type": "string"}}},
        "$dynamicRef": {"$dynamicRef": "#s", "$defs": {"s": {"$dynamicAnchor": "s", "type": "string"}}},
    },
    "string": {
        "minLength": {"minLength": 2},
        "maxLength": {"maxLength": 2},
        "pattern": {"pattern": "^a+$"},
        "format": {"format": "date"},
    },
    "number": {
        "minimum": {"minimum": 5},
        "maximum": {"maximum": 5},
        "exclusiveMinimum": {"exclusiveMinimum": 5},
        "exclusiveMaximum": {"exclusiveMaximum": 5},
        "multipleOf": {"multipleOf": 0.5},
    },
    "array": {
        "items": {"items": {"type": "integer"}},
        "prefixItems": {"prefixItems": [{"type": "integer"}]},
        "minItems": {"minItems": 1},
        "maxItems": {"maxItems": 2},
        "uniqueItems": {"uniqueItems": True},
        "contains": {"contains": {"type": "integer"}},
        "minContains": {"contains": {"type": "integer"}, "minContains": 2},
        "maxContains": {"contains": {"type": "integer"}, "maxContains": 1},
        "unevaluatedItems": {"unevaluatedItems": {"type": "integer"}},
    },
    "object": {
        "properties": {"properties": {"a": {"type": "integer"}}},
        "required": {"properties": {"a": {}}, "required": ["a"]},
        "additionalProperties": {"properties": {"a": {}}, "additionalProperties": False},
        "patternProperties": {"patternProperties": {"^x": {"type": "integer"}}},
        "propertyNames": {"propertyNames": {"pattern": "^a+$"}},
        "minProperties": {"minProperties": 1},
        "maxProperties": {"maxProperties": 1},
        "dependentRequired": {"dependentRequired": {"a": ["b"]}},
        "dependentSchemas": {"dependentSchemas": {"a": {"required": ["b"]}}},
        "unevaluatedProperties": {"unevaluatedProperties": {"type": "integer"}},
    },
}
"""Values of a type: keyword: a plain use of it. tests/contract probes their combinations."""


def outcome(maker: Backend, schema: object) -> str:
    try:
        report = maker.compile(GrammarSpec("json_schema", json.dumps(schema))).report
    except GrammarUnsupportedError:
        return "refused"
    return "reported" if report.unenforced else "enforced"


def test_keyword_table_when_made_by_the_libraries_then_it_is_the_one_on_the_page(vocabulary: Vocabulary) -> None:
    """docs/grammars.md has what each library does with each keyword."""
    makers = [backends.load(name)(vocabulary, threads=1) for name in ("llguidance", "xgrammar")]
    made = "| values | keywords | llguidance | xgrammar |\n|---|---|---|---|\n"
    for values, samples in KEYWORDS.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for keyword, sample in samples.items():
            schema = sample if values == "any value" else {"type": values, **sample}  # type: ignore[dict-item]
            alike.setdefault(tuple(outcome(maker, schema) for maker in makers), []).append(f"`{keyword}`")
        made += "".join(f"| {values} | {', '.join(names)} | {' | '.join(how)} |\n" for how, names in alike.items())
    hold("docs/grammars.md", "<!-- keywords -->\n", made, "\n")


def test_troubleshooting_when_compared_with_the_errors_then_it_has_all_of_them() -> None:
    """docs/troubleshooting.md says of every typed error what causes it."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert [cls.__name__ for cls in error_classes() if f"`{cls.__name__}`" not in page] == []


def test_troubleshooting_when_it_quotes_a_message_then_the_code_has_it() -> None:
    """Messages of a start that fails are quoted as they are; an ellipsis stands for what differs."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "maskd").rglob("*.py")))
    messages = re.sub(r'"\s+f?"', "", sources)  # literals side by side are one
    cells = [row[0] for row in table_behind("docs/troubleshooting.md", "<!-- starting -->")]
    quoted = [part.strip(" ,") for cell in cells for part in cell.split("…") if part.strip(" ,")]
    assert quoted and [part for part in quoted if part not in messages] == []


@pytest.mark.parametrize(
    ("marker", "classes"), [("<!-- masker -->", (Masker,)), ("<!-- client -->", (Client, Session))]
)
def test_table_of_methods_when_compared_with_the_class_then_it_has_all_that_are_public(
    marker: str, classes: tuple[type, ...]
) -> None:
    """docs/integrating.md has every public method of the masker and of the client."""
    prefix = "" if len(classes) == 1 else "{}."
    public = {prefix.format(cls.__name__) + name for cls in classes for name in vars(cls) if not name.startswith("_")}
    assert {row[0].partition("(")[0] for row in table_behind("docs/integrating.md", marker)} == public


def test_index_when_compared_with_the_directory_then_it_has_every_page() -> None:
    """docs/README.md links to every page of docs and to every decision."""
    linked = set(re.findall(r"\]\(([^)#]+)", (ROOT / "docs/README.md").read_text(encoding="utf-8")))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")} - {"README.md"}
    assert pages <= linked


def test_pictures_when_compared_then_they_differ_in_their_colours_only() -> None:
    """The picture of the README is drawn once, in colours for light and for dark pages."""
    light, dark = (
        re.sub(r"#[0-9a-f]{6}\b", "#", (ROOT / f"docs/overview-{name}.svg").read_text()) for name in ("light", "dark")
    )
    assert light == dark


def test_links_when_followed_then_the_files_are_there() -> None:
    """Every relative link and picture of every page leads to a file."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"(?:\]\(|src=\"|srcset=\")([^)#\s\"]+)", page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert not broken


# -- the example of docs/shared-memory.md, made by a client that knows nothing but that page -------------------------

EXAMPLE_TOKENS = [bytes([b]) for b in range(256)] + [b"Paris", b"London", b"<stop>"]


class PageClient:
    """A client written from docs/shared-memory.md: sockets, descriptors and offsets, nothing of maskd but ordered
    access to words."""

    def __init__(self, path: str) -> None:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = mask_service_pb2_grpc.MaskServiceStub(channel)
            header = pb.UploadVocabularyRequest.Header(name="example", vocab_size=259, stop_token_ids=[258])
            upload = iter(
                [pb.UploadVocabularyRequest(header=header), pb.UploadVocabularyRequest(tokens=EXAMPLE_TOKENS)]
            )
            fingerprint = stub.UploadVocabulary(upload).vocabulary.fingerprint
            opened = stub.CreateSession(
                pb.CreateSessionRequest(
                    vocabulary_fingerprint=fingerprint,
                    vocab_size=259,
                    transport=pb.TRANSPORT_SHARED_MEMORY,
                    row_capacity=2,
                    item_capacity=16,
                    token_capacity=64,
                )
            )
            self._attach(path + ".data", opened.data_token)
            grammar = pb.GrammarSpec(regex="(Paris|London)")
            self.grammar_id = stub.CreateGrammar(
                pb.CreateGrammarRequest(session_id=opened.session_id, grammar=grammar)
            ).grammar_id
        assert self.rows[0x70:0x90] == fingerprint

    def _attach(self, path: str, token: bytes) -> None:
        self.lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lease.connect(path)
        self.lease.send(b"MSKHELO1" + struct.pack("<2HI16s16x", 1, 2, 0, token))
        grant, ancillary, _, _ = self.lease.recvmsg(64, socket.CMSG_SPACE(16))
        fds = array.array("i", ancillary[0][2])
        magic, status, major, _, _, rows_bytes, steps_bytes = struct.unpack_from("<8sI2HqQQ", grant)
        assert (magic, status, major, len(fds)) == (b"MSKGRNT1", 0, 1, 4)
        assert [os.fstat(fd).st_size for fd in fds[:2]] == [rows_bytes, steps_bytes]
        with pytest.raises(PermissionError):
            mmap.mmap(fds[0], rows_bytes)
        self.rows = mmap.mmap(fds[0], rows_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        self.steps = mmap.mmap(fds[1], steps_bytes)
        self.rows_at = self._address_of_rows(fds[0], rows_bytes)
        self.steps_at = ctypes.addressof(ctypes.c_char.from_buffer(self.steps))
        self.doorbell, self.reply = fds[2], fds[3]
        os.close(fds[0])
        os.close(fds[1])
        assert self.rows[:8] == b"MSKROWS1"
        self.step = 0

    def _address_of_rows(self, fd: int, size: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        return int(libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0))

    def u64(self, segment: mmap.mmap, offset: int) -> int:
        return int(struct.unpack_from("<Q", segment, offset)[0])

    def steps_cell(self, step: int) -> int:
        return self.u64(self.steps, 0x28) + step % 2 * self.u64(self.steps, 0x30)

    def rows_cell(self, step: int) -> int:
        return self.u64(self.rows, 0x28) + step % 2 * self.u64(self.rows, 0x30)

    def run(self, item: bytes, tokens: list[int]) -> None:
        """Publishes a step of one item and waits for it."""
        self.step += 1
        cell = self.steps_cell(self.step)
        struct.pack_into("<QII", self.steps, cell, self.step, 1, len(tokens))
        at = cell + self.u64(self.steps, 0x38)
        self.steps[at : at + 64] = item
        struct.pack_into(f"<{len(tokens)}i", self.steps, cell + self.u64(self.steps, 0x40), *tokens)
        _shm.publish(self.steps_at + 0x200, self.step, self.rows_at + 0x280, self.doorbell)
        while _shm.load_u64(self.rows_at + 0x200) < self.step:
            _shm.store_u32(self.steps_at + 0x280, 1)
            _shm.fence()
            if _shm.load_u64(self.rows_at + 0x200) < self.step:
                ready, _, _ = select.select([self.reply, self.lease], [], [], 0.05)
                assert self.lease not in ready
                if self.reply in ready:
                    os.read(self.reply, 4096)
        _shm.store_u32(self.steps_at + 0x280, 0)


class Dump:
    """Lines of "+offset  bytes  meaning"; bytes that differ from run to run are dots."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def title(self, text: str) -> None:
        self.lines += [""] * bool(self.lines) + [text]

    def part(self, segment: mmap.mmap, base: int, fields: str, offset: int = 0) -> None:
        """``fields`` are "bytes:meaning", separated by "; "; a leading "~" hides the bytes, "-" is a gap."""
        for field in fields.split("; "):
            size, _, meaning = field.partition(":")
            hidden, count = size.startswith("~"), int(size.strip("~-"))
            if not size.startswith("-"):
                data = segment[base + offset : base + offset + count]
                shown = ".. " * count if hidden else " ".join(f"{byte:02x}" for byte in data)
                self.lines.append(f"  +0x{offset:04x}  {shown.strip():<47}  {meaning}")
            offset += count


def example(client: PageClient) -> str:
    """The example of §13: what both segments hold after each of its two steps."""
    dump = Dump()
    parts = [
        (struct.pack("<3q2H2i3I16x", 7, client.grammar_id, 0, 1, 0, 0, 0, 0, 0, 0), []),
        (struct.pack("<3q2H2i3I16x", 7, 0, 0, 0, 0, 0, 1, 0, 1, 0), [256]),
    ]
    item_fields = (
        "8:sequence_id; 8:grammar_id; 8:source_sequence_id; 2:action; 2:flags; 4:rollback; 4:row; "
        "4:accept_offset; 4:accept_count; 4:draft_count"
    )
    for item, tokens in parts:
        client.run(item, tokens)
        step, row = client.step, client.step - 1
        cell = client.steps_cell(step)
        dump.title(f"step {step}, steps segment, cell {step % 2} at 0x{cell:x}: the engine wrote")
        dump.part(client.steps, cell, "8:step; 4:item_count; 4:token_count")
        dump.part(client.steps, cell, item_fields, client.u64(client.steps, 0x38))
        if tokens:
            dump.part(client.steps, cell, "4:token 0 = Paris", client.u64(client.steps, 0x40))
        cell = client.rows_cell(step)
        dump.title(f"step {step}, rows segment, cell {step % 2} at 0x{cell:x}: the worker answered")
        dump.part(client.rows, cell, "8:lock; 8:step; 4:item_count; 4:forced_count; ~8:duration_ns")
        dump.part(
            client.rows,
            cell,
            "8:sequence_id; 2:status; 2:flags; 4:row; 4:row_count; 4:accepted_count; 4:position; 4:forced_offset; "
            "4:forced_count; 4:detail_index; 8:detail_value",
            client.u64(client.rows, 0x38),
        )
        words = {
            0: "8:words 0, 1; 8:words 2, 3: tokens 76 (L) and 80 (P); 16:words 4 to 7; 4:word 8: tokens 256 and 257; "
            "12:words 9 to 11",
            1: "16:words 0 to 3; 16:words 4 to 7; 4:word 8: token 258, the stop token; 12:words 9 to 11",
        }[row]
        dump.part(client.rows, cell, words, client.u64(client.rows, 0x48) + row * client.u64(client.rows, 0x50))
    return "\n".join(dump.lines) + "\n"


@pytest.fixture
def page_client(start_daemon: Callable[..., Daemon]) -> Iterator[PageClient]:
    client = PageClient(start_daemon().target.removeprefix("unix:"))
    yield client
    client.lease.close()
    for fd in (client.doorbell, client.reply):
        os.close(fd)


def test_example_when_made_again_then_it_is_the_one_on_the_page(page_client: PageClient) -> None:
    """A client written from the page alone gets the bytes that the page shows."""
    hold("docs/shared-memory.md", "<!-- example -->\n```\n", example(page_client), "```\n")
