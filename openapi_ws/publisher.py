"""Floor 2, hub: publish over Redis from where no clients are: a worker, a cron job, the shell."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self

import orjson

from .brokers.address import connect
from .brokers.cluster import fleet_of
from .brokers.fleet import Fleet
from .brokers.store import Store
from .errors import RpcError, SetupError
from .topics import Topic, Topics

__all__ = ["Publisher", "main"]


class Publisher:
    """Publishes to the clients of all processes whose `RedisBroker` has the same Redis, *prefix* and *topics*.

    It listens to nothing. *url*, *client*, *topics*, *prefix* and *timeout* are those of `RedisBroker`::

        async with Publisher("redis://localhost", topics=[CHAT]) as publisher:
            position = await publisher.publish("chat:a", "said", ChatMessage(text="hi"))
    """

    max_message_bytes: int = 1024 * 1024
    """Bytes of a message; a larger one is refused."""

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        topics: Iterable[Topic] = (),
        prefix: str = "ows",
        timeout: float = 1.0,
    ) -> None:
        if (url is None) == (client is None):
            raise SetupError('write Publisher("redis://localhost"), or client=… instead of the url')
        self.topics = Topics(topics)
        """What channels there are; with none declared, every name is one."""
        self._client: Any
        self._own: list[Any]
        self._client, self._own = (client, []) if url is None else connect(url, timeout=timeout)
        self._prefix, self._timeout = prefix, timeout
        self._fleet: Fleet | None = None
        self._store: Store | None = None

    async def __aenter__(self) -> Self:
        """Connect; where Redis does not answer within the time-out, go on trying."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self.stop()

    async def start(self) -> None:
        """Connect, where ``async with`` does not fit; `stop` it in the end."""
        self._fleet = fleet_of(self._client, on_message=_ignore, on_lost=_ignore, timeout=self._timeout, listens=False)
        limit = self.max_message_bytes
        self._store = Store(self._fleet, self._prefix, timeout=self._timeout, max_message_bytes=limit)
        await self._fleet.start()

    async def stop(self) -> None:
        """Disconnect; a publish that is under way fails."""
        if self._fleet is not None:
            await self._fleet.stop()
        self._fleet = self._store = None
        for client in self._own:
            await client.aclose()

    async def publish(self, channel: str, event: str | None, data: Any = None, *, key: str | None = None) -> str | None:
        """Publish *data* as *event* on *channel*, as `Delivery.publish` does, and with its errors.

        Raises:
            SetupError: it was not started.
        """
        message, history = self.topics.message(channel, event, data, key=key)
        if history is not None:
            return str(await self.store.append(message, history, key))
        await self.store.emit(message)
        return None

    @property
    def store(self) -> Store:
        """What is kept and published.

        Raises:
            SetupError: it was not started.
        """
        if self._store is None:
            raise SetupError("the publisher was not started: write async with Publisher(…) as publisher")
        return self._store


def _ignore(*_: object) -> None:
    """Nothing is subscribed to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish one message and print its position, if it has one; 1 and one line on stderr if that fails.

    What the connection to Redis fails by is logged before that line.
    """
    options = _parser().parse_args(arguments)
    try:
        position = asyncio.run(_publish(options))
    except (RpcError, SetupError, ValueError, TypeError) as error:
        reason = getattr(error, "reason", "") or getattr(error, "errors", None)
        print(f"{error}: {reason}" if reason else error, file=sys.stderr)
        return 1
    if position is not None:
        print(position)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m openapi_ws.publisher", description="Publish one message over Redis.")
    parser.add_argument("url", help="e.g. redis://localhost, redis+cluster://h1:7000,h2:7000")
    parser.add_argument("channel")
    parser.add_argument("event")
    parser.add_argument("data", nargs="?", default="null", help="JSON, null if left out; - reads it from stdin")
    parser.add_argument("--topics", metavar="MODULE:NAME", help="the application's topics, or one, to validate by")
    parser.add_argument("--key", help="publish once, however often this is called within five minutes")
    parser.add_argument("--prefix", default="ows", help="the broker's, default %(default)s")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds that Redis has, default %(default)s")
    return parser


async def _publish(options: argparse.Namespace) -> str | None:
    data = orjson.loads(sys.stdin.buffer.read() if options.data == "-" else options.data)
    topics = _find(options.topics) if options.topics else ()
    async with Publisher(options.url, topics=topics, prefix=options.prefix, timeout=options.timeout) as publisher:
        if not topics and await publisher.store.has_history(options.channel):
            raise SetupError(
                f"{options.channel!r} has a history: say --topics MODULE:NAME, or nobody could recover this"
            )
        return await publisher.publish(options.channel, options.event, data, key=options.key)


def _find(place: str) -> list[Topic]:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SetupError(f"--topics {place}: {error}") from None
    topics = list(found) if isinstance(found, Iterable) else [found]
    if not topics or not all(isinstance(topic, Topic) for topic in topics):
        raise SetupError(f"--topics {place}: neither a Topic nor a list of them")
    return topics


if __name__ == "__main__":
    sys.exit(main())
