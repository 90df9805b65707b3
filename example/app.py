"""The server: rooms to chat in, and the machine's load, published once a second."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, Field

from openapi_ws import History, Presence, RpcError, SocketsManager, Subscribe, Topic, WsPathMixin, ws_rpc

HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'"}


class Visit(BaseModel, str_strip_whitespace=True):
    """Who is, or would like to be, in which room; its name is part of a channel's name."""

    room: str = Field(max_length=30, pattern="^[A-Za-z0-9-]+$")
    name: str = Field(min_length=1, max_length=30)


class Said(BaseModel, str_strip_whitespace=True):
    """What is said; name and time are the server's word, whatever a client sends."""

    text: str = Field(min_length=1, max_length=500)
    name: str = ""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


CHAT = Topic("chat:{room}", events={"said": Said}, history=History(size=200, ttl=24 * 3600), presence=True)
LOAD = Topic("load", events={"measured": dict[str, float]}, history=History(size=60, ttl=60))
NAME_TAKEN, IN_NO_ROOM, NAME_FIXED = 1, 2, 3  # error codes: an application's own are any outside -32768…-32000
SOCKETS = web.AppKey("SOCKETS", SocketsManager)


class Chat(WsPathMixin, Subscribe, Presence, web.View):
    """One browser tab. `Subscribe` lets it listen to all channels and read what they keep: rooms are public here."""

    SOCKETS_KEY = SOCKETS
    member_linger = 5.0  # seconds: a page that is loaded anew is back by then
    chat = name = ""  # the channel of the room, and what the visitor is called there

    def identity(self) -> str | None:
        """Know a tab again by its secret; others see a hash of it, so none can pass for it."""
        return hashlib.sha256(tab.encode()).hexdigest()[:16] if (tab := self.request.query.get("tab")) else None

    async def member_info(self, channel: str) -> str | None:
        """Show the visitor's name to others; who listens without a visit has none."""
        return self.name if channel == self.chat else None

    async def ws_rpc_presence_update(self, payload: object) -> dict[str, object]:
        """Refuse: a name is taken by `enter` alone."""
        raise RpcError(NAME_FIXED, "Enter again to be called otherwise")

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_enter(self, payload: Visit) -> Visit:
        """Enter a room, out of the one before; answers the visit as it was accepted."""
        await self.ws_rpc_leave()
        self.chat, self.name = CHAT.channel(room=payload.room), payload.name
        await self.leave(self.chat)  # who only listened until now is there without a name
        await self.join(self.chat, "here")  # no event: the page subscribes to words, from the position that it is at
        for user, info in await self.sockets.members(self.chat, limit=10_000):  # not before: two could come at once
            if json.loads(info) == payload.name and user != (self.websocket.identity or self.socket_id):
                await self.ws_rpc_leave()
                raise RpcError(NAME_TAKEN, f"Somebody in {payload.room} is called {payload.name} already")
        return payload

    @ws_rpc(ordered=True)
    async def ws_rpc_say(self, payload: Said) -> None:
        """Say something to all in the room."""
        if not self.chat:
            raise RpcError(IN_NO_ROOM, "Enter a room first")
        await self.sockets.publish(self.chat, "said", Said(text=payload.text, name=self.name))

    @ws_rpc(ordered=True)
    async def ws_rpc_leave(self) -> None:
        """Leave the room, if in one, and hear no more of it."""
        chat, self.chat = self.chat, ""
        await self.leave(chat)


async def page(request: web.Request) -> web.FileResponse:
    """Send the page, or a file that it asks for: never the Python code beside them."""
    return web.FileResponse(Path(__file__).with_name(request.match_info["file"] or "page.html"), headers=HEADERS)


async def measuring(app: web.Application) -> AsyncIterator[None]:
    """Publish the machine's load once a second; of workers that do, the key lets the first through."""

    async def measure() -> None:
        while True:
            await asyncio.sleep(1)
            data = {"load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, "cores": os.cpu_count() or 1}
            with contextlib.suppress(RpcError):  # Redis may be down: the next second is another try
                await app[SOCKETS].publish("load", "measured", data, key=f"{datetime.now(UTC):%X}")

    task = asyncio.create_task(measure())
    yield
    task.cancel()
    await asyncio.wait([task])


def create_app(redis: str | None = None) -> web.Application:
    """Make the application, ready to run; all that share a *redis*, by its URL, have the same rooms."""
    app = web.Application()
    if redis:
        from openapi_ws.brokers.redis import RedisBroker  # here: a newcomer's environment has no redis-py

        app[SOCKETS] = RedisBroker.for_app(app, url=redis, topics=[CHAT, LOAD])
    else:
        app[SOCKETS] = SocketsManager.for_app(app, topics=[CHAT, LOAD])
    app.cleanup_ctx.append(measuring)
    app.add_routes([web.view("/ws", Chat), web.get(r"/{file:(?:\w+\.(?:css|js|svg))?}", page)])
    return app
