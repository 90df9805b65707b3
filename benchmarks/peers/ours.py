"""openapi_ws, as its users write it; ``/all`` has everything on that an endpoint can have."""

from __future__ import annotations

import asyncio
import itertools

from aiohttp import web
from pydantic import BaseModel

from openapi_ws import SocketsManager, WsPathMixin
from openapi_ws.protocol import Call
from openapi_ws.pubsub import Publish, Subscribe

from . import listener, new_event_loop

routes = web.RouteTableDef()
names = itertools.count()


class Greeting(BaseModel):
    """What is called with, and answered."""

    message: str


@routes.view("/")
class Bare(WsPathMixin, Subscribe, Publish, web.View):
    """An endpoint with nothing but methods."""

    async def ws_rpc_echo(self, payload: Greeting) -> Greeting:
        """Answer at once."""
        return payload

    async def ws_rpc_slow(self, payload: Greeting) -> Greeting:
        """Answer after 50 ms, as a query of a database would."""
        async with asyncio.timeout(1):
            await asyncio.sleep(0.05)
        return payload


@routes.view("/all")
class All(Bare):
    """An endpoint with hooks, identity, and every limit."""

    heartbeat = 10.0
    call_timeout = 10.0
    max_idle = 600.0
    max_age = 3600.0

    def identity(self) -> str | None:
        """Another one for each, so that it can be counted."""
        return f"client {next(names)}"

    async def connected(self) -> None:
        """Put the client into a room, as applications do."""
        await self.join("everybody")

    async def disconnected(self, code: int) -> None:
        """Be called."""

    def on_error(self, call: Call, exc: Exception) -> None:
        """Be there."""


class Manager(SocketsManager):
    """A manager that counts addresses, too."""

    max_sockets_per_address = 10_000


app = web.Application()
app["web_sockets"] = Manager.for_app(app)
app.add_routes(routes)
if __name__ == "__main__":
    web.run_app(app, sock=listener(), access_log=None, print=None, loop=new_event_loop())
