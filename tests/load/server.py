"""The server of the load tests: one view under `web.run_app`, as users run it, and a look inside for the test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from lines import descriptors, obey, prepare, resident, say, until

from openapi_ws import Publish, SocketsManager, Subscribe, Websocket, WsPathMixin, ws_rpc


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_whoami(self) -> str:
        return self.socket_id

    @ws_rpc(timeout=None)
    async def ws_rpc_stubborn(self) -> None:
        """Take a minute, and a first cancellation for nothing."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def ws_rpc_stream(self, payload: int) -> int:
        """Send *payload* messages of 4 kB to the caller, as fast as it reads."""
        for number in range(payload):
            await self.send("stream", "item", {"number": number, "pad": "x" * 4000})
        return payload

    async def ws_rpc_flood(self, payload: int) -> int:
        """Publish *payload* messages of 4 kB to the caller's own channel, at once."""
        await self.join(self.socket_id)
        for number in range(payload):
            await self.sockets.publish(self.socket_id, "item", {"number": number, "pad": "x" * 4000})
        return payload

    async def ws_rpc_bye(self) -> None:
        """Have the caller's socket closed."""
        self.websocket.close_soon(4503, "kicked")


class Commands:
    """What the test may ask."""

    def __init__(self, manager: SocketsManager) -> None:
        self.manager = manager

    def _socket(self, socket_id: str) -> Websocket | None:
        return next((ws for ws in self.manager.sockets if ws.socket_id == socket_id), None)

    async def info(self) -> dict[str, Any]:
        """What the manager counts, and what the process has; garbage is collected first."""
        gc.collect()
        return {
            **self.manager.server_info(),
            "admitted": len(self.manager._admitted),
            "tasks": len(asyncio.all_tasks()),
            "fds": len(descriptors()),
            "rss": resident(),
        }

    async def objects(self) -> dict[str, int]:
        """What the process holds: views and sockets, and objects of any kind."""
        gc.collect()
        found = gc.get_objects()
        return {"living": sum(isinstance(each, WsPathMixin | Websocket) for each in found), "objects": len(found)}

    async def gone(self, count: int) -> dict[str, int]:
        """Wait until *count* sockets are gone, or have had the time; how many are, by close code."""
        with contextlib.suppress(TimeoutError):
            await until(lambda: sum(self.manager.metrics.closes.values()) >= count, 10)
        closes: dict[str, int] = self.manager.server_info()["closes"]
        return closes

    async def publish(self, channel: str, count: int, size: int, interval: float = 0.0) -> dict[str, int]:
        """Publish *count* messages of *size* bytes, one each *interval* seconds; the memory before, and at most."""
        gc.collect()
        before = most = resident()
        start = time.monotonic()
        for number in range(count):
            data = {"n": number, "at": time.monotonic(), "pad": "x" * (size - 100)}
            await self.manager.publish(channel, "tick", data)
            most = max(most, resident())
            await asyncio.sleep(max(0.0, start + (number + 1) * interval - time.monotonic()))
        return {"before": before, "most": max(most, resident())}

    async def fill(self, socket_id: str) -> int:
        """Send until the client is behind; the bytes that wait for it here."""
        websocket = self._socket(socket_id)
        assert websocket is not None
        for _ in range(500):
            websocket.send(b'"%b"' % (b"x" * 4000))
            await asyncio.sleep(0)
            if websocket.queued_bytes > 20_000:
                break
        return websocket.queued_bytes

    async def descriptor(self, socket_id: str) -> str:
        """The socket of the kernel, as in ``/proc/<pid>/fd``."""
        websocket = self._socket(socket_id)
        assert websocket is not None
        assert websocket.request.transport is not None
        number = websocket.request.transport.get_extra_info("socket").fileno()
        return str(Path(f"/proc/self/fd/{number}").readlink())

    async def close(self, socket_id: str) -> float:
        """Close one socket; the seconds that it took."""
        websocket = self._socket(socket_id)
        assert websocket is not None
        start = time.monotonic()
        await websocket.close(4000, "bye")
        return time.monotonic() - start

    async def noticed(self, socket_id: str) -> int:
        """Wait until one socket is given up; the close code."""
        websocket = self._socket(socket_id)
        assert websocket is not None
        await until(lambda: websocket.close_code is not None)
        return websocket.close_code or 0

    async def cut(self) -> None:
        """Tear every connection, as a crash would."""
        for websocket in tuple(self.manager.sockets):
            assert websocket.request.transport is not None
            websocket.request.transport.abort()

    async def move(self, count: int) -> int:
        """Move some clients away; how many there were."""
        chosen = random.sample(list(self.manager.sockets), min(count, len(self.manager.sockets)))
        await asyncio.gather(*(ws.move(within=0.1, grace=0.5) for ws in chosen))
        return len(chosen)


@web.middleware
async def late(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep handshakes that ask for it until the shutdown has begun, as a slow check of who it is would."""
    if "late" in request.query:
        say(event="late")
        await until(lambda: not request.app["web_sockets"].ready)
    return await handler(request)


def make_app(options: dict[str, Any]) -> web.Application:
    for name, value in options.get("view", {}).items():
        setattr(Stream, name, value)
    app = web.Application(middlewares=[late])
    manager = app["web_sockets"] = SocketsManager.for_app(app)
    for name, value in options.get("manager", {}).items():
        setattr(manager, name, value)
    app.router.add_view("/stream", Stream)

    async def control(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(obey(Commands(manager)))
        # Without the test nobody would end this program.
        task.add_done_callback(lambda done: None if done.cancelled() else signal.raise_signal(signal.SIGTERM))
        yield
        task.cancel()
        await asyncio.wait([task])

    async def report(_: web.Application) -> None:
        left = [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]
        say(event="cleaned", at=time.monotonic(), tasks=left, closes=manager.server_info()["closes"])

    app.cleanup_ctx.append(control)
    app.on_cleanup.append(report)  # after every cleanup_ctx
    return app


def main() -> None:
    options = prepare()
    logging.getLogger("openapi_ws").setLevel(
        logging.ERROR
    )  # that a client does not keep up is what these tests are for
    listener = socket.create_server((options.get("host", "127.0.0.1"), 0))
    port = listener.getsockname()[1]
    web.run_app(
        make_app(options),
        sock=listener,
        backlog=4096,
        keepalive_timeout=20,
        access_log=None,
        print=lambda _: say(event="started", port=port, pid=os.getpid()),
    )


if __name__ == "__main__":
    main()
