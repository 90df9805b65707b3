"""What is measured: each workload is a row of cells, which run one after another, round by round."""

from __future__ import annotations

import dataclasses

from .entries import Entry


@dataclasses.dataclass(frozen=True)
class Workload:
    """One kind of load."""

    name: str
    mode: str
    """Of ``wsload.c``."""
    kind: str
    """What is asked: ``echo``, ``slow`` or ``fanout``."""
    title: str
    options: dict[str, int | float]
    entries: tuple[str, ...]
    variants: dict[str, dict[str, int | float]] = dataclasses.field(default_factory=lambda: {"": {}})
    """Options of each variant; all variants of all entries are cells. The first one is the yardstick of its entry."""
    size: int = 0
    """Bytes of a message."""
    yardstick: str = "raw"
    """The entry that the others are compared with; where there are variants, each entry is compared with itself."""
    is_busy: bool = True
    """The server is meant to use all of its core; where it did not, the sample is taken again."""
    may_stall: tuple[str, ...] = ()
    """Entries that are known to stop, which is the finding."""

    def cells(self, entries: dict[str, Entry]) -> list[tuple[str, Entry, dict[str, int | float]]]:
        """Label, entry and options of each, of those *entries* that there are."""
        return [
            (" ".join(filter(None, (name, variant))), entries[name], self.options | options)
            for name in self.entries
            if name in entries
            for variant, options in self.variants.items()
        ]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "echo-w16",
            "echo",
            "echo",
            "Validated echo, 50 sockets, 16 calls in flight on each",
            {"conns": 50, "window": 16},
            ("raw", "json", "openapi_ws", "jsonrpc", "all"),
        ),
        Workload(
            "echo-w1",
            "echo",
            "echo",
            "Validated echo, 50 sockets, one call in flight on each",
            {"conns": 50, "window": 1},
            ("raw", "json", "openapi_ws", "jsonrpc", "all"),
        ),
    )
}
