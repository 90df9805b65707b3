"""The broker over a real Redis: what users rely on while it works, while it is away, and when all have left.

``CYCLES=1000`` shortens the long test; the default is what the project promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from conftest import WAIT, Client, Serve, Served, until
from redis_server import Proxy, RedisServer

from openapi_ws import Publish, Subscribe, WsPathMixin, ws_rpc
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.errors import BrokerUnavailable
from openapi_ws.history import History
from openapi_ws.topics import Topic

CYCLES = int(os.environ.get("CYCLES", "10000"))
WORKERS = 20
TOPICS = [Topic("log:{room}", history=History(size=10, ttl=60), publish=True), Topic("live:{room}", publish=True)]
KINDS = pytest.mark.parametrize("kind", ["log", "live"])


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """What clients may do."""

    max_calls = 100

    @ws_rpc
    async def ws_rpc_echo(self, payload: int) -> int:
        """Answer what was said."""
        return payload


Start = Callable[..., Awaitable[Served]]


@pytest.fixture
async def node(serve: Serve) -> AsyncIterator[Start]:
    """Starts servers of their own broker; all ends with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(url: str, **attributes: Any) -> Served:
            broker = RedisBroker(url, topics=TOPICS)
            for name, value in attributes.items():
                setattr(broker, name, value)
            await broker.start()
            stack.push_async_callback(broker.stop)
            return await serve(Stream, broker)

        yield start


async def asked(server: RedisServer, condition: Callable[[RedisServer], object]) -> None:
    """Return when the server, asked again and again, fulfils *condition*."""
    async with asyncio.timeout(WAIT):
        while not await asyncio.to_thread(condition, server):
            pass


def followed(server: RedisServer) -> Any:
    """Channels of clients that somebody follows; orders to all processes are heard as long as a process runs."""
    return server.ask("PUBSUB", "CHANNELS", "ows:c:*")


