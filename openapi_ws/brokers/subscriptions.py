"""Floor 2, hub: the channels that one Redis tells us of, and the truth about what was missed."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from openapi_ws.errors import BrokerUnavailable

from .wire import GoneError, ResponseError, Wire, has_moved, is_passing, tell, together

__all__ = ["Subscriptions"]

logger = logging.getLogger(__name__)

BATCH = 512
"""The most channels in one round trip."""

# Redis confirms subscriptions in the order in which it is asked for them, on the connection that the messages take.
# So what was asked for is kept in a queue, and a confirmation that is not the next one expected means that the
# connection is not the one that it seems to be: everything on it is to be doubted. One batch is under way at a time;
# between batches `_want` and `_live` are compared, for the channels that `_due` names, so subscribe and unsubscribe
# may come in any order, at any speed.
#
# A hole is told when a channel is confirmed anew, not earlier: then whoever hears of it can read what is missing and
# knows that from here on nothing is. And it is told before the next message is handed on: whoever listens never sees
# a message from behind the hole first.


class Subscriptions:
    """Which channels are wanted, which are confirmed; `serve` makes the second the first.

    *on_message* takes channel and data, *on_lost* the channels that were confirmed anew after a hole, *on_refused* a
    channel that the server does not serve, with its reason, e.g. because another node of the cluster has it now; it
    is not wanted any more. They are called in the order in which things happened, and return at once.
    """

    def __init__(
        self,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[set[bytes]], None],
        on_refused: Callable[[bytes, Exception], None] | None,
        changed: Callable[[], None],
        sharded: bool,
        ping: float,
        deadline: float,
        timeout: float,
    ) -> None:
        self.is_up = False
        """All that was wanted when the connection was made is confirmed."""
        self._on_message, self._on_lost, self._on_refused = on_message, on_lost, on_refused
        self._changed = changed
        self._ping, self._deadline, self._timeout = ping, deadline, timeout
        prefix = b"s" if sharded else b""
        self._subscribe, self._unsubscribe, self._message = (
            prefix + word for word in (b"subscribe", b"unsubscribe", b"message")
        )
        self._want: set[bytes] = set()
        self._live: set[bytes] = set()
        self._missed: set[bytes] = set()
        self._healed: set[bytes] = set()
        self._due: dict[bytes | None, None] = {}
        self._asked: deque[tuple[bytes, bytes]] = deque()
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._work, self._answered = asyncio.Event(), asyncio.Event()
        self._heard = 0.0

    @property
    def wanted(self) -> frozenset[bytes]:
        """The channels that are, or will be, subscribed to."""
        return frozenset(self._want)

    async def subscribe(self, channel: bytes) -> None:
        """Return when the server has confirmed *channel*: what is published from then on arrives, or is told as lost.

        Raises:
            BrokerUnavailable: it was not confirmed in time; then it is not wanted, unless it had been before.
            redis.exceptions.ResponseError: the server refuses it.
        """
        self._reconsider(channel, is_wanted=True)
        if channel in self._live:
            return
        future = asyncio.get_running_loop().create_future()
        futures = self._waiting.setdefault(channel, set())
        futures.add(future)
        try:
            async with asyncio.timeout(self._timeout):
                await future
        except TimeoutError:
            raise BrokerUnavailable("the subscription was not confirmed in time") from None
        finally:
            futures.discard(future)
            if not futures:
                self._waiting.pop(channel, None)
                if channel not in self._live and channel not in self._missed:
                    self._reconsider(channel, is_wanted=False)

    def adopt(self, channels: Iterable[bytes]) -> None:
        """Want *channels*, of which messages were missed elsewhere: they are told as lost when they are confirmed."""
        for channel in channels:
            self._missed.add(channel)
            self._reconsider(channel, is_wanted=True)

    def unsubscribe(self, channel: bytes) -> None:
        """Return at once; the server hears of it with the next batch, messages may come until then."""
        self._missed.discard(channel)
        self._reconsider(channel, is_wanted=False)

    def _reconsider(self, channel: bytes, *, is_wanted: bool) -> None:
        (self._want.add if is_wanted else self._want.discard)(channel)
        self._due[channel] = None
        self._work.set()

    def close(self) -> None:
        """Answer whoever still waits."""
        for future in itertools.chain.from_iterable(self._waiting.values()):
            if not future.done():
                future.set_exception(BrokerUnavailable("the link is stopped"))

    async def serve(self, wire: Wire) -> None:
        """Subscribe to what is wanted and hand on what comes, until *wire* is lost."""
        self._asked.clear()
        self._due = dict.fromkeys([*self._want, None])
        self._heard = asyncio.get_running_loop().time()
        self._work.set()
        try:
            await together(self._read(wire), self._write(wire), self._watch(wire))
        finally:
            self._missed |= self._live & self._want
            self._live.clear()
            self._healed.clear()
            self.is_up = False
            self._changed()

    async def _write(self, wire: Wire) -> None:
        while True:
            await self._work.wait()
            self._asked.extend(self._next_batch())
            if self._asked:
                self._answered.clear()
                async with asyncio.timeout(self._deadline):
                    # One command for each channel: an error, e.g. of an ACL, is then about that channel alone.
                    await wire.send(tuple(self._asked))
                    await self._answered.wait()
            elif not self._due:
                self._work.clear()

    def _next_batch(self) -> list[tuple[bytes, bytes]]:
        batch: list[tuple[bytes, bytes]] = []
        while self._due and len(batch) < BATCH:
            channel = next(iter(self._due))
            del self._due[channel]
            if channel is None:  # all that was wanted at first has been asked for: the answer says that all is well
                batch.append((b"ping", b""))
            elif channel in self._want and channel not in self._live:
                batch.append((self._subscribe, channel))
            elif channel not in self._want and channel in self._live:
                self._live.discard(channel)
                batch.append((self._unsubscribe, channel))
        return batch

    async def _read(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reply = await wire.receive()
            self._heard = loop.time()
            if isinstance(reply, list) and reply[0] == self._message:
                self._tell_lost()
                tell(self._on_message, reply[1], reply[2])
            else:
                self._take_answer(reply)
                if not self._asked:
                    self._tell_lost()
                    self._answered.set()

    def _take_answer(self, reply: Any) -> None:
        asked = self._asked[0] if self._asked else (b"", b"")
        if isinstance(reply, ResponseError):
            if asked[0] == self._unsubscribe and has_moved(reply):
                self._asked.popleft()  # the slot went away first, and the subscription with it
                return
            if is_passing(reply) or asked[0] != self._subscribe:
                raise reply
            self._asked.popleft()
            self._refuse(asked[1], reply)
        elif isinstance(reply, bytes) or reply[0] == b"pong":  # bytes if nothing is subscribed to
            if asked[0] == b"ping":
                self._asked.popleft()
                self._tell_lost()
                self.is_up = True
                self._changed()
        elif (kind := reply[0], channel := reply[1]) == asked:
            self._asked.popleft()
            if kind == self._subscribe:
                self._confirm(channel)
        elif kind == b"sunsubscribe" and channel in self._live:
            self._live.discard(channel)
            self._refuse(channel, GoneError("the slot of the channel has another node now"))
        else:
            raise ConnectionError(f"a confirmation that nobody asked for: {kind!r}")

    def _confirm(self, channel: bytes) -> None:
        self._live.add(channel)
        if channel in self._missed:
            self._missed.discard(channel)
            self._healed.add(channel)
        for future in self._waiting.get(channel, ()):
            if not future.done():
                future.set_result(None)

    def _refuse(self, channel: bytes, error: Exception) -> None:
        self._want.discard(channel)
        self._missed.discard(channel)
        for future in self._waiting.get(channel, ()):
            if not future.done():
                future.set_exception(error)
        if self._on_refused is not None:
            tell(self._on_refused, channel, error)
        else:
            logger.error("Redis refuses channel %r: %s", channel, error)

    def _tell_lost(self) -> None:
        if self._healed:
            healed, self._healed = self._healed & self._want, set()
            if healed:
                tell(self._on_lost, healed)

    async def _watch(self, wire: Wire) -> None:
        """Ask a server that says nothing whether it is there, and give it up if it does not answer."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heard + self._ping - loop.time())
            asked_at = loop.time()
            if asked_at - self._heard < self._ping:
                continue
            await wire.send([(b"PING",)])
            await asyncio.sleep(self._deadline - self._ping)
            if self._heard < asked_at:
                raise ConnectionError(f"nothing was heard for {self._deadline} seconds")
