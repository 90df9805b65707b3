"""From samples to figures: medians over the rounds, and of the ratios of pairs within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .workloads import Cell

Round = dict[str, dict[str, Any]]
"""The samples of one round, by label."""
IDEAL_SLOW = 50 * 16 / 0.05
"""Answers per second of 50 sockets with 16 calls of 50 ms in flight."""


@dataclass(frozen=True)
class Column:
    """One figure of a cell."""

    title: str
    of: Callable[[dict[str, Any], dict[str, Any]], float | None]
    """From a sample, and the yardstick's in the same round."""
    form: str
    has_spread: bool = False
    """It is shown with its least and greatest."""
    is_relative: bool = False
    """It is 1 of the yardstick itself."""


def per_socket(sample: dict[str, Any]) -> float:
    """Kilobytes of the server's memory per idle socket."""
    return float(sample["rss_kb"] - sample["rss_before_kb"]) / float(sample["conns"])


def ratio(part: float | None, whole: float | None) -> float | None:
    """One to the other, if there are both."""
    return part / whole if part is not None and whole else None


def cpu(sample: dict[str, Any]) -> float | None:
    """Microseconds of the server's CPU per answer or delivery."""
    return sample["cpu_us"] if sample["replies"] else None


def relative(title: str, of: Callable[[dict[str, Any]], float | None], *, less_is_better: bool = False) -> Column:
    """A column that tells how much better than its yardstick a cell is, or how much of it."""

    def compared(sample: dict[str, Any], yardstick: dict[str, Any]) -> float | None:
        pair = of(sample), of(yardstick)
        return ratio(*reversed(pair)) if less_is_better else ratio(*pair)

    return Column(title, compared, "{:,.2f}", has_spread=True, is_relative=True)


COLUMNS = {
    "rate": Column("per second", lambda s, _: s["rate"], "{:,.0f}"),
    "cpu": Column("CPU, µs each", lambda s, _: cpu(s), "{:.2f}"),
    "cpu_ratio": relative("ratio by CPU", cpu, less_is_better=True),
    "rate_ratio": relative("ratio by rate", lambda s: s["rate"]),
    "share": Column("share of 16,000/s", lambda s, _: s["rate"] / IDEAL_SLOW, "{:.0%}", has_spread=True),
    "p50": Column("p50, µs", lambda s, _: s["p50_us"], "{:,.0f}"),
    "p99": Column("p99, µs", lambda s, _: s["p99_us"], "{:,.0f}"),
    "p50_ratio": relative("p50 to yardstick", lambda s: s["p50_us"]),
    "memory": Column("KiB each", lambda s, _: per_socket(s), "{:.1f}"),
    "memory_ratio": relative("memory to yardstick", per_socket),
    "rss": Column("server, MiB", lambda s, _: s["rss_kb"] / 1024, "{:.0f}"),
    "connects": Column("connects per second", lambda s, _: s["connects_per_s"], "{:,.0f}"),
    "connect_cpu": Column("CPU, µs per connect", lambda s, _: s["connect_cpu_us"], "{:.0f}"),
}


@dataclass(frozen=True)
class Figure:
    """A column of a cell over all rounds."""

    median: float
    least: float
    greatest: float

    def text(self, column: Column) -> str:
        """As the tables show it."""
        if not column.has_spread:
            return column.form.format(self.median)
        return f"{column.form} [{column.form}–{column.form}]".format(self.median, self.least, self.greatest)


def figure(rounds: list[Round], label: str, yardstick: str, column: str) -> Figure | None:
    """A figure of the cell *label*; None where the rounds have none."""
    pairs = [(r[label], r[yardstick]) for r in rounds if label in r and yardstick in r]
    values = [value for pair in pairs if (value := COLUMNS[column].of(*pair)) is not None]
    return Figure(statistics.median(values), min(values), max(values)) if values else None


def row(rounds: list[Round], cell: Cell, columns: tuple[str, ...]) -> list[str]:
    """The cells of a table's row, "–" where there is nothing."""
    return [text(rounds, cell, name) for name in columns]


def text(rounds: list[Round], cell: Cell, name: str) -> str:
    """One cell of a table."""
    found = figure(rounds, cell.label, cell.yardstick, name)
    if found is None:
        return "–"
    return "1" if COLUMNS[name].is_relative and cell.label == cell.yardstick else found.text(COLUMNS[name])


@dataclass(frozen=True)
class Target:
    """What a figure of this library has to be."""

    title: str
    workload: str
    label: str
    against: str
    column: str
    must: float
    aim: float

    def verdict(self, value: float) -> str:
        """Whether *value* is what it has to be; of memory less is better."""
        sign = -1 if self.column == "memory" else 1
        if sign * value >= sign * self.aim:
            return "aim"
        return "must" if sign * value >= sign * self.must else "**missed**"


TARGETS = (
    Target("Validated echo, window 16, to raw aiohttp", "echo-w16", "openapi_ws", "raw", "cpu_ratio", 1.7, 2.4),
    Target("Validated echo, window 1, to raw aiohttp", "echo-w1", "openapi_ws", "raw", "cpu_ratio", 0.8, 0.95),
    Target("Window 16, to aio-openapi", "echo-w16", "openapi_ws", "aio-openapi", "cpu_ratio", 10, 13),
    Target("Window 1, to aio-openapi", "echo-w1", "openapi_ws", "aio-openapi", "cpu_ratio", 4, 5),
    Target("Fan-out to 1,000, 128 B, to a `send_str` loop", "fanout-128", "openapi_ws", "raw", "cpu_ratio", 1.2, 1.4),
    Target("Fan-out in bursts of 16", "bursts-128", "openapi_ws", "raw", "cpu_ratio", 6, 12),
    Target("Methods of 50 ms, share of the ideal rate", "slow", "openapi_ws", "openapi_ws", "share", 0.85, 0.95),
    Target("Idle socket, KiB", "idle", "openapi_ws", "openapi_ws", "memory", 15.5, 14.5),
    Target(
        "Rate beside one that never reads, to without",
        "stalled", "openapi_ws one never reads", "openapi_ws all read", "rate_ratio", 0.9, 1.0,
    ),
    Target("JSON-RPC 2.0 to the house dialect, window 16", "echo-w16", "jsonrpc", "openapi_ws", "cpu_ratio", 0.9, 1.0),
    Target("JSON-RPC 2.0 to the house dialect, window 1", "echo-w1", "jsonrpc", "openapi_ws", "cpu_ratio", 0.9, 1.0),
    Target("Everything on, to the bare endpoint, window 16", "echo-w16", "all", "openapi_ws", "cpu_ratio", 0.85, 0.95),
    Target("Everything on, to the bare endpoint, window 1", "echo-w1", "all", "openapi_ws", "cpu_ratio", 0.85, 0.95),
)  # fmt: skip
