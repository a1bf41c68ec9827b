"""One schema, one front end: every instance of it is taken or not, and ought it to be?

Each schema is compiled and tried in a process of its own, with a time limit.
Owns: the verdict. Knows nothing about: front ends, tables.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import referencing
from referencing.jsonschema import DRAFT202012

from maskd.errors import GrammarError, GrammarUnsatisfiableError, MaskdError
from tests.conformance.front_ends import FrontEnd
from tests.random_values import shuffled

SECONDS = 30.0
MEMORY = 4 << 30
SHUFFLES = 3
SCHEMA_OF_DRAFT = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
}
_UNCLEAR = re.compile(r"[0-9.]{15}|[eE][+-]?[0-9]{3}")
"""Numbers that Python reads as others."""


@dataclass
class Verdict:
    """What became of one schema.

    Attributes:
        refusal: name of the error that the compile raised; "" = none.
        keyword, message: of the error.
        valid_refused, shuffled_refused: instances that ought to be taken.
        invalid_accepted: instances that ought not to be.
        valid, invalid: instances in all.
        unenforced: keywords that the front end says it does not enforce.
        walks: random outputs that ended.
        bad_walks: what is wrong with others: a row that allows nothing, or an output that is not valid.
    """

    refusal: str = ""
    keyword: str = ""
    message: str = ""
    valid_refused: int = 0
    shuffled_refused: int = 0
    invalid_accepted: int = 0
    valid: int = 0
    invalid: int = 0
    unenforced: Sequence[str] = ()
    walks: int = 0
    bad_walks: list[str] = field(default_factory=list)

    @property
    def is_unsatisfiable(self) -> bool:
        """Whether it was refused because nothing satisfies it, which is the right answer if no instance does."""
        return self.refusal == GrammarUnsatisfiableError.__name__

    @property
    def is_exact(self) -> bool:
        """Whether every instance was judged rightly, in the order in which its members came."""
        if self.is_unsatisfiable:
            return not self.valid
        return not (self.refusal or self.valid_refused or self.invalid_accepted)

    @property
    def is_silent(self) -> bool:
        """Whether something invalid is accepted without a report."""
        return self.invalid_accepted > 0 and not self.unenforced


def judge(compile_one: FrontEnd, record: Mapping[str, Any], resources: Mapping[str, Any], walks: int) -> Verdict:
    """Returns the verdict on one schema, from a process of its own; also tries ``walks`` random outputs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            sys.setrecursionlimit(20_000)
            with os.fdopen(writing, "w") as out:
                json.dump(asdict(_judged(compile_one, record, resources, walks)), out)
        finally:
            os._exit(0)
    os.close(writing)
    text, deadline, is_late = b"", time.monotonic() + SECONDS, True
    with os.fdopen(reading, "rb") as answer:
        while select.select([answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = os.read(answer.fileno(), 1 << 16)
            if not part:
                is_late = False
                break
            text += part
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    counts = {"valid": len(record["valid"]), "invalid": len(record["invalid"])}
    if is_late or not text:
        return Verdict(refusal="time-out" if is_late else "crash", message=f"within {SECONDS:g} s", **counts)
    return Verdict(**{**json.loads(text), **counts})


def _judged(compile_one: FrontEnd, record: Mapping[str, Any], resources: Mapping[str, Any], walks: int) -> Verdict:
    schema = record["schema"]
    if isinstance(schema, dict) and "$schema" not in schema and record.get("draft"):
        schema = {"$schema": SCHEMA_OF_DRAFT[record["draft"]], **schema}
    try:
        grammar = compile_one(schema, _asserts_formats(record, schema))
    except GrammarError as error:
        keyword = error.metadata.get("keyword") or error.metadata.get("limit") or ""
        return Verdict(type(error).__name__, str(keyword), error.message[:300])
    verdict = Verdict(unenforced=tuple(dict.fromkeys(grammar.unenforced)))
    rng = random.Random(record["id"])
    for value in record["valid"]:
        verdict.valid_refused += not grammar.takes(_text(value))
        verdict.shuffled_refused += not all(grammar.takes(_text(shuffled(value, rng))) for _ in range(SHUFFLES))
    verdict.invalid_accepted = sum(grammar.takes(_text(value)) for value in record["invalid"])
    for _ in range(walks):
        try:
            text = grammar.walk(rng)  # type: ignore[attr-defined]
        except (AssertionError, MaskdError) as error:
            verdict.bad_walks.append(str(error)[:200])
            continue
        verdict.walks += text is not None
        is_clear = text is not None and not verdict.unenforced and not _UNCLEAR.search(text)
        if is_clear and not _is_valid(schema, json.loads(text), resources):
            verdict.bad_walks.append(text)
    return verdict


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _asserts_formats(record: Mapping[str, Any], schema: Any) -> bool:
    """As the daemon does by default; but the required cases of the suite hold formats for annotations since 2019-09."""
    is_required = "draft" in record and not record["optional"]
    return not (is_required and any(draft in str(schema) for draft in ("2019-09", "2020-12")))


def _is_valid(schema: Any, value: Any, resources: Mapping[str, Any]) -> bool:
    if "2019-09" in json.dumps(schema) and '"unevaluated' in json.dumps(schema):
        return True  # python-jsonschema 4.26 errs there
    registry = referencing.Registry().with_contents(resources.items(), default_specification=DRAFT202012)
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        return bool(validator(schema, registry=registry).is_valid(value))
    except Exception:  # a pattern that Python cannot read, a reference to itself: no verdict
        return True
