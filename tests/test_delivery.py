"""Channels that are declared: what clients and server code may do with them, and what they are told otherwise."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from conftest import Serve, until
from pydantic import BaseModel

from openapi_ws import LocalBroker, Publish, SocketsManager, Subscribe, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.errors import UnknownChannel
from openapi_ws.history import History
from openapi_ws.topics import Topic


class Said(BaseModel):
    """What is said in a room."""

    text: str


CHAT = Topic("chat:{room}", data=Said, history=History(size=5, ttl=60), publish=True)
LIVE = Topic("live:{room}", events={"said": Said}, publish=True)
FEED = Topic("feed")
BIG = Topic("big", history=History(size=2000))
TOPICS = [CHAT, LIVE, FEED, BIG]


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """What clients may do."""


class Small(Stream):
    """Little may wait for a client."""

    max_queue_bytes = 256 * 1024
    send_buffer_bytes = 4096


@pytest.fixture(params=["at once", "after a while", "redis", "cluster"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[SocketsManager]:
    match request.param:
        case "at once":
            yield SocketsManager(TOPICS)
        case "after a while":
            yield LocalBroker(0.001, TOPICS)
        case _:
            is_cluster = request.param == "cluster"
            server = request.getfixturevalue("redis_cluster" if is_cluster else "redis_server")
            broker = RedisBroker(server.cluster_url if is_cluster else server.url, topics=TOPICS)
            await broker.start()
            yield broker
            await broker.stop()


async def test_what_no_topic_declares_is_refused(serve: Serve) -> None:
    """With topics, clients and server code have those channels, events and types, and no others."""
    manager = SocketsManager(TOPICS)
    served = await serve(Stream, manager)
    client = await served.connect()
    for method in ("subscribe", "publish", "history"):
        error = await client.error(method, {"channel": "other"})
        assert (error["code"], error["errors"]) == (-32004, {"channel": "Invalid channel"})
    assert (await client.error("publish", {"channel": "feed"}))["errors"] == {"channel": "Cannot publish to channel"}
    error = await client.error("publish", {"channel": "chat:a", "event": "said", "data": {"text": 1}})
    assert list(error["errors"]) == ["data.text"]
    error = await client.error("publish", {"channel": "live:a", "event": "sung", "data": {"text": ""}})
    assert list(error["errors"]) == ["event"]
    with pytest.raises(UnknownChannel):
        await manager.publish("other", "said", None)
    with pytest.raises(TypeError):
        await manager.publish("chat:a", "said", {"text": 1})
    with pytest.raises(ValueError, match="no event"):
        await manager.publish("live:a", "sung", Said(text=""))


async def test_what_needs_a_history_is_refused_without_one(serve: Serve) -> None:
    """Keys and reading; the answer says which member is wrong."""
    manager = SocketsManager(TOPICS)
    served = await serve(Stream, manager)
    client = await served.connect()
    why = "the channel has no history"
    assert (await client.error("history", {"channel": "feed"}))["errors"] == {"channel": why}
    said = {"channel": "live:a", "event": "said", "data": {"text": ""}, "key": "k"}
    assert (await client.error("publish", said))["errors"] == {"key": why}
    with pytest.raises(ValueError, match="history"):
        await manager.publish("feed", "n", None, key="k")
    assert (await client.error("history", {"channel": "chat:a", "limit": 0}))["code"] == -32602


async def test_an_answer_has_the_members_that_the_protocol_says(serve: Serve) -> None:
    """Position, messages and whether there are more, and no others."""
    served = await serve(Stream, SocketsManager(TOPICS))
    client = await served.connect()
    subscribed = await client.call("subscribe", {"channel": "chat:a"})
    assert subscribed.keys() == {"subscribed", "position"}
    data = {"text": "hi"}
    published = await client.call("publish", {"channel": "chat:a", "event": "said", "data": data})
    message = await client.message()
    assert message == {"channel": "chat:a", "event": "said", "data": data, "position": published["position"]}
    history = await client.call("history", {"channel": "chat:a"})
    assert history == {"messages": [message], "position": published["position"], "more": False}
    again = await client.call("subscribe", {"channel": "chat:a", "position": subscribed["position"]})
    assert again == subscribed | {"position": published["position"], "recovered": True, "messages": [message]}


async def test_one_kept_message_may_be_larger_than_what_may_wait(serve: Serve, manager: SocketsManager) -> None:
    """It waits beside the limit, as a live one does: a call that is answered meanwhile does not cost the socket."""
    served = await serve(Small, manager)
    client = await served.connect_raw()
    client.frame(b'{"id": 1, "method": "subscribe", "payload": {"channel": "big"}}')
    await client.read()
    (websocket,) = manager.sockets
    for n in range(200):
        await manager.publish("big", "n", {"n": n, "text": "x" * 4000})
    await manager.publish("big", "n", {"n": 200, "text": "x" * 900_000})
    await until(lambda: manager.metrics.lagged)
    for n in range(200):
        assert json.loads((await client.read())[1])["data"]["n"] == n
    await until(lambda: websocket.queued_bytes > 256 * 1024)
    client.frame(b'{"id": 2, "method": "none"}')
    await until(lambda: manager.metrics.calls)
    frames = [json.loads((await client.read())[1]) for _ in range(2)]
    assert sorted(frame.get("id", 0) for frame in frames) == [0, 2]
    assert websocket.close_code is None
