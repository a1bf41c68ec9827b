"""``python -m tests.oracle --steps 20000 --seeds 10``: random steps through real daemons, each row compared with a new matcher's."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter

from tests.conftest import Daemon
from tests.oracle.grammars import VOCABULARIES, grammars, vocabulary
from tests.oracle.reference import Reference
from tests.oracle.run import Findings, Side, drive

ROW_SECONDS = ("0.02", "0.002", "0.0003", "0.00001")


def drive_daemon(
    reference: Reference, seed: int, steps: int, row_seconds: str, transports: list[str], *, most: int = 5, shorten: bool = True, only: str = ""
) -> Findings:
    """Drives a daemon of its own for one seed, with the grammars whose spec matches the regex ``only``."""
    directory = tempfile.mkdtemp(prefix="mk")
    daemon = Daemon(directory, "--drain-seconds", "0.2", "--restart-seconds", "0.2", "--row-seconds", row_seconds)
    specs = [spec for spec in grammars(reference.vocabulary) if re.search(only, repr(spec))]
    told: set[str] = set()

    def open_side(transport: str) -> Side:
        side = Side(daemon, reference, specs, transport)
        for line in side.refused:
            if line not in told:
                told.add(line)
                print(f"  not taken: {line}", flush=True)
        return side

    try:
        return drive(
            open_side, transports, seed, steps, most=most, shorten=shorten,
            log=lambda: "\n  ".join(str(event)[:300] for event in daemon.events()[-4:]),
        )  # fmt: skip
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Runs, prints the table; returns 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of all seeds together")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--row-seconds", nargs="*", default=list(ROW_SECONDS), help="one after the other, seed by seed")
    parser.add_argument("--transports", nargs="*", default=["shm", "inline"], help="of the sessions that are driven at once")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="bundled")
    parser.add_argument("--most", type=int, default=3, help="differences after which a seed ends")
    parser.add_argument("--no-shortening", action="store_true", help="do not look for the shortest way to a difference")
    parser.add_argument("--only", default="", help="grammars whose spec matches this regex")
    arguments = parser.parse_args(argv)
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    reference, total, wrong, began = Reference(vocabulary(arguments.vocabulary)), Counter[str](), list[str](), time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        row_seconds = arguments.row_seconds[seed % len(arguments.row_seconds)]
        started = time.monotonic()
        findings = drive_daemon(
            reference, seed, arguments.steps // arguments.seeds, row_seconds, arguments.transports,
            most=arguments.most, shorten=not arguments.no_shortening, only=arguments.only,
        )  # fmt: skip
        counts = findings.counts
        print(
            f"seed {seed}, row_seconds {row_seconds}: {counts['steps']} steps, {counts['rows compared']} rows, {counts['late']} late answers, "
            f"{counts['differences']} differences, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        for difference in findings.differences:
            print("  !", difference, flush=True)
        total, wrong = total + counts, wrong + findings.differences
    print(f"\n  {'':34} {arguments.vocabulary}, {arguments.seeds} seeds, {time.monotonic() - began:.0f} s")
    for name, count in total.items():
        print(f"  {name:34} {count:,}")
    print(f"  {'differences':34} {len(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
