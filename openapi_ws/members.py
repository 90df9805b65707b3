"""Floor 0, words: who is present in one channel, and what changes by who comes, goes, or is not heard of any more."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple, Protocol

__all__ = ["Attendee", "Change", "Counts", "Diff", "Member", "Members"]

REAP = 1000
"""The most connections that one step finds to be gone; the next step finds the others."""


@dataclass(frozen=True, slots=True)
class Member:
    """One connection that is present in a channel."""

    connection: str
    """A name of its own: visible ASCII, no spaces."""
    user: str
    """Whose it is; all connections of a user are one to the others."""
    info: bytes = b"null"
    """What is said of the user, as JSON."""


class Change(NamedTuple):
    """What others are told: the first connection of a user has come, the last has gone, or its info is another."""

    kind: Literal["join", "leave", "update"]
    user: str
    info: bytes


class Counts(NamedTuple):
    """How many are present."""

    connections: int
    users: int


class Members:
    """The members of one channel. The Redis script ``presence.lua`` does the same, step by step.

    *now* is of a clock that does not go back, in the unit of *ttl* and *linger*. Each step begins with those whose time
    is up, in the order in which it was.
    """

    __slots__ = ("_due", "_expiry", "_infos", "_numbers", "_users")

    def __init__(self) -> None:
        self._expiry: dict[tuple[str, str], float] = {}
        self._due: list[tuple[float, tuple[str, str]]] = []
        self._numbers: dict[str, int] = {}
        self._infos: dict[str, bytes] = {}
        self._users: list[str] = []

    def __len__(self) -> int:
        return len(self._expiry)

    @property
    def due(self) -> float | None:
        """When the next is gone unless it is heard of; None if nobody is."""
        while self._due and self._expiry.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def enter(self, member: Member, now: float, ttl: float = inf, *, is_news: bool = True) -> list[Change]:
        """*member* is present for *ttl* from now; what it says of its user holds for all of the user's connections.

        With *is_news* false it only goes on being present: its info counts if nothing is known of its user any more.
        """
        name = member.connection, member.user
        changes = self._reap(now, spared=name)
        is_new = name not in self._expiry
        self._expire(name, now + ttl)
        known = self._infos.get(member.user)
        if is_new:
            self._numbers[member.user] = self._numbers.get(member.user, 0) + 1
        if known is None:
            insort(self._users, member.user)
            self._infos[member.user] = member.info
            changes.append(Change("join", member.user, member.info))
        elif is_news and known != member.info:
            self._infos[member.user] = member.info
            changes.append(Change("update", member.user, member.info))
        return changes

    def leave(self, member: Member, now: float, linger: float = 0.0) -> list[Change]:
        """The connection of *member* is gone, or is going to be in *linger*, unless it enters again."""
        changes, name = self._reap(now), (member.connection, member.user)
        if name in self._expiry:
            if linger > 0:
                self._expire(name, now + linger)
            else:
                changes += self._forget(name)
        return changes

    def sweep(self, now: float) -> list[Change]:
        """Find those whose time is up."""
        return self._reap(now)

    def page(self, limit: int, after: str | None = None) -> list[tuple[str, bytes]]:
        """At most *limit* users and their info, in the order of their names, from the one that follows *after*."""
        start = 0 if after is None else bisect_right(self._users, after)
        return [(user, self._infos[user]) for user in self._users[start : start + limit]]

    def counts(self) -> Counts:
        """How many are present."""
        return Counts(len(self._expiry), len(self._infos))

    def _expire(self, name: tuple[str, str], at: float) -> None:
        self._expiry[name] = at
        if at < inf:
            heapq.heappush(self._due, (at, name))

    def _reap(self, now: float, spared: tuple[str, str] | None = None) -> list[Change]:
        changes: list[Change] = []
        found, kept = 0, None
        while found < REAP and (due := self.due) is not None and due <= now:
            at, name = heapq.heappop(self._due)
            found += 1
            if name == spared:
                kept = at, name
            else:
                changes += self._forget(name)
        if kept is not None:
            heapq.heappush(self._due, kept)
        return changes

    def _forget(self, name: tuple[str, str]) -> list[Change]:
        del self._expiry[name]
        user = name[1]
        self._numbers[user] -= 1
        if self._numbers[user]:
            return []
        del self._numbers[user]
        del self._users[bisect_left(self._users, user)]
        return [Change("leave", user, self._infos.pop(user))]


class Diff:
    """Changes that are told together: who has come and gone in between is left out."""

    __slots__ = ("_users",)

    def __init__(self) -> None:
        self._users: dict[str, tuple[bytes | None, bytes | None]] = {}

    def add(self, change: Change) -> None:
        """Take in *change*, the next."""
        if change.user in self._users:
            before = self._users[change.user][0]
        else:
            # Of an update nobody knows what was before, but that it was another.
            before = {"join": None, "leave": change.info, "update": b""}[change.kind]
        self._users[change.user] = before, None if change.kind == "leave" else change.info

    def joins(self) -> list[tuple[str, bytes]]:
        """Users who are here and were not, or of whom something else is said now."""
        return [(user, now) for user, (before, now) in self._users.items() if now is not None and now != before]

    def leaves(self) -> list[tuple[str, bytes]]:
        """Users who were here and are not, with what was said of them."""
        return [(user, was) for user, (was, now) in self._users.items() if now is None and was is not None]


class Attendee(Protocol):
    """Whoever is asked who a client is, when it comes to a channel that shows its members."""

    member_linger: float
    """Seconds that it is still present after its connection was lost."""

    async def introduce(self, channel: str) -> Member:
        """What others are told of it in *channel*."""
