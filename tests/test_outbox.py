"""Messages that wait for one client, alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openapi_ws.outbox import Outbox, SlowConsumer, conflate, disconnect, drop_oldest
from openapi_ws.protocol import Message

LIMIT = 100
sizes = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=40)


def fill(policy: SlowConsumer, messages: list[tuple[str, int]]) -> tuple[Outbox, bool]:
    """An outbox that got *messages*, event and size each; and whether they fitted."""
    outbox, fits = Outbox(policy), True
    for number, (event, size) in enumerate(messages):
        frame = b"%04d" % number + b"x" * size
        fits = outbox.add(frame, Message("c", event, b"0"), LIMIT) and fits
    return outbox, fits


@given(sizes)
def test_disconnect_keeps_all_until_they_are_too_many(messages: list[tuple[str, int]]) -> None:
    """Nothing is dropped; that more than the limit waits is said at once."""
    outbox, fits = fill(disconnect, messages)
    assert len(outbox) == len(messages)
    assert outbox.size == sum(size + 4 for _, size in messages)
    assert fits == (outbox.size <= LIMIT or len(messages) == 1)
    assert not outbox.missed


@given(sizes)
def test_drop_oldest_keeps_the_latest_and_counts_the_rest(messages: list[tuple[str, int]]) -> None:
    """What waits is the end of what came, within the limit; each message waits or is counted."""
    outbox, fits = fill(drop_oldest, messages)
    assert fits
    assert outbox.size <= LIMIT
    count = len(outbox)
    assert count + sum(outbox.missed.values()) == len(messages)
    numbers = [int(frame[:4]) for frame in outbox.take(LIMIT)]
    assert numbers == list(range(len(messages) - count, len(messages)))


@given(sizes)
def test_conflate_keeps_the_latest_of_each_key(messages: list[tuple[str, int]]) -> None:
    """In the order in which the keys came first; each message waits or is counted."""
    outbox, _ = fill(conflate(lambda message: message.event), messages)
    latest = {event: number for number, (event, _) in enumerate(messages)}
    assert len(outbox) + sum(outbox.missed.values()) == len(messages)
    assert [int(frame[:4]) for frame in outbox.take(10_000)] == [
        latest[event] for event in dict.fromkeys(event for event, _ in messages)
    ]
    assert outbox.size == 0


@given(sizes, st.integers(1, 50))
def test_taking_takes_all_in_order_and_at_least_one(messages: list[tuple[str, int]], size: int) -> None:
    """However little is asked for, it comes to an end."""
    outbox, _ = fill(disconnect, messages)
    taken: list[bytes] = []
    while outbox:
        frames = outbox.take(size)
        assert frames
        assert sum(map(len, frames[:-1])) < size
        taken += frames
    assert [int(frame[:4]) for frame in taken] == list(range(len(messages)))
    assert outbox.size == 0
    assert outbox.take(size) == []
