"""Floor 4, doors: the WebSocket `get` of an aiohttp class view."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABCMeta
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter, AbstractView

from .calls import Calls
from .channels import Channels
from .errors import SetupError
from .manager import DEPARTURE_TIMEOUT, SocketsManager
from .outbox import SlowConsumer, disconnect
from .presence import Presence
from .protocol import HOUSE, JSONRPC, Call, Message
from .pubsub import listen
from .pulse import Pulse
from .reader import LOST, NO_STATUS, Reader
from .rpc import Method, methods_of
from .transport import tune
from .websocket import CLOSE_TIMEOUT, Websocket

__all__ = ["WsPathMixin"]

logger = logging.getLogger(__name__)

DIALECTS = {dialect.name: dialect for dialect in (HOUSE, JSONRPC)}
PROTOCOLS = tuple(DIALECTS)
INTERNAL_ERROR, RESTART = 1011, 1012
RETRY_AFTER = 5
"""Seconds after which a client may try again where there are too many."""


class _Response(web.WebSocketResponse[bool]):
    """A response that leaves the answer to a broken frame to `Websocket`."""

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Close if `Websocket` says so; `receive` would, before what is queued, and wait for a peer without a bound."""
        return False if drain else await super().close(code=code, message=message, drain=False)


class _Collecting(ABCMeta):  # as aiohttp's views have it, so that either may come first
    """Collects the methods of a view when it is made: a base in front may keep `__init_subclass__` to itself."""

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        methods_of(cls)


