"""Floor 1, sockets: who listens to what in this process, and the fan-out to them, encoded once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from .callbacks import Callbacks, CallbackType, is_cancelled
from .errors import EncodeError, InvalidParams
from .outgoing import Pushed
from .patterns import Pattern
from .protocol import Dialect, Message, Notice
from .websocket import Websocket

__all__ = ["Channel", "Channels", "Event"]

logger = logging.getLogger(__name__)

Listener = Websocket | CallbackType

BREATH = 16 * 1024
"""Bytes that are published in one turn of the loop before a publisher waits for the next."""
CLEAR_TIMEOUT = 5.0
"""Seconds that the broker has at shutdown to unsubscribe from what is left."""
RETRY_UNSUBSCRIBE = 1.0
"""Seconds until a broker that failed to unsubscribe is asked again."""


class Source(Protocol):
    """What the channels need of their broker; each may raise, and then nothing has changed."""

    async def subscribe(self, channel: str) -> None:
        """Begin to bring the messages of *channel* to this process."""

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        """Learn that somebody here listens to *event*."""

    async def unsubscribe(self, channel: str) -> None:
        """End what `subscribe` began."""


class Event:
    """One event name or pattern of a channel, and who listens to it."""

    __slots__ = ("callbacks", "name", "pattern")

    def __init__(self, name: str) -> None:
        self.name = name
        """The name or pattern as it was subscribed."""
        self.pattern = Pattern(name)
        self.callbacks: dict[Listener, None] = {}
        """Who listens, in the order in which they came."""


class Channel:
    """One channel: its events, and whether the broker brings its messages."""

    __slots__ = ("_events", "_patterns", "is_live", "name", "settling")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_live = False
        """The broker brings its messages to this process."""
        self.settling: asyncio.Task[Exception | None] | None = None
        """The task that makes `is_live` what the listeners want, while it runs."""
        self._events: dict[str, Event] = {}
        self._patterns: dict[str, Event] = {}

    @property
    def events(self) -> tuple[str, ...]:
        """Event names and patterns that somebody listens to."""
        return tuple(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, event: str) -> bool:
        return event in self._events

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def info(self) -> dict[str, int]:
        """How many listen to each event name or pattern."""
        return {event.name: len(event.callbacks) for event in self._events.values()}

    def register(self, event_name: str | None, listener: Listener) -> Event:
        """Put *listener* on an event name or pattern; none means ``*``."""
        name = event_name or "*"
        event = self._events.get(name)
        if event is None:
            event = self._events[name] = Event(name)
            if not event.pattern.is_literal:
                self._patterns[name] = event
        event.callbacks[listener] = None
        return event

    def unregister(self, event_name: str | None, listener: Listener) -> None:
        """Take *listener* off an event name or pattern; one that is not on it stays off."""
        name = event_name or "*"
        if event := self._events.get(name):
            event.callbacks.pop(listener, None)
            if not event.callbacks:
                del self._events[name]
                self._patterns.pop(name, None)

    def clients(self) -> Iterable[Websocket]:
        """The clients on any of the events, each once."""
        listeners = (listener for event in self._events.values() for listener in event.callbacks)
        return dict.fromkeys(listener for listener in listeners if isinstance(listener, Websocket))

    def listeners(self, event: str) -> Collection[Listener]:
        """Who gets *event*, each once however many of its patterns match."""
        matching = [found for found in self._patterns.values() if found.pattern.matches(event)]
        exact = self._events.get(event)
        if exact is not None and event not in self._patterns:
            matching.append(exact)
        if len(matching) == 1:
            return matching[0].callbacks
        return dict.fromkeys(listener for found in matching for listener in found.callbacks)


class _Entry:
    """One listener's subscription to one event of one channel."""

    __slots__ = ("is_confirmed", "pending")

    def __init__(self) -> None:
        self.is_confirmed = False
        self.pending = 0


