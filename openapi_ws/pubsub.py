"""Floor 3, calls: the mixins that let clients subscribe and publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from .errors import LimitExceeded
from .rpc import current_call, ws_rpc

if TYPE_CHECKING:
    from .channels import Channels
    from .manager import SocketsManager
    from .protocol import Message
    from .websocket import Websocket

__all__ = ["Publication", "Publish", "Subscribe", "Subscription", "listen"]

NAME_LIMIT = 255
"""Characters of a channel or event name that a client may send."""

ALPHABET = r"^[!-~]*$"
"""What a channel's name is made of: visible ASCII, no spaces."""

ChannelName = Annotated[
    str, Field(min_length=1, max_length=NAME_LIMIT, pattern=ALPHABET, description="Name of the channel")
]
EventName = Annotated[str, Field(max_length=NAME_LIMIT)]


class Subscription(BaseModel):
    """Which events of which channel."""

    channel: ChannelName
    event: Annotated[EventName | None, Field(description="Event name, or a pattern of *, ?, […]; none means *")] = None


class Publication(BaseModel):
    """A message for a channel."""

    channel: ChannelName
    event: Annotated[EventName | None, Field(description="Event name")] = None
    data: Annotated[Any, Field(description="What the message says")] = None


async def listen(
    channels: Channels, websocket: Websocket, channel: str, event: str | None, limit: int | None = None
) -> None:
    """Put *websocket* on an event of a channel, in the dialect of the call that asks for it, if that is its own.

    Raises:
        LimitExceeded: it has *limit* subscriptions already; with none, there is no limit.
        CannotSubscribe: the broker has no such channel.
    """
    if limit is not None:
        subscribed = channels.get_subscribed(websocket)
        count = sum(map(len, subscribed.values()))
        if count >= limit and (event or "*") not in subscribed.get(channel, ()):
            raise LimitExceeded(f"At most {limit} subscriptions")
    before, (caller, call) = websocket.push_dialect, current_call.get((None, None))
    if call is not None and caller is websocket:
        websocket.push_dialect = call.dialect
    try:
        await channels.register(channel, event, websocket)
    except BaseException:
        websocket.push_dialect = before
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
        data = self.get_publish_message(payload.data)
        await self.sockets.publish(payload.channel, payload.event, data)
        return {"channel": payload.channel, "event": payload.event, "data": data}


class Subscribe:
    """Mixin of a `WsPathMixin` view: clients subscribe with the methods ``subscribe`` and ``unsubscribe``."""

    if TYPE_CHECKING:
        max_subscriptions: ClassVar[int]

        @property
        def channels(self) -> Channels: ...  # noqa: D102  # WsPathMixin's
        @property
        def websocket(self) -> Websocket: ...  # noqa: D102  # WsPathMixin's

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_subscribe(self, payload: Subscription) -> dict[str, dict[str, list[str]]]:
        """Subscribe to events of a channel; answers all that this socket is subscribed to."""
        await listen(self.channels, self.websocket, payload.channel, payload.event, self.max_subscriptions)
        return {"subscribed": self.channels.get_subscribed(self.websocket)}

    @ws_rpc(ordered=True)
    async def ws_rpc_unsubscribe(self, payload: Subscription) -> dict[str, dict[str, list[str]]]:
        """End a subscription; answers what is left of them."""
        self.websocket.flush()  # what was published before goes out before the answer
        await self.channels.unregister(payload.channel, payload.event, self.websocket)
        heard: dict[tuple[str, str], bool] = {}

        def is_unwanted(message: Message) -> bool:
            # Asked once for all messages of an event: thousands may wait.
            event = message.channel, message.event
            if event not in heard:
                heard[event] = self.channels.hears(self.websocket, message)
            return not heard[event]

        self.websocket.discard(is_unwanted)
        return {"subscribed": self.channels.get_subscribed(self.websocket)}
