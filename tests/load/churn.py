"""Clients that come, do some of everything, and leave in every way, as many at a time as the test says."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from lines import obey, prepare
from peer import CLOSE, PING, Peer, frame

PATIENCE = 30.0
"""Seconds after which a client that should be gone, or answered, is a fault."""
ROOMS = 20
STALL = 300
"""Messages of 4 kB that no bound of the server holds."""


class Commands:
    """What the test may ask."""

    def __init__(self) -> None:
        self.workers: list[asyncio.Task[None]] = []
        self.is_over = False
        self.come = 0
        self.messages = 0
        self.lag = 0.0
        """Seconds by which this loop was late at most: that its clients were, too, is no fault of the server's."""
        self.ways: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    async def start(self, host: str, port: int, sockets: int, life: float) -> None:
        """Keep *sockets* clients alive, each for *life* seconds on average."""
        self.address, self.life = (host, port), life
        self.workers = [asyncio.create_task(self._work()) for _ in range(sockets)]
        self.workers.append(asyncio.create_task(self._watch()))

    async def figures(self) -> dict[str, Any]:
        """What has happened up to now."""
        return {"come": self.come, "messages": self.messages, "lag": self.lag, "ways": self.ways, "faults": self.faults}

    async def stop(self) -> dict[str, Any]:
        """Let all leave; what has happened."""
        self.is_over = True
        await asyncio.gather(*self.workers)
        return await self.figures()

    async def _watch(self) -> None:
        while not self.is_over:
            start = time.monotonic()
            await asyncio.sleep(0.1)
            self.lag = max(self.lag, time.monotonic() - start - 0.1)

    async def _work(self) -> None:
        await asyncio.sleep(random.uniform(0, min(self.life, 3)))
        while not self.is_over:
            way = random.choice(WAYS)
            try:
                await self._live(way)
                self.ways[way.__name__] += 1
            except Exception as error:
                self.faults[f"{way.__name__}: {error!r}"] += 1

    async def _live(self, leave: Way) -> None:
        async with asyncio.timeout(PATIENCE):
            peer = await Peer.open(self.address)
            self.come += 1
            if leave is during_the_handshake:
                peer.transport.abort()
                return
            await peer.shaken()
        end = asyncio.get_running_loop().time() + random.expovariate(1 / self.life)
        try:
            while not self.is_over and (rest := end - asyncio.get_running_loop().time()) > 0:
                await self._act(peer)
                await asyncio.sleep(min(rest, random.uniform(0, 1)))
            async with asyncio.timeout(PATIENCE):
                await leave(peer)
        except (ConnectionError, ValueError, AssertionError):
            if not peer.notices["drain"]:  # the server has moved it meanwhile
                raise
        finally:
            self.messages += peer.count
            peer.transport.abort()
            async with asyncio.timeout(PATIENCE):
                await peer.gone.wait()

    async def _act(self, peer: Peer) -> None:
        room = f"room:{random.randrange(ROOMS)}"
        async with asyncio.timeout(PATIENCE):
            match random.randrange(8):
                case 0 | 1:
                    await peer.call("subscribe", {"channel": random.choice(["all", room])})
                case 2 | 3:
                    await peer.call("publish", {"channel": room, "event": "said", "data": "x" * 100})
                case 4:
                    await peer.call("stream", 5)
                case 5:
                    await peer.call("flood", 5)
                case 6:
                    peer.send(random.choice([b"no JSON", b"[1]", b'{"method":"none"}', b"{}"]))
                case 7:
                    peer.send(b'{"id":"s","method":"stubborn"}')
                    peer.send(b'{"id":"c","method":"rpc.cancel","payload":{"id":"s"}}')


Way = Callable[[Peer], Awaitable[None]]


def expect(peer: Peer, code: int) -> None:
    if peer.code != code:
        raise AssertionError(f"closed with {peer.code}")


async def politely(peer: Peer) -> None:
    peer.send(struct.pack("!H", 1000), CLOSE)
    await peer.gone.wait()
    expect(peer, 1000)


async def with_a_reset(peer: Peer) -> None:
    peer.transport.abort()


async def without_a_word(peer: Peer) -> None:
    peer.transport.close()


async def during_the_handshake(peer: Peer) -> None:
    """See `Commands._live`."""


async def during_a_call(peer: Peer) -> None:
    for call in (b'{"id":"m","method":"stubborn"}', b'{"id":"n","method":"stream","payload":999}'):
        peer.send(call)
    await peer.call("whoami")
    peer.transport.abort()


async def kicked(peer: Peer) -> None:
    peer.send(b'{"id":"b","method":"bye"}')
    await peer.gone.wait()
    expect(peer, 4503)


async def unread(peer: Peer) -> None:
    peer.transport.pause_reading()
    peer.send(b'{"id":"f","method":"flood","payload":%d}' % 50)
    await asyncio.sleep(0.1)
    peer.transport.close()


async def stalled(peer: Peer) -> None:
    """Read no more, however much is sent, until it has been cut off."""
    peer.transport.pause_reading()
    peer.send(b'{"id":"f","method":"flood","payload":%d}' % STALL)
    await asyncio.sleep(2)


async def stalled_in_a_stream(peer: Peer) -> None:
    """Let a method wait for a client that does not read."""
    peer.transport.pause_reading()
    peer.send(b'{"id":"f","method":"stream","payload":%d}' % STALL)
    await asyncio.sleep(3)


async def mute(peer: Peer) -> None:
    """Answer no ping."""
    peer.is_rude = True
    await peer.is_cut.wait()
    expect(peer, 4012)


async def too_large(peer: Peer) -> None:
    peer.send(b"x" * 70_000)
    await peer.gone.wait()
    expect(peer, 1009)


async def broken(peer: Peer) -> None:
    peer.transport.write(b"\xff" * 50)
    await peer.gone.wait()
    expect(peer, 1002)


async def pinging(peer: Peer) -> None:
    peer.transport.write(frame(b"", PING) * 100)
    await peer.gone.wait()
    expect(peer, 4013)


WAYS: tuple[Way, ...] = (
    politely, with_a_reset, without_a_word, during_the_handshake, during_a_call, kicked, unread, stalled,
    stalled_in_a_stream, mute, too_large, broken, pinging,
)  # fmt: skip


async def main() -> None:
    prepare()
    await obey(Commands())


if __name__ == "__main__":
    asyncio.run(main())