class WsPathMixin(metaclass=_Collecting):
    """Mixin of an aiohttp class view, in any order of bases: serves its ``ws_rpc_*`` coroutines to WebSockets.

    Methods are collected when the class is made; one that cannot be offered raises `SetupError` there. One view
    serves one socket, so what belongs to a client may be kept on *self*.
    """

    SOCKETS_KEY: ClassVar[str | web.AppKey[Any]] = "web_sockets"
    """Where the manager is found in the application, or in one that it is nested in."""
    max_calls: ClassVar[int] = 32
    """Calls of one socket that may be in flight; the next is answered -32005."""
    max_frame_size: ClassVar[int] = 64 * 1024
    """Bytes of a message from a client; a larger one closes the socket with 1009."""
    compress: ClassVar[bool] = False
    """Messages above 1 KiB are compressed for clients that ask for permessage-deflate (RFC 7692), once for all who get
    the same. It costs CPU time in the event loop, and 100 KB for each client that sends compressed messages."""
    max_subscriptions: ClassVar[int] = 128
    """Events that a client may subscribe to, those that it was joined to counted; the next is answered -32005."""
    max_queue_bytes: ClassVar[int] = 1024 * 1024
    """Bytes that may wait for a client that does not keep up; then `slow_consumer` acts."""
    slow_consumer: ClassVar[SlowConsumer] = disconnect
    """What is done with a client that does not keep up: `disconnect`, `drop_oldest` or `conflate` of a key."""
    send_buffer_bytes: ClassVar[int | None] = 64 * 1024
    """Bytes that the kernel may hold for one client; Linux doubles it. With None it is the kernel that decides, and
    holds megabytes of which nobody knows whether they arrive."""
    heartbeat: ClassVar[float | None] = 25.0
    """Seconds of silence after which a client is pinged; after 1.5 times as many it is closed with 4012."""
    max_control_rate: ClassVar[float] = 10
    """Pings and pongs that a client may send per second, and twice as many at once; a flood is closed with 4013."""
    call_timeout: ClassVar[float | None] = 30.0
    """Seconds that a call may take, to the second, before it is cancelled and answered -32008."""
    max_idle: ClassVar[float | None] = None
    """Seconds without a message from the client until the socket is closed with 4011, after a notice."""
    max_age: ClassVar[float | None] = None
    """Seconds until a socket is closed with 4011, after a notice, e.g. so that load spreads to new servers."""

    websocket: Websocket
    """The client, from `connected` on."""
    _has_begun = False

    if TYPE_CHECKING:

        @property
        def request(self) -> web.Request: ...  # noqa: D102  # web.View's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, AbstractView):
            name = type(self).__name__
            raise SetupError(f"{name} is no view: write class {name}(WsPathMixin, web.View)")
        super().__init__(*args, **kwargs)

    @property
    def sockets(self) -> SocketsManager:
        """The manager.

        Raises:
            SetupError: the application has none.
        """
        manager = self.request.config_dict.get(self.SOCKETS_KEY)
        if not isinstance(manager, SocketsManager):
            key = self.SOCKETS_KEY if isinstance(self.SOCKETS_KEY, web.AppKey) else f'"{self.SOCKETS_KEY}"'
            raise SetupError(f"no manager: write app[{key}] = SocketsManager.for_app(app)")
        return manager

    @property
    def channels(self) -> Channels:
        """The channels of the manager."""
        return self.sockets.channels

    @property
    def socket_id(self) -> str:
        """The socket's id, the same on all its calls."""
        return self.websocket.socket_id

    # -- hooks ------------------------------------------------------------------------------------------------

    async def connected(self) -> None:
        """The client is here; its first method begins when this has ended. If it fails, the socket closes, 1011."""

    async def disconnected(self, code: int) -> None:
        """The client is gone, and with it its calls and subscriptions. *code* says why; 1006 is a lost link.

        Called once for each socket whose `connected` was. It has 10 seconds.
        """

    def on_error(self, call: Call, exc: Exception) -> Any:
        """The method of *call* failed with *exc*, which is no `RpcError`; may be a coroutine. It is logged already.

        If it fails itself, the socket closes, 1011.
        """

    def identity(self) -> str | None:
        """Whose socket this is going to be, e.g. a user's name; asked before the handshake is answered.

        It may raise an `aiohttp.web.HTTPException` to refuse the handshake.
        """
        return None

    # -- rooms ------------------------------------------------------------------------------------------------

    async def join(self, channel: str, event: str = "*") -> None:
        """Put this client on a channel, as if it had subscribed.

        Raises:
            CannotSubscribe: the broker has no such channel.
        """
        await listen(self.sockets, self.websocket, channel, event)

    async def leave(self, channel: str) -> None:
        """Take this client off a channel, all events of it; nothing happens if the client is not on it."""
        await self.channels.leave(channel, self.websocket)

    async def send(self, channel: str, event: str, data: Any = None) -> None:
        """Send a message to this client alone, and return when it keeps up: a method that streams is slowed by it.

        A method that streams for long wants ``@ws_rpc(timeout=None)``. The policy `slow_consumer` holds here, too.

        Raises:
            EncodeError: JSON cannot hold *data*.
            ConnectionResetError: the client is gone.
        """
        message = Message.of(channel, event, data)
        dialect = self.websocket.push_dialect or self.websocket.dialect
        await self.websocket.drain()  # before, too: else many streams would begin, or go on, all at once
        self.websocket.push((self.websocket.frame(dialect.message(message)), message))
        await self.websocket.drain()

    # -- one connection ---------------------------------------------------------------------------------------

    async def get(self) -> web.StreamResponse:
        """Upgrade to a WebSocket and serve it until it ends.

        Answers 400 to what is no WebSocket handshake or offers only unknown sub-protocols, and 503 while the
        application shuts down.
        """
        sockets, methods, identity = self.sockets, methods_of(type(self)), self.identity()
        response = self._response()
        if reason := sockets.admit(self.request.remote, identity):
            raise self._refusal(reason)
        try:
            await self._serve(sockets, methods, response, identity)
        finally:
            sockets.release(self.request.remote, identity)
        return response

    async def _serve(
        self,
        sockets: SocketsManager,
        methods: dict[str, Method],
        response: web.WebSocketResponse[bool],
        identity: str | None,
    ) -> None:
        try:
            writer = await response.prepare(self.request)
        except ConnectionError:
            logger.debug("%s was gone before its handshake was answered", self.request.remote)
            return
        # From here on no exception may leave: aiohttp or a middleware would write an HTTP answer into the socket.
        transport = self.request.transport
        if transport is None or writer is None:  # gone during the handshake
            return
        websocket = self._websocket(response, writer, transport, sockets, identity)
        calls = websocket.calls = Calls(self, websocket, methods, limit=self.max_calls, timeout=self.call_timeout)
        websocket.backlog = sockets
        websocket.window_bits = int(response.compress)
        sockets.metrics.opened += 1
        try:
            sockets.add(websocket)
            sockets.watch()
            if sockets.is_closing:
                websocket.close_soon(RESTART, "Server shutdown")
            await self._open(calls)
            await self._reader(response, calls).read()
        except Exception:
            logger.exception("%s failed", websocket)
            websocket.close_soon(INTERNAL_ERROR, "Internal error")
        finally:
            self._leave(sockets, calls)
            # With handler_cancellation, aiohttp cancels this handler as soon as the link is gone.
            await sockets.see_off(self._depart(calls))

    def _websocket(
        self,
        response: web.WebSocketResponse[bool],
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        sockets: SocketsManager,
        identity: str | None,
    ) -> Websocket:
        now = asyncio.get_running_loop().time()
        pulse = Pulse(
            now,
            heartbeat=self.heartbeat,
            max_idle=self.max_idle,
            max_age=self.max_age,
            control_rate=self.max_control_rate,
        )
        tune(transport, send_buffer_bytes=self.send_buffer_bytes, heartbeat=self.heartbeat)
        self.websocket = websocket = Websocket(
            self.request,
            response,
            writer,
            transport,
            sockets.metrics,
            sockets.flusher,
            pulse,
            identity=identity,
            max_queue_bytes=self.max_queue_bytes,
            slow_consumer=self.slow_consumer,
        )
        if isinstance(self, Presence):
            websocket.attendee = self
        if response.ws_protocol:
            websocket.dialect = DIALECTS[response.ws_protocol]
            websocket.dialect_is_fixed = True
        return websocket

    def _reader(self, response: web.WebSocketResponse[bool], calls: Calls) -> Reader:
        return Reader(response, self.websocket, calls)

    async def _open(self, calls: Calls) -> None:
        """Begin `connected`; the socket is read meanwhile, and its calls wait."""
        self._has_begun = True
        if type(self).connected is not WsPathMixin.connected:
            calls.wait_for(asyncio.get_running_loop().create_task(self._connected(calls)))
            await asyncio.sleep(0)  # it has begun before anything can end it, so `disconnected` has its counterpart

    async def _connected(self, calls: Calls) -> None:
        if not await self._succeeds("connected", self.connected()):
            calls.refuse()
            self.websocket.close_soon(INTERNAL_ERROR, "connected failed")

    def _leave(self, sockets: SocketsManager, calls: Calls) -> None:
        """Take the client off everything at once, in an order that lets nothing put it back."""
        self.websocket.end()
        calls.refuse()
        sockets.channels.remove(self.websocket)
        try:
            sockets.remove(self.websocket)
        except Exception:
            logger.exception("%s could not be removed", self.websocket)

    async def _depart(self, calls: Calls) -> None:
        """End the link and what still runs, then tell the view."""
        code = self.websocket.close_code or LOST
        is_theirs = self.websocket.close_soon(_answer_to(code))
        self.websocket.metrics.count_close(code, is_theirs=is_theirs)
        await calls.close()
        await self.websocket.close()
        if self._has_begun:
            await self._succeeds("disconnected", self._disconnected(code))

    async def _disconnected(self, code: int) -> None:
        async with asyncio.timeout(DEPARTURE_TIMEOUT):
            await self.disconnected(code)

    async def _succeeds(self, name: str, hook: Coroutine[Any, Any, None]) -> bool:
        """Run a hook; whether it ended well. A failure is logged, a cancellation that nobody asked for is one."""
        try:
            await hook
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.exception("%s %s was cancelled from within", self.websocket, name)
        except Exception:
            logger.exception("%s %s failed", self.websocket, name)
        else:
            return True
        return False

    def _response(self) -> web.WebSocketResponse[bool]:
        response = _Response(
            autoclose=False,
            autoping=False,
            timeout=CLOSE_TIMEOUT,
            protocols=PROTOCOLS,
            compress=self.compress,
            max_msg_size=self.max_frame_size + 1,  # aiohttp refuses what is as large as this
            decode_text=False,
        )
        offered = [name.strip() for name in self.request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")]
        if any(offered) and not DIALECTS.keys() & offered:
            raise _answer(web.HTTPBadRequest, f"Sub-protocols supported: {', '.join(DIALECTS)}")
        # Not before: aiohttp logs unknown sub-protocols, and a token may be one of them.
        if not response.can_prepare(self.request):
            raise _answer(web.HTTPBadRequest, "Unable to open websocket connection")
        return response

    def _refusal(self, reason: str) -> web.HTTPException:
        if reason in ("address", "identity"):
            return _answer(web.HTTPTooManyRequests, "Too many connections", retry_after=RETRY_AFTER)
        message = "Server shutdown" if reason == "closing" else "Server full"
        return _answer(web.HTTPServiceUnavailable, message, retry_after=1 if reason == "closing" else RETRY_AFTER)


def _answer(error: type[web.HTTPException], message: str, retry_after: int | None = None) -> web.HTTPException:
    headers = {hdrs.RETRY_AFTER: str(retry_after)} if retry_after else None
    return error(text=json.dumps({"message": message}), content_type="application/json", headers=headers)


def _answer_to(code: int) -> int:
    """The code of our close frame: the client's own, as RFC 6455 §5.5.1 has it, where there is one."""
    return {NO_STATUS: 1000, LOST: RESTART}.get(code, code)
