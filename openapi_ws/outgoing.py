"""Floor 1, sockets: the bytes on their way to one client: joined while it keeps up, bounded when it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import orjson
from aiohttp.abc import AbstractStreamWriter

from .frames import deflated_frame, text_frame
from .history import Position
from .metrics import Metrics
from .outbox import Outbox, SlowConsumer
from .protocol import HOUSE, Dialect, Message, Notice
from .transport import waiting

__all__ = ["Backlog", "Caught", "Flusher", "Outgoing", "Pushed"]

logger = logging.getLogger(__name__)

POLL = 0.01
"""Seconds between two looks at what tells no other way that it has changed."""
COMPRESS_FROM = 1024
"""Bytes of a message that is worth compressing."""
MIN_WINDOW = 8
"""zlib makes no window of 8 bits: who asks for it gets its frames uncompressed, which is as legal (RFC 7692 §6)."""
RETRY = 1.0
"""Seconds until a history that could not be read is asked again."""
SLOW_CONSUMER, INTERNAL_ERROR = 4008, 1011


class Caught(NamedTuple):
    """What a client that lags is given next of a channel with history."""

    frames: list[bytes]
    """Messages that it has missed, in order."""
    since: Position | None
    """From where to read on; None when it has all that was published."""
    gap: Notice | None = None
    """What it is told before *frames*, where they do not follow on what it had."""


class Backlog(Protocol):
    """What reads on in channels with history."""

    async def backlog(self, websocket: Any, channel: str, since: Position, size: int) -> Caught:
        """The next messages of *channel* after *since*: of *size* bytes, or one. Later ones come as ever."""


Pushed = tuple[bytes, Message]
"""A message, and before it the whole frame of `text_frame` that all who get it share."""


class Flusher:
    """Flushes what was sent in one turn of the loop at the end of it, with one callback for all clients."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: list[Outgoing] = []

    def add(self, outgoing: Outgoing) -> None:
        """Flush *outgoing* at the end of this turn; once for each call."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(outgoing)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for outgoing in due:
            try:
                outgoing.flush()
            except Exception:  # whatever it is, it is one client's affair
                logger.exception("%s could not be sent what waited", outgoing)
                outgoing.close_soon(INTERNAL_ERROR, "Internal error")


class Outgoing:
    """What is sent to one client.

    Nothing here waits for the client but `drain`. What is sent goes to the transport at the end of the event loop's
    tick: first the answers of the tick, then its messages, in one write. When the transport holds more than its
    high-water mark, messages wait here; a task hands them on as the client reads. If transport and waiting messages
    together are more than *max_queue_bytes*, the policy *slow_consumer* acts. Of channels with history no more waits
    than the transport takes at once; the rest is read from the history, *backlog*, when there is room.
    """

    __slots__ = (
        "_answers", "_flusher", "_flushing", "_held", "_held_bytes", "_high", "_lagging", "_large", "_loop", "_outbox",
        "_pump", "_pushes", "_transport", "_writer", "_written", "backlog", "close_code", "dialect",
        "max_queue_bytes", "metrics", "push_dialect", "slow_consumer", "window_bits",
    )  # fmt: skip

    def __init__(
        self,
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        metrics: Metrics,
        flusher: Flusher,
        *,
        max_queue_bytes: int,
        slow_consumer: SlowConsumer,
    ) -> None:
        self.dialect: Dialect = HOUSE
        """The dialect that the client spoke last."""
        self.push_dialect: Dialect | None = None
        """The dialect of messages: the one the client subscribed in; before it has, the one it spoke last."""
        self.close_code: int | None = None
        """Why the connection ends, once it does: this side's code, the client's, or 1006."""
        self.window_bits = 0
        """The client takes compressed frames, of a window of so many bits; 0 is no compression."""
        self.backlog: Backlog | None = None
        """Reads what the client has missed of a channel with history; with none, such a channel is like any other."""
        self.metrics, self.max_queue_bytes, self.slow_consumer = metrics, max_queue_bytes, slow_consumer
        self._writer, self._transport, self._flusher = writer, transport, flusher
        self._loop = asyncio.get_running_loop()
        # Half, as what is written at once may be as much again.
        self._high = min(transport.get_write_buffer_limits()[1], max_queue_bytes // 2)
        transport.set_write_buffer_limits(self._high)
        self._flushing = False
        self._answers: list[bytes] = []
        self._pushes: list[Pushed] = []
        self._outbox: Outbox | None = None
        self._lagging: dict[str, Position] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._held = self._held_bytes = self._written = self._large = 0

    @property
    def is_gone(self) -> bool:
        """It is closed, or being closed, from whichever side."""
        return self.close_code is not None or self._transport.is_closing()

    def close_soon(self, code: int = 1000, reason: str = "") -> bool:
        """`Websocket.close_soon`."""
        raise NotImplementedError

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the client, here and in the transport."""
        return waiting(self._transport) + self._held_bytes + (self._outbox.size if self._outbox else 0)

    def send(self, payload: bytes | None) -> None:
        """Send an answer: the UTF-8 JSON *payload* of one text frame, if any. It never waits."""
        if payload is None:
            return
        self._answers.append(self.frame(payload) if self.window_bits else text_frame(payload))
        if len(payload) > self._high:
            self._allow(len(payload))
        if not self._flushing:
            self._flushing = True
            self._flusher.add(self)

    def frame(self, payload: bytes) -> bytes:
        """A whole frame of *payload* as this client takes it: compressed if that was agreed on, and is worth it."""
        if self.window_bits > MIN_WINDOW and len(payload) > COMPRESS_FROM:
            return deflated_frame(payload, self.window_bits)
        return text_frame(payload)

    def notify(self, notice: Notice) -> None:
        """Tell the client something about its connection; a notice goes before the messages of its tick."""
        self.send((self.push_dialect or self.dialect).notice(notice))

    def push(self, pushed: Pushed) -> None:
        """Send a message. It never waits."""
        self._pushes.append(pushed)
        if self._held:
            self._held_bytes += len(pushed[0])
            if self._held_bytes > self.max_queue_bytes:
                self._give_up()
        elif not self._flushing:
            self._flushing = True
            self._flusher.add(self)

    def discard(self, is_unwanted: Callable[[Message], bool]) -> None:
        """Drop the waiting messages that the client does not want any more, e.g. since it has unsubscribed."""
        self._pushes = [(frame, message) for frame, message in self._pushes if not is_unwanted(message)]
        if self._outbox:
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
        if self._hand_over() and waiting(self._transport) > self._bound():
            self._give_up()

    def _hand_over(self) -> bool:
        """Write what may be written; whether the transport holds more than its high-water mark now."""
        self._flushing = False
        frames, self._answers = self._answers, []
        pushes: list[Pushed] = []
        if self._pushes and not self._held:
            pushes, self._pushes, self._held_bytes = self._pushes, [], 0
        if self.close_code is not None or self._transport.is_closing():
            self.metrics.dropped["closed"] += len(pushes)
            return False
        if pushes:
            self._write_all(frames, pushes)
        else:
            self._write(frames)
        return self._transport.get_write_buffer_size() > self._high

    def _write_all(self, frames: list[bytes], pushes: list[Pushed]) -> None:
        """Write answers, and messages as long as the transport keeps up; the rest waits."""
        at = 0
        while at < len(pushes) and not self._outbox and not self._lagging and not self._is_behind():
            size = 0
            while at < len(pushes) and size <= self._high:
                frames.append(pushes[at][0])
                size += len(pushes[at][0])
                at += 1
            if size > self._high:
                self._allow(len(frames[-1]))  # the last is the one that went beyond
            self._write(frames)
            frames = []
        self._write(frames)
        if at < len(pushes):
            self._queue(pushes[at:])

    def _bound(self) -> int:
        """Bytes that may wait: the limit, and one frame beside it, however large that is."""
        return self.max_queue_bytes + self._large

    def _allow(self, size: int) -> None:
        if size > self._high:
            self._large = max(self._large, size)

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

    def _queue(self, pushes: list[Pushed]) -> None:
        """Let *pushes* wait, and see to it that they do not wait for ever."""
        if self._outbox is None:
            self._outbox = Outbox(self.slow_consumer)
        outbox, limit = self._outbox, self._bound() - waiting(self._transport)
        fits, dropped = True, outbox.dropped
        try:
            for frame, message in pushes:
                fits = self._lags(len(frame), message) or outbox.add(frame, message, limit)
        except Exception:
            logger.exception("%s the key of conflate failed", self)
            self.close_soon(INTERNAL_ERROR, "conflate failed")
            return
        self.metrics.dropped["slow"] += outbox.dropped - dropped
        if not fits:
            self._give_up()
        elif self._pump is None:
            self._pump = self._start_pump()

    def _lags(self, size: int, message: Message) -> bool:
        """*message* does not wait here: it is read from its channel's history when there is room."""
        if message.before is None or self.backlog is None or not self.slow_consumer.catches_up:
            return False
        lagging = self._lagging = self._lagging or {}
        if message.channel not in lagging:
            if self._outbox is None or self._outbox.size + size <= self._high:
                return False
            lagging[message.channel] = message.before
            self.metrics.lagged += 1
        return True

    def _start_pump(self) -> asyncio.Task[None]:
        self._pump = self._loop.create_task(self._hand_on())
        return self._pump

    async def _hand_on(self) -> None:
        """Hand to the transport what waits, as fast as the client reads, until it keeps up."""
        try:
            while (self._outbox or self._lagging or self._is_behind()) and self.close_code is None:
                await self._writer.drain()
                if self.close_code is not None:  # since: nothing follows a close frame (RFC 6455 §5.5.1)
                    break
                if self._is_behind():  # a transport whose marks aiohttp does not watch
                    await asyncio.sleep(POLL)
                elif self._outbox:
                    self._tell_missed(self._outbox)
                    self._write(self._outbox.take(self._high))
                elif self._lagging:
                    await self._catch_up(self._lagging)
                await asyncio.sleep(0)
        except ConnectionError as error:
            logger.debug("%s is gone with %d bytes waiting: %r", self, self.queued_bytes, error)
        finally:
            self._pump = None

    async def _catch_up(self, lagging: dict[str, Position]) -> None:
        """Read on in the channel that lags longest. Between what is read last and what comes live nothing awaits."""
        channel, since = next(iter(lagging.items()))
        if self.backlog is None:
            return
        try:
            caught = await self.backlog.backlog(self, channel, since, self._high)
        except Exception as error:
            logger.warning("%s cannot catch up in %r, tried again in %s s: %r", self, channel, RETRY, error)
            until = self._loop.time() + RETRY
            while self._loop.time() < until and not self._outbox and self.close_code is None:  # noqa: ASYNC110  # see POLL
                await asyncio.sleep(POLL)
            return
        if caught.since is None:
            lagging.pop(channel, None)
        elif channel in lagging:  # and not unsubscribed meanwhile
            lagging[channel] = caught.since
        if self.close_code is None:
            dialect = self.push_dialect or self.dialect
            notice = [] if caught.gap is None else [text_frame(dialect.notice(caught.gap))]
            self._allow(max(map(len, caught.frames), default=0))
            self._write(notice + caught.frames)

    def _tell_missed(self, outbox: Outbox) -> None:
        """Say what was dropped before any message that is newer."""
        missed, outbox.missed = outbox.missed, {}
        dialect = self.push_dialect or self.dialect
        for channel, count in missed.items():
            data = orjson.dumps({"channel": channel, "missed": count})
            self._write([text_frame(dialect.notice(Notice("gap", data)))])

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._flusher.add(self)
