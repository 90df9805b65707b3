"""Floor 2, hub: who is connected here, publish from anywhere, and the hooks that make a broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import cached_property
from typing import Any, Self

from aiohttp import web

from .channels import Channels
from .protocol import Message, encode
from .websocket import Websocket

__all__ = ["SocketsManager", "Websocket", "WsHandlerType"]

logger = logging.getLogger(__name__)

WsHandlerType = Callable[[str, Any], None]

DEPARTURE_TIMEOUT = 10.0
"""Seconds that the `disconnected` hooks have at shutdown, where aiohttp does not wait for their handlers itself."""


class SocketsManager:
    """The sockets and channels of one process, and its broker: here, the process itself.

    A broker of one's own is a subclass that overrides `publish`, `subscribe`, `subscribe_to_event` and
    `unsubscribe`, as much of them as it needs, and hands what arrives to
    ``await self.channels(channel, {"event": …, "data": …})``. Its ``__init__`` need not call this one's.
    """

    is_closing = False
    """Shutdown has begun: new handshakes are answered 503."""
    _is_managed = False

    @classmethod
    def for_app(cls, app: web.Application, **options: Any) -> Self:
        """A manager that starts and stops with *app*; put it under ``app["web_sockets"]``.

        *options* go to the class. At shutdown every client is closed with 1012, "come back", at once and in
        bounded time, instead of keeping `aiohttp.web.run_app` waiting.
        """
        manager = cls(**options)
        manager._is_managed = True

        async def lifespan(_: web.Application) -> AsyncIterator[None]:
            await manager.start()
            yield
            await manager.departed()
            await manager.stop()

        async def shutdown(_: web.Application) -> None:
            await manager.close_sockets()

        app.cleanup_ctx.append(lifespan)
        app.on_shutdown.append(shutdown)
        return manager

    @cached_property
    def sockets(self) -> set[Websocket]:
        """The clients connected to this process."""
        return set()

    @cached_property
    def _departures(self) -> set[asyncio.Task[None]]:
        return set()

    @cached_property
    def channels(self) -> Channels:
        """The channels that somebody in this process listens to."""
        return Channels(self)

    def add(self, ws: Websocket) -> None:
        """Count *ws* in."""
        if not self._is_managed:
            self._is_managed = True
            logger.warning(
                "%s is not tied to the application: shutdown will wait for its clients; "
                'write app["web_sockets"] = %s.for_app(app)', type(self).__name__, type(self).__name__,
            )  # fmt: skip
        self.sockets.add(ws)

    def remove(self, ws: Websocket) -> None:
        """Count *ws* out."""
        self.sockets.discard(ws)

    async def see_off(self, departure: Coroutine[Any, Any, None]) -> None:
        """Run the *departure* of one client to its end, also if who asks for it is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(departure)
        self._departures.add(task)
        task.add_done_callback(self._departures.discard)
        await asyncio.shield(task)

    async def departed(self) -> None:
        """Return when the last departure has ended; one that takes longer than `DEPARTURE_TIMEOUT` is cancelled."""
        if self._departures:
            _, late = await asyncio.wait(self._departures, timeout=DEPARTURE_TIMEOUT)
            for task in late:
                task.cancel()

    def server_info(self) -> dict[str, Any]:
        """Figures of this process: connections, and listeners by channel and event."""
        return {
            "connections": len(self.sockets),
            "channels": self.channels.info(),
            "dropped": self.channels.dropped,
        }

    async def close_sockets(self, code: int = 1012, reason: str = "Server shutdown") -> None:
        """Let nobody in any more and close every client, all at once, each in bounded time."""
        self.is_closing = True
        await asyncio.gather(*(ws.close(code, reason) for ws in tuple(self.sockets)))
        await self.channels.clear()

    # -- the broker: override to make one's own ---------------------------------------------------------------

    async def start(self) -> None:
        """Connect to what the broker needs; called when the application starts."""

    async def stop(self) -> None:
        """Undo `start`; called when the application is cleaned up, after the last socket is gone."""

    async def publish(
        self, channel: str, event: str | None, data: Any = None, *, exclude: Websocket | None = None
    ) -> None:
        """Publish *data* as *event* on *channel*, from any code of the application.

        *data* is anything `encode` takes; it is encoded here, once, whoever listens. The client *exclude* does not
        get it. It never waits for a client.

        Raises:
            CannotPublish: the broker does not publish to this channel.
            EncodeError: JSON cannot hold *data*; nobody has got anything.
        """
        await self.channels.deliver(Message(channel, event or "", encode(data)), exclude=exclude)

    async def subscribe(self, channel: str) -> None:
        """Begin to bring *channel*'s messages here: its first listener has come.

        Raises:
            CannotSubscribe: there is no such channel. Whatever is raised, the broker is not subscribed.
        """

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        """Learn that a listener has come for *event*, a name or a pattern, e.g. to subscribe to a feed for it."""

    async def unsubscribe(self, channel: str) -> None:
        """End what `subscribe` began: the last listener has left. If it fails, it is called again."""
