"""permessage-deflate (RFC 7692), where a view asks for it and a client agrees."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import zlib
from typing import Any

import pytest
from aiohttp import web
from conftest import WAIT, RawClient, Serve, Served

from openapi_ws import Subscribe, WsPathMixin


class Plain(WsPathMixin, Subscribe, web.View):
    """Compresses nothing."""

    async def ws_rpc_echo(self, payload: Any) -> Any:
        return payload


class Packed(Plain):
    """Compresses what is large."""

    compress = True


async def shake_hands(served: Served, extensions: str) -> tuple[RawClient, str]:
    """A raw client that offers *extensions*, and those that were taken."""
    reader, writer = await asyncio.open_connection(served.server.host, served.server.port)
    served._writers.append(writer)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Extensions: {extensions}\r\n\r\n".encode()
    )
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)).decode()
    taken = [line.partition(": ")[2] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-ext")]
    return RawClient(reader, writer), "".join(taken)


async def read(client: RawClient) -> tuple[int, Any]:
    """The first byte of the next frame, and its message, inflated if need be."""
    async with asyncio.timeout(WAIT):
        first, size = await client.reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await client.reader.readexactly(2 if size == 126 else 8))
        data = await client.reader.readexactly(size)
    if first & 0x40:
        data = zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff")
    return first, json.loads(data)


@pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; server_max_window_bits=10"])
async def test_large_answers_and_messages_are_compressed_each_for_itself(serve: Serve, offer: str) -> None:
    """RSV1 is set, and each frame can be read without those before it; small ones go as they are."""
    served = await serve(Packed)
    client, taken = await shake_hands(served, offer)
    assert taken.startswith("permessage-deflate")
    text = "a large text " * 1000
    for _ in range(2):
        client.frame(json.dumps({"id": 1, "method": "echo", "payload": text}).encode())
        first, answer = await read(client)
        assert (first, answer["response"]) == (0xC1, text)
    client.frame(b'{"id": 2, "method": "subscribe", "payload": {"channel": "news"}}')
    first, _ = await read(client)
    assert first == 0x81
    await served.manager.publish("news", "large", text)
    first, message = await read(client)
    assert (first, message["data"]) == (0xC1, text)


async def test_compressed_frames_of_clients_are_read(serve: Serve) -> None:
    """Aiohttp's client compresses what it sends, and reads what comes, among others in a fan-out."""
    served = await serve(Packed)
    packed, plain = await served.connect(compress=15), await served.connect()
    assert packed.ws.compress == 15
    text = "a large text " * 1000
    for client in (packed, plain):
        assert await client.call("echo", text) == text
        await client.call("subscribe", {"channel": "news"})
    await served.manager.publish("news", "large", text)
    assert (await packed.message())["data"] == (await plain.message())["data"] == text


async def test_a_small_frame_that_is_large_inside_is_refused(serve: Serve) -> None:
    """The limit of a message is that of what it holds."""
    served = await serve(Packed)
    client = await served.connect(compress=15)
    await client.send({"id": 1, "method": "echo", "payload": "x" * 1_000_000})
    assert await client.closed() == 1009


async def test_nothing_is_agreed_on_by_default(serve: Serve) -> None:
    """A context of zlib is some 100 KB for each client."""
    _, taken = await shake_hands(await serve(Plain), "permessage-deflate")
    assert taken == ""


async def test_a_window_that_zlib_cannot_make_costs_only_the_compression(serve: Serve) -> None:
    """Frames go uncompressed, if the offer is taken at all."""
    client, _ = await shake_hands(await serve(Packed), "permessage-deflate; server_max_window_bits=8")
    client.frame(json.dumps({"id": 1, "method": "echo", "payload": "x" * 5000}).encode())
    first, answer = await read(client)
    assert (first, answer["response"]) == (0x81, "x" * 5000)
