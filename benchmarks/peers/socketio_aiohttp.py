"""python-socketio on aiohttp: acknowledged events, and a room."""

from __future__ import annotations

import asyncio
from typing import Any

import socketio
from aiohttp import web

from . import listener, new_event_loop
from .pydantic_calls import Greeting

server = socketio.AsyncServer(async_mode="aiohttp")
app = web.Application()
server.attach(app)


@server.event
async def echo(sid: str, data: Any) -> dict[str, Any]:
    """Answer at once."""
    return Greeting.model_validate(data).model_dump()


@server.event
async def slow(sid: str, data: Any) -> dict[str, Any]:
    """Answer after 50 ms."""
    async with asyncio.timeout(1):
        await asyncio.sleep(0.05)
    return Greeting.model_validate(data).model_dump()


@server.event
async def subscribe(sid: str, room: str) -> None:
    """Enter a room."""
    await server.enter_room(sid, room)


@server.event
async def publish(sid: str, room: str, data: Any) -> None:
    """Send to all of a room."""
    await server.emit("tick", data, room=room)


if __name__ == "__main__":
    web.run_app(app, sock=listener(), access_log=None, print=None, loop=new_event_loop())
