"""Floor 2, hub: the servers that hold the channels: one, or the masters of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from .link import Link
from .wire import Redis

__all__ = ["Fleet"]


class Fleet:
    """The link to each server, and which of them has a key."""

    def __init__(
        self,
        client: Redis,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[set[bytes]], None],
        timeout: float,
    ) -> None:
        self.is_sharded = False
        self._link = Link(client, on_message=on_message, on_lost=on_lost, timeout=timeout)

    @property
    def is_up(self) -> bool:
        """All servers answer."""
        return self._link.is_up

    async def start(self) -> None:
        """Connect."""
        await self._link.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._link.stop()

    def of(self, key: bytes) -> Link:
        """The server of *key*."""
        return self._link

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server of *channel* has confirmed it."""
        await self.of(channel).subscribe(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """End it; messages may still come."""
        self.of(channel).unsubscribe(channel)
