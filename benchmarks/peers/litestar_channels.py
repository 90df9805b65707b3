"""Litestar's channels with its backend in memory."""

from __future__ import annotations

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend

from .pydantic_calls import Publication
from .uvicorn_server import serve


@websocket("/")
async def stream(socket: WebSocket, channels: ChannelsPlugin) -> None:
    """Publish, or subscribe and then only listen."""
    await socket.accept()
    while True:
        call = Publication.model_validate_json(await socket.receive_text())
        if call.method == "publish":
            channels.publish(call.payload, "bench")
            await socket.send_json({"id": call.id})
            continue
        async with (
            channels.start_subscription("bench") as subscriber,
            subscriber.run_in_background(socket.send_text),
        ):
            await socket.send_json({"id": call.id})
            await socket.receive()
            return


plugin = ChannelsPlugin(MemoryChannelsBackend(), arbitrary_channels_allowed=True)
if __name__ == "__main__":
    serve(Litestar([stream], plugins=[plugin]))
