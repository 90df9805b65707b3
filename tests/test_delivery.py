"""Channels with history in one process: nothing lost over a reconnect, and the truth when it cannot be had."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from conftest import Client, Serve, until
from pydantic import BaseModel

from openapi_ws import LocalBroker, Publish, SocketsManager, Subscribe, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.errors import UnknownChannel
from openapi_ws.history import History
from openapi_ws.topics import Topic


class Said(BaseModel):
    """What is said in a room."""

    text: str


async def load(room: str) -> dict[str, str]:
    """The state of a room."""
    return {"room": room}


CHAT = Topic("chat:{room}", data=Said, history=History(size=5, ttl=60), publish=True)
STATE = Topic("state:{room}", history=History(), snapshot=load)
BIG = Topic("big", history=History(size=2000))
LIVE = Topic("live:{room}", events={"said": Said}, publish=True)
FEED = Topic("feed")
TOPICS = [CHAT, STATE, BIG, LIVE, FEED]


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """What clients may do."""


class Small(Stream):
    """Little may wait for a client."""

    max_queue_bytes = 256 * 1024
    send_buffer_bytes = 4096


async def say(client: Client, text: str, room: str = "a", **more: Any) -> Any:
    return await client.call("publish", {"channel": f"chat:{room}", "event": "said", "data": {"text": text}, **more})


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["data"]["text"] for message in messages]


@pytest.fixture(params=["at once", "after a while", "redis"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[SocketsManager]:
    match request.param:
        case "at once":
            yield SocketsManager(TOPICS)
        case "after a while":
            yield LocalBroker(0.001, TOPICS)
        case _:
            server = request.getfixturevalue("redis_server")
            broker = RedisBroker(server.url, topics=TOPICS)
            await broker.start()
            yield broker
            await broker.stop()


async def test_a_position_goes_with_each_message(serve: Serve, manager: SocketsManager) -> None:
    """The publisher's answer, the message and what is read later all have the same."""
    served = await serve(Stream, manager)
    client = await served.connect()
    subscribed = await client.call("subscribe", {"channel": "chat:a"})
    assert subscribed["subscribed"] == {"chat:a": ["*"]}
    published = await say(client, "hi")
    message = await client.message()
    assert message == {"channel": "chat:a", "event": "said", "data": {"text": "hi"}, "position": published["position"]}
    history = await client.call("history", {"channel": "chat:a"})
    assert history == {"messages": [message], "position": published["position"], "more": False}
    assert subscribed["position"] != published["position"]


async def test_who_comes_back_gets_what_it_missed_and_then_what_comes(serve: Serve, manager: SocketsManager) -> None:
    """No hole and no double at the seam, whatever is published while the answer is made."""
    served = await serve(Stream, manager)
    speaker = await served.connect()
    position = (await say(speaker, "0"))["position"]
    for n in range(1, 4):
        await say(speaker, str(n))
    listener = await served.connect()
    await listener.send({"id": 1, "method": "subscribe", "payload": {"channel": "chat:a", "position": position}})
    rest = [asyncio.ensure_future(manager.publish("chat:a", "said", Said(text=str(n)))) for n in range(4, 6)]
    answer = (await listener.receive())["response"]
    await asyncio.gather(*rest)
    assert answer["recovered"] is True
    assert "reason" not in answer
    given = answer["messages"]
    live = [await listener.message() for _ in range(5 - len(given))]
    assert texts(given + live) == ["1", "2", "3", "4", "5"]


async def test_what_is_gone_is_said_before_anything_newer(serve: Serve, manager: SocketsManager) -> None:
    """Too long ago, of another life of the channel, or of a channel that keeps nothing."""
    served = await serve(Stream, manager)
    client = await served.connect()
    first = (await say(client, "first"))["position"]
    for n in range(7):
        last = (await say(client, str(n)))["position"]
    answer = await client.call("subscribe", {"channel": "chat:a", "position": first})
    assert (answer["recovered"], answer["reason"], answer["messages"]) == (False, "trimmed", [])
    assert answer["position"] == last
    epoch, offset, nonce = last.split(".")
    for position, reason in [(f"0{epoch}.{offset}.{nonce}", "epoch"), (f"{epoch}.99.{nonce}", "fork"),
                             (f"{epoch}.{offset}.0{nonce}", "fork")]:  # fmt: skip
        answer = await client.call("subscribe", {"channel": "chat:a", "position": position})
        assert (answer["recovered"], answer["reason"], answer["position"]) == (False, reason, last)
    answer = await client.call("subscribe", {"channel": "feed", "position": last})
    assert (answer["recovered"], answer["reason"]) == (False, "none")
    error = await client.error("subscribe", {"channel": "chat:a", "position": "nonsense"})
    assert error["code"] == -32602
    assert "position" in error["errors"]


async def test_only_the_events_subscribed_to_are_recovered(serve: Serve, manager: SocketsManager) -> None:
    """And a second pattern of the same socket costs the first one nothing."""
    served = await serve(Stream, manager)
    client = await served.connect()
    position = str(await manager.publish("state:x", "a.1", 1))
    await client.call("subscribe", {"channel": "state:x", "event": "a.*"})
    for event in ("a.2", "b.2"):
        await manager.publish("state:x", event, 2)
    answer = await client.call("subscribe", {"channel": "state:x", "event": "b.*", "position": position})
    assert [message["event"] for message in answer["messages"]] == ["b.2"]
    assert (await client.message())["event"] == "a.2"
    await manager.publish("state:x", "b.3", 3)
    assert (await client.message())["event"] == "b.3"


