"""Publishing without a server: from a worker, over a real Redis, and from the shell."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from redis_server import RedisCluster3, RedisServer

from openapi_ws import EncodeError, SetupError
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.errors import BrokerUnavailable, TooLarge, UnknownChannel
from openapi_ws.history import History
from openapi_ws.publisher import Publisher
from openapi_ws.topics import Topic

WAIT = 10.0
"""Seconds that bound a hang; they measure nothing."""


class Said(BaseModel):
    """What is said in a room."""

    text: str


CHAT = Topic("chat:{room}", data=Said, history=History(size=5, ttl=60))
LIVE = Topic("live:{room}", events={"said": Said})
TOPICS = [CHAT, LIVE]


@contextlib.asynccontextmanager
async def listening(url: str, channel: str, topics: Any = TOPICS) -> AsyncIterator[asyncio.Queue[tuple[str, str, Any]]]:
    """What a server hears of *channel*."""
    heard: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()
    broker = RedisBroker(url, topics=topics)
    await broker.start()

    async def hear(channel: str, event: str, data: Any) -> None:
        heard.put_nowait((channel, event, data))

    await broker.channels.register(channel, "*", hear)
    try:
        yield heard
    finally:
        await broker.stop()


async def shell(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Status, output and errors of the command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openapi_ws.publisher", *words, cwd=Path(__file__).parent,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), WAIT)
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_worker_publishes_to_clients_of_servers(redis_server: RedisServer) -> None:
    """With a position where there is a history, and without where there is none."""
    async with listening(redis_server.url, "chat:a") as heard, Publisher(redis_server.url, topics=TOPICS) as publisher:
        position = await publisher.publish("chat:a", "said", Said(text="hi"))
        assert position is not None
        assert await asyncio.wait_for(heard.get(), WAIT) == ("chat:a", "said", {"text": "hi"})
        assert await publisher.publish("live:a", "said", Said(text="hi")) is None


async def test_a_worker_publishes_to_a_cluster(redis_cluster: RedisCluster3) -> None:
    """Nothing is different."""
    url = redis_cluster.cluster_url
    async with listening(url, "chat:a") as heard, Publisher(url, topics=TOPICS) as publisher:
        for number in range(5):
            await publisher.publish("chat:a", "said", {"text": f"{number}"})
        assert [(await asyncio.wait_for(heard.get(), WAIT))[2]["text"] for _ in range(5)] == list("01234")


async def test_a_publisher_has_one_connection(own_redis: RedisServer) -> None:
    """It listens to nothing, and leaves nothing behind."""
    before = asyncio.all_tasks()
    async with Publisher(own_redis.url, topics=TOPICS) as publisher:
        await publisher.publish("chat:a", "said", Said(text="hi"))
        assert (await asyncio.to_thread(own_redis.ask, "INFO", "clients"))["connected_clients"] == 2
    assert asyncio.all_tasks() == before
    with pytest.raises(SetupError, match="async with Publisher"):
        await publisher.publish("chat:a", "said", Said(text="hi"))


async def test_a_key_publishes_once(redis_server: RedisServer) -> None:
    """The same key again gives the first position, from whichever publisher."""
    positions = []
    for _ in range(2):
        async with Publisher(redis_server.url, topics=TOPICS) as publisher:
            positions.append(await publisher.publish("chat:a", "said", {"text": "hi"}, key="job 7"))
    assert positions[0] == positions[1]


async def test_what_a_server_refuses_to_publish_a_worker_is_refused(redis_server: RedisServer) -> None:
    """The errors are those of `SocketsManager.publish`, word for word."""
    cases: list[tuple[type[Exception], tuple[Any, ...], dict[str, str]]] = [
        (UnknownChannel, ("other", "said", {"text": ""}), {}),
        (TypeError, ("chat:a", "said", {"text": 1}), {}),
        (ValueError, ("live:a", "sung", {"text": ""}), {}),
        (ValueError, ("live:a", "said", {"text": ""}), {"key": "k"}),
        (ValueError, ("chat:a", "said", {"text": ""}), {"key": ""}),
        (EncodeError, ("chat:a", "said", {"text": "\ud800"}), {}),
        (TooLarge, ("chat:a", "said", {"text": "x" * 2_000_000}), {}),
    ]
    broker = RedisBroker(redis_server.url, topics=TOPICS)
    await broker.start()
    async with Publisher(redis_server.url, topics=TOPICS) as publisher:
        for expected, words, more in cases:
            errors = []
            for publish in (broker.publish, publisher.publish):
                with pytest.raises(expected) as caught:
                    await publish(*words, **more)
                errors.append(str(caught.value))
            assert errors[0] == errors[1]
    await broker.stop()


async def test_without_redis_a_worker_hears_so(own_redis: RedisServer) -> None:
    """In time; and when Redis is back the same publisher goes on."""
    own_redis.kill()
    async with Publisher(own_redis.url, timeout=0.3) as publisher:
        with pytest.raises(BrokerUnavailable):
            await publisher.publish("chat:a", "said")
        await own_redis.start()
        async with asyncio.timeout(WAIT):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    await publisher.publish("chat:a", "said")
                    break


def test_a_publisher_needs_one_address() -> None:
    """Neither none nor two."""
    with pytest.raises(SetupError, match="instead of the url"):
        Publisher()


# -- from the shell -------------------------------------------------------------------------------------------


async def test_the_shell_prints_the_position(redis_server: RedisServer) -> None:
    """The data is JSON, validated by the application's topics; a message nobody keeps has no position to print."""
    topics = ("--topics", "test_publisher:TOPICS")
    async with listening(redis_server.url, "chat:a") as heard:
        code, out, err = await shell(redis_server.url, "chat:a", "said", '{"text": "hi"}', *topics, "--key", "job 7")
        assert (code, err) == (0, "")
        assert await asyncio.wait_for(heard.get(), WAIT) == ("chat:a", "said", {"text": "hi"})
        again = await shell(redis_server.url, "chat:a", "said", "-", *topics, "--key", "job 7", stdin=b'{"text": "ho"}')
        assert again == (0, out, "")
        async with Publisher(redis_server.url, topics=TOPICS) as publisher:
            assert out.strip() == await publisher.publish("chat:a", "said", {"text": "hi"}, key="job 7")
    assert await shell(redis_server.url, "live:a", "said", '{"text": ""}', "--topics", "test_publisher:LIVE") == (
        0,
        "",
        "",
    )


