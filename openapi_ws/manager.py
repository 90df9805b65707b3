"""Floor 2, hub: who is connected here, publish from anywhere, and the hooks that make a broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import cached_property
from typing import Any, Self

import orjson
from aiohttp import web

from .delivery import USER, Delivery
from .frames import close_frame, text_frame
from .metrics import Metrics
from .outgoing import Flusher, Pushed
from .protocol import VERSION, Dialect, Message
from .websocket import Websocket

__all__ = ["SocketsManager", "Websocket", "WsHandlerType"]

logger = logging.getLogger(__name__)

WsHandlerType = Callable[[str, Any], None]

RESTART, KICKED = 1012, 4503
DRAIN_RATE = 500
"""Clients that are asked to leave in a second."""
DEPARTURE_TIMEOUT = 10.0
"""Seconds that a `disconnected` hook has."""


class SocketsManager(Delivery):
    """The sockets and channels of one process, and its broker: here, the process itself.

    A broker of one's own is a subclass that overrides `publish`, `subscribe`, `subscribe_to_event` and
    `unsubscribe`, as much of them as it needs, and hands what arrives to
    ``await self.channels(channel, {"event": …, "data": …})``. Its ``__init__`` need not call this one's.
    """

    max_sockets: int | None = 10_000
    """Sockets of this process; the next handshake is answered 503."""
    max_sockets_per_address: int | None = None
    """Sockets of one peer address; the next is answered 429. No limit by default: all clients of a proxy share one."""
    max_sockets_per_identity: int | None = 100
    """Sockets of one identity, as the view gives it; the next is answered 429."""
    drain_timeout: float = 10.0
    """Seconds that clients and their calls have at shutdown."""
    tick: float = 1.0
    """Seconds between two looks at the sockets: the grain of all their times."""
    is_closing = False
    """Shutdown has begun: new handshakes are answered 503, as long as aiohttp listens."""
    _is_managed = False
    _timer: asyncio.TimerHandle | None = None

    @classmethod
    def for_app(cls, app: web.Application, **options: Any) -> Self:
        """A manager that starts and stops with *app*; put it under ``app["web_sockets"]``.

        *options* go to the class. At shutdown the sockets are drained, see `drain`, within `drain_timeout`; a second
        signal to end the process skips the wait. aiohttp neither listens nor reads any more by then: call `drain`
        before, and who comes is answered 503, and what clients send is heard.
        """
        manager = cls(**options)
        manager._is_managed = True

        async def lifespan(_: web.Application) -> AsyncIterator[None]:
            await manager.start()
            yield
            try:
                await manager.departed()
            finally:
                await manager.stop()

        async def shutdown(_: web.Application) -> None:
            await _unless_hurried(manager.drain())
            await manager.close_sockets()

        app.cleanup_ctx.append(lifespan)
        app.on_shutdown.append(shutdown)
        return manager

    @property
    def ready(self) -> bool:
        """New clients are welcome: what a readiness probe asks."""
        return not self.is_closing

    @cached_property
    def metrics(self) -> Metrics:
        """What this process has counted."""
        return Metrics()

    @cached_property
    def flusher(self) -> Flusher:
        """What hands to the transports what was sent in one turn of the loop."""
        return Flusher()

    @cached_property
    def sockets(self) -> set[Websocket]:
        """The clients connected to this process."""
        return set()

    @cached_property
    def _admitted(self) -> Counter[tuple[str, str | None]]:
        return Counter()

    @cached_property
    def _departures(self) -> set[asyncio.Task[None]]:
        return set()

    @cached_property
    def _owned(self) -> dict[str, set[Websocket]]:
        return {}

    def add(self, ws: Websocket) -> None:
        """Count *ws* in."""
        if not self._is_managed:
            self._is_managed = True
            logger.warning(
                "%s is not tied to the application: shutdown will wait for its clients; "
                'write app["web_sockets"] = %s.for_app(app)', type(self).__name__, type(self).__name__,
            )  # fmt: skip
        self.sockets.add(ws)
        if ws.identity is not None:
            self._owned.setdefault(ws.identity, set()).add(ws)

    def remove(self, ws: Websocket) -> None:
        """Count *ws* out."""
        self.sockets.discard(ws)
        if ws.identity is not None and (owned := self._owned.get(ws.identity)) is not None:
            owned.discard(ws)
            if not owned:
                del self._owned[ws.identity]

    async def see_off(self, departure: Coroutine[Any, Any, None]) -> None:
        """Run the *departure* of one client to its end, also if who asks for it is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(departure)
        self._departures.add(task)
        task.add_done_callback(self._departures.discard)
        await asyncio.shield(task)

    async def departed(self) -> None:
        """Return when the last departure has ended; each has its bounds, so a cancellation waits for them, too."""
        cancelled = None
        while departures := {*self._departures, *self.roster.departures}:
            try:
                await asyncio.wait(departures)
            except asyncio.CancelledError as error:
                cancelled = error
        self.roster.close()
        self.rolls.close()
        if cancelled is not None:
            raise cancelled

    def server_info(self) -> dict[str, Any]:
        """Figures of this process: connections, listeners by channel and event, and all that was counted."""
        info = self.metrics.info()
        info["dropped"] |= {reason: count for reason, count in self.channels.losses.items() if count}
        return {
            "connections": len(self.sockets),
            "channels": self.channels.info(),
            "queued_bytes": sum(ws.queued_bytes for ws in self.sockets),
            **info,
        }

    # -- one user ---------------------------------------------------------------------------------------------

    async def send_to(self, identity: str, event: str, data: Any = None) -> int | None:
        """Send a message to all clients of one *identity*, as their views give it, in whichever process they are.

        They get it as a message of the channel ``@user``, live: who is not connected does not get it. It returns how
        many were sent it, or None where the broker cannot know.

        Raises:
            EncodeError: JSON cannot hold *data*.
            BrokerUnavailable: the broker cannot be reached.
        """
        message = Message.of(USER, event, data)
        return await self._order("send", identity, event=message.event, data=message.data.decode())

    async def close(self, *, identity: str, code: int = KICKED, reason: str = "kicked") -> int | None:
        """Close all clients of one *identity*, in whichever process they are; how many, or None as `send_to`.

        It does not wait for the ends of the connections. 4503 tells clients to stay away; nothing else keeps them.

        Raises:
            ValueError: *code* is none that a frame may carry.
            BrokerUnavailable: the broker cannot be reached.
        """
        close_frame(code, reason)  # a wrong code is refused here, not in the other processes
        return await self._order("close", identity, code=code, reason=reason)

    async def _order(self, op: str, identity: str, **members: Any) -> int | None:
        return await self.spread(orjson.dumps({"v": VERSION, "op": op, "identity": identity, **members}))

    async def spread(self, order: bytes) -> int | None:
        """Let every process `obey` *order*: a broker overrides it; to how many sockets, None if nobody can know."""
        return self.obey(order)

    def obey(self, order: bytes) -> int:
        """Do to the sockets of this process what *order* says, as `send_to` and `close` write it; how many it was.

        Raises:
            ValueError: it is no order.
        """
        said = orjson.loads(order)
        try:
            if said["v"] != VERSION:
                raise ValueError(f"unknown version {said['v']!r}")
            websockets = tuple(self._owned.get(said["identity"], ()))
            if said["op"] == "send":
                _push(websockets, Message(USER, said["event"], said["data"].encode()))
            elif said["op"] == "close":
                for websocket in websockets:
                    websocket.close_soon(said["code"], said["reason"])
            else:
                raise ValueError(f"unknown op {said['op']!r}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no order: {error!r}") from error
        return len(websockets)

    # -- who may come, and how they go ------------------------------------------------------------------------

    def admit(self, address: str | None, identity: str | None) -> str | None:
        """Count a client in before its handshake; or why not: ``closing``, ``sockets``, ``address``, ``identity``."""
        if self.is_closing:
            self.metrics.refused["closing"] += 1
            return "closing"
        keys = self._keys(address, identity)
        limits = (self.max_sockets, self.max_sockets_per_address, self.max_sockets_per_identity)
        for key, limit in zip(keys, limits, strict=True):
            if key[1] is not None and limit is not None and self._admitted[key] >= limit:
                self.metrics.refused[key[0]] += 1
                return key[0]
        self._admitted.update(keys)
        return None

    def release(self, address: str | None, identity: str | None) -> None:
        """Undo an `admit`."""
        for key in self._keys(address, identity):
            self._admitted[key] -= 1
            if not self._admitted[key]:
                del self._admitted[key]

    def _keys(self, address: str | None, identity: str | None) -> list[tuple[str, str | None]]:
        return [("sockets", "all"), ("address", address), ("identity", identity)]

    def watch(self) -> None:
        """Look at the clock for all sockets each `tick`, as long as there are any."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.tick, self._look, loop.time() + self.tick)

    def _look(self, due: float) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        self.metrics.lag = max(0.0, now - due)
        for websocket in tuple(self.sockets):
            websocket.tick(now, self.metrics.lag)
        if self.sockets:
            self.watch()
        else:
            self.metrics.lag = 0.0  # nobody is there to look for

    async def drain(self, timeout: float | None = None) -> None:
        """Let nobody in any more, and see every client off within *timeout* seconds, default `drain_timeout`.

        Each is told by a ``drain`` notice when to leave: moments spread over at most half of the time, 500 clients a
        second, so that they do not all come to another server at once (the "lame duck" of NATS). Their calls may
        finish until the time is up. Then they are closed with 1012, "come back".
        """
        self.is_closing = True
        timeout = self.drain_timeout if timeout is None else timeout
        sockets = list(self.sockets)
        window = min(timeout / 2, len(sockets) / DRAIN_RATE)
        moments = [random.uniform(0, window) for _ in sockets]  # noqa: S311  # nothing secret
        moves = (ws.move(at, grace=timeout - at, code=RESTART) for ws, at in zip(sockets, moments, strict=True))
        await asyncio.gather(*moves)

    async def close_sockets(self, code: int = RESTART, reason: str = "Server shutdown") -> None:
        """Let nobody in any more and close every client, all at once, each in bounded time."""
        self.is_closing = True
        await asyncio.gather(*(ws.close(code, reason) for ws in tuple(self.sockets)))
        await self.channels.clear()


def _push(websockets: Iterable[Websocket], message: Message) -> None:
    pushed: dict[Dialect, Pushed] = {}
    for websocket in websockets:
        dialect = websocket.push_dialect or websocket.dialect
        if dialect not in pushed:
            pushed[dialect] = text_frame(dialect.message(message)), message
        websocket.push(pushed[dialect])


async def _unless_hurried(work: Coroutine[Any, Any, None]) -> None:
    """Do *work*, until a signal to end the process comes a second time."""
    loop, hurry = asyncio.get_running_loop(), asyncio.Event()
    task, hurried = loop.create_task(work), loop.create_task(hurry.wait())
    taken = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not on Windows, and not outside the main thread: there nobody can hurry.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, hurry.set)
            taken.append(number)
    try:
        await asyncio.wait([task, hurried], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
        for unfinished in (task, hurried):
            unfinished.cancel()
        await asyncio.wait([task, hurried])