async def test_history_is_read_in_pages_both_ways(serve: Serve, manager: SocketsManager) -> None:
    """Each page says whether there are more; positions lead from one to the next."""
    served = await serve(Stream, manager)
    client = await served.connect()
    for n in range(5):
        await say(client, str(n))
    page = await client.call("history", {"channel": "chat:a", "limit": 2})
    assert (texts(page["messages"]), page["more"]) == (["0", "1"], True)
    page = await client.call("history", {"channel": "chat:a", "since": page["messages"][-1]["position"]})
    assert (texts(page["messages"]), page["more"]) == (["2", "3", "4"], False)
    page = await client.call("history", {"channel": "chat:a", "limit": 2, "reverse": True})
    assert (texts(page["messages"]), page["more"]) == (["4", "3"], True)
    assert (await client.error("history", {"channel": "feed"}))["errors"] == {"channel": "the channel has no history"}
    assert (await client.error("history", {"channel": "chat:a", "limit": 0}))["code"] == -32602


async def test_a_key_publishes_once(serve: Serve, manager: SocketsManager) -> None:
    """The second time gives the first position, and nobody gets it twice."""
    served = await serve(Stream, manager)
    client = await served.connect()
    await client.call("subscribe", {"channel": "chat:a"})
    first = await say(client, "once", key="k")
    assert (await say(client, "twice", key="k"))["position"] == first["position"]
    await say(client, "end")
    assert texts([await client.message(), await client.message()]) == ["once", "end"]
    error = await client.error("publish", {"channel": "live:a", "event": "said", "data": {"text": ""}, "key": "k"})
    assert error["errors"] == {"key": "the channel has no history"}


async def test_history_survives_the_last_listener(serve: Serve, manager: SocketsManager) -> None:
    """Who comes when nobody is left reads what was said before."""
    served = await serve(Stream, manager)
    client = await served.connect()
    position = (await client.call("subscribe", {"channel": "chat:a"}))["position"]
    await client.ws.close()
    await served.at_rest()
    await manager.publish("chat:a", "said", Said(text="alone"))
    client = await served.connect()
    answer = await client.call("subscribe", {"channel": "chat:a", "position": position})
    assert texts(answer["messages"]) == ["alone"]


async def test_a_snapshot_comes_with_the_subscription_unless_all_was_recovered(
    serve: Serve, manager: SocketsManager
) -> None:
    """It is the state from which the messages that follow lead on."""
    served = await serve(Stream, manager)
    client = await served.connect()
    answer = await client.call("subscribe", {"channel": "state:x"})
    assert answer["snapshot"] == {"room": "x"}
    answer = await client.call("subscribe", {"channel": "state:x", "position": answer["position"]})
    assert "snapshot" not in answer
    answer = await client.call("subscribe", {"channel": "state:x", "position": "0.0."})
    assert (answer["recovered"], answer["snapshot"]) == (False, {"room": "x"})


async def test_what_no_topic_declares_is_refused(serve: Serve, manager: SocketsManager) -> None:
    """With topics, clients and server code have those channels, events and types, and no others."""
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


async def test_a_slow_client_reads_on_where_it_was(serve: Serve, manager: SocketsManager) -> None:
    """It gets each message once and in order, while little waits for it, and is not closed."""
    served = await serve(Small, manager)
    client = await served.connect_raw()
    client.frame(b'{"id": 1, "method": "subscribe", "payload": {"channel": "big"}}')
    await client.read()
    (websocket,) = manager.sockets
    total, text = 1500, "x" * 4000
    for n in range(total):
        await manager.publish("big", "n", {"n": n, "text": text})
        assert websocket.queued_bytes < 256 * 1024
    assert manager.metrics.lagged
    for n in range(total):
        opcode, payload = await client.read()
        assert opcode == 1
        assert json.loads(payload)["data"]["n"] == n
    await manager.publish("big", "n", {"n": total, "text": ""})
    assert json.loads((await client.read())[1])["data"]["n"] == total
    assert websocket.close_code is None


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


async def test_a_slow_client_that_falls_out_of_the_history_is_told(serve: Serve, manager: SocketsManager) -> None:
    """A gap notice comes before what is newer."""
    served = await serve(Small, manager)
    client = await served.connect_raw()
    client.frame(b'{"id": 1, "method": "subscribe", "payload": {"channel": "chat:a"}}')
    await client.read()
    text = "x" * 4000
    for n in range(500):
        await manager.publish("chat:a", "said", Said(text=f"{n} {text}"))
    await until(lambda: manager.metrics.lagged)
    last, is_told, gaps = -1, False, 0
    while last < 500:
        message = json.loads((await client.read())[1])
        if "notice" in message:
            assert message["data"] == {"channel": "chat:a", "reason": "trimmed"}
            is_told, gaps = True, gaps + 1
            await manager.publish("chat:a", "said", Said(text=str(499 + gaps)))
            continue
        number = int(message["data"]["text"].split()[0])
        assert number == last + 1 or (number > last and is_told)
        last, is_told = number, False
    assert gaps
