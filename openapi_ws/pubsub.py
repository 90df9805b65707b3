"""Floor 3, calls: the mixins that let clients subscribe and publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError, from_json

from .errors import CannotPublish, InvalidParams, LimitExceeded
from .history import KEY_LIMIT, History, Position
from .patterns import Pattern
from .protocol import Message
from .rpc import current_call, ws_rpc
from .topics import NAME_LIMIT, Topic

if TYPE_CHECKING:
    from .channels import Channels
    from .manager import SocketsManager
    from .websocket import Websocket

__all__ = ["Publication", "Publish", "Query", "Subscribe", "Subscription", "listen"]

PAGE_LIMIT = 300
"""Messages that one answer holds; who has missed more is told so, and loads the state instead."""

ALPHABET = r"^[!-~]*$"
"""What a channel's name is made of: visible ASCII, no spaces."""

ChannelName = Annotated[
    str, Field(min_length=1, max_length=NAME_LIMIT, pattern=ALPHABET, description="Name of the channel")
]
EventName = Annotated[str, Field(max_length=NAME_LIMIT)]
Key = Annotated[str, Field(min_length=1, max_length=KEY_LIMIT)]


def _position(text: Any) -> Position:
    position = Position.parse(text) if isinstance(text, str) else None
    if position is None:
        raise PydanticCustomError("position", "a position expected")
    return position


Place = Annotated[Position, BeforeValidator(_position, json_schema_input_type=str)]


class Subscription(BaseModel):
    """Which events of which channel."""

    channel: ChannelName
    event: Annotated[EventName | None, Field(description="Event name, or a pattern of *, ?, […]; none means *")] = None

    position: Annotated[Place | None, Field(description="Where the client has got to: what it missed is sent")] = None


class Publication(BaseModel):
    """A message for a channel."""

    channel: ChannelName
    event: Annotated[EventName | None, Field(description="Event name")] = None
    data: Annotated[Any, Field(description="What the message says")] = None
    key: Annotated[Key | None, Field(description="Of two publications with one key, the second is none")] = None


class Query(BaseModel):
    """Messages of a channel that are kept."""

    channel: ChannelName
    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT, description="At most so many messages")] = 50
    since: Annotated[Place | None, Field(description="Those after this position, or before it if reversed")] = None
    reverse: Annotated[bool, Field(description="The newest first")] = False


async def listen(
    sockets: SocketsManager, websocket: Websocket, channel: str, event: str | None, limit: int | None = None
) -> None:
    """Put *websocket* on an event of a channel, in the dialect of the call that asks for it, if that is its own.

    Raises:
        LimitExceeded: it has *limit* subscriptions already; with none, there is no limit.
        CannotSubscribe: the broker has no such channel.
        BrokerUnavailable: it cannot be reached.
    """
    channels, name = sockets.channels, event or "*"
    subscribed = channels.get_subscribed(websocket)
    is_new = name not in subscribed.get(channel, ())
    if limit is not None and is_new and sum(map(len, subscribed.values())) >= limit:
        raise LimitExceeded(f"At most {limit} subscriptions")
    before, (caller, call) = websocket.push_dialect, current_call.get((None, None))
    if call is not None and caller is websocket:
        websocket.push_dialect = call.dialect
    try:
        await channels.register(channel, event, websocket)
        await _appear(sockets, websocket, channel, name if is_new else None)
    except BaseException:
        websocket.push_dialect = before
        raise


async def _appear(sockets: SocketsManager, websocket: Websocket, channel: str, new: str | None) -> None:
    """Show the client where that is wanted; where it fails, it is taken off the event that is *new*."""
    try:
        await sockets.appear(websocket, channel)
    except BaseException:
        if new is not None:
            sockets.channels.discard(channel, new, websocket)
        raise


class Publish:
    """Mixin of a `WsPathMixin` view: clients publish with the method ``publish``."""

    if TYPE_CHECKING:

        @property
        def sockets(self) -> SocketsManager: ...  # noqa: D102  # WsPathMixin's

    def get_publish_message(self, data: Any) -> Any:
        """Make the message from a client's *data*: override to check or change it.

        Raises:
            CannotPublish: this client does not publish this.
        """
        return data

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_publish(self, payload: Publication) -> dict[str, Any]:
        """Publish an event on a channel; answers what was published."""
        topic, data = self.sockets.topic_of(payload.channel), payload.data
        if topic is not None:
            if not topic.publish:
                raise CannotPublish(f"clients do not publish to {topic}")
            data = topic.parse(payload.event or "", data)
        if payload.key is not None and (topic is None or topic.history is None):
            raise InvalidParams({"key": "the channel has no history"})
        data = self.get_publish_message(data)
        key: dict[str, Any] = (
            {} if payload.key is None else {"key": payload.key}
        )  # a broker of one's own may know of no keys
        position = await self.sockets.publish(payload.channel, payload.event, data, **key)
        answer = {"channel": payload.channel, "event": payload.event, "data": data}
        return answer if position is None else {**answer, "position": position}


