"""``maskd grammar check`` and ``maskd grammar sample``, against real daemons.

The oracle of a verdict is a matcher in this process, asked for the row behind every prefix of the text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from maskd import backends
from maskd.__main__ import main
from maskd.backends.base import Grammar, Matcher
from maskd.bitmask import row_stride_words
from maskd.cli import source
from maskd.cli.check import judge
from maskd.cli.walk import BYTES, ROW_CAPACITY, TOKEN_CAPACITY, Alphabet, Walk
from maskd.cli.wording import place_of
from maskd.client import Client, Session
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon
from tests.fuzzing import TIMES

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "engine_adapter" / "bundled"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0},
        "city": {"enum": ["Köln", "København", "Paris"]},
    },
    "required": ["name", "age"],
}
TREE = {"$ref": "#/$defs/n", "$defs": {"n": {
    "type": "object", "properties": {"left": {"$ref": "#/$defs/n"}, "value": {"type": "number"}},
    "required": ["value"], "additionalProperties": False,
}}}  # fmt: skip
MANY = {
    "type": "array", "minItems": 1, "maxItems": 3,
    "items": {"anyOf": [{"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, {"type": "boolean"}, {"const": {"a": [1]}}]},
}  # fmt: skip
OPEN = {"type": "object", "required": ["one", "two", "three", "four"]}
TAG = {"type": "structural_tag", "format": {
    "type": "triggered_tags", "triggers": ["<f="], "at_least_one": True,
    "tags": [{"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": {"type": "integer"}}, "end": "</f>"}],
}}  # fmt: skip
SUMS = 'start: sum\nsum: term ("+" term)*\nterm: "(" sum ")" | /[0-9]+/\n'
NEST = 'root ::= "a" tail\ntail ::= [0-9]+ | "[" tail "]"\n'
SHORT, CLOSED = ("--max-whitespace", "0"), ("--additional-properties", "forbid")
CASES: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "person": ("person.json", PERSON, ()),
    "person-closed-short": ("person.json", PERSON, (*SHORT, *CLOSED, "--strict")),
    "person-in-order": ("person.json", PERSON, ("--property-order", "schema")),
    "person-separators": ("person.json", PERSON, ("--item-separator", ", ", "--key-separator", ": ", *SHORT)),
    "person-xgrammar": ("person.json", PERSON, ("--backend", "xgrammar")),
    "tree": ("tree.json", TREE, SHORT),
    "many": ("many.json", MANY, ()),
    "open": ("open.json", OPEN, SHORT),
    "any-object": ("", None, ("--kind", "json_object", *SHORT)),
    "choice": ("cities.json", ["Paris", "Köln", "København"], ()),
    "regex": ("foo.regex", "(foo|bär)+x{3}", ()),
    "regex-xgrammar": ("foo.regex", "(foo|bär)+x{3}", ("--backend", "xgrammar")),
    "ebnf": ("nest.gbnf", NEST, ()),
    "lark": ("sums.lark", SUMS, ()),
    "structural-tag": ("calls.json", TAG, ()),
}
"""name: the file, its contents, flags."""


def write(directory: Path, name: str, contents: Any) -> str:
    if not name:
        return ""
    path = directory / name
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents, ensure_ascii=False))
    return str(path)


class Command:
    """Runs ``maskd grammar`` in this process, with a daemon that runs already."""

    def __init__(self, target: str, directory: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self._flags = ("--listen", target)
        self._directory = directory
        self._capture = capture

    def __call__(self, action: str, *flags: str) -> tuple[int, str, str]:
        """Returns exit code, standard output, standard error."""
        self._capture.readouterr()
        code = main(["grammar", action, *(flag for flag in flags if flag), *self._flags])
        out, err = self._capture.readouterr()
        return code, out.decode(), err.decode()

    def file(self, name: str, contents: Any) -> str:
        return write(self._directory, name, contents)

    def samples(self, *flags: str) -> tuple[int, list[dict[str, Any]]]:
        code, out, _ = self("sample", "--json", *flags)
        return code, json.loads(out)["outputs"]

    def verdict(self, *flags: str, text: bytes) -> tuple[int, dict[str, Any]]:
        path = self._directory / "text"
        path.write_bytes(text)
        code, out, _ = self("check", "--json", "--text", str(path), *flags)
        return code, json.loads(out)


@pytest.fixture
def command(daemon: Daemon, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(daemon.target, tmp_path, capsysbinary)


# -- samples are accepted, and valid --------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["", str(BUNDLED)], ids=["bytes", "bundled"])
@pytest.mark.parametrize("case", CASES)
def test_samples_when_checked_then_each_is_accepted_and_valid(case: str, tokenizer: str, command: Command) -> None:
    """What the masks allow matches the grammar, whichever vocabulary wrote it and whichever reads it."""
    name, contents, flags = CASES[case]
    file = command.file(name, contents)
    given = ("--tokenizer", tokenizer) if tokenizer else ()
    code, outputs = command.samples(file, *flags, *given, "-n", "3", "--seed", "7")
    assert code == 0 and [one["ending"] for one in outputs] == ["complete"] * 3
    for one in outputs:
        text = one["text"].encode()
        code, told = command.verdict(file, *flags, text=text)
        assert (code, told["text"]["accepted"], told["text"]["without_line_break"]) == (0, True, False), one
        if isinstance(contents, dict) and told["kind"] == "json_schema":
            jsonschema.Draft202012Validator(contents).validate(json.loads(text))
    if name.endswith(".regex"):
        assert all(re.fullmatch(contents, one["text"]) for one in outputs)


def test_samples_when_the_seed_is_the_same_then_so_are_they_and_others_differ(command: Command) -> None:
    """The seed and the number of an output decide; how many are asked for does not."""
    file = command.file("person.json", PERSON)
    four, two, other = (
        [one["text"] for one in command.samples(file, "-n", count, "--seed", seed)[1]]
        for count, seed in (("4", "1"), ("2", "1"), ("4", "2"))
    )
    assert four[:2] == two and len({*four, *other}) > 4


def test_samples_when_printed_then_each_is_a_line_and_one_cut_off_is_left_out(command: Command) -> None:
    """Standard output has complete outputs only; the rest is told, and the exit code is 1."""
    file = command.file("a.regex", "a|b{40}c")
    code, out, err = command("sample", file, "-n", "12", "--max-tokens", "20")
    lines = out.splitlines()
    assert code == 1 and lines and set(lines) == {"a"} and len(lines) + err.count("is left out") == 12
    assert "it was not complete after 20 tokens" in err
    _, outputs = command.samples(file, "-n", "12", "--max-tokens", "20")
    assert {(one["ending"], one["text"]) for one in outputs} == {("complete", "a"), ("cut_off", "b" * 20)}


# -- verdicts are right to the byte ---------------------------------------------------------------------


def row_of(matcher: Matcher) -> set[int]:
    row = np.zeros(row_stride_words(BYTES.vocab_size), dtype=np.int32)
    matcher.fill_bitmask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")[: BYTES.vocab_size]
    return set(np.flatnonzero(bits).tolist())


def brute_force(grammar: Grammar, text: bytes) -> tuple[int, set[int], bool]:
    """How many bytes are accepted, which bytes are allowed behind them, and whether the text may end there."""
    [stop] = BYTES.stop_token_ids
    for length in range(len(text) + 1):
        matcher = grammar.matcher()  # anew for each prefix
        assert matcher.accept(list(text[:length])) == length
        allowed = row_of(matcher)
        if length == len(text) or text[length] not in allowed:
            return length, allowed - {stop}, stop in allowed
    raise AssertionError("not reached")


def mutated(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text) + 1)
    byte = rng.choice([b'"', b"}", b"{", b",", b"1", b"x", b"\n", b"\xff", "ö".encode(), "€".encode()[:2]])
    return {
        "cut": text[:at],
        "without": text[:at] + text[at + 1 :],
        "more": text[:at] + byte + text[at:],
        "other": text[:at] + byte + text[at + 1 :],
    }[rng.choice(["cut", "without", "more", "other"])]


@pytest.fixture(scope="module")
def makers() -> dict[str, Any]:
    return {name: backends.load(name)(BYTES, threads=1) for name in backends.BUILTIN}


@pytest.mark.parametrize("case", CASES)
def test_mutated_text_when_judged_then_the_place_is_that_of_brute_force(
    case: str, command: Command, client: Client, makers: dict[str, Any]
) -> None:
    """Offset, allowed bytes and whether the text may end are those of a matcher that sees every prefix anew."""
    name, contents, flags = CASES[case]
    file = command.file(name, contents)
    _, outputs = command.samples(file, *flags, "-n", "2", "--seed", "3")
    parser = argparse.ArgumentParser()
    source.add_flags(parser)
    spec = source.read_spec(vars(parser.parse_args([*[file] * bool(file), *flags])))
    for vocabulary in (BYTES, load_vocabulary(BUNDLED)):
        alphabet, rng, numbers, refused = Alphabet.of(vocabulary), random.Random(case), itertools.count(1), 0
        with open_session(client, alphabet) as session:
            compiled = session.create_grammar(spec)
            grammar = makers[compiled.report.backend].compile(spec)
            for text in (mutated(one["text"].encode(), rng) for one in outputs for _ in range(round(10 * TIMES))):
                verdict = judge(Walk(session, compiled.grammar_id, next(numbers)), text, alphabet)
                offset, allowed, may_end = brute_force(grammar, text)
                accepted = may_end and text[offset:] in (b"", b"\n")
                assert (verdict.accepted, verdict.offset) == (accepted, offset), text
                if not accepted:
                    refused += 1
                    assert set(verdict.allowed_bytes) == allowed, text
                    assert verdict.allowed is not None and verdict.start <= offset < verdict.start + 4
                    assert verdict.allowed.end == brute_force(grammar, text[: verdict.start])[2]
                    assert place_of(text, verdict.start)[0] == text[:offset].count(b"\n") + 1
        assert refused


def open_session(client: Client, alphabet: Alphabet) -> Session:
    fingerprint = client.upload_vocabulary(alphabet.vocabulary)
    size = alphabet.vocabulary.vocab_size
    return client.open_session(fingerprint, vocab_size=size, row_capacity=ROW_CAPACITY, token_capacity=TOKEN_CAPACITY)


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with open_session(client, Alphabet.of(BYTES)) as opened:
        yield opened


@pytest.mark.parametrize(
    "source",
    ["[a-zà-ÿ]", "[一-丏]x", "é|è|ê|ab|😀|😁", "[^a]", "[\u0080-\U0010ffff]", ".", "[߿ࠀ￿𐀀]", "[퟿]"],
)
def test_allowed_characters_when_compared_with_every_kind_of_character_then_they_are_right(
    source: str, session: Session, makers: dict[str, Any]
) -> None:
    """A character is in ``characters`` exactly if the grammar takes it; what is in ``beyond`` is not decided."""
    grammar = session.create_grammar(GrammarSpec("regex", source))
    verdict = judge(Walk(session, grammar.grammar_id, 1), b"\xff", Alphabet.of(BYTES))
    assert verdict.allowed is not None and not verdict.accepted
    reference = makers["llguidance"].compile(GrammarSpec("regex", source))
    edges = [0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF]
    rng = random.Random(0)
    some = [code for code in (rng.randrange(0x110000) for _ in range(2000)) if not 0xD800 <= code < 0xE000]
    codes = {*range(0x300), *range(0x4E00, 0x4E20), *map(ord, source), *edges, *some}
    decided = 0
    for code in codes:
        raw = list(chr(code).encode())
        takes = reference.matcher().accept(raw) == len(raw)
        is_listed = any(low <= code <= high for low, high in verdict.allowed.characters)
        is_beyond = any(low <= code <= high for low, high in verdict.allowed.beyond)
        assert is_listed <= takes <= (is_listed or is_beyond), hex(code)
        decided += not is_beyond
    assert decided > 100


def test_vocabulary_when_bytes_are_missing_then_the_verdict_is_the_same(client: Client) -> None:
    """Bytes that are no token of a vocabulary are added to it, and so is one that a grammar takes as its stop token."""
    words = Vocabulary([b"Par", b"is", b"a", b"</s>", b"<pad>"], 5, (3,), (4,), "words")
    for stops in ((), (2,)):
        alphabet = Alphabet.of(words, stops)
        assert [alphabet.vocabulary.tokens[i] for i in alphabet.byte_ids] == [bytes([byte]) for byte in range(256)]
        assert not {*alphabet.byte_ids} & {*alphabet.stop_token_ids, *words.special_token_ids}
        with open_session(client, alphabet) as session:
            grammar = session.create_grammar(
                GrammarSpec("regex", "Paris", options=GrammarOptions(stop_token_ids=stops))
            )
            verdicts = [
                judge(Walk(session, grammar.grammar_id, number), text, alphabet)
                for number, text in enumerate((b"Paris", b"Parma", b"Par", b"Paris!"), 1)
            ]
        assert [(one.accepted, one.offset) for one in verdicts] == [(True, 5), (False, 3), (False, 3), (False, 5)]
        assert [one.allowed and (one.allowed.characters, one.allowed.end) for one in verdicts] == [
            None, (((105, 105),), False), (((105, 105),), False), ((), True)
        ]  # fmt: skip


def test_special_tokens_when_a_grammar_names_them_then_their_names_in_a_text_stand_for_them(command: Command) -> None:
    """A text has a special token where the grammar wants one; where it is missing, its name is told."""
    end = next(
        name for i, name in Alphabet.of(load_vocabulary(BUNDLED)).names.items() if re.fullmatch(rb"<\|\w+\|>", name)
    ).decode()
    file = command.file("tool.lark", f'start: "a" {end} /[0-9]+/\n')
    flags = (file, "--tokenizer", str(BUNDLED))
    assert command.verdict(*flags, text=f"a{end}12".encode())[0] == 0
    code, told = command.verdict(*flags, text=b"a12")
    assert (code, told["text"]["offset"], told["text"]["allowed"]["special"]) == (1, 1, [end])
    code, told = command.verdict(*flags, text=f"a{end}x".encode())
    assert (code, told["text"]["offset"], told["text"]["allowed_text"]) == (1, 1 + len(end), "a digit")


def test_text_when_it_is_long_then_its_place_is_found(command: Command) -> None:
    """Many steps' worth of bytes, refused in the first, in the middle, at the end of a step, and not at all."""
    file = command.file("a.regex", "[ab]*c")
    for at in (0, TOKEN_CAPACITY - 1, TOKEN_CAPACITY, 3 * TOKEN_CAPACITY + 17):
        text = b"ab" * (2 * TOKEN_CAPACITY) + b"c"
        code, told = command.verdict(file, text=text[:at] + b"x" + text[at + 1 :])
        assert (code, told["text"]["offset"]) == (1, at)
    assert command.verdict(file, text=text)[0] == 0


