"""The link to a real Redis that is killed, frozen, cut off and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from redis.asyncio import Redis, Sentinel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis_server import Proxy, RedisCluster3, RedisServer

from openapi_ws import SetupError
from openapi_ws.brokers.link import Link, Script
from openapi_ws.brokers.wire import Wire
from openapi_ws.errors import BrokerUnavailable

WAIT = 10.0
"""Seconds that bound a hang; they measure nothing."""


class Heard:
    """A link, and all that it has told, in order."""

    def __init__(self, client: Redis, **options: Any) -> None:
        self.client = client
        self.told: list[Any] = []
        self._news = asyncio.Event()
        self.link = Link(
            self.client,
            on_message=lambda channel, data: self._tell((channel, data)),
            on_lost=lambda channels: self._tell(channels),
            on_refused=lambda channel, error: self._tell((channel, error)),
            on_change=lambda is_up: self._tell(is_up),
            **options,
        )

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self._news.set()

    @property
    def messages(self) -> list[tuple[bytes, bytes]]:
        return [what for what in self.told if isinstance(what, tuple) and isinstance(what[1], bytes)]

    @property
    def lost(self) -> list[set[bytes]]:
        return [what for what in self.told if isinstance(what, set)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when something was told that makes *condition* true."""
        async with asyncio.timeout(WAIT):
            while not condition():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def linked(url: str = "", *, client: Redis | None = None, **options: Any) -> AsyncIterator[Heard]:
    """A link that is started, and stopped at the end."""
    heard = Heard(client or Redis.from_url(url), **{"timeout": WAIT / 2, **options})
    await heard.link.start()
    try:
        yield heard
    finally:
        await heard.link.stop()
        await heard.client.aclose()


async def settled(condition: Callable[[], object]) -> None:
    """Return when the server, asked again and again, fulfils *condition*."""
    async with asyncio.timeout(WAIT):
        while not await asyncio.to_thread(condition):
            await asyncio.to_thread(time.sleep, 0.01)  # the server tells nobody, it has to be asked


def channels(server: RedisServer) -> set[bytes]:
    return set(server.ask("PUBSUB", "CHANNELS"))


def clients(server: RedisServer) -> int:
    """Connections of others."""
    return int(server.ask("INFO", "clients")["connected_clients"]) - 1


async def test_what_is_published_after_a_subscribe_arrives(redis_server: RedisServer) -> None:
    """Subscribe returns when the server has confirmed; messages come in the order in which they were published."""
    async with linked(redis_server.url) as heard:
        for number in range(100):
            channel = b"c%d" % number
            await heard.link.subscribe(channel)
            assert await heard.link.run("PUBLISH", channel, b"%d" % number) == 1
        await heard.until(lambda: len(heard.messages) == 100)
        assert heard.messages == [(b"c%d" % number, b"%d" % number) for number in range(100)]
        assert heard.told[0] is True
        assert not heard.lost


async def test_commands_run_in_the_order_of_the_calls(redis_server: RedisServer) -> None:
    """Callers of one tick share a round trip, and none overtakes another."""
    async with linked(redis_server.url) as heard:
        await heard.link.subscribe(b"c")
        receivers = await asyncio.gather(*(heard.link.run("PUBLISH", "c", number) for number in range(3_000)))
        assert set(receivers) == {1}
        await heard.until(lambda: len(heard.messages) == 3_000)
        assert [int(data) for _, data in heard.messages] == list(range(3_000))


async def test_a_thousand_channels_are_subscribed_to_at_once(redis_server: RedisServer) -> None:
    """Many subscribes at once are confirmed each, and so are many unsubscribes."""
    names = {b"c%d" % number for number in range(1_300)}
    async with linked(redis_server.url) as heard:
        await asyncio.gather(*map(heard.link.subscribe, names))
        assert channels(redis_server) == names == heard.link.wanted
        for name in names:
            heard.link.unsubscribe(name)
        await settled(lambda: not channels(redis_server))


async def test_a_channel_left_and_joined_at_once_stays(redis_server: RedisServer) -> None:
    """The last word counts, before and after the server has heard of the first."""
    async with linked(redis_server.url) as heard:
        await heard.link.subscribe(b"c")
        heard.link.unsubscribe(b"c")
        await heard.link.subscribe(b"c")
        heard.link.unsubscribe(b"c")
        await settled(lambda: not channels(redis_server))
        await heard.link.subscribe(b"c")
        assert channels(redis_server) == {b"c"}


