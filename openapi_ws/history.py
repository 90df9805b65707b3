"""Floor 0, words: the last messages of a channel, positions in them, and what a reader may be told it has seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Entry", "Follower", "Healed", "History", "Log", "Page", "Position", "Reason", "check_key"]

# How it works: the messages of a channel are counted from 1, and each carries a nonce and the nonce of the one before
# it. A reader who knows the last nonce it saw can tell from the next message alone that nothing lies between the two.
# Offsets do not prove that: a store that lost its newest messages, as a failover to a lagging replica does, counts on
# from an older offset, and its reader would take the second message 51 for the one after its own 50. Where no message
# follows, the store compares: an offset it has not reached, or has reached with another nonce, is such a fork. The
# epoch names one life of the counter; where it is lost with all else, the next begins at 1 under another name.
#
# Nobody here knows the time or draws a number: *now*, in seconds of any clock that does not go back, the epoch and the
# nonces are handed in.

POSITION_LIMIT = 128
"""The most characters of a position's text."""
MAX_OFFSET = 2**53
"""Up to here Lua and JavaScript count exactly."""
MAX_SIZE = 100_000
"""The most messages that a channel may keep."""
META_TTL = 30 * 86400.0
"""Seconds after which the epoch of a channel that nobody publishes to or asks for is forgotten."""
IDEMPOTENCY_TTL = 300.0
"""Seconds for which a key finds its first publish."""
MAX_KEYS = 10_000
"""How many keys one channel remembers in memory; with more, the oldest goes before its time."""
KEY_LIMIT = 128
"""The most characters of a key."""
RETRY_WINDOW = 1000
"""How many of the last messages a retry is looked for among."""
RECENT = 512
"""How many of the last nonces a follower knows: more than a page of those it reads has messages."""
MAX_KEPT = 256
"""How many pushes a follower keeps while it heals; the page after the next has those beyond."""
MAX_KEPT_SIZE = 1024 * 1024
"""The most bytes of the pushes that it keeps."""