# -- what people read, and exit codes -------------------------------------------------------------------


def test_report_when_a_keyword_is_not_enforced_then_it_is_listed_and_the_code_is_1(command: Command) -> None:
    """The report names the pointer and the effect; ``--strict`` refuses."""
    file = command.file("list.json", {"properties": {"a": {"type": "array", "uniqueItems": True}}})
    flags = (file, "--backend", "xgrammar")
    code, out, _ = command("check", *flags)
    assert code == 1 and "list.json: 1 keyword is not enforced" in out and "/properties/a/uniqueItems  items may" in out
    code, out, _ = command("check", *flags, "--strict")
    assert code == 1 and "refused, GRAMMAR_UNSUPPORTED" in out and "  next: " in out
    code, out, _ = command("check", *flags, "--strict", "--json")
    assert code == 1 and json.loads(out)["error"]["reason"] == "GRAMMAR_UNSUPPORTED"


def test_report_when_a_grammar_is_broken_then_it_says_where_and_what_to_do(command: Command) -> None:
    """The pointer or the position, and the next step; samples of it do not exist."""
    file = command.file("broken.json", {"properties": {"a": {"type": "text"}}})
    for action in ("check", "sample"):
        code, out, err = command(action, file)
        assert code == 1 and "broken.json: refused, GRAMMAR_INVALID at /properties/a/type" in out and not err
    code, out, _ = command("check", command.file("nothing.json", {"type": "string", "enum": [1]}))
    assert code == 1 and "GRAMMAR_UNSATISFIABLE" in out


