"""Every schema of the data, every instance of it, each front end: taken or not, and ought it to be?

Reads ``dev.jsonl`` (real schemas) and ``suite.jsonl`` (the official suite, five drafts) of a directory that is not part
of this repository. Each schema is compiled and tried in a process of its own, with a time limit.
A schema is exact if it compiles, every valid instance is taken and no invalid one is; exact in any order if that also
holds for the valid instances with the members of their objects shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskd import backends
from maskd.backends.base import Backend, Grammar
from maskd.bitmask import row_stride_words
from maskd.errors import GrammarUnsatisfiableError, MaskdError
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.vocabulary import Vocabulary
from tests.conftest import SHARED
from tests.random_schemas import shuffled

DATA = SHARED / "data" / "jsonschema"
SECONDS = 30.0
SHUFFLES = 3
STOP = 256
VOCABULARY = Vocabulary((*(bytes([value]) for value in range(256)), b"<stop>"), 257, (STOP,), (STOP,), "bytes")
SCHEMA_OF_DRAFT = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}

FrontEnd = Callable[[Any], tuple[Grammar, bool]]
"""Compiles a schema; also returns whether it reports something that it does not enforce."""


@dataclass
class Verdict:
    """What became of one schema.

    Attributes:
        refusal: name of the error that the compile raised; "" = none.
        valid_refused, shuffled_refused: instances that ought to be taken.
        invalid_accepted: instances that ought not to be.
        valid, invalid: instances in all.
        is_reported: the front end says that it does not enforce something.
        message: of the error.
    """

    refusal: str = ""
    valid_refused: int = 0
    shuffled_refused: int = 0
    invalid_accepted: int = 0
    valid: int = 0
    invalid: int = 0
    is_reported: bool = False
    message: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether every instance was judged rightly, in the order in which its members came."""
        return not (self.refusal or self.valid_refused or self.invalid_accepted)


def main() -> int:
    """Runs the command; returns 1 if an invalid instance was accepted without a report."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description="JSON Schema, front end by front end."
    )
    parser.add_argument("--data", type=Path, default=DATA, help="directory with dev.jsonl and suite.jsonl")
    parser.add_argument("--front-ends", default="maskd,llguidance,xgrammar", metavar="NAME,…")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth schema")
    parser.add_argument("--list", action="store_true", help="print each schema that is not exact, and why")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"there is no {arguments.data}; give --data")
        return 2
    remotes = json.loads((arguments.data / "suite-remotes.json").read_text(encoding="utf-8"))
    heads = "schemas", "front end", "exact", "exact in any order", "unsatisfiable", "refused", "valid refused"
    print("|", " | ".join((*heads, "invalid accepted")), "|")
    print("|---|---|---|---|---|---|---|---|")
    unreported = 0
    for title, records in sources(arguments.data, arguments.every):
        for name in arguments.front_ends.split(","):
            compile_one = front_end(name, remotes)
            verdicts = [(record["id"], judge(compile_one, record)) for record in records]
            cells = summary([verdict for _, verdict in verdicts])
            print("|", " | ".join([f"{title} ({len(records)})", name, *cells]), "|", flush=True)
            for identity, verdict in verdicts:
                unreported += name == "maskd" and verdict.invalid_accepted > 0 and not verdict.is_reported
                if arguments.list and not verdict.is_exact:
                    print(f"{name} {identity}: {asdict(verdict)}")
    return 1 if unreported else 0


def sources(data: Path, every: int) -> Iterable[tuple[str, list[Any]]]:
    """Yields the groups of the table with their records."""
    dev, suite = (
        [json.loads(line) for line in (data / name).read_bytes().split(b"\n") if line]
        for name in ("dev.jsonl", "suite.jsonl")
    )
    yield "real schemas", [record for record in dev if "Suite" not in record["source"]][::every]
    for draft in SCHEMA_OF_DRAFT:
        yield f"suite, {draft}", [r for r in suite if r["draft"] == draft and not r["optional"]][::every]


def front_end(name: str, remotes: Mapping[str, Any]) -> FrontEnd:
    """Returns what compiles a schema: the compiler of this project, or a library's own front end."""
    if name != "maskd":
        library: Backend = backends.load(name)(VOCABULARY, threads=1)

        def compile_there(schema: Any) -> tuple[Grammar, bool]:
            grammar = library.compile(GrammarSpec("json_schema", json.dumps(schema), backend=name))
            return grammar, bool(grammar.report.unenforced)

        return compile_there
    llguidance: Backend = backends.load("llguidance")(VOCABULARY, threads=1)
    texts = {address: json.dumps(document) for address, document in remotes.items()}

    def compile_here(schema: Any) -> tuple[Grammar, bool]:
        # The data treats formats as annotations in the drafts that do.
        declared = str(schema.get("$schema", "2020-12")) if isinstance(schema, dict) else "2020-12"
        is_annotation = "2019-09" in declared or "2020-12" in declared
        options = GrammarOptions(formats="annotate" if is_annotation else "assert")
        spec = GrammarSpec("json_schema", json.dumps(schema), backend="llguidance", options=options, resources=texts)
        grammar = llguidance.compile(spec)
        return grammar, bool(grammar.report.unenforced)

    return compile_here


