"""Shows what ``step.py`` measured: a table a backend, the targets, and where the library in process is the better
choice."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 124
LOOP, BATCH = "in process, a loop", "in process, its batch calls"
SPINNING, PARKED, UNARY = "shared memory, spinning", "shared memory, parked", "gRPC unary, rows inline"


def show(console: Console, results: dict[str, Any]) -> None:
    """Prints everything."""
    _show_settings(console, results["settings"], pinned=results["pinned"])
    for backend, measured in results["backends"].items():
        console.print()
        _show_backend(console, backend, measured)


def _show_settings(console: Console, settings: dict[str, Any], *, pinned: bool) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    cores = "client on core 0, workers on core 1" if pinned else "not pinned"
    lines = (
        f"One batch step, µs. {settings['time']}; {settings['cpu']}, {settings['cores']} cores ({cores}), load "
        f"{settings['load']:.1f}; {settings['machine']}",
        versions,
        f"{settings['vocabulary']}; JSON documents of one schema; {settings['steps']} steps a path, in rounds of "
        f"{settings['round']} of which {settings['warming']} warm up; one native thread; "
        f"a worker spins {1e3 * settings['worker_spin_seconds']:g} ms",
    )
    for line in lines:
        console.print(Text(line, style="dim"))


def in_process(paths: dict[str, dict[str, float]]) -> float:
    """Returns the p50 of the faster of the two ways in process: what the others are measured against."""
    return min(paths[LOOP]["p50_us"], paths[BATCH]["p50_us"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _show_backend(console: Console, backend: str, measured: dict[str, Any]) -> None:
    batches: dict[int, dict[str, dict[str, float]]] = measured["batches"]
    table = Table(
        title=f"[bold]{backend}[/]", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for batch in batches:
        for name in (f"[bold]{batch}:[/] p50", "p99", "×", "own"):
            table.add_column(name, justify="right", no_wrap=True, style="dim" if name in ("p99", "own") else "")
    for name in next(iter(batches.values())):
        cells = []
        for paths in batches.values():
            one = paths[name]
            worker = _number(one["worker_us"]) if one["worker_us"] else "–"
            cells += [_number(one["p50_us"]), _number(one["p99_us"]), _ratio(one["p50_us"] / in_process(paths)), worker]
        table.add_row(name, *cells, end_section=name == BATCH)
    console.print(table)
    console.print(
        Text(
            "×: p50 against the faster way in process. own: the worker's time, without the way there and back.",
            style="dim",
        )
    )
    for text, reached, figure in _targets(batches, measured):
        mark = "[green]reached[/]" if reached else "[red]missed [/]"
        console.print(f"  {mark}  {text}: {figure}", highlight=False)
    console.print(f"  [bold]where in process wins[/]  {_losses(batches, measured)}", highlight=False)


def _targets(batches: dict[int, dict[str, dict[str, float]]], measured: dict[str, Any]) -> list[tuple[str, bool, str]]:
    targets = []
    small, large = min(batches), max(batches)
    extra = batches[small][SPINNING]["p50_us"] - in_process(batches[small])
    targets.append((f"batch {small}, spinning: at most 10 µs above in process", extra <= 10, f"+{extra:.1f} µs"))
    ratio = batches[large][SPINNING]["p50_us"] / in_process(batches[large])
    targets.append((f"batch {large}, spinning: at most 1.05 × in process", ratio <= 1.05, f"{ratio:.2f} ×"))
    unary, spinning = batches[large][UNARY], batches[large][SPINNING]
    gain = unary["p50_us"] / spinning["p50_us"]
    way = [one["p50_us"] - one["worker_us"] for one in (unary, spinning)]
    figure = f"{gain:.1f} × (the way there and back alone: {way[0]:,.0f} against {way[1]:,.0f} µs)"
    targets.append((f"batch {large}, spinning: at least 10 × faster than gRPC unary", gain >= 10, figure))
    memory = measured["memory"]
    segments, worker, here = memory["segments"], memory["worker"], memory["in_process"]
    extra = segments + max(0.0, worker - here)
    figure = (
        f"{extra:.2f} ({segments:.2f} in segments; its matcher takes {worker:.2f} in the worker, {here:.2f} in process)"
    )
    targets.append(("memory of a sequence beyond its matcher: at most 3 rows", extra <= 3, figure))
    targets.append(("rows equal those made in process", True, f"{measured['verified_rows']:,} rows verified"))
    return targets


def _losses(batches: dict[int, dict[str, dict[str, float]]], measured: dict[str, Any]) -> str:
    small, large = min(batches), max(batches)
    near = in_process(batches[small])
    spinning, parked = (batches[small][name]["p50_us"] - near for name in (SPINNING, PARKED))
    here, there = measured["copy_us"][LOOP], measured["copy_us"][SPINNING]
    return (
        f"a step of batch {small} by {spinning:.0f} µs, or {parked:.0f} µs if nobody spins; of batch {large} by "
        f"{batches[large][SPINNING]['p50_us'] - in_process(batches[large]):.0f} µs; "
        f"copying its rows by {there - here:.0f} µs ({here:.0f} → {there:.0f}), for another core wrote them"
    )
