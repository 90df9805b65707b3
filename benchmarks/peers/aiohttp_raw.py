"""aiohttp without a library: the yardstick of every run."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from . import listener, new_event_loop

subscribers: list[web.WebSocketResponse] = []


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send back what comes, as text; no JSON, nothing is looked at."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(message.data)
    return ws


async def by_hand(request: web.Request) -> web.WebSocketResponse:
    """Answer calls as most handlers are written: the standard library's JSON, nothing is validated."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    async for message in ws:
        call = json.loads(message.data)
        if call["method"] == "slow":
            async with asyncio.timeout(1):
                await asyncio.sleep(0.05)
        await ws.send_str(json.dumps({"id": call["id"], "method": call["method"], "response": call["payload"]}))
    return ws


async def fanout(request: web.Request) -> web.WebSocketResponse:
    """Send a publication, encoded once, to one subscriber after another."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    async for message in ws:
        call = json.loads(message.data)
        if call["method"] == "publish":
            text = json.dumps(call["payload"])
            for subscriber in subscribers:
                await subscriber.send_str(text)
        else:
            subscribers.append(ws)
        await ws.send_str(json.dumps({"id": call["id"]}))
    return ws


app = web.Application()
app.add_routes([web.get("/echo", echo), web.get("/json", by_hand), web.get("/fanout", fanout)])
if __name__ == "__main__":
    web.run_app(app, sock=listener(), access_log=None, print=None, loop=new_event_loop())
