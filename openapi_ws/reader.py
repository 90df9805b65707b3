"""Floor 3, calls: the frames of one socket, each handed to its calls, by a task that is free to read on."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiohttp import WebSocketError, WSMsgType, web

from .calls import Calls
from .frames import can_be_sent
from .steps import Suspended
from .websocket import Websocket

__all__ = ["Reader"]

PROTOCOL_ERROR, NO_STATUS, LOST = 1002, 1005, 1006
# As names of the module: looking up a member of an Enum costs more than the comparison.
TEXT, BINARY, PING, PONG = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG
FRAMES = 64
"""Messages of one client that are taken in a row before the others have their turn."""


class Frame(Protocol):
    """What aiohttp reads, whichever of its classes it is."""

    @property
    def type(self) -> WSMsgType:
        """What kind of frame."""

    @property
    def data(self) -> Any:
        """What it holds."""


class Reader:
    """Reads one socket to its end.

    A task of its own reads from the first message on: the handler stays free to see the client off, whatever its
    methods do. When a method waits, its task stays with it, and the next one reads on.
    """

    __slots__ = ("_calls", "_ended", "_response", "_task", "_websocket")

    def __init__(self, response: web.WebSocketResponse[bool], websocket: Websocket, calls: Calls) -> None:
        self._response, self._websocket, self._calls = response, websocket, calls
        self._ended: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Return when no more frames will come; the socket's close code is then known."""
        message = await self._response.receive()
        while self._is_control(message):
            message = await self._response.receive()
        if message.type is not TEXT and message.type is not BINARY:
            self._end(message)
            return
        self._ended = asyncio.get_running_loop().create_future()
        self._read_on(message.data)
        try:
            await self._ended
        finally:
            if self._task is not None:
                self._task.cancel()

    def _read_on(self, data: bytes | None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._lead(data))

    async def _lead(self, data: bytes | None) -> None:
        """Read until a call waits or there is nothing more to read; *data* has been read already."""
        try:
            suspended = await self._until_suspended(data)
        except Exception as error:
            self._tell_end(error)
            return
        if suspended is None:
            self._tell_end(None)
            return
        self._read_on(None)
        await suspended

    async def _until_suspended(self, data: bytes | None) -> Suspended[None] | None:
        websocket, calls, receive = self._websocket, self._calls, self._response.receive
        left = FRAMES
        while True:
            if data is not None and websocket.close_code is None:
                websocket.is_used = True
                suspended = calls.receive(data)
                if suspended is not None:
                    return suspended
                left -= 1
                if not left:
                    left = FRAMES
                    await asyncio.sleep(0)
            message = await receive()
            kind = message.type
            if kind is TEXT or kind is BINARY:
                websocket.is_heard = True
                data = message.data
            elif self._is_control(message):
                data = None
            else:
                self._end(message)
                return None

    def _tell_end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _is_control(self, message: Frame) -> bool:
        """It was a ping or a pong, and is answered."""
        self._websocket.is_heard = True
        if message.type is PING:
            self._websocket.pong(message.data)
            return True
        if message.type is PONG:
            self._websocket.count_control()
            return True
        return False

    def _end(self, message: Frame) -> None:
        websocket = self._websocket
        if websocket.close_code is None:
            websocket.flush()
        if websocket.close_code is None:  # the flush may have found it too slow
            websocket.close_code = _close_code(message.type, message.data)


def _close_code(kind: WSMsgType, data: Any) -> int:
    """Why the frames ended: the client's code, that of its broken frame, or a lost link."""
    if kind is WSMsgType.CLOSE:
        # aiohttp lets through 1006, which no frame may carry, and what is above all ranges (§7.4).
        return (data or NO_STATUS) if not data or can_be_sent(data) else PROTOCOL_ERROR
    return int(data.code) if isinstance(data, WebSocketError) else LOST
