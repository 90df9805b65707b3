"""What Redis keeps is what a `Log` in memory would keep: Lua against Python, on a real server.

``STEPS=1000`` shortens the walk; the default is what the project promises.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis_server import Proxy, RedisServer

from openapi_ws.brokers.fleet import Fleet
from openapi_ws.brokers.store import Store
from openapi_ws.history import META_TTL, History, Log, Page, Position
from openapi_ws.protocol import Message

STEPS = int(os.environ.get("STEPS", "10000"))
SEED = int(os.environ.get("SEED", "5"))
HISTORY = History(size=8, ttl=200)
TICK = 70
"""Seconds that a step of the clock takes: no lifetime is a multiple of it, so that milliseconds decide nothing."""
CHANNELS = ("a", "b", "c")

# Redis has no clock that a test may set: instead of time going on, each key is brought nearer to its end.
ADVANCE = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key) - tonumber(ARGV[1])
  if left <= 0 then redis.call('DEL', key) else redis.call('PEXPIRE', key, left) end
end
"""


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[Store]:
    client = Redis.from_url(redis_server.url)
    fleet = Fleet(client, on_message=lambda *_: None, on_lost=lambda _: None, timeout=5)
    await fleet.start()
    store = Store(fleet, "p", timeout=5, max_message_bytes=1 << 20)
    yield store
    await fleet.stop()
    await store.stop()
    await client.aclose()


