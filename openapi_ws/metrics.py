"""Floor 0, words: what one process has counted. Whoever sees a thing happen counts it; nothing here asks the time."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Protocol

__all__ = ["Metrics", "Named"]


class Named(Protocol):
    """A method of a view."""

    name: str


class Metrics:
    """Counters since the process started, and one gauge."""

    __slots__ = ("answered", "closes", "dropped", "failed", "lag", "lagged", "opened", "refused")

    def __init__(self) -> None:
        self.opened = 0
        """Handshakes that became sockets."""
        self.refused: Counter[str] = Counter()
        """Handshakes that were refused, by reason: ``closing``, ``sockets``, ``address``, ``identity``."""
        self.closes: Counter[int | str] = Counter()
        """Sockets that are gone, by close code; codes that clients make up are all ``other``."""
        self.answered: defaultdict[Named, int] = defaultdict(int)
        """Calls that ended well, by method; by the object, since that is looked up faster than its name."""
        self.failed: Counter[tuple[str, str]] = Counter()
        """Calls that did not, by the method's name and ``gone`` or the code of the error."""
        self.dropped: Counter[str] = Counter()
        """What did not reach whom it was for, by reason: messages ``slow`` or ``closed``, calls ``notification``."""
        self.lagged = 0
        """Times that a client fell behind in a channel with history, and was given the rest from there."""
        self.lag = 0.0
        """Seconds by which the event loop was late when it last looked."""

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """Calls that have ended, by the method's name and outcome: ``ok``, ``gone``, or the code of the error."""
        calls = self.failed.copy()
        for method, count in self.answered.items():
            calls[method.name, "ok"] += count
        return calls

    def count_close(self, code: int, *, is_theirs: bool) -> None:
        """A socket is gone; the client began the close, or else this side."""
        # Without this, clients would make counters: of the codes for applications, 3000-4999, they choose any.
        self.closes["other" if is_theirs and code >= 3000 else code] += 1

    def info(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        calls: dict[str, dict[str, int]] = {}
        for (method, outcome), count in self.calls.items():
            calls.setdefault(method, {})[outcome] = count
        return {
            "opened": self.opened,
            "refused": dict(self.refused),
            "closes": {str(code): count for code, count in self.closes.items()},
            "calls": calls,
            "dropped": dict(+self.dropped),
            "lagged": self.lagged,
            "lag": self.lag,
        }