class Channels:
    """The channels that somebody in this process listens to.

    What listeners want is changed at once and without waiting; what the broker does follows, by one task per
    channel at most, which ends when the two agree. So any order of subscribing, leaving and failing comes to rest
    where a dictionary of sets would.
    """

    def __init__(self, sockets: Source) -> None:
        self.sockets = sockets
        self.dropped = 0
        """Messages of the broker that were dropped because they were not messages."""
        self.on_left: Callable[[str, Listener], None] = lambda channel, listener: None
        """Called when a listener is off the last event of a channel."""
        self._channels: dict[str, Channel] = {}
        self._subscribed: dict[Listener, dict[str, dict[str, _Entry]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callbacks = Callbacks(self._tasks, self.remove)
        self._published = 0
        self._retries: dict[str, asyncio.TimerHandle] = {}

    @property
    def registered(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, channel_name: str) -> bool:
        return channel_name in self._channels

    def __iter__(self) -> Iterator[Channel]:
        return iter(tuple(self._channels.values()))

    def get(self, channel_name: str) -> Channel | None:
        """The channel, if anybody listens to it."""
        return self._channels.get(channel_name)

    @property
    def losses(self) -> dict[str, int]:
        """Messages that reached nobody, since they were none, and those that did not reach callbacks that lag."""
        return {"broker": self.dropped, "callbacks": self._callbacks.dropped}

    def info(self) -> dict[str, dict[str, int]]:
        """How many listen, by channel and event."""
        return {channel.name: channel.info() for channel in self}

    def get_subscribed(self, listener: Listener) -> dict[str, list[str]]:
        """What *listener* is on: event names and patterns by channel."""
        return {channel: list(events) for channel, events in self._subscribed.get(listener, {}).items()}

    def hears(self, listener: Listener, message: Message) -> bool:
        """*listener* is on what *message* was published to."""
        channel = self._channels.get(message.channel)
        return channel is not None and listener in channel.listeners(message.event)

    # -- who listens ------------------------------------------------------------------------------------------

    async def register(self, channel_name: str, event_name: str | None, listener: Listener) -> Channel:
        """Put *listener* on an event of a channel; it is in force when this returns.

        *event_name* is a name or a pattern, none means ``*``. *listener* is a `Websocket`, or a coroutine function
        of server code, called with channel, event and data.

        Raises:
            CannotSubscribe: the broker refuses, or whatever else it raised; then nothing has changed.
            ConnectionResetError: the listener is a client that is gone.
        """
        # Without this, a method that goes on after its client has left would put it on a channel for ever.
        if isinstance(listener, Websocket) and listener.has_ended:
            raise ConnectionResetError("the client is gone")
        name = event_name or "*"
        channel = self._channels.get(channel_name) or self._channels.setdefault(channel_name, Channel(channel_name))
        channel.register(name, listener)
        entry = self._subscribed.setdefault(listener, {}).setdefault(channel_name, {}).setdefault(name, _Entry())
        entry.pending += 1
        try:
            if error := await self._settled(channel):
                raise error
            await self.sockets.subscribe_to_event(channel_name, name)
            entry.is_confirmed = True
        finally:
            entry.pending -= 1
            # One that failed takes back nothing that another register of the same has got, or still waits for.
            if not entry.is_confirmed and not entry.pending and self._entry(channel_name, name, listener) is entry:
                self.discard(channel_name, name, listener)
        return channel

    def _entry(self, channel_name: str, name: str, listener: Listener) -> _Entry | None:
        return self._subscribed.get(listener, {}).get(channel_name, {}).get(name)

    async def unregister(self, channel_name: str, event: str | None, listener: Listener) -> None:
        """Take *listener* off an event of a channel; an event it is not on is no error.

        Nor is a channel, for server code: its own failure, or a shutdown, may have taken it off.

        Raises:
            InvalidParams: it is a client that is not on the channel at all.
        """
        if isinstance(listener, Websocket) and channel_name not in self._subscribed.get(listener, {}):
            raise InvalidParams({"channel": "Invalid channel"})
        self.discard(channel_name, event or "*", listener)
        if (channel := self._channels.get(channel_name)) is not None:  # an empty one is false
            await self._settled(channel)

    async def leave(self, channel_name: str, listener: Listener) -> None:
        """Take *listener* off all events of a channel; one that is not on it stays off."""
        for name in tuple(self._subscribed.get(listener, {}).get(channel_name, ())):
            self.discard(channel_name, name, listener)
        if (channel := self._channels.get(channel_name)) is not None:  # an empty one is false
            await self._settled(channel)

    def remove(self, listener: Listener) -> None:
        """Take *listener* off everything, at once; brokers that must hear of it do so later."""
        for channel_name, events in tuple(self._subscribed.get(listener, {}).items()):
            for name in tuple(events):
                self.discard(channel_name, name, listener)

    def discard(self, channel_name: str, name: str, listener: Listener) -> None:
        """Take *listener* off one event of a channel, at once; a broker that must hear of it does so later."""
        channels = self._subscribed.get(listener, {})
        events = channels.get(channel_name, {})
        events.pop(name, None)
        is_off = not events and channels.pop(channel_name, None) is not None
        if not channels:
            self._subscribed.pop(listener, None)
        if (channel := self._channels.get(channel_name)) is not None:
            channel.unregister(name, listener)
            if not channel and not channel.is_live and channel.settling is None:
                del self._channels[channel_name]
            elif not channel:
                self._settle_soon(channel)
        if is_off:
            self.on_left(channel_name, listener)

    # -- what the broker does ---------------------------------------------------------------------------------

    async def _settled(self, channel: Channel) -> Exception | None:
        if bool(channel) == channel.is_live and channel.settling is None:
            return None
        self._settle_soon(channel)
        # The shield keeps a caller that goes away from stopping what others wait for.
        return await asyncio.shield(channel.settling) if channel.settling else None

    def _settle_soon(self, channel: Channel) -> None:
        if channel.settling is None:
            channel.settling = asyncio.get_running_loop().create_task(self._follow(channel))
            self._tasks.add(channel.settling)
            channel.settling.add_done_callback(self._tasks.discard)

    async def _follow(self, channel: Channel) -> Exception | None:
        """Make the broker do what the listeners want; a failure is returned to those who wait for it."""
        try:
            while bool(channel) != channel.is_live:
                try:
                    if channel:
                        await self.sockets.subscribe(channel.name)
                        channel.is_live = True
                    else:
                        await self.sockets.unsubscribe(channel.name)
                        channel.is_live = False
                except (Exception, asyncio.CancelledError) as error:
                    if isinstance(error, asyncio.CancelledError) and is_cancelled():
                        raise
                    if not channel.is_live:
                        return error if isinstance(error, Exception) else RuntimeError(f"broker: {error!r}")
                    self._retry(channel, error)
                    return None
            return None
        finally:
            channel.settling = None
            if not channel and not channel.is_live and self._channels.get(channel.name) is channel:
                del self._channels[channel.name]

    def _retry(self, channel: Channel, error: BaseException) -> None:
        logger.warning("broker failed to unsubscribe from %r, asked again in %s s: %r", channel.name,
                       RETRY_UNSUBSCRIBE, error)  # fmt: skip
        if channel.name not in self._retries:
            loop = asyncio.get_running_loop()
            self._retries[channel.name] = loop.call_later(RETRY_UNSUBSCRIBE, self._again, channel)

    def _again(self, channel: Channel) -> None:
        del self._retries[channel.name]
        self._settle_soon(channel)

    async def clear(self) -> None:
        """Take everybody off everything; wait for the broker to hear it, and for callbacks, up to `CLEAR_TIMEOUT`."""
        for listener in tuple(self._subscribed):
            self.remove(listener)
        # A callback may be what clears, e.g. one that listens for orders to shut down.
        if tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            _, late = await asyncio.wait(tasks, timeout=CLEAR_TIMEOUT)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLEAR_TIMEOUT)
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()
        self._channels.clear()

    # -- what they hear ---------------------------------------------------------------------------------------

    async def __call__(self, channel_name: str, message: Mapping[str, Any]) -> None:
        """Deliver ``{"event": …, "data": …}``, as a broker of one's own brings it.

        It does not raise: a message that is none, or that JSON cannot hold, is logged, counted in `dropped`, and
        reaches nobody.
        """
        try:
            parsed = Message.of(channel_name, message.get("event"), message.get("data"))
        except (EncodeError, AttributeError) as error:
            self.dropped += 1
            logger.error("broker message dropped: %s", error)
            return
        await self.deliver(parsed)

    async def deliver(self, message: Message, *, exclude: Websocket | None = None) -> None:
        """Hand *message* to all who listen. Clients are never waited for; callbacks of server code are."""
        if callbacks := self._fan_out(message, exclude):
            await self._callbacks.call(callbacks, message)
        await self._breathe(len(message.data))

    def post(self, message: Message, *, exclude: Websocket | None = None) -> None:
        """Hand *message* to all who listen, without waiting for anybody: what a broker's reader does."""
        if callbacks := self._fan_out(message, exclude):
            self._callbacks.post(callbacks, message)

    def tell(self, channel_name: str, notice: Notice) -> None:
        """Send *notice* to all clients on a channel."""
        channel = self._channels.get(channel_name)
        for websocket in channel.clients() if channel is not None else ():
            websocket.notify(notice)

    def _fan_out(self, message: Message, exclude: Websocket | None) -> list[CallbackType]:
        """Hand *message* to the clients who listen; the callbacks that are left."""
        channel = self._channels.get(message.channel)
        if channel is None:
            return []
        pushed: dict[Dialect | tuple[Dialect, int], Pushed] = {}
        callbacks: list[CallbackType] = []
        for listener in channel.listeners(message.event):
            if not isinstance(listener, Websocket):
                callbacks.append(listener)
            elif listener is not exclude:
                dialect = listener.push_dialect or listener.dialect
                form = (dialect, listener.window_bits) if listener.window_bits else dialect
                if form not in pushed:
                    pushed[form] = listener.frame(dialect.message(message)), message
                listener.push(pushed[form])
        return callbacks

    async def _breathe(self, size: int) -> None:
        """Let the loop turn where much is published at once.

        Without this, a publisher that never waits would fill the outboxes of clients that read, but have no chance to.
        """
        if not self._published:
            asyncio.get_running_loop().call_soon(self._new_tick)
        self._published += size
        if self._published > BREATH:
            await asyncio.sleep(0)

    def _new_tick(self) -> None:
        self._published = 0
