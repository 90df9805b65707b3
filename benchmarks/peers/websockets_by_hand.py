"""websockets with pydantic by hand, and its own broadcast."""

from __future__ import annotations

import asyncio
import json

from websockets.asyncio.server import ServerConnection, broadcast, serve

from . import listener, new_event_loop
from .pydantic_calls import Publication, answer

subscribers: set[ServerConnection] = set()


async def stream(websocket: ServerConnection) -> None:
    """Answer one call after another."""
    if websocket.request.path == "/":
        async for text in websocket:
            await websocket.send(await answer(text))
        return
    async for text in websocket:
        call = Publication.model_validate_json(text)
        if call.method == "publish":
            broadcast(subscribers, json.dumps(call.payload))
        else:
            subscribers.add(websocket)
        await websocket.send(json.dumps({"id": call.id}))


async def main() -> None:
    """Serve until the process is killed."""
    async with serve(stream, sock=listener(), compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
