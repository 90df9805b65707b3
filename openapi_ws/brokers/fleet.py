"""Floor 2, hub: the servers that hold the channels: one, or the masters of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .link import Link

__all__ = ["Fleet"]


class Fleet:
    """One server that has all channels; `Cluster` is the same for many.

    *on_message* and *on_lost* are those of `Link`; without *listens* nothing can be subscribed to.
    """

    is_sharded = False
    """Messages are published within a slot, as a cluster of Redis 7 can."""

    def __init__(
        self,
        client: Any,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[set[bytes]], None],
        timeout: float,
        listens: bool = True,
    ) -> None:
        self._link = Link(client, on_message=on_message, on_lost=on_lost, timeout=timeout, listens=listens)

    @property
    def is_up(self) -> bool:
        """All servers answer."""
        return self._link.is_up

    async def start(self) -> None:
        """Connect; return when `is_up`, or after the time-out, with the attempts going on."""
        await self._link.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._link.stop()

    def of(self, key: bytes) -> Link:
        """The server of *key*.

        Raises:
            BrokerUnavailable: nobody has it now.
        """
        return self._link

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server of *channel* has confirmed it; raises as `Link.subscribe`."""
        await self._link.subscribe(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """End it; messages may still come."""
        self._link.unsubscribe(channel)
