"""Floor 2, hub: the masters of a Redis Cluster: which of them has a channel, and the truth when that changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from openapi_ws.errors import BrokerUnavailable

from .fleet import Fleet
from .link import Link
from .wire import ClusterNode, ConnectionPool, Redis, RedisCluster, ResponseError, has_moved

__all__ = ["Cluster", "fleet_of"]

logger = logging.getLogger(__name__)

SLOTS = 16384
CALM = 0.05
"""Seconds between two looks at who has which slot, however many say that it has changed."""
LOOK = 5.0
"""Seconds after which the masters are asked though nothing is in doubt: one may have told what was no longer true."""
AGAIN = 0.5
"""Seconds until the next look as long as something is not as it should be: a master is down, a channel has none."""

Address = tuple[str, int]

# Each channel that is wanted has a home: the master from whose link its messages are taken. A master that gives a slot
# away ends the subscriptions to it, one that never had it refuses them, and one that is dead says nothing; whichever it
# is, a node that answers is asked who has the slots, until all channels have a home that answers. A channel that comes
# to a new home is told as lost once it is confirmed there. What the old home still says is not taken: during a
# failover both would have the same messages.
#
# redis-py knows all that, too, but asks over connections of its own, with time-outs of its own, and subscribes in its
# own way, which does not say what was missed. So of `RedisCluster` come the addresses, the credentials and the slot of
# a key, and the links are asked for the rest.


class Cluster(Fleet):
    """A link to each master that has slots; *client* is never connected."""

    is_sharded = True

    def __init__(
        self,
        client: RedisCluster,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[set[bytes]], None],
        timeout: float,
        listens: bool = True,
    ) -> None:
        self._client, self._timeout, self._listens = client, timeout, listens
        self._on_message, self._on_lost = on_message, on_lost
        self._links: dict[Address, Link] = {}
        self._slots: list[Address | None] = []
        self._homes: dict[bytes, Address | None] = {}
        self._teller: Address | None = None
        self._stale, self._up = asyncio.Event(), asyncio.Event()
        self._is_told = False
        self._owner: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """All masters answer."""
        return bool(self._slots) and all(link.is_up for link in self._links.values())

    async def start(self) -> None:
        """Connect; return when `is_up`, or after the time-out, with the attempts going on."""
        self._stale.set()
        self._owner = asyncio.create_task(self._follow())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._up.wait()

    async def stop(self) -> None:
        """Disconnect."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.wait([self._owner])
        await asyncio.gather(*(link.stop() for link in self._links.values()))
        self._links.clear()
        self._slots = []

    def of(self, key: bytes) -> Link:
        """The master of *key*.

        Raises:
            BrokerUnavailable: no master has its slot, or it is not known yet.
        """
        return self._links[self._home(key)]

    def _home(self, key: bytes) -> Address:
        address = self._slots[self._client.keyslot(key)] if self._slots else None
        if address is None:
            raise BrokerUnavailable("no master is known to have the slot")
        return address

    # -- subscriptions ----------------------------------------------------------------------------------------

    async def subscribe(self, channel: bytes) -> None:
        """Return when the master of *channel* has confirmed it; raises as `Link.subscribe`."""
        is_new, reason = channel not in self._homes, "the subscription was not confirmed in time"
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        self._homes[channel] = home = self._home(channel)
                        await self._links[home].subscribe(channel)
                        if self._homes.get(channel) == home:
                            return
                    except BrokerUnavailable as error:
                        reason = error.reason
                    except ResponseError as error:
                        if not has_moved(error):
                            raise
                    await asyncio.sleep(CALM)
        except BaseException as error:
            if is_new:
                self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(reason) from None
            raise

    def unsubscribe(self, channel: bytes) -> None:
        """End it; no message comes any more."""
        home = self._homes.pop(channel, None)
        if home in self._links:
            self._links[home].unsubscribe(channel)

    def _hear(self, address: Address, channel: bytes, data: bytes) -> None:
        if self._homes.get(channel) == address:
            self._on_message(channel, data)

    def _lose(self, address: Address, channels: set[bytes]) -> None:
        if lost := {channel for channel in channels if self._homes.get(channel) == address}:
            self._on_lost(lost)

    def _refuse(self, address: Address, channel: bytes, error: Exception) -> None:
        if self._homes.get(channel) != address:
            return
        if has_moved(error):
            self._homes[channel] = None
            self._doubt(address)
        else:
            del self._homes[channel]
            logger.error("Redis refuses channel %r: %s", channel, error)

    # -- who has which slot -----------------------------------------------------------------------------------

    def _doubt(self, address: Address) -> None:
        """*address* says that a slot is not its own: it knows best whose it is."""
        self._teller = address
        self._stale.set()

    def _look(self, _: bool) -> None:
        self._note()
        self._stale.set()

    def _note(self) -> None:
        (self._up.set if self.is_up else self._up.clear)()

    async def _follow(self) -> None:
        """Ask who has which slot whenever it is in doubt."""
        while True:
            is_settled = self.is_up and None not in self._homes.values() and None not in self._slots
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK if is_settled else AGAIN):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._refresh()
            except Exception:
                logger.exception("Redis Cluster says who has the slots, and is not understood")
            await asyncio.sleep(CALM)

    async def _refresh(self) -> None:
        if not any(link.is_up for link in self._links.values()):
            for node in tuple(self._client.nodes_manager.startup_nodes.values()):
                self._reach((node.host, int(node.port)))
        reason = ""  # a link that is down says so itself
        for address in self._sources():
            try:
                reply = await self._links[address].run("CLUSTER", "SLOTS")
            except (BrokerUnavailable, ResponseError) as error:
                reason = getattr(error, "reason", str(error))
                continue
            await self._arrange(address, reply)
            self._is_told = False
            return
        if reason and not self._is_told:
            self._is_told = True
            logger.warning("Redis Cluster does not say who has the slots, trying again: %s", reason)

    def _sources(self) -> list[Address]:
        """Whom to ask: who has told of a change, then those that answer, in any order."""
        addresses = [address for address, link in self._links.items() if link.is_up]
        random.shuffle(addresses)
        teller, self._teller = self._teller, None
        return sorted(addresses, key=lambda address: address != teller)

    def _reach(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(
                _client(self._client, address),
                on_message=partial(self._hear, address),
                on_lost=partial(self._lose, address),
                on_refused=partial(self._refuse, address),
                on_change=self._look,
                on_moved=partial(self._doubt, address),
                sharded=True,
                timeout=self._timeout,
                listens=self._listens,
            )
            link.open()
        return link

    async def _arrange(self, asked: Address, reply: Any) -> None:
        """Have a link to each master, and each channel at its own."""
        slots: list[Address | None] = [None] * SLOTS
        masters = set[Address]()
        for first, last, (host, port) in _masters(reply, asked[0]):
            address: Address = self._client.nodes_manager.remap_host_port(host, port)
            masters.add(address)
            slots[first : last + 1] = [address] * (last + 1 - first)
        if not masters:
            raise ValueError("no slot has a master")
        for address in masters:
            self._reach(address)
        if slots != self._slots or None in self._homes.values():
            self._slots = slots
            self._rehome()
        gone = [self._links.pop(address) for address in tuple(self._links) if address not in masters]
        self._note()
        await asyncio.gather(*(link.stop() for link in gone))

    def _rehome(self) -> None:
        moved: dict[Address, list[bytes]] = {}
        for channel, old in self._homes.items():
            new: Address | None = self._slots[self._client.keyslot(channel)]
            if new == old:
                continue
            self._homes[channel] = new
            if old is not None:
                self._links[old].unsubscribe(channel)
            if new is not None:
                moved.setdefault(new, []).append(channel)
        for address, channels in moved.items():
            self._links[address].adopt(channels)


def fleet_of(client: Any, **options: Any) -> Fleet:
    """The servers that *client* describes; *options* are those of `Fleet`."""
    return Cluster(client, **options) if isinstance(client, RedisCluster) else Fleet(client, **options)


def _client(cluster: RedisCluster, address: Address) -> Redis:
    host, port = address
    settings: dict[str, Any] = cluster.get_connection_kwargs()
    node = ClusterNode(host, port, **settings)
    return Redis(connection_pool=ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs))


def _masters(reply: Any, asked: str) -> Iterator[tuple[int, int, Address]]:
    """First and last slot and the master of each range; one that does not know its own name is the one *asked*."""
    for first, last, (host, port, *_), *_ in reply:
        yield int(first), int(last), (host.decode() if host else asked, int(port))
