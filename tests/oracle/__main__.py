"""``python -m tests.oracle --steps 20000 --seeds 10``: random steps through real daemons, each row compared with a new
matcher's."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

from tests.oracle.grammars import VOCABULARIES, grammars, vocabulary
from tests.oracle.reference import Reference
from tests.oracle.run import Findings, Side, drive, sessions

ROW_SECONDS = (0.02, 0.002, 0.0003, 0.00001)


def main(argv: list[str] | None = None) -> int:
    """Runs, prints the table; returns 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of all seeds together")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument(
        "--row-seconds", nargs="*", type=float, default=list(ROW_SECONDS), help="one after the other, seed by seed"
    )
    parser.add_argument(
        "--transports",
        nargs="*",
        default=["shm", "inline"],
        choices=("shm", "inline", "table"),
        help="of the sessions that are driven at once, on one worker; table = in this process",
    )
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="bundled")
    parser.add_argument("--most", type=int, default=3, help="differences after which a seed ends")
    parser.add_argument("--no-shortening", action="store_true", help="do not look for the shortest way to a difference")
    parser.add_argument("--only", default="", help="grammars whose spec matches this regex")
    arguments = parser.parse_args(argv)
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    reference, total, began = Reference(vocabulary(arguments.vocabulary)), Findings(), time.monotonic()
    specs = [spec for spec in grammars(reference.vocabulary) if re.search(arguments.only, repr(spec))]
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        row_seconds, started = arguments.row_seconds[seed % len(arguments.row_seconds)], time.monotonic()
        with sessions(reference.vocabulary, row_seconds) as (open_session, log):
            findings = drive(
                lambda transport: Side(open_session(transport), reference, specs),
                arguments.transports,
                seed,
                arguments.steps // arguments.seeds,
                most=arguments.most,
                shorten=not arguments.no_shortening,
                log=log,
            )
        counts = findings.counts
        print(
            f"seed {seed}, row_seconds {row_seconds:g}: {counts['steps']} steps, {counts['rows compared']} rows, "
            f"{counts['late answers']} late answers, {len(findings.differences)} differences, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
        for difference in findings.differences:
            print("  !", difference, flush=True)
        total.add(findings)
    print(f"\n  {arguments.vocabulary}, {arguments.seeds} seeds, {time.monotonic() - began:.0f} s")
    for name, count in [*sorted(total.counts.items()), ("tokens of the longest history", total.longest)]:
        print(f"  {name:42} {count:10,}")
    print(f"  {'differences':42} {len(total.differences):10,}")
    return 1 if total.differences else 0


if __name__ == "__main__":
    sys.exit(main())
