"""The end of a connection as RFC 6455 has it, whatever the client's last frames were; raw TCP throughout."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import pytest
from aiohttp import web
from conftest import WAIT, RawClient, Serve, Served, until

from openapi_ws import Publish, Subscribe, Websocket, WsPathMixin

TEXT, CLOSE, RESERVED = 1, 8, 3


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    heartbeat = None


async def last(client: RawClient) -> list[tuple[int, bytes]]:
    """Opcode and beginning of each frame, until the server ends the connection."""
    frames = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while True:
            opcode, payload = await client.read()
            frames.append((opcode, payload[:2]))
    return frames


async def stalled(served: Served) -> tuple[RawClient, Websocket]:
    """A client that does not read, with messages waiting for it that the kernel does not take."""
    client = await served.connect_raw()
    client.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await client.read()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a peer that does not read
    [socket] = served.manager.sockets
    before = -1
    while socket.queued_bytes < 200_000 or socket.queued_bytes != before:
        if socket.queued_bytes < 200_000:
            await served.manager.publish("c", "e", "x" * 20_000)
        before = socket.queued_bytes
        await asyncio.sleep(0.05)  # the kernel takes a while to fill
    return client, socket


async def test_answers_leave_before_the_close_of_a_broken_frame(serve: Serve) -> None:
    """Also if both came at once; nothing follows the close frame."""
    served = await serve(Stream)
    client = await served.connect_raw()
    client.frame(b"not json")
    client.frame(b"x", opcode=RESERVED)
    assert await last(client) == [(TEXT, b'{"'), (CLOSE, struct.pack("!H", 1002))]


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
async def test_a_close_code_that_no_frame_may_carry_is_a_protocol_error(serve: Serve, code: int) -> None:
    """RFC 6455 §7.4: answered and counted as 1002, so that callers cannot make up numbers to count."""
    served = await serve(Stream)
    client = await served.connect_raw()
    client.frame(struct.pack("!H", code), opcode=CLOSE)
    assert await last(client) == [(CLOSE, struct.pack("!H", 1002))]
    await until(lambda: served.manager.metrics.closes)
    assert served.manager.metrics.closes == {1002: 1}


async def test_clients_make_no_counters(serve: Serve) -> None:
    """Codes for applications are counted exactly where the server chose them, else as one; those of the RFC always."""
    served = await serve(Stream)
    for code in (3000, 4008, 4999, 1001):
        client = await served.connect_raw()
        client.frame(struct.pack("!H", code), opcode=CLOSE)
        assert await last(client) == [(CLOSE, struct.pack("!H", code))]
    client = await served.connect_raw()
    [socket] = served.manager.sockets
    socket.close_soon(4100)
    client.frame(struct.pack("!H", 4100), opcode=CLOSE)
    await served.at_rest()
    await served.manager.departed()
    assert served.manager.server_info()["closes"] == {"other": 3, "1001": 1, "4100": 1}


class Pinged(Stream):
    max_control_rate = 1_000_000
    max_queue_bytes = 4 * 1024 * 1024


async def test_a_client_lost_while_its_pings_are_answered_is_lost(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """1006, as any lost link, and nothing in the log, though pongs wait for it and more pings have come."""
    served = await serve(Pinged)
    client, socket = await stalled(served)
    for _ in range(4000):
        client.frame(b"p" * 120, opcode=9)
    await client.writer.drain()
    await until(lambda: socket.queued_bytes > 300_000)
    client.writer.transport.abort()
    await served.at_rest()
    await served.manager.departed()
    assert served.manager.metrics.closes == {1006: 1}
    assert not caplog.records


async def test_a_stalled_client_that_breaks_the_protocol_is_gone_in_bounded_time(serve: Serve) -> None:
    """Without a heartbeat, too."""
    served = await serve(Stream)
    client, socket = await stalled(served)
    client.frame(b"x", opcode=RESERVED)
    async with asyncio.timeout(WAIT):
        await until(lambda: socket not in served.manager.sockets)
        await served.manager.departed()
    assert served.manager.metrics.closes == {1002: 1}


async def test_nothing_follows_a_close_frame(serve: Serve) -> None:
    """Messages that wait when the server closes are dropped, though the client reads again."""
    served = await serve(Stream)
    client, socket = await stalled(served)
    socket.close_soon(4503, "kicked")
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # it reads again
    assert (await last(client))[-1] == (CLOSE, struct.pack("!H", 4503))


@pytest.mark.parametrize("code", [0, -1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70_000, "4500", 4500.0, None])
async def test_a_code_that_cannot_be_sent_is_refused(serve: Serve, code: Any) -> None:
    """The error names the codes that can; the socket stays open, and can be closed."""
    served = await serve(Stream)
    client = await served.connect_raw()
    [socket] = served.manager.sockets
    with pytest.raises(ValueError, match="1000-1003, 1007-1014 or 3000-4999"):
        await socket.close(code, "because")
    with pytest.raises(ValueError, match="got"):
        await socket.move(code=code)
    with pytest.raises(TypeError):
        socket.close_soon(4500, 5)  # type: ignore[arg-type]  # on purpose
    assert not socket.is_gone
    assert not socket.is_leaving
    socket.close_soon(4500, "\udc80 half a character")
    client.frame(struct.pack("!H", 4500), opcode=CLOSE)
    assert await last(client) == [(CLOSE, struct.pack("!H", 4500))]