def test_verdict_when_a_text_is_refused_then_its_line_is_shown_with_a_mark(command: Command, tmp_path: Path) -> None:
    """Line, column and byte; the mark stands below the character, wide ones before it included."""
    schema, text = command.file("person.json", PERSON), tmp_path / "text.json"
    text.write_text('{"name": "北京",\n "name2": "北京", "age": "x"}\n')
    code, out, _ = command("check", schema, "--text", str(text))
    verdict = out.splitlines()[-4:]
    assert code == 1
    assert verdict == [
        f"{text}: refused at line 2, column 24 (byte 46)",
        '   "name2": "北京", "age": "x"}␊',
        "                           ^",
        "  allowed here: a digit, white space or '-'",
    ]


def test_verdict_when_the_place_is_in_a_character_then_whole_characters_are_told(command: Command) -> None:
    """The byte is exact; line, column and what is allowed are about characters."""
    file = command.file("person.json", PERSON)
    code, told = command.verdict(file, *SHORT, text='{"city":"Kälich"'.encode())
    text = told["text"]
    assert code == 1 and (text["offset"], text["start"], text["column"]) == (11, 10, 11)
    assert text["allowed_bytes"] == [0xB6, 0xB8] and text["allowed_text"] == "'ö' or 'ø'"


def test_verdict_when_a_text_file_ends_with_a_line_break_then_it_is_left_out_if_the_grammar_has_none(
    command: Command,
) -> None:
    """One line break, of either custom; two are refused, and a grammar that allows it takes it."""
    plain, broken = command.file("a.regex", "ab\n"), command.file("b.regex", "a\\n?")
    assert command.verdict(plain, text=b"ab")[1]["text"]["without_line_break"] is False
    for end in (b"\n", b"\r\n"):
        code, told = command.verdict(plain, text=b"ab" + end)
        assert (code, told["text"]["accepted"], told["text"]["without_line_break"]) == (0, True, True)
    assert command.verdict(plain, text=b"ab\n\n")[1]["text"]["offset"] == 2
    assert command.verdict(broken, text=b"a\n")[1]["text"]["without_line_break"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("grammar.txt",), "says no kind; give --kind"),
        (("-",), "standard input has no suffix"),
        ((), "FILE is missing"),
        (("nowhere.json",), "cannot read nowhere.json"),
        (("grammar.lark", "--max-whitespace", "5000"), "max_whitespace is 5000"),
        (("grammar.lark", "--stop-token-ids", "1,x"), "--stop-token-ids is '1,x'"),
        (("grammar.lark", "--tokenizer", "nowhere"), "no such file or directory"),
        (("grammar.lark", "--resource", "x.json"), "give ADDRESS=FILE"),
        (("latin.lark",), "is not UTF-8: byte 1 is 0xe4"),
        (("-", "--kind", "regex", "--text", "-"), "both files are standard input"),
    ],
)
def test_check_when_it_is_called_wrongly_then_a_line_says_so_and_the_code_is_2(
    flags: tuple[str, ...], said: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on standard error, nothing on standard output."""
    monkeypatch.chdir(tmp_path)
    command.file("grammar.txt", "a")
    command.file("grammar.lark", 'start: "a"')
    (tmp_path / "latin.lark").write_bytes(b"s\xe4")
    code, out, err = command("check", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


def test_check_when_no_daemon_answers_then_the_code_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no verdict, which is no verdict against the grammar."""
    file = write(tmp_path, "a.regex", "a")
    assert main(["grammar", "check", file, "--listen", f"unix:{tmp_path}/no.sock"]) == 2
    assert "no daemon answers" in capsys.readouterr().err


def test_resources_when_they_are_given_then_references_lead_to_them(command: Command) -> None:
    """An address may have "=" in it."""
    other = command.file("other.json", {"type": "integer"})
    file = command.file("list.json", {"type": "array", "items": {"$ref": "https://example.org/x?v=1"}, "minItems": 1})
    assert command("check", file)[0] == 1
    flags = (file, "--resource", f"https://example.org/x?v=1={other}")
    assert command.verdict(*flags, text=b"[1, 2]")[0] == 0
    assert command.verdict(*flags, text=b'["1"]')[1]["text"]["offset"] == 1


# -- daemons --------------------------------------------------------------------------------------------


def run(*flags: str, directory: Path, **more: Any) -> subprocess.Popen[str]:
    """``maskd grammar`` in a process group and a directory for temporary files of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "maskd", "grammar", *flags],
        env={**os.environ, "TMPDIR": str(directory), **more.pop("environment", {})},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True, **more,
    )  # fmt: skip


def left_behind(process: subprocess.Popen[str]) -> list[str]:
    """Live processes of its group, which dead ones may take a moment to leave."""
    for _ in range(100):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, tail = stat.read_text().rpartition(")")
            except OSError:
                continue
            if int(tail.split()[2]) == process.pid and tail.split()[0] != "Z":
                found.append(head)
        if not found:
            break
        time.sleep(0.1)
    return found


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a short path, because a socket path has 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="mk"))
    yield directory
    shutil.rmtree(directory)


def test_own_daemon_when_the_command_ends_then_nothing_is_left_behind(short: Path, tmp_path: Path) -> None:
    """It has the default settings, whatever the environment says; a source may come from standard input."""
    process = run("check", "-", "--kind", "regex", "--text", write(tmp_path, "text", "ab"), directory=short,
                  environment={"MASKD_TOKEN_FILE": "/nowhere"})  # fmt: skip
    out, err = process.communicate("a(b|c)\n", timeout=100)
    assert (process.returncode, err) == (0, "") and out.splitlines()[-1].endswith("text: accepted")
    assert left_behind(process) == [] and list(short.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)]
)
@pytest.mark.parametrize("is_up", [False, True])
def test_own_daemon_when_a_signal_comes_then_nothing_is_left_behind(
    number: signal.Signals, to_group: bool, is_up: bool, short: Path, tmp_path: Path
) -> None:
    """Ctrl-C reaches the whole group, SIGTERM often one process; while the daemon starts, or while it works."""
    process = run("sample", write(tmp_path, "a.regex", "[a-c]{300}"), "-n", "4000", directory=short)
    assert process.stdout is not None
    if is_up:
        process.stdout.readline()
    else:
        while not list(short.glob("maskd-*/log")):
            time.sleep(0.005)
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (128 + number, "")
    assert left_behind(process) == [] and list(short.iterdir()) == []


def test_listen_when_the_daemon_is_on_tcp_with_a_token_then_the_flags_reach_it(short: Path, tmp_path: Path) -> None:
    """Rows come inline there, and the verdicts are the same."""
    token = tmp_path / "token"
    token.write_text("a-token-of-more-than-16-bytes")
    token.chmod(0o600)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    flags = ("--listen", address, "--token-file", str(token))
    with subprocess.Popen(
        [sys.executable, "-m", "maskd", "serve", *flags, "--drain-seconds", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as daemon:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while main(["info", *flags]) and time.monotonic() < deadline:
                time.sleep(0.1)
            file = write(tmp_path, "person.json", PERSON)
            assert main(["grammar", "sample", file, "-n", "2", *flags]) == 0
            text = write(tmp_path, "text", '{"age": 1, "name": "x"}')
            assert main(["grammar", "check", file, "--text", text, *flags]) == 0
            assert main(["grammar", "check", file, "--text", text, *flags[:2]]) == 2
        finally:
            daemon.terminate()


@pytest.mark.parametrize("action", ["check", "sample"])
def test_help_when_asked_for_then_it_has_every_option(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of a grammar is a flag, with the meaning that its docstring has."""
    with pytest.raises(SystemExit, match="0"):
        main(["grammar", action, "--help"])
    shown = capsys.readouterr().out
    for name in GrammarOptions.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in shown
