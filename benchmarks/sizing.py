"""How much one Redis carries, measured, and how many of them a load needs, simulated: python -m benchmarks.sizing."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot

from openapi_ws.brokers.fleet import Fleet
from openapi_ws.brokers.store import PARTITIONS, Store
from openapi_ws.history import History
from openapi_ws.protocol import Message

SHARE = 0.6
"""Of a core, that Redis may be busy: beyond, who waits waits long."""
LISTENERS = (0, 1, 2, 4, 8)
"""Processes that a message goes to, as they are measured."""
KEPT = History(size=200)
SLOTS = 16384


@dataclass
class Cost:
    """Microseconds of Redis' CPU: of a message, and of each process that it goes to."""

    message: float
    process: float

    def of(self, processes: float) -> float:
        """Of a message that goes to so many processes."""
        return self.message + self.process * processes

    def rate(self, processes: float) -> float:
        """Messages in a second that keep Redis busy for `SHARE` of a core."""
        return SHARE * 1e6 / self.of(processes)


# -- measured -------------------------------------------------------------------------------------------------


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The URL of a redis-server of its own."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("no redis-server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        words = [program, "--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", "", *options]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@asynccontextmanager
async def fleet(url: str, **options: Any) -> AsyncIterator[Fleet]:
    """A connected one."""
    client = Redis.from_url(url)
    one = Fleet(client, on_message=lambda *_: None, on_lost=lambda _: None, timeout=10, **options)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
        await client.aclose()


async def busy(publisher: Fleet) -> float:
    """Seconds of CPU that Redis has used so far, with the threads that write its files."""
    lines = (await publisher.of(b"").run("INFO", "cpu")).decode().split()
    figures = dict(line.split(":") for line in lines if ":" in line)
    return float(figures["used_cpu_user"]) + float(figures["used_cpu_sys"])


async def sample(url: str, listeners: int, messages: int, *, is_kept: bool, size: int, batch: int) -> float:
    """Microseconds of CPU for a message that goes to so many processes."""
    async with fleet(url, listens=False) as publisher:
        store = Store(publisher, "sizing", timeout=10, max_message_bytes=1_000_000)
        channels = [f"channel:{number}" for number in range(64)]
        nodes = [fleet(url) for _ in range(listeners)]
        try:
            for node in nodes:
                one = await node.__aenter__()
                await asyncio.gather(*(one.subscribe(store.channel(channel)) for channel in channels))

            async def publish(number: int) -> None:
                message = Message(channels[number % 64], "e", b'"%b"' % (b"x" * size))
                await (store.append(message, KEPT) if is_kept else store.emit(message))

            before = 0.0
            for start in range(-64 * KEPT.size, messages, batch):
                if start <= 0 < start + batch:  # what came before has filled the histories
                    before = await busy(publisher)
                await asyncio.gather(*(publish(start + number) for number in range(batch)))
            return (await busy(publisher) - before) / messages * 1e6
        finally:
            for node in nodes:
                await node.__aexit__(None, None, None)


def fit(samples: Sequence[tuple[int, float]]) -> Cost:
    """The line of least squares."""
    count, xs, ys = len(samples), sum(x for x, _ in samples), sum(y for _, y in samples)
    slope = (count * sum(x * y for x, y in samples) - xs * ys) / (count * sum(x * x for x, _ in samples) - xs * xs)
    return Cost((ys - slope * xs) / count, slope)


async def measure(messages: int, size: int, batch: int) -> dict[str, Cost]:
    """The costs of the three kinds of channels."""
    costs = {}
    for name, is_kept, options in (
        ("live", False, ()),
        ("history", True, ()),
        ("history, AOF each second", True, ("--appendonly", "yes", "--appendfsync", "everysec")),
    ):
        with server(*options) as url:
            samples = [(n, await sample(url, n, messages, is_kept=is_kept, size=size, batch=batch)) for n in LISTENERS]
        costs[name] = fit(samples)
    return costs


# -- simulated ------------------------------------------------------------------------------------------------


def reached(processes: int, subscribers: float) -> float:
    """Processes that a message goes to, where each subscriber is connected to any of them."""
    return processes * (1 - (1 - 1 / processes) ** subscribers)


def shares(channels: int, masters: int, *, skew: float, seed: int = 1) -> list[float]:
    """The part of all messages that each master has.

    The channel of rank r has a part like 1/r^*skew*: 0 is the same for all, 1 is that of Zipf. Channels fall into
    partitions, these into slots, as `Store.key` has it; masters have ranges of slots of the same length.
    """
    numbers = random.Random(seed).sample(range(10 * channels), channels)
    loads = [0.0] * masters
    for rank, number in enumerate(numbers, 1):
        part = zlib.crc32(f"room:{number}".encode()) % PARTITIONS
        loads[key_slot(b"{%d}" % part) * masters // SLOTS] += rank**-skew
    total = sum(loads)
    return [load / total for load in loads]


def table(costs: dict[str, Cost], processes: int) -> Iterator[str]:
    """What masters carry together: the busiest is the bound."""
    yield f"| channels × subscribers, {processes} processes | reached | masters | busiest has | live/s | history/s |"
    yield "|---|---|---|---|---|---|"
    for channels, subscribers, skew in ((10_000, 5, 0.0), (10_000, 5, 1.0), (100, 1000, 0.0), (100, 1000, 1.0)):
        reach = reached(processes, subscribers)
        for masters in (1, 3, 6, 12):
            top = max(shares(channels, masters, skew=skew))
            rates = [f"{costs[kind].rate(reach) / top:,.0f}" for kind in ("live", "history")]
            words = f"{channels:,} × {subscribers:,}{', Zipf' if skew else ''}"
            yield f"| {words} | {reach:.1f} | {masters} | {top:.0%} | {' | '.join(rates)} |"


def main() -> None:
    """Measure, simulate, print both."""
    parser = argparse.ArgumentParser("python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="in each sample, default %(default)s")
    parser.add_argument("--size", type=int, default=200, help="bytes of a message's data, default %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="messages sent at once, default %(default)s: the worst")
    parser.add_argument("--processes", type=int, default=8, help="simulated, default %(default)s")
    options = parser.parse_args()
    costs = asyncio.run(measure(options.messages, options.size, options.batch))
    print("| channels | µs a message | µs each process | to 1 | to 4 | to 16 processes |\n|---|---|---|---|---|---|")
    for name, cost in costs.items():
        rates = " | ".join(f"{cost.rate(processes):,.0f}/s" for processes in (1, 4, 16))
        print(f"| {name} | {cost.message:.1f} | {cost.process:.1f} | {rates} |")
    print()
    print("\n".join(table(costs, options.processes)))


if __name__ == "__main__":
    main()
