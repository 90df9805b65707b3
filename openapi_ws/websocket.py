"""Floor 1, sockets: one connected client: its identity, its outgoing bytes, its signs of life, its one close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from .frames import close_frame, ping_frame, pong_frame, text_frame
from .link import Activity, waiting
from .metrics import Metrics
from .outbox import Outbox, SlowConsumer, disconnect
from .protocol import HOUSE, Dialect, Message, Notice
from .pulse import FORCED_RECONNECT, End, Ping, Pulse, Warn

__all__ = ["Websocket"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds within which every close from this side ends, whatever the peer does."""
POLL = 0.01
"""Seconds between two looks at what tells no other way that it has changed."""
LAST_WORDS = 0.2
"""Seconds for a call that is dismissed to be answered."""
SLOW_CONSUMER, TOO_MANY = 4008, 4013


class Websocket:
    """One connected client.

    Nothing here waits for the client but `close` and `drain`. What is sent goes to the transport at the end of the
    event loop's tick: first the answers of the tick, then its messages, in one write. When the transport holds more
    than its high-water mark, messages wait here; a task hands them on as the client reads. If transport and waiting
    messages together are more than *max_queue_bytes*, the policy *slow_consumer* acts.
    """

    __slots__ = (
        "__weakref__", "_answers", "_closer", "_end", "_flushing", "_held", "_held_bytes", "_high", "_large", "_loop",
        "_outbox", "_pump", "_pushes", "_response", "_taken", "_transport", "_was_waiting", "_writer", "_written",
        "calls", "close_code", "dialect", "dialect_is_fixed", "has_ended", "identity", "is_heard", "is_leaving",
        "is_used", "max_queue_bytes", "metrics", "pulse", "push_dialect", "request", "slow_consumer", "socket_id",
    )  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        response: web.WebSocketResponse[bool],
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        metrics: Metrics,
        pulse: Pulse,
        *,
        identity: str | None = None,
        max_queue_bytes: int = 1024 * 1024,
        slow_consumer: SlowConsumer = disconnect,
    ) -> None:
        self.socket_id = secrets.token_hex(16)
        """128 random bits, as hexadecimal; not a secret, not guessable."""
        self.identity = identity
        """Whose socket it is, as the view says."""
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
        self.is_heard = True
        """A frame has come since the last tick; whoever reads one sets it."""
        self.is_used = True
        """A message has come since the last tick; whoever reads one sets it."""
        self.is_leaving = False
        """The client has been asked to leave: no more calls begin."""
        self.calls: Activity | None = None
        """The calls in flight."""
        self.pulse = pulse
        """Its signs of life."""
        self.metrics, self.max_queue_bytes, self.slow_consumer = metrics, max_queue_bytes, slow_consumer
        self._response, self._writer, self._transport = response, writer, transport
        self._loop = asyncio.get_running_loop()
        # Half, as what is written at once may be as much again.
        self._high = min(transport.get_write_buffer_limits()[1], max_queue_bytes // 2)
        transport.set_write_buffer_limits(self._high)
        self._flushing = self._was_waiting = False
        self._answers: list[bytes] = []
        self._pushes: list[tuple[bytes, Message]] = []
        self._outbox = Outbox(slow_consumer)
        self._pump: asyncio.Task[None] | None = None
        self._held = self._held_bytes = self._written = self._taken = self._large = 0
        self._closer: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return self.socket_id

    def __repr__(self) -> str:
        return f"<Websocket {self.socket_id} {'open' if self.close_code is None else f'closed {self.close_code}'}>"

    @property
    def is_gone(self) -> bool:
        """It is closed, or being closed, from whichever side."""
        return self.close_code is not None or self._transport.is_closing()

    # -- what is sent -----------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the client, here and in the transport."""
        return waiting(self._transport) + self._held_bytes + self._outbox.size

    def send(self, payload: bytes) -> None:
        """Send an answer: the UTF-8 JSON *payload* of one text frame. It never waits."""
        self._answers.append(text_frame(payload))
        self._allow(len(payload))
        self._flush_soon()

    def notify(self, notice: Notice) -> None:
        """Tell the client something about its connection; a notice goes before the messages of its tick."""
        self.send((self.push_dialect or self.dialect).notice(notice))

    def push(self, frame: bytes, message: Message) -> None:
        """Send *message*, as a whole *frame* of `text_frame` that all who get it share. It never waits."""
        self._pushes.append((frame, message))
        if not self._held:
            self._flush_soon()
            return
        self._held_bytes += len(frame)
        if self._held_bytes > self.max_queue_bytes:
            self._give_up()

    def discard(self, is_unwanted: Callable[[Message], bool]) -> None:
        """Drop the waiting messages that the client does not want any more, e.g. since it has unsubscribed."""
        self._pushes = [(frame, message) for frame, message in self._pushes if not is_unwanted(message)]
        self._outbox.discard(is_unwanted)

    async def drain(self) -> None:
        """Return when the client keeps up: what was sent is out, but for what the transport always holds.

        Raises:
            ConnectionResetError: the client is gone.
        """
        self.flush()
        await asyncio.sleep(0)  # without this, a method that streams to a fast client would have the loop for itself
        self.flush()
        while not self.is_gone and (self._pump or self._is_behind()):
            # The pump alone waits for the writer: aiohttp's waiters share a future, so one cancelled would end all.
            await asyncio.shield(self._pump or self._start_pump())
            self.flush()
        if self.is_gone:
            raise ConnectionResetError("the client is gone")

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
        self._hand_over()
        if waiting(self._transport) > self._bound():
            self._give_up()

    def _hand_over(self) -> None:
        self._flushing = False
        frames, self._answers = self._answers, []
        pushes: list[tuple[bytes, Message]] = []
        if not self._held and self._pushes:
            pushes, self._pushes, self._held_bytes = self._pushes, [], 0
        if self.is_gone:
            self.metrics.dropped["closed"] += len(pushes)
        else:
            self._write_all(frames, pushes)

    def _write_all(self, frames: list[bytes], pushes: list[tuple[bytes, Message]]) -> None:
        """Write answers, and messages as long as the transport keeps up; the rest waits."""
        at = 0
        while at < len(pushes) and not self._outbox and not self._is_behind():
            size = 0
            while at < len(pushes) and size <= self._high:
                frames.append(pushes[at][0])
                size += len(pushes[at][0])
                self._allow(len(pushes[at][0]))
                at += 1
            self._write(frames)
            frames = []
        self._write(frames)
        if at < len(pushes):
            self._queue(pushes[at:])

    def _bound(self) -> int:
        """Bytes that may wait: the limit, and one frame beside it, however large that is."""
        return self.max_queue_bytes + self._large

    def _allow(self, size: int) -> None:
        self._large = max(self._large, size if size > self._high else 0)

    def _give_up(self) -> None:
        if self.close_code is None:
            logger.warning("%s does not keep up: closed with %d bytes waiting", self, self.queued_bytes)
        self.close_soon(SLOW_CONSUMER, "slow consumer")

    def _is_behind(self) -> bool:
        return waiting(self._transport) > self._high

    def _write(self, frames: list[bytes]) -> None:
        if frames:
            data = frames[0] if len(frames) == 1 else b"".join(frames)
            self._written += len(data)
            self._transport.write(data)

    def _queue(self, pushes: list[tuple[bytes, Message]]) -> None:
        """Let *pushes* wait, and see to it that they do not wait for ever."""
        limit = self._bound() - waiting(self._transport)
        fits, dropped = True, self._outbox.dropped
        try:
            for frame, message in pushes:
                fits = self._outbox.add(frame, message, limit)
        except Exception:
            logger.exception("%s the key of conflate failed", self)
            self.close_soon(1011, "conflate failed")
            return
        self.metrics.dropped["slow"] += self._outbox.dropped - dropped
        if not fits:
            self._give_up()
        elif self._pump is None:
            self._pump = self._start_pump()

    def _start_pump(self) -> asyncio.Task[None]:
        self._pump = self._loop.create_task(self._hand_on())
        return self._pump

    async def _hand_on(self) -> None:
        """Hand to the transport what waits, as fast as the client reads, until it keeps up."""
        try:
            while (self._outbox or self._is_behind()) and self.close_code is None:
                await self._writer.drain()
                if self.close_code is not None:  # since: nothing follows a close frame (RFC 6455 §5.5.1)
                    break
                if self._is_behind():  # a transport whose marks aiohttp does not watch
                    await asyncio.sleep(POLL)
                    continue
                self._tell_missed()
                self._write(self._outbox.take(self._high))
                await asyncio.sleep(0)
        except ConnectionError as error:
            logger.debug("%s is gone with %d bytes waiting: %r", self, self._outbox.size, error)
        finally:
            self._pump = None

    def _tell_missed(self) -> None:
        """Say what was dropped before any message that is newer."""
        missed, self._outbox.missed = self._outbox.missed, {}
        dialect = self.push_dialect or self.dialect
        for channel, count in missed.items():
            data = orjson.dumps({"channel": channel, "missed": count})
            self._write([text_frame(dialect.notice(Notice("gap", data)))])

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

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
        self.metrics.dropped["closed"] += len(self._pushes) + len(self._outbox)
        self.discard(lambda _: True)
        await self._response.close(drain=False)  # aiohttp's close may wait for ever; now it has nobody to wait for