async def test_an_error_of_the_server_is_the_callers_alone(redis_server: RedisServer) -> None:
    """Those who asked in the same round trip get their replies."""
    async with linked(redis_server.url) as heard:
        replies = await asyncio.gather(
            heard.link.run("SET", "a", "1"),
            heard.link.run("LPUSH", "a", "2"),
            heard.link.run("GET", "a"),
            return_exceptions=True,
        )
        assert replies[0] == b"OK"
        assert "WRONGTYPE" in str(replies[1])
        assert replies[2] == b"1"


@pytest.mark.parametrize("argument", [None, True, object(), "\ud800"])
async def test_an_argument_that_cannot_be_sent_is_the_callers_alone(redis_server: RedisServer, argument: Any) -> None:
    """It is refused before it can spoil a batch."""
    async with linked(redis_server.url) as heard:
        good, bad = heard.link.run("SET", "a", b"\xff\x00"), heard.link.run("SET", "a", argument)
        replies = await asyncio.gather(good, bad, return_exceptions=True)
        assert replies[0] == b"OK"
        assert isinstance(replies[1], TypeError | UnicodeEncodeError)
        assert redis_server.ask("GET", "a") == b"\xff\x00"


async def test_a_caller_who_gives_up_disturbs_nobody(redis_server: RedisServer) -> None:
    """Cancelled before it is sent, a command does not run; cancelled later, its reply is dropped."""
    async with linked(redis_server.url) as heard:
        calls = [asyncio.create_task(heard.link.run("RPUSH", "a", number)) for number in range(9)]
        await asyncio.sleep(0)  # they are queued now
        calls[4].cancel()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert [reply for reply in replies if isinstance(reply, int)] == list(range(1, 9))
        assert redis_server.ask("LRANGE", "a", 0, -1) == [b"%d" % number for number in range(9) if number != 4]


async def test_a_script_that_the_server_forgot_runs_in_its_turn(redis_server: RedisServer) -> None:
    """After SCRIPT FLUSH the source is sent again, and nothing overtakes the calls that have to be repeated."""
    script = Script(b"return redis.call('RPUSH', KEYS[1], ARGV[1])")
    async with linked(redis_server.url) as heard:
        calls: list[asyncio.Task[Any]] = []
        for number in range(3_000):
            calls.append(asyncio.create_task(heard.link.evaluate(script, ["a"], [number])))
            if number % 70 == 0:
                calls.append(asyncio.create_task(heard.link.run("SCRIPT", "FLUSH")))
            if number % 100 == 0:
                await asyncio.sleep(0)  # calls of other ticks come when some are under way
        await asyncio.gather(*calls)
        assert [int(n) for n in redis_server.ask("LRANGE", "a", 0, -1)] == list(range(3_000))


async def test_a_restart_is_told_and_healed(own_redis: RedisServer) -> None:
    """Every channel that was confirmed is told as lost, before any newer message, within 2 s of Redis being back."""
    names = {b"c%d" % number for number in range(700)}
    script = Script(b"return redis.call('PUBLISH', KEYS[1], ARGV[1])")
    async with linked(own_redis.url, timeout=1) as heard:
        await asyncio.gather(*map(heard.link.subscribe, names))
        await heard.link.evaluate(script, ["c1"], ["before"])
        await heard.until(lambda: heard.messages)
        own_redis.kill()
        await heard.until(lambda: not heard.link.is_up)
        with pytest.raises(BrokerUnavailable):
            await heard.link.run("PING")
        await own_redis.start()
        back = time.monotonic()
        await heard.until(lambda: heard.link.is_up)
        assert await heard.link.evaluate(script, ["c1"], ["after"]) == 1
        await heard.until(lambda: len(heard.messages) == 2)
        assert time.monotonic() - back < 2
        assert set.union(*heard.lost) == names
        assert sum(map(len, heard.lost)) == len(names)
        assert heard.told.index((b"c1", b"after")) > max(heard.told.index(lost) for lost in heard.lost)
        assert channels(own_redis) == names


