"""The public API under a type checker: what users write type-checks, in every order of bases."""

from collections import Counter
from typing import Any, assert_type

from aiohttp import web
from pydantic import BaseModel

from openapi_ws import (
    Channels,
    History,
    LocalBroker,
    Position,
    Presence,
    Publish,
    RpcError,
    SocketsManager,
    Subscribe,
    Topic,
    UnknownChannel,
    Websocket,
    WsPathMixin,
    conflate,
    ws_rpc,
)


class Order(BaseModel):
    symbol: str


class MixinFirst(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_place(self, payload: Order) -> Order:
        assert_type(self.request, web.Request)
        assert_type(self.sockets, SocketsManager)
        assert_type(self.channels, Channels)
        assert_type(self.websocket, Websocket)
        assert_type(self.socket_id, str)
        await self.join("room")
        await self.leave("room")
        await self.sockets.publish("orders", "placed", payload, exclude=self.websocket)
        return payload

    @ws_rpc(name="order.cancel", ordered=True, deprecated=True, tags=["orders"])
    async def ws_rpc_cancel(self) -> None:
        raise RpcError(1, "No", errors={"symbol": "unknown"}, retry_after=1.5)

    async def connected(self) -> None: ...
    async def disconnected(self, code: int) -> None: ...


class ViewFirst(web.View, WsPathMixin, Publish, Subscribe):
    SOCKETS_KEY = web.AppKey("sockets", SocketsManager)
    slow_consumer = conflate(lambda message: message.event)
    max_queue_bytes = 64 * 1024
    heartbeat = None
    call_timeout = 5

    def identity(self) -> str | None:
        return self.request.query.get("user")

    @ws_rpc(timeout=None)
    async def ws_rpc_stream(self) -> None:
        await self.send("c", "e", Order(symbol="A"))

    async def ws_rpc_untyped(self, payload: Any) -> Any:
        return payload


class Shown(Presence, web.View, WsPathMixin, Subscribe):
    member_linger = 5

    async def member_info(self, channel: str) -> Order:
        return Order(symbol=channel)


async def load(room: str) -> Order:
    return Order(symbol=room)


ORDERS = Topic("orders:{room}", data=Order, history=History(size=10, ttl=60), publish=True, snapshot=load)
PRICES = Topic("prices", events={"changed": float}, doc="Prices as they change")
assert_type(ORDERS.channel(room="a"), str)
assert_type(Position.parse("a.0."), Position | None)

app = web.Application()
assert_type(SocketsManager.for_app(app), SocketsManager)
assert_type(LocalBroker.for_app(app, latency=0.1, topics=[ORDERS, PRICES]), LocalBroker)


async def server_code(manager: SocketsManager) -> None:
    async def hear(channel: str, event: str, data: Any) -> None: ...

    try:
        position = await manager.publish(ORDERS.channel(room="a"), "placed", Order(symbol="A"), key="k")
    except UnknownChannel as error:
        assert_type(error.code, int)
    else:
        assert_type(position, str | None)
    await manager.channels.register("c", "*", hear)
    assert_type(manager.sockets, set[Websocket])
    for websocket in manager.sockets:
        await websocket.close(4503, "kicked")
        await websocket.move(within=1.0, grace=5.0)
    assert_type(await manager.send_to("ada", "mail", Order(symbol="A")), int | None)
    assert_type(await manager.close(identity="ada", code=4503, reason="kicked"), int | None)
    assert_type(await manager.members("room:a", limit=10, after="ada"), list[tuple[str, bytes]])
    assert_type((await manager.member_counts("room:a")).users, int)
    assert_type(manager.ready, bool)
    assert_type(manager.metrics.closes, Counter[int | str])
    await manager.drain(5)
