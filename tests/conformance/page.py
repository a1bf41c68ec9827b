"""The verdicts as tables, as the page ``docs/conformance.md``, and in the README.

Owns: what is counted, and the words around it.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conformance.front_ends import FRONT_ENDS
from tests.conformance.judging import Verdict

__all__ = ["OPTIONAL", "PAGE", "REAL", "Verdicts", "refusals", "table", "write"]

REAL, OPTIONAL = "real schemas", "suite, optional"
ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "conformance.md", ROOT / "README.md"
Verdicts = Mapping[tuple[str, str], Sequence[tuple[str, Verdict]]]
"""What each front end did with each group of schemas, by the names of both: identities and verdicts."""
_HEADS = (
    "schemas", "front end", "exact", "exact in any order", "unsatisfiable", "refused", "valid refused",
    "invalid accepted", "of these reported",
)  # fmt: skip


def table(found: Verdicts) -> list[str]:
    """Returns the lines of the table."""
    lines = [_line(_HEADS), "|" + "---|" * len(_HEADS)]
    shown = ""
    for (title, name), verdicts in found.items():
        lines.append(_line([title if title != shown else "", FRONT_ENDS[name], *_cells([one for _, one in verdicts])]))
        shown = title
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(verdicts: Sequence[Verdict]) -> list[str]:
    exact = [verdict for verdict in verdicts if verdict.is_exact]
    any_order = sum(not verdict.shuffled_refused for verdict in exact)
    impossible = sum(verdict.is_unsatisfiable for verdict in verdicts)
    reported = sum(verdict.invalid_accepted for verdict in verdicts if not verdict.is_silent)
    return [
        _share(len(exact), len(verdicts)),
        _share(any_order, len(verdicts)),
        str(impossible),
        str(sum(bool(verdict.refusal) for verdict in verdicts) - impossible),
        f"{sum(v.valid_refused for v in verdicts)} of {sum(v.valid for v in verdicts)}",
        f"{sum(v.invalid_accepted for v in verdicts)} of {sum(v.invalid for v in verdicts)}",
        str(reported),
    ]


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({100 * count / max(1, total):.1f} %)"


def summary(found: Verdicts) -> list[str]:
    """Returns the lines of the README's table: real schemas, and the required cases of the suite."""
    heads = (
        "front end",
        "real schemas: exact",
        "in any order",
        "official suite: exact",
        "invalid accepted, not reported",
    )
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for name in dict.fromkeys(name for _, name in found):
        real, suite = (
            [one for (group, by), verdicts in found.items() if by == name and is_in(group) for _, one in verdicts]
            for is_in in (lambda group: group == REAL, lambda group: group not in (REAL, OPTIONAL))
        )
        any_order = [one for one in real if one.is_exact and not one.shuffled_refused]
        silent = sum(one.invalid_accepted for one in (*real, *suite) if one.is_silent)
        shares = [_percent(sum(one.is_exact for one in real), len(real)), _percent(len(any_order), len(real))]
        shares.append(_percent(sum(one.is_exact for one in suite), len(suite)))
        lines.append(_line([FRONT_ENDS[name], *shares, f"{silent} of {sum(one.invalid for one in (*real, *suite))}"]))
    return lines


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.1f} %"


def write(found: Verdicts) -> None:
    """Writes the page, and the table of the README."""
    PAGE.write_text(page(found), encoding="utf-8")
    before, marker, rest = README.read_text(encoding="utf-8").partition("<!-- conformance -->\n")
    README.write_text(
        before + marker + "\n".join(summary(found)) + "\n\n" + rest.partition("\n\n")[2], encoding="utf-8"
    )


def refusals(found: Verdicts) -> list[str]:
    """Returns the lines of a table of what the first of our front ends refuses, by keyword or limit."""
    first = next(name for _, name in found)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for (_, name), verdicts in found.items():
        for _, verdict in verdicts if name == first else ():
            if verdict.refusal and not verdict.is_unsatisfiable:
                key = verdict.refusal, verdict.keyword
                counts[key] += 1
                examples.setdefault(key, verdict.message.replace("|", "\\|").replace("\n", " ")[:160])
    lines = ["| schemas | error | keyword or limit | for instance |", "|---|---|---|---|"]
    for (error, keyword), count in counts.most_common():
        lines.append(f"| {count} | `{error}` | {f'`{keyword}`' if keyword else ''} | {examples[error, keyword]} |")
    return lines


_INTRODUCTION = """\
# Conformance

How exactly maskd does JSON Schema, beside the front ends that the two libraries bring. This page is what
`make conformance` measured, written by `python -m tests.conformance --write`.

```console
$ make conformance DATA=directory
```

Measured with {versions}. The data are real schemas of jsonschemabench and the official
JSON-Schema-Test-Suite of 2026-08-22, with valid and invalid instances. They are not part of this repository. The
required cases of the suite stand by draft. The optional cases are formats and a few others.

- **Exact**: the schema compiles, every valid instance is taken, and no invalid one is. A schema that nothing satisfies
  is exact if it is refused as such.
- **In any order**: that also holds for the valid instances with their members shuffled.
- **Reported**: the front end says which keyword it does not enforce. An invalid instance that maskd accepts without a
  report is a defect, and makes the command fail.

Formats are asserted, as is maskd's default. In the required cases of the drafts since 2019-09 they are annotations.
Documents that references lead to are given along to maskd. The libraries cannot be given any, and fetch nothing. They
have their defaults, but xgrammar's `strict_mode` is off, as JSON Schema allows further properties.
"""


def page(found: Verdicts) -> str:
    """Returns the text of the page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("llguidance", "xgrammar"))
    first = next(name for _, name in found)
    walks = [verdict for (_, name), verdicts in found.items() if name == first for _, verdict in verdicts]
    ended, bad = sum(one.walks for one in walks), sum(len(one.bad_walks) for one in walks)
    parts = [
        _INTRODUCTION.format(versions=versions),
        *table(found),
        "\n## Random outputs\n",
        f"{FRONT_ENDS[first]} also wrote random outputs, drawn from the allowed tokens. {ended:,} came to their end.",
        f"{bad} ran into a row that allows nothing, or were not valid.",
        "\n## What is refused\n",
        f"By {FRONT_ENDS[first]}, unsatisfiable schemas left aside:\n",
        *refusals(found),
    ]
    return "\n".join(parts) + "\n"
