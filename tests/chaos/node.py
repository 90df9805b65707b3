"""One server: ``python node.py PORT REDIS_URL``. It says "ready" when it listens, and ends with its standard input."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from openapi_ws import Presence, Publish, Subscribe, WsPathMixin
from openapi_ws.brokers.redis import RedisBroker
from openapi_ws.history import History
from openapi_ws.topics import Topic

TOPICS = [
    Topic("log:{room}", history=History(size=20_000, ttl=600), publish=True),
    Topic("live:{room}", publish=True),
    Topic("lobby", presence=True),
]


class Broker(RedisBroker):
    """Clients of a process that was killed have left after little more than a second."""

    member_ttl, member_refresh = 1.0, 0.4


class Stream(WsPathMixin, Subscribe, Publish, Presence, web.View):
    """What clients may do."""


async def ready(request: web.Request) -> web.Response:
    """Say whether Redis answers."""
    return web.Response(status=200 if request.app["web_sockets"].ready else 503)


async def with_parent(_: web.Application) -> AsyncIterator[None]:
    """Without this, a test that dies would leave its servers behind."""
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 100) or os._exit(0))
    yield
    loop.remove_reader(sys.stdin.fileno())


def main(port: int, url: str) -> None:
    app = web.Application()
    app["web_sockets"] = Broker.for_app(app, url=url, topics=TOPICS)
    app.router.add_view("/stream", Stream)
    app.router.add_get("/ready", ready)
    app.cleanup_ctx.append(with_parent)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda _: print("ready", flush=True))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
