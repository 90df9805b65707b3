"""One client over TLS, whose transport is another than that of TCP."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import WAIT, RawClient, Served, shake_hands, until

from openapi_ws import SocketsManager, Subscribe, Websocket, WsPathMixin

PEM = Path(__file__).with_name("loopback.pem")
"""A certificate for 127.0.0.1, signed by nobody, and its key: for these tests alone."""


class Stream(WsPathMixin, Subscribe, web.View):
    codes: asyncio.Queue[int]

    async def disconnected(self, code: int) -> None:
        self.codes.put_nowait(code)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    Stream.codes = asyncio.Queue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    app = web.Application()
    app["web_sockets"] = manager = SocketsManager.for_app(app)
    app.router.add_view("/stream", Stream)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    served = Served(server, manager, aiohttp.ClientSession())
    yield served
    await served.close()


def trust() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(PEM))


async def connect(served: Served) -> RawClient:
    reader, writer = await asyncio.open_connection(served.server.host, served.server.port, ssl=trust())
    served._writers.append(writer)
    return await shake_hands(reader, writer)


async def reset(client: RawClient, websocket: Websocket) -> None:
    client.writer.transport.abort()


async def shut(client: RawClient, websocket: Websocket) -> None:
    client.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


async def goodbye(client: RawClient, websocket: Websocket) -> None:
    client.writer.close()


async def close(client: RawClient, websocket: Websocket) -> None:
    client.frame(struct.pack("!H", 1000), opcode=8)
    await until(lambda: websocket.close_code)
    websocket.send(b"{}")  # by code that has not heard of it


@pytest.mark.parametrize(("leave", "code"), [(reset, 1006), (shut, 1006), (goodbye, 1006), (close, 1000)])
async def test_the_hook_learns_of_every_end(
    served: Served, caplog: pytest.LogCaptureFixture, leave: Callable[..., object], code: int
) -> None:
    """However the client goes; nothing is logged as an error, and nothing is left."""
    client = await connect(served)
    [websocket] = served.manager.sockets
    with caplog.at_level(logging.WARNING):
        await leave(client, websocket)  # type: ignore[misc]
        assert await asyncio.wait_for(Stream.codes.get(), WAIT) == code
        await served.at_rest()
        await served.manager.departed()
    assert not caplog.records
    assert websocket.queued_bytes == 0


async def test_a_peer_that_keeps_its_end_of_tls_open_is_cut_off(served: Served) -> None:
    """It answers the close frame, but TLS has a goodbye of its own, for which asyncio would wait half a minute."""

    # A blocking socket, as asyncio's would return the goodbye by itself.
    def connect_deaf() -> ssl.SSLSocket:
        deaf = trust().wrap_socket(
            socket.create_connection((served.server.host, served.server.port)), server_hostname="127.0.0.1"
        )
        deaf.sendall(
            b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        deaf.recv(4096)
        return deaf

    with await asyncio.to_thread(connect_deaf) as deaf:
        [websocket] = served.manager.sockets
        transport = websocket.request.transport
        assert transport is not None
        connection = transport.get_extra_info("socket")
        async with asyncio.timeout(WAIT):
            closing = asyncio.create_task(websocket.close(4503))
            await asyncio.to_thread(deaf.recv, 4096)
            deaf.sendall(b"\x88\x82\0\0\0\0" + struct.pack("!H", 4503))
            await closing
            await until(lambda: connection.fileno() == -1)
