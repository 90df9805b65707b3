"""The command: prepare, measure round by round, write."""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from dataclasses import replace

from . import report
from .entries import ENTRIES, Entry
from .figures import COLUMNS, Round, row
from .measure import CORES, SampleError, faults, sample
from .places import MissingError, Place
from .workloads import WORKLOADS, Cell, Workload

TRIES = 3
"""Samples of one cell in one round, at most."""
SPARE = 100
"""Files that a process has open beside its sockets."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure openapi_ws beside its peers; benchmarks/README.md says how to read the figures.",
    )
    parser.add_argument("--rounds", type=int, help="samples of each cell; 5, and 3 of the short form")
    parser.add_argument("--seconds", type=float, help="that a sample takes; 1.0, and 0.3 of the short form")
    parser.add_argument(
        "--only", default="", help=f"workloads, or their names before the hyphen: {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--peers", default="", help=f"entries: {', '.join(ENTRIES)}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the short form: install nothing, write nothing, fail on wrong answers only",
    )
    parser.add_argument("--report", action="store_true", help="only write tables and plots again")
    options = parser.parse_args(words)
    unknown = {name for name in options.peers.split(",") if name} - ENTRIES.keys()
    if unknown:
        parser.error(f"no entry {', '.join(sorted(unknown))}")
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.3 if options.quick else 1.0)
    return options


def chosen(options: argparse.Namespace) -> tuple[list[Workload], list[Entry]]:
    """What is measured, and of whom."""
    names = [name for name in options.only.split(",") if name]
    peers = [name for name in options.peers.split(",") if name]
    workloads = [w for w in WORKLOADS.values() if not names or {w.name, w.name.partition("-")[0]} & set(names)]
    entries = [e for e in ENTRIES.values() if not peers or e.name in peers]
    if options.quick:
        workloads = [replace(w, entries=w.quick) for w in workloads if w.quick]
    return workloads, entries


class Session:
    """One run of the benchmarks."""

    def __init__(self, place: Place, *, rounds: int, seconds: float, is_quick: bool) -> None:
        self.place = place
        self.rounds = rounds
        self.seconds = seconds
        self.tries, self.warm = (1, 0.3) if is_quick else (TRIES, math.inf)
        self.wrong: list[str] = []
        """What this library answered wrongly."""

    def measure(self, workload: Workload, entries: dict[str, Entry]) -> list[Round]:
        """All rounds of a workload, each in the opposite order of the one before."""
        cells, rounds, out = workload.cells(entries), list[Round](), set[str]()
        say(f"{workload.title} ({workload.name})")
        for number in range(self.rounds):
            rounds.append({})
            for cell in cells if number % 2 == 0 else cells[::-1]:
                if cell.entry.name not in out and not self.take(workload, cell, rounds[-1]):
                    out.add(cell.entry.name)
        return rounds

    def take(self, workload: Workload, cell: Cell, samples: Round) -> bool:
        """Take one sample; whether the entry may go on."""
        name = f"{workload.name}, {cell.title}"
        try:
            warm = min(workload.warm, self.warm)
            figures = sample(self.place, cell, workload, warm=warm, seconds=self.seconds, tries=self.tries)
            wrong = "" if cell.entry.name in workload.may_stall else faults(figures)
        except SampleError as exc:
            figures, wrong = {}, str(exc)
        if not wrong:
            samples[cell.label] = figures
            say(f"  {cell.title:44} {absolute(workload, figures)}; {notes(figures)}")
            return True
        say(f"  {cell.title:44} WRONG: {wrong}")
        if cell.entry.is_ours:
            self.wrong.append(f"{name}: {wrong}")
        else:
            self.place.left_out[name] = wrong
        return False


def absolute(workload: Workload, figures: dict[str, float]) -> str:
    """The figures of one sample that need no other."""
    columns = [COLUMNS[name] for name in workload.columns if not COLUMNS[name].is_relative]
    values = [(column, column.of(figures, figures)) for column in columns]
    return ", ".join(f"{column.form.format(value)} {column.title}" for column, value in values if value is not None)


def notes(figures: dict[str, float]) -> str:
    """How much of their cores the two sides owned; a load that has no time left measures itself."""
    note = f"server {figures['server_share']:.0%}, load {figures['load_share']:.0%}"
    return f"{note}, TOO MUCH" if figures["load_share"] > 0.95 else note


def show(workload: Workload, rounds: list[Round], entries: dict[str, Entry]) -> None:
    """Print a workload's figures."""
    head = [f"{len(rounds)} rounds", *(COLUMNS[column].title for column in workload.columns)]
    rows = [[cell.title, *row(rounds, cell, workload.columns)] for cell in workload.cells(entries)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(f"\n{workload.title}")
    for first, *others in (head, *rows):
        padded = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *padded)), flush=True)


def descriptors() -> float:
    """How many files a process may open, after asking for all that it may have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return math.inf if most == resource.RLIM_INFINITY else most


def run(place: Place, options: argparse.Namespace) -> list[str]:
    """Measure what the command line asks for; what this library answered wrongly."""
    workloads, wanted = chosen(options)
    if len(CORES) == 1:
        say("one core, or none can be chosen: server and load share it, and ratios are less than they could be")
    if scarce := [workload.name for workload in workloads if workload.sockets + SPARE > descriptors()]:
        say(f"left out: {', '.join(scarce)}: not enough file descriptors, see ulimit -Hn")
        workloads = [workload for workload in workloads if workload.name not in scarce]
    used = {name for workload in workloads for name in workload.entries}
    entries = {entry.name: entry for entry in place.prepare([entry for entry in wanted if entry.name in used])}
    session = Session(place, rounds=options.rounds, seconds=options.seconds, is_quick=options.quick)
    about = {} if options.quick else report.machine(place)
    for workload in workloads:
        rounds = session.measure(workload, entries)
        show(workload, rounds, entries)
        if not options.quick:
            report.save(workload, rounds, {**about, "left_out": place.left_out})
    return session.wrong


def main() -> int:
    """Run; 1 if an answer of this library was wrong."""
    options, started = options_of(), time.monotonic()
    place = Place(own=not options.quick, say=say)
    wrong = [] if options.report else run(place, options)
    for line in wrong:
        say(f"WRONG: {line}")
    if not options.quick:
        report.draw(place)
        report.write()
    say(f"{time.monotonic() - started:.0f} s")
    return len(wrong) > 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingError as exc:
        sys.exit(f"benchmarks: {exc}")