async def test_a_killed_connection_is_told_before_anything_newer(redis_server: RedisServer) -> None:
    """Redis drops the connection, as it does with a slow reader: of each channel, the hole is told first."""
    names = [b"%d" % number for number in range(500)]
    async with linked(redis_server.url) as heard:
        await asyncio.gather(*map(heard.link.subscribe, names))
        numbers = itertools.count()

        async def publish() -> None:
            while True:
                number = next(numbers)
                await asyncio.gather(*(heard.link.run("PUBLISH", name, number) for name in names))

        publisher = asyncio.create_task(publish())
        for kills in range(5):
            told = len(heard.told)
            await heard.until(lambda told=told: len(heard.told) > told + 1_000)
            redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await heard.until(lambda kills=kills: sum(map(len, heard.lost)) == (kills + 1) * len(names))
        publisher.cancel()
        await asyncio.wait([publisher])
    last: dict[bytes, int] = {}
    is_told: set[bytes] = set()
    holes = 0
    for what in heard.told:
        if isinstance(what, set):
            is_told |= what
        elif isinstance(what, tuple):
            channel, number = what[0], int(what[1])
            assert number == last.get(channel, -1) + 1 or channel in is_told
            holes += number != last.get(channel, -1) + 1
            last[channel] = number
            is_told.discard(channel)
    assert holes >= 100


async def test_a_frozen_redis_fails_calls_within_a_second(own_redis: RedisServer) -> None:
    """All who wait are answered in time; what was written may have run; after the thaw all is as before."""
    async with linked(own_redis.url, ping=0.2, deadline=0.5, timeout=1) as heard:
        await heard.link.subscribe(b"c")
        own_redis.freeze()
        began = time.monotonic()
        calls = [asyncio.create_task(heard.link.run("RPUSH", "a", number)) for number in range(600)]
        replies = await asyncio.gather(*calls, heard.link.subscribe(b"d"), return_exceptions=True)
        assert time.monotonic() - began < 1.5
        assert all(isinstance(reply, BrokerUnavailable) for reply in replies)
        errors = cast("list[BrokerUnavailable]", replies)
        written = [error.may_have_run for error in errors]
        assert written == sorted(written, reverse=True)
        assert sum(written) in (512, 0)  # 0 if a ping was under way
        await heard.until(lambda: not heard.link.is_up)
        own_redis.thaw()
        await heard.until(lambda: heard.lost)
        assert heard.lost == [{b"c"}]
        await heard.until(lambda: heard.link.is_up)
        await settled(lambda: own_redis.ask("LLEN", "a") == sum(written))
        assert channels(own_redis) == heard.link.wanted == {b"c"}


async def test_a_link_gone_dumb_is_noticed(redis_proxy: Proxy) -> None:
    """Nothing is heard, not even an end of the connection: it is asked, and given up in time."""
    async with linked(redis_proxy.url, ping=0.1, deadline=0.3) as heard:
        await heard.link.subscribe(b"c")
        redis_proxy.is_silent = True
        await heard.until(lambda: not heard.link.is_up)
        redis_proxy.is_silent = False
        await heard.until(lambda: heard.lost == [{b"c"}] and heard.link.is_up)


async def test_a_silence_without_messages_is_no_loss(redis_proxy: Proxy) -> None:
    """A server that answers when it is asked is there."""
    async with linked(redis_proxy.url, ping=0.01, deadline=0.5) as heard:
        await heard.link.subscribe(b"c")
        end = time.monotonic() + 1
        await settled(lambda: time.monotonic() > end)
        assert redis_proxy.links == 2
        assert heard.told == [True]


async def test_a_wire_that_is_lost_is_not_mended(redis_proxy: Proxy) -> None:
    """redis-py would connect again in secret; whoever writes is told instead, and nothing is sent."""
    client = Redis.from_url(redis_proxy.url)
    wire = Wire(client, silence=10)
    await wire.open()
    await wire.send([(b"PING",)])
    assert await wire.receive() == b"PONG"
    redis_proxy.cut()
    with pytest.raises(RedisConnectionError):
        await wire.receive()
    with pytest.raises(ConnectionError):
        await wire.send([(b"PING",)])
    await wire.close()
    assert redis_proxy.links == 1


async def test_a_lost_reply_may_have_run(redis_server: RedisServer, redis_proxy: Proxy) -> None:
    """The caller is told that nobody knows, and the command is not sent twice."""
    async with linked(redis_proxy.url) as heard:
        redis_proxy.swallow_reply()
        with pytest.raises(BrokerUnavailable) as caught:
            await heard.link.run("INCR", "a")
        assert caught.value.may_have_run
        await heard.until(lambda: heard.told == [True, False, True])
        assert redis_server.ask("GET", "a") == b"1"


