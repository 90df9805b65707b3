"""Floor 1, sockets: server code that listens to channels, each call in a task that nobody else's end takes along."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import orjson

from .errors import ChannelCallbackError
from .protocol import Message

__all__ = ["CallbackType", "Callbacks", "is_cancelled"]

logger = logging.getLogger(__name__)

CallbackType = Callable[[str, str, Any], Awaitable[Any]]
"""Server code that listens: ``await callback(channel, event, data)``."""
MAX_WAITING = 1000
"""Messages of one channel that may wait for callbacks; further ones do not reach them, and are counted."""


class Callbacks:
    """Calls server code. *tasks* are those of the owner, who ends them; *remove* takes a callback off its channels."""

    def __init__(self, tasks: set[asyncio.Task[Any]], remove: Callable[[CallbackType], None]) -> None:
        self.dropped = 0
        """Messages that came while too many waited."""
        self._tasks, self._remove = tasks, remove
        self._waiting: dict[str, deque[tuple[Sequence[CallbackType], Message]]] = {}

    async def call(self, callbacks: Sequence[CallbackType], message: Message) -> None:
        """Call all, and return when all have ended; who is cancelled meanwhile does not take them along."""
        data = orjson.loads(message.data)
        calls = [self._start(self._call(callback, message, data)) for callback in callbacks]
        await asyncio.wait(calls)

    def post(self, callbacks: Sequence[CallbackType], message: Message) -> None:
        """Call all, without waiting: those of one channel, in the order of its messages."""
        waiting = self._waiting.get(message.channel)
        if waiting is None:
            waiting = self._waiting[message.channel] = deque()
            _ = self._start(self._work(message.channel, waiting))
        if len(waiting) < MAX_WAITING:
            waiting.append((callbacks, message))
            return
        self.dropped += 1
        if len(waiting) == MAX_WAITING:
            logger.error("callbacks of channel %r are too slow: messages do not reach them", message.channel)
            waiting.append(((), message))  # said once, until there is room again

    async def _work(self, channel: str, waiting: deque[tuple[Sequence[CallbackType], Message]]) -> None:
        try:
            while waiting:
                callbacks, message = waiting.popleft()
                if callbacks:
                    await self.call(callbacks, message)
        finally:
            del self._waiting[channel]

    async def _call(self, callback: CallbackType, message: Message, data: Any) -> None:
        try:
            await callback(message.channel, message.event, data)
        except ChannelCallbackError:
            self._remove(callback)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            logger.exception("callback of channel %r failed and is taken off", message.channel)
            self._remove(callback)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def is_cancelled() -> bool:
    """Somebody has asked the running task to end; a CancelledError without that comes from within."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
