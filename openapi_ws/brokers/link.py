"""Floor 2, hub: everything between this process and one Redis, supervised: subscriptions, and commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .commands import Argument, Commands, Script
from .subscriptions import Subscriptions
from .wire import Redis, keep, tell

__all__ = ["Link", "Script"]


class Link:
    """Two connections to the Redis that *client* describes: one that listens, one that asks.

    Of *client* come address, credentials and TLS; none of its own connections are used, and whoever made it closes
    it. It may be of a URL, ``rediss://`` and ``unix://`` too, of a master that Sentinel resolves anew for each
    connection, or of one node of a cluster. With *sharded* channels are shard channels (Redis 7).

    *on_message* is called with channel and data of each message. *on_lost* is called with channels that are confirmed
    anew after messages may have been missed, before any newer message of them. *on_refused* is called with a channel
    that the server does not serve, and its error; it is not wanted any more. *on_change* is called when `is_up` has
    changed. *on_moved* is called when a command was refused because another node of the cluster has the slot; whoever
    asked is answered `BrokerUnavailable` then, as it did not run. They return at once; an exception is logged, and
    otherwise passed over.

    A server that says nothing for *ping* seconds is asked, and given up after *deadline*; *timeout* is the number of
    seconds that a command, or the confirmation of a subscription, may take. At most *limit* commands wait. Without
    *listens* there is one connection only, and nothing to subscribe to.
    """

    def __init__(
        self,
        client: Redis,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[set[bytes]], None],
        on_refused: Callable[[bytes, Exception], None] | None = None,
        on_change: Callable[[bool], None] | None = None,
        on_moved: Callable[[], None] | None = None,
        listens: bool = True,
        sharded: bool = False,
        ping: float = 5.0,
        deadline: float = 10.0,
        timeout: float = 1.0,
        limit: int = 10_000,
    ) -> None:
        self.is_up = False
        """The server answers, and has confirmed what was wanted when the connection was made."""
        self._client, self._on_change, self._listens = client, on_change, listens
        self._timeout, self._deadline = timeout, deadline
        self._subscriptions = Subscriptions(
            on_message=on_message,
            on_lost=on_lost,
            on_refused=on_refused,
            changed=self._look,
            sharded=sharded,
            ping=ping,
            deadline=deadline,
            timeout=timeout,
        )
        self._commands = Commands(timeout=timeout, ping=ping, limit=limit, changed=self._look, moved=on_moved)
        self._up = asyncio.Event()
        self._owners: list[asyncio.Task[None]] = []

    @property
    def wanted(self) -> frozenset[bytes]:
        """The channels that are, or will be, subscribed to."""
        return self._subscriptions.wanted

    async def start(self) -> None:
        """Connect; return when `is_up`, or after *timeout* seconds, with the attempts going on."""
        self.open()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._up.wait()

    def open(self) -> None:
        """Begin to connect, and do not wait for it."""
        parts = [("commands", self._commands.serve)]
        if self._listens:
            parts.append(("subscriptions", self._subscriptions.serve))
        for what, serve in parts:
            owner = keep(self._client, serve, what=what, timeout=self._timeout, silence=self._deadline)
            self._owners.append(asyncio.create_task(owner))

    async def stop(self) -> None:
        """Close both connections; whoever waits is answered `BrokerUnavailable`."""
        for owner in self._owners:
            owner.cancel()
        await asyncio.gather(*self._owners, return_exceptions=True)
        self._owners.clear()
        self._subscriptions.close()
        self._commands.close()

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server has confirmed *channel*: what is published from then on arrives, or is told as lost.

        Raises:
            BrokerUnavailable: it was not confirmed in time; then it is not wanted, unless it had been before.
            redis.exceptions.ResponseError: the server refuses it.
        """
        await self._subscriptions.subscribe(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Return at once; the server hears of it with the next batch, messages may come until then."""
        self._subscriptions.unsubscribe(channel)

    def adopt(self, channels: Iterable[bytes]) -> None:
        """Subscribe to *channels* that another link had, and tell them as lost once they are confirmed."""
        self._subscriptions.adopt(channels)

    async def run(self, *args: Argument) -> Any:
        """The reply to one command; commands run in the order in which they were asked for.

        Raises:
            BrokerUnavailable: there is no reply within the time-out, or too many commands wait.
            redis.exceptions.ResponseError: the server refuses the command.
        """
        return await self._commands.run(*args)

    async def evaluate(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()) -> Any:
        """The reply to *script*; raises as `run` does."""
        return await self._commands.evaluate(script, keys, args)

    def _look(self) -> None:
        is_up = self._commands.is_up and (self._subscriptions.is_up or not self._listens)
        if is_up == self.is_up:
            return
        self.is_up = is_up
        (self._up.set if is_up else self._up.clear)()
        if self._on_change is not None:
            tell(self._on_change, is_up)
