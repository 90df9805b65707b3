"""Floor 2, hub: what Redis keeps and publishes for all processes, and under which keys."""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from openapi_ws.errors import BrokerUnavailable, SetupError, TooLarge
from openapi_ws.history import IDEMPOTENCY_TTL, META_TTL, Entry, History, Page, Position, check_key
from openapi_ws.protocol import Message

from .commands import Argument
from .link import Link, Script

__all__ = ["Links", "Store", "parse"]

PARTITIONS = 128
"""Channels fall into so many parts, each of one hash slot: a cluster moves and serves a part as a whole."""
PAUSE = 0.05
"""Seconds until what Redis did not answer is tried again."""
PLACED, LIVE = b"P", b"L"
"""What a published message begins with: whether it has a place in a history."""

Result = TypeVar("Result")


def _script(name: str) -> Script:
    return Script(Path(__file__).with_name(f"{name}.lua").read_bytes())


PUBLISH, RECOVER, READ = _script("publish"), _script("recover"), _script("read")
PRESENCE, MEMBERS = _script("presence"), ("pz", "pu", "pn", "pi")


class Links(Protocol):
    """The servers that the keys are on."""

    is_sharded: bool
    """Messages are published within a slot, as a cluster of Redis 7 can."""

    def of(self, key: bytes) -> Link:
        """The server of *key*."""

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server of *channel* has confirmed it."""


class Store:
    """Publishes to all processes with the same *prefix*, keeps what has a history, and reads it again.

    Every method raises `BrokerUnavailable` when Redis has not answered within *timeout* seconds, and `TooLarge` where a
    message has more than *max_message_bytes*.
    """

    def __init__(self, links: Links, prefix: str, *, timeout: float, max_message_bytes: int) -> None:
        if not prefix or "{" in prefix:
            raise SetupError("a prefix of keys is some text without {")
        self._links, self._prefix = links, prefix
        self._timeout, self._limit = timeout, max_message_bytes
        self._publish = b"SPUBLISH" if links.is_sharded else b"PUBLISH"
        self._next: dict[tuple[object, ...], asyncio.Task[Page]] = {}
        self._sent: dict[tuple[object, ...], asyncio.Task[Page]] = {}
        self._tasks: set[asyncio.Task[Page]] = set()
        self._is_stopped = False

    async def stop(self) -> None:
        """Answer whoever still waits; the links are stopped already."""
        self._is_stopped = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def key(self, kind: str, channel: str, more: str = "") -> bytes:
        """The key of one *kind* of what is kept for *channel*; all kinds are in the same slot."""
        part = zlib.crc32(channel.encode()) % PARTITIONS
        return f"{self._prefix}:{kind}:{{{part}}}:{channel}{more}".encode()

    def channel(self, channel: str) -> bytes:
        """What Redis calls *channel*."""
        return self.key("c", channel)

    async def emit(self, message: Message, **members: Any) -> None:
        """Publish what nobody keeps. What may be out already is not published again."""
        channel, packed = self.channel(message.channel), self._pack(message, members)
        await self._publish_once(channel, LIVE + packed)

    async def _publish_once(self, channel: bytes, published: bytes) -> None:
        await self._in_time(lambda _: self._links.of(channel).run(self._publish, channel, published), repeats=False)

    async def append(self, message: Message, history: History, key: str | None = None, **members: Any) -> Position:
        """Keep and publish; its position, which is the first one if *key* was used before."""
        if key is not None:
            check_key(key)
        channel, nonce = message.channel, secrets.token_hex(8)
        meta = self.key("m", channel)
        # A key that does not exist would make a cluster refuse the script as long as it moves the slot.
        keys = [meta, self.key("s", channel), meta if key is None else self.key("i", channel, f":{key}")]
        args: list[Argument] = [
            self._pack(message, members), history.size, _ms(history.ttl), _ms(META_TTL), self.channel(channel),
            self._publish, secrets.token_hex(8), nonce, _ms(IDEMPOTENCY_TTL) if key is not None else 0,
        ]  # fmt: skip

        async def attempt(may_have_run: bool) -> Position:
            _, position = await self._links.of(meta).evaluate(PUBLISH, keys, [*args, int(may_have_run)])
            return _parsed(position)

        return await self._in_time(attempt)

    async def has_history(self, channel: str) -> bool:
        """Whether somebody keeps a history of *channel*, or has asked for it."""
        meta = self.key("m", channel)

        async def attempt(_: bool) -> bool:
            return bool(await self._links.of(meta).run("EXISTS", meta))

        return await self._in_time(attempt)

    async def recover(self, channel: str, since: Position | None, limit: int, *, partial: bool = False) -> Page:
        """What Redis has after *since*, as `Log.recover` says it."""
        return await self._read(RECOVER, channel, since, limit, int(partial))

    async def read(self, channel: str, *, limit: int, since: Position | None = None, reverse: bool = False) -> Page:
        """At most *limit* messages that are kept, as `Log.read` says it."""
        if since is not None and not reverse:
            return await self._read(RECOVER, channel, since, limit, 1)
        return await self._read(READ, channel, since, limit, int(reverse))

    async def _read(self, script: Script, channel: str, since: Position | None, limit: int, flag: int) -> Page:
        """Read once for all who ask for the same, but never answer with what was read before they asked.

        One that is sent already may have missed what a subscriber of now is not pushed either.
        """
        key = (script.sha, channel, since, limit, flag)
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._ask(key, script, channel, since, limit, flag))
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def _ask(
        self, key: tuple[object, ...], script: Script, channel: str, since: Position | None, limit: int, flag: int
    ) -> Page:
        if (before := self._sent.get(key)) is not None:
            await asyncio.wait([before])
        self._sent[key] = self._next.pop(key)
        keys = [self.key("m", channel), self.key("s", channel)]
        place: tuple[Argument, ...] = (since.epoch, since.offset, since.nonce) if since else ("", 0, "")
        args: list[Argument] = [*place, limit, _ms(META_TTL), secrets.token_hex(8), flag]
        try:
            return _page(await self._in_time(lambda _: self._links.of(keys[0]).evaluate(script, keys, args)))
        finally:
            del self._sent[key]

    def _forget(self, task: asyncio.Task[Page]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone: without this, asyncio would log that nobody has seen it

    async def attend(self, channel: str, step: str, ttl: float, *args: Argument) -> Any:
        """What ``presence.lua`` answers to one *step*. It may be run twice, and changes nothing the second time.

        Its keys outlive the last member by *ttl* seconds.
        """
        keys = [self.key(kind, channel) for kind in MEMBERS]
        said = [step, self.channel(channel), self._publish, _ms(ttl), *args]
        return await self._in_time(lambda _: self._links.of(keys[0]).evaluate(PRESENCE, keys, said))

    @property
    def orders(self) -> bytes:
        """Where orders to all processes are published."""
        return f"{self._prefix}:ctl".encode()

    async def order(self, order: bytes) -> None:
        """Publish *order* to all processes that `hear_orders`. What may be out already is not published again."""
        if len(order) > self._limit:
            raise TooLarge(self._limit)
        await self._publish_once(self.orders, order)

    async def hear_orders(self) -> None:
        """Return when orders are heard."""
        await self._links.subscribe(self.orders)

    async def _in_time(self, attempt: Callable[[bool], Awaitable[Result]], *, repeats: bool = True) -> Result:
        """Make attempts until one has a reply or the time is up; each is told whether one before may have run.

        None follows on one that may have run unless it *repeats* without harm.
        """
        may_have_run, reason = False, "no reply in time"
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await attempt(may_have_run)
                    except BrokerUnavailable as error:
                        if self._is_stopped or (error.may_have_run and not repeats):
                            raise
                        may_have_run, reason = may_have_run or error.may_have_run, error.reason
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise BrokerUnavailable(reason, may_have_run=True) from None

    def _pack(self, message: Message, members: dict[str, Any]) -> bytes:
        packed = message.pack(**members)
        if len(packed) > self._limit:
            raise TooLarge(self._limit)
        return packed


def parse(published: bytes) -> tuple[Entry | None, bytes]:
    """The place and the packed message of what was published; no place is None.

    Raises:
        ValueError: it is not what `Store` publishes.
    """
    if published[:1] == LIVE:
        return None, published[1:]
    if published[:1] != PLACED:
        raise ValueError("not published by this library")
    place, _, packed = published[1:].partition(b"\n")
    position, _, previous = place.rpartition(b".")
    return Entry(_parsed(position), previous.decode("ascii"), packed), packed


def _parsed(text: bytes) -> Position:
    position = Position.parse(text.decode("ascii"))
    if position is None:
        raise ValueError("no position")
    return position


def _page(reply: Sequence[Any]) -> Page:
    status, epoch, offset, nonce, found = reply
    epoch = epoch.decode()
    entries = []
    for id_, (_, data, _, own, _, previous) in found:
        place = Position(epoch, int(id_.partition(b"-")[0]), own.decode())
        entries.append(Entry(place, previous.decode(), data))
    return Page(status.decode(), Position(epoch, int(offset), nonce.decode()), tuple(entries))


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
