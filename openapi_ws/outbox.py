"""Floor 1, sockets: messages that wait for a client slower than they come, and what is done when they are too many."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .protocol import Message

__all__ = ["Outbox", "SlowConsumer", "conflate", "disconnect", "drop_oldest"]


@dataclass(frozen=True, slots=True)
class SlowConsumer:
    """What is done with a client that does not keep up: `disconnect`, `drop_oldest` or `conflate`."""

    drops: bool = False
    """The oldest messages make room for new ones."""
    key: Callable[[Message], Hashable] | None = None
    """Of messages with the same key only the latest waits."""

    @property
    def catches_up(self) -> bool:
        """What does not fit of a channel with history is read from there later: nothing is lost, nothing dropped."""
        return not self.drops and self.key is None


disconnect = SlowConsumer()
"""Close it with 4008, so that it comes back and starts anew. Where a channel has history, it is read on instead."""
drop_oldest = SlowConsumer(drops=True)
"""Drop what has waited longest, and say so in a ``gap`` notice before the next message."""


def conflate(key: Callable[[Message], Hashable]) -> SlowConsumer:
    """Keep the latest message for each *key*, e.g. ``conflate(lambda message: (message.channel, message.event))``.

    It takes the place of the one it replaces, so the order across keys is lost. What is replaced is told in a ``gap``
    notice before the next message. If the latest alone are too many, the client is closed with 4008. *key* is called
    for a client that lags, and never waits.
    """
    return SlowConsumer(key=key)


class Outbox:
    """The messages that wait for one client, each whole frame once, in the order in which they came."""

    __slots__ = ("_numbers", "_policy", "_waiting", "dropped", "missed", "size")

    def __init__(self, policy: SlowConsumer) -> None:
        self._policy = policy
        self._waiting: dict[Hashable, tuple[bytes, Message]] = {}
        self._numbers = itertools.count()
        self.size = 0
        """Bytes that wait."""
        self.missed: dict[str, int] = {}
        """Messages that were dropped and not told yet, by channel."""
        self.dropped = 0
        """Messages that were dropped, told or not."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, frame: bytes, message: Message, limit: int) -> bool:
        """Put *message* in, as its *frame*; False if more than *limit* bytes wait although the policy has acted.

        One message alone always fits.
        """
        is_notice = not message.data
        key = (self._policy.key(message),) if self._policy.key and not is_notice else next(self._numbers)
        if replaced := self._waiting.get(key):
            self._forget(*replaced)
        self._waiting[key] = frame, message
        self.size += len(frame)
        while self._policy.drops and self.size > limit and len(self._waiting) > 1:
            self._forget(*self._waiting.pop(next(iter(self._waiting))))
        return self.size <= limit or len(self._waiting) == 1

    def take(self, size: int) -> list[bytes]:
        """The frames that have waited longest, up to *size* bytes and at least one, if there is one."""
        frames: list[bytes] = []
        while self._waiting and size > 0:
            frame, _ = self._waiting.pop(next(iter(self._waiting)))
            frames.append(frame)
            self.size -= len(frame)
            size -= len(frame)
        return frames

    def discard(self, is_unwanted: Callable[[Message], bool]) -> None:
        """Take out the messages that the client does not want any more; it is not told of them."""
        for key, (frame, message) in tuple(self._waiting.items()):
            if is_unwanted(message):
                del self._waiting[key]
                self.size -= len(frame)

    def _forget(self, frame: bytes, message: Message) -> None:
        self.size -= len(frame)
        self.missed[message.channel] = self.missed.get(message.channel, 0) + 1
        self.dropped += 1
