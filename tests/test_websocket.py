"""One client: what is sent, in which order, and the one close."""

from __future__ import annotations

import asyncio
import struct

import pytest
from aiohttp import web
from conftest import Serve, until
from hypothesis import given
from hypothesis import strategies as st

from openapi_ws import Subscribe, Websocket, WsPathMixin
from openapi_ws.protocol import JSONRPC, Notice
from openapi_ws.websocket import text_frame


class Stream(WsPathMixin, Subscribe, web.View):
    async def ws_rpc_echo(self, payload: str) -> str:
        return payload


@given(st.integers(0, 70_000))
def test_a_frame_is_that_of_rfc_6455(size: int) -> None:
    """§5.2: FIN and text, then the shortest form of the length, then the payload, unmasked."""
    frame = text_frame(b"x" * size)
    assert frame[0] == 0x81
    if size < 126:
        assert (frame[1], len(frame)) == (size, size + 2)
    elif size < 65_536:
        assert (frame[1], *struct.unpack("!H", frame[2:4]), len(frame)) == (126, size, size + 4)
    else:
        assert (frame[1], *struct.unpack("!Q", frame[2:10]), len(frame)) == (127, size, size + 10)


@pytest.mark.parametrize("size", [0, 100, 125, 126, 127, 60_000])
async def test_answers_of_any_size_arrive(serve: Serve, size: int) -> None:
    """Over each form of the length."""
    client = await (await serve(Stream)).connect()
    assert await client.call("echo", "x" * size) == "x" * size


async def test_a_client_that_never_reads_is_disconnected_alone(serve: Serve) -> None:
    """4008 once more waits for it than its bound; another client gets every message, in order."""
    served = await serve(Stream)
    good, stalled = await served.connect(), await served.connect_raw()
    await good.call("subscribe", {"channel": "c"})
    stalled.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await stalled.read()
    stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a peer that never reads again
    [socket] = [ws for ws in served.manager.sockets if ws.socket_id != await name(good, served.manager.sockets)]
    for number in range(300):
        await served.manager.publish("c", "e", [number, "x" * 50_000])
        assert (await good.message())["data"][0] == number
    await until(lambda: socket not in served.manager.sockets)
    assert socket.close_code == 4008


async def name(client: object, sockets: set[Websocket]) -> str:
    """The id of the first socket that came: sockets are told apart by their client's port."""
    port = client.ws.get_extra_info("sockname")[1]  # type: ignore[attr-defined]  # aiohttp's client socket
    [found] = [ws for ws in sockets if ws.request.transport.get_extra_info("peername")[1] == port]  # type: ignore[union-attr]
    return found.socket_id


async def test_a_close_ends_though_the_peer_is_silent(serve: Serve) -> None:
    """A peer that neither reads nor answers the close is cut off, though megabytes wait for it."""
    served = await serve(Stream)
    silent = await served.connect_raw()
    silent.reader._transport.pause_reading()  # type: ignore[attr-defined]  # it will not see the close frame
    [websocket] = served.manager.sockets
    websocket.push(text_frame(b"x" * 60_000_000))
    async with asyncio.timeout(5):
        await websocket.close(4000, "bye")
        await served.at_rest()
    assert websocket.close_code == 4000


async def test_the_first_close_decides_the_code(serve: Serve) -> None:
    """Closing again waits for the same end; sending afterwards is harmless."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    first = asyncio.create_task(websocket.close(4001, "first"))
    await asyncio.sleep(0)
    receiving = asyncio.create_task(client.closed())
    await asyncio.gather(first, websocket.close(4002, "second"))
    assert await receiving == websocket.close_code == 4001
    websocket.send(b"{}")
    websocket.flush()
    assert "closed 4001" in repr(websocket)


async def test_what_was_sent_before_a_close_arrives_before_it(serve: Serve) -> None:
    """Nothing that was handed over is lost to the close."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    websocket.send(b'{"last":"words"}')
    websocket.close_soon(4000)
    assert await client.receive() == {"last": "words"}
    assert await client.closed() == 4000


async def test_answers_of_a_tick_go_first_and_held_messages_wait(serve: Serve) -> None:
    """Messages of a hold follow what was sent in it, in their order."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    websocket.push(text_frame(b'"message"'))
    websocket.send(b'"answer"')
    assert [await client.receive() for _ in range(2)] == ["answer", "message"]
    websocket.hold()
    websocket.push(text_frame(b'"held 1"'))
    websocket.push(text_frame(b'"held 2"'))
    websocket.send(b'"overtakes"')
    assert await client.receive() == "overtakes"
    websocket.release()
    assert [await client.receive() for _ in range(2)] == ["held 1", "held 2"]


async def test_a_notice_is_in_the_dialect_of_the_socket(serve: Serve) -> None:
    """``{"notice", "data"}``, or the notification ``rpc.<notice>``."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    websocket.notify(Notice("gap", b'{"channel":"c"}'))
    assert await client.receive() == {"notice": "gap", "data": {"channel": "c"}}
    websocket.push_dialect = JSONRPC
    websocket.notify(Notice("drain"))
    assert await client.receive() == {"jsonrpc": "2.0", "method": "rpc.drain", "params": {"data": None}}
