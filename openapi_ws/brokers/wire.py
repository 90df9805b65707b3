"""Floor 2, hub: one connection to one Redis, thrown away when it is lost and made anew."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, NoReturn

from openapi_ws.errors import RpcError, SetupError

try:
    from redis.asyncio import Redis, RedisCluster, Sentinel
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import Connection, ConnectionPool, parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AskError,
        BusyLoadingError,
        ClusterDownError,
        MovedError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
        TryAgainError,
    )
except ModuleNotFoundError:
    message = "openapi_ws.brokers.redis needs redis-py: pip install 'openapi-ws[redis]'"
    raise SetupError(message) from None

__all__ = [
    "ClusterNode",
    "ConnectionPool",
    "GoneError",
    "NoScriptError",
    "ReadOnlyError",
    "Redis",
    "RedisCluster",
    "RedisError",
    "ResponseError",
    "Sentinel",
    "Wire",
    "has_moved",
    "is_passing",
    "keep",
    "parse_url",
    "tell",
    "together",
]

logger = logging.getLogger(__name__)

BURST = 64
"""Replies read before others have a turn."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 1.0
"""Seconds before the first attempt to connect again, and before the last; half of them if chance wills."""
# redis-py has classes for some answers, and leaves others as words; which, depends on its version.
PASSING = (ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError, OutOfMemoryError)
PASSING_WORDS = (
    "READONLY",
    "LOADING",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
    "OOM",
    "MISCONF",
    "BUSY ",
)
# Defaults of redis-py changed from version to version, and some reconnect in secret: each is said here.
SETTINGS = {
    "protocol": 2,  # RESP3 puts confirmations and messages out of band; redis-py hides some of them
    "decode_responses": False,
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "health_check_interval": 0,
    "retry_on_timeout": False,
}


def is_passing(error: Exception) -> bool:
    """Whether the server has not done what it was asked to, for a reason that may be gone a moment later."""
    return isinstance(error, PASSING) or str(error).startswith(PASSING_WORDS)


class GoneError(ResponseError):
    """A node ends a subscription because another has the slot."""


def has_moved(error: Exception) -> bool:
    """Whether a node of a cluster has not done what it was asked to, because another has the slot, or is to have it."""
    return isinstance(error, AskError | MovedError | GoneError)


class Wire:
    """One connection with the address and the credentials of *client*; it is never mended.

    *silence* is the number of seconds after which the kernel gives up what the server does not take (Linux).
    """

    def __init__(self, client: Redis, silence: float) -> None:
        pool = client.connection_pool
        options = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith("maint_")}
        options |= SETTINGS | {"retry": Retry(NoBackoff(), 0), "retry_on_error": []}
        if issubclass(pool.connection_class, Connection) and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Without it, what was written to a frozen server keeps a closed socket for a quarter of an hour.
            limit = {socket.TCP_USER_TIMEOUT: int(silence * 1000)}
            options |= {"socket_keepalive": True, "socket_keepalive_options": limit}
        self._connection = pool.connection_class(**options)
        self._received = 0

    @property
    def is_open(self) -> bool:
        """Whether a command can be written."""
        return bool(self._connection.is_connected)

    async def open(self) -> None:
        """Connect and authenticate."""
        connect: Callable[[], Awaitable[None]] = self._connection.connect  # redis-py has not typed it
        await connect()

    async def send(self, commands: Iterable[Sequence[bytes]]) -> None:
        """Write *commands*, and wait while the server does not take them.

        Raises:
            ConnectionError: the connection is lost; nothing was written if it was not open.
        """
        if not self.is_open:  # redis-py would connect again
            raise ConnectionError("the connection is lost")
        await self._connection.send_packed_command(self._connection.pack_commands(commands))

    async def receive(self) -> Any:
        """The next thing that the server says; an error that it answers is returned, not raised."""
        self._received += 1
        if not self._received % BURST:
            await asyncio.sleep(0)
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    async def close(self) -> None:
        """Throw it away; what the server has not taken may be lost."""
        await self._connection.disconnect(nowait=True)


async def keep(
    client: Redis, serve: Callable[[Wire], Awaitable[None]], *, what: str, timeout: float, silence: float
) -> NoReturn:
    """Hand a fresh `Wire` to *serve*, and another whenever that has failed, for ever. Logs call it *what*.

    An attempt to connect may take twice *timeout* seconds: to ask a Sentinel first takes its time.
    """
    loop, failures, is_told = asyncio.get_running_loop(), 0, False
    while True:
        wire, began = Wire(client, silence), loop.time()
        try:
            async with asyncio.timeout(2 * timeout):
                await wire.open()
            if is_told:
                logger.info("Redis is back: %s", what)
                is_told = False
            began = loop.time()
            await serve(wire)
        except Exception as error:
            failures = failures + 1 if loop.time() - began < LONGEST_DELAY else 0
            if not is_told:
                trace = None if isinstance(error, RedisError | OSError | RpcError) else error
                reason = f"{type(error).__name__}: {error}"
                logger.warning("Redis is lost, trying again: %s: %s", what, reason, exc_info=trace)
                is_told = True
        finally:
            await wire.close()
        delay = min(FIRST_DELAY * 2 ** min(failures, 8), LONGEST_DELAY)
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  it spreads nodes, it keeps no secret


def tell(callback: Callable[..., None], *args: Any) -> None:
    """Without this, a mistake of who listens would cost everybody the connection."""
    try:
        callback(*args)
    except Exception:
        logger.exception("A listener of the link to Redis failed")


async def together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run *parts* side by side until one fails, and raise its error when all have ended.

    Before Python 3.13 `asyncio.TaskGroup` hides a cancellation behind an error of the same tick: a link that is
    stopped as it fails would go on.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
