"""At rest everything settles to zero.

``CYCLES=1000`` shortens the long test; the default is what the project promises.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

from aiohttp import web
from conftest import RawClient, Serve, Served, until

from openapi_ws import Publish, Subscribe, WsPathMixin

CYCLES = int(os.environ.get("CYCLES", "10000"))
WORKERS = 40


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_wait(self) -> None:
        await asyncio.Event().wait()

    async def ws_rpc_enter(self, payload: str) -> None:
        await self.join(payload)

    async def connected(self) -> None:
        await self.join("everybody")


FRAMES = (
    b'{"id":1,"method":"subscribe","payload":{"channel":"c%d","event":"e*"}}',
    b'{"id":2,"method":"subscribe","payload":{"channel":"shared"}}',
    b'{"id":3,"method":"unsubscribe","payload":{"channel":"c%d","event":"e*"}}',
    b'{"id":4,"method":"publish","payload":{"channel":"shared","event":"e","data":%d}}',
    b'{"id":5,"method":"wait"}',
    b'{"id":6,"method":"enter","payload":"room %d"}',
    b"no JSON",
)


async def cycle(served: Served, chance: random.Random, number: int) -> None:
    """Connect, do some things in any order, and go, at any moment and in any way."""
    client = await served.connect_raw()
    for frame in chance.sample(FRAMES, chance.randrange(len(FRAMES))):
        client.frame(frame % number if b"%d" in frame else frame)
        if chance.random() < 0.5 and b"wait" not in frame:
            await client.read()
    await chance.choice((leave_politely, leave_at_once, leave_unread))(client)


async def leave_politely(client: RawClient) -> None:
    client.frame((1000).to_bytes(2), opcode=8)
    while (await client.read())[0] != 8:
        pass
    client.writer.close()


async def leave_at_once(client: RawClient) -> None:
    client.writer.transport.abort()


async def leave_unread(client: RawClient) -> None:
    client.writer.close()


async def test_cycles_in_random_order_leave_nothing(serve: Serve, living: Callable[[], tuple[int, int]]) -> None:
    """10,000 clients come, subscribe, publish, call and go: no socket, channel, task, view or subscription is left."""
    served = await serve(Stream)
    chance = random.Random(20)  # a seed, so that a failure can be repeated
    before, tasks = living(), len(asyncio.all_tasks())
    numbers = iter(range(CYCLES))

    async def work() -> None:
        for number in numbers:
            await cycle(served, chance, number)
            served._writers.clear()

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    await served.at_rest()
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: living() == before)
    channels: Any = served.manager.channels
    assert not channels._subscribed
    assert not channels._tasks
    assert not channels._retries
    info = served.manager.server_info()
    assert (info["connections"], info["channels"], info["queued_bytes"]) == (0, {}, 0)
    assert info["opened"] == sum(info["closes"].values()) == CYCLES
    assert not served.manager._admitted
