"""One client of the load tests: raw RFC 6455 on a bare transport, cheap enough for a thousand, rude on demand."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import orjson

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A masked frame; the mask is zero, so that the payload stays as it is."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65536:
        head = bytes([0x80 | opcode, 0x80 | 126]) + struct.pack("!H", size)
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


class Peer(asyncio.BufferedProtocol):
    """A client that answers pings and the close, unless it is told to be rude."""

    buffer = memoryview(bytearray(256 * 1024))  # what is read is taken out before anybody else reads
    transport: asyncio.Transport

    def __init__(self, on_message: Callable[[Self, dict[str, Any]], None] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.on_message = on_message
        self.is_rude = False
        """It answers neither pings nor the close, and does not hang up."""
        self.answer_to_close: bytes | None = None
        """What a rude client sends when the server closes."""
        self.code: int | None = None
        """The server's close code."""
        self.notices: Counter[str] = Counter()
        self.count = 0
        """Messages that came."""
        self.out_of_order = 0
        self.head: asyncio.Future[str] = loop.create_future()
        """The head of the answer to the handshake."""
        self.is_cut = asyncio.Event()
        """Nothing comes from the server any more."""
        self.gone = asyncio.Event()
        """The connection is closed on this side, too."""
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._data = bytearray()

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        on_message: Callable[[Self, dict[str, Any]], None] | None = None,
        *,
        path: str = "/stream",
        receive_buffer: int | None = None,
    ) -> Self:
        """Connect and ask for the upgrade; whether it is granted is in `head`."""
        loop = asyncio.get_running_loop()
        connection = socket.socket()
        connection.setblocking(False)
        try:
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await loop.sock_connect(connection, address)
            _, peer = await loop.create_connection(lambda: cls(on_message), sock=connection)
        except BaseException:
            connection.close()
            raise
        key = base64.b64encode(os.urandom(16)).decode()
        peer.transport.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        return peer

    def send(self, payload: bytes, opcode: int = TEXT) -> None:
        """Send one frame.

        Raises:
            ConnectionError: the link has ended.
        """
        if self.transport.is_closing():
            raise ConnectionResetError("the server is gone")
        self.transport.write(frame(payload, opcode))

    async def call(self, method: str, payload: object = None) -> Any:
        """The response to a call.

        Raises:
            ConnectionError: the link ended before the answer.
        """
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        self.send(orjson.dumps({"id": id_, "method": method, "payload": payload}))
        reply = await answer
        if "response" not in reply:
            raise ValueError(f"{method}: {reply}")
        return reply["response"]

    async def shaken(self) -> Self:
        """Wait for the upgrade.

        Raises:
            ConnectionError: it was refused.
        """
        head = await self.head
        if not head.startswith("HTTP/1.1 101"):
            raise ConnectionError(head)
        return self

    # -- what the event loop calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._data += self.buffer[:nbytes]
        if not self.head.done():
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head.set_result(self._data[:end].decode())
            del self._data[: end + 4]
        if self.head.result().startswith("HTTP/1.1 101"):
            self._read()

    def eof_received(self) -> bool:
        self.is_cut.set()
        return self.is_rude

    def connection_lost(self, exc: Exception | None) -> None:
        error = ConnectionResetError("the server is gone")
        for waiter in (self.head, *self._answers.values()):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # nobody need ask for it
        self._answers.clear()
        self.is_cut.set()
        self.gone.set()

    # -- frames -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        data, at = self._data, 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size > 125:
                width = 2 if size == 126 else 8
                size, start = int.from_bytes(data[start : start + width]), start + width
            if len(data) < start + size:
                break
            self._take(data[at] & 15, bytes(data[start : start + size]))
            at = start + size
        del data[:at]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._message(orjson.loads(payload))
        elif opcode == PING and not self.is_rude:
            self.transport.write(frame(payload, PONG))
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2])
            if not self.is_rude:
                self.transport.write(frame(payload[:2], CLOSE))
                self.transport.close()
            elif self.answer_to_close:
                self.transport.write(self.answer_to_close)

    def _message(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if "channel" in message:
            self.count += 1
            if self.on_message is not None:
                self.on_message(self, message)
        elif "notice" in message:
            self.notices[message["notice"]] += 1
        elif (answer := self._answers.pop(message.get("id"), None)) is not None and not answer.done():  # type: ignore[arg-type]
            answer.set_result(message)
