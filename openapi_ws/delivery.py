"""Floor 2, hub: messages from anywhere to all who listen, and to those who missed them; what brokers override."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from .channels import Channels
from .errors import UnknownChannel
from .history import History, Page, Position
from .members import Counts, Member
from .memory import Memory
from .outgoing import Caught
from .protocol import Message, Notice
from .roster import Rolls, Roster
from .topics import Topic, Topics

if TYPE_CHECKING:
    from .websocket import Websocket

__all__ = ["Delivery"]

USER = "@user"
"""The channel that a message to one user is said to come on; there is no such channel."""
PAGE = 50
"""Messages that a client which lags is given at once."""


class Delivery:
    """Publishes, keeps and recovers messages in this process; a broker overrides what is in its last section."""

    topics: Topics = Topics()
    """What channels there are; with none declared, every name is one."""

    def __init__(self, topics: Iterable[Topic] = ()) -> None:
        self.topics = Topics(topics)

    @cached_property
    def channels(self) -> Channels:
        """The channels that somebody in this process listens to."""
        channels = Channels(self)
        channels.on_left = self.roster.left
        return channels

    @cached_property
    def roster(self) -> Roster:
        """The clients of this process that are present in channels."""
        return Roster(self)

    @cached_property
    def rolls(self) -> Rolls:
        """Who is present, where this process is all there is."""
        return Rolls(self.roster.hear)

    @cached_property
    def memory(self) -> Memory:
        """What this process keeps of channels with history."""
        return Memory()

    def topic_of(self, channel: str) -> Topic | None:
        """The topic of *channel*, or None where no topics are declared.

        Raises:
            UnknownChannel: topics are declared, and it is of none of them; or it is `USER`.
        """
        if not len(self.topics) and channel != USER:
            return None
        topic = self.topics.find(channel)
        if topic is None or channel == USER:
            raise UnknownChannel
        return topic

    def history_of(self, channel: str) -> History | None:
        """How much is kept of *channel*; None keeps nothing.

        Raises:
            UnknownChannel: as `topic_of`.
        """
        topic = self.topic_of(channel)
        return None if topic is None else topic.history

    async def publish(
        self,
        channel: str,
        event: str | None,
        data: Any = None,
        *,
        exclude: Websocket | None = None,
        key: str | None = None,
    ) -> str | None:
        """Publish *data* as *event* on *channel*, from any code of the application.

        *data* is of the type that the channel's topic says, or anything `encode` takes where no topics are declared; it
        is encoded here, once, whoever listens. The client *exclude* does not get it. It never waits for a client.

        Where the channel has a history, the message is kept and its position is returned. There a *key*, 1 to 128
        characters, makes it safe to publish again when nobody knows what became of the first time: for five minutes the
        same key on the same channel publishes nothing, and returns the first position.

        Raises:
            UnknownChannel: topics are declared, and the channel is of none of them.
            TypeError, ValueError: *data* is not what the topic's event carries, or there is no such event; or *key* is
                none, or the channel has no history.
            CannotPublish: the broker does not publish to this channel.
            BrokerUnavailable: the broker cannot be reached; with *may_have_run*, the message may be out nevertheless.
            EncodeError: JSON cannot hold *data*; nobody has got anything.
        """
        message, history = self.topics.message(channel, event, data, key=key)
        if history is not None:
            return str(await self.append(message, history, key=key, exclude=exclude))
        await self.emit(message, exclude=exclude)
        return None

    async def appear(self, websocket: Websocket, channel: str) -> None:
        """Show *websocket*, which has come to *channel*, to those who are there, if both its view and its topic say so.

        Raises:
            BrokerUnavailable: nobody can be told; it is not present.
        """
        topic = self.topics.find(channel)
        if topic is not None and topic.presence:
            await self.roster.enter(websocket, channel)

    async def backlog(self, websocket: Websocket, channel: str, since: Position, size: int) -> Caught:
        """The next messages after *since* for a client that lags, as `Outgoing` asks for them."""
        history = self.history_of(channel)
        if history is None or channel not in self.channels.get_subscribed(websocket):
            return Caught([], None)
        page = await self.recover(channel, history, since, PAGE, partial=True)
        gap, frames = None, list[bytes]()
        if page.status not in ("ok", "more"):
            since, gap = page.top, gap_notice(channel, reason=page.status)
        dialect = websocket.push_dialect or websocket.dialect
        for entry in page.entries:
            message, since = Message.unpack(channel, entry), entry.position
            if self.channels.hears(websocket, message):
                frames.append(websocket.frame(dialect.message(message)))
                size -= len(frames[-1])
            if size <= 0:
                break
        # Nothing awaits between this look and the moment from which the client gets live messages again.
        return Caught(frames, None if since == self.here(channel, history) else since, gap)

    # -- the broker: override to make one's own ---------------------------------------------------------------

    async def start(self) -> None:
        """Connect to what the broker needs; called when the application starts."""

    async def stop(self) -> None:
        """Undo `start`; called when the application is cleaned up, after the last socket is gone."""

    async def emit(self, message: Message, *, exclude: Websocket | None = None) -> None:
        """Bring *message* to all who listen, wherever they are."""
        await self.channels.deliver(message, exclude=exclude)

    async def append(
        self, message: Message, history: History, *, key: str | None = None, exclude: Websocket | None = None
    ) -> Position:
        """Keep *message* and bring it to all who listen, each once and in order; its position."""
        log = self.memory.log(message.channel, history)
        before = log.top
        position, is_new = log.publish(message.pack(), secrets.token_hex(8), self.memory.now(), key=key)
        if is_new:
            placed = replace(message, position=str(position), before=before)
            await self.channels.deliver(placed, exclude=exclude)
        return position

    async def recover(
        self, channel: str, history: History, since: Position | None, limit: int, *, partial: bool = False
    ) -> Page:
        """What was published after *since* and **has been delivered here**; the rest is going to be.

        So the page's `top` is a seam: who listens already when this is called, and forgets what it is given up to
        there, has all messages once. *limit* and *partial* are those of `Log.recover`.
        """
        return self.memory.log(channel, history).recover(since, limit, self.memory.now(), partial=partial)

    def here(self, channel: str, history: History) -> Position | None:
        """The position up to which all has been delivered here; None while that is not known."""
        return self.memory.log(channel, history).top

    async def read(
        self, channel: str, history: History, *, limit: int, since: Position | None = None, reverse: bool = False
    ) -> Page:
        """At most *limit* messages that are kept, as `Log.read` gives them."""
        log = self.memory.log(channel, history)
        return log.read(limit=limit, now=self.memory.now(), since=since, reverse=reverse)

    async def subscribe(self, channel: str) -> None:
        """Begin to bring *channel*'s messages here: its first listener has come.

        Raises:
            CannotSubscribe: there is no such channel. Whatever is raised, the broker is not subscribed.
        """

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        """Learn that a listener has come for *event*, a name or a pattern, e.g. to subscribe to a feed for it."""

    async def unsubscribe(self, channel: str) -> None:
        """End what `subscribe` began: the last listener has left. If it fails, it is called again."""

    async def enter(self, channel: str, member: Member) -> None:
        """*member* is present in *channel*, or its info is another; `Roster.hear` is told what that changes."""
        self.rolls.enter(channel, member)

    async def leave(self, channel: str, member: Member, *, linger: float = 0.0) -> None:
        """*member* has left *channel*, or is going to in *linger* seconds unless it enters again."""
        self.rolls.leave(channel, member, linger)

    async def members(self, channel: str, *, limit: int, after: str | None = None) -> list[tuple[str, bytes]]:
        """At most *limit* users present in *channel*, with their info as JSON, by name, beyond the user *after*."""
        return self.rolls.page(channel, limit, after)

    async def member_counts(self, channel: str) -> Counts:
        """How many connections, and users, are present in *channel*."""
        return self.rolls.counts(channel)


def gap_notice(channel: str, *, reason: str) -> Notice:
    """Tells a client that it may have missed messages of *channel*, nobody knows how many."""
    return Notice("gap", orjson.dumps({"channel": channel, "reason": reason}))
