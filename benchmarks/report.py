"""What is written: the samples as JSON, and from these the tables and the plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from .entries import ENTRIES
from .figures import COLUMNS, TARGETS, Round, figure, row
from .measure import CORES
from .places import HERE, MissingError, Place, run
from .workloads import WORKLOADS, Workload

RESULTS = HERE / "results"
TABLES = RESULTS / "README.md"
PLOTTER = ("matplotlib>=3.8,<4",)


def machine(place: Place) -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    try:
        commit = run("git", "describe", "--always", "--dirty").strip()
    except MissingError:
        commit = "unknown"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": names[0] if names else platform.processor(),
        "cores": len(CORES),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "commit": commit,
        "versions": place.versions(),
    }


def save(workload: Workload, rounds: list[Round], about: dict[str, Any]) -> None:
    """Write the samples of a workload, and what they depend on."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"workload": workload.name, **about, "rounds": rounds}, indent=1)
    (RESULTS / f"{workload.name}.json").write_text(text + "\n")


def load() -> dict[str, dict[str, Any]]:
    """All that was saved, by workload, in the order of `WORKLOADS`."""
    paths = {name: RESULTS / f"{name}.json" for name in WORKLOADS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; all but the first column are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(workload: Workload, rounds: list[Round]) -> list[list[str]]:
    """A row of each cell that was measured."""
    cells = [cell for cell in workload.cells(ENTRIES) if any(cell.label in r for r in rounds)]
    return [[cell.title, *row(rounds, cell, workload.columns)] for cell in cells]


def targets(saved: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row of each target whose workload was measured."""
    rows = []
    for target in TARGETS:
        rounds = saved.get(target.workload, {}).get("rounds", [])
        found = figure(rounds, target.label, target.against, target.column)
        if found is None:
            continue
        column, verdict = COLUMNS[target.column], target.verdict(found.median)
        rate = figure(rounds, target.label, target.against, "rate_ratio") if target.column == "cpu_ratio" else None
        rows.append([
            target.title, column.form.format(target.must), column.form.format(target.aim), found.text(column),
            rate.text(COLUMNS["rate_ratio"]) if rate else "", verdict,
        ])  # fmt: skip
    return rows


def write() -> None:
    """Write the tables of all that was saved."""
    saved = load()
    note = "Written by `python -m benchmarks`, not by hand. [What the figures mean](../README.md)."
    parts = ["# Results", note, "<!-- results -->"]
    rows = targets(saved)
    if rows:
        head = ["target", "must", "aim", "figure", "the same by rate", "reached"]
        parts += ["## Targets", "Judged by CPU where there is a ratio by CPU.", table(head, rows)]
    for name, results in saved.items():
        workload, rounds = WORKLOADS[name], results["rounds"]
        head = [f"{len(rounds)} rounds", *(COLUMNS[column].title for column in workload.columns)]
        parts += [f"## {workload.title}", table(head, rows_of(workload, rounds))]
        if (RESULTS / f"{name}.svg").exists():
            parts.append(f"![{workload.title}: {COLUMNS[workload.plot].title}]({name}.svg)")
    TABLES.write_text("\n\n".join([*parts, *described(saved)]) + "\n")


def described(saved: dict[str, dict[str, Any]]) -> list[str]:
    """The machine and the versions; a workload that was measured elsewhere is said to be so."""
    groups: dict[str, list[str]] = {}
    for name, results in saved.items():
        facts = [
            f"- {results['cpu']}, {results['cores']} cores, {results['kernel']}, "
            f"load {results['load']:.1f} at the start; openapi_ws {results['commit']}"
        ]
        facts += [f"- {name}: {versions}" for name, versions in results["versions"].items()]
        facts += [f"- left out: {title}: {reason}" for title, reason in results["left_out"].items()]
        groups.setdefault("\n".join(facts), []).append(f"{name} ({results['date']})")
    return ["## Machine", *(f"{', '.join(names)}:\n\n{facts}" for facts, names in groups.items())] if groups else []


def draw(place: Place) -> None:
    """Draw what was saved, with matplotlib from an environment of its own."""
    bars = []
    for name, results in load().items():
        workload, rounds = WORKLOADS[name], results["rounds"]
        column = COLUMNS[workload.plot]
        found = [
            (cell.title, cell.entry.is_ours, figure(rounds, cell.label, cell.yardstick, workload.plot))
            for cell in workload.cells(ENTRIES)
        ]
        bars.append({
            "path": str(RESULTS / f"{name}.svg"),
            "title": workload.title,
            "unit": column.title,
            "is_ratio": column.is_relative,
            "bars": [[title, ours, f.median, f.least, f.greatest] for title, ours, f in found if f],
        })  # fmt: skip
    try:
        python = place.plotter(PLOTTER)
    except MissingError as exc:
        place.say(f"no plots: {exc}")
        return
    given = HERE / ".build" / "bars.json"
    given.write_text(json.dumps(bars))
    run(python, HERE / "plots.py", given)
