"""Floor 1, sockets: one connected client: its identity, its signs of life, its one close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from .frames import close_frame, ping_frame, pong_frame
from .members import Attendee
from .metrics import Metrics
from .outbox import SlowConsumer, disconnect
from .outgoing import POLL, Flusher, Outgoing
from .protocol import Notice
from .pulse import FORCED_RECONNECT, End, Ping, Pulse, Warn
from .transport import Activity, waiting

__all__ = ["Websocket"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds within which every close from this side ends, whatever the peer does."""
LAST_WORDS = 0.2
"""Seconds for a call that is dismissed to be answered."""
TOO_MANY = 4013


class Websocket(Outgoing):
    """One connected client: `Outgoing` sends to it, `close` is the only way out."""

    __slots__ = (
        "__weakref__", "_closer", "_end", "_response", "_taken", "_was_waiting", "attendee", "calls",
        "dialect_is_fixed", "has_ended", "identity", "is_heard", "is_leaving", "is_used", "pulse", "request",
        "socket_id",
    )  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        metrics: Metrics,
        flusher: Flusher,
        pulse: Pulse,
        *,
        identity: str | None = None,
        max_queue_bytes: int = 1024 * 1024,
        slow_consumer: SlowConsumer = disconnect,
    ) -> None:
        super().__init__(
            writer, transport, metrics, flusher, max_queue_bytes=max_queue_bytes, slow_consumer=slow_consumer
        )
        self.socket_id = secrets.token_hex(16)
        """128 random bits, as hexadecimal; not a secret, not guessable."""
        self.identity = identity
        """Whose socket it is, as the view says."""
        self.request = request
        """The handshake."""
        self.dialect_is_fixed = False
        """A sub-protocol was negotiated: the client speaks no other dialect."""
        self.has_ended = False
        """No more frames will be read from the client."""
        self.is_heard = True
        """A frame has come since the last tick; whoever reads one sets it."""
        self.is_used = True
        """A message has come since the last tick; whoever reads one sets it."""
        self.is_leaving = False
        """The client has been asked to leave: no more calls begin."""
        self.calls: Activity | None = None
        """The calls in flight."""
        self.attendee: Attendee | None = None
        """Who says what others are told of the client where members are shown; with none, it is never shown."""
        self.pulse = pulse
        """Its signs of life."""
        self._response = response
        self._was_waiting, self._taken = False, 0
        self._closer: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return self.socket_id

    def __repr__(self) -> str:
        return f"<Websocket {self.socket_id} {'open' if self.close_code is None else f'closed {self.close_code}'}>"

    # -- signs of life ----------------------------------------------------------------------------------------

    def tick(self, now: float, late: float = 0.0) -> None:
        """Look at the clock, *late* seconds after it was due: ping, and close what is dead, idle or too old."""
        left = waiting(self._transport)
        taken = self._written - left
        # When bytes wait here, the kernel is full: if it takes more, the client reads, however late its pong may be.
        if self.is_heard or (self._was_waiting and taken > self._taken):
            self.is_heard = False
            self.pulse.heard()
        self._taken, self._was_waiting = taken, left > 0
        if left <= self._high:
            self._large = 0
        if self.is_used or self.calls:
            self.is_used = False
            self.pulse.used(now)
        if self.calls is not None:
            self.calls.tick(now)
        if self.close_code is None:
            self._heed(self.pulse.look(now, late))

    def _heed(self, verdict: Ping | Warn | End | None) -> None:
        if isinstance(verdict, Ping):
            self._write([ping_frame()])
        elif isinstance(verdict, End):
            self.close_soon(verdict.code, verdict.reason)
        elif isinstance(verdict, Warn):
            self.notify(Notice("expiring", orjson.dumps({"reason": verdict.reason, "in": round(verdict.seconds, 3)})))

    def pong(self, payload: bytes) -> None:
        """Answer a ping with the same *payload* (RFC 6455 §5.5.3); a client that sends too many is closed."""
        self.count_control()
        if self.close_code is None:
            self._write([pong_frame(payload)])

    def count_control(self) -> None:
        """A control frame has come; too many close the socket."""
        if not self.pulse.allows_control():
            self.close_soon(TOO_MANY, "too many control frames")

    # -- the end ----------------------------------------------------------------------------------------------

    async def move(self, within: float = 0.0, *, grace: float = 10.0, code: int = FORCED_RECONNECT) -> None:
        """Ask the client to come back on a connection of its own choice, and close this one.

        A ``drain`` notice tells it to leave in *within* seconds. Then no more calls begin; those in flight have
        *grace* seconds to end, and are answered -32014 if they have not. At last the socket is closed with *code*.
        """
        close_frame(code, "moved")  # a wrong code is refused before anybody is asked to leave
        data = {"reconnect_in": round(within, 3), "deadline": round(within + grace, 3)}
        self.notify(Notice("drain", orjson.dumps(data)))
        self.pulse.heartbeat = None  # its time is bounded now, and aiohttp reads no pongs once it shuts down
        try:
            await asyncio.sleep(max(0, within))
            self.is_leaving = True
            await self._idle(grace)
            if self.calls:
                self.calls.dismiss()
                await self._idle(LAST_WORDS)
        finally:  # also if whoever asks is cancelled, e.g. as a call of this very socket
            self.close_soon(code, "moved")
        await self.close()

    async def _idle(self, seconds: float) -> None:
        """Return when no call is in flight any more, or after *seconds*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.calls and self.close_code is None:  # noqa: ASYNC110  # see POLL
                    await asyncio.sleep(POLL)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and return when it is gone, at the latest after `CLOSE_TIMEOUT`.

        *code* and *reason*, cut at 123 bytes, reach a client that reads; the first call decides them. A client
        that does not answer within the time is cut off (RFC 6455 §7.1.1 asks for the wait, not for its length).

        Raises:
            ValueError: *code* is none of 1000-1003, 1007-1014 and 3000-4999; nothing has happened.
        """
        self.close_soon(code, reason)
        if self._closer is not None:
            await asyncio.shield(self._closer)

    def close_soon(self, code: int = 1000, reason: str = "") -> bool:
        """Begin what `close` does, without waiting for its end; whether nobody had begun it before."""
        frame = close_frame(code, reason)
        if self._closer is None and self.close_code is None:
            self._hand_over()
        if self._closer is not None:  # handing over may have found the client too slow, and begun to close
            return False
        self.close_code = self.close_code or code
        if not self._transport.is_closing():
            self._transport.write(frame)
        self._closer = self._loop.create_task(self._close())
        return True

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
                if not self._transport.is_closing():  # a second close breaks a transport of TLS
                    self._transport.close()
                await asyncio.sleep(0)  # mostly it is gone by then
                # What waits is sent first, and TLS has a goodbye of its own that the peer may not return.
                while self.request.transport is not None:  # noqa: ASYNC110  # see POLL
                    await asyncio.sleep(POLL)
        except TimeoutError:
            logger.debug("%s did not answer the close in %s s and is cut off", self, CLOSE_TIMEOUT)
            self._transport.abort()
        self.metrics.dropped["closed"] += len(self._pushes) + len(self._outbox or ())
        self.discard(lambda _: True)
        await self._response.close(drain=False)  # aiohttp's close may wait for ever; now it has nobody to wait for