Reason = Literal["epoch", "fork", "trimmed", "limit"]
"""Why messages cannot be given: the counter began anew, the store went back in time, the messages are no longer kept,
or they are more than were asked for."""
Status = Literal["top", "ok", "more"] | Reason


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's messages, opaque to clients; its text is ``<epoch>.<offset>.<nonce>``."""

    epoch: str
    """One life of the counter; ASCII letters and digits."""
    offset: int
    """How many messages this epoch had; 0 is before the first."""
    nonce: str
    """That of the message at *offset*, ASCII letters and digits; "" at offset 0."""

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}.{self.nonce}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position of this text, or None: it is not one of ours. Any text is taken."""
        if len(text) > POSITION_LIMIT or not text.isascii() or text.count(".") != 2:
            return None
        epoch, digits, nonce = text.split(".")
        if not epoch.isalnum() or not digits.isdigit() or (digits[0] == "0" and digits != "0"):
            return None
        offset = int(digits)
        if offset > MAX_OFFSET or not (nonce.isalnum() if offset else nonce == ""):
            return None
        return cls(epoch, offset, nonce)


@dataclass(frozen=True, slots=True)
class History:
    """How much of a channel is kept.

    Raises:
        ValueError: a field is out of its range.
    """

    size: int = 100
    """Messages, 1 to 100,000."""
    ttl: float = 600.0
    """Seconds after the last publish until all are forgotten, up to 30 days."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"History.size is a number of messages from 1 to {MAX_SIZE}; got {self.size!r}")
        if isinstance(self.ttl, bool) or not isinstance(self.ttl, int | float) or not 0.001 <= self.ttl <= META_TTL:
            raise ValueError(f"History.ttl is seconds from 0.001 to {META_TTL:.0f}, 30 days; got {self.ttl!r}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in its place."""

    position: Position
    previous: str
    """The nonce of the message before; "" for the first of an epoch."""
    data: bytes

    def follows(self, position: Position) -> bool:
        """Nothing lies between *position* and this message."""
        mine = self.position
        return mine.epoch == position.epoch and mine.offset == position.offset + 1 and self.previous == position.nonce


@dataclass(frozen=True, slots=True)
class Page:
    """What a store answers to a reader."""

    status: Status
    """"top": only the top was asked for; "ok": *entries* is all; "more": and there are further ones; else a reason
    why there are none."""
    top: Position
    """That of the last message published."""
    entries: tuple[Entry, ...] = ()


class Log:
    """The last messages of one channel, in memory.

    It keeps at most the history's *size* of them, and `MAX_KEYS` idempotency keys. What is too old goes when it is
    next touched.
    """

    __slots__ = ("_entries", "_expiry", "_keys", "_touched", "_ttl", "top")

    def __init__(self, history: History, epoch: str) -> None:
        self.top = Position(epoch, 0, "")
        """The position of the last message published, kept or not."""
        self._entries: deque[Entry] = deque(maxlen=history.size)
        self._ttl = history.ttl
        self._expiry = 0.0
        self._keys: dict[str, tuple[float, Position]] = {}
        self._touched: float | None = None

    def publish(
        self, data: bytes, nonce: str, now: float, *, key: str | None = None, retry: bool = False
    ) -> tuple[Position, bool]:
        """Append a message; its position, and whether it is new.

        A *key* that was used in the last `IDEMPOTENCY_TTL` seconds gives the position of its first publish, and
        nothing is appended. With *retry*, neither is a message whose *nonce* is among the last.

        Raises:
            ValueError: *key* is not one (`check_key`).
        """
        self._forget(now)
        if key is not None:
            check_key(key)
            if key in self._keys:
                return self._keys[key][1], False
        if retry and (first := self._find(nonce)):
            return first, False
        self._touched = now
        entry = Entry(Position(self.top.epoch, self.top.offset + 1, nonce), self.top.nonce, data)
        self.top = entry.position
        self._entries.append(entry)
        self._expiry = now + self._ttl
        if key is not None:
            if len(self._keys) == MAX_KEYS:
                del self._keys[next(iter(self._keys))]
            self._keys[key] = now + IDEMPOTENCY_TTL, self.top
        return self.top, True

    def recover(self, since: Position | None, limit: int, now: float, *, partial: bool = False) -> Page:
        """All messages after *since*, or the reason why not all can be given; without *since*, only the top.

        More than *limit* of them are the reason "limit"; with *partial*, the first *limit* are given as "more".

        Raises:
            ValueError: *limit* is less than 1.
        """
        self._begin(limit, now)
        if since is None:
            return Page("top", self.top)
        if reason := self._impossible(since):
            return Page(reason, self.top)
        missed = self.top.offset - since.offset
        if missed > limit and not partial:
            return Page("limit", self.top)
        start = len(self._entries) - missed
        entries = self._slice(start, start + min(missed, limit))
        return Page("more" if missed > limit else "ok", self.top, entries)

    def read(self, *, limit: int, now: float, since: Position | None = None, reverse: bool = False) -> Page:
        """At most *limit* messages, "more" if there are further ones.

        The oldest that are kept or, with *since*, the next after it. With *reverse* the newest, the newest first, or
        the next before *since*; there, what is no longer kept is no reason, but the end.

        Raises:
            ValueError: *limit* is less than 1.
        """
        if not reverse and since is not None:
            return self.recover(since, limit, now, partial=True)
        self._begin(limit, now)
        kept = len(self._entries)
        if not reverse:
            return Page("more" if kept > limit else "ok", self.top, self._slice(0, min(limit, kept)))
        end = kept
        if since is not None:
            if reason := self._contradicted(since):
                return Page(reason, self.top)
            end = max(0, kept - (self.top.offset - since.offset) - 1)
        start = max(0, end - limit)
        return Page("more" if start else "ok", self.top, self._slice(start, end)[::-1])

    def is_spent(self, now: float, after: float = META_TTL) -> bool:
        """Nothing is kept, and nobody published or read for *after* seconds.

        A log may be dropped then; the next of the same channel begins another epoch, and who comes back with a
        position is told so.
        """
        self._forget(now)
        idle = self._touched is None or now >= self._touched + after
        return idle and not self._entries and not self._keys

    def _begin(self, limit: int, now: float) -> None:
        if limit < 1:
            raise ValueError(f"a limit is at least 1; got {limit}")
        self._forget(now)
        self._touched = now

    def _forget(self, now: float) -> None:
        if self._entries and now >= self._expiry:
            self._entries.clear()
        while self._keys:
            key = next(iter(self._keys))  # of one lifetime, they expire in the order in which they came
            if now < self._keys[key][0]:
                break
            del self._keys[key]

    def _find(self, nonce: str) -> Position | None:
        for back in range(1, min(len(self._entries), RETRY_WINDOW) + 1):
            if self._entries[-back].position.nonce == nonce:
                return self._entries[-back].position
        return None

    def _impossible(self, since: Position) -> Reason | None:
        """Why the messages after *since* cannot be given."""
        missed = self.top.offset - since.offset
        if since.epoch == self.top.epoch and missed > len(self._entries):
            return "trimmed"
        return self._contradicted(since)

    def _contradicted(self, since: Position) -> Reason | None:
        """Why *since*, as far as can be seen, is no position in these messages."""
        if since.epoch != self.top.epoch:
            return "epoch"
        missed, kept = self.top.offset - since.offset, len(self._entries)
        if missed < 0:
            return "fork"
        if missed == 0:
            return None if since.nonce == self.top.nonce else "fork"
        return None if missed > kept or self._entries[kept - missed].previous == since.nonce else "fork"

    def _slice(self, start: int, end: int) -> tuple[Entry, ...]:
        return tuple(self._entries[at] for at in range(start, end))


class Healed(NamedTuple):
    """What a page was good for."""

    entries: tuple[Entry, ...]
    """To be delivered, in this order."""
    reason: Reason | None = None
    """Not None: messages are lost. Who listens is told so, before *entries*."""


class Follower:
    """One reader of a channel that gets its messages pushed, and reads pages where they do not follow on each other.

    What it lets through is each message once, in order, or a reason first. While it heals, pushes are kept, up to
    `MAX_KEPT` and `MAX_KEPT_SIZE`, for what comes after the page. One page is read at a time: that since `position`.
    """

    __slots__ = ("_kept", "_kept_size", "_missed", "_recent", "is_healing", "position")

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        """That of the last message let through; None before the first page."""
        self.is_healing = True
        """A page is to be read: the top, or the messages since `position`."""
        self._recent: dict[int, str] = {}
        self._kept: list[Entry] = []
        self._kept_size = 0
        self._missed = False
        if position is not None:
            self._jump(position)

    def take(self, entry: Entry) -> Literal["deliver", "duplicate", "heal"]:
        """Say of a push whether to deliver it, or to forget it, or that a page is to be read, where it will be."""
        if not self.is_healing and self.position is not None:
            if entry.follows(self.position):
                self._advance(entry)
                return "deliver"
            if self._knows(entry):
                return "duplicate"
        self.is_healing = True
        self._keep(entry)
        return "heal"

    def suspect(self) -> None:
        """Deliver nothing before a page was read: pushes may be lost, e.g. because the connection was.

        While it heals, that is another page than the one that may be on its way: what was lost may be newer.
        """
        self._missed = self.is_healing
        self.is_healing = True

    def heal(self, page: Page) -> Healed:
        """Take the page that was read since `position`, and the pushes that came meanwhile.

        Where `is_healing` still holds afterwards, the next page is to be read: there are more messages, or pushes
        came which do not follow on this page.

        Raises:
            ValueError: the page is of the top alone, and there is a position; jumping there would hide a loss.
        """
        if self.position is None:
            self._jump(page.top)
            return Healed(self._merge())
        if page.status == "top":
            raise ValueError("a follower with a position heals by a page since that position")
        if page.status != "ok" and page.status != "more":
            self._jump(page.top)
            return Healed(self._merge(), page.status)
        for entry in page.entries:
            if not entry.follows(self.position):
                return self._broken(page)
            self._advance(entry)
        if page.status == "more":
            return Healed(page.entries)
        if self.position != page.top:
            return self._broken(page)
        return Healed(page.entries + self._merge())

    def _broken(self, page: Page) -> Healed:
        # What the page has before the break is not delivered: the reader reloads anyway.
        self._jump(page.top)
        return Healed(self._merge(), "fork")

    def _merge(self) -> tuple[Entry, ...]:
        """Those of the pushes kept that follow; what does not, the next page explains."""
        kept, self._kept, self._kept_size = self._kept, [], 0
        self.is_healing, self._missed = self._missed, False
        return tuple(self._following(kept))

    def _following(self, kept: Iterable[Entry]) -> Iterable[Entry]:
        for entry in kept:
            if self.position is not None and entry.follows(self.position):
                self._advance(entry)
                yield entry
            elif not self._knows(entry):
                self.is_healing = True

    def _keep(self, entry: Entry) -> None:
        if len(self._kept) < MAX_KEPT and self._kept_size + len(entry.data) <= MAX_KEPT_SIZE:
            self._kept.append(entry)
            self._kept_size += len(entry.data)
        else:
            self._missed = True

    def _knows(self, entry: Entry) -> bool:
        # By its nonce: an offset seen before with another nonce is a fork, which the next page tells.
        mine = entry.position
        known = self.position is not None and mine.epoch == self.position.epoch
        return known and self._recent.get(mine.offset) == mine.nonce

    def _advance(self, entry: Entry) -> None:
        self.position = entry.position
        self._recent[entry.position.offset] = entry.position.nonce
        self._recent.pop(entry.position.offset - RECENT, None)

    def _jump(self, position: Position) -> None:
        self.position = position
        self._recent = {position.offset: position.nonce}


def check_key(key: str) -> None:
    """Refuse what is no idempotency key.

    Raises:
        ValueError: *key* is empty, or has more than `KEY_LIMIT` characters.
    """
    if not 1 <= len(key) <= KEY_LIMIT:
        raise ValueError(f"a key has 1 to {KEY_LIMIT} characters; this one has {len(key)}")
