"""Floor 2, hub: the broker within the process, with a delay on request, as tests want it."""

from __future__ import annotations

import asyncio
from typing import Any

from openapi_ws.manager import SocketsManager
from openapi_ws.protocol import Message
from openapi_ws.websocket import Websocket

__all__ = ["LocalBroker"]


class LocalBroker(SocketsManager):
    """`SocketsManager` whose publishes and subscribes take *latency* seconds, like a broker far away.

    Messages arrive in the order in which they were published.
    """

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        """Seconds that each publish, subscribe and unsubscribe takes; 0 hands messages on at once."""

    async def publish(
        self, channel: str, event: str | None, data: Any = None, *, exclude: Websocket | None = None
    ) -> None:
        """Publish as `SocketsManager.publish` does, *latency* seconds later."""
        message = Message.of(channel, event, data)
        await self._travel()
        await self.channels.deliver(message, exclude=exclude)

    async def subscribe(self, channel: str) -> None:
        """Take *latency* seconds."""
        await self._travel()

    async def unsubscribe(self, channel: str) -> None:
        """Take *latency* seconds."""
        await self._travel()

    async def _travel(self) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