async def test_a_command_that_was_not_sent_has_not_run(own_redis: RedisServer) -> None:
    """While Redis is down, a command waits its time, and then surely has not run."""
    async with linked(own_redis.url, timeout=0.3) as heard:
        own_redis.kill()
        await heard.until(lambda: not heard.link.is_up)
        with pytest.raises(BrokerUnavailable) as caught:
            await heard.link.run("INCR", "a")
        assert not caught.value.may_have_run
        with pytest.raises(BrokerUnavailable):
            await heard.link.subscribe(b"c")
        assert not heard.link.wanted


async def test_a_command_waits_for_redis_to_come_back(redis_proxy: Proxy) -> None:
    """A short outage costs nobody an error who had not been sent yet."""
    async with linked(redis_proxy.url, timeout=5) as heard:
        redis_proxy.cut()
        await heard.until(lambda: False in heard.told)
        assert await heard.link.run("PING") in (b"PONG", True)


async def test_too_many_commands_are_refused_at_once(own_redis: RedisServer) -> None:
    """The queue has a bound: beyond it nobody waits."""
    async with linked(own_redis.url, limit=10, timeout=0.3) as heard:
        own_redis.kill()
        await heard.until(lambda: not heard.link.is_up)
        calls = [asyncio.create_task(heard.link.run("PING")) for _ in range(11)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert done == {calls[10]}
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(reply, BrokerUnavailable) for reply in replies)


async def test_a_redis_that_comes_up_late_is_found(own_redis: RedisServer) -> None:
    """Start does not wait for ever, and does not give up."""
    own_redis.kill()
    async with linked(own_redis.url, timeout=0.2) as heard:
        assert not heard.link.is_up
        await own_redis.start()
        await heard.until(lambda: heard.link.is_up)
        await heard.link.subscribe(b"c")
        assert not heard.lost


async def test_whatever_happens_the_server_has_what_is_wanted(own_redis: RedisServer) -> None:
    """20 tasks come and go at random while Redis is restarted 5 times: no zombie is left, and none is missing."""
    async with linked(own_redis.url) as heard:
        going = True
        wanted = {b"keep %d" % number for number in range(20)}
        await asyncio.gather(*map(heard.link.subscribe, wanted))

        async def churn(number: int) -> None:
            chance = random.Random(number)
            while going:
                channel = b"%d:%d" % (number, chance.randrange(20))
                if channel in wanted:
                    wanted.discard(channel)
                    heard.link.unsubscribe(channel)
                else:
                    with contextlib.suppress(BrokerUnavailable):
                        await heard.link.subscribe(channel)
                        wanted.add(channel)
                await heard.link.run("PUBLISH", channel, "x") if heard.link.is_up else await asyncio.sleep(0)

        async def persist(number: int) -> None:
            while going:
                with contextlib.suppress(BrokerUnavailable):
                    await churn(number)

        tasks = [asyncio.create_task(persist(number)) for number in range(20)]
        for _ in range(5):
            told = len(heard.told)
            await own_redis.restart()
            await heard.until(lambda told=told: True in heard.told[told:])
        going = False
        await asyncio.gather(*tasks)
        await heard.until(lambda: heard.link.is_up)
        assert heard.link.wanted == wanted
        await settled(lambda: channels(own_redis) == wanted)
        for number in range(20):
            assert sum(b"keep %d" % number in lost for lost in heard.lost) == 5


async def test_no_hole_is_untold(redis_server: RedisServer, redis_proxy: Proxy) -> None:
    """Whatever link is cut at whatever moment: a message that is missing was told as lost before the next one came."""
    chance = random.Random(5)
    async with linked(redis_proxy.url) as heard, linked(redis_server.url) as other:
        await heard.link.subscribe(b"c")
        for number in range(3_000):
            await other.link.run("PUBLISH", "c", number)
            if chance.random() < 0.01:
                (redis_proxy.cut if chance.random() < 0.5 else redis_proxy.swallow_reply)()
            if chance.random() < 0.001:
                await heard.until(lambda: heard.link.is_up)
        await heard.until(lambda: heard.link.is_up)
        await heard.link.subscribe(b"c")
        await other.link.run("PUBLISH", "c", 3_000)
        await heard.until(lambda: heard.messages[-1][1] == b"3000")
    holes, last, is_told = 0, -1, False
    for what in heard.told:
        if isinstance(what, set):
            is_told = True
        elif isinstance(what, tuple):
            number = int(what[1])
            assert number > last
            assert number == last + 1 or is_told, (last, number)
            holes += number != last + 1
            last, is_told = number, False
    assert holes > 3


