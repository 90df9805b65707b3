"""What subscribers have seen, and what of it they were not to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from openapi_ws.history import Position

__all__ = ["Id", "Record", "live_faults", "log_faults"]

Id = tuple[str, int]
"""Who published it, and as which of its messages, counted from 0."""


class Record(NamedTuple):
    """One thing that a subscriber was told, in the order in which it came."""

    what: Literal["start", "flag", "message"]
    place: Position | None = None
    """Of the channel's message at that point, where it has positions."""
    id: Id = ("", -1)
    reason: str = ""


def log_faults(records: Iterable[Record], acknowledged: Mapping[Id, Position]) -> Iterator[str]:
    """What is wrong with *records* of a channel with history, where *acknowledged* is what publishers were told.

    Each message once and right after the one before it, or a flag first; and what was acknowledged has come, or lies
    where there is a flag.
    """
    start: Position | None = None
    at: Position | None = None
    flag = ""
    seen: dict[Id, Position] = {}
    lost: list[tuple[Position, Position]] = []
    for record in records:
        place = record.place
        if record.what == "flag":
            flag = record.reason
        elif place is not None and record.what == "start":
            start = at = place
        elif place is not None and at is not None:
            if record.id in seen:
                yield f"{record.id} came twice: at {seen[record.id]} and {place}"
            if place.epoch != at.epoch or place.offset != at.offset + 1:
                if not flag:
                    yield f"{record.id} at {place} follows on {at}, and no flag between"
                lost.append((at, place))
                flag = ""
            seen[record.id] = at = place
    if at is None or start is None:
        yield "never subscribed"
        return
    yield from _order(seen)
    for id_, place in acknowledged.items():
        if id_ in seen and seen[id_] != place:
            yield f"{id_} was acknowledged at {place} and came at {seen[id_]}"
        is_due = place.epoch != start.epoch or place.offset > start.offset
        if id_ not in seen and is_due and not any(_is_between(place, *hole) for hole in lost):
            yield f"{id_} was acknowledged at {place}, and neither came nor was flagged"


def _is_between(place: Position, before: Position, after: Position) -> bool:
    is_after = place.epoch != before.epoch or place.offset > before.offset
    return is_after and (place.epoch != after.epoch or place.offset < after.offset)


def _order(seen: Iterable[Id]) -> Iterator[str]:
    last: dict[str, int] = {}
    for by, number in seen:
        if number <= last.get(by, -1):
            yield f"{(by, number)} came after {(by, last[by])}"
        last[by] = number


def live_faults(records: Iterable[Record], acknowledged: Iterable[Id]) -> Iterator[str]:
    """What is wrong with *records* of a channel that keeps nothing.

    At most once, in the order of each publisher; and between two messages of a publisher nothing acknowledged is
    missing, unless there is a flag, or a new subscription, between them.
    """
    due: dict[str, list[int]] = {}
    for by, number in acknowledged:
        due.setdefault(by, []).append(number)
    last: dict[str, int] = {}
    is_open: set[str] = set()
    for record in records:
        by, number = record.id
        if record.what != "message":
            is_open = set(due)
            continue
        before = last.get(by, -1)
        if number <= before:
            yield f"{record.id} came after {(by, before)}"
        if by in last and by not in is_open:
            missing = [n for n in due.get(by, ()) if before < n < number]
            if missing:
                yield f"{by}'s {missing} were acknowledged, and {number} follows on {before} without a flag"
        last[by] = max(before, number)
        is_open.discard(by)
