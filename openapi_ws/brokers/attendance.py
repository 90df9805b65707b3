"""Floor 2, hub: who is present in the channels of all processes, and orders to all of them, over Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

import orjson

from openapi_ws.errors import BrokerUnavailable
from openapi_ws.manager import SocketsManager
from openapi_ws.members import Change, Counts, Member

from .store import Store

__all__ = ["CHANGED", "Attendance"]

logger = logging.getLogger(__name__)

CHANGED = b"J"
"""What changes of members begin with when they are published."""
Item = TypeVar("Item")

BATCH = 500
"""Members, or channels, that are seen to in one go."""
SPREAD = 0.2
"""Seconds within which processes whose connections were lost say who is present, so that not all do at once."""
PAUSE = 1.0
"""Seconds until what Redis did not answer is tried again."""


class Attendance(SocketsManager):
    """What `RedisBroker` does for presence, and for orders such as `send_to`."""

    member_ttl: float = 60.0
    """Seconds after which the clients of a process that is not heard of any more have left; a quarter of that later
    the others are told."""
    member_refresh: float = 25.0
    """Seconds, ± 10 %, between two times that a process says that its clients are still present."""

    @property
    def store(self) -> Store:
        """What is kept and published."""
        raise NotImplementedError

    async def enter(self, channel: str, member: Member) -> None:
        """Show *member* to all processes.

        Raises:
            BrokerUnavailable: Redis did not answer in time.
        """
        await self._enter(channel, member, is_news=True)

    async def leave(self, channel: str, member: Member, *, linger: float = 0.0) -> None:
        """Tell all processes that *member* has left; if they cannot be told, its time will be up."""
        await self._do(channel, "leave", member.connection, member.user, _ms(linger))

    async def members(self, channel: str, *, limit: int, after: str | None = None) -> list[tuple[str, bytes]]:
        """Who is present in all processes; raises as `enter`."""
        _, _, page = await self._do(channel, "read", limit, "-" if after is None else f"({after}")
        return [(user.decode(), info) for user, info in zip(page[::2], page[1::2], strict=True)]

    async def member_counts(self, channel: str) -> Counts:
        """How many are present in all processes; raises as `enter`."""
        connections, users, _ = await self._do(channel, "read", 0, "-")
        return Counts(connections, users)

    async def spread(self, order: bytes) -> None:
        """Have *order* obeyed by all processes that are connected to Redis now, this one, too.

        Raises:
            BrokerUnavailable: Redis did not answer in time.
            TooLarge: it has more than `max_message_bytes`.
        """
        await self.store.order(order)

    async def _enter(self, channel: str, member: Member, *, is_news: bool) -> None:
        name = member.connection, member.user
        await self._do(channel, "enter", *name, member.info, _ms(self.member_ttl), int(is_news))

    async def _do(self, channel: str, step: str, *args: bytes | str | int) -> Any:
        return await self.store.attend(channel, step, self.member_ttl, *args)

    # -- what comes -------------------------------------------------------------------------------------------

    def take_changes(self, channel: str, published: bytes) -> None:
        """Tell those present here what has changed.

        Raises:
            ValueError: it is not what ``presence.lua`` publishes.
        """
        try:
            changes = [_change(*said) for said in orjson.loads(published[1:])]
        except (TypeError, AttributeError) as error:
            raise ValueError("no changes of members") from error
        self.roster.hear(channel, changes)

    # -- what is done for ever --------------------------------------------------------------------------------

    async def take_orders(self) -> None:
        """Return when this process hears the orders to all of them."""
        while True:
            with contextlib.suppress(BrokerUnavailable):
                await self.store.hear_orders()
                return
            await asyncio.sleep(PAUSE)

    async def refresh(self) -> NoReturn:
        """Say from time to time that the clients of this process are still present."""
        while True:
            await asyncio.sleep(self.member_refresh * random.uniform(0.9, 1.1))  # noqa: S311  # nothing secret
            await self.refresh_once()

    async def come_back(self, channels: set[str]) -> None:
        """The connection was another for a while: Redis may have lost who is present, the clients who came and went."""
        await asyncio.sleep(random.uniform(0, SPREAD))  # noqa: S311  # nothing secret
        await self.refresh_once(channels)
        for channel in channels:
            self.roster.doubt(channel)

    async def refresh_once(self, channels: set[str] | None = None) -> None:
        """Say that the clients of this process are present, in *channels*, or in all."""
        members = [(channel, member) for channel, member in self.roster if channels is None or channel in channels]
        await _all(members, lambda each: self._enter(*each, is_news=False))

    async def sweep(self) -> NoReturn:
        """Find from time to time who is not heard of any more: who is present here is told."""
        while True:
            await asyncio.sleep(self.member_ttl / 4 * random.uniform(0.8, 1.0))  # noqa: S311  # nothing secret
            await _all(sorted({channel for channel, _ in self.roster}), self.member_counts)


def _change(kind: Any, user: str, info: str) -> Change:
    orjson.loads(info)  # what is no JSON would make frames of clients that are none
    user.encode()
    if kind not in ("join", "leave", "update"):
        raise ValueError(f"no change: {kind!r}")
    return Change(kind, user, info.encode())


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


async def _all(items: Sequence[Item], do: Callable[[Item], Awaitable[object]]) -> None:
    """Do it for all *items*, those of one batch in one round trip; what fails is done the next time."""
    for at in range(0, len(items), BATCH):
        results = await asyncio.gather(*map(do, items[at : at + BATCH]), return_exceptions=True)
        if failures := [result for result in results if isinstance(result, BaseException)]:
            logger.warning("presence of %d could not be seen to: %r", len(failures), failures[0])