def calls(server: RedisServer, command: str) -> int:
    """How often *command* ran."""
    return int(server.ask("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def say(client: Client, channel: str, data: object) -> dict[str, Any]:
    return await client.ask("publish", {"channel": channel, "event": "e", "data": data})


@KINDS
async def test_what_another_node_publishes_after_a_subscribe_arrives(
    redis_server: RedisServer, node: Start, kind: str
) -> None:
    """10,000 times, on new channels and on such as were just left: the first message after the answer is not missed."""
    here, there = await node(redis_server.url), await node(redis_server.url)
    chance, numbers = random.Random(3), iter(range(CYCLES))

    async def work(worker: int) -> None:
        client = await here.connect()
        for number in numbers:
            channel = f"{kind}:{chance.choice([f'old {worker}', f'shared {worker % 3}', f'new {number}'])}"
            channel = channel.replace(" ", "-")
            await client.call("subscribe", {"channel": channel})
            client.pushed.clear()
            await there.manager.publish(channel, "e", number)
            while (frame := await client.receive())["data"] != number:
                assert "notice" not in frame
            await client.call("unsubscribe", {"channel": channel})
            client.pushed.clear()

    await asyncio.gather(*(work(worker) for worker in range(WORKERS)))


@KINDS
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_while_redis_is_away_only_what_needs_it_fails(
    own_redis: RedisServer, node: Start, kind: str, fault: str
) -> None:
    """Publish fails with -32012 within a second, other calls go on, `ready` is false; 2 s after Redis all is back."""
    served = await node(own_redis.url)
    listener, speaker = await served.connect(), await served.connect()
    await listener.call("subscribe", {"channel": f"{kind}:a"})
    assert served.manager.ready
    getattr(own_redis, fault)()
    loop = asyncio.get_running_loop()
    for number in range(2):
        began = loop.time()
        said = asyncio.create_task(say(speaker, f"{kind}:a", number))
        assert await listener.call("echo", number) == number
        assert not said.done()
        answer = await said
        assert answer["error"] == {"message": "Broker unavailable", "code": -32012}
        assert loop.time() - began < 1.25  # a second, and what this machine takes to say so
    answer = await speaker.ask("subscribe", {"channel": f"{kind}:b"})
    assert answer["error"]["code"] == -32012
    assert not served.manager.ready
    if fault == "kill":
        await own_redis.start()
    else:
        own_redis.thaw()
    async with asyncio.timeout(2):
        await until(lambda: served.manager.ready)
        assert "response" in await say(speaker, f"{kind}:a", "back")
        while (await listener.receive()).get("data") != "back":
            pass
    assert (await speaker.call("subscribe", {"channel": f"{kind}:b"}))["subscribed"] == {f"{kind}:b": ["*"]}


@pytest.mark.parametrize(
    "refusal",
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")],
    ids=lambda refusal: str(refusal[0]),
)
async def test_a_redis_that_takes_no_writes_is_not_available(
    own_redis: RedisServer, node: Start, refusal: tuple[str, str, str]
) -> None:
    """Out of memory, or without its replicas: publish says -32012, not that something here is wrong; then it works."""
    served = await node(own_redis.url)
    client = await served.connect()
    await client.call("subscribe", {"channel": "log:a"})
    setting, refusing, taking = refusal
    own_redis.ask("CONFIG", "SET", setting, refusing)
    assert (await say(client, "log:a", 1))["error"]["code"] == -32012
    own_redis.ask("CONFIG", "SET", setting, taking)
    assert "response" in await say(client, "log:a", 2)
    assert (await client.message())["data"] == 2


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_lost_reply_publishes_once(
    redis_server: RedisServer, redis_proxy: Proxy, node: Start, key: str | None
) -> None:
    """The message is found by its nonce, or by its key, and the publisher is told where it is."""
    served = await node(redis_proxy.url)
    other = await node(redis_server.url)
    client = await other.connect()
    await client.call("subscribe", {"channel": "log:a"})
    for number in range(2):
        redis_proxy.swallow_reply()
        position = await served.manager.publish("log:a", "e", number, key=key and f"{key}{number}")
        assert redis_proxy.swallowed.is_set()
        message = await client.message()
        assert (message["data"], message["position"]) == (number, position)
        assert int(str(position).split(".")[1]) == number + 1


FOREIGN = (
    b"", b"x", b"L", b"P", b"L{}", b"L{}\n", b"Lx\n1", b'L{"event":1}\n1', b'L{"event":"e"}\n', b"L\xff\n1",
    b"Pe.1.n\n{}", b"Pe.1.n.\xff\n{}", b'Pe.x.n.\n{"event":"e"}\n1', b'P..\n{"event":"e"}\n1', b'Q{"event":"e"}\n1',
    b'{"event":"e","data":1}', b"L" + b"x" * (1024 * 1024 + 2000),
)  # fmt: skip


@KINDS
@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda data: repr(data[:20]))
async def test_a_foreign_message_costs_nobody_anything(
    redis_server: RedisServer, node: Start, kind: str, foreign: bytes
) -> None:
    """It is counted and dropped; what is published next arrives, and there is no gap."""
    served = await node(redis_server.url)
    client = await served.connect()
    await client.call("subscribe", {"channel": f"{kind}:a"})
    (channel,) = followed(redis_server)
    redis_server.ask("PUBLISH", channel, foreign)
    await served.manager.publish(f"{kind}:a", "e", "next")
    assert (await client.message())["data"] == "next"
    assert served.manager.channels.dropped == 1
    assert served.manager.server_info()["dropped"]["broker"] == 1


async def test_a_place_that_leads_nowhere_costs_nobody_anything(redis_server: RedisServer, node: Start) -> None:
    """A message that says it is of this history and is not: Redis is asked, and has it not."""
    served = await node(redis_server.url)
    client = await served.connect()
    await client.call("subscribe", {"channel": "log:a"})
    await served.manager.publish("log:a", "e", 1)
    assert (await client.message())["data"] == 1
    (channel,) = followed(redis_server)
    redis_server.ask("PUBLISH", channel, b'Pe.9.n.m\n{"event":"e"}\n2')
    await served.manager.publish("log:a", "e", 3)
    assert (await client.message())["data"] == 3


async def test_a_lost_last_message_is_found(redis_server: RedisServer, redis_proxy: Proxy, node: Start) -> None:
    """Nothing comes after it that would show the gap: the position is compared now and then."""
    lost = asyncio.Event()

    def lose(data: bytes) -> bytes:
        if not data.startswith(b"*3\r\n$7\r\nmessage\r\n") or lost.is_set():
            return data
        lost.set()
        return b""

    served = await node(redis_proxy.url, silence=0.2)
    other = await node(redis_server.url)
    client = await served.connect()
    await client.call("subscribe", {"channel": "log:a"})
    redis_proxy.alter = lose
    await other.manager.publish("log:a", "e", "last")
    await lost.wait()
    assert (await client.message())["data"] == "last"
    await other.manager.publish("log:a", "e", "next")
    assert (await client.message())["data"] == "next"


async def test_what_is_published_while_the_link_is_cut_comes_unasked(redis_server: RedisServer, node: Start) -> None:
    """Though nothing follows that shows the gap: clients notice nothing, or get a notice where nothing is kept."""
    served, other = await node(redis_server.url), await node(redis_server.url)
    log, live = await served.connect(), await served.connect()
    await log.call("subscribe", {"channel": "log:a"})
    await live.call("subscribe", {"channel": "live:a"})
    for number in range(3):
        await until(lambda: served.manager.ready and other.manager.ready)
        redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await other.manager.publish("log:a", "e", number)
        await other.manager.publish("live:a", "e", number)
        assert (await log.message())["data"] == number
        notice = await live.receive()
        assert (notice["notice"], notice["data"]) == ("gap", {"channel": "live:a", "reason": "lost"})


@KINDS
async def test_a_channel_left_and_joined_within_a_second_stays_subscribed(
    redis_server: RedisServer, node: Start, kind: str
) -> None:
    """A page that is reloaded costs Redis nothing; what is left for good is unsubscribed from a second later."""
    served = await node(redis_server.url)
    redis_server.ask("CONFIG", "RESETSTAT")
    for _ in range(5):
        client = await served.connect()
        await client.call("subscribe", {"channel": f"{kind}:a"})
        await client.ws.close()
        await served.at_rest()
    assert (calls(redis_server, "subscribe"), calls(redis_server, "unsubscribe")) == (1, 0)
    await asked(redis_server, lambda server: not followed(server))
    assert (calls(redis_server, "subscribe"), calls(redis_server, "unsubscribe")) == (1, 1)


async def test_at_rest_nothing_is_left(redis_server: RedisServer, node: Start) -> None:
    """Of clients that come and go as they like: no subscription, no task, no feed, no key without an end."""
    tasks = len(asyncio.all_tasks())
    connections = redis_server.ask("INFO", "clients")["connected_clients"]
    served = await node(redis_server.url)
    broker: Any = served.manager
    chance = random.Random(4)

    async def visit() -> None:
        client = await served.connect()
        for _ in range(chance.randrange(10)):
            channel = f"{chance.choice(['log', 'live'])}:{chance.randrange(5)}"
            method = chance.choice(["subscribe", "unsubscribe", "publish", "history"])
            await client.send({"id": 1, "method": method, "payload": {"channel": channel}})
            if chance.random() < 0.7:
                await client.receive()
        await client.ws.close()

    for _ in range(10):
        await asyncio.gather(*(visit() for _ in range(20)))
    await served.at_rest()
    await asked(redis_server, lambda server: not followed(server))
    assert not broker._feeds
    for key in redis_server.ask("KEYS", "*"):
        assert redis_server.ask("PTTL", key) > 0, key
    await broker.stop()
    await served.close()
    assert not broker._tasks
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await asked(redis_server, lambda server: server.ask("INFO", "clients")["connected_clients"] == connections)


async def test_who_waits_for_redis_is_answered_when_the_broker_stops(redis_proxy: Proxy, node: Start) -> None:
    """Not left to the time-out: no task outlives the broker."""
    served = await node(redis_proxy.url)
    served.manager.store._timeout = WAIT  # type: ignore[attr-defined]
    tasks = asyncio.all_tasks()
    redis_proxy.is_silent = True
    reads = [asyncio.create_task(served.manager.read("log:a", History(), limit=1)) for _ in range(3)]
    await until(lambda: len(asyncio.all_tasks()) > len(tasks) + len(reads))
    await served.manager.stop()
    assert not asyncio.all_tasks() - tasks - set(reads)
    assert {type(error) for error in await asyncio.gather(*reads, return_exceptions=True)} == {BrokerUnavailable}
