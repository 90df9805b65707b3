"""Who is present in all processes over Redis, and orders to all of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import web
from conftest import WAIT, Client, Serve, Served, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import RedisCluster3, RedisServer

import openapi_ws
from openapi_ws import Presence, Subscribe, Topic, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.members import Member, Members

SCRIPT = (Path(openapi_ws.__file__).parent / "brokers" / "presence.lua").read_text()


class Stream(WsPathMixin, Subscribe, Presence, web.View):
    """What clients may do."""

    member_linger = 0.2

    def identity(self) -> str | None:
        return self.request.query.get("user")

    async def member_info(self, channel: str) -> str:
        return f"{self.identity()}!"


class Node(RedisBroker):
    """Looks often for those who are gone."""

    member_ttl = 1.0
    member_refresh = 0.3

    async def fall(self) -> None:
        """End as a process does that is killed: nobody is told."""
        await self.stop()


class Sweeper(Node):
    """Renews nothing: what it finds it finds by sweeping."""

    member_ttl = 2.0
    member_refresh = 1000.0


@asynccontextmanager
async def running(server: RedisServer | RedisCluster3, kind: type[Node] = Node) -> AsyncIterator[Node]:
    url = server.cluster_url if isinstance(server, RedisCluster3) else server.url
    node = kind(url, topics=[Topic("room:{name}", presence=True)])
    node._is_managed = True
    await node.start()
    try:
        yield node
    finally:
        await node.departed()
        await node.stop()


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Ask until it holds."""
    async with asyncio.timeout(WAIT):
        while not await holds():
            await asyncio.sleep(0.01)


async def come(served: Served, user: str) -> Client:
    client = await served.connect(f"/stream?user={user}")
    await client.call("subscribe", {"channel": "room:a"})
    return client


async def present(client: Client) -> list[str]:
    answer = await client.call("presence", {"channel": "room:a"})
    return [member["user"] for member in answer["members"]]


# -- the script -----------------------------------------------------------------------------------------------


