"""Floor 1, sockets: one connected client: its identity, its outgoing bytes, and the one way to close it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct

from aiohttp import web

from .protocol import HOUSE, Dialect, Notice

__all__ = ["Websocket", "text_frame"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds within which every close from this side ends, whatever the peer does."""
REASON_LIMIT = 123
"""Bytes of a close reason: a control frame holds 125 (RFC 6455 §5.5), two of them the code."""
POLL = 0.01
"""Seconds between two looks at whether the last bytes are out; transports tell no other way."""
SLOW_CONSUMER = 4008


def text_frame(payload: bytes) -> bytes:
    """A whole, unmasked text frame (RFC 6455 §5.2) of UTF-8 *payload*."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (struct.pack("!H", size), payload)
    return b"\x81\x7f%b%b" % (struct.pack("!Q", size), payload)


def close_frame(code: int, reason: str) -> bytes:
    """A whole close frame (RFC 6455 §5.5.1); *reason* is cut at 123 bytes, between characters."""
    text = reason.encode()[:REASON_LIMIT].decode(errors="ignore").encode()
    return b"\x88%c%b%b" % (len(text) + 2, struct.pack("!H", code), text)


class Websocket:
    """One connected client.

    Nothing here waits for the client but `close`, which is bounded. What is sent goes into the process's memory
    and from there to the kernel, at the end of the event loop's tick: first the answers of the tick, then its
    messages. A client for which more than `max_queue_bytes` wait is closed with 4008.
    """

    __slots__ = (
        "__weakref__", "_answers", "_closer", "_end", "_flushing", "_held", "_held_bytes", "_loop", "_pushes",
        "_response", "_transport", "close_code", "dialect", "dialect_is_fixed", "has_ended", "push_dialect",
        "request", "socket_id",
    )  # fmt: skip

    max_queue_bytes = 1024 * 1024
    """Bytes that may wait for a client that does not read."""

    def __init__(
        self, request: web.Request, response: web.WebSocketResponse[bool], transport: asyncio.Transport
    ) -> None:
        self.socket_id = secrets.token_hex(16)
        """128 random bits, as hexadecimal; not a secret, not guessable."""
        self.request = request
        """The handshake."""
        self.dialect: Dialect = HOUSE
        """The dialect that the client spoke last."""
        self.dialect_is_fixed = False
        """A sub-protocol was negotiated: the client speaks no other dialect."""
        self.push_dialect: Dialect | None = None
        """The dialect of messages: the one the client subscribed in; before it has, the one it spoke last."""
        self.close_code: int | None = None
        """Why the connection ends, once it does: this side's code, the client's, or 1006."""
        self.has_ended = False
        """No more frames will be read from the client."""
        self._response = response
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._answers: list[bytes] = []
        self._pushes: list[bytes] = []
        self._held = 0
        self._held_bytes = 0
        self._flushing = False
        self._closer: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return self.socket_id

    def __repr__(self) -> str:
        state = "open" if self.close_code is None else f"closed {self.close_code}"
        return f"<Websocket {self.socket_id} {state}>"

    def send(self, payload: bytes) -> None:
        """Send an answer: the UTF-8 JSON *payload* of one text frame. It never waits."""
        self._answers.append(text_frame(payload))
        self._flush_soon()

    def push(self, frame: bytes) -> None:
        """Send a message: a whole *frame* of `text_frame`, shared by all who get it. It never waits."""
        self._pushes.append(frame)
        if not self._held:
            self._flush_soon()
        else:
            self._held_bytes += len(frame)
            if self._held_bytes > self.max_queue_bytes:
                self.close_soon(SLOW_CONSUMER, "too much held for an answer")

    def notify(self, notice: Notice) -> None:
        """Tell the client something about its connection."""
        self.push(text_frame((self.push_dialect or self.dialect).notice(notice)))

    def hold(self) -> None:
        """Keep messages back until `release`, so that an answer can overtake them."""
        self._held += 1

    def release(self) -> None:
        """End a `hold`; the messages follow what was sent meanwhile."""
        self._held -= 1
        if not self._held and self._pushes:
            self._flush_soon()

    def flush(self) -> None:
        """Hand what waits to the transport now: answers first, then messages that are not held."""
        self._flushing = False
        self._write()
        if self._transport.get_write_buffer_size() > self.max_queue_bytes:
            self.close_soon(SLOW_CONSUMER, "slow consumer")

    def _write(self) -> None:
        frames, self._answers = self._answers, []
        if not self._held and self._pushes:
            frames += self._pushes
            self._pushes = []
            self._held_bytes = 0
        if frames and self.close_code is None and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and return when it is gone, at the latest after `CLOSE_TIMEOUT`.

        *code* and *reason*, cut at 123 bytes, reach a client that reads; the first call decides them. A client
        that does not answer within the time is cut off (RFC 6455 §7.1.1 asks for the wait, not for its length).
        """
        self.close_soon(code, reason)
        if self._closer is not None:
            await asyncio.shield(self._closer)

    def close_soon(self, code: int = 1000, reason: str = "") -> None:
        """Begin what `close` does, without waiting for its end."""
        if self._closer is None:
            self._write()
            if self.close_code is None:
                self.close_code = code
            if not self._transport.is_closing():
                self._transport.write(close_frame(code, reason))
            self._closer = self._loop.create_task(self._close())

    def end(self) -> None:
        """Say that no more frames will be read from the client: it has closed, or answered the close."""
        self.has_ended = True
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if not self.has_ended:
                    self._end = self._loop.create_future()
                    await self._end
                while self._transport.get_write_buffer_size():  # noqa: ASYNC110  # see POLL
                    await asyncio.sleep(POLL)
            self._transport.close()
        except TimeoutError:
            logger.debug("%s did not answer the close in %s s and is cut off", self, CLOSE_TIMEOUT)
            self._transport.abort()
        # aiohttp's own close() may wait for ever for a peer that does not read; now it has nobody to wait for.
        await self._response.close(drain=False)
