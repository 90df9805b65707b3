"""The clients of the load tests: groups of peers, in a process of their own, so that no loop measures another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from array import array
from collections import Counter
from typing import Any

from lines import obey, prepare, until
from peer import Peer, frame

GARBAGE = 50
"""Frames of garbage at once from one hostile client."""


class Commands:
    """What the test may ask. A group is any name."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", 0)
        self.groups: dict[str, list[Peer]] = {}
        self.latencies = array("d")
        self.floods: set[asyncio.Task[None]] = set()

    async def connect(self, group: str, count: int, host: str, port: int, receive_buffer: int | None = None) -> None:
        """Open a group's sockets, all at once."""
        self.address = (host, port)
        opening = (Peer.open(self.address, self._note, receive_buffer=receive_buffer) for _ in range(count))
        peers = self.groups[group] = await asyncio.gather(*opening)
        await asyncio.gather(*(peer.shaken() for peer in peers))

    async def call(self, group: str, method: str, payload: object = None) -> list[Any]:
        """Have each of a group call; the responses."""
        return await asyncio.gather(*(peer.call(method, payload) for peer in self.groups[group]))

    async def begin(self, group: str, method: str) -> None:
        """Have each of a group call, and wait for nothing but that all calls have been read."""
        calls = [asyncio.ensure_future(peer.call(method)) for peer in self.groups[group]]
        for call in calls:
            call.add_done_callback(lambda done: done.cancelled() or done.exception())
        await self.call(group, "whoami")

    async def stall(self, group: str) -> None:
        """Read no more."""
        for peer in self.groups[group]:
            peer.transport.pause_reading()

    async def be_rude(self, group: str, answer_to_close: str | None = None) -> None:
        """Answer neither pings nor the close any more, but the latter with bytes, given as hexadecimal."""
        for peer in self.groups[group]:
            peer.is_rude = True
            peer.answer_to_close = answer_to_close and bytes.fromhex(answer_to_close)

    async def flood(self, group: str) -> None:
        """Send garbage for as long as there is a connection."""
        for peer in self.groups[group]:
            task = asyncio.create_task(self._flood(peer))
            self.floods.add(task)
            task.add_done_callback(self.floods.discard)

    async def _flood(self, peer: Peer) -> None:
        while not peer.gone.is_set():
            peer.transport.write(b"".join(frame(os.urandom(8).hex().encode()) for _ in range(GARBAGE)))
            await asyncio.sleep(0.01)

    async def received(self, group: str, count: int) -> dict[str, Any]:
        """Wait until each of a group has *count* messages; how they came, and after how many seconds."""
        peers = self.groups[group]
        with contextlib.suppress(TimeoutError):  # the figures say what is missing
            await until(lambda: all(peer.count >= count or peer.gone.is_set() for peer in peers), 30)
        took = sorted(self.latencies)
        self.latencies = array("d")
        return {
            "complete": sum(peer.count == count for peer in peers),
            "out_of_order": sum(peer.out_of_order for peer in peers),
            **{name: took[int(len(took) * share)] for name, share in (("p50", 0.5), ("p99", 0.99)) if took},
        }

    async def ended(self, group: str) -> dict[str, Any]:
        """Wait until all of a group are gone; the close codes, and how many were told to leave before."""
        peers = self.groups[group]
        await asyncio.gather(*(peer.gone.wait() for peer in peers))
        return {
            "codes": Counter(str(peer.code) for peer in peers),
            "drained": sum(peer.notices == {"drain": 1} for peer in peers),
        }

    async def come_back(self, group: str, within: float) -> dict[str, Any]:
        """When all of a group are cut off, have each come back, at a moment *within* as many seconds, and call.

        Answers how many failed, and the seconds from the first cut to the last response.
        """
        peers = self.groups[group]
        await until(lambda: any(peer.gone.is_set() for peer in peers))
        start = time.monotonic()

        async def one(peer: Peer) -> Peer:
            await peer.gone.wait()
            await asyncio.sleep(random.uniform(0, within))
            back = await (await Peer.open(self.address, self._note)).shaken()
            await back.call("whoami")
            return back

        results = await asyncio.gather(*map(one, peers), return_exceptions=True)
        failures = Counter(repr(result) for result in results if not isinstance(result, Peer))
        self.groups[group] = [result for result in results if isinstance(result, Peer)]
        return {"failures": failures, "seconds": time.monotonic() - start}

    async def shake(self, path: str = "/stream") -> str:
        """One handshake on a new connection; the head of its answer, or that there is none."""
        try:
            peer = await Peer.open(self.address, path=path)
            head = await peer.head
        except ConnectionError as error:
            return repr(error)
        peer.transport.abort()
        return head

    def _note(self, peer: Peer, message: dict[str, Any]) -> None:
        data = message["data"]
        if "at" in data:
            self.latencies.append(time.monotonic() - data["at"])
            peer.out_of_order += data["n"] != peer.count - 1


async def main() -> None:
    prepare()
    await obey(Commands())


if __name__ == "__main__":
    asyncio.run(main())
