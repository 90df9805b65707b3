"""The server: rooms to chat in, and the machine's load, published once a second."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, Field

from openapi_ws import History, RpcError, SocketsManager, Subscribe, Topic, WsPathMixin, ws_rpc

FOLDER = Path(__file__).parent
HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'"}


class Visit(BaseModel, frozen=True, str_strip_whitespace=True):
    """Who is, or would like to be, in which room; its name is part of channels' names."""

    room: str = Field(max_length=30, pattern="^[A-Za-z0-9-]+$")
    name: str = Field(min_length=1, max_length=30)


class Words(BaseModel, str_strip_whitespace=True):
    """What somebody wants to say."""

    text: str = Field(min_length=1, max_length=500)


class Said(Words):
    """What was said; name and time are the server's word, not the client's."""

    name: str
    at: datetime


CHAT = Topic("chat:{room}", events={"said": Said}, history=History(size=200, ttl=24 * 3600))
DOOR = Topic("door:{room}", events={"entered": str, "left": str})
LOAD = Topic("load", events={"measured": dict[str, float]})
NAME_TAKEN, IN_NO_ROOM = 1, 2  # error codes: an application's own are any outside -32768…-32000
SOCKETS = web.AppKey("SOCKETS", SocketsManager)
VISITS = web.AppKey("VISITS", set[Visit])
routes = web.RouteTableDef()


@routes.view("/ws")
class Chat(WsPathMixin, Subscribe, web.View):
    """One browser tab. `Subscribe` lets it listen to all channels and read what they keep: rooms are public here."""

    SOCKETS_KEY = SOCKETS
    visit: Visit | None = None

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_enter(self, payload: Visit) -> tuple[Visit, list[str]]:
        """Enter a room, out of the one before; answers the visit as it was accepted, and the names of all there."""
        visits = self.request.app[VISITS]
        # Nothing is awaited until the name is ours: without this, two could get it.
        if payload in visits:
            raise RpcError(NAME_TAKEN, f"Somebody in {payload.room} is called {payload.name} already")
        visits.add(payload)
        await self.ws_rpc_leave()
        self.visit = payload
        door = DOOR.channel(room=payload.room)
        await self.join(door)
        await self.sockets.publish(door, "entered", payload.name, exclude=self.websocket)
        return payload, sorted(visit.name for visit in visits if visit.room == payload.room)

    @ws_rpc(ordered=True)
    async def ws_rpc_say(self, payload: Words) -> None:
        """Say something to all in the room."""
        if self.visit is None:
            raise RpcError(IN_NO_ROOM, "Enter a room first")
        said = Said(text=payload.text, name=self.visit.name, at=datetime.now(UTC))
        await self.sockets.publish(CHAT.channel(room=self.visit.room), "said", said)

    @ws_rpc(ordered=True)
    async def ws_rpc_leave(self) -> None:
        """Leave the room, if in one, and tell those who stay."""
        if self.visit is not None:
            visit, self.visit = self.visit, None
            self.request.app[VISITS].remove(visit)
            door = DOOR.channel(room=visit.room)
            await self.leave(door)
            await self.sockets.publish(door, "left", visit.name)

    async def disconnected(self, code: int) -> None:
        """Leave on behalf of a client that is gone, whether it closed the tab or lost its link."""
        await self.ws_rpc_leave()


@routes.get("/")
@routes.get(r"/{file:\w+\.(?:css|js|svg)}")
async def page(request: web.Request) -> web.FileResponse:
    """Send the page, or a file that it asks for: never the Python code beside them."""
    return web.FileResponse(FOLDER / request.match_info.get("file", "page.html"), headers=HEADERS)


async def measuring(app: web.Application) -> AsyncIterator[None]:
    """Publish the machine's load once a second, from the application's start to its end."""

    async def measure() -> None:
        while True:
            used = time.process_time()
            await asyncio.sleep(1)
            # Windows has no load average: the part of the second that this process used stands in for it.
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else time.process_time() - used
            await app[SOCKETS].publish("load", "measured", {"load": load, "cores": os.cpu_count() or 1})

    task = asyncio.create_task(measure())
    yield
    task.cancel()
    await asyncio.wait([task])


def create_app() -> web.Application:
    """Make the application, ready to run."""
    app = web.Application()
    app[SOCKETS] = SocketsManager.for_app(app, topics=[CHAT, DOOR, LOAD])
    app[VISITS] = set()
    app.cleanup_ctx.append(measuring)
    app.add_routes(routes)
    return app
