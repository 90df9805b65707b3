"""What brokers promise, over each broker that there is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis_server import Proxy, RedisCluster3, RedisServer

import openapi_ws
from openapi_ws import CannotSubscribe, LocalBroker, SocketsManager, Websocket
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.testing import BrokerContract, Contract, HistoryContract, LiveContract
from openapi_ws.topics import Topic


class OneNode(Contract):
    """The process is the system: there is one node."""

    made: SocketsManager | None = None

    async def broker(self, topics: Sequence[Topic]) -> SocketsManager:
        if self.made is None or self.made.is_closing:
            self.made = self.make(topics)
            await self.made.start()
        return self.made

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        raise NotImplementedError


class TestSocketsManager(OneNode, BrokerContract):
    """All at once."""

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        return SocketsManager(topics)


class TestLocalBroker(OneNode, BrokerContract):
    """After a while."""

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        return LocalBroker(0.001, topics)


class QueueBroker(SocketsManager):
    """A broker as others write it: all goes through a queue, and knows of no topics."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(100)

    async def start(self) -> None:
        self.worker = asyncio.create_task(self.work())

    async def stop(self) -> None:
        self.worker.cancel()
        await asyncio.wait([self.worker])

    async def work(self) -> None:
        while True:
            channel, message = await self.queue.get()
            await self.channels(channel, message)

    async def publish(
        self, channel: str, event: str | None, data: Any = None, *, exclude: Websocket | None = None
    ) -> None:
        await self.queue.put((channel, {"event": event, "data": data}))

    async def subscribe(self, channel: str) -> None:
        if channel.startswith("private:"):
            raise CannotSubscribe


class TestQueueBroker(OneNode, LiveContract):
    """The live part is all it promises."""

    refused = "private:ada"

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        return QueueBroker()


class OverRedis(Contract):
    """Each node has a broker of its own; *url* is where it reaches Redis."""

    servers: Sequence[RedisServer]
    url: str

    @pytest.fixture(autouse=True)
    def _reach(self, redis_server: RedisServer) -> None:
        self.servers, self.url = [redis_server], redis_server.url

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        return RedisBroker(self.url, topics=topics)

    async def broker(self, topics: Sequence[Topic]) -> SocketsManager:
        broker = self.make(topics)
        await broker.start()
        return broker

    async def leftovers(self) -> Collection[object]:
        """Subscriptions, and keys that would stay for ever."""
        found = [await asyncio.to_thread(leftovers_of, server) for server in self.servers]
        return [each for left in found for each in left]


def leftovers_of(server: RedisServer) -> list[bytes]:
    forever = [key for key in server.ask("KEYS", "*") if server.ask("PTTL", key) == -1]
    kinds = ("CHANNELS", "SHARDCHANNELS")
    channels = [channel for kind in kinds for channel in server.ask("PUBSUB", kind)]
    # Orders to all processes are heard as long as a process runs.
    followed = [channel for channel in channels if not channel.endswith(b":ctl")]
    return [*followed, *forever]


class TestRedis(OverRedis, BrokerContract):
    """One server."""


class TestRedisCluster(OverRedis, BrokerContract):
    """Three masters, which share the channels."""

    @pytest.fixture(autouse=True)
    def _spread(self, _reach: None, redis_cluster: RedisCluster3) -> None:
        self.servers, self.url = redis_cluster.servers, redis_cluster.cluster_url


class TestRedisFarAway(OverRedis, BrokerContract):
    """One node is behind the other: it is answered later, and its subscriptions take longest."""

    @pytest.fixture(autouse=True)
    def _slow(self, _reach: None, redis_proxy: Proxy) -> None:
        redis_proxy.delay = 0.003
        redis_proxy.detain = lambda data: 0.01 if b"subscribe" in data.lower() else 0.0
        self.near, self.far = self.url, redis_proxy.url

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        self.near, self.far = self.far, self.near
        return RedisBroker(self.far, topics=topics)


class TestRedisCutOff(OverRedis, HistoryContract):
    """All links are cut again and again: what is promised of channels with history holds."""

    @pytest.fixture(autouse=True)
    def _cut(self, _reach: None, redis_proxy: Proxy) -> None:
        self.url, replies, next_cut = redis_proxy.url, 0, 20

        def alter(data: bytes) -> bytes:
            nonlocal replies, next_cut
            replies += 1
            if replies == next_cut:
                # Ever more seldom: who is cut off again at once waits longer each time, until nothing is in time.
                next_cut *= 2
                redis_proxy.cut()
            return data

        redis_proxy.alter = alter

    def make(self, topics: Sequence[Topic]) -> SocketsManager:
        return RedisBroker(self.url, topics=topics, timeout=5.0)


def test_the_contract_needs_no_pytest() -> None:
    """Neither it nor the package imports what only tests have."""
    program = "import sys, openapi_ws.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(openapi_ws.__file__).parent.parent)
