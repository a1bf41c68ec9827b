"""``maskd grammar check`` and ``maskd grammar sample``: what a grammar means, without an engine.

Owns: the two commands, their flags, exit codes, and what they print as JSON.
Knows nothing about: how a verdict or an output is made (``check``, ``sample``), or said (``wording``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maskd.cli import daemon, source
from maskd.errors import ConfigError, GrammarError, MaskdError

if TYPE_CHECKING:
    from maskd.cli.walk import Alphabet
    from maskd.client import Session
    from maskd.grammar import GrammarSpec
    from maskd.rpc.values import Grammar

__all__ = ["add"]

GOOD, BAD, NO_ANSWER = range(3)
"""Exit codes: the grammar and the text are fine; they are not; there is no verdict."""

_COMPILE_SECONDS = 120.0
_MOST_OUTPUTS = 4000


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands and their flags."""
    grammar = subparsers.add_parser("grammar", help="check a grammar, and a text against it; write random outputs")
    actions = grammar.add_subparsers(dest="action", required=True, metavar="check | sample")
    check = actions.add_parser(
        "check",
        help="compile a grammar; find the first place of a text that it refuses",
        description="Compiles a grammar and prints the report. Exit code 0: every keyword is enforced, and the text "
        "matches. 1: the grammar or the text is refused, or a keyword is not enforced. 2: no verdict.",
    )
    check.add_argument("--text", metavar="FILE", help="a text that should match; - is standard input")
    check.set_defaults(run=_check)
    sample = actions.add_parser(
        "sample",
        help="write random outputs that a grammar allows",
        description="Writes random outputs that the masks allow, each followed by a line break. Exit code 0: all of "
        "them are complete. 1: the grammar is refused, or an output was cut off. 2: no answer.",
    )
    sample.add_argument("-n", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choice (default: %(default)s)")
    sample.add_argument(
        "--max-tokens", type=int, default=4096, metavar="N", help="of one output (default: %(default)s)"
    )
    sample.set_defaults(run=_sample)
    for parser in (check, sample):
        source.add_flags(parser)
        parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
        parser.add_argument(
            "--tokenizer", metavar="PATH", help="tokenizer.json, tekken or tiktoken file, or a directory with one "
            "(default: single bytes)",
        )  # fmt: skip
        reach = parser.add_argument_group("the daemon")
        reach.add_argument(
            "--listen", default="", metavar="ADDRESS", help="of a running daemon (default: start one, and end it)"
        )
        daemon.add_credentials(reach)


def _check(arguments: dict[str, Any]) -> int:
    if arguments["text"] == source.STDIN == arguments["file"]:
        raise ConfigError("both files are standard input; give one of them by name", field="text")
    text = None if arguments["text"] is None else source.read_file(arguments["text"])
    return _run(arguments, lambda opened: _print_check(arguments, opened, text))


def _sample(arguments: dict[str, Any]) -> int:
    for name, most in (("n", _MOST_OUTPUTS), ("max_tokens", 1 << 24)):
        if not 1 <= arguments[name] <= most:
            raise ConfigError(f"{name} is {arguments[name]}; give 1 to {most}", field=name)
    return _run(arguments, lambda opened: _print_samples(arguments, opened))


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A compiled grammar, and where it can be walked."""

    name: str
    spec: GrammarSpec
    grammar: Grammar
    session: Session
    alphabet: Alphabet

    def as_json(self) -> dict[str, Any]:
        """Returns the report for programs."""
        return {
            "kind": self.spec.kind,
            **dataclasses.asdict(self.grammar.report),
            "compile_seconds": self.grammar.compile_seconds,
            "cached": self.grammar.cached,
        }


def _run(arguments: dict[str, Any], work: Callable[[_Opened], int]) -> int:
    """Compiles the grammar and does ``work`` with it. Returns the exit code.

    Raises:
        ConfigError: bad usage.
    """
    from maskd.cli.walk import BYTES, ROW_CAPACITY, TOKEN_CAPACITY, Alphabet
    from maskd.tokenizer_files import load_vocabulary

    spec = source.read_spec(arguments)
    name = arguments["file"] or spec.kind
    try:
        stops = spec.options.stop_token_ids
        path = arguments["tokenizer"]
        vocabulary = BYTES if path is None else load_vocabulary(path, stop_token_ids=stops or None)
        alphabet = Alphabet.of(vocabulary, stops)
        with daemon.reach(arguments) as client:
            fingerprint = client.upload_vocabulary(alphabet.vocabulary)
            with client.open_session(
                fingerprint,
                vocab_size=alphabet.vocabulary.vocab_size,
                row_capacity=ROW_CAPACITY,
                token_capacity=TOKEN_CAPACITY,
                engine="maskd grammar",
            ) as session:
                grammar = session.create_grammar(spec, timeout_seconds=_COMPILE_SECONDS)
                return work(_Opened(name, spec, grammar, session, alphabet))
    except ConfigError:
        raise
    except GrammarError as error:
        _print_refusal(name, spec, error, as_json=arguments["json"])
        return BAD
    except MaskdError as error:
        print(f"maskd: {error.message}", file=sys.stderr)  # noqa: T201
        return NO_ANSWER


def _print_refusal(name: str, spec: GrammarSpec, error: GrammarError, *, as_json: bool) -> None:
    from maskd.cli.wording import refusal_lines

    if as_json:
        about = {"reason": error.reason, "message": error.message, "recovery": error.recovery}
        print(json.dumps({"kind": spec.kind, "error": {**about, "metadata": dict(error.metadata)}}))  # noqa: T201
    else:
        print("\n".join(refusal_lines(name, error)))  # noqa: T201


def _print_check(arguments: Mapping[str, Any], opened: _Opened, text: bytes | None) -> int:
    from maskd.cli.check import judge
    from maskd.cli.walk import Walk
    from maskd.cli.wording import allowed_text, place_of, report_lines, verdict_lines

    verdict = None
    if text is not None:
        walk = Walk(opened.session, opened.grammar.grammar_id, 1)
        verdict = judge(walk, text, opened.alphabet)
    if arguments["json"]:
        told = opened.as_json()
        if verdict is not None and text is not None:
            line, column = place_of(text, verdict.start)
            told["text"] = {**dataclasses.asdict(verdict), "line": line, "column": column}
            if verdict.allowed is not None:
                told["text"]["allowed_text"] = allowed_text(verdict.allowed)
        print(json.dumps(told))  # noqa: T201
    else:
        lines = [*report_lines(opened.name, opened.spec.kind, opened.grammar)]
        if verdict is not None and text is not None:
            lines += verdict_lines(arguments["text"], text, verdict)
        print("\n".join(lines))  # noqa: T201
    is_good = not opened.grammar.report.unenforced and (verdict is None or verdict.accepted)
    return GOOD if is_good else BAD


def _print_samples(arguments: Mapping[str, Any], opened: _Opened) -> int:
    from maskd.cli.sample import RandomWalk
    from maskd.cli.walk import Walk
    from maskd.cli.words import words_of

    drawing = RandomWalk(opened.alphabet, words_of(opened.spec), max_tokens=arguments["max_tokens"])
    outputs = []
    for number in range(1, arguments["n"] + 1):
        walk = Walk(opened.session, opened.grammar.grammar_id, number)
        rng = random.Random(f"{arguments['seed']} {number}")  # noqa: S311 - the same outputs for the same seed
        output = drawing.sample(walk, rng)
        walk.close()
        outputs.append(output)
        if arguments["json"]:
            continue
        if output.ending == "complete":
            sys.stdout.buffer.write(output.text + b"\n")
            sys.stdout.buffer.flush()
        else:
            why = {"cut_off": "it was not complete", "dead_end": "the masks allowed nothing more"}[output.ending]
            print(  # noqa: T201
                f"maskd: output {number} is left out: {why} after {output.token_count} tokens; --json has it",
                file=sys.stderr,
            )
    if arguments["json"]:
        shown = [{**dataclasses.asdict(one), "text": one.text.decode("utf-8", "backslashreplace")} for one in outputs]
        print(json.dumps({**opened.as_json(), "outputs": shown}))  # noqa: T201
    return GOOD if all(output.ending == "complete" for output in outputs) else BAD
