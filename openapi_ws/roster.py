"""Floor 2, hub: the clients of this process that are present in channels, and what they are told of each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import orjson

from .channels import Channels
from .errors import InvalidParams
from .members import Change, Counts, Diff, Member, Members
from .protocol import Dialect, Notice
from .websocket import Websocket

__all__ = ["Keeper", "Rolls", "Roster"]

logger = logging.getLogger(__name__)

WINDOW = 0.25
"""Seconds for which changes of a channel are collected before its members are told."""
CROWD = 50
"""Members that one notice names."""
LOST = 1006
RETURNING = {1001, LOST, 1011, 1012, 1013, *range(4000, 4500)}
"""Close codes after which a client is expected back: 1001 is also a page that is loaded anew, those of 4000 to 4499
tell the client to come back."""


class Keeper(Protocol):
    """What keeps who is present, in all processes."""

    @property
    def channels(self) -> Channels:
        """Who listens to what here."""

    async def enter(self, channel: str, member: Member) -> None:
        """*member* is present, or its info is another."""

    async def leave(self, channel: str, member: Member, *, linger: float = 0.0) -> None:
        """*member* is gone, or is going to be."""


class Roster:
    """The clients of this process that are present, by channel.

    A client is present from when it has subscribed to a channel that shows its members, until it is off the channel,
    whatever takes it off.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._here: dict[str, dict[Websocket, Member]] = {}
        self._leaving: dict[tuple[str, Websocket], asyncio.Task[None]] = {}
        self._diffs: dict[str, Diff] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._here)

    def __iter__(self) -> Iterator[tuple[str, Member]]:
        return ((channel, member) for channel, here in tuple(self._here.items()) for member in tuple(here.values()))

    @property
    def departures(self) -> tuple[asyncio.Task[None], ...]:
        """What tells the others of those who have left; each ends as soon as the broker allows."""
        return tuple(self._leaving.values())

    async def enter(self, websocket: Websocket, channel: str) -> None:
        """*websocket* has come to *channel*; others are told, unless its view shows nobody.

        Raises:
            BrokerUnavailable: nobody can be told; it is not present.
        """
        if websocket.attendee is None or websocket in self._here.get(channel, ()):
            return
        member = await websocket.attendee.introduce(channel)
        while leaving := self._leaving.get((channel, websocket)):
            await asyncio.wait([leaving])
        if channel not in self._keeper.channels.get_subscribed(websocket):  # any more
            return
        self._here.setdefault(channel, {})[websocket] = member
        try:
            await self._keeper.enter(channel, member)
        except BaseException:
            self.left(channel, websocket)  # it may be present nevertheless
            raise

    async def update(self, websocket: Websocket, channel: str, info: bytes) -> None:
        """Say *info* of the user of *websocket* from now on.

        Raises:
            InvalidParams: it is not present in *channel*.
        """
        here = self._here.get(channel, {})
        if websocket not in here:
            raise InvalidParams({"channel": "you are not present in the channel"})
        here[websocket] = member = replace(here[websocket], info=info)
        await self._keeper.enter(channel, member)

    def left(self, channel: str, listener: Any) -> None:
        """*listener* is off *channel*; the others are told, at once or when it has not come back in time."""
        here = self._here.get(channel, {})
        member = here.pop(listener, None)
        if member is None:
            return
        if not here:
            del self._here[channel]
            self._diffs.pop(channel, None)
        is_lost = listener.has_ended and (listener.close_code or LOST) in RETURNING
        linger = listener.attendee.member_linger if is_lost else 0.0
        task = asyncio.get_running_loop().create_task(self._leave(channel, member, linger))
        self._leaving[channel, listener] = task
        task.add_done_callback(lambda _: self._leaving.pop((channel, listener), None))

    async def _leave(self, channel: str, member: Member, linger: float) -> None:
        try:
            await self._keeper.leave(channel, member, linger=linger)
        except Exception as error:
            logger.warning("that %s has left %r is told when its time is up: %r", member.connection, channel, error)

    # -- what they are told -----------------------------------------------------------------------------------

    def hear(self, channel: str, changes: Iterable[Change]) -> None:
        """Tell those present in *channel* of *changes*, with what else changes within `WINDOW`."""
        if channel not in self._here:
            return
        for change in changes:
            self._diffs.setdefault(channel, Diff()).add(change)
        if self._diffs and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW, self._tell_all)

    def doubt(self, channel: str) -> None:
        """Tell those present in *channel* to ask who is: they may not have been told of all changes."""
        self._tell(channel, Notice("presence", orjson.dumps({"channel": channel})))

    def _tell_all(self) -> None:
        self._timer = None
        diffs, self._diffs = self._diffs, {}
        for channel, diff in diffs.items():
            for name, members in (("leave", diff.leaves()), ("join", diff.joins())):
                for at in range(0, len(members), CROWD):
                    self._tell(channel, _notice(name, channel, members[at : at + CROWD]))

    def _tell(self, channel: str, notice: Notice) -> None:
        payloads: dict[Dialect, bytes] = {}
        for websocket in tuple(self._here.get(channel, ())):
            dialect = websocket.push_dialect or websocket.dialect
            payload = payloads.get(dialect)
            if payload is None:
                payload = payloads[dialect] = dialect.notice(notice)
            websocket.send(payload)

    def close(self) -> None:
        """Tell nobody anything any more."""
        self._diffs.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Rolls:
    """Who is present in the channels of this process alone. *tell* is called with a channel and its changes."""

    def __init__(self, tell: Callable[[str, list[Change]], None]) -> None:
        self._tell = tell
        self._rolls: dict[str, tuple[Members, asyncio.TimerHandle | None]] = {}

    def __len__(self) -> int:
        return len(self._rolls)

    def enter(self, channel: str, member: Member) -> None:
        """*member* is present, without an end, or its info is another."""
        members = self._members(channel)
        self._settle(channel, members, members.enter(member, self._now()))

    def leave(self, channel: str, member: Member, linger: float) -> None:
        """*member* is gone, or is going to be in *linger* seconds."""
        members = self._members(channel)
        self._settle(channel, members, members.leave(member, self._now(), linger))

    def page(self, channel: str, limit: int, after: str | None) -> list[tuple[str, bytes]]:
        """Users and what is said of them, as `Members.page` has it."""
        return self._swept(channel).page(limit, after)

    def counts(self, channel: str) -> Counts:
        """How many are present."""
        return self._swept(channel).counts()

    def close(self) -> None:
        """Forget everybody."""
        for _, timer in self._rolls.values():
            if timer is not None:
                timer.cancel()
        self._rolls.clear()

    def _members(self, channel: str) -> Members:
        return self._rolls[channel][0] if channel in self._rolls else Members()

    def _swept(self, channel: str) -> Members:
        members = self._members(channel)
        self._settle(channel, members, members.sweep(self._now()))
        return members

    def _settle(self, channel: str, members: Members, changes: list[Change]) -> None:
        """Keep *members* as long as there are any, and look again when the next one's time is up."""
        _, timer = self._rolls.pop(channel, (None, None))
        if timer is not None:
            timer.cancel()
        if members:
            loop, due = asyncio.get_running_loop(), members.due
            timer = None if due is None else loop.call_at(due, self._swept, channel)
            self._rolls[channel] = members, timer
        if changes:
            self._tell(channel, changes)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _notice(name: str, channel: str, members: list[tuple[str, bytes]]) -> Notice:
    named = b",".join(b'{"user":%b,"info":%b}' % (orjson.dumps(user), info) for user, info in members)
    return Notice(name, b'{"channel":%b,"members":[%b]}' % (orjson.dumps(channel), named))