async def test_a_master_that_is_none_any_more_is_left(own_redis: RedisServer, redis_server: RedisServer) -> None:
    """It refuses to write: the command has not run, and the next goes to whoever has the address then."""
    async with linked(own_redis.url) as heard:
        own_redis.ask("REPLICAOF", "127.0.0.1", redis_server.port)
        with pytest.raises(BrokerUnavailable) as caught:
            await heard.link.run("SET", "a", "1")
        assert not caught.value.may_have_run
        own_redis.ask("REPLICAOF", "NO", "ONE")
        await heard.until(lambda: heard.told == [True, False, True])
        assert await heard.link.run("SET", "a", "1") == b"OK"


async def test_the_link_follows_the_master_that_sentinel_names(own_redis: RedisServer) -> None:
    """After a failover both connections are with the new master, and the channels are told as lost."""
    replica = RedisServer(replicaof=f"127.0.0.1 {own_redis.port}")
    sentinel = RedisServer(is_sentinel_of=own_redis)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(replica.stop)
        await replica.start()
        await settled(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        stack.callback(sentinel.stop)
        await sentinel.start()
        await settled(lambda: sentinel.ask("SENTINEL", "REPLICAS", "mymaster"))
        sentinels = Sentinel([("127.0.0.1", sentinel.port)])
        for client in sentinels.sentinels:
            stack.push_async_callback(client.aclose)
        heard = await stack.enter_async_context(linked(client=sentinels.master_for("mymaster")))
        await heard.link.subscribe(b"c")
        await heard.link.run("SET", "a", own_redis.port)
        own_redis.kill()
        await heard.until(lambda: heard.lost == [{b"c"}] and heard.link.is_up)
        assert await heard.link.run("SET", "a", replica.port)
        assert b"c" in channels(replica)  # beside those of the Sentinel
        assert replica.ask("GET", "a") == b"%d" % replica.port


async def test_a_hole_is_told_at_the_confirmation(redis_proxy: Proxy) -> None:
    """A message may follow the confirmation in the midst of a batch: whoever listens hears of the hole first."""
    async with linked(redis_proxy.url) as heard:
        await asyncio.gather(*map(heard.link.subscribe, (b"b", b"c", b"d")))
        confirmation = re.compile(rb"(\*3\r\n\$9\r\nsubscribe\r\n(\$1\r\n.\r\n):\d\r\n)")
        redis_proxy.alter = lambda data: confirmation.sub(rb"\1*3\r\n$7\r\nmessage\r\n\2$1\r\nx\r\n", data)
        redis_proxy.cut()
        await heard.until(lambda: len(heard.messages) == 3 and heard.link.is_up)
        news = [what for what in heard.told if not isinstance(what, bool)]
        for lost, (channel, data) in zip(news[::2], news[1::2], strict=True):
            assert (lost, data) == ({channel}, b"x")


async def test_an_unasked_confirmation_is_a_loss(redis_server: RedisServer, redis_proxy: Proxy) -> None:
    """A connection that confirms what nobody asked for is not what it seems: it is replaced, and its channels told."""
    async with linked(redis_proxy.url) as heard:
        await heard.link.subscribe(b"c")
        unasked = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
        redis_proxy.alter = lambda data: data + unasked if b"\r\nfirst\r\n" in data else data
        redis_server.ask("PUBLISH", "c", "first")
        await heard.until(lambda: heard.lost == [{b"c"}])
        assert heard.messages == [(b"c", b"first")]


async def test_a_listener_that_fails_costs_nobody_the_link(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its exception is logged, and the next message is handed on."""
    messages: list[bytes] = []
    done = asyncio.Event()

    def on_message(channel: bytes, data: bytes) -> None:
        messages.append(data)
        if data == b"bad":
            raise ValueError("a bad message")
        done.set()

    client = Redis.from_url(redis_server.url)
    link = Link(client, on_message=on_message, on_lost=lambda channels: None)
    await link.start()
    await link.subscribe(b"c")
    await asyncio.gather(link.run("PUBLISH", "c", "bad"), link.run("PUBLISH", "c", "good"))
    await asyncio.wait_for(done.wait(), WAIT)
    await link.stop()
    await client.aclose()
    assert messages == [b"bad", b"good"]
    assert "a bad message" in caplog.text


async def test_a_flood_of_messages_leaves_time_for_others(redis_server: RedisServer) -> None:
    """Others have their turn while messages come as fast as they can be read."""
    turns: list[int] = []
    async with linked(redis_server.url) as heard:
        await heard.link.subscribe(b"c")
        script = Script(b"for i = 1, 20000 do redis.call('PUBLISH', KEYS[1], i) end")
        flood = asyncio.create_task(heard.link.evaluate(script, ["c"]))
        while len(heard.messages) < 20_000:
            turns.append(len(heard.messages))
            await asyncio.sleep(0)
        await flood
    assert len({turn for turn in turns if turn}) > 100


async def test_a_stopped_link_leaves_nothing(own_redis: RedisServer) -> None:
    """No task, no connection; whoever waits is answered, even of a server that takes nothing any more."""
    before = asyncio.all_tasks()
    async with linked(own_redis.url, timeout=30) as heard:
        await heard.link.subscribe(b"c")
        assert await asyncio.to_thread(clients, own_redis) == 2
        own_redis.freeze()
        calls = [
            asyncio.create_task(heard.link.run("SET", "a", bytes(8_000_000))),
            asyncio.create_task(heard.link.run("GET", "a")),
            asyncio.create_task(heard.link.subscribe(b"d")),
        ]
        await asyncio.wait(calls, timeout=0.1)
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(reply, BrokerUnavailable) for reply in replies)
    with pytest.raises(BrokerUnavailable):
        await heard.link.run("PING")
    assert asyncio.all_tasks() == before
    own_redis.thaw()
    await settled(lambda: clients(own_redis) == 0)


async def test_a_link_may_be_stopped_at_the_moment_it_fails(own_redis: RedisServer) -> None:
    """Cancellation is not lost behind the error that ends the connection in the same tick."""
    async with linked(own_redis.url, timeout=0.3) as heard:
        own_redis.freeze()
        with pytest.raises(BrokerUnavailable):
            await heard.link.run("GET", "a")
        async with asyncio.timeout(WAIT):
            await heard.link.stop()


async def test_a_unix_socket_serves_as_well(redis_server: RedisServer) -> None:
    """No TCP option is asked of it."""
    async with linked(redis_server.unix_url) as heard:
        await heard.link.subscribe(b"c")
        assert await heard.link.run("PUBLISH", "c", "x") == 1
        await heard.until(lambda: heard.messages)


async def test_credentials_and_settings_of_the_client_are_used(own_redis: RedisServer) -> None:
    """User, password and database are the client's; replies stay bytes and nothing is retried, whatever it says."""
    own_redis.ask("ACL", "SETUSER", "me", "on", ">secret", "~*", "+@all", "resetchannels", "&c*")
    url = f"redis://me:secret@127.0.0.1:{own_redis.port}/3?decode_responses=True&health_check_interval=1&protocol=3"
    async with linked(url) as heard:
        await heard.link.subscribe(b"c")
        await heard.link.run("SET", "a", "1")
        assert await heard.link.run("GET", "a") == b"1"
        assert not own_redis.ask("EXISTS", "a")
        # One channel that is refused costs the others nothing.
        replies = await asyncio.gather(
            *(heard.link.subscribe(name) for name in (b"c1", b"forbidden", b"c2")), return_exceptions=True
        )
        assert replies[0] is replies[2] is None
        assert "permission" in str(replies[1])
        assert heard.told[-1][0] == b"forbidden"
        assert heard.link.wanted == {b"c", b"c1", b"c2"}


async def test_a_node_of_a_cluster_says_which_channels_are_not_its_own(redis_cluster: RedisCluster3) -> None:
    """Shard channels of one node: what another node has is refused, and the others live on."""
    last = redis_cluster.servers[2]  # it has the slot of "a", 15495, and not that of "b", 3300
    async with linked(last.url, sharded=True) as heard:
        await heard.link.subscribe(b"a")
        assert await heard.link.run("SPUBLISH", "a", "x") == 1
        await heard.until(lambda: heard.messages == [(b"a", b"x")])
        with pytest.raises(Exception, match="3300"):
            await heard.link.subscribe(b"b")
        with pytest.raises(Exception, match="3300"):
            await heard.link.run("SET", "b", "1")
        assert heard.link.wanted == {b"a"}
        last.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await heard.until(lambda: heard.lost == [{b"a"}])


def test_without_redis_py_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; nothing else of the package needs it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("wire", "commands", "subscriptions", "link"):
        monkeypatch.delitem(sys.modules, f"openapi_ws.brokers.{name}")
    with pytest.raises(SetupError, match=r"pip install 'openapi-ws\[redis\]'"):
        importlib.import_module("openapi_ws.brokers.link")
