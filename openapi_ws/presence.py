"""Floor 3, calls: the mixin that shows clients to each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from .errors import InvalidParams
from .members import Member
from .payloads import adapter_of, explain, validator
from .protocol import encode
from .pubsub import PAGE_LIMIT, ChannelName
from .rpc import type_hints, ws_rpc

if TYPE_CHECKING:
    from .manager import SocketsManager
    from .websocket import Websocket

__all__ = ["MemberQuery", "MemberUpdate", "Place", "Presence"]

INFO_LIMIT = 4096
"""Bytes of JSON that are said of one user."""


class Place(BaseModel):
    """A channel that shows its members."""

    channel: ChannelName


class MemberQuery(Place):
    """Users who are present in a channel."""

    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT, description="At most so many users")] = 50
    after: Annotated[str | None, Field(description="Those beyond this user: what an answer gave as next")] = None


class MemberUpdate(Place):
    """What the client says of its user."""

    info: Annotated[Any, Field(description="Of the type that the view's member_info returns")]


class Presence:
    """Mixin of a `WsPathMixin` view: its clients are shown in channels whose topic has ``presence=True``.

    A client is present while it is subscribed, or joined, to such a channel. All connections of one `identity` are one
    user; a client without an identity is a user of its own, named by its `socket_id`. Those who are present are told by
    the notices ``join`` and ``leave``, a quarter of a second's together. Clients ask with the methods ``presence`` and
    ``presence_stats``, whether present or not, and say something else of themselves with ``presence_update``.
    """

    member_linger: float = 15.0
    """Seconds that a client is still present after its connection was lost, or was closed with a code that brings it
    back: a page that is loaded anew does not leave. 0 is none."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _info_type(cls.member_info)  # a type that cannot be read is found now

    if TYPE_CHECKING:
        max_queue_bytes: ClassVar[int]
        websocket: Websocket

        @property
        def sockets(self) -> SocketsManager: ...  # noqa: D102  # WsPathMixin's

    async def member_info(self, channel: str) -> Any:
        """What others are told of this client's user in *channel*; asked when it comes there.

        The annotated type is that of what clients may say with ``presence_update``; without an override they may not.
        At most 4,096 bytes of JSON.
        """
        return None

    async def introduce(self, channel: str) -> Member:
        """Make this client a member of *channel*.

        Raises:
            ValueError: `member_info` is not of its type, or too large.
        """
        said = await self.member_info(channel)
        type_ = _info_type(type(self).member_info)
        info = encode(type_.validator.validate_python(said), type_.serializer)
        if len(info) > INFO_LIMIT:
            raise ValueError(f"member_info has at most {INFO_LIMIT} bytes of JSON; got {len(info)}")
        websocket = self.websocket
        user = websocket.socket_id if websocket.identity is None else websocket.identity
        return Member(websocket.socket_id, user, info)

    @ws_rpc
    async def ws_rpc_presence(self, payload: MemberQuery) -> dict[str, Any]:
        """Tell who is present in a channel, ordered by user; with ``next`` where there are more."""
        self._show(payload.channel)
        found = await self.sockets.members(payload.channel, limit=payload.limit + 1, after=payload.after)
        members: list[dict[str, Any]] = []
        size = 0
        for user, info in found[: payload.limit]:
            size += len(user) + len(info)
            if members and size > self.max_queue_bytes // 2:
                break
            members.append({"user": user, "info": from_json(info)})  # unlike orjson's, it keeps numbers of any size
        is_all = len(members) == len(found)
        return {"members": members} if is_all else {"members": members, "next": members[-1]["user"]}

    @ws_rpc
    async def ws_rpc_presence_stats(self, payload: Place) -> dict[str, int]:
        """Tell how many are present in a channel."""
        self._show(payload.channel)
        return (await self.sockets.member_counts(payload.channel))._asdict()

    @ws_rpc(ordered=True)
    async def ws_rpc_presence_update(self, payload: MemberUpdate) -> dict[str, Any]:
        """Say something else of this client's user to all who are present in a channel; answers it."""
        self._show(payload.channel)
        if type(self).member_info is Presence.member_info:
            raise InvalidParams({"info": "clients say nothing of themselves here"})
        type_ = _info_type(type(self).member_info)
        try:
            info = encode(validator(type_)(payload.info), type_.serializer)
        except ValidationError as error:
            errors = {f"info.{path}" if path else "info": why for path, why in explain(error).items()}
            raise InvalidParams(errors) from None
        if len(info) > INFO_LIMIT:
            raise InvalidParams({"info": f"at most {INFO_LIMIT} bytes"})
        await self.sockets.roster.update(self.websocket, payload.channel, info)
        return {"channel": payload.channel, "info": from_json(info)}

    def _show(self, channel: str) -> None:
        topic = self.sockets.topic_of(channel)
        if topic is None or not topic.presence:
            raise InvalidParams({"channel": "the channel has no presence"})


@functools.cache
def _info_type(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return adapter_of(type_hints(function).get("return", Any), "member_info")
