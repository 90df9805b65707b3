"""A replica that lags is promoted: what its master had acknowledged is gone, and everybody is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from conftest import WAIT, Client, Serve, Served
from redis_server import Proxy, RedisServer, binary

from openapi_ws import Subscribe, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker, _up_to
from openapi_ws.errors import BrokerUnavailable
from openapi_ws.history import Entry, History, Page, Position
from openapi_ws.topics import Topic

TOPICS = [Topic("log", history=History(size=1000, ttl=60)), Topic("live")]
KEPT, LOST = 20, 20
"""Messages that the replica has, and those that it has not."""


class Stream(WsPathMixin, Subscribe, web.View):
    """What clients may do."""


class Pair:
    """A master and its replica, and the link that all nodes take to whichever is the master."""

    def __init__(self) -> None:
        self.master = RedisServer(repl_diskless_sync_delay="0")
        self.replica = RedisServer()
        self.link, self.stream = Proxy(self.master.port), Proxy(self.master.port)

    async def start(self) -> None:
        await self.link.start()
        await self.stream.start()
        await asyncio.gather(self.master.start(), self.replica.start())
        self.replica.ask("REPLICAOF", "127.0.0.1", self.stream.port)
        await self.replicated()

    async def replicated(self) -> None:
        """Return when the replica has all that the master has."""
        async with asyncio.timeout(WAIT):
            while True:
                has = await asyncio.to_thread(self.replica.ask, "INFO", "replication")
                due = await asyncio.to_thread(self.master.ask, "INFO", "replication")
                if has["master_link_status"] == "up" and has["master_repl_offset"] == due["master_repl_offset"]:
                    return

    async def promote(self) -> None:
        """Kill the master, and make its replica another, which the nodes find under the same address."""
        self.master.kill()
        self.replica.ask("REPLICAOF", "NO", "ONE")
        self.link.target = self.replica.port
        self.link.cut()

    async def stop(self) -> None:
        await self.link.stop()
        await self.stream.stop()
        self.master.stop()
        self.replica.stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    if binary() is None:
        pytest.skip("no redis-server")
    pair = Pair()
    try:
        await pair.start()
        yield pair
    finally:
        await pair.stop()


@pytest.fixture
async def nodes(pair: Pair, serve: Serve) -> AsyncIterator[list[Served]]:
    brokers = [RedisBroker(pair.link.url, topics=TOPICS) for _ in range(2)]
    for broker in brokers:
        await broker.start()
    yield [await serve(Stream, broker) for broker in brokers]
    for broker in brokers:
        await broker.stop()


async def publish(served: Served, channel: str, number: int) -> str | None:
    """Publish until it is acknowledged."""
    while True:
        with contextlib.suppress(BrokerUnavailable):
            return await served.manager.publish(channel, "e", number)


async def heard_until(client: Client, last: int, channel: str = "log") -> list[Any]:
    """The numbers that come until *last* has, and the reasons of the notices between them."""
    told: list[Any] = []
    while not told or told[-1] != last:
        frame = client.pushed.pop(0) if client.pushed else await client.receive()
        if "notice" in frame and frame["data"]["channel"] == channel:
            told.append(frame["data"]["reason"])
        elif frame.get("channel") == channel:
            told.append(frame["data"])
    return told


async def reason(client: Client) -> Any:
    """Why there is a gap in the log, which is told before any message."""
    while (frame := await client.receive()).get("notice") is None or frame["data"]["channel"] != "log":
        assert "notice" in frame
    return frame["data"]["reason"]


@pytest.mark.parametrize("newer", [1, LOST // 2, LOST, LOST + 1, 3 * LOST])
async def test_nobody_recovers_over_what_a_fail_over_lost(pair: Pair, nodes: list[Served], newer: int) -> None:
    """Fewer messages are new than were lost, or as many, or more, so that their numbers hide the loss.

    Who is connected is told of a fork before anything newer; who comes back with a position that is lost is not told
    that all is recovered; with any other, it gets what there is after it.
    """
    clients = [await served.connect() for served in nodes]
    for client in clients:
        await client.call("subscribe", {"channel": "log"})
        await client.call("subscribe", {"channel": "live"})
    positions = [await publish(nodes[0], "log", number) for number in range(KEPT)]
    await pair.replicated()
    pair.stream.is_silent = True
    positions += [await publish(nodes[0], "log", number) for number in range(KEPT, KEPT + LOST)]
    before = list(range(KEPT + LOST))
    for client in clients:
        assert await heard_until(client, before[-1]) == before
    await pair.promote()
    after = list(range(1000, 1000 + newer))
    for number in after:
        await publish(nodes[number % 2], "log", number)
    told = [[await reason(client)] for client in clients]
    after.append(2000)
    await publish(nodes[0], "log", 2000)
    for client, first in zip(clients, told, strict=True):
        assert first == ["fork"]
        rest = await heard_until(client, 2000)
        assert rest == after[-len(rest) :]
    for known, position in enumerate(positions):
        back = await nodes[known % 2].connect()
        answer = await back.call("subscribe", {"channel": "log", "position": position})
        data = [message["data"] for message in answer["messages"]]
        if known < KEPT:
            assert (answer["recovered"], data) == (True, [*range(known + 1, KEPT), *after])
        else:
            assert (answer["recovered"], answer["reason"], data) == (False, "fork", [])
        await back.ws.close()


async def test_who_comes_back_amid_a_fail_over_is_not_deceived(pair: Pair, nodes: list[Served]) -> None:
    """Also where its node still believes in what is lost, and the new master has as many messages already."""
    first, second = nodes
    client = await first.connect()
    await client.call("subscribe", {"channel": "log"})
    position = [await publish(first, "log", number) for number in range(KEPT)][-1]
    await pair.replicated()
    pair.stream.is_silent = True
    lost = [await publish(first, "log", number) for number in range(KEPT, KEPT + LOST)][-1]
    await heard_until(client, KEPT + LOST - 1)
    await pair.promote()
    other = RedisBroker(pair.replica.url, topics=TOPICS)
    await other.start()
    try:
        for number in range(1000, 1000 + 2 * LOST):
            await other.publish("log", "e", number)
    finally:
        await other.stop()
    for place in (lost, position, lost, position):
        for served in nodes:
            back = await served.connect()
            while "error" in (answer := await back.ask("subscribe", {"channel": "log", "position": place})):
                assert answer["error"]["code"] == -32012
            response = answer["response"]
            if place == lost:
                assert (response["recovered"], response["reason"]) == (False, "fork")
            elif response["recovered"]:
                assert [message["data"] for message in response["messages"]] == [*range(1000, 1000 + 2 * LOST)]
            else:
                assert response["reason"] == "fork"
            await back.ws.close()
    assert await reason(client) == "fork"
    await publish(second, "log", 2000)
    assert await heard_until(client, 2000) == [2000]


def test_a_page_of_another_life_than_what_was_delivered_is_a_fork() -> None:
    """Redis has as many messages as this process has delivered, but others: there is no seam between the two."""
    here = Position("e", 2, "old")
    entries = tuple(Entry(Position("e", n, f"n{n}"), f"n{n - 1}", b"") for n in (1, 2, 3))
    assert _up_to(here, Page("ok", entries[-1].position, entries)) == Page("fork", here)
    seam = entries[1].position
    assert _up_to(seam, Page("ok", entries[-1].position, entries)) == Page("ok", seam, entries[:2])
    assert _up_to(seam, Page("more", entries[-1].position, entries[:1])) == Page("more", seam, entries[:1])


async def test_other_channels_are_told_of_a_gap(pair: Pair, nodes: list[Served]) -> None:
    """Nobody knows what was published there while the master changed: a notice comes first."""
    clients = [await served.connect() for served in nodes]
    for client in clients:
        await client.call("subscribe", {"channel": "live"})
    await publish(nodes[0], "live", 1)
    for client in clients:
        assert await heard_until(client, 1, "live") == [1]
    await pair.promote()
    told = [asyncio.create_task(client.receive()) for client in clients]
    for notice in await asyncio.gather(*told):
        assert (notice["notice"], notice["data"]) == ("gap", {"channel": "live", "reason": "lost"})
    await publish(nodes[0], "live", 2)
    for client in clients:
        assert await heard_until(client, 2, "live") == [2]
