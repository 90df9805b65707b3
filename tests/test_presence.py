"""Who is here: clients shown to each other, and one user reached on all of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from conftest import Client, Serve, Served, until
from pydantic import BaseModel, Field

from openapi_ws import LocalBroker, Presence, Publish, SetupError, SocketsManager, Subscribe, Topic, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker


class Profile(BaseModel):
    """What is said of a user."""

    name: str
    mood: str = Field(default="fine", max_length=5000)


class Stream(WsPathMixin, Subscribe, Publish, Presence, web.View):
    """What clients may do."""

    member_linger = 0.3

    def identity(self) -> str | None:
        return self.request.query.get("user")

    async def member_info(self, channel: str) -> Profile:
        return Profile(name=f"{self.identity()} of {channel}")

    async def ws_rpc_enter(self, payload: str) -> None:
        await self.join(payload)

    async def ws_rpc_exit(self, payload: str) -> None:
        await self.leave(payload)


class Plain(Presence, WsPathMixin, Subscribe, web.View):
    """Says nothing of its clients; its bases are in another order."""


class Hidden(WsPathMixin, Subscribe, web.View):
    """Shows nobody."""


class Torn(WsPathMixin, Subscribe, Presence, web.View):
    """Does not know its clients."""

    async def member_info(self, channel: str) -> Profile:
        raise KeyError(channel)


TOPICS = [Topic("room:{name}", presence=True), Topic("bare:{name}")]


class Redis(RedisBroker):
    """Looks often for those who are gone."""

    member_ttl = 2.0
    member_refresh = 0.5


@pytest.fixture(params=["at once", "after a while", "redis"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[SocketsManager]:
    match request.param:
        case "at once":
            yield SocketsManager(TOPICS)
        case "after a while":
            yield LocalBroker(0.001, TOPICS)
        case _:
            broker = Redis(request.getfixturevalue("redis_server").url, topics=TOPICS)
            await broker.start()
            yield broker
            await broker.stop()


async def come(served: Served, user: str | None = None, channel: str = "room:a") -> Client:
    client = await served.connect("/stream" if user is None else f"/stream?user={user}")
    await client.call("subscribe", {"channel": channel})
    return client


async def notice(client: Client) -> tuple[str, list[str]]:
    """Kind and users of the next notice."""
    frame = client.pushed.pop(0) if client.pushed else await client.receive()
    assert frame["data"]["channel"] == "room:a"
    return frame["notice"], [member["user"] for member in frame["data"]["members"]]


async def present(client: Client, channel: str = "room:a") -> list[str]:
    answer = await client.call("presence", {"channel": channel})
    return [member["user"] for member in answer["members"]]


async def test_members_see_each_other_come_and_go(serve: Serve, manager: SocketsManager) -> None:
    """What is told is what those who ask are answered, with what the view says of each."""
    served = await serve(Stream, manager)
    ada = await come(served, "ada")
    assert await notice(ada) == ("join", ["ada"])
    bob = await come(served, "bob")
    bobs = {"user": "bob", "info": {"name": "bob of room:a", "mood": "fine"}}
    assert await ada.receive() == {"notice": "join", "data": {"channel": "room:a", "members": [bobs]}}
    assert (await bob.call("presence", {"channel": "room:a"}))["members"][1] == bobs
    assert await bob.call("presence_stats", {"channel": "room:a"}) == {"connections": 2, "users": 2}
    await bob.call("unsubscribe", {"channel": "room:a"})
    assert await ada.receive() == {"notice": "leave", "data": {"channel": "room:a", "members": [bobs]}}
    assert await present(ada) == ["ada"]


async def test_tabs_of_a_user_are_one(serve: Serve, manager: SocketsManager) -> None:
    """A second connection, and a second event of one connection, are nothing new; the last that goes is the leave."""
    served = await serve(Stream, manager)
    bob = await come(served, "bob")
    tabs = [await come(served, "ada") for _ in range(2)]
    assert await notice(bob) == ("join", ["bob", "ada"])
    await tabs[0].call("subscribe", {"channel": "room:a", "event": "b"})
    await tabs[0].call("unsubscribe", {"channel": "room:a"})
    assert await bob.call("presence_stats", {"channel": "room:a"}) == {"connections": 3, "users": 2}
    await tabs[0].ws.close()
    await tabs[1].ws.close()
    assert await notice(bob) == ("leave", ["ada"])


async def test_a_page_that_is_loaded_anew_is_no_news(serve: Serve, manager: SocketsManager) -> None:
    """Who is lost and comes back in time was never away; who does not come back leaves when the time is over."""
    served = await serve(Stream, manager)
    bob = await come(served, "bob")
    ada = await come(served, "ada")
    assert await notice(bob) == ("join", ["bob", "ada"])
    assert ada.ws._response.connection is not None
    ada.ws._response.connection.close()
    await until(lambda: len(manager.sockets) == 1)
    ada = await come(served, "ada")
    assert await present(bob) == ["ada", "bob"]
    await ada.ws.close(code=1001)
    assert await notice(bob) == ("leave", ["ada"])
    assert await present(bob) == ["bob"]


class Patient(Stream):
    """Waits long for who is lost."""

    member_linger = 1000.0


@pytest.mark.parametrize("code", [1001, 1006, 1012, 4012])
async def test_who_is_expected_back_is_still_present(serve: Serve, manager: SocketsManager, code: int) -> None:
    """A page that is loaded anew, a lost link, a server that restarts, a client that was silent: all come back."""
    served = await serve(Patient, manager)
    bob, ada = await come(served, "bob"), await come(served, "ada")
    (websocket,) = (ws for ws in manager.sockets if ws.identity == "ada")
    if code == 1001:
        await ada.ws.close(code=code)
    elif code == 1006:
        assert ada.ws._response.connection is not None
        ada.ws._response.connection.close()
    else:
        websocket.close_soon(code)
        await ada.closed()
    await until(lambda: websocket not in manager.sockets and not manager.roster.departures)
    assert await present(bob) == ["ada", "bob"]
    assert await bob.call("presence_stats", {"channel": "room:a"}) == {"connections": 2, "users": 2}


async def test_who_comes_back_while_it_leaves_is_present(serve: Serve, manager: SocketsManager) -> None:
    """What is told last is what is true, however soon it follows."""
    served = await serve(Stream, manager)
    bob, _ada = await come(served, "bob"), await come(served, "ada")
    (websocket,) = (ws for ws in manager.sockets if ws.identity == "ada")
    manager.channels.remove(websocket)
    await manager.channels.register("room:a", "*", websocket)
    await manager.appear(websocket, "room:a")
    assert await present(bob) == ["ada", "bob"]


async def test_a_clean_close_leaves_at_once(serve: Serve, manager: SocketsManager) -> None:
    """Nobody waits for who says goodbye, however long the linger is; nor for who is told to stay away."""
    served = await serve(Patient, manager)
    bob = await come(served, "bob")
    for code in (1000, None):
        ada = await come(served, "ada")
        if code is not None:
            await ada.ws.close(code=code)
        else:
            assert await manager.close(identity="ada") in (1, None)
            assert await ada.closed() == 4503
        await until(lambda: len(manager.sockets) == 1 and not manager.roster.departures)
        assert await present(bob) == ["bob"]


async def test_who_comes_and_goes_within_a_moment_is_not_told_of(serve: Serve, manager: SocketsManager) -> None:
    """A notice says what has changed in a quarter of a second, and no more."""
    served = await serve(Stream, manager)
    bob = await come(served, "bob")
    assert await notice(bob) == ("join", ["bob"])
    ada = await served.connect("/stream?user=ada")
    for _ in range(3):
        await ada.call("subscribe", {"channel": "room:a"})
        await ada.call("unsubscribe", {"channel": "room:a"})
    cid = await come(served, "cid")
    assert await notice(bob) == ("join", ["cid"])
    await ada.ws.close()
    await cid.ws.close()
    assert await notice(bob) == ("leave", ["cid"])


async def test_a_client_says_something_else_of_itself(serve: Serve, manager: SocketsManager) -> None:
    """All are told by another join; what is not of the type of member_info is refused."""
    served = await serve(Stream, manager)
    ada, bob = await come(served, "ada"), await come(served, "bob")
    await notice(bob)
    update = {"channel": "room:a", "info": {"name": "Ada"}}
    info = {"name": "Ada", "mood": "fine"}
    assert await ada.call("presence_update", update) == {"channel": "room:a", "info": info}
    assert await bob.receive() == {
        "notice": "join", "data": {"channel": "room:a", "members": [{"user": "ada", "info": info}]}
    }  # fmt: skip
    assert (await bob.call("presence", {"channel": "room:a", "limit": 1}))["members"][0]["info"] == info
    for payload, where in [
        ({"channel": "room:a", "info": {"name": 1}}, "info.name"),
        ({"channel": "room:a", "info": {"name": "Ada", "mood": "x" * 5000}}, "info"),
        ({"channel": "room:b", "info": {"name": "Ada"}}, "channel"),
    ]:
        error = await ada.error("presence_update", payload)
        assert (error["code"], list(error["errors"])) == (-32602, [where])


async def test_a_view_that_says_nothing_lets_clients_say_nothing(serve: Serve, manager: SocketsManager) -> None:
    """Without `member_info` users are names alone; a client without an identity is named by its socket."""
    served = await serve(Plain, manager)
    client = await come(served)
    (websocket,) = manager.sockets
    answer = await client.call("presence", {"channel": "room:a"})
    assert answer == {"members": [{"user": websocket.socket_id, "info": None}]}
    error = await client.error("presence_update", {"channel": "room:a", "info": None})
    assert list(error["errors"]) == ["info"]


async def test_members_are_read_in_pages(serve: Serve, manager: SocketsManager) -> None:
    """Each page leads to the next, and the last to none."""
    served = await serve(Stream, manager)
    clients = [await come(served, f"user{n}") for n in range(5)]
    pages, after = list[list[str]](), None
    while not pages or after is not None:
        answer = await clients[0].call("presence", {"channel": "room:a", "limit": 2, "after": after})
        pages.append([member["user"] for member in answer["members"]])
        after = answer.get("next")
    assert pages == [["user0", "user1"], ["user2", "user3"], ["user4"]]


async def test_rooms_show_whom_server_code_puts_there(serve: Serve, manager: SocketsManager) -> None:
    """`join` and `leave` are as good as subscribe and unsubscribe, and so is what takes a client off unasked."""
    served = await serve(Stream, manager)
    bob, ada = await come(served, "bob"), await served.connect("/stream?user=ada")
    await ada.call("enter", "room:a")
    assert await present(bob) == ["ada", "bob"]
    await ada.call("exit", "room:a")
    assert await present(bob) == ["bob"]
    await ada.call("enter", "room:a")
    (websocket,) = (ws for ws in manager.sockets if ws.identity == "ada")
    manager.channels.remove(websocket)
    await until(lambda: not manager.roster.departures)
    assert await present(bob) == ["bob"]


async def test_only_what_is_declared_shows_its_members(serve: Serve, manager: SocketsManager) -> None:
    """Any other channel says that it does not, and tells nobody."""
    served = await serve(Stream, manager)
    ada = await come(served, "ada", "bare:a")
    for method, more in [("presence", {}), ("presence_stats", {}), ("presence_update", {"info": None})]:
        error = await ada.error(method, {"channel": "bare:a", **more})
        assert (error["code"], error["errors"]) == (-32602, {"channel": "the channel has no presence"})
        assert (await ada.error(method, {"channel": "other", **more}))["code"] == -32004
    assert not len(manager.roster)
    assert not len(manager.rolls)


async def test_without_topics_there_is_no_presence(serve: Serve) -> None:
    """A channel shows its members only where that is declared."""
    served = await serve(Stream)
    ada = await come(served, "ada")
    error = await ada.error("presence", {"channel": "room:a"})
    assert (error["code"], error["errors"]) == (-32602, {"channel": "the channel has no presence"})


async def test_a_view_without_the_mixin_shows_nobody(serve: Serve, manager: SocketsManager) -> None:
    """Whoever listens through it is not present, and is told nothing."""
    app = web.Application()
    app.router.add_view("/hidden", Hidden)
    served = await serve(Stream, manager, app)
    spy = await served.connect("/hidden")
    await spy.call("subscribe", {"channel": "room:a"})
    ada = await come(served, "ada")
    assert await notice(ada) == ("join", ["ada"])
    assert await present(ada) == ["ada"]
    await spy.call("unsubscribe", {"channel": "room:a"})
    assert not spy.pushed


async def test_who_cannot_be_introduced_does_not_come_in(serve: Serve, manager: SocketsManager) -> None:
    """A view that fails to say who it is fails the subscription, and leaves nothing behind."""
    served = await serve(Torn, manager)
    client = await served.connect()
    assert (await client.error("subscribe", {"channel": "room:a"}))["code"] == -32603
    await until(lambda: not len(manager.channels))
    assert not len(manager.roster)
    with pytest.raises(ValueError, match="4096 bytes"):
        await _large().introduce("room:a")


def _large() -> Presence:
    class Large(Presence):
        async def member_info(self, channel: str) -> str:
            return "x" * 5000

    return Large()


async def test_nothing_is_left_of_those_who_are_gone(serve: Serve, manager: SocketsManager) -> None:
    """When the last linger is over, no channel, member or task is left, also of clients lost as they come."""
    served = await serve(Stream, manager)
    clients = [await served.connect(f"/stream?user={n % 3}") for n in range(9)]
    for client in clients:
        await client.send({"id": 1, "method": "subscribe", "payload": {"channel": "room:a"}})
    for n, client in enumerate(clients):
        if n % 2:
            await client.ws.close()
        else:
            assert client.ws._response.connection is not None
            client.ws._response.connection.close()
    await served.at_rest()
    await until(lambda: not len(manager.roster) and not len(manager.rolls) and not manager.roster.departures)


async def test_a_notice_comes_in_the_dialect_of_the_client(serve: Serve, manager: SocketsManager) -> None:
    """In JSON-RPC it is a notification."""
    served = await serve(Stream, manager)
    client = await served.connect("/stream?user=ada")
    await client.send({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": ["room:a"]})
    assert (await client.receive())["id"] == 1
    assert (await client.receive())["method"] == "rpc.join"


# -- one user -------------------------------------------------------------------------------------------------


async def test_a_message_reaches_all_connections_of_one_user(serve: Serve, manager: SocketsManager) -> None:
    """In the dialect of each, subscribed or not, and nobody else. A broker to other processes knows no number."""
    served = await serve(Stream, manager)
    ada, tab, bob = [await served.connect(f"/stream?user={user}") for user in ("ada", "ada", "bob")]
    await tab.send({"jsonrpc": "2.0", "id": 1, "method": "exit", "params": ["room:a"]})
    assert (await tab.receive())["id"] == 1
    assert await manager.send_to("ada", "mail", {"from": "bob"}) in (2, None)
    message = {"channel": "@user", "event": "mail", "data": {"from": "bob"}}
    assert await ada.receive() == message
    assert await tab.receive() == {"jsonrpc": "2.0", "method": "rpc.message", "params": message}
    assert await manager.send_to("eve", "mail") in (0, None)
    await bob.call("exit", "room:a")
    assert not bob.pushed


async def test_what_is_sent_to_a_user_outlives_its_subscriptions(serve: Serve, manager: SocketsManager) -> None:
    """To unsubscribe from a channel takes back nothing that was sent to the user."""
    served = await serve(Stream, manager)
    ada = await come(served, "ada")
    (websocket,) = manager.sockets
    websocket.hold()
    await manager.send_to("ada", "mail")
    await ada.call("unsubscribe", {"channel": "room:a"})
    websocket.release()
    assert await ada.message() == {"channel": "@user", "event": "mail", "data": None}


async def test_all_connections_of_one_user_are_closed(serve: Serve, manager: SocketsManager) -> None:
    """With the code and the reason given; a code that no frame may carry closes nobody."""
    served = await serve(Stream, manager)
    ada, tab, bob = [await served.connect(f"/stream?user={user}") for user in ("ada", "ada", "bob")]
    with pytest.raises(ValueError, match="1005"):
        await manager.close(identity="ada", code=1005)
    assert await manager.close(identity="ada", code=4100, reason="moved") in (2, None)
    assert [await ada.closed(), await tab.closed()] == [4100, 4100]
    await bob.call("exit", "room:a")
    await until(lambda: len(manager.sockets) == 1)
    assert await manager.close(identity="ada") in (0, None)


@pytest.mark.parametrize("topics", [[], [Topic("@{name}", publish=True)]], ids=["open", "declared"])
async def test_nobody_speaks_on_the_channel_of_one_user(serve: Serve, topics: list[Topic]) -> None:
    """``@user`` is no channel that anybody subscribes or publishes to: what comes on it comes from the server."""
    served = await serve(Stream, SocketsManager(topics))
    client = await served.connect()
    for method in ("subscribe", "publish"):
        assert (await client.error(method, {"channel": "@user"}))["code"] == -32004


def test_an_order_that_is_none_is_an_error() -> None:
    """A broker that hears nonsense learns that it is."""
    manager: Any = SocketsManager()
    sing, send = b'{"v": 1, "op": "sing", "identity": "ada"}', b'{"v": 1, "op": "send", "identity": "ada"}'
    for order in (b"", b"[]", b"{}", b'{"v": 9, "op": "close", "identity": "ada"}', sing, send):
        with pytest.raises(ValueError, match=r".+"):
            manager.obey(order)


def test_the_type_of_what_is_said_is_read_when_the_view_is_made() -> None:
    """A mistake is found at the start, not when the first client comes."""
    with pytest.raises(SetupError, match="member_info"):

        class Wrong(WsPathMixin, Presence, web.View):
            async def member_info(self, channel: str) -> asyncio.Event:
                return asyncio.Event()
