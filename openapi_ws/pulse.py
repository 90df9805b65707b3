"""Floor 0, words: the signs of life of one client, and what they call for. Whoever asks says what time it is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["End", "Ping", "Pulse", "Warn"]

WARNING = 10.0
"""Seconds between the warning that a socket is going to be closed and the end, or half of its time if that is less."""
FORCED_RECONNECT, NO_PONG = 4011, 4012


@dataclass(frozen=True, slots=True)
class Ping:
    """It has been silent for a while: ask whether it is there."""


@dataclass(frozen=True, slots=True)
class Warn:
    """It will be closed for *reason* in *seconds*."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """Its time is up."""

    code: int
    reason: str


class Pulse:
    """When a client was last heard and used, and since when it is here; times in seconds of one clock.

    With *heartbeat* seconds of silence it is to be pinged, with 1.5 times as many it is dead; with *max_idle* seconds
    without use, or *max_age* of life, it is to be closed. None means never. It may send *control_rate* control frames
    a second, and twice as many at once.
    """

    __slots__ = (
        "_control", "_looked", "_silence", "_since", "_used", "_warned", "control_rate", "heartbeat",
        "max_age", "max_idle",
    )  # fmt: skip

    def __init__(
        self,
        now: float,
        *,
        heartbeat: float | None,
        max_idle: float | None,
        max_age: float | None,
        control_rate: float = 10,
    ) -> None:
        self.control_rate = control_rate
        self.heartbeat, self.max_idle, self.max_age = heartbeat, max_idle, max_age
        self._since = self._used = self._looked = now
        self._silence = 0.0
        self._warned: str | None = None
        self._control: float = 2 * control_rate

    def heard(self) -> None:
        """A frame has come since the last look, or the client has read."""
        self._silence = 0.0

    def used(self, now: float) -> None:
        """A message has come, or a call is in flight."""
        self._used = now

    def allows_control(self) -> bool:
        """A control frame has come; False if there are too many of them."""
        self._control -= 1
        return self._control >= 0

    def look(self, now: float, late: float = 0.0) -> Ping | Warn | End | None:
        """What is called for, by who looks *late* seconds after it wanted to."""
        passed, self._looked = now - self._looked, now
        self._control = min(2 * self.control_rate, self._control + self.control_rate * passed)
        return self._check_time(now) or self._check_silence(passed - late)

    def _check_silence(self, passed: float) -> Ping | End | None:
        if self.heartbeat is None:
            return None
        # A process that had no time, e.g. on a machine that slept, has heard nobody: the pongs are there, unread.
        before = self._silence
        self._silence += min(passed, self.heartbeat / 2)
        if self._silence >= self.heartbeat * 1.5:
            return End(NO_PONG, "no pong")
        return Ping() if before < self.heartbeat <= self._silence else None

    def _check_time(self, now: float) -> Warn | End | None:
        ends = [("age", self._since + self.max_age, self.max_age)] if self.max_age is not None else []
        if self.max_idle is not None:
            ends.append(("idle", self._used + self.max_idle, self.max_idle))
        if not ends:
            return None
        reason, end, limit = min(ends, key=lambda item: item[1])
        if now >= end:
            return End(FORCED_RECONNECT, reason)
        before, self._warned = self._warned, reason if end - now <= min(WARNING, limit / 2) else None
        return Warn(reason, end - now) if self._warned not in (before, None) else None
