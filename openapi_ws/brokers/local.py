"""Floor 2, hub: the broker within the process, with a delay on request, as tests want it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from openapi_ws.history import History, Page, Position
from openapi_ws.manager import SocketsManager
from openapi_ws.members import Counts, Member
from openapi_ws.protocol import Message
from openapi_ws.topics import Topic
from openapi_ws.websocket import Websocket

__all__ = ["LocalBroker"]


class LocalBroker(SocketsManager):
    """`SocketsManager` whose publishes and subscribes take *latency* seconds, like a broker far away.

    Messages arrive in the order in which they were published.
    """

    def __init__(self, latency: float = 0.0, topics: Iterable[Topic] = ()) -> None:
        super().__init__(topics)
        self.latency = latency
        """Seconds that each publish, subscribe, unsubscribe and read takes; 0 hands messages on at once."""

    async def emit(self, message: Message, *, exclude: Websocket | None = None) -> None:
        """Take *latency* seconds before."""
        await self._travel()
        await super().emit(message, exclude=exclude)

    async def append(
        self, message: Message, history: History, *, key: str | None = None, exclude: Websocket | None = None
    ) -> Position:
        """Take *latency* seconds before."""
        await self._travel()
        return await super().append(message, history, key=key, exclude=exclude)

    async def recover(
        self, channel: str, history: History, since: Position | None, limit: int, *, partial: bool = False
    ) -> Page:
        """Take *latency* seconds before."""
        await self._travel()
        return await super().recover(channel, history, since, limit, partial=partial)

    async def subscribe(self, channel: str) -> None:
        """Take *latency* seconds."""
        await self._travel()

    async def unsubscribe(self, channel: str) -> None:
        """Take *latency* seconds."""
        await self._travel()

    async def enter(self, channel: str, member: Member) -> None:
        """Take *latency* seconds before."""
        await self._travel()
        await super().enter(channel, member)

    async def leave(self, channel: str, member: Member, *, linger: float = 0.0) -> None:
        """Take *latency* seconds before."""
        await self._travel()
        await super().leave(channel, member, linger=linger)

    async def members(self, channel: str, *, limit: int, after: str | None = None) -> list[tuple[str, bytes]]:
        """Take *latency* seconds before."""
        await self._travel()
        return await super().members(channel, limit=limit, after=after)

    async def member_counts(self, channel: str) -> Counts:
        """Take *latency* seconds before."""
        await self._travel()
        return await super().member_counts(channel)

    async def _travel(self) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
