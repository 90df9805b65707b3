"""Serve clients that come and go in every way, and see whether all settles: ``python tests/soak.py --minutes 30``.

It prints a line a minute and a verdict, and exits with 1 if it found a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from load.lines import Program, running

VIEW = {"max_queue_bytes": 256 * 1024, "send_buffer_bytes": 32 * 1024, "heartbeat": 3.0}
MANAGER = {"tick": 0.2}
SOCKETS, LIFE = 300, 4.0
"""Clients at a time, and the seconds that each stays on average before it leaves."""
GROWTH, SLOPE = 12e6, 1e6
"""Bytes by which the memory may grow, by what the allocator keeps of the worst moment, and besides in ten minutes."""
OBJECTS = 2500
"""Python objects that are made once and kept; besides, one for ten connections may be left."""
SETTLE = 20.0
"""Seconds within which all is at rest when the last client has left."""


@dataclass
class Verdict:
    """How it went."""

    faults: list[str] = field(default_factory=list)
    growth: float = 0.0
    """Bytes by which the memory of the server grew, from the second fifth of the time to the last."""
    slope: float = 0.0
    """Bytes in ten minutes, by the same."""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        found = "; ".join(self.faults) or "nothing is left, nothing grows"
        return (
            f"{'FAULTS' if self.faults else 'OK'}: {found}; memory {self.growth / 1e6:+.1f} MB, "
            f"{self.slope / 1e6:+.2f} MB in ten minutes; {self.figures}"
        )


async def soak(seconds: float, report: Callable[[str], None] | None = None, every: float = 60.0) -> Verdict:
    """Churn for *seconds*, let all come to rest, and judge; *report* gets a line *every* so many seconds."""
    verdict = Verdict()
    async with running("server", view=VIEW, manager=MANAGER) as server, running("churn") as churn:
        port = (await server.event("started"))["port"]
        before = await rest(server)
        start = time.monotonic()
        await churn.ask("start", host="127.0.0.1", port=port, sockets=SOCKETS, life=LIFE)
        memory: list[tuple[float, int]] = []
        reports = every
        while (now := time.monotonic() - start) < seconds:
            _, _, info = await asyncio.gather(
                server.ask("publish", channel="all", count=5, size=300, interval=0.2),
                server.ask("move", count=1),
                server.ask("info"),
            )
            memory.append((now, info["rss"]))
            if report is not None and now >= reports:
                reports += every
                report(line(now, info, await churn.ask("figures")))
        verdict.figures = await churn.ask("stop")
        after = await at_rest(server, before)
        verdict.growth, verdict.slope = grown(memory)
        judge(verdict, seconds, before, after)
        if report is not None:
            report(line(time.monotonic() - start, after, verdict.figures))
    return verdict


def line(now: float, info: dict[str, Any], figures: dict[str, Any]) -> str:
    return (
        f"{now / 60:6.1f} min  {info['connections']:5d} sockets  {info['tasks']:5d} tasks  {info['fds']:5d} fds  "
        f"{info['rss'] / 1e6:6.1f} MB  {figures['come']:8d} come  {figures['messages']:10d} messages  "
        f"{figures['lag']:4.1f} s lag  {sum(figures['faults'].values())} faults"
    )


async def rest(server: Program) -> dict[str, Any]:
    return {**await server.ask("info"), **await server.ask("objects")}


async def at_rest(server: Program, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until the server has no more than *before*; what it has."""
    info = before
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE):
            while left(before, info := await rest(server)):
                await asyncio.sleep(0.1)
    return info


def left(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was not there before."""
    names = ("connections", "channels", "queued_bytes", "admitted", "tasks", "fds", "living")
    return [f"{name} {before[name]} → {after[name]}" for name in names if before[name] != after[name]]


def grown(memory: list[tuple[float, int]]) -> tuple[float, float]:
    """Bytes from the second fifth of *memory* to the last, and how many that is in ten minutes."""
    fifth = max(1, len(memory) // 5)
    early, late = memory[fifth : 2 * fifth] or memory, memory[-fifth:]
    growth = statistics.median(rss for _, rss in late) - statistics.median(rss for _, rss in early)
    took = statistics.median(at for at, _ in late) - statistics.median(at for at, _ in early)
    return growth, growth / max(took, 1.0) * 600


def judge(verdict: Verdict, seconds: float, before: dict[str, Any], after: dict[str, Any]) -> None:
    verdict.faults += [f"a client: {fault} ({count} times)" for fault, count in verdict.figures["faults"].items()]
    verdict.faults += left(before, after)
    if after["opened"] != sum(after["closes"].values()):
        verdict.faults.append(f"{after['opened']} opened, closed {after['closes']}")
    if after["objects"] - before["objects"] > OBJECTS + after["opened"] / 10:
        verdict.faults.append(f"objects {before['objects']} → {after['objects']}")
    if verdict.growth > GROWTH + SLOPE * seconds / 600:
        verdict.faults.append("the memory grows")
    verdict.figures |= {name: after[name] for name in ("opened", "closes", "dropped", "objects", "rss")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    verdict = asyncio.run(soak(minutes * 60, lambda text: print(text, flush=True)))
    print(verdict, flush=True)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