def judge(compile_one: FrontEnd, record: Mapping[str, Any]) -> Verdict:
    """Returns the verdict on one schema, from a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writing, "w") as out:
                json.dump(asdict(_judged(compile_one, record)), out)
        finally:
            os._exit(0)
    os.close(writing)
    text, deadline = b"", time.monotonic() + SECONDS
    with os.fdopen(reading, "rb") as answer:
        while select.select([answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = os.read(answer.fileno(), 1 << 16)
            if not part:
                break
            text += part
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Verdict(**json.loads(text)) if text else Verdict(refusal="crash or time-out")


def _judged(compile_one: FrontEnd, record: Mapping[str, Any]) -> Verdict:
    sys.setrecursionlimit(20_000)
    schema = record["schema"]
    if isinstance(schema, dict) and "$schema" not in schema and record.get("draft"):
        schema = {"$schema": SCHEMA_OF_DRAFT[record["draft"]], **schema}
    try:
        grammar, is_reported = compile_one(schema)
    except MaskdError as error:
        return Verdict(refusal=type(error).__name__, message=error.message[:300])
    verdict = Verdict(valid=len(record["valid"]), invalid=len(record["invalid"]))
    verdict.is_reported = is_reported
    rng = random.Random(record["id"])
    for value in record["valid"]:
        verdict.valid_refused += not takes(grammar, value)
        verdict.shuffled_refused += any(not takes(grammar, shuffled(value, rng)) for _ in range(SHUFFLES))
    verdict.invalid_accepted = sum(takes(grammar, value) for value in record["invalid"])
    return verdict


def takes(grammar: Grammar, value: Any) -> bool:
    """Whether ``grammar`` takes ``value``, as Python writes it, and may stop there."""
    matcher, row = grammar.matcher(), np.zeros(row_stride_words(VOCABULARY.vocab_size), dtype=np.int32)
    try:
        for token in json.dumps(value, ensure_ascii=False).encode():
            matcher.fill_bitmask(row)
            if not (int(row[token >> 5]) >> (token & 31) & 1) or not matcher.accept((token,)):
                return False
        matcher.fill_bitmask(row)
    except MaskdError:
        return False
    return bool(int(row[STOP >> 5]) >> (STOP & 31) & 1)


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Returns the cells of one row of the table."""
    count = len(verdicts)
    exact = [verdict for verdict in verdicts if verdict.is_exact]
    any_order = sum(not verdict.shuffled_refused for verdict in exact)
    impossible = sum(verdict.refusal == GrammarUnsatisfiableError.__name__ for verdict in verdicts)
    silent = sum(verdict.invalid_accepted > 0 and not verdict.is_reported for verdict in verdicts)
    return [
        f"{len(exact)} ({100 * len(exact) / count:.1f} %)",
        f"{any_order} ({100 * any_order / count:.1f} %)",
        str(impossible),
        str(sum(bool(verdict.refusal) for verdict in verdicts) - impossible),
        f"{sum(v.valid_refused for v in verdicts)} of {sum(v.valid for v in verdicts)}",
        f"{sum(v.invalid_accepted for v in verdicts)} of {sum(v.invalid for v in verdicts)}, {silent} unreported",
    ]


if __name__ == "__main__":
    sys.exit(main())
