"""Changes one small thing at a time in the pure core, and asks the unit tests whether they notice: ``make mutants``.

    python -m tests.mutants                            every file of ``TESTS``
    python -m tests.mutants maskd/backends/gate.py …   these

A mutant survives if all tests that run its line still pass. ``explained.txt`` says of every survivor why it may.
Exits 1 if another one survives.

The common tools do not fit. mutmut leaves out what stands outside of functions and whatever has a decorator, so all
properties and all numbers of the layout, and works in a copy inside the checkout. Cosmic Ray edits the checkout itself.
Here a mutant is an import hook in a forked process. Nothing is written but what Python and pytest cache.
Owns: which tests ask which file, and the verdict. Knows nothing about: what a mutant is (``mutations``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutants.mutations import Mutant, mutants_of
from tests.mutants.trial import Baseline, measure, survives

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("explained.txt")
_SEQUENCES = [f"tests/unit/test_{name}.py" for name in ("sequences", "walks", "late", "slow_items")]
TESTS: dict[str, Sequence[str]] = {
    "maskd/backends/gate.py": ("tests/unit/test_gate.py",),
    "maskd/bitmask.py": ("tests/unit/test_bitmask.py",),
    "maskd/front/hanging.py": ("tests/unit/test_hanging.py",),
    "maskd/front/quarantine.py": ("tests/unit/test_quarantine.py",),
    "maskd/ipc/marker.py": ("tests/unit/test_marker.py",),
    "maskd/ipc/progress.py": ("tests/unit/test_marker.py",),
    "maskd/json_schema/compiler/contents.py": ("tests/unit/test_dead_ends.py",),
    "maskd/regular/charset.py": ("tests/unit/test_regular.py",),
    "maskd/sequences/deferred.py": _SEQUENCES,
    "maskd/sequences/fill.py": _SEQUENCES,
    "maskd/sequences/item.py": _SEQUENCES,
    "maskd/sequences/late.py": _SEQUENCES,
    "maskd/sequences/result.py": _SEQUENCES,
    "maskd/sequences/rows.py": _SEQUENCES,
    "maskd/sequences/sequence.py": _SEQUENCES,
    "maskd/sequences/table.py": _SEQUENCES,
    "maskd/shm/layout.py": ("tests/unit/test_layout.py",),
    "maskd/step.py": ("tests/unit/test_step.py",),
    "engine_adapter/masker/ledger.py": ("tests/unit/test_ledger.py", "tests/engine/test_ledger.py"),
}


def explanations() -> dict[tuple[str, str, str], str]:
    """Returns why a mutant may survive, by its file, its function and its changed line."""
    parts = (line.split(" :: ") for line in EXPLAINED.read_text().splitlines() if line and not line.startswith("#"))
    return {(file, function, after): why for file, function, after, why in parts}


def tried(file: str, baseline: Baseline) -> Iterator[tuple[Mutant, bool]]:
    """Yields every mutant of ``file`` and whether it survived; on a terminal, says how far it is."""
    source = (ROOT / file).read_bytes()
    if not survives(file, Mutant(source, "", 1, 1, "", "", runs_at_import=True), baseline):
        raise RuntimeError(f"{file} is not changed, and yet its tests fail where its mutants are tried")
    mutants = list(mutants_of(source))
    for number, mutant in enumerate(mutants, 1):
        if sys.stderr.isatty():
            print(f"\r\033[K{file}: {number} of {len(mutants)}", end="", file=sys.stderr, flush=True)
        yield mutant, survives(file, mutant, baseline)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Are there tests that notice?")
    parser.add_argument("files", nargs="*", metavar="FILE", help="of " + ", ".join(TESTS))
    files = parser.parse_args().files or list(TESTS)
    explained = explanations()
    used: set[tuple[str, str, str]] = set()
    table = [f"{'file':<36}{'mutants':>9}{'killed':>9}{'survived':>10}{'explained':>11}{'seconds':>9}"]
    open_count = 0
    for file in files:
        started = time.monotonic()
        count = survived = unexplained = 0
        for mutant, has_survived in tried(file, measure(ROOT, file, TESTS[file])):
            count += 1
            survived += has_survived
            key = (file, mutant.function, mutant.after)
            if has_survived and key in explained:
                used.add(key)
            elif has_survived:
                unexplained += 1
                print(f"\n{file}, line {mutant.line}, {mutant.function or 'outside of functions'}")
                print(f"- {mutant.before}\n+ {mutant.after}", flush=True)
        counts = f"{count:>9}{count - survived:>9}{survived:>10}{survived - unexplained:>11}"
        table.append(f"{file:<36}{counts}{time.monotonic() - started:>9.0f}")
        open_count += unexplained
    stale = sorted(key for key in explained.keys() - used if key[0] in files)
    print("\n" + "\n".join([*table, *("explained, but no survivor: " + " :: ".join(key) for key in stale)]))
    print(f"{open_count} survived without an explanation" if open_count else "every survivor is explained")
    return 1 if open_count else 0


if __name__ == "__main__":
    sys.exit(main())
