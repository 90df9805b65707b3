"""Many servers: masters of a real Redis Cluster that are killed, whose slots move; a master behind Sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis_server import RedisCluster3, RedisServer, free_port

from openapi_ws import SetupError
from openapi_ws.brokers.address import connect
from openapi_ws.brokers.cluster import Cluster, fleet_of
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.errors import BrokerUnavailable
from openapi_ws.history import History
from openapi_ws.topics import Topic

WAIT = 20.0
"""Seconds that bound a hang; they measure nothing."""
TOPICS = [Topic("kept:{name}", history=History(size=10_000)), Topic("live:{name}")]
NAMES = [str(number) for number in range(24)]


class Node:
    """A broker, and what its listeners have heard, by channel."""

    def __init__(self, broker: RedisBroker) -> None:
        self.broker = broker
        self.heard: dict[str, list[Any]] = {}
        self._news = asyncio.Event()

    async def listen(self, *channels: str) -> None:
        await asyncio.gather(*(self.broker.channels.register(channel, "*", self._hear) for channel in channels))

    async def _hear(self, channel: str, event: str, data: Any) -> None:
        self.heard.setdefault(channel, []).append(data)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def slot(self, channel: str) -> int:
        return int(key_slot(self.broker.store.channel(channel)))


@contextlib.asynccontextmanager
async def nodes(number: int = 2, /, **options: Any) -> AsyncIterator[list[Node]]:
    """Brokers of one system, stopped at the end."""
    brokers = [RedisBroker(topics=TOPICS, **options) for _ in range(number)]
    async with contextlib.AsyncExitStack() as stack:
        for broker in brokers:
            stack.push_async_callback(broker.stop)
            await broker.start()
        yield [Node(broker) for broker in brokers]


async def settled(condition: Callable[[], object]) -> None:
    """Return when what nobody tells is so."""
    async with asyncio.timeout(WAIT):
        while not await asyncio.to_thread(condition):
            await asyncio.to_thread(time.sleep, 0.01)


def clients(server: RedisServer) -> int:
    """Connections of others."""
    return int(server.ask("INFO", "clients")["connected_clients"]) - 1


def shards(server: RedisServer) -> set[bytes]:
    return set(server.ask("PUBSUB", "SHARDCHANNELS"))


async def test_all_masters_carry_messages_and_histories(redis_cluster: RedisCluster3) -> None:
    """Channels are spread over the masters; what one process publishes another hears, and anybody may read again."""
    channels = [f"{kind}:{name}" for kind in ("kept", "live") for name in NAMES]
    async with nodes(url=redis_cluster.cluster_url) as (here, there):
        assert here.broker.ready
        assert {redis_cluster.owner(here.slot(channel)) for channel in channels} == set(redis_cluster.servers)
        await there.listen(*channels)
        for number in range(5):
            await asyncio.gather(*(here.broker.publish(channel, "e", number) for channel in channels))
        await there.until(lambda: sum(map(len, there.heard.values())) == 5 * len(channels))
        assert there.heard == {channel: [0, 1, 2, 3, 4] for channel in channels}
        assert all(shards(server) for server in redis_cluster.servers)
        history = History(size=10_000)
        for name in NAMES:
            page = await here.broker.read(f"kept:{name}", history, limit=3, reverse=True)
            assert [entry.position.offset for entry in page.entries] == [5, 4, 3]
        assert await here.broker.publish("kept:1", "e", 5, key="k") == await there.broker.publish(
            "kept:1", "e", 5, key="k"
        )


async def test_a_dead_master_costs_its_own_channels_only(own_cluster: RedisCluster3) -> None:
    """Those fail with -32012 within a second, the others go on; when it is back all is as before, without a hole."""
    async with nodes(url=own_cluster.cluster_url) as (here, there):
        victim = own_cluster.servers[1]
        kept = [f"kept:{name}" for name in NAMES]
        dead = [channel for channel in kept if own_cluster.owner(here.slot(channel)) is victim]
        alive = [channel for channel in kept if channel not in dead]
        await there.listen(*kept)
        await asyncio.gather(*(here.broker.publish(channel, "e", 0) for channel in kept))
        victim.kill()
        began = time.monotonic()
        replies = await asyncio.gather(*(here.broker.publish(c, "e", 1) for c in dead), return_exceptions=True)
        assert time.monotonic() - began < 1.5
        assert [type(reply) for reply in replies] == [BrokerUnavailable] * len(dead)
        assert not here.broker.ready
        for number in range(1, 20):
            await asyncio.gather(*(here.broker.publish(channel, "e", number) for channel in alive))
        other = next(name for name in (f"live:{n}" for n in range(99)) if own_cluster.owner(here.slot(name)) is victim)
        with pytest.raises(BrokerUnavailable):
            await there.listen(other)
        await victim.start()
        await settled(lambda: here.broker.ready and there.broker.ready)
        await publish_at_last(here, dead, 1)
        await there.until(lambda: all(there.heard[channel][-1:] == [1] for channel in dead))
        await there.until(lambda: all(there.heard[channel][-1:] == [19] for channel in alive))
        assert all(there.heard[channel] == list(range(20)) for channel in alive)
        assert all(there.heard[channel] == [0, 1] for channel in dead)


async def publish_at_last(node: Node, channels: list[str], data: Any) -> None:
    """Publish as who wants it to succeed does: again, with the same key."""
    async with asyncio.timeout(WAIT):
        for channel in channels:
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    await node.broker.publish(channel, "e", data, key=f"{channel} {data}")
                    break


@pytest.mark.parametrize("kind", ["kept", "live"])
async def test_a_slot_moves_and_messages_go_on(own_cluster: RedisCluster3, kind: str) -> None:
    """While a slot goes to another master and back, a channel of it stays in order; what it misses is made up for."""
    async with nodes(url=own_cluster.cluster_url) as (here, there):
        channel = f"{kind}:1"
        slot = here.slot(channel)
        source = own_cluster.owner(slot)
        target = next(server for server in own_cluster.servers if server is not source)
        gaps: list[str] = []
        there.broker.channels.tell = lambda channel, notice: gaps.append(channel)  # type: ignore[method-assign]
        await there.listen(channel)
        sent: list[int] = []
        is_over = asyncio.Event()

        async def publish() -> None:
            while not is_over.is_set() or len(sent) < 100:
                number = sent[-1] + 1 if sent else 0
                key = f"{number}" if kind == "kept" else None
                with contextlib.suppress(BrokerUnavailable):
                    await here.broker.publish(channel, "e", number, key=key)
                    sent.append(number)

        publisher = asyncio.create_task(publish())
        for _ in range(3):
            goal = len(sent) + 50
            await there.until(lambda goal=goal: len(sent) > goal)
            await asyncio.to_thread(own_cluster.move_slot, slot, source, target)
            await settled(lambda server=target: b"".join(shards(server)).endswith(channel.encode()))
            source, target = target, source
        is_over.set()
        await publisher
        await there.broker.subscribe(channel)
        await there.until(lambda: there.heard[channel][-1] == sent[-1])
        heard = there.heard[channel]
        assert heard == sorted(set(heard))
        if kind == "kept":
            assert heard == sent
            assert not gaps
        else:
            assert heard == sent or gaps
        assert await asyncio.to_thread(shards, target) == set()
        assert here.broker.ready


async def test_a_master_without_slots_is_left(own_cluster: RedisCluster3) -> None:
    """Its channels are with another then, and nobody is connected to it any more."""
    lost: list[set[bytes]] = []
    heard: list[bytes] = []
    client, _ = connect(own_cluster.cluster_url, timeout=1)
    fleet = fleet_of(client, on_message=lambda _, data: heard.append(data), on_lost=lost.append, timeout=1)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(fleet.stop)
        await fleet.start()
        assert fleet.is_up
        first, second, third = own_cluster.servers
        channel = b"{%d}" % next(n for n in range(99) if own_cluster.owner(key_slot(b"%d" % n)) is third)
        await fleet.subscribe(channel)
        await asyncio.to_thread(own_cluster.give_all, third, first)
        await settled(lambda: lost == [{channel}])
        assert await fleet.of(channel).run("SPUBLISH", channel, "x") == 1
        await settled(lambda: heard == [b"x"])
        await settled(lambda: clients(third) == 0)
        assert clients(second) == 2


async def test_a_replica_that_takes_over_is_followed(own_cluster: RedisCluster3) -> None:
    """Its master is dead: the channels are with the replica some seconds later, and nothing is missing."""
    victim = own_cluster.servers[0]
    replica = RedisServer(**own_cluster.options, cluster_port=str(free_port()), cluster_replica_validity_factor="0")
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(replica.stop)
        await replica.start()
        await asyncio.to_thread(own_cluster.add_replica, replica, victim)
        here, there = await stack.enter_async_context(nodes(url=own_cluster.cluster_url))
        kept = [channel for channel in map("kept:{}".format, NAMES) if own_cluster.owner(here.slot(channel)) is victim]
        await there.listen(*kept)
        await publish_at_last(here, kept, 0)
        await settled(lambda: is_copied(victim, replica))
        victim.kill()
        await publish_at_last(here, kept, 1)
        await there.until(lambda: all(there.heard[channel][-1] == 1 for channel in kept))
        assert all(there.heard[channel] == [0, 1] for channel in kept)
        assert shards(replica) == {there.broker.store.channel(channel) for channel in kept}
        await settled(lambda: here.broker.ready and there.broker.ready)


async def test_a_cluster_that_comes_up_late_is_found(own_cluster: RedisCluster3) -> None:
    """Start waits its time; what is asked meanwhile fails; one node that answers is enough to find the others."""
    for server in own_cluster.servers:
        server.kill()
    async with nodes(1, url=own_cluster.cluster_url, timeout=0.3) as (node,):
        assert not node.broker.ready
        with pytest.raises(BrokerUnavailable):
            await node.broker.publish("live:1", "e", 1)
        with pytest.raises(BrokerUnavailable):
            await node.listen("live:1")
        await asyncio.gather(*(server.start() for server in own_cluster.servers))
        await settled(lambda: node.broker.ready)
        await node.listen("live:1")
        await node.broker.publish("live:1", "e", 1)
        await node.until(lambda: node.heard == {"live:1": [1]})


async def test_a_client_of_ones_own_is_not_connected(redis_cluster: RedisCluster3) -> None:
    """Of `RedisCluster` come address and credentials, and one node tells of the others."""
    client = RedisCluster(host="127.0.0.1", port=redis_cluster.servers[2].port)
    async with nodes(client=client) as (here, there):
        await there.listen(*(f"live:{name}" for name in NAMES))
        await asyncio.gather(*(here.broker.publish(f"live:{name}", "e", name) for name in NAMES))
        await there.until(lambda: len(there.heard) == len(NAMES))
        assert isinstance(here.broker._fleet, Cluster)
        assert not client.get_nodes()


async def test_a_stopped_fleet_leaves_nothing(redis_cluster: RedisCluster3) -> None:
    """No task, no connection, no subscription."""
    before = asyncio.all_tasks()
    async with nodes(1, url=redis_cluster.cluster_url) as (node,):
        await node.listen(*(f"live:{name}" for name in NAMES))
    assert asyncio.all_tasks() == before
    for server in redis_cluster.servers:
        await settled(lambda server=server: clients(server) == 0)


def is_copied(master: RedisServer, replica: RedisServer) -> bool:
    """Nothing was written that the replica does not have: without this, it would be a fork, and rightly so."""
    there = replica.ask("INFO", "replication")["slave_repl_offset"]
    return bool(there == master.ask("INFO", "replication")["master_repl_offset"])


async def test_the_master_that_sentinels_name_is_followed(own_redis: RedisServer) -> None:
    """After a failover messages go on over the new master, in order, each once."""
    replica = RedisServer(replicaof=f"127.0.0.1 {own_redis.port}", appendonly="yes")
    sentinel = RedisServer(is_sentinel_of=own_redis)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(replica.stop)
        await replica.start()
        await settled(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        stack.callback(sentinel.stop)
        await sentinel.start()
        await settled(lambda: sentinel.ask("SENTINEL", "REPLICAS", "mymaster"))
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/2"
        here, there = await stack.enter_async_context(nodes(url=url))
        await there.listen("kept:1")
        for number in range(10):
            await here.broker.publish("kept:1", "e", number)
        await settled(lambda: is_copied(own_redis, replica))
        own_redis.kill()
        await publish_at_last(here, ["kept:1"], 10)
        await there.until(lambda: there.heard["kept:1"][-1] == 10)
        assert there.heard["kept:1"] == list(range(11))
        assert replica.ask("INFO", "keyspace")["db2"]


# -- addresses ------------------------------------------------------------------------------------------------


def test_a_url_names_the_nodes_of_a_cluster() -> None:
    """User, password and options are for all of them."""
    client, own = connect("rediss+cluster://me:s%40c@127.0.0.1:7000,[::1],10.0.0.1:7?ssl_cert_reqs=none", timeout=1)
    assert isinstance(client, RedisCluster)
    assert not own
    found = client.nodes_manager.startup_nodes.values()
    assert {(node.host, node.port) for node in found} == {("127.0.0.1", 7000), ("::1", 6379), ("10.0.0.1", 7)}
    for node in found:
        assert node.connection_kwargs["username"] == "me"
        assert node.connection_kwargs["password"] == "s@c"
        assert node.connection_kwargs["ssl_cert_reqs"] == "none"
        assert node.connection_class.__name__ == "SSLConnection"


def test_a_url_names_sentinels_and_their_master() -> None:
    """The password is the master's; the Sentinels' own is an option."""
    url = "redis+sentinel://me:secret@h1:1,h2/mymaster/3?sentinel_password=other&health_check_interval=2"
    client, own = connect(url, timeout=1)
    pool: Any = client.connection_pool  # type: ignore[union-attr]
    assert pool.service_name == "mymaster"
    settings = pool.connection_kwargs
    assert (settings["username"], settings["password"], settings["db"]) == ("me", "secret", 3)
    assert len(own) == 3
    places = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(place["host"], place["port"], place["password"]) for place in places] == [
        ("h1", 1, "other"),
        ("h2", 26379, "other"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis+other://h",
        "http+cluster://h",
        "redis+cluster://",
        "redis+cluster://h,",
        "redis+cluster://h:x",
        "redis+cluster://h/1",
        "redis+cluster://h?what=1",
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel://h:0x/m",
        "",
    ],
)
def test_what_is_no_address_of_redis_is_refused(url: str) -> None:
    """When the broker is made, and with examples of what is one."""
    with pytest.raises(SetupError, match=r"redis\+cluster://h1:7000"):
        RedisBroker(url)