class Subscribe:
    """Mixin of a `WsPathMixin` view: clients subscribe with the methods ``subscribe`` and ``unsubscribe``."""

    if TYPE_CHECKING:
        max_subscriptions: ClassVar[int]

        max_queue_bytes: ClassVar[int]

        @property
        def sockets(self) -> SocketsManager: ...  # noqa: D102  # WsPathMixin's
        @property
        def channels(self) -> Channels: ...  # noqa: D102  # WsPathMixin's
        @property
        def websocket(self) -> Websocket: ...  # noqa: D102  # WsPathMixin's

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_subscribe(self, payload: Subscription) -> dict[str, Any]:
        """Subscribe to events of a channel; answers all that this socket is subscribed to.

        Where the channel has a history, it answers the position from which messages come. With a position, it answers
        the messages since then, or that they cannot be given and why.
        """
        topic = self.sockets.topic_of(payload.channel)
        before = self.channels.get_subscribed(self.websocket).get(payload.channel, [])
        await listen(self.sockets, self.websocket, payload.channel, payload.event, self.max_subscriptions)
        try:
            found = await self._find_missed(topic, payload, before) if topic else {}
        except BaseException:
            if (payload.event or "*") not in before:
                self.channels.discard(payload.channel, payload.event or "*", self.websocket)
            raise
        return {"subscribed": self.channels.get_subscribed(self.websocket), **found}

    async def _find_missed(self, topic: Topic, payload: Subscription, before: list[str]) -> dict[str, Any]:
        """What a subscriber is told beside its subscriptions; what it is given here does not come again."""
        found: dict[str, Any] = {}
        if topic.history is not None:
            found = await self._recover(topic.history, payload, before)
        elif payload.position is not None:
            found = {"recovered": False, "reason": "none", "messages": []}
        if topic.snapshot is not None and not found.get("recovered"):
            found["snapshot"] = await topic.snapshot(**(topic.match(payload.channel) or {}))
        return found

    async def _recover(self, history: History, payload: Subscription, before: list[str]) -> dict[str, Any]:
        page = await self.sockets.recover(payload.channel, history, payload.position, PAGE_LIMIT)
        reason = page.status if page.status not in ("top", "ok") else None
        if sum(len(entry.data) for entry in page.entries) > self.max_queue_bytes // 2:
            reason = "limit"
        is_new, is_old = Pattern(payload.event or "*"), [Pattern(event) for event in before]
        messages = [Message.unpack(payload.channel, entry) for entry in page.entries if reason is None]
        given = {message.position for message in messages if is_new.matches(message.event)}

        def is_unwanted(message: Message) -> bool:
            """It is in the answer, or was published before this subscription is in force."""
            if message.channel != payload.channel or message.before is None or message.before.epoch != page.top.epoch:
                return False
            is_early = message.before.offset < page.top.offset
            return message.position in given or (is_early and not any(old.matches(message.event) for old in is_old))

        self.websocket.discard(is_unwanted)
        found: dict[str, Any] = {"position": str(page.top)}
        if payload.position is not None:
            found["recovered"] = reason is None
            found |= {"reason": reason} if reason else {}
            found["messages"] = [readable(message) for message in messages if message.position in given]
        return found

    @ws_rpc
    async def ws_rpc_history(self, payload: Query) -> dict[str, Any]:
        """Read messages of a channel that are kept; answers them, the last position, and whether there are more."""
        topic = self.sockets.topic_of(payload.channel)
        if topic is None or topic.history is None:
            raise InvalidParams({"channel": "the channel has no history"})
        page = await self.sockets.read(
            payload.channel, topic.history, limit=payload.limit, since=payload.since, reverse=payload.reverse
        )
        messages: list[dict[str, Any]] = []
        size = 0
        for entry in page.entries:
            size += len(entry.data)
            if messages and size > self.max_queue_bytes // 2:
                break
            messages.append(readable(Message.unpack(payload.channel, entry)))
        found: dict[str, Any] = {"messages": messages, "position": str(page.top)}
        found["more"] = page.status == "more" or len(messages) < len(page.entries)
        return found if page.status in ("ok", "more") else {**found, "reason": page.status}

    @ws_rpc(ordered=True)
    async def ws_rpc_unsubscribe(self, payload: Subscription) -> dict[str, dict[str, list[str]]]:
        """End a subscription; answers what is left of them."""
        self.websocket.flush()  # what was published before goes out before the answer
        await self.channels.unregister(payload.channel, payload.event, self.websocket)
        heard: dict[str, bool] = {}

        def is_unwanted(message: Message) -> bool:
            if message.channel != payload.channel:
                return False
            # Asked once for all messages of an event: thousands may wait.
            if message.event not in heard:
                heard[message.event] = self.channels.hears(self.websocket, message)
            return not heard[message.event]

        self.websocket.discard(is_unwanted)
        return {"subscribed": self.channels.get_subscribed(self.websocket)}


def readable(message: Message) -> dict[str, Any]:
    """A kept message as the members of one that comes live."""
    data = from_json(message.data)  # unlike orjson's, it keeps numbers of any size
    return {"channel": message.channel, "event": message.event, "data": data, "position": message.position}
