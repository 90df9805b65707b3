"""Floor 5, tools: the nodes of one system, each an application on loopback, and clients of theirs."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from openapi_ws.manager import SocketsManager
from openapi_ws.path import WsPathMixin
from openapi_ws.pubsub import Publish, Subscribe
from openapi_ws.topics import Topic

__all__ = ["JSON", "QUEUE", "Client", "Contract", "Node", "publish", "until", "written"]

WAIT = 10.0
"""Seconds that bound a hang; they measure nothing."""
QUEUE = 256 * 1024
"""Bytes that may wait for a client of the path ``/small``."""
PAUSE = 0.005
"""Seconds between two looks at what tells nobody when it changes."""

JSON = [
    0.1, -0.0, 1e300, 5e-324, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, True, None, "", "\x00\x7f", "é\u2028𝄞",
    {"": [], "a": {}}, json.loads("[" * 60 + "]" * 60), "long " * 5_000,
]  # fmt: skip
"""What is easily changed on its way."""


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """What all clients may do."""

    SOCKETS_KEY = web.AppKey("sockets", SocketsManager)


class Small(Stream):
    """The same, where little may wait for a client."""

    max_queue_bytes = QUEUE
    send_buffer_bytes = 4096


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return when *condition* holds.

    Raises:
        TimeoutError: it does not within ten seconds.
    """
    end = time.monotonic() + WAIT
    while not await condition():
        if time.monotonic() > end:
            raise TimeoutError
        await asyncio.sleep(PAUSE)


class Client:
    """A client of the house dialect, which keeps what is pushed while it waits for an answer."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, session: aiohttp.ClientSession) -> None:
        self._ws, self._session = ws, session
        self._pushed: list[dict[str, Any]] = []
        self._ids = itertools.count(1)

    async def send(self, method: str, **payload: Any) -> int:
        """Begin a call; its id."""
        id_ = next(self._ids)
        await self._ws.send_str(json.dumps({"id": id_, "method": method, "payload": payload}))
        return id_

    async def ask(self, method: str, **payload: Any) -> dict[str, Any]:
        """The whole answer of one call."""
        id_ = await self.send(method, **payload)
        while (frame := await self._receive()).get("id") != id_:
            self._pushed.append(frame)
        return frame

    async def call(self, method: str, **payload: Any) -> Any:
        """The response of one call that succeeds."""
        answer = await self.ask(method, **payload)
        assert "response" in answer, answer
        return answer["response"]

    async def error(self, method: str, **payload: Any) -> dict[str, Any]:
        """The error of one call that fails."""
        answer = await self.ask(method, **payload)
        assert "error" in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    async def push(self) -> dict[str, Any]:
        """The next message or notice, pushed before or coming now."""
        return self._pushed.pop(0) if self._pushed else await self._receive()

    async def message(self) -> dict[str, Any]:
        """The next message; a notice in its place fails."""
        pushed = await self.push()
        assert "channel" in pushed, pushed
        return pushed

    async def data(self, count: int) -> list[Any]:
        """What the next *count* messages say."""
        return [(await self.message())["data"] for _ in range(count)]

    async def leave(self) -> None:
        """Disconnect without a word."""
        await self._session.close()
        await self._ws.close()  # with nothing left to write to, it only lets go of the connection

    async def _receive(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self._ws.receive_str(timeout=WAIT))
        return frame


class Node:
    """One manager, served on loopback."""

    def __init__(self, sockets: SocketsManager) -> None:
        self.sockets = sockets
        """The manager."""
        self._clients: list[Client] = []
        app = web.Application()
        app[Stream.SOCKETS_KEY] = sockets
        app.router.add_view("/stream", Stream)
        app.router.add_view("/small", Small)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Listen, on any port."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def stop(self) -> None:
        """See all clients off, and listen no more; the manager is its maker's to stop."""
        for client in self._clients:
            await client.leave()
        await self.sockets.close_sockets()
        await self._runner.cleanup()
        await self.sockets.departed()

    async def connect(self, path: str = "/stream") -> Client:
        """A client of its own connection; on the path ``/small`` little may wait for it."""
        connector = aiohttp.TCPConnector(socket_factory=_narrow) if path == "/small" else None
        session = aiohttp.ClientSession(connector=connector)
        try:
            host, port = self._runner.addresses[0][:2]
            self._clients.append(Client(await session.ws_connect(f"http://{host}:{port}{path}"), session))
        except BaseException:
            await session.close()
            raise
        return self._clients[-1]

    async def listen(self, channel: str, event: str = "*") -> Client:
        """A client that has subscribed."""
        client = await self.connect()
        await client.call("subscribe", channel=channel, event=event)
        return client

    async def is_at_rest(self) -> bool:
        """Nothing of any client is left."""
        return not self.sockets.sockets and not len(self.sockets.channels)


def _narrow(address: tuple[Any, ...]) -> socket.socket:
    """A socket in which little waits for who does not read."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


class Contract:
    """Two nodes of one system for each test. Say how one is made, and derive ``TestMyBroker`` from a contract.

    The tests are coroutines without arguments: pytest-asyncio runs them in its mode ``auto``.
    """

    topics: Sequence[Topic] = ()
    """What `broker` is given."""

    async def broker(self, topics: Sequence[Topic]) -> SocketsManager:
        """A manager that is started: another node of one system at each call, or where there is but one, the same.

        Each test has an object of this class of its own; what another test has published must not be seen.
        """
        raise NotImplementedError

    async def stop(self, broker: SocketsManager) -> None:
        """End what `broker` began, once for each manager."""
        await broker.stop()

    async def leftovers(self) -> Collection[object]:
        """What nobody needs any more, but is still there; override to look into your message server."""
        return ()

    @asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Node, Node]]:
        """The two nodes; all ends with the block, and then no `leftovers` are."""
        brokers: list[SocketsManager] = []
        nodes: list[Node] = []
        try:
            for _ in range(2):
                sockets = await self.broker(self.topics)
                if sockets not in brokers:
                    brokers.append(sockets)
                    nodes.append(Node(sockets))
                    await nodes[-1].start()
            yield nodes[0], nodes[-1]
        finally:
            for node in nodes:
                await node.stop()
            for sockets in brokers:
                await self.stop(sockets)
        await until(self.is_empty)

    async def is_empty(self) -> bool:
        """There are no `leftovers`."""
        return not await self.leftovers()


async def publish(node: Node, channel: str, event: str, count: int) -> list[str]:
    """Publish the numbers up to *count*, one after the other; their positions."""
    return [str(await node.sockets.publish(channel, event, number)) for number in range(count)]


def written(value: Any) -> str:
    """What tells 0.0 from -0.0, and 1 from 1.0."""
    return json.dumps(value)
