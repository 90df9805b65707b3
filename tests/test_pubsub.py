"""Subscribing and publishing, by clients and by server code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from conftest import Serve, until
from pydantic import BaseModel, PrivateAttr, field_serializer

from openapi_ws import (
    CannotPublish,
    CannotSubscribe,
    LocalBroker,
    Publish,
    SocketsManager,
    Subscribe,
    WsPathMixin,
    ws_rpc,
)


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """A view with rooms, and methods that publish."""

    def get_publish_message(self, data: Any) -> Any:
        if data == "forbidden":
            raise CannotPublish("says the view")
        return {"said": data} if data == "wrap" else data

    async def ws_rpc_enter(self, payload: str) -> None:
        await self.join(payload)

    async def ws_rpc_exit(self, payload: str) -> None:
        await self.leave(payload)

    async def ws_rpc_tell(self, payload: str) -> str:
        await self.sockets.publish("c", "told", payload)
        return payload

    async def ws_rpc_tell_others(self, payload: str) -> None:
        await self.sockets.publish("c", "told", payload, exclude=self.websocket)

    @ws_rpc(reply_first=True)
    async def ws_rpc_answer_first(self, payload: str) -> str:
        await self.sockets.publish("c", "told", payload)
        await asyncio.sleep(0.01)
        return payload


async def test_subscribe_answers_with_all_subscriptions(serve: Serve) -> None:
    """Channels with their event names and patterns; none means ``*``; saying it twice changes nothing."""
    client = await (await serve(Stream)).connect()
    assert await client.call("subscribe", {"channel": "a", "event": "x"}) == {"subscribed": {"a": ["x"]}}
    assert await client.call("subscribe", {"channel": "b"}) == {"subscribed": {"a": ["x"], "b": ["*"]}}
    assert await client.call("subscribe", {"channel": "a", "event": "x"}) == {"subscribed": {"a": ["x"], "b": ["*"]}}
    assert await client.call("unsubscribe", {"channel": "a", "event": "x"}) == {"subscribed": {"b": ["*"]}}
    assert (await client.error("unsubscribe", {"channel": "a"}))["errors"] == {"channel": "Invalid channel"}
    assert await client.call("unsubscribe", {"channel": "b", "event": "never"}) == {"subscribed": {"b": ["*"]}}


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "publish"])
@pytest.mark.parametrize(
    ("payload", "errors"),
    [
        ({}, {"channel": "required"}),
        ({"channel": ""}, {"channel": "at least 1 character"}),
        ({"channel": 1}, {"channel": "valid string"}),
        ({"channel": "c" * 256}, {"channel": "at most 255"}),
        ({"channel": "with space"}, {"channel": "match pattern"}),
        ({"channel": "ümlaut"}, {"channel": "match pattern"}),
        ({"channel": "line\n"}, {"channel": "match pattern"}),
        ({"channel": "c", "event": "e" * 256}, {"event": "at most 255"}),
        ({"channel": "c", "event": 1}, {"event": "valid string"}),
    ],
)
async def test_a_wrong_channel_or_event_is_answered(
    serve: Serve, method: str, payload: dict[str, Any], errors: dict[str, str]
) -> None:
    """By field, as with any payload."""
    client = await (await serve(Stream)).connect()
    error = await client.error(method, payload)
    assert error["code"] == -32602
    assert error["errors"].keys() == errors.keys()
    assert all(why in error["errors"][field] for field, why in errors.items())


class Few(Stream):
    max_subscriptions = 2


async def test_subscriptions_are_limited(serve: Serve) -> None:
    """The third event is refused, one that is there is not new, and what the server joins is its own affair."""
    client = await (await serve(Few)).connect()
    for event in ("a", "b"):
        await client.call("subscribe", {"channel": "c", "event": event})
    assert (await client.error("subscribe", {"channel": "c", "event": "c"}))["code"] == -32005
    await client.call("subscribe", {"channel": "c", "event": "b"})
    await client.call("enter", "room")
    await client.call("unsubscribe", {"channel": "c", "event": "a"})
    await client.call("exit", "room")
    await client.call("subscribe", {"channel": "c", "event": "c"})


async def test_publish_answers_with_what_was_published(serve: Serve) -> None:
    """The message may be made from the data; the view may refuse it, and then nobody gets it."""
    client = await (await serve(Stream)).connect()
    await client.call("subscribe", {"channel": "c"})
    published = {"channel": "c", "event": "e", "data": {"said": "wrap"}}
    assert await client.call("publish", {"channel": "c", "event": "e", "data": "wrap"}) == published
    error = await client.error("publish", {"channel": "c", "event": "e", "data": "forbidden"})
    assert (error["code"], error["errors"]) == (-32602, {"channel": "Cannot publish to channel"})
    assert await client.call("publish", {"channel": "c"}) == {"channel": "c", "event": None, "data": None}
    assert await client.message() == published
    assert await client.message() == {"channel": "c", "event": "", "data": None}


@pytest.mark.parametrize("latency", [0.0, 0.005])
async def test_a_publisher_gets_its_answer_before_its_own_message(serve: Serve, latency: float) -> None:
    """On its own channel, from a near and a far broker, also when the call is an entry of a batch."""
    served = await serve(Stream, lambda_manager(latency))
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    for number in range(20):
        await client.send({"id": number, "method": "publish", "payload": {"channel": "c", "data": number}})
    frames = [await client.receive() for _ in range(40)]
    order = [frame["id"] if "id" in frame else f"message {frame['data']}" for frame in frames]
    assert all(order.index(number) < order.index(f"message {number}") for number in range(20))
    assert [frame["data"] for frame in frames if "channel" in frame] == list(range(20))
    call = {"jsonrpc": "2.0", "id": 1, "method": "publish", "params": {"channel": "c", "data": 1}}
    await client.send([call])
    assert isinstance(await client.receive(), list)
    assert (await client.receive())["data"] == 1


def lambda_manager(latency: float) -> type[LocalBroker]:
    """A broker class with *latency* as its default."""

    class Far(LocalBroker):
        def __init__(self) -> None:
            super().__init__(latency)

    return Far


async def test_a_method_that_publishes_and_returns_answers_first(serve: Serve) -> None:
    """Answers of a tick leave before its messages; ``reply_first`` holds also when the method goes on to wait."""
    client = await (await serve(Stream)).connect()
    await client.call("subscribe", {"channel": "c"})
    for method in ("tell", "answer_first"):
        await client.send({"id": 1, "method": method, "payload": "x"})
        assert (await client.receive())["response"] == "x"
        assert (await client.receive())["event"] == "told"


async def test_no_message_comes_before_the_subscribe_answer(serve: Serve) -> None:
    """A client that learns of its subscription by the answer misses nothing and wonders at nothing."""
    served = await serve(Stream, lambda_manager(0.005))
    client = await served.connect()
    await client.send({"id": "s", "method": "subscribe", "payload": {"channel": "c"}})
    await until(lambda: "c" in served.manager.channels)
    await SocketsManager.publish(served.manager, "c", "early")
    assert (await client.receive())["id"] == "s"
    assert (await client.receive())["event"] == "early"


async def test_no_message_comes_after_the_unsubscribe_answer(serve: Serve) -> None:
    """What was published before it goes out before it."""
    served = await serve(Stream)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    raw = await served.connect_raw()
    for number in range(5):
        raw.frame(b'{"id":%d,"method":"tell","payload":"x"}' % number)
    await client.send({"id": "u", "method": "unsubscribe", "payload": {"channel": "c"}})
    frames = [await client.receive()]
    while frames[-1].get("id") != "u":
        frames.append(await client.receive())
    await client.call("tell", "after")
    assert not client.pushed


async def test_subscribe_unsubscribe_and_publish_of_one_socket_keep_their_order(serve: Serve) -> None:
    """Sent without waiting, over a far broker: each publish meets the subscriptions made before it."""
    served = await serve(Stream, lambda_manager(0.005))
    client = await served.connect()
    for number, method in enumerate(["publish", "subscribe", "publish", "unsubscribe", "publish"]):
        await client.send({"id": number, "method": method, "payload": {"channel": "c", "event": str(number)}
                           if method == "publish" else {"channel": "c"}})  # fmt: skip
    frames = [await client.receive() for _ in range(6)]
    assert [frame["id"] for frame in frames if "id" in frame] == [0, 1, 2, 3, 4]
    assert [frame["event"] for frame in frames if "channel" in frame] == ["2"]


async def test_server_code_publishes_from_anywhere(serve: Serve) -> None:
    """From an HTTP handler, from a background task, and to all but one."""
    app = web.Application()

    async def handler(request: web.Request) -> web.Response:
        await request.app["web_sockets"].publish("c", "http", {"from": "handler"})
        return web.Response()

    app.router.add_post("/publish", handler)
    served = await serve(Stream, app=app)
    clients = [await served.connect() for _ in range(2)]
    for client in clients:
        await client.call("subscribe", {"channel": "c"})
    async with served.session.post(served.server.make_url("/publish")) as response:
        assert response.status == 200
    await asyncio.create_task(served.manager.publish("c", "task", [1]))
    await clients[0].call("tell_others", "others")
    await clients[0].call("tell", "all")
    heard = [
        [(await client.message())["event"] for _ in range(count)] for client, count in zip(clients, (3, 4), strict=True)
    ]
    assert heard == [["http", "task", "told"], ["http", "task", "told", "told"]]


async def test_server_code_puts_the_caller_on_a_channel(serve: Serve) -> None:
    """`join` and `leave` are rooms; leaving one that was not joined is no error."""
    served = await serve(Stream)
    inside, outside = [await served.connect() for _ in range(2)]
    await outside.call("exit", "room")
    await inside.call("enter", "room")
    await served.manager.publish("room", "hello")
    assert (await inside.message())["channel"] == "room"
    await inside.call("exit", "room")
    await served.manager.publish("room", "nobody")
    await inside.call("enter", "room")
    await served.manager.publish("room", "again")
    assert (await inside.message())["event"] == "again"
    await outside.call("tell", "x")
    assert not outside.pushed


async def test_pushes_go_out_in_the_dialect_of_the_subscription(serve: Serve) -> None:
    """Two clients of one channel, each in its own dialect, whatever they speak afterwards."""
    served = await serve(Stream)
    house, jsonrpc = [await served.connect() for _ in range(2)]
    await house.call("subscribe", {"channel": "c"})
    await jsonrpc.send({"jsonrpc": "2.0", "id": 1, "method": "enter", "params": ["c"]})
    await jsonrpc.receive()
    await jsonrpc.call("exit", "other")
    await served.manager.publish("c", "e", {"n": 1})
    members = {"channel": "c", "event": "e", "data": {"n": 1}}
    assert await house.receive() == members
    assert await jsonrpc.receive() == {"jsonrpc": "2.0", "method": "rpc.message", "params": members}


class Counted(BaseModel):
    """Data that counts how often it is written."""

    n: int
    _written: list[int] = PrivateAttr(default_factory=list)

    @field_serializer("n")
    def _count(self, n: int) -> int:
        self._written.append(n)
        return n


async def test_a_message_is_encoded_once_however_many_listen(serve: Serve) -> None:
    """Twenty clients of two dialects, patterns and names: its data is written once."""
    served = await serve(Stream)
    clients = [await served.connect(protocols=[("openapi-ws.v1", "jsonrpc-2.0")[n % 2]]) for n in range(20)]
    for number, client in enumerate(clients):
        params = {"channel": "c", "event": "*" if number % 4 else "e"}
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "payload": params, "params": params})
        await client.receive()
    data = Counted(n=1)
    await served.manager.publish("c", "e", data)
    for client in clients:
        frame = await client.receive()
        assert frame.get("params", frame)["data"] == {"n": 1}
    assert data._written == [1]


async def test_messages_of_one_publisher_arrive_in_order(serve: Serve) -> None:
    """1,000 messages, from a client that does not wait for its answers one by one."""
    served = await serve(Stream)
    publisher, subscriber = [await served.connect() for _ in range(2)]
    await subscriber.call("subscribe", {"channel": "c"})
    for start in range(0, 1000, 20):
        for number in range(start, start + 20):
            await publisher.send({"id": number, "method": "publish", "payload": {"channel": "c", "data": number}})
        for _ in range(20):
            assert "response" in await publisher.receive()
    assert [(await subscriber.message())["data"] for _ in range(1000)] == list(range(1000))


class Joining(Stream):
    async def connected(self) -> None:
        await self.join("lobby")


async def test_a_client_that_was_joined_before_it_spoke_gets_messages_in_its_dialect(serve: Serve) -> None:
    """House until it has spoken, then the dialect it spoke last, as no subscription of its own says otherwise."""
    served = await serve(Joining)
    client = await served.connect()
    await until(lambda: "lobby" in served.manager.channels)
    await served.manager.publish("lobby", "e")
    assert (await client.receive())["channel"] == "lobby"
    await client.send({"jsonrpc": "2.0", "id": 1, "method": "exit", "params": ["other"]})
    await client.receive()
    await served.manager.publish("lobby", "e")
    assert (await client.receive())["method"] == "rpc.message"


async def test_a_refused_subscription_does_not_change_the_dialect(serve: Serve) -> None:
    """Messages go on in the dialect of the subscription that holds."""

    class Choosy(SocketsManager):
        async def subscribe(self, channel: str) -> None:
            if channel == "none":
                raise CannotSubscribe

    served = await serve(Stream, Choosy)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    await client.send({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": {"channel": "none"}})
    assert (await client.receive())["error"]["data"] == {"errors": {"channel": "Invalid channel"}}
    await served.manager.publish("c", "e")
    assert (await client.receive())["channel"] == "c"


class Late(WsPathMixin, web.View):
    """A method that will not stop, and joins when its client is gone."""

    outcome: list[BaseException | None]
    waiting = 0

    async def ws_rpc_late(self) -> None:
        type(self).waiting += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await self.join("c")
                self.outcome.append(None)
            except ConnectionResetError as error:
                self.outcome.append(error)


async def test_a_client_that_is_gone_cannot_be_joined(serve: Serve) -> None:
    """A method that outlives its client finds it gone, and leaves nothing behind."""
    Late.outcome = []
    served = await serve(Late)
    client = await served.connect()
    await client.send({"id": 1, "method": "late"})
    await until(lambda: Late.waiting)
    await client.ws.close()
    await until(lambda: Late.outcome)
    assert [type(outcome) for outcome in Late.outcome] == [ConnectionResetError]
    assert not len(served.manager.channels)


class Inviting(Stream):
    """A view whose clients put others on channels."""

    views: list[Inviting]

    async def connected(self) -> None:
        self.views.append(self)

    async def ws_rpc_invite(self, payload: str) -> None:
        for view in self.views:
            await view.join(payload)


async def test_a_client_is_joined_in_its_own_dialect_whoever_asks(serve: Serve) -> None:
    """The dialect of a call is that of its caller alone; others keep what they negotiated, or spoke last."""
    Inviting.views = []
    served = await serve(Inviting)
    caller = await served.connect()
    negotiated = await served.connect(protocols=["jsonrpc-2.0"])
    silent = await served.connect()
    await until(lambda: len(Inviting.views) == 3)
    await caller.call("invite", "room")
    await served.manager.publish("room", "e")
    assert (await caller.receive())["channel"] == "room"
    assert (await negotiated.receive())["method"] == "rpc.message"
    assert (await silent.receive())["channel"] == "room"
