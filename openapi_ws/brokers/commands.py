"""Floor 2, hub: commands to one Redis, those of one tick in one round trip, in the order of the calls."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from openapi_ws.errors import BrokerUnavailable

from .wire import NoScriptError, ReadOnlyError, ResponseError, Wire, has_moved, is_passing, tell, together

__all__ = ["Commands", "Script"]

BATCH = 512
"""The most commands in one round trip."""
Argument = bytes | str | int | float


class Script:
    """A Lua script; it is called by its hash, and its source is sent when the server does not know it."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


class _Call:
    """A command, and who waits for its reply until *deadline*."""

    __slots__ = ("args", "deadline", "future", "script")

    def __init__(self, args: tuple[bytes, ...], script: Script | None, deadline: float) -> None:
        self.args, self.script, self.deadline = args, script, deadline
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def finish(self, reply: Any) -> None:
        if self.future.done():
            return
        if not isinstance(reply, Exception):
            self.future.set_result(reply)
        elif is_passing(reply):
            self.future.set_exception(BrokerUnavailable(str(reply)))
        else:
            self.future.set_exception(reply)

    def fail(self, reason: str, *, may_have_run: bool) -> None:
        self.finish(BrokerUnavailable(reason, may_have_run=may_have_run))


class Commands:
    """What waits to be sent, and what waits for its reply; `serve` moves it.

    One batch is under way at a time, on one connection: so commands run in the order in which they were asked for.
    *changed* is called when *is_up* has changed, and *moved*, if there is one, when the server says that another node
    of the cluster has a slot.
    """

    def __init__(
        self,
        *,
        timeout: float,
        ping: float,
        limit: int,
        changed: Callable[[], None],
        moved: Callable[[], None] | None = None,
    ) -> None:
        self.is_up = False
        """The server answers."""
        self._timeout, self._ping_after, self._limit = timeout, ping, limit
        self._changed, self._moved = changed, moved
        self._waiting: deque[_Call] = deque()
        self._flying: deque[_Call] = deque()
        self._again: list[_Call] = []
        self._work, self._landed = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def run(self, *args: Argument) -> Any:
        """The reply to one command.

        Raises:
            BrokerUnavailable: there is no reply within the time-out, or too many commands wait.
            redis.exceptions.ResponseError: the server refuses the command.
        """
        return await self._add(tuple(map(_encode, args)), None)

    async def evaluate(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()) -> Any:
        """The reply to *script*; raises as `run` does."""
        words = (b"EVALSHA", script.sha, len(keys), *keys, *args)
        return await self._add(tuple(map(_encode, words)), script)

    def _add(self, args: tuple[bytes, ...], script: Script | None) -> asyncio.Future[Any]:
        if self._is_closed:
            raise BrokerUnavailable("the link is stopped")
        if len(self._waiting) >= self._limit:
            raise BrokerUnavailable(f"{self._limit} commands wait already")
        loop = asyncio.get_running_loop()
        call = _Call(args, script, loop.time() + self._timeout)
        self._waiting.append(call)
        self._work.set()
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)
        return call.future

    def _expire(self) -> None:
        """Answer those whose time is up; all have the same time, so the oldest are the first."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in itertools.takewhile(lambda call: call.deadline <= now, self._flying):
            call.fail("no reply in time", may_have_run=True)
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail("not sent in time", may_have_run=False)
        calls = itertools.chain(self._flying, self._waiting)
        oldest = next((call for call in calls if not call.future.done()), None)
        self._timer = loop.call_at(oldest.deadline, self._expire) if oldest else None

    async def serve(self, wire: Wire) -> None:
        """Send and receive on *wire* until it is lost."""
        async with asyncio.timeout(self._timeout):
            await wire.send([(b"PING",)])
            if isinstance(reply := await wire.receive(), ResponseError):
                raise reply
        self._set_up(True)
        try:
            await together(self._read(wire), self._write(wire), self._ping())
        finally:
            while self._flying:
                self._flying.popleft().fail("the connection was lost", may_have_run=True)
            self._queue_again()
            self._set_up(False)

    def close(self) -> None:
        """Answer whoever still waits; nothing more is taken."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().fail("the link is stopped", may_have_run=False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _write(self, wire: Wire) -> None:
        while True:
            await self._work.wait()
            if not wire.is_open:
                raise ConnectionError("the connection is lost")
            batch = list(itertools.islice(self._take(), BATCH))
            if not batch:
                self._work.clear()
                continue
            self._flying.extend(batch)
            self._landed.clear()
            async with asyncio.timeout(self._timeout):
                await wire.send([call.args for call in batch])
                await self._landed.wait()

    def _take(self) -> Iterator[_Call]:
        """Those that wait, without those that were given up."""
        while self._waiting:
            call = self._waiting.popleft()
            if not call.future.done():
                yield call

    async def _read(self, wire: Wire) -> None:
        while True:
            self._land(await wire.receive())

    def _land(self, reply: Any) -> None:
        if not self._flying:
            raise ConnectionError("a reply that nobody asked for")
        call = self._flying.popleft()
        if call.script is not None and isinstance(reply, NoScriptError):
            self._again.append(call)
        elif self._moved is not None and isinstance(reply, ResponseError) and has_moved(reply):
            call.fail(f"another node has the slot: {reply}", may_have_run=False)
            tell(self._moved)
        else:
            call.finish(reply)
        if not self._flying:
            self._queue_again()
            self._landed.set()
        if isinstance(reply, ReadOnlyError):
            raise ConnectionError("the server is no master any more")

    def _queue_again(self) -> None:
        """Put those that have not run before all others: without this, later commands would overtake them."""
        if not self._again:
            return
        known = set()
        for call in self._again:
            if call.script is not None and call.script.sha not in known:
                call.args = (b"EVAL", call.script.source, *call.args[2:])
                known.add(call.script.sha)
        self._waiting.extendleft(reversed(self._again))
        self._again.clear()
        self._work.set()

    async def _ping(self) -> None:
        """See in time that the server is gone though nobody asks it anything."""
        while True:
            await asyncio.sleep(self._ping_after)
            if not self._flying and not self._waiting:
                await self.run("PING")

    def _set_up(self, is_up: bool) -> None:
        self.is_up = is_up
        self._changed()


def _encode(arg: Argument) -> bytes:
    """Without this, an argument that cannot be sent would be found in the midst of the others' commands."""
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, bool) or not isinstance(arg, str | int | float):
        raise TypeError(f"Redis takes bytes, str, int and float; got {type(arg).__name__}")
    return str(arg).encode()