async def test_the_shell_needs_no_topics_where_servers_have_none(redis_server: RedisServer) -> None:
    """Then any channel is one, and the data is optional."""
    async with listening(redis_server.url, "news", ()) as heard:
        assert await shell(redis_server.url, "news", "late") == (0, "", "")
        assert await asyncio.wait_for(heard.get(), WAIT) == ("news", "late", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("chat:a", "said", "{"), "unexpected end of data"),
        (("chat:a", "said", '{"text": 1}', "--topics", "test_publisher:TOPICS"), "text"),
        (("other", "said", "{}", "--topics", "test_publisher:TOPICS"), "Unknown channel"),
        (("chat:a", "said", "{}", "--topics", "test_publisher:NONE"), "NONE"),
        (("chat:a", "said", "{}", "--topics", "no_such_module:X"), "no_such_module"),
        (("chat:a", "said", "{}", "--topics", "test_publisher:WAIT"), "neither a Topic nor a list"),
        (("chat:a", "said", "{}"), "has a history: say --topics"),
        (("live:a", "said", "{}", "--key", "k"), "a key needs a channel with history"),
    ],
)
async def test_the_shell_says_in_one_line_what_is_wrong(
    redis_server: RedisServer, words: tuple[str, ...], says: str
) -> None:
    """And exits with 1; a message of which servers keep a history is not published past it."""
    async with Publisher(redis_server.url, topics=TOPICS) as publisher:
        await publisher.publish("chat:a", "said", {"text": "first"})
    code, out, err = await shell(redis_server.url, *words)
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


async def test_the_shell_does_not_wait_for_redis(own_redis: RedisServer) -> None:
    """Nobody answers: it says so, after the reason that is logged, without a traceback."""
    own_redis.kill()
    code, out, err = await shell(own_redis.url, "news", "late", "--timeout", "0.2")
    assert (code, out) == (1, "")
    reason, failure = err.splitlines()
    assert "Connect call failed" in reason or "Error" in reason
    assert failure.startswith("Broker unavailable")
