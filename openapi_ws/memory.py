"""Floor 2, hub: what one process keeps of channels with history, as long as somebody may come back for it."""

from __future__ import annotations

import secrets
import time

from .history import History, Log

__all__ = ["Memory"]

MAX_LOGS = 10_000
"""Channels of which messages are kept; with more, the one that was not touched for longest is forgotten."""
SWEEP = 100
"""New channels until what is spent is looked for again."""


class Memory:
    """The logs of the channels of this process, each from its first use until it is spent.

    One that is forgotten, as all are when the process ends, begins anew under another epoch: who comes back with a
    position of the old one is told so.
    """

    __slots__ = ("_logs", "_new")

    def __init__(self) -> None:
        self._logs: dict[str, tuple[History, Log]] = {}
        self._new = 0

    def __len__(self) -> int:
        return len(self._logs)

    @staticmethod
    def now() -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def log(self, channel: str, history: History) -> Log:
        """The log of *channel*, made where there is none."""
        kept = self._logs.pop(channel, None)
        if kept is None:
            self._sweep()
            kept = history, Log(history, secrets.token_hex(8))
        self._logs[channel] = kept  # at the end: that was touched last
        return kept[1]

    def _sweep(self) -> None:
        self._new += 1
        if self._new >= SWEEP or len(self._logs) >= MAX_LOGS:
            self._new, now = 0, self.now()
            for channel, (history, log) in tuple(self._logs.items()):
                if log.is_spent(now, after=history.ttl):
                    del self._logs[channel]
        while len(self._logs) >= MAX_LOGS:
            del self._logs[next(iter(self._logs))]
