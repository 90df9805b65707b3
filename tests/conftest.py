"""What the tests share: an application on a real socket, and clients of it, polite and raw."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.util import find_spec
from typing import Any, NoReturn

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from redis_server import Proxy, RedisCluster3, RedisServer, binary

from openapi_ws import SocketsManager, Websocket, WsPathMixin

WAIT = 10.0
"""Seconds that bound a hang; they measure nothing."""


# Without this, a contract that is broken would say no more than AssertionError.
pytest.register_assert_rewrite("openapi_ws.testing")

# aio-openapi is installed by `tox -e ancestor` alone: nothing else of this project works beside its dependencies.
collect_ignore = [] if find_spec("openapi") else ["ancestor"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything runs: a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def skip(reason: str) -> NoReturn:
    """Skip for want of something optional."""
    pytest.skip(reason)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0)


class Client:
    """A client of the house dialect that keeps what is pushed while it waits for an answer."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.pushed: list[dict[str, Any]] = []
        self._ids = itertools.count(1)

    async def send(self, frame: object) -> None:
        await (self.ws.send_str(frame) if isinstance(frame, str) else self.ws.send_str(json.dumps(frame)))

    async def receive(self) -> Any:
        """The next frame, whatever it is."""
        return json.loads(await asyncio.wait_for(self.ws.receive_str(), WAIT))

    async def ask(self, method: str, payload: object = ..., **members: Any) -> dict[str, Any]:
        """The whole answer of one call."""
        id_ = members.pop("id", f"ask {next(self._ids)}")
        frame = {"id": id_, "method": method, **members}
        await self.send(frame if payload is ... else {**frame, "payload": payload})
        while True:
            answer = await self.receive()
            if isinstance(answer, dict) and answer.get("id") == id_:
                return answer
            self.pushed.append(answer)

    async def call(self, method: str, payload: object = ...) -> Any:
        """The response of one call that succeeds."""
        answer = await self.ask(method, payload)
        assert "response" in answer, answer
        return answer["response"]

    async def error(self, method: str, payload: object = ...) -> dict[str, Any]:
        """The error of one call that fails."""
        answer = await self.ask(method, payload)
        assert "error" in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    async def message(self) -> dict[str, Any]:
        """The next message, pushed before or coming now."""
        message: dict[str, Any] = self.pushed.pop(0) if self.pushed else await self.receive()
        assert "channel" in message, message
        return message

    async def closed(self) -> int:
        """The code with which the server closes."""
        while True:
            message = await asyncio.wait_for(self.ws.receive(), WAIT)
            if message.type is not aiohttp.WSMsgType.TEXT:
                assert message.type is aiohttp.WSMsgType.CLOSE, message
                assert self.ws.close_code == message.data  # aiohttp says 1006 if it could not answer the close
                return int(message.data)


class RawClient:
    """A TCP connection that has shaken hands, for what a polite client does not do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def frame(self, payload: bytes, *, opcode: int = 1, fin: bool = True) -> None:
        """Write one masked frame."""
        size, head = len(payload), bytes([(0x80 if fin else 0) | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += bytes([0x80 | 126]) + struct.pack("!H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack("!Q", size)
        self.writer.write(head + b"\x00\x00\x00\x00" + payload)

    async def read(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame from the server."""
        async with asyncio.timeout(WAIT):
            first, second = await self.reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            return first & 15, await self.reader.readexactly(size)


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/stream") -> RawClient:
    """Make a raw client of a connection."""
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)
    assert head.startswith(b"HTTP/1.1 101"), head
    return RawClient(reader, writer)


class Served:
    """An application that is served on loopback."""

    def __init__(self, server: TestServer, manager: SocketsManager, session: aiohttp.ClientSession) -> None:
        self.server, self.manager, self.session = server, manager, session
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, path: str = "/stream", **options: Any) -> Client:
        return Client(await self.session.ws_connect(self.server.make_url(path), **options))

    async def refused(self, path: str = "/stream") -> tuple[int, str | None]:
        """Status and Retry-After of a handshake that is refused."""
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        async with self.session.get(self.server.make_url(path), headers=headers) as response:
            return response.status, response.headers.get("Retry-After")

    async def connect_raw(self, path: str = "/stream") -> RawClient:
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        self._writers.append(writer)
        return await shake_hands(reader, writer, path)

    async def at_rest(self) -> None:
        """Return when nothing of any client is left."""
        await until(lambda: not self.manager.sockets and not len(self.manager.channels))

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await self.session.close()
        await self.server.close()


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve a view at /stream, with a manager of its own; all ends with the test."""
    running: list[Served] = []

    async def start(
        view: type[Any],
        manager: SocketsManager | type[SocketsManager] = SocketsManager,
        app: web.Application | None = None,
    ) -> Served:
        app = app or web.Application()
        sockets = manager.for_app(app) if isinstance(manager, type) else manager
        app["web_sockets"] = sockets
        app.router.add_view("/stream", view)
        server = TestServer(app)
        await server.start_server()
        running.append(Served(server, sockets, aiohttp.ClientSession()))
        return running[-1]

    yield start
    for served in running:
        await served.close()


@pytest.fixture
def living() -> Callable[[], tuple[int, int]]:
    """Counts views and sockets that the process still holds."""

    def count() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        return sum(isinstance(o, WsPathMixin) for o in objects), sum(isinstance(o, Websocket) for o in objects)

    return count


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all tests that do it no harm."""
    if binary() is None:
        skip("no redis-server")
    server = RedisServer()
    try:
        server.launch()
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A server that is empty, and not to be killed."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server with AOF to kill, freeze and restart."""
    if binary() is None:
        skip("no redis-server")
    server = RedisServer(appendonly="yes", appendfsync="everysec")
    try:
        server.launch()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster3]:
    """One cluster for all tests that do it no harm."""
    if binary() is None:
        skip("no redis-server")
    cluster = RedisCluster3()
    try:
        cluster.launch()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def redis_cluster(shared_cluster: RedisCluster3) -> RedisCluster3:
    """A cluster of three masters, each empty, none to be killed."""
    for server in shared_cluster.servers:
        server.ask("FLUSHALL")
    return shared_cluster


@pytest.fixture
def own_cluster() -> Iterator[RedisCluster3]:
    """A cluster with AOF whose masters may be killed, and whose slots may be moved; one that is down harms no other."""
    if binary() is None:
        skip("no redis-server")
    options = {"cluster_require_full_coverage": "no", "cluster_allow_replica_migration": "no"}
    cluster = RedisCluster3(appendonly="yes", appendfsync="always", **options)
    try:
        cluster.launch()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def redis_proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    """Links to the shared server that fail on request."""
    proxy = Proxy(redis_server.port)
    await proxy.start()
    yield proxy
    await proxy.stop()
