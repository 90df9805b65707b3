"""The servers that tests break: what the other tests take for granted of them."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis_server import Proxy, RedisCluster3, RedisServer


async def test_a_server_keeps_its_data_over_a_kill(own_redis: RedisServer) -> None:
    """With AOF a killed server comes back on the same port with what it had acknowledged."""
    own_redis.ask("SET", "a", "1")
    await own_redis.restart()
    assert own_redis.ask("GET", "a") == b"1"


async def test_a_frozen_server_answers_when_it_thaws(own_redis: RedisServer) -> None:
    """Its sockets stay open: whoever asks waits."""
    own_redis.freeze()
    asked = asyncio.create_task(asyncio.to_thread(own_redis.ask, "PING"))
    done, _ = await asyncio.wait([asked], timeout=0.1)
    assert not done
    own_redis.thaw()
    assert await asked


def test_a_cluster_serves_all_slots(redis_cluster: RedisCluster3) -> None:
    """Each of the three keeps a third, and names the one that has a key."""
    answers: list[str] = []
    for server in redis_cluster.servers:
        try:
            answers.append(str(server.ask("SET", "a", "1")))
        except redis.ResponseError as error:  # redis-py 5 has no MovedError here
            answers.append(str(error).rpartition(":")[2])
    assert set(answers) == {"True", str(redis_cluster.servers[2].port)}


@pytest.mark.parametrize("fault", ["cut", "swallow_reply"])
async def test_a_proxy_loses_a_reply(redis_server: RedisServer, redis_proxy: Proxy, fault: str) -> None:
    """A link that is cut carries nothing; one whose reply is swallowed has carried the command."""
    reader, writer = await asyncio.open_connection("127.0.0.1", redis_proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    getattr(redis_proxy, fault)()
    if fault == "swallow_reply":
        writer.write(b"INCR a\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert redis_server.ask("GET", "a") == (b"1" if fault == "swallow_reply" else None)


async def test_a_silent_proxy_keeps_its_links(redis_proxy: Proxy) -> None:
    """Nobody is told that nothing arrives any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", redis_proxy.port)
    redis_proxy.is_silent = True
    writer.write(b"PING\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readline(), 0.1)
    writer.close()
