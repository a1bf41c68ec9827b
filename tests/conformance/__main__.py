"""Every schema of the data, every instance of it, each front end: ``make conformance``.

Reads ``dev.jsonl`` (real schemas), ``suite.jsonl`` (the official suite, five drafts) and ``suite-remotes.json`` of a
directory that is not part of this repository.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.conformance.front_ends import FRONT_ENDS, OURS, FrontEnd, front_end
from tests.conformance.judging import SCHEMA_OF_DRAFT, Verdict, judge
from tests.conformance.page import OPTIONAL, PAGE, REAL, refusals, table, write
from tests.conftest import SHARED

DATA = SHARED / "data" / "jsonschema"
Groups = Mapping[str, list[Any]]


def main() -> int:
    """Runs the command; returns 1 if one of our front ends accepts something invalid without a report."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="directory with dev.jsonl and suite.jsonl")
    parser.add_argument("--front-ends", default=",".join(FRONT_ENDS), metavar="NAME,…")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth schema")
    parser.add_argument("--walks", type=int, default=2, metavar="N", help="random outputs of each schema, ours only")
    parser.add_argument("--list", action="store_true", help="print each schema that is not exact, and why")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE.name} and the README's table, if every schema was tried"
    )
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"there is no {arguments.data}; give --data")
        return 2
    remotes = json.loads((arguments.data / "suite-remotes.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[tuple[str, Verdict]]] = {}
    names = arguments.front_ends.split(",")
    for title, records in groups(arguments.data, arguments.every).items():
        for name in names:
            walks = arguments.walks if name in OURS else 0
            verdicts = judged(front_end(name, remotes), records, remotes, walks)
            found[title, name] = list(zip((record["id"] for record in records), verdicts, strict=True))
            print(f"{title}, {name}: {sum(one.is_exact for one in verdicts)} of {len(records)}", file=sys.stderr)
    print("\n".join([*table(found), "", *refusals(found)]))
    faults = 0
    for (_, name), verdicts in found.items():
        for identity, verdict in verdicts:
            is_fault = name in OURS and (verdict.is_silent or bool(verdict.bad_walks))
            faults += is_fault
            if is_fault or (arguments.list and not (verdict.is_exact and not verdict.shuffled_refused)):
                print(f"{name} {identity}: {asdict(verdict)}")
    if arguments.write and arguments.every == 1:
        write(found)
    return 1 if faults else 0


def groups(data: Path, every: int) -> Groups:
    """Returns the records of each group of the table."""
    dev, suite = (
        [json.loads(line) for line in (data / name).read_bytes().split(b"\n") if line]
        for name in ("dev.jsonl", "suite.jsonl")
    )
    found = {REAL: [record for record in dev if "Suite" not in record["source"]]}
    for draft in SCHEMA_OF_DRAFT:
        found[f"suite, {draft.replace('draft', 'draft ')}"] = [
            record for record in suite if record["draft"] == draft and not record["optional"]
        ]
    found[OPTIONAL] = [record for record in suite if record["optional"]]
    return {title: records[::every] for title, records in found.items()}


def judged(compile_one: FrontEnd, records: Iterable[Any], remotes: Mapping[str, Any], walks: int) -> list[Verdict]:
    """Returns the verdict on each of ``records``; uses all cores."""
    _Work.one = functools.partial(judge, compile_one, resources=remotes, walks=walks)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(_Work.run, records, chunksize=4)


class _Work:
    """What the processes of the pool do; inherited, for it cannot be sent."""

    one: Any

    @staticmethod
    def run(record: Any) -> Verdict:
        found: Verdict = _Work.one(record)
        return found


if __name__ == "__main__":
    sys.exit(main())
