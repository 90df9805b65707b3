"""Floor 2, hub: the broker over Redis or Valkey: the same semantics as in one process, for as many as there are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any

from openapi_ws.delivery import gap_notice
from openapi_ws.errors import BrokerUnavailable, SetupError
from openapi_ws.history import Entry, Follower, History, Page, Position
from openapi_ws.protocol import Message
from openapi_ws.topics import Topic
from openapi_ws.websocket import Websocket

from .address import connect
from .attendance import CHANGED, Attendance
from .cluster import fleet_of
from .fleet import Fleet
from .store import Store, parse

__all__ = ["RedisBroker"]

logger = logging.getLogger(__name__)

LINGER = 1.0
"""Seconds that a channel is still followed after its last listener has left: a page that is reloaded comes back."""
PAGE = 300
"""Messages that are read at once where some were missed."""
HEALERS = 64
"""Channels whose missed messages are read at the same time."""
SPREAD = 0.2
"""Seconds within which the channels of a lost connection begin to be read, so that not all are at once."""


class _Feed:
    """One channel that is followed here."""

    __slots__ = ("channel", "follower", "healer", "heard", "leaving")

    def __init__(self, channel: str, history: History | None, now: float) -> None:
        self.channel = channel
        self.follower = None if history is None else Follower()
        self.healer: asyncio.Task[None] | None = None
        self.leaving: asyncio.TimerHandle | None = None
        self.heard = now


class RedisBroker(Attendance):
    """A manager whose messages reach the clients of all processes that use the same Redis and *prefix*.

    *url* is one of `openapi_ws.brokers.address.connect`; or *client* is a `redis.asyncio.Redis` of one's own, e.g. of a
    master that Sentinel names, or a `redis.asyncio.RedisCluster`, of which addresses, credentials and TLS are used.
    Write ``RedisBroker.for_app(app, url=…, topics=[…])``.

    A message on a channel with history is kept and published in one step. Where one may have been missed, what is
    missing is read once for all clients of this process, who notice nothing, or are told by a ``gap`` notice that it
    cannot be had. On other channels they are told that something may be missing.
    """

    max_message_bytes: int = 1024 * 1024
    """Bytes of a message; a larger one is refused when it is published, and dropped when it comes."""

    silence: float = 40.0
    """Seconds without a message until a channel with history is compared with Redis: the last one may have been lost;
    up to 15 % more."""

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        topics: Iterable[Topic] = (),
        prefix: str = "ows",
        timeout: float = 1.0,
    ) -> None:
        super().__init__(topics)
        if (url is None) == (client is None):
            raise SetupError('write RedisBroker.for_app(app, url="redis://localhost"), or client=… instead of the url')
        self.timeout = timeout
        """Seconds that Redis has to answer."""
        self._client: Any
        self._own: list[Any]
        self._client, self._own = (client, []) if url is None else connect(url, timeout=timeout)
        self._prefix = prefix
        self._feeds: dict[bytes, _Feed] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._healers = asyncio.Semaphore(HEALERS)
        self._keepers: tuple[asyncio.Task[None], ...] = ()
        self._return: asyncio.Task[None] | None = None
        self._fleet: Fleet | None = None
        self._store: Store | None = None

    @property
    def ready(self) -> bool:
        """New clients are welcome, and Redis answers."""
        return super().ready and self._fleet is not None and self._fleet.is_up

    @property
    def store(self) -> Store:
        """What is kept and published.

        Raises:
            SetupError: the broker was not started.
        """
        if self._store is None:
            name = type(self).__name__
            raise SetupError(f'{name} was not started: write app["web_sockets"] = {name}.for_app(app, url=…)')
        return self._store

    async def start(self) -> None:
        """Connect; where Redis does not answer yet, go on trying, with `ready` false until it does."""
        self._fleet = fleet_of(
            self._client,
            on_message=self._on_message,
            on_lost=self._on_lost,
            timeout=self.timeout,
        )
        await self._fleet.start()
        self._store = Store(self._fleet, self._prefix, timeout=self.timeout, max_message_bytes=self.max_message_bytes)
        self._keepers = self._spawn(self._compare()), self._spawn(self.refresh()), self._spawn(self.sweep())
        await asyncio.wait([self._spawn(self.take_orders())], timeout=self.timeout)

    async def stop(self) -> None:
        """Disconnect."""
        for feed in self._feeds.values():
            if feed.leaving is not None:
                feed.leaving.cancel()
        self._feeds.clear()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._fleet is not None:
            await self._fleet.stop()
        if self._store is not None:
            await self._store.stop()
        for client in self._own:
            await client.aclose()

    # -- what is published ------------------------------------------------------------------------------------

    async def emit(self, message: Message, *, exclude: Websocket | None = None) -> None:
        """Publish to all processes, this one, too.

        Raises:
            BrokerUnavailable: Redis did not answer in time.
            TooLarge: it has more than `max_message_bytes`.
        """
        await self.store.emit(message, **_members(exclude))

    async def append(
        self, message: Message, history: History, *, key: str | None = None, exclude: Websocket | None = None
    ) -> Position:
        """Keep and publish in one step; raises as `emit`, and never publishes twice."""
        return await self.store.append(message, history, key, **_members(exclude))

    # -- what is followed -------------------------------------------------------------------------------------

    async def subscribe(self, channel: str) -> None:
        """Follow *channel*: return when Redis has confirmed it, and it is known where its messages begin.

        Raises:
            BrokerUnavailable: Redis did not answer in time.
        """
        key = self.store.channel(channel)
        feed = self._feeds.get(key)
        if feed is None:
            now = asyncio.get_running_loop().time()
            feed = self._feeds[key] = _Feed(channel, self.history_of(channel), now)
        if feed.leaving is not None:
            feed.leaving.cancel()
            feed.leaving = None
        try:
            await self._links.subscribe(key)
            await self._healed(feed)
        except BaseException:
            self._drop(key)
            raise

    async def unsubscribe(self, channel: str) -> None:
        """Follow *channel* no more, unless a listener comes back within `LINGER`."""
        key = self.store.channel(channel)
        if (feed := self._feeds.get(key)) is not None and feed.leaving is None:
            feed.leaving = asyncio.get_running_loop().call_later(LINGER, self._drop, key)

    def here(self, channel: str, history: History) -> Position | None:
        """The position up to which all has been delivered here."""
        feed = self._feeds.get(self.store.channel(channel))
        return feed.follower.position if feed is not None and feed.follower is not None else None

    async def recover(
        self, channel: str, history: History, since: Position | None, limit: int, *, partial: bool = False
    ) -> Page:
        """What was published after *since* up to what has been delivered here; the rest is going to be."""
        feed = self._feeds.get(self.store.channel(channel))
        if feed is None or feed.follower is None:
            return await self.store.recover(channel, since, limit, partial=partial)
        follower = feed.follower
        await self._healed(feed)
        if since is not None and follower.position is not None and _is_ahead(since, follower.position):
            follower.suspect()  # the client comes from a process that was faster
            await self._healed(feed)
        page = await self.store.recover(channel, since, limit, partial=partial) if since is not None else None
        # From here on nothing awaits: the seam is where this process is now.
        here = follower.position
        if here is None:
            raise BrokerUnavailable("the channel is not followed")
        return Page("top", here) if page is None else _up_to(here, page)

    async def read(
        self, channel: str, history: History, *, limit: int, since: Position | None = None, reverse: bool = False
    ) -> Page:
        """At most *limit* messages that are kept."""
        return await self.store.read(channel, limit=limit, since=since, reverse=reverse)

    @property
    def _links(self) -> Fleet:
        if self._fleet is None:
            raise BrokerUnavailable("the broker was not started")
        return self._fleet

    def _drop(self, key: bytes) -> None:
        feed = self._feeds.pop(key, None)
        if feed is not None and feed.healer is not None:
            feed.healer.cancel()
        self._links.unsubscribe(key)

    # -- what comes -------------------------------------------------------------------------------------------

    def _on_message(self, key: bytes, published: bytes) -> None:
        feed = self._feeds.get(key)
        if feed is None:
            if key == self.store.orders:
                self._obey(published)
            return
        feed.heard = asyncio.get_running_loop().time()
        try:
            if published[:1] == CHANGED:
                self.take_changes(feed.channel, published)
                return
            if len(published) > self.max_message_bytes + 1024:
                raise ValueError("too large")
            entry, packed = parse(published)
            if entry is None:
                self._post(*Message.read(feed.channel, packed))
                return
        except ValueError as error:
            self._refuse(feed.channel, error)
            return
        if feed.follower is None:
            self._deliver(feed, entry)  # published by a process that keeps a history of it
        elif (verdict := feed.follower.take(entry)) == "deliver":
            self._deliver(feed, entry)
        elif verdict == "heal":
            self._heal_soon(feed)

    def _obey(self, order: bytes) -> None:
        try:
            self.obey(order)
        except ValueError as error:
            self._refuse("orders", error)

    def _deliver(self, feed: _Feed, entry: Entry) -> None:
        try:
            message, head = Message.read(feed.channel, entry.data)
            self._post(message.placed(entry), head)
        except ValueError as error:
            self._refuse(feed.channel, error)

    def _post(self, message: Message, head: dict[str, Any]) -> None:
        exclude = head.get("exclude")
        excluded = next((ws for ws in self.sockets if ws.socket_id == exclude), None) if exclude else None
        self.channels.post(message, exclude=excluded)

    def _refuse(self, channel: str, error: ValueError) -> None:
        self.channels.dropped += 1
        logger.warning("broker message dropped on %r: %s", channel, error)

    def _on_lost(self, keys: set[bytes]) -> None:
        """The connection was another for a while: what came then is unknown."""
        feeds = [feed for key in keys if (feed := self._feeds.get(key)) is not None]
        self._return = self._spawn(self.come_back({feed.channel for feed in feeds}))
        for feed in feeds:
            if feed.follower is None:
                self.channels.tell(feed.channel, gap_notice(feed.channel, reason="lost"))
            else:
                feed.follower.suspect()
                self._heal_soon(feed, random.uniform(0, SPREAD))  # noqa: S311  # nothing secret

    # -- what is missed ---------------------------------------------------------------------------------------

    def _heal_soon(self, feed: _Feed, delay: float = 0.0) -> None:
        if feed.healer is None or feed.healer.done():
            feed.healer = self._spawn(self._heal(feed, delay))

    async def _healed(self, feed: _Feed) -> None:
        """Return when all that was published before is delivered, or told as lost."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(self.timeout):
                while feed.follower is not None and feed.follower.is_healing:
                    self._heal_soon(feed)
                    await asyncio.wait([feed.healer] if feed.healer else [])
                return
        raise BrokerUnavailable("what was missed could not be read in time")

    async def _heal(self, feed: _Feed, delay: float) -> None:
        """Read what was missed until what comes live follows on it."""
        follower, pause = feed.follower, 0.1
        if delay:
            await asyncio.sleep(delay)
        while follower is not None and follower.is_healing:
            async with self._healers:
                try:
                    page = await self.store.recover(feed.channel, follower.position, PAGE, partial=True)
                except BrokerUnavailable:
                    page = None
                except Exception:  # whatever Redis says: who listens must not stay without messages for ever
                    logger.exception("what was missed on %r cannot be read, tried again", feed.channel)
                    page = None
            if page is None:
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311  # nothing secret
                pause = min(1.0, 2 * pause)
                continue
            entries, reason = follower.heal(page)
            if reason is not None:
                self.channels.tell(feed.channel, gap_notice(feed.channel, reason=reason))
            for entry in entries:
                self._deliver(feed, entry)

    async def _compare(self) -> None:
        """See from time to time that no last message was lost, after which nothing comes that would show the gap."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.silence * random.uniform(0.1, 0.15))  # noqa: S311  # nothing secret
            for feed in tuple(self._feeds.values()):
                if feed.follower is not None and loop.time() - feed.heard > self.silence:
                    feed.heard = loop.time()
                    feed.follower.suspect()
                    self._heal_soon(feed, random.uniform(0, SPREAD))  # noqa: S311  # nothing secret

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _members(exclude: Websocket | None) -> dict[str, str]:
    return {} if exclude is None else {"exclude": exclude.socket_id}


def _is_ahead(position: Position, here: Position) -> bool:
    return position.epoch == here.epoch and position.offset > here.offset


def _up_to(here: Position, page: Page) -> Page:
    """*page* without what has not been delivered here yet: it comes live."""
    if page.status not in ("ok", "more"):
        return replace(page, top=here)
    if page.top.epoch != here.epoch:
        return Page("epoch", here)
    if page.top.offset <= here.offset:
        return page
    entries = tuple(entry for entry in page.entries if entry.position.offset <= here.offset)
    last = entries[-1].position if entries else here
    if last.offset == here.offset and last != here:
        return Page("fork", here)  # Redis went back in time, and this process does not know of it yet
    return Page("ok" if last == here else "more", here, entries)
