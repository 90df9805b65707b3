"""picows with pydantic by hand: callbacks in Cython, no task for a call."""

from __future__ import annotations

import asyncio
import json

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from . import listener, new_event_loop
from .pydantic_calls import Publication, answered

subscribers: set[WSTransport] = set()


class Echo(WSListener):
    """Answer calls."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Answer one."""
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, answered(frame.get_payload_as_bytes()).encode())


class Fanout(WSListener):
    """Subscribe, or publish to all subscribers."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Do what one call asks for."""
        if frame.msg_type != WSMsgType.TEXT:
            return
        call = Publication.model_validate_json(frame.get_payload_as_bytes())
        if call.method == "publish":
            text = json.dumps(call.payload).encode()
            for subscriber in subscribers:
                subscriber.send(WSMsgType.TEXT, text)
        else:
            subscribers.add(transport)
        transport.send(WSMsgType.TEXT, json.dumps({"id": call.id}).encode())


def listener_of(request: WSUpgradeRequest) -> WSListener:
    """Who hears a new client."""
    return Echo() if request.path == b"/" else Fanout()


async def main() -> None:
    """Serve until the process is killed."""
    server = await ws_create_server(listener_of, sock=listener(), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