class Scripted:
    """``presence.lua`` with a clock that the test sets, and what it publishes in a list."""

    def __init__(self, port: int) -> None:
        self.redis = redis.Redis(port=port, protocol=2)
        set_clock = SCRIPT.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
        self.script = self.redis.register_script(set_clock)
        seconds, _ = self.redis.time()  # type: ignore[misc]  # redis-py types one class for both of its kinds
        self.start = seconds * 1000
        """Keys live by the clock of Redis all the same."""

    def __call__(self, now: int, step: str, *args: Any) -> tuple[list[list[str]], Any]:
        pipe = self.redis.pipeline()
        pipe.delete("clock", "told")
        pipe.rpush("clock", (self.start + now) // 1000, (self.start + now) % 1000 * 1000)
        pipe.execute()
        answer = self.script(keys=["z", "u", "n", "i"], args=[step, "told", "RPUSH", 1_000_000, *args])
        told: Any = self.redis.lrange("told", 0, -1)
        return [change for published in told for change in json.loads(published[1:])], answer


members = st.builds(
    Member,
    st.sampled_from(["c1", "c2", "c3"]),
    st.sampled_from(["ada", "bob", "Änne \U0001f600", 'a "b"']),
    st.sampled_from([b"1", b'{"a":[]}', '["\\u0000 \U0001f600"]'.encode()]),
)
steps = st.lists(
    st.tuples(st.sampled_from(["enter", "renew", "leave", "read"]), members, st.integers(0, 5), st.integers(0, 9)),
    min_size=5, max_size=30,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_script_does_what_members_do(redis_server: RedisServer, steps: list[tuple[str, Member, int, int]]) -> None:
    """The same is told, and the same is answered, at each step; no key is left without an end."""
    redis_server.ask("FLUSHALL")
    script, oracle, now = Scripted(redis_server.port), Members(), 0
    with script.redis:
        for step, member, passed, number in steps:
            now += passed
            name = member.connection, member.user
            if step == "leave":
                expected = oracle.leave(member, now, number)
                told, answer = script(now, "leave", *name, number)
            elif step == "read":
                expected = oracle.sweep(now)
                after = member.user if number % 2 else None
                told, answer = script(now, "read", number, "-" if after is None else f"({after}")
                page = [text for user, info in oracle.page(number, after) for text in (user.encode(), info)]
                assert answer[2] == page
            else:
                is_news = step == "enter"
                expected = oracle.enter(member, now, number + 1, is_news=is_news)
                told, answer = script(now, "enter", *name, member.info, number + 1, int(is_news))
            assert told == [[kind, user, info.decode()] for kind, user, info in expected]
            assert answer[:2] == list(oracle.counts())
            keys: Any = script.redis.keys("[zuni]")
            assert bool(keys) is (len(oracle) > 0)
            assert all(0 < script.redis.pttl(key) <= 1_000_200 for key in keys)  # type: ignore[operator]  # as above


def test_many_who_are_gone_at_once_are_told_in_parts(redis_server: RedisServer) -> None:
    """No step, and no published message, is of more than its share."""
    script = Scripted(redis_server.port)
    with script.redis:
        for number in range(1200):
            script(0, "enter", f"c{number}", f"user {number}", b"0", 10, 1)
        told, answer = script(10, "read", 0, "-")
        assert (len(told), answer[0]) == (1000, 200)
        assert script.redis.llen("told") == 20
        told, answer = script(10, "read", 0, "-")
        assert (len(told), answer[0]) == (200, 0)


# -- processes ------------------------------------------------------------------------------------------------


class Watcher:
    """A client that knows who is present from what it is told."""

    def __init__(self, client: Client) -> None:
        self.client, self.users = client, set[str]()

    async def watch(self) -> None:
        self.users = set(await present(self.client))
        while True:
            frame = self.client.pushed.pop(0) if self.client.pushed else json.loads(await self.client.ws.receive_str())
            users = {member["user"] for member in frame["data"]["members"]}
            self.users = self.users | users if frame["notice"] == "join" else self.users - users


@pytest.mark.parametrize("seed", range(4))
async def test_processes_agree_after_whatever_happens(serve: Serve, redis_server: RedisServer, seed: int) -> None:
    """Joins, leaves, lost links, killed processes: all see who is left, and their clients were told so."""
    chance = random.Random(seed)  # a test
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        served = [await serve(Stream, await stack.enter_async_context(running(redis_server))) for _ in range(3)]
        watchers = [Watcher(await come(one, f"watcher {number}")) for number, one in enumerate(served[:2])]
        tasks = [group.create_task(watcher.watch()) for watcher in watchers]
        clients: list[tuple[Client, str, Served]] = []
        for _ in range(40):
            step = chance.choice(["come", "come", "come", "unsubscribe", "close", "lose", "kill"])
            if step == "come" or not clients:
                user, one = f"user {chance.randrange(5)}", chance.choice(served)
                clients.append((await come(one, user), user, one))
            elif step == "kill":
                if chance.random() < 0.5:
                    continue
                dead = served.pop()
                clients = [entry for entry in clients if entry[2] is not dead]
                assert isinstance(dead.manager, Node)
                await dead.manager.fall()
                served.append(await serve(Stream, await stack.enter_async_context(running(redis_server))))
            else:
                client, _, _ = clients.pop(chance.randrange(len(clients)))
                if step == "unsubscribe":
                    await client.call("unsubscribe", {"channel": "room:a"})
                elif step == "close":
                    await client.ws.close()
                else:
                    assert client.ws._response.connection is not None
                    client.ws._response.connection.close()
        expected = {user for _, user, _ in clients} | {"watcher 0", "watcher 1"}
        counts = (len(clients) + 2, len(expected))

        async def agree() -> bool:
            pages = [await one.manager.members("room:a", limit=100) for one in served]
            seen = [await one.manager.member_counts("room:a") for one in served]
            return all({user for user, _ in page} == expected for page in pages) and seen == [counts] * 3

        await eventually(agree)
        await until(lambda: all(watcher.users == expected for watcher in watchers))
        assert all(redis_server.ask("PTTL", key) > 0 for key in redis_server.ask("KEYS", "*"))
        for task in tasks:
            task.cancel()
        for one in served:
            await one.close()
    await eventually(lambda: asyncio.to_thread(lambda: not redis_server.ask("KEYS", "*")))


async def test_clients_of_a_killed_process_leave_in_time(serve: Serve, redis_server: RedisServer) -> None:
    """When their time is up, whoever is still there finds that out by itself, and its clients are told."""
    async with running(redis_server, Sweeper) as node, running(redis_server) as doomed:
        ada = await come(await serve(Stream, node), "ada")
        _bob = await come(await serve(Stream, doomed), "bob")
        frame = await ada.receive()
        while {"user": "bob", "info": "bob!"} not in frame["data"]["members"]:
            frame = await ada.receive()
        await doomed.fall()
        assert (await ada.receive())["notice"] == "leave"


async def test_all_masters_of_a_cluster_know_who_is_present(serve: Serve, redis_cluster: RedisCluster3) -> None:
    """Each those of its channels; the keys of a channel, and what is told of it, are in one place."""
    async with running(redis_cluster) as one, running(redis_cluster) as other:
        ada = await (await serve(Stream, one)).connect("/stream?user=ada")
        bob = await (await serve(Stream, other)).connect("/stream?user=bob")
        rooms = {f"room:{number}" for number in range(24)}
        for room in rooms:
            await ada.call("subscribe", {"channel": room})
            await bob.call("subscribe", {"channel": room})
            assert await one.members(room, limit=10) == [("ada", b'"ada!"'), ("bob", b'"bob!"')]
        assert all(server.ask("KEYS", "ows:pz:*") for server in redis_cluster.servers)
        for notice in ("join", "leave"):
            told = set[str]()
            while told < rooms:
                frame = ada.pushed.pop(0) if ada.pushed else await ada.receive()
                if frame["notice"] == notice and "bob" in [member["user"] for member in frame["data"]["members"]]:
                    told.add(frame["data"]["channel"])
            await bob.ws.close()
        await other.send_to("ada", "mail")
        assert (await ada.message())["channel"] == "@user"


async def test_who_redis_forgets_is_present_again(serve: Serve, redis_server: RedisServer) -> None:
    """Each process says from time to time who its clients are."""
    async with running(redis_server) as one, running(redis_server) as other:
        ada = await come(await serve(Stream, one), "ada")
        bob = await come(await serve(Stream, other), "bob")
        redis_server.ask("FLUSHALL")

        async def are_back() -> bool:
            return await present(ada) == await present(bob) == ["ada", "bob"]

        await eventually(are_back)


async def test_clients_are_told_to_ask_when_they_may_have_missed_a_change(
    serve: Serve, redis_server: RedisServer
) -> None:
    """While the link to Redis is cut nobody hears who comes and goes."""
    async with running(redis_server) as node:
        ada = await come(await serve(Stream, node), "ada")
        assert (await ada.receive())["notice"] == "join"
        redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        notices = [await ada.receive() for _ in range(2)]
        assert {"notice": "presence", "data": {"channel": "room:a"}} in notices


async def test_without_redis_nobody_comes_and_who_leaves_is_gone_in_time(serve: Serve, own_redis: RedisServer) -> None:
    """A subscription that cannot be told of fails, and leaves nothing behind; a leave never waits for Redis."""
    async with running(own_redis) as node:
        served = await serve(Stream, node)
        ada, bob = await come(served, "ada"), await served.connect("/stream?user=bob")
        (websocket,) = (ws for ws in node.sockets if ws.identity == "bob")
        await node.channels.register("room:a", "*", websocket)  # so that there is nothing to take back but presence
        own_redis.kill()
        assert (await bob.error("subscribe", {"channel": "room:a"}))["code"] == -32012
        assert len(list(node.roster)) == 1
        await ada.ws.close()
        await until(lambda: not len(node.roster) and not node.roster.departures)
        await own_redis.start()

        async def is_empty() -> bool:
            return node.ready and await node.member_counts("room:a") == (0, 0)

        await eventually(is_empty)


# -- orders ---------------------------------------------------------------------------------------------------


async def test_one_user_is_reached_in_every_process(serve: Serve, redis_server: RedisServer) -> None:
    """Whichever process sends, or closes; how many it were nobody knows."""
    async with running(redis_server) as one, running(redis_server) as other:
        ada = await (await serve(Stream, one)).connect("/stream?user=ada")
        tab = await (await serve(Stream, other)).connect("/stream?user=ada")
        assert await one.send_to("ada", "mail", {"number": 2**70}) is None
        for client in (ada, tab):
            assert await client.receive() == {"channel": "@user", "event": "mail", "data": {"number": 2**70}}
        assert await other.close(identity="ada", code=4100) is None
        assert [await ada.closed(), await tab.closed()] == [4100, 4100]


async def test_what_is_no_order_is_counted_and_dropped(serve: Serve, redis_server: RedisServer) -> None:
    """Nor are changes of members that are none; what comes after is heard."""
    async with running(redis_server) as node:
        ada = await come(await serve(Stream, node), "ada")
        channel = node.store.channel("room:a")
        for what in ('J[["sing","ada","1"]]', 'J[["join","ada","}"]]', 'J[["join",1,"1"]]', "J[1]", "J"):
            redis_server.ask("PUBLISH", channel, what)
        for what in ("sing", "[]"):
            redis_server.ask("PUBLISH", "ows:ctl", what)
        await node.send_to("ada", "mail")
        while "channel" not in (frame := await ada.receive()):
            assert frame["notice"] == "join"
        assert node.channels.dropped == 7
