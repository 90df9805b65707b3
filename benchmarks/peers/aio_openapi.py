"""aio-openapi, the ancestor, with the local broker that each user of it has to write."""

import asyncio  # no annotations of the future: aio-openapi reads those of a dataclass as they are
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from openapi.spec import ApiPath
from openapi.ws import SocketsManager, WsPathMixin
from openapi.ws.pubsub import Publish, Subscribe
from openapi.ws.rpc import ws_rpc

from . import listener, new_event_loop


@dataclass
class Greeting:
    """What is called with, and answered."""

    message: str


class Manager(SocketsManager):
    """Bring each message straight to the channels."""

    async def publish(self, channel: str, event: str, body: Any) -> None:
        """Deliver."""
        await self.channels(channel, {"event": event, "data": body})

    async def subscribe(self, channel: str) -> None:
        """Have every channel."""


class Stream(ApiPath, WsPathMixin, Subscribe, Publish):
    """The endpoint."""

    @ws_rpc(body_schema=Greeting, response_schema=Greeting)
    async def ws_rpc_echo(self, payload: dict[str, str]) -> dict[str, str]:
        """Answer at once."""
        return payload

    @ws_rpc(body_schema=Greeting, response_schema=Greeting)
    async def ws_rpc_slow(self, payload: dict[str, str]) -> dict[str, str]:
        """Answer after 50 ms."""
        async with asyncio.timeout(1):
            await asyncio.sleep(0.05)
        return payload


app = web.Application()
app["web_sockets"] = Manager()
app.router.add_view("/", Stream)
if __name__ == "__main__":
    web.run_app(app, sock=listener(), access_log=None, print=None, loop=new_event_loop())