class Walk:
    """Does the same to Redis and to logs in memory, and compares all that they answer."""

    def __init__(self, store: Store, server: RedisServer, chance: random.Random) -> None:
        self.store, self.chance = store, chance
        self.now = 0.0
        self.logs: dict[str, Log] = {}
        self.epochs: set[str] = set()
        self.seen: dict[str, list[Position]] = {channel: [] for channel in CHANNELS}
        self.replica: tuple[dict[str, Log], list[tuple[bytes, bytes, float]]] = {}, []
        self.redis = Redis.from_url(server.url, protocol=2)
        self.done: list[str] = []
        self.answers: Counter[str] = Counter()

    def log(self, channel: str, epoch: str) -> Log:
        """The log that answers now; where there was none, Redis has named a new epoch."""
        log = self.logs.get(channel)
        if log is None or log.is_spent(self.now):
            assert epoch not in self.epochs, "an epoch came back"
            log = self.logs[channel] = Log(HISTORY, epoch)
        self.epochs.add(epoch)
        return log

    async def publish(self, channel: str) -> None:
        key = self.chance.choice([None, None, "k1", "k2", "k3"])
        message = Message.of(channel, "e", self.chance.randrange(1000))
        position = await self.store.append(message, HISTORY, key)
        log = self.log(channel, position.epoch)
        assert log.publish(message.pack(), position.nonce, self.now, key=key)[0] == position
        self.remember(channel, position)

    def remember(self, channel: str, position: Position) -> None:
        """Readers come back with what they were told; some with what no server has said."""
        seen = self.seen[channel]
        seen.append(position)
        del seen[:-40]

    def since(self, channel: str) -> Position | None:
        if self.chance.random() < 0.1 or not self.seen[channel]:
            return None
        position = self.chance.choice(self.seen[channel][-self.chance.choice([5, 40]) :])
        if self.chance.random() < 0.1 and position.offset:
            position = Position(position.epoch, position.offset + self.chance.choice([-1, 1, 5]), "f")
        return position if position.offset else Position(position.epoch, 0, "")

    async def recover(self, channel: str) -> None:
        since, limit, partial = self.since(channel), self.chance.choice([1, 3, 8, 300]), self.chance.random() < 0.5
        page = await self.store.recover(channel, since, limit, partial=partial)
        log = self.log(channel, page.top.epoch)
        self.agree(channel, page, log.recover(since, limit, self.now, partial=partial))

    async def read(self, channel: str) -> None:
        since, limit, reverse = self.since(channel), self.chance.choice([1, 3, 8, 300]), self.chance.random() < 0.6
        page = await self.store.read(channel, limit=limit, since=since, reverse=reverse)
        log = self.log(channel, page.top.epoch)
        self.agree(channel, page, log.read(limit=limit, now=self.now, since=since, reverse=reverse))

    def agree(self, channel: str, redis: Page, memory: Page) -> None:
        assert redis == memory
        self.answers[redis.status] += 1
        self.remember(channel, redis.top)

    async def wait(self, _: str) -> None:
        """Let time go on: a little, until the messages are gone, or until even the epoch is."""
        seconds = self.chance.choice([TICK] * 6 + [TICK * 3] * 3 + [TICK * (int(META_TTL) // TICK + 1)])
        self.now += seconds
        await self.redis.eval(ADVANCE, 0, seconds * 1000)

    async def trim(self, channel: str) -> None:
        """Lose the messages and keep the rest, as an eviction does."""
        await self.redis.delete(self.store.key("s", channel))
        if channel in self.logs:
            self.logs[channel]._entries.clear()

    async def forget(self, channel: str) -> None:
        """Lose all but the messages, as an eviction does, too."""
        await self.redis.delete(*await self.redis.keys(f"p:[mi]:*:{channel}*"), "none")
        self.logs.pop(channel, None)

    async def flush(self, _: str) -> None:
        await self.redis.flushall()
        self.logs.clear()

    async def replicate(self, _: str) -> None:
        """Remember what a replica has that lags from now on."""
        kept = []
        for key in await self.redis.keys("*"):
            left = await self.redis.pttl(key)
            assert left > 0, "a key without an end"
            kept.append((key, await self.redis.dump(key), self.now + left / 1000))
        self.replica = copy.deepcopy(self.logs), kept

    async def fail_over(self, _: str) -> None:
        """Go on with what the replica has."""
        await self.redis.flushall()
        logs, kept = self.replica
        for key, dump, end in kept:
            if end > self.now:
                await self.redis.restore(key, int((end - self.now) * 1000), dump)
        self.logs = copy.deepcopy(logs)

    async def go(self, steps: int) -> None:
        many: list[Any] = [self.publish] * 40 + [self.recover] * 25 + [self.read] * 20 + [self.wait] * 3
        rare: list[Any] = [
            self.trim,
            self.forget,
            self.flush,
            self.replicate,
            self.replicate,
            self.fail_over,
            self.fail_over,
        ]
        for _ in range(steps):
            step = self.chance.choice(rare if self.chance.random() < 0.02 else many)
            channel = self.chance.choice(CHANNELS)
            self.done = [*self.done[-19:], f"{step.__name__}({channel})"]
            await step(channel)


async def test_redis_answers_as_a_log_in_memory_would(store: Store, redis_server: RedisServer) -> None:
    """Publish, use keys again, trim, expire, lose all, fail over, read both ways: 10,000 steps, the same answers."""
    walk = Walk(store, redis_server, random.Random(SEED))
    try:
        await walk.go(STEPS)
    except BaseException:
        print(f"SEED={SEED}; the last steps: {walk.done}")
        raise
    finally:
        await walk.redis.aclose()
    assert set(walk.answers) == {"top", "ok", "more", "epoch", "fork", "trimmed", "limit"}, "a walk that misses much"
    assert min(walk.answers.values()) > STEPS / 250, walk.answers


async def test_a_read_is_shared_only_by_those_who_asked_before_it_was_sent(
    store: Store, redis_server: RedisServer, redis_proxy: Proxy
) -> None:
    """One that is on its way has not seen what was published since, and whoever comes now is not pushed it either."""
    client = Redis.from_url(redis_proxy.url)
    fleet = Fleet(client, on_message=lambda *_: None, on_lost=lambda _: None, timeout=5)
    await fleet.start()
    slow = Store(fleet, "p", timeout=5, max_message_bytes=1 << 20)
    since = await store.append(Message.of("a", "e", 1), HISTORY)
    await slow.recover("a", since, 300)  # Redis knows the script from now on
    redis_server.ask("CONFIG", "RESETSTAT")
    redis_proxy.delay = 0.2
    early = [asyncio.create_task(slow.recover("a", since, 300)) for _ in range(5)]
    while "cmdstat_evalsha" not in redis_server.ask("INFO", "commandstats"):
        await asyncio.sleep(0)
    position = await store.append(Message.of("a", "e", 2), HISTORY)
    late = [asyncio.create_task(slow.recover("a", since, 300)) for _ in range(5)]
    assert {page.top for page in await asyncio.gather(*early)} == {since}
    assert {page.top for page in await asyncio.gather(*late)} == {position}
    assert redis_server.ask("INFO", "commandstats")["cmdstat_evalsha"]["calls"] == 3  # with that of the second append
    await fleet.stop()
    await slow.stop()
    await client.aclose()
