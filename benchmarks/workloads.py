"""What is measured: each workload is a row of cells, which run one after another, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .entries import Entry

Options = dict[str, int]
"""Of ``wsload.c``; and ``own``, 1 where each socket subscribes to other channels than the next."""

RAW = ("raw", "raw-uvloop", "raw-py313")
OURS = ("openapi_ws", "jsonrpc", "all", "uvloop", "py313")
QUICK = ("raw", "openapi_ws")
RPC_PEERS = ("aio-openapi", "socketio", "fastapi-rpc", "fastapi", "websockets", "picows", "node-ws")
FANOUT_PEERS = ("aio-openapi", "socketio", "litestar", "websockets", "picows", "node-ws")


@dataclass(frozen=True)
class Cell:
    """One thing that is measured in each round."""

    label: str
    title: str
    entry: Entry
    options: Options
    yardstick: str
    """The label of what it is compared with."""


@dataclass(frozen=True)
class Workload:
    """One kind of load."""

    name: str
    title: str
    mode: str
    """Of ``wsload.c``."""
    kind: str
    """What is asked: ``echo``, ``slow`` or ``fanout``."""
    options: Options
    entries: tuple[str, ...]
    columns: tuple[str, ...] = ("rate", "cpu", "cpu_ratio", "rate_ratio")
    """Of `figures.COLUMNS`; the plot shows `plot`."""
    plot: str = "cpu_ratio"
    variants: dict[str, Options] = field(default_factory=lambda: {"": {}})
    """Options of each variant; all variants of all entries are cells."""
    yardstick: str = ""
    """The variant that each entry's others are compared with; without one, the first entry is the yardstick."""
    size: int = 0
    """Bytes of a message."""
    warm: float = 0.3
    """Seconds before the measurement."""
    is_busy: bool = True
    """The server is meant to use all of its core; where it did not, the sample is taken again."""
    may_stall: tuple[str, ...] = ()
    """Entries that are known to stop, which is the finding."""
    quick: tuple[str, ...] = ()
    """Entries of the short form."""

    def cells(self, entries: dict[str, Entry]) -> list[Cell]:
        """What is measured of those *entries* that there are."""
        there = [entries[name] for name in self.entries if name in entries and self.is_served_by(entries[name])]
        labels = [[f"{entry.name} {variant}".strip() for variant in self.variants] for entry in there]
        return [
            Cell(
                label,
                ", ".join(filter(None, (entry.title, variant))),
                entry,
                self.options | options,
                f"{entry.name} {self.yardstick}" if self.yardstick else labels[0][0],
            )
            for entry, row in zip(there, labels, strict=True)
            for label, (variant, options) in zip(row, self.variants.items(), strict=True)
        ]

    @property
    def sockets(self) -> int:
        """The most that there are at once."""
        return max((self.options | options)["conns"] for options in self.variants.values())

    def is_served_by(self, entry: Entry) -> bool:
        """The entry can be asked this."""
        wire = entry.wire
        needed = {"echo": wire.call, "slow": wire.slow, "fanout": wire.publish}[self.kind]
        return bool(needed) and (bool(wire.other) or not any("extras" in o for o in self.variants.values()))


ECHO = Workload(
    "echo-w16",
    "Validated echo, 50 sockets, 16 calls in flight on each",
    "echo",
    "echo",
    {"conns": 50, "window": 16},
    (*RAW, "json", *OURS, *RPC_PEERS),
    quick=("raw", "openapi_ws", "jsonrpc", "all"),
)
FANOUT = Workload(
    "fanout-128",
    "Fan-out to 1,000 sockets, 128 B, 2 publications in flight",
    "fanout",
    "fanout",
    {"conns": 1000, "window": 2},
    (*RAW, *OURS, *FANOUT_PEERS),
    size=128,
    quick=QUICK,
)
BURSTS = replace(
    FANOUT,
    name="bursts-128",
    title="Fan-out to 1,000 sockets, 128 B, 16 publications in flight",
    options={"conns": 1000, "window": 16},
)
GROWTH = replace(FANOUT, entries=("openapi_ws",), plot="cpu", quick=())

WORKLOADS = {
    workload.name: workload
    for workload in (
        ECHO,
        replace(
            ECHO,
            name="echo-w1",
            title="Validated echo, 50 sockets, one call in flight on each",
            options={"conns": 50, "window": 1},
            quick=QUICK,
        ),
        Workload(
            "slow",
            "Methods of 50 ms, 50 sockets, 16 calls in flight on each",
            "echo",
            "slow",
            {"conns": 50, "window": 16},
            (*OURS, "json", *RPC_PEERS),
            columns=("rate", "share", "cpu", "p50", "p99"),
            plot="share",
            is_busy=False,
            quick=("openapi_ws",),
        ),
        FANOUT,
        replace(
            FANOUT,
            name="fanout-1k",
            title="Fan-out to 1,000 sockets, 1 KB, 2 publications in flight",
            size=1024,
            quick=(),
        ),
        BURSTS,
        replace(
            BURSTS,
            name="bursts-1k",
            title="Fan-out to 1,000 sockets, 1 KB, 16 publications in flight",
            size=1024,
            quick=(),
        ),
        replace(
            FANOUT,
            name="stalled",
            title="Fan-out to 100 sockets, 8 KB, and one more that never reads",
            options={"conns": 100, "window": 2},
            entries=("openapi_ws", "raw", *FANOUT_PEERS),
            variants={"all read": {"stalled": 0}, "one never reads": {"stalled": 1}},
            yardstick="all read",
            columns=("rate", "cpu", "rate_ratio", "rss"),
            plot="rate_ratio",
            size=8192,
            warm=1.5,
            may_stall=("raw", *FANOUT_PEERS),
            quick=("openapi_ws",),
        ),
        Workload(
            "latency",
            "Latency of a validated echo at 20,000 calls a second, 50 sockets",
            "rate",
            "echo",
            {"conns": 50, "rate": 20_000},
            ("raw", *OURS, *RPC_PEERS),
            columns=("rate", "cpu", "p50", "p99", "p50_ratio"),
            plot="p50",
            is_busy=False,
        ),
        Workload(
            "idle",
            "5,000 sockets that do nothing",
            "idle",
            "echo",
            {"conns": 5000},
            ("raw", *OURS, *RPC_PEERS),
            columns=("memory", "memory_ratio", "connects", "connect_cpu"),
            plot="memory",
            is_busy=False,
        ),
        replace(
            GROWTH,
            name="growth-sockets",
            title="Fan-out, 128 B, as sockets grow",
            entries=("openapi_ws", "raw"),
            variants={f"{n:,} sockets": {"conns": n} for n in (10, 100, 1000, 5000)},
            yardstick="1,000 sockets",
        ),
        replace(
            GROWTH,
            name="growth-channels",
            title="Fan-out to 100 sockets, 128 B, as channels grow",
            options={"conns": 100, "window": 2},
            variants={"10 channels": {"extras": 9}, "10,001 channels": {"extras": 100, "own": 1}},
            yardstick="10 channels",
        ),
        replace(
            GROWTH,
            name="growth-subscriptions",
            title="Fan-out to 1,000 sockets, 128 B, as their subscriptions grow",
            variants={"1 subscription each": {"extras": 0}, "128 subscriptions each": {"extras": 127}},
            yardstick="1 subscription each",
        ),
    )
}
